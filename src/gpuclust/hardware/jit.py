"""A place for numba's compiled kernels where neither the installation nor the user's cache can be written to."""

from __future__ import annotations

import importlib.util
import logging
import os
import stat
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger("gpuclust")

PACKAGES = ("gpuclust", "umap", "pynndescent")  # that keep kernels, beside their files if they may


@cache
def keep_kernels() -> None:
    """Give numba a folder for compiled kernels where it would find none, and say so. Call it before they are imported.

    numba writes beside a module, else into the user's cache, and fails where it can do neither: an installation that is
    read only, and a home that cannot be written to or is not there.
    """
    import numba
    from numba.misc.appdirs import AppDirs

    users = Path(AppDirs(appname="numba", appauthor=False).user_cache_dir)
    if any(_writable(Path(folder)) for folder in (numba.config.CACHE_DIR, users) if folder):
        return
    specs = [importlib.util.find_spec(name) for name in PACKAGES]
    beside = [Path(spec.origin).parent / "__pycache__" for spec in specs if spec is not None and spec.origin]
    if all(_writable(folder) for folder in beside):
        return
    folder = _own_folder()
    os.environ["NUMBA_CACHE_DIR"] = str(folder)  # numba reads it again when any of its variables changes
    numba.config.CACHE_DIR = str(folder)
    log.warning(
        "neither the installation nor %s can be written to: compiled kernels are kept in %s. Set NUMBA_CACHE_DIR to "
        "a folder of yours to keep them elsewhere", users, folder,
    )  # fmt: skip


def prepare(kernels: Iterable[Any]) -> None:
    """Keep what another package compiles anew in every process, and let other threads run while it computes.

    Of umap-learn's kernels three have no cache, and compile for 10 seconds in all.

    Parameters
    ----------
    kernels : iterable of numba dispatchers
        Before their first call. What is none, of a version that has it otherwise, is left as it is.
    """
    for kernel in kernels:
        if hasattr(kernel, "enable_caching"):
            kernel.targetoptions["nogil"] = True
            kernel.enable_caching()
        else:
            log.debug("a kernel of umap-learn is no longer numba's and is not kept: %r", kernel)


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _own_folder() -> Path:
    """A temporary folder that nobody else can write to: kernels are pickles, which run code when they are read."""
    user = os.getuid() if hasattr(os, "getuid") else None
    folder = Path(tempfile.gettempdir()) / f"gpuclust-numba-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        safe = stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o022
    except OSError:
        safe = False
    return folder if safe and _writable(folder) else Path(tempfile.mkdtemp(prefix="gpuclust-numba-"))
