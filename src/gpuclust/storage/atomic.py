"""Writing files and folders so that readers see either what was there before or all that is new.

Whatever gpuclust leaves on a disk, but for the shards of a store that is being made, is written through `replacing`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust.errors import StoreError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place beside `path` for a file or a folder, which takes its name when all is written.

    After an error nothing is left of it. What a killed process leaves ends in ``.tmp``.
    """
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    remove(partial)
    try:
        yield partial
        if partial.is_dir():
            remove(path)
            partial.rename(path)
        else:
            partial.replace(path)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder, where it is not there yet.

    Raises
    ------
    StoreError
        If something else has its name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StoreError(f"{path} is no folder, but one of that name is needed: move it away, or delete it") from error


def is_leftover(path: Path) -> bool:
    """Whether a killed process left this."""
    return re.search(r"\.\d+\.tmp$", path.name) is not None


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in a folder and in those in it; whoever calls this holds it alone.

    With `name`, only what was to become that file or folder, and whose process is not there any more. Links are not
    followed: somebody else may hold what is there.
    """
    inside = (path for path in folder.glob("*/*.tmp") if not path.parent.is_symlink())
    for path in [*folder.glob("*.tmp"), *inside]:
        if is_leftover(path) and (name is None or (path.name.startswith(f"{name}.") and not _alive(path))):
            remove(path)


def _alive(path: Path) -> bool:
    """Whether a process that is writing this is still there."""
    numbers = [int(n) for n in re.findall(r"(?<=\.)\d+(?=\.tmp)", path.name)]
    return any(Path(f"/proc/{n}").exists() for n in numbers) if Path("/proc").is_dir() else True


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes as they are."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_json(path: Path, data: Any) -> None:
    """Write JSON."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_table(path: Path, table: Any) -> None:
    """Write a DataFrame as Parquet."""
    with replacing(path) as partial:
        table.to_parquet(partial, index=False)


def write_array(path: Path, array: Any) -> None:
    """Write an array as ``.npy``."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name as ``.npz``."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
