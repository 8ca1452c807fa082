"""Stops before the k-th change of the file system: the process is killed there, or told that the disk is full.

Python says through audit hooks what it is about to do: opening for writing, renaming, removing, making and removing
folders and links, cutting off. What C libraries do by themselves is not seen: of the Parquet files that pyarrow opens
and writes, only the renaming counts. Between opening and renaming nothing is seen either: a kill falls before the first
byte, or after the last.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Events, and which of their arguments are paths, each with the argument that is its folder's descriptor
PATHS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "open": ((0, None),), "os.rename": ((0, 2), (1, 3)), "os.remove": ((0, 1),), "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),), "os.symlink": ((1, 2),), "os.link": ((1, 3),), "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),), "os.utime": ((0, 3),),
}  # fmt: skip


def arm(under: Path, at: int, said: Callable[[str], None], *, full: bool = False) -> None:
    """Count changes below a folder from now on, and stop before number `at`; 0 only counts.

    Parameters
    ----------
    under : Path
        The folder; absolute and without links.
    at : int
        From 1.
    said : callable
        Told of every change before it is done, and so of the one that is not done any more.
    full : bool
        Fail this one and all later ones with ENOSPC (but for removals) instead of ending the process.
    """
    prefix = str(under)
    count = 0
    lock = threading.Lock()
    state = threading.local()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in PATHS or getattr(state, "busy", False):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        state.busy = True
        try:
            places = [_place(arguments, where, folder) for where, folder in PATHS[event]]
            if not any(place.startswith(prefix) for place in places):
                return
            with lock:
                count += 1
                number = count
                said(f"{event} {' '.join(place.removeprefix(prefix).lstrip('/') or '.' for place in places)}")
                if at and number == at and not full:
                    os.kill(os.getpid(), signal.SIGKILL)
        finally:
            state.busy = False
        if full and at and number >= at and event in ("open", "os.mkdir", "os.symlink", "os.link"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), places[0])

    sys.addaudithook(hook)


def _place(arguments: tuple[Any, ...], where: int, folder: int | None) -> str:
    """A path of an event, absolute."""
    path = arguments[where]
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    text = os.fsdecode(path)
    if os.path.isabs(text):
        return text
    if folder is not None and len(arguments) > folder and isinstance(arguments[folder], int) and arguments[folder] >= 0:
        return os.path.join(os.readlink(f"/proc/self/fd/{arguments[folder]}"), text)
    return os.path.abspath(text)
