"""Exact nearest neighbours of sparse features without a matrix of all pairs, compiled by numba.

For each feature of an `Index`, whatever fires with it is added up over its rows, in one row of sums that stays in the
cache; of each pair that fires together at all the distance is computed once and offered to the nearest of both. What
never fires together costs nothing: the work is Σ over rows of half the square of what fires there. Distances are those
of `neighbors.distances`, operation by operation, so that both give the same bits.

Features that never fire together have distances, too: `never_together` looks which might have nearer ones there than
what was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numba
import numpy as np

from gpuclust.compute import gram, topk
from gpuclust.compute.gram import Gram
from gpuclust.compute.inverted_index import Index
from gpuclust.compute.pair_distance import LINEAR, Sides, distance, sides
from gpuclust.hardware import jit
from gpuclust.types import Array

jit.keep_kernels()
_compile: Any = numba.njit(nogil=True, cache=True, error_model="numpy")

SHARES = 64  # of the work, that threads take in turn
SLACK = 1e-6  # of a similarity: what float32 rounds, and what a product rounds that says whether a pair is near enough
MERGED = 1 << 16  # features whose nearest are merged at once
NOTHING = topk.NOTHING
SUM, SHARE, LENGTH, LEFT, SCALE, NUMBER, FACTS = 0, 1, 2, 3, 4, 5, 8  # of a feature, in one line of the cache
SHORT, LIMIT = 0, 1  # of a feature, float32: its scale, and how near others must be; in an eighth of a line


@dataclass(frozen=True, eq=False)
class Wanted:
    """Neighbours that are wanted.

    Attributes
    ----------
    weights : array, (group,)
        Of the groups' Grams in the view's.
    metric : str
        Of `pair_distance.KINDS`.
    k : int
        Neighbours, the feature itself not counted.
    place : array, (chosen,), int, optional
        Features between which, ascending; None: all.
    """

    weights: Array
    metric: str
    k: int
    place: Array | None = None

    def view(self, sums: Sequence[Gram]) -> Gram:
        """The column sums over the view's rows, of all features."""
        return gram.weighted(sums, self.weights)

    def numbers(self, n_features: int) -> Array:
        """Number of each feature among those chosen, (feature,), int32; -1 where it is not."""
        if self.place is None:
            return np.arange(n_features, dtype=np.int32)
        found = np.full(n_features, -1, np.int32)
        found[self.place] = np.arange(len(self.place))
        return found

    def sides(self, sums: Sequence[Gram]) -> Sides:
        """What distances need of each feature."""
        view = self.view(sums)
        squares = view.squares if self.place is None else view.squares[self.place]
        return sides(view, self.metric, float(squares.max(initial=0)))


def nearest(
    index: Index, wanted: Sequence[Wanted], sums: Sequence[Gram], first: int, stop: int,
    known: Sequence[Array] | None = None,
) -> list[Array]:  # fmt: skip
    """Return the nearest of all features among the pairs of some with more frequent ones.

    Parameters
    ----------
    index : Index
    wanted : sequence of Wanted
    sums : sequence of Gram
        Of all rows, a Gram a group; tiles are not read.
    first, stop : int
        Ranks of the index. What several ranges find is put together by `neighbors.merge`.
    known : sequence of array, (chosen,), float32, optional
        Distances beyond which nothing is wanted of a feature, a view each; NaN where there is none. Frequent features,
        the last ranks, have the shortest.

    Returns
    -------
    list of array, (chosen, k), uint64
        Packed keys (see `topk`), a view each; NOTHING where fewer features fire with one.
    """
    each = [one.sides(sums) for one in wanted]
    number = [one.numbers(len(index.order))[index.order] for one in wanted]
    weights = np.stack([np.asarray(one.weights, np.float64) for one in wanted])
    threads = numba.config.NUMBA_NUM_THREADS
    states: SimpleQueue[Any] = SimpleQueue()
    held = [_State(index, each, number, [one.k for one in wanted], known) for _ in range(threads)]
    for state in held:
        states.put(state)

    def work(begin: int, end: int) -> None:
        state = states.get()
        try:
            _pairs(index.entries, index.places, index.edges, weights, begin, end, *state.arrays)
        finally:
            states.put(state)

    edges = shares(index, first, stop, SHARES)
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, *part) for part in reversed(list(pairwise(edges.tolist())))]:
            done.result()
    found = []
    for view, one in enumerate(wanted):
        merged = _merged([state.nearest[view] for state in held], one.k)
        chosen = np.flatnonzero(number[view] >= 0)
        target = np.empty((len(chosen), one.k), np.uint64)
        target[number[view][chosen]] = merged[chosen]
        found.append(target)
    return found


