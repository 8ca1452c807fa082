"""Neighbours that never fire with a feature: where too few do, some of those that do not are among its nearest.

What was found among pairs that fire together holds where it is nearer than any pair can be that does not. Where it is
not: if all such pairs are equally far, those with the lowest numbers follow; else the feature is compared with all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from gpuclust.compute import gram, neighbors, topk
from gpuclust.compute.gram import Gram
from gpuclust.compute.inverted_index import Index
from gpuclust.compute.inverted_pairs import SLACK, Wanted
from gpuclust.compute.pair_distance import Sides
from gpuclust.config import CORRELATIONS
from gpuclust.hardware import jit
from gpuclust.types import Array

jit.keep_kernels()
_compile: Any = numba.njit(nogil=True, cache=True)

EQUAL = ("cosine", "dot", "jaccard", "dice", "overlap")  # pairs that never fire together are equally far
SLAB = 64  # features that are compared with all at once
FILLED = 4096


def complete(keys: Array, wanted: Wanted, sums: Sequence[Gram], signed: bool) -> Array:
    """Add what follows without a look at the rows, in place; return which features have to be compared with all.

    Parameters
    ----------
    keys : array, (chosen, k), uint64
        Of `inverted_pairs.nearest`, over all ranks.
    wanted : Wanted
    sums : sequence of Gram
        Of all rows, a Gram a group.
    signed : bool
        Whether there are activations below 0.

    Returns
    -------
    array, (feature,), int64
        Numbers among the chosen.
    """
    side = wanted.sides(sums)
    chosen = slice(None) if wanted.place is None else wanted.place
    same = np.float32(side.largest if wanted.metric == "dot" else 1)
    alike = side.left[chosen] <= 0  # nothing to tell by: as far from all
    if wanted.metric in EQUAL and not signed:
        alike[:] = True
    least = np.where(alike, same, same - _in_common_apart(side, wanted.metric)[chosen] - SLACK)
    far = topk.unpack(keys[:, -1])[0]
    reached = np.isnan(far) | (far >= least)
    for start in range(0, len(keys), FILLED):
        rows = start + np.flatnonzero((reached & alike)[start : start + FILLED])
        keys[rows] = _filled(keys[rows], rows, same, len(keys))
    return np.flatnonzero(reached & ~alike)


def _in_common_apart(side: Sides, metric: str) -> Array:
    """The most that a feature can have in common with one it never fires with, (feature,), float64."""
    if metric not in CORRELATIONS:
        return np.zeros(len(side.left))
    return _most(side.lengths * side.scale) + _most(side.sums * side.scale / np.sqrt(side.n))


def _most(part: Array) -> Array:
    """Products of each part with the largest of the other sign, by size: what is taken off adds only there."""
    above, below = np.maximum(part, 0), np.maximum(-part, 0)
    found: Array = above * below.max(initial=0) + below * above.max(initial=0)
    return found


def _filled(keys: Array, own: Array, far: Any, n: int) -> Array:
    """Add the features with the lowest numbers, all at one distance, to keys of others."""
    k = keys.shape[1]
    lowest = np.arange(min(2 * k + 1, n))
    more = np.broadcast_to(topk.pack(np.full(len(lowest), far), lowest), (len(keys), len(lowest))).copy()
    there = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    held = (there[:, :, None] == lowest).any(axis=1) | (own[:, None] == lowest)
    more[held] = topk.NOTHING
    whole: Array = topk.smallest(np.concatenate([keys, more], axis=1), k)
    return whole


def compared(index: Index, wanted: Wanted, sums: Sequence[Gram], features: Array) -> Array:
    """Return the nearest among all features, by products with each of them.

    Parameters
    ----------
    index : Index
    wanted, sums
        As of `complete`.
    features : array, (feature,), int
        Numbers among the chosen.

    Returns
    -------
    array, (feature, k), uint64
        Packed keys.
    """
    view = wanted.view(sums)
    n_features, n_groups = len(index.order), len(index.entries)
    rank = np.empty(n_features, np.int64)
    rank[index.order] = np.arange(n_features)
    place = np.arange(n_features) if wanted.place is None else wanted.place
    each = {"sums": view.sums, "squares": view.squares}
    if wanted.metric == "partial_correlation":
        each["by_length"] = gram.length_share(view)
    each = {name: values[place] for name, values in each.items()}
    largest, weights = float(each["squares"].max()), np.asarray(wanted.weights, np.float64)
    found = np.empty((len(features), wanted.k), np.uint64)
    held = np.empty((n_features, n_groups))
    for start in range(0, len(features), SLAB):
        own = features[start : start + SLAB]
        tile = np.empty((len(own), len(place)))
        for row, feature in enumerate(own):
            held[:] = 0
            _add_rows(index.entries, index.places, index.edges, rank[place[feature]], held)
            tile[row] = (held @ weights)[rank[place]]
        side = {name: values[own] for name, values in each.items()}
        far = neighbors.distances(wanted.metric, tile, view.n_prompts, side, each, largest)
        keys = topk.pack(far, np.arange(len(place)))
        keys[np.arange(len(own)), own] = topk.NOTHING
        found[start : start + SLAB] = topk.smallest(keys, wanted.k)
    return found


@_compile
def _add_rows(entries: Any, places: Any, edges: Any, i: int, held: Any) -> None:
    """Add the products of a rank with all others."""
    for group in range(held.shape[1]):
        own, at = entries[group], places[group]
        for p in range(edges[group, i], edges[group, i + 1]):
            q = np.int64(at[p])
            value = np.float64(own[q].value)
            while q > 0 and own[q - 1].feature >= 0:
                q -= 1
            last = False
            while not last:
                last = own[q].feature < 0
                held[own[q].feature & 0x7FFFFFFF, group] += value * own[q].value
                q += 1
