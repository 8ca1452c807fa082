"""The activations of every token beside those of prompts: what the SAE fires, as it is, in sparse rows.

`tokens.zarr` has a row a token, in shards of the same prompts as `activations.zarr`, so that a task writes both. Shards
have different numbers of tokens and Zarr's are all equal, so each has as many rows as the longest can need; what is
past its tokens has no prompt (-1) and takes no room. Which rows are tokens is in the states of each shard.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.config_sections import StoreConfig
from gpuclust.errors import CorruptDataError, StoreError
from gpuclust.storage import atomic, markers, sparse_rows, store
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

CHUNK_ROWS = 4096
DENSE = 0.11  # share that is not zero above which the codec's bitmap is smaller than places
COORDINATES = ("prompt", "position", "token")  # of a row; -1 where it is no token
STATES = {name: f"rows.{name}" for name in COORDINATES}  # in the states of a shard


@dataclass(frozen=True, eq=False)
class Tokens:
    """What the SAE fires on the tokens of some prompts, as compressed sparse rows, a row a token.

    Attributes
    ----------
    indptr : array, (row + 1,), int64
    indices : array, (entry,), int32
        Features, ascending within a row.
    values : array, (entry,), in the stored dtype
    prompt, position, token : array, (row,), int32
        Number of the prompt, place in its `tokens` (-1 for the BOS before them), and token id.
    """

    indptr: Array
    indices: Array
    values: Array
    prompt: Array
    position: Array
    token: Array

    def states(self) -> dict[str, Array]:
        """Where the rows come from, for the states of a shard."""
        return {STATES[name]: getattr(self, name) for name in COORDINATES}


def layout(rows: Sequence[int], n_features: int, config: StoreConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of chunks and of shards.

    Parameters
    ----------
    rows : sequence of int
        Tokens of every shard, at most.
    n_features : int
    config : StoreConfig
    """
    chunk_rows = min(CHUNK_ROWS, max(rows))
    width = min(config.chunk_features, n_features)
    return (chunk_rows, width), (-(-max(rows) // chunk_rows) * chunk_rows, -(-n_features // width) * width)


def create(
    path: Path, rows: Sequence[int], n_features: int, config: StoreConfig, attributes: Mapping[str, Any]
) -> None:
    """Create the template: the empty array `activations(row, feature)`, its coordinates and its attributes.

    Parameters
    ----------
    path, rows, n_features, config
        As of `layout`.
    attributes : mapping of str to plain data

    Raises
    ------
    StoreError
        If `path` exists already, or the codec takes no sparse rows.
    """
    import zarr

    from gpuclust.storage.codec import BitmapCodec

    if path.exists():
        raise StoreError(f"{path} exists already; give a path that does not, or delete it")
    chunks, shard = layout(rows, n_features, config)
    with atomic.replacing(path) as partial:
        group = zarr.create_group(partial, attributes=dict(attributes))
        group.create_array(
            "activations", shape=(len(rows) * shard[0], n_features), dtype=config.dtype, chunks=chunks, shards=shard,
            serializer=BitmapCodec(), compressors=None, fill_value=0, dimension_names=("row", "feature"),
            config=store.WRITE,
        )  # fmt: skip
        group.create_array("feature", data=np.arange(n_features, dtype=np.int64), dimension_names=("feature",))
        for name in COORDINATES:
            group.create_array(
                name, shape=(len(rows) * shard[0],), dtype="int32", chunks=(shard[0],), fill_value=-1,
                dimension_names=("row",),
            )  # fmt: skip
        store.consolidate(partial)


def write_shard(path: Path, index: int, tokens: Tokens) -> None:
    """Write the tokens of one shard.

    Parameters
    ----------
    path : Path
        The Zarr store.
    index : int
        Number of the shard.
    tokens : Tokens

    Raises
    ------
    StoreError
        If there are more than a shard has rows.
    """
    size, n = store.open_array(path).shards[0], len(tokens.prompt)
    if n > size:
        raise StoreError(f"shard {index} has {n} tokens, and {path} has {size} rows a shard: delete it and run again")
    density = len(tokens.indices) / max(n * store.open_array(path).shape[1], 1)
    if density > DENSE:
        log.info("extract: %.0f%% of what the SAE gives on the tokens of shard %d is not zero: a bit an element takes "
                 "less room than places, and is kept", 100 * density, index)  # fmt: skip
    indptr = np.concatenate([tokens.indptr, np.full(size - n, tokens.indptr[-1])])
    sparse_rows.write_rows(path, index, index * size, indptr, tokens.indices, tokens.values)


def write_coordinates(path: Path, states: Path) -> int:
    """Write which prompt, position and token each row is, for readers of the store; return how many are tokens.

    Parameters
    ----------
    path : Path
        The Zarr store, all of whose shards are written.
    states : Path
        Folder of the shards' states.
    """
    import zarr

    array = store.open_array(path)
    size = array.shards[0]
    n_shards = array.shape[0] // size
    n_tokens = 0
    found = {name: np.full(array.shape[0], -1, np.int32) for name in COORDINATES}
    for index in range(n_shards):
        own = coordinates(states, index)
        n_tokens += len(own["prompt"])
        for name, values in own.items():
            found[name][index * size : index * size + len(values)] = values
    for name, values in found.items():
        target: Any = zarr.open_array(path / name, mode="r+")
        target[...] = values
    return n_tokens


def coordinates(states: Path, index: int) -> dict[str, Array]:
    """Return prompt, position and token id of the rows of a shard, (row,), int32, by name.

    Parameters
    ----------
    states : Path
        Folder of the shards' states.
    index : int

    Raises
    ------
    CorruptDataError
        If the shard has no states, or states without tokens.
    """
    found = markers.read_states(states, index, STATES.values())
    if found is None:
        raise CorruptDataError(f"{states / f'{index:05d}.npz'} says nothing of tokens, which were extracted")
    return {name: found[key] for name, key in STATES.items()}


def read(run: Path, index: int, most: int | None = None) -> tuple[dict[str, Array], Any]:
    """Return the rows of one shard: their coordinates, and what fires on them.

    Parameters
    ----------
    run : Path
        Folder of the run.
    index : int
        Number of the shard.
    most : int, optional
        The first rows, so many at most; None: all.

    Returns
    -------
    dict of str to array, (row,), int32
        As of `coordinates`.
    scipy.sparse.csr_array, (row, feature), float32

    Raises
    ------
    CorruptDataError
    """
    own = {name: values[:most] for name, values in coordinates(run / schema.SHARDS, index).items()}
    path = run / schema.TOKENS
    size, n = store.open_array(path).shards[0], len(own["prompt"])
    blocks = [block for _, block in sparse_rows.read_rows(path, max(n, 1), index * size, index * size + n)]
    if not blocks:
        from scipy.sparse import csr_array

        return own, csr_array((0, store.open_array(path).shape[1]), dtype=np.float32)
    return own, blocks[0]
