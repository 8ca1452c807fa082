"""Are two folders of results the same? Every stored number is compared, not the files' bytes.

    python scripts/compare_folders.py BEFORE AFTER [--leave NAME ...]

Parquet tables are compared column by column, Zarr groups array by array with their attributes, `.npy` and `.npz` by
value, JSON and YAML by value without what tells of time, machine and version (`VOLATILE`); other files by their bytes.
Prints a line a difference. Exit code 0: the same; 1: not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

# Of records: what differs between two runs of one computation
VOLATILE = {
    "seconds", "checksum", "peak_bytes", "projected_bytes", "started", "finished", "created", "versions", "key", "keys",
    "device",
    "scheduler", "git", "python", "platform", "out", "updated", "measured", "digest", "budget", "memory",
}  # fmt: skip


def settled(value: Any, leave: set[str]) -> Any:
    """A record without what may differ."""
    if isinstance(value, dict):
        return {name: settled(inner, leave) for name, inner in value.items() if name not in leave}
    if isinstance(value, list):
        return [settled(inner, leave) for inner in value]
    return value


def unlike(before: Any, after: Any, where: str) -> Iterator[str]:
    """Where two records differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}, key=str):
            if name not in before or name not in after:
                yield f"{where}.{name}: only {'after' if name in after else 'before'}"
            else:
                yield from unlike(before[name], after[name], f"{where}.{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from unlike(one, other, f"{where}[{number}]")
    elif before != after and not (before != before and after != after):
        yield f"{where}: {before!r:.80} became {after!r:.80}"


def of_arrays(before: Any, after: Any, where: str) -> Iterator[str]:
    """Shape, type and values of two arrays."""
    before, after = np.asarray(before), np.asarray(after)
    if before.shape != after.shape or before.dtype != after.dtype:
        yield f"{where}: {before.dtype} {before.shape} became {after.dtype} {after.shape}"
    elif before.dtype.kind in "fc":
        apart = ~((before == after) | (np.isnan(before) & np.isnan(after)))
        if apart.any():
            most = np.abs(before[apart].astype(np.float64) - after[apart].astype(np.float64)).max()
            yield f"{where}: {apart.sum():,} of {apart.size:,} values differ, by {most:.3g} at most"
    elif (before != after).any():
        yield f"{where}: {(before != after).sum():,} of {before.size:,} values differ"


def of_tables(before: Path, after: Path, where: str) -> Iterator[str]:
    """Columns of two Parquet files."""
    a, b = pq.read_table(before), pq.read_table(after)
    if not a.schema.equals(b.schema) or len(a) != len(b):
        yield f"{where}: {len(a)} rows of {a.schema.names} became {len(b)} rows of {b.schema.names}, or types differ"
        return
    for column in a.column_names:
        lines = list(unlike(a[column].to_pylist(), b[column].to_pylist(), f"{where} column {column}"))
        yield from lines[:1]


def of_stores(before: Path, after: Path, where: str) -> Iterator[str]:
    """Arrays and attributes of two Zarr groups."""
    import zarr

    import gpuclust  # noqa: F401  # its codec

    a, b = zarr.open_group(before, mode="r"), zarr.open_group(after, mode="r")
    yield from unlike(settled(dict(a.attrs), VOLATILE), settled(dict(b.attrs), VOLATILE), f"{where} attributes")
    names, others = dict(a.arrays()), dict(b.arrays())
    if sorted(names) != sorted(others):
        yield f"{where}: arrays {sorted(names)} became {sorted(others)}"
    for name in sorted(names.keys() & others.keys()):
        one, other = names[name], others[name]
        if one.shape != other.shape or one.ndim == 0:
            yield from of_arrays(one[...], other[...], f"{where}/{name}")
            continue
        for start in range(0, one.shape[0], 4096):
            rows = slice(start, start + 4096)
            yield from of_arrays(one[rows], other[rows], f"{where}/{name}[{start}:]")


def entries(folder: Path) -> dict[str, Path]:
    """Files of a folder by their place in it; a Zarr store counts as one."""
    found = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if any(part.endswith(".zarr") for part in place.parts[:-1]):
            continue
        if path.suffix == ".zarr" or path.is_file():
            found[str(place)] = path
    return found


def of_files(before: Path, after: Path, where: str, leave: set[str]) -> Iterator[str]:
    """Two files of one name."""
    kind = before.suffix
    if kind == ".zarr":
        yield from of_stores(before, after, where)
    elif kind == ".parquet":
        yield from of_tables(before, after, where)
    elif kind == ".npy":
        yield from of_arrays(np.load(before), np.load(after), where)
    elif kind == ".npz":
        with np.load(before) as a, np.load(after) as b:
            if sorted(a.files) != sorted(b.files):
                yield f"{where}: arrays {sorted(a.files)} became {sorted(b.files)}"
            for name in sorted({*a.files} & {*b.files}):
                yield from of_arrays(a[name], b[name], f"{where}/{name}")
    elif kind in (".json", ".yaml"):
        read = json.loads if kind == ".json" else yaml.safe_load
        yield from unlike(settled(read(before.read_text()), leave), settled(read(after.read_text()), leave), where)
    elif before.read_bytes() != after.read_bytes():
        yield f"{where}: {before.stat().st_size:,} bytes became {after.stat().st_size:,}, and they differ"


def differences(before: Path, after: Path, leave: set[str] = VOLATILE) -> Iterator[str]:
    """Yield a line for each difference of two folders."""
    a, b = entries(before), entries(after)
    for name in sorted({*a, *b}):
        if name not in a or name not in b:
            yield f"{name}: only {'after' if name in b else 'before'}"
        else:
            yield from of_files(a[name], b[name], name, leave)


def main(arguments: list[str] | None = None) -> int:
    """Compare, print and return 0 where nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--leave", nargs="*", default=[], help="names in JSON and YAML that may differ besides")
    asked = parser.parse_args(arguments)
    for folder in (asked.before, asked.after):
        if not folder.is_dir():
            parser.error(f"{folder} is no folder")
    found = list(differences(asked.before, asked.after, VOLATILE | set(asked.leave)))
    print("\n".join(found) if found else f"the same: {len(entries(asked.after))} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
