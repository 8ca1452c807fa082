"""Blocks of the stored activations as compressed sparse rows: of tokens, of which nothing dense would fit.

Chunks of the bitmap codec are unpacked into sparse rows as they lie, whichever layout they have (see `codec`); of other
stores blocks are made dense first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpuclust.errors import CorruptDataError, StoreError
from gpuclust.hardware import process
from gpuclust.storage import codec, shards, store

if TYPE_CHECKING:
    from scipy.sparse import csr_array

log = logging.getLogger("gpuclust")


def read_rows(path: Path, rows: int, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, csr_array]]:
    """Yield (first row, activations) for blocks of at most `rows` rows of the store, in order.

    Parameters
    ----------
    path : Path
        The Zarr store.
    rows, first : int
    stop : int, optional
        Default: after the last row.

    Yields
    ------
    first : int
    block : scipy.sparse.csr_array, (row, feature), float32
        float16 is widened, which SciPy has no sparse arrays of. Entries are those that are stored, columns ascend:
        -0.0 is one, 0.0 is none. Indices are int32 where a block has fewer than 2 ** 31 entries.

    Raises
    ------
    CorruptDataError
        If a shard's file is missing, or stored bytes fail their checksum.

    Notes
    -----
    Memory: 24 bytes an entry of the block at most, and per thread a chunk as stored and 16 bytes an entry of it.
    A chunk is unpacked whole, however few of its rows are wanted.
    """
    array = store.open_array(path)
    stop = array.shape[0] if stop is None else stop
    source = shards.of(array, path / "activations")
    if isinstance(source, str):
        log.info("%s: sparse rows are made from dense blocks, because %s", path, source)
        for start, block in store.read_rows(path, rows, first, stop):
            yield start, _from_dense(block)
        return
    with ThreadPoolExecutor(process.cores(), thread_name_prefix="gpuclust-decode") as pool:
        for start in range(first, stop, rows):
            end = min(start + rows, stop)
            with shards.damage(path, start, end):
                block = _read(source, start, end, pool)
            yield start, block


def write_rows(
    path: Path, index: int, first: int, indptr: NDArray[Any], indices: NDArray[Any], values: NDArray[Any]
) -> None:
    """Write the activations of one whole shard, as `store.write_rows` does, from compressed sparse rows.

    Parameters
    ----------
    path : Path
        The Zarr store.
    index, first : int
        Number of the shard, and its first row.
    indptr : array, (row + 1,), integer
        Where each row begins among the entries; all rows of the shard.
    indices : array, (entry,), integer
        Features, ascending within a row.
    values : array, (entry,), in the stored dtype

    Raises
    ------
    StoreError
        If they are not just the rows of that shard, or the store has another codec.
    ConfigError
        If they are no sparse rows.
    """
    array = store.open_array(path)
    step = array.shards[0]
    expected = min(step, array.shape[0] - first)
    if first != index * step or len(indptr) - 1 != expected or values.dtype != array.dtype:
        raise StoreError(
            f"shard {index} at row {first} has {len(indptr) - 1} sparse rows of {values.dtype}; the store expects row "
            f"{index * step}, {expected} rows, {array.dtype}"
        )
    target = shards.of(array, path / "activations")
    if isinstance(target, str):
        raise StoreError(f"{path} takes no sparse rows, because {target}. Use store.codec=bitmap, or store.write_rows")
    shards.write_csr(target, index, indptr, indices, values)


def _read(source: shards.Shards, first: int, stop: int, pool: ThreadPoolExecutor) -> csr_array:
    """Unpack the rows of a range; what a chunk has of a row comes after what the chunks before it have."""
    from scipy.sparse import csr_array

    def unpack(piece: shards.Piece) -> tuple[shards.Piece, codec.Sparse] | None:
        encoded = shards.stored_chunk(source, piece.shard, piece.place)
        if encoded is None:
            return None
        indptr, indices, values = codec.decode_csr(encoded, source.chunk, source.dtype)
        bounds = indptr[piece.rows.start : piece.rows.stop + 1]
        own = slice(bounds[0], bounds[-1])
        columns = indices[own] + np.int32(piece.left)
        if columns.size and columns.max() >= source.shape[1]:  # SciPy checks no bounds
            raise CorruptDataError(f"a chunk has feature {columns.max()}, of {source.shape[1]}")
        return piece, (bounds - bounds[0], columns, values[own])

    parts = [part for part in shards.in_threads(pool, unpack, shards.pieces(source, first, stop)) if part]
    counts = np.zeros(stop - first, np.int64)
    for piece, (starts, _, _) in parts:
        counts[piece.at] += np.diff(starts)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    index = np.int32 if indptr[-1] <= np.iinfo(np.int32).max else np.int64
    indices, values = np.empty(indptr[-1], index), np.empty(indptr[-1], np.float32)
    ends = indptr[:-1].copy()  # of each row, as far as it is filled
    for piece, (starts, columns, stored) in parts:
        lengths = np.diff(starts)
        to = np.repeat(ends[piece.at] - starts[:-1], lengths) + np.arange(len(columns))
        indices[to], values[to] = columns, stored
        ends[piece.at] += lengths
    return csr_array((values, indices, indptr.astype(index)), shape=(stop - first, source.shape[1]))


def _from_dense(block: NDArray[Any]) -> csr_array:
    from scipy.sparse import csr_array

    marked = block.view(f"u{block.itemsize}") != 0  # by its bits: -0.0 is an entry
    indptr = np.concatenate([[0], np.cumsum(marked.sum(axis=1))])
    return csr_array((block[marked].astype(np.float32), np.nonzero(marked)[1], indptr), shape=block.shape)
