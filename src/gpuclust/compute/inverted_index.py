"""Sparse rows in memory, as neighbours are found from them: what fires on each row, and where each feature fires.

Features are numbered anew, the rarest first, and a row's entries ascend by that: what follows an entry in its row are
the pairs of its feature with more frequent ones, so that each pair is met once, and most sums are of the most frequent
features, which lie side by side. An entry takes 12 bytes, whatever the number of features. Rows lie by group, in the
order they come in.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numba
import numpy as np

from gpuclust.compute import sparse_blocks
from gpuclust.compute.gram import Gram
from gpuclust.errors import MemoryBudgetError
from gpuclust.formatting import gigabytes
from gpuclust.hardware import jit
from gpuclust.types import Array

jit.keep_kernels()
_compile: Any = numba.njit(nogil=True, cache=True)

ENTRY = np.dtype([("value", "<f4"), ("feature", "<i4")])  # one number of 8 bytes, in the order of features
LAST = np.int32(-(2**31))  # bit of the last entry of a row
BYTES = 12  # of an entry: itself, and where it is
MOST = 2**32  # entries of a group that places count


@dataclass(frozen=True, eq=False)
class Index:
    """Rows of sparse activations, in groups.

    Attributes
    ----------
    order : array, (feature,), int32
        The feature that each rank is; the rarest is first.
    entries : tuple of array, (entry,), ENTRY, one a group
        Row by row, by rank within a row; the last of a row has the bit LAST.
    places : tuple of array, (entry,), uint32, one a group
        Entries by rank, in the order of the rows.
    edges : array, (group, feature + 1), int64
        Where in `places` each rank begins.
    sums : list of Gram, one a group
        Without tiles; by feature, not by rank.
    signed : bool
        Whether there are activations below 0.
    """

    order: Array
    entries: tuple[Array, ...]
    places: tuple[Array, ...]
    edges: Array
    sums: list[Gram]
    signed: bool

    @property
    def n_entries(self) -> int:
        """Activations that are not zero."""
        return sum(map(len, self.entries))


def build(
    blocks: Iterable[Any], groups: Array, n_groups: int, times: Array, lengths: Array | None = None,
    active_above: float | None = None, most: int | None = None,
) -> Index:  # fmt: skip
    """Put blocks of rows into an index.

    Parameters
    ----------
    blocks : iterable of array or scipy.sparse.csr_array, (row, feature), float32
        They follow one another as `groups` does.
    groups : array, (row,), int
        Group of every row, from 0; -1 leaves the row out.
    n_groups : int
    times : array, (feature,)
        How often each feature fires, or about; what is found does not depend on it.
    lengths : array, (row,), int, optional
        As in `gram.accumulate`.
    active_above : float, optional
        Put 1 for an activation whose size is above it and 0 else (`association.activity`).
    most : int, optional
        Bytes that may be held.

    Returns
    -------
    Index

    Raises
    ------
    MemoryBudgetError
        If there are more entries than `most` allows, or than places count.
    """
    n_features, first = len(times), 0
    order = np.argsort(times, kind="stable").astype(np.int32)
    rank = np.empty(n_features, np.int32)
    rank[order] = np.arange(n_features)
    held = [_Growing() for _ in range(n_groups)]
    sums = [_no_sums(n_features) for _ in range(n_groups)]
    signed = False
    for block in blocks:
        rows = sparse_blocks.as_rows(block)
        if active_above is not None:
            rows = sparse_blocks.active_rows(rows, active_above)
        codes = groups[first : first + rows.shape[0]]
        long = None if lengths is None else lengths[first : first + rows.shape[0]]
        first += rows.shape[0]
        for group in np.unique(codes[codes >= 0]).tolist():
            inside = codes == group
            part = rows if inside.all() else rows[np.flatnonzero(inside)]
            sums[group].n_prompts += part.shape[0]
            signed |= bool((part.data < 0).any())
            sparse_blocks.add_sums(sums[group], part, None if long is None else long[inside])
            held[group].add(part, rank)
        _refuse(held, most)
    entries = tuple(one.entries() for one in held)
    edges = np.zeros((n_groups, n_features + 1), np.int64)
    places = tuple(np.empty(len(own), np.uint32) for own in entries)
    for own, at, edge in zip(entries, places, edges, strict=True):
        _count(own, edge)
        np.cumsum(edge, out=edge)
        _place(own, edge[:-1].copy(), at)
    return Index(order, entries, places, edges, sums, signed)


def _no_sums(n_features: int) -> Gram:
    sums, squares, by_length = (np.zeros(n_features) for _ in range(3))
    return Gram((0, n_features), {}, sums, squares, by_length, np.zeros(2))


def _refuse(held: list[_Growing], most: int | None) -> None:
    there = sum(one.size for one in held)
    if most is not None and there * BYTES > most:
        raise MemoryBudgetError(
            f"the index of the rows takes more than {gigabytes(most)}: it has {there:,} entries so far, of {BYTES} "
            "bytes each"
        )
    if (largest := max(one.size for one in held)) >= MOST:
        raise MemoryBudgetError(f"the index of the rows counts up to {MOST:,} entries, and has {largest:,} so far")


class _Growing:
    """Entries of one group; what is not written yet takes no memory."""

    def __init__(self) -> None:
        self.size = 0
        self._held = np.empty(1 << 16, np.int64)

    def add(self, rows: Any, rank: Array) -> None:
        """Add rows, (row, feature), float32, whose entries get ranks and are sorted by them."""
        stop = self.size + rows.nnz
        if stop > len(self._held):
            self._held.resize(max(stop, len(self._held) * 3 // 2), refcheck=False)
        target, starts = self._held[self.size : stop], rows.indptr.astype(np.int64)
        _pack(rows.indices, rows.data.view(np.int32), rank, target)
        threads = numba.config.NUMBA_NUM_THREADS
        edges = np.linspace(0, rows.shape[0], threads + 1).astype(int).tolist()
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(_sort, target, starts, *part) for part in pairwise(edges)]:
                done.result()
        self.size = stop

    def entries(self) -> Array:
        """Return the entries."""
        self._held.resize(self.size, refcheck=False)
        found: Array = self._held.view(ENTRY)
        return found


@_compile
def _pack(features: Any, values: Any, rank: Any, target: Any) -> None:
    for k in range(len(features)):
        target[k] = (np.int64(rank[features[k]]) << 32) | (np.int64(values[k]) & np.int64(0xFFFFFFFF))


@_compile
def _sort(target: Any, starts: Any, first: int, stop: int) -> None:
    """Sort rows from `first` to before `stop`, and mark the last entry of each."""
    for row in range(first, stop):
        begin, end = starts[row], starts[row + 1]
        if end > begin:
            target[begin:end].sort()
            target[end - 1] |= np.int64(-(2**63))


@_compile
def _count(entries: Any, edge: Any) -> None:
    for k in range(len(entries)):
        edge[(entries[k].feature & 0x7FFFFFFF) + 1] += 1


@_compile
def _place(entries: Any, at: Any, places: Any) -> None:
    for k in range(len(entries)):
        feature = entries[k].feature & 0x7FFFFFFF
        places[at[feature]] = k
        at[feature] += 1
