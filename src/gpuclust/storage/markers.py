"""What lies beside the store for each of its shards: the states of its reductions, and the marker that it is done.

States are `shards/00000.npz`, markers `shards/00000.json`, written last: a shard counts as done when the marker is
there, has the extraction's key, and both files have the sizes and CRC-32C that it names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.errors import GpuclustError
from gpuclust.storage import atomic, checksums, store
from gpuclust.types import Array


def write_shard(
    path: Path, shards: Path, index: int, first: int, data: Array, states: Mapping[str, Any], key: str
) -> None:
    """Write one whole shard, its states, and last its marker, which also knows the shard of tokens that is there.

    Parameters
    ----------
    path, shards : Path
        The Zarr store, and the folder of states and markers.
    index, first : int
        Number of the shard, and its first prompt.
    data : array, (prompt, feature), in the stored dtype
        All rows of the shard.
    states : mapping of str to array
        Small states, saved as they are.
    key : str
        What the data depend on; a resumed run compares it.
    """
    store.write_rows(path, index, first, data)
    atomic.make_folder(shards)
    state_file = shards / f"{index:05d}.npz"
    atomic.write_arrays(state_file, states)
    marker = {
        "key": key,
        "files": {name: checksums.of_file(file) for name, file in _files(path, shards, index).items()},
    }
    atomic.write_json(shards / f"{index:05d}.json", marker)


def begun_with(path: Path, shards: Path) -> str | None:
    """Return the key of the extraction that a store was begun with; None where nothing says it any more.

    Parameters
    ----------
    path, shards
        As in `write_shard`. Where the store's attributes cannot be read, the shards' markers have it.
    """
    try:
        found = checksums.plain_json(path / "zarr.json")["attributes"]["extraction_key"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if isinstance(found, str):
        return found
    markers = (_marker(file) for file in sorted(shards.glob("*.json")))
    return next((str(marker["key"]) for marker in markers if isinstance(marker, dict)), None)


def shards_done(shards: Path) -> int:
    """Count the shards that have a marker, whatever they were computed with."""
    return len(list(shards.glob("*.json")))


def shard_done(path: Path, shards: Path, index: int, key: str) -> str | None:
    """Return None when the shard is complete, else why it has to be computed again.

    Parameters
    ----------
    path, shards, index, key
        As in `write_shard`.
    """
    marker = _marker(shards / f"{index:05d}.json")
    if isinstance(marker, str):
        return marker
    if marker["key"] != key:
        return "computed with another configuration"
    for name, file in _files(path, shards, index).items():
        if name not in marker["files"]:
            return f"it has no {name}"
        if checksums.of_file(file) != marker["files"][name]:
            return f"the {name} file does not match its checksum"
    return None


def _marker(file: Path) -> dict[str, Any] | str:
    """A shard's marker, or why it has none."""
    if not file.exists():
        return "not computed yet"
    try:
        marker = checksums.plain_json(file)
    except ValueError:
        marker = None
    if not isinstance(marker, dict) or not isinstance(marker.get("key"), str):
        return "its marker is damaged"
    files = marker.get("files")
    whole = isinstance(files, dict) and files.keys() - {"tokens"} == {"activations", "states"}
    return marker if whole else "its marker is damaged"


def shards_changed(path: Path, shards: Path) -> list[str]:
    """Return the files of shards that have not the size in their marker, and markers that say nothing or are lost.

    Nothing is read but the markers: whether their bytes are right is seen when they are read, or by ``verify``.
    """
    found = []
    for file in sorted(shards.glob("*.json")):
        marker = _marker(file)
        if isinstance(marker, str):
            found.append(f"{shards.name}/{file.name}")
            continue
        for name, own in _files(path, shards, int(file.stem)).items():
            size = own.stat().st_size if own.is_file() else None
            if name != "states" and size != (marker["files"].get(name) or [None])[0]:
                found.append(own.relative_to(path.parent).as_posix())
    return found + lost(path, shards)


def lost(path: Path, shards: Path) -> list[str]:
    """Return the markers that are not there though others are: imported activations have none at all."""
    there = {file.name for file in shards.glob("*.json")}
    wanted = [f"{index:05d}.json" for index in range(len(store.shard_ranges(path)))] if there else []
    return [f"{shards.name}/{name}" for name in wanted if name not in there]


def read_states(shards: Path, index: int, names: Collection[str] | None = None) -> dict[str, Array] | None:
    """Return the states of one shard, or None when it has none.

    Parameters
    ----------
    shards : Path
        Folder of the states.
    index : int
    names : collection of str, optional
        Those that are read; None: all. None, too, is returned where one of them is not there.
    """
    file = shards / f"{index:05d}.npz"
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as states:
        wanted = states.files if names is None else names
        return {name: states[name] for name in wanted} if set(wanted) <= set(states.files) else None


def shard_file(path: Path, index: int) -> Path:
    """Return the file of a shard of activations."""
    return path / "activations" / "c" / str(index) / "0"


def stored_bytes(path: Path, shards: Path, index: int) -> int:
    """Return the bytes of a shard's activations, those of its tokens too.

    Parameters
    ----------
    path, shards, index
        As in `write_shard`.
    """
    files = _files(path, shards, index)
    return sum(file.stat().st_size for name, file in files.items() if name != "states")


def _files(path: Path, shards: Path, index: int) -> dict[str, Path]:
    files = {"activations": shard_file(path, index), "states": shards / f"{index:05d}.npz"}
    tokens = path.parent / schema.TOKENS
    return files | {"tokens": shard_file(tokens, index)} if tokens.exists() else files


def not_whole(path: Path, shards: Path, key: str) -> str | None:
    """Why a store of activations is not whole, the first shard's reason; None where it is.

    Parameters
    ----------
    path, shards : Path
        Folders of the activations and of their markers.
    key : str
        What the shards were computed with.
    """
    try:
        reasons = (shard_done(path, shards, index, key) for index in range(len(store.shard_ranges(path))))
        return next((reason for reason in reasons if reason is not None), None)
    except (OSError, ValueError, GpuclustError) as error:  # of a folder that is gone, or a damaged template
        return str(error)