def shares(index: Index, first: int, stop: int, count: int) -> Array:
    """Return where ranges of ranks begin, and the last ends, that have about as much work each.

    Parameters
    ----------
    index : Index
    first, stop : int
        Ranks.
    count : int
        Ranges, at most.
    """
    work = np.ones(len(index.order))
    for entries, places, edge in zip(index.entries, index.places, index.edges, strict=True):
        _work(entries, places, edge, work)
    done = np.cumsum(work[first:stop])
    inside = first + np.searchsorted(done, done[-1:] * np.arange(1, count) / count)
    found: Array = np.unique(np.concatenate([[first], inside, [stop]]).astype(np.int64))
    return found


class _State:
    """What a thread holds: sums of a feature with others, and the nearest so far of every feature and view."""

    def __init__(
        self, index: Index, each: Sequence[Sides], number: Sequence[Array], k: Sequence[int],
        known: Sequence[Array] | None,
    ) -> None:  # fmt: skip
        n, n_groups = len(index.order), len(index.entries)
        self.nearest = tuple(np.full((n, one), NOTHING, np.uint64) for one in k)
        facts = tuple(np.empty((n, FACTS)) for _ in each)
        for table, side, own in zip(facts, each, number, strict=True):
            columns = (side.sums, side.shares, side.lengths, side.left, side.scale)
            for column, values in enumerate(columns):
                table[:, column] = values[index.order]
            table[:, NUMBER] = own
        limits = tuple(np.empty((n, 2), np.float32) for _ in each)
        for view, limit in enumerate(limits):
            limit[:, SHORT], limit[:, LIMIT] = facts[view][:, SCALE], -np.inf
            if known is not None:
                chosen = np.flatnonzero(number[view] >= 0)
                limit[chosen, LIMIT] = np.nan_to_num(1 - known[view][number[view][chosen]] - SLACK, nan=-np.inf)
        whole = np.array([[side.kind, side.n, side.largest, _takes_off(side)] for side in each])
        self.arrays = np.zeros((n, n_groups)), np.empty(n + 1, np.int32), self.nearest, facts, limits, whole


def _takes_off(side: Sides) -> bool:
    """Whether what a linear metric takes off for chance is never below 0, so that a product alone is the most."""
    return side.kind < LINEAR and not side.lengths.any() and float(side.sums.min(initial=0)) >= 0


def _merged(parts: list[Array], k: int) -> Array:
    first, *rest = parts
    for start in range(0, len(first) if rest else 0, MERGED):
        rows = slice(start, start + MERGED)
        first[rows] = topk.smallest(np.concatenate([part[rows] for part in parts], axis=1), k)
    return first


@_compile
def _work(entries: Any, places: Any, edge: Any, work: Any) -> None:
    """Add what each rank has to add up, about."""
    length = 0
    for k in range(len(entries) - 1, -1, -1):
        length = 1 if entries[k].feature < 0 else length + 1
        work[entries[k].feature & 0x7FFFFFFF] += length


