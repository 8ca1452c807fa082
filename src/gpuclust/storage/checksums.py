"""Checksums of a run's files: made when a stage is done, kept in its record, compared before a file is used.

A file is known by its size and its CRC-32C. Shards of activations are left out: their chunks and their markers have
checksums of their own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpuclust import schema
from gpuclust.storage import atomic

log = logging.getLogger("gpuclust")

OWN = (
    f"{schema.ACTIVATIONS}/activations/c/",
    f"{schema.TOKENS}/activations/c/",
    f"{schema.SHARDS}/",
)  # what has checksums of its own
SEAL = ".crc"  # ends the name of the checksums of what no record knows
CHECKSUM = "checksum"  # of a JSON file's content, within it


def of_file(file: Path) -> list[int] | None:
    """Return size and CRC-32C; None where there is no file."""
    import google_crc32c

    if not file.is_file():
        return None
    size, crc = 0, 0
    with file.open("rb") as data:
        while block := data.read(1 << 24):
            crc = google_crc32c.extend(crc, block)
            size += len(block)
    return [size, crc]


def of_files(folder: Path, names: Iterable[str]) -> dict[str, list[int] | None]:
    """Return the checksums of files and of all that is in folders, by their place below `folder`."""
    found = {}
    for name in names:
        path = folder / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            place = file.relative_to(folder).as_posix()
            if file.is_file() and not place.startswith(OWN):
                found[place] = of_file(file)
    return found


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON with a checksum of its own content, which `read_json` compares.

    Parameters
    ----------
    path : Path
    data : mapping
        Plain data; a checksum in it is written anew.
    """
    plain = {key: value for key, value in data.items() if key != CHECKSUM}
    atomic.write_json(path, {CHECKSUM: _of_content(json.loads(json.dumps(plain))), **plain})  # keys become texts


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote, or JSON that has no checksum: that of older versions.

    Raises
    ------
    ValueError
        If it is no JSON, holds no mapping, or is not what was written.
    """
    data = plain_json(path)
    if not isinstance(data, dict):
        raise ValueError(f"it holds a {type(data).__name__}, not a mapping")
    if (known := data.pop(CHECKSUM, None)) is not None and known != (found := _of_content(data)):
        raise ValueError(f"its checksum is {known!r}, but its content has {found}")
    return data


def plain_json(path: Path) -> Any:
    """Read JSON that gpuclust wrote, of any kind.

    Raises
    ------
    ValueError
        If it is none, or nested more deeply than anything that gpuclust writes.
    """
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply for JSON that gpuclust wrote") from error


def _of_content(data: Mapping[str, Any]) -> int:
    """CRC-32C of JSON's content, however it is laid out."""
    import google_crc32c

    return int(google_crc32c.value(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()))


def seal(path: Path) -> None:
    """Write the checksums of a file or folder beside it, for what no record of a stage knows (`sealed`)."""
    atomic.write_json(_seal_of(path), of_files(path.parent, [path.name]))


def sealed(path: Path, then: str = "made anew") -> bool:
    """Whether a file or folder is there, whole, and what it was when `seal` was called; else what is `then` is said."""
    if not path.exists() or not _seal_of(path).exists():
        return False
    try:
        known = plain_json(_seal_of(path))
        bad = damaged(path.parent, known) if known else [_seal_of(path).name]
    except (ValueError, TypeError):
        bad = [_seal_of(path).name]
    if bad:
        log.warning("%s is damaged, and %s", path.parent / bad[0], then)
    return not bad


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{SEAL}")


def damaged(folder: Path, known: Mapping[str, list[int] | None], within: str = "") -> list[str]:
    """Return the places of files that are missing, or are not what they were.

    Parameters
    ----------
    folder : Path
    known : mapping of str to [size, CRC-32C]
        As from `of_files`.
    within : str
        A file, or a folder, and no others are looked at.
    """
    asked = [place for place in known if not within or place == within or place.startswith(f"{within}/")]
    return [place for place in asked if of_file(folder / place) != known[place]]