@_compile
def _pairs(
    entries: Any, places: Any, edges: Any, weights: Any, first: int, stop: int,
    held: Any, touched: Any, nearest: Any, facts: Any, limits: Any, whole: Any,
) -> None:  # fmt: skip
    """Add up the pairs of ranks from `first` to before `stop`, and keep the nearest."""
    n, n_groups = held.shape
    for i in range(stop - 1, first - 1, -1):
        m = 0
        for group in range(n_groups):
            m = _add_up(entries[group], places[group], edges[group, i], edges[group, i + 1], group, held, touched, m)
        if m == n:
            touched[:n] = np.arange(n)
        for view in range(len(weights)):
            if facts[view][i, NUMBER] >= 0:
                _offer(i, m, touched, held, weights[view], nearest[view], facts[view], limits[view], whole[view])
        for t in range(m):
            for group in range(n_groups):
                held[touched[t], group] = 0


@_compile
def _add_up(own: Any, at: Any, begin: int, end: int, group: int, held: Any, touched: Any, m: int) -> int:
    """Add the products of a feature's entries with those after them in their rows; return how many are touched.

    One whose sum comes back to 0 is touched once more: its number is then there twice. Where there are as many as
    features, all are.
    """
    n, n_groups = held.shape
    for p in range(begin, end):
        q = np.int64(at[p])
        value = np.float64(own[q].value)
        last = own[q].feature < 0
        while not last:
            q += 1
            c = own[q].feature
            last = c < 0
            c &= 0x7FFFFFFF
            new = True
            for other in range(n_groups):
                new &= held[c, other] == 0
            touched[m] = c
            m += new and m < n
            held[c, group] += value * own[q].value
    return m


@_compile
def _offer(
    i: int, m: int, touched: Any, held: Any, weights: Any, nearest: Any, facts: Any, limits: Any, whole: Any
) -> None:
    """Keep the pairs of a feature that are among the nearest of one of the two."""
    kind, n, largest, takes_off = int(whole[0]), whole[1], whole[2], whole[3] > 0
    n_groups, scale = held.shape[1], facts[i, SCALE]
    for t in range(m):
        c = touched[t]
        total = 0.0
        for group in range(n_groups):
            total += weights[group] * held[c, group]
        if takes_off:
            near = total * scale * limits[c, SHORT]
            if near < limits[i, LIMIT] and near < limits[c, LIMIT]:
                continue
        if total == 0 or facts[c, NUMBER] < 0:
            continue
        if kind < LINEAR:
            near = total - facts[i, SUM] * facts[c, SHARE] - facts[i, LENGTH] * facts[c, LENGTH]
            near *= scale * facts[c, SCALE]
            if near < limits[i, LIMIT] and near < limits[c, LIMIT]:
                continue
        a, b = (i, c) if facts[i, NUMBER] < facts[c, NUMBER] else (c, i)
        far = distance(
            kind, total, n, facts[a, SUM], facts[b, SHARE], facts[a, LENGTH], facts[b, LENGTH], facts[a, LEFT],
            facts[b, LEFT], largest,
        )  # fmt: skip
        high = np.uint64(np.float32(far).view(np.uint32)) << np.uint64(32)
        _keep(nearest, limits, i, high | np.uint64(facts[c, NUMBER]))
        _keep(nearest, limits, c, high | np.uint64(facts[i, NUMBER]))


@_compile
def _keep(nearest: Any, limits: Any, feature: int, key: Any) -> None:
    """Put a key among a feature's smallest, in order; once more it changes nothing."""
    k = nearest.shape[1]
    if key >= nearest[feature, k - 1]:
        return
    at = k - 1
    while at > 0 and nearest[feature, at - 1] > key:
        at -= 1
    if at > 0 and nearest[feature, at - 1] == key:
        return
    for j in range(k - 1, at, -1):
        nearest[feature, j] = nearest[feature, j - 1]
    nearest[feature, at] = key
    if nearest[feature, k - 1] != NOTHING:
        worst = np.float32(np.uint32(nearest[feature, k - 1] >> np.uint64(32)).view(np.float32))
        limits[feature, LIMIT] = max(limits[feature, LIMIT], 1 - np.float64(worst) - SLACK)
