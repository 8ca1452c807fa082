"""Held-out prediction: do a feature's cluster-mates tell where it fires, among rows they were not chosen from?

Clusters are those of one half of the prompts, rows those of the other. A row's score for a feature is the sum over its
mates, the feature itself left out, of a / (its mean where it fires). How well scores tell rows on which the feature
fires from others is the area under the ROC curve (AUROC; 0.5: not at all), once over all pairs of rows, once over pairs
that what the row's words, length and source say of the feature puts into the same stratum.

Pairs are counted in histograms over quantiles of the score, which add up over blocks of rows; scores in one bin count
as equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from gpuclust.hardware import jit
from gpuclust.schema import NOISE
from gpuclust.types import Array

jit.keep_kernels()
_compile: Any = numba.njit(nogil=True, cache=True, error_model="numpy")

BINS = 32  # of a score: none of the mates fires, and quantiles of the others
STRATA = 8  # of what words, length and source say
SAMPLE = 2048  # rows that quantiles are of
PRIOR = 0.5  # rows of each kind, in log-odds (Jeffreys)
TINY = 1e-9  # a score of nothing
ROUNDED = 1e-5  # of a feature's value: what float32 leaves of a sum of nothing else
SLAB = 4096  # features that are measured at a time


@dataclass(frozen=True, eq=False)
class Mates:
    """Clusterings whose members are each other's mates, and quantiles of their scores.

    Attributes
    ----------
    sets : array, (set, feature), int64
        Labels, -1 noise: first the clusters, then controls, each a clustering whose members are told by each other.
    quantiles : array, (set, cluster, BINS - 2), float32
    """

    sets: Array
    quantiles: Array


def scores(rows: Any, sets: Array) -> Array:
    """Sum scaled activations over clusters.

    Parameters
    ----------
    rows : scipy.sparse.csr_array, (row, feature)
        a / mean where it fires; what does not fire is not stored.
    sets : array, (set, feature), int
        -1: in no cluster.

    Returns
    -------
    array, (set, row, cluster), float32
    """
    from scipy.sparse import csr_array

    n_clusters = int(sets.max(initial=NOISE)) + 1
    found = np.empty((len(sets), rows.shape[0], n_clusters), np.float32)
    for at, one in enumerate(sets):
        own = np.flatnonzero(one >= 0)
        inside = csr_array((np.ones(len(own), np.float32), (own, one[own])), shape=(rows.shape[1], n_clusters))
        found[at] = (rows @ inside).toarray()
    return found


def mates(sets: Array, sample: Array) -> Mates:
    """Return mates with the quantiles of a sample of rows' scores.

    Parameters
    ----------
    sets
        As of `Mates`.
    sample : array, (set, row, cluster), float32
    """
    quantiles = np.empty((*sample.shape[::2], BINS - 2), np.float32)
    at = np.linspace(0, 1, BINS - 1)[:-1]
    for place in np.ndindex(quantiles.shape[:2]):
        some = sample[place[0], :, place[1]]
        some = some[some > TINY]
        quantiles[place] = np.quantile(some, at) if len(some) else 0
    quantiles[:, :, 0] = 0  # the second bin begins where anything fires
    return Mates(sets, quantiles)


def log_odds(together: Array, attribute: Array, active: Array, n_rows: int) -> Array:
    """Return what each attribute of a row says of each feature: log P(x | fires) / P(x | not).

    Naive Bayes (Maron 1961): a row's sum over its attributes says how likely the feature is to fire there.

    Parameters
    ----------
    together : array, (attribute, feature), float32
        Rows that have the attribute and on which the feature fires. It is written over.
    attribute : array, (attribute,), float64
        Rows that have it.
    active : array, (feature,), float64
        Rows on which each fires.
    n_rows : int

    Returns
    -------
    array, (attribute, feature), float32
        `together` itself.
    """
    for row, count in zip(together, attribute, strict=True):
        fires = (row + PRIOR) / (active + 2 * PRIOR)
        row[:] = np.log(fires / ((count - row + PRIOR) / (n_rows - active + 2 * PRIOR)))
    return together


def strata(said: Array) -> Array:
    """Return the quantiles that cut rows into STRATA by what is said of a feature.

    Parameters
    ----------
    said : array, (row, feature), float32
        Of a sample of rows.

    Returns
    -------
    array, (feature, STRATA - 1), float32
    """
    if not len(said):
        return np.zeros((said.shape[1], STRATA - 1), np.float32)
    found: Array = np.quantile(said, np.linspace(0, 1, STRATA + 1)[1:-1], axis=0).T.astype(np.float32)
    return np.ascontiguousarray(found)


def histograms(n_sets: int, n_features: int) -> Array:
    """Return empty histograms, (set, feature, stratum, bin, 2), uint32: rows on which it does not fire, and does."""
    return np.zeros((n_sets, n_features, STRATA, BINS, 2), np.uint32)


def count(into: Array, rows: Any, told: Mates, said: Array, edges: Array, threads: int = 1) -> None:
    """Count rows into histograms, in place.

    Parameters
    ----------
    into : array, (set, feature, stratum, bin, 2), uint32
        Of `histograms`.
    rows : scipy.sparse.csr_array, (row, feature), float32
        As of `scores`.
    told : Mates
    said : array, (row, feature), float32
        What words, length and source say of each.
    edges : array, (feature, STRATA - 1), float32
        Of `strata`.
    threads : int

    Notes
    -----
    Memory: 5 bytes a row and feature beside `said`, and 4 a row, cluster and set. Time: one step a row and feature, and
    one more a set where a mate or the feature itself fires: of sparse rows few.
    """
    if not rows.shape[0]:
        return
    values, found = rows.toarray(), scores(rows, told.sets)
    n, n_clusters = rows.shape[1], found.shape[2]
    stratum = np.empty(values.shape, np.uint8)
    each = np.zeros((n, STRATA, 2), np.uint32)
    order = np.argsort(told.sets, axis=1, kind="stable")  # noise first, then cluster after cluster
    starts = np.stack([np.searchsorted(np.sort(one), np.arange(n_clusters + 1)) for one in told.sets])
    step = -(-n // threads)
    with ThreadPoolExecutor(threads) as pool:

        def cut(first: int) -> None:
            _cut(values, said, edges, stratum, each, first, min(first + step, n))

        def share(first: int) -> None:
            _count(into, values, stratum, found, order, starts, told.quantiles, first, threads)

        list(pool.map(cut, range(0, n, step)))
        into[:, :, :, 0] += each  # as if no mate fired
        list(pool.map(share, range(threads)))


@_compile
def _bin(score: Any, quantiles: Any) -> Any:
    """0 where no mate fires; else 1 and how many quantiles after the first are at most the score."""
    if score <= TINY:
        return 0
    low, high = 1, len(quantiles)
    while low < high:
        middle = (low + high) // 2
        if quantiles[middle] <= score:
            low = middle + 1
        else:
            high = middle
    return low


@_compile
def _cut(values: Any, said: Any, edges: Any, stratum: Any, each: Any, first: Any, last: Any) -> None:
    """Find the stratum of every row and feature, and count them by whether the feature fires."""
    for row in range(values.shape[0]):
        for feature in range(first, last):
            at = 0
            while at < edges.shape[1] and said[row, feature] > edges[feature, at]:
                at += 1
            stratum[row, feature] = at
            each[feature, at, 1 if values[row, feature] > 0 else 0] += 1


@_compile
def _count(
    into: Any,
    values: Any,
    stratum: Any,
    found: Any,
    order: Any,
    starts: Any,
    quantiles: Any,
    first: Any,
    step: Any,
) -> None:
    """Move rows on which mates fire from the first bin into their own; every `step`-th cluster of every set."""
    for one in range(found.shape[0]):
        for cluster in range(first, found.shape[2], step):
            for row in range(found.shape[1]):
                score = found[one, row, cluster]
                if score <= TINY:
                    continue
                for place in range(starts[one, cluster], starts[one, cluster + 1]):
                    feature = order[one, place]
                    value = values[row, feature]
                    fires, rest = 0, score
                    if value > 0:
                        fires, rest = 1, score - value
                        if rest < value * ROUNDED:
                            rest = 0.0
                    at = _bin(rest, quantiles[one, cluster])
                    own = into[one, feature, stratum[row, feature]]
                    own[0, fires] -= 1
                    own[at, fires] += 1


def auroc(counted: Array) -> Array:
    """Return the area under the ROC curve from counts of rows, over pairs of the same stratum.

    Σ over strata of pairs (fires, does not) that the score puts in order, those in one bin counting half, over all such
    pairs (Mann and Whitney 1947).

    Parameters
    ----------
    counted : array, (..., stratum, bin, 2), int
        Bins ascend; rows on which it does not fire, and does.

    Returns
    -------
    array, (...), float64
        NaN where no stratum has rows of both kinds.

    Examples
    --------
    >>> auroc(np.array([[[3, 0], [1, 1], [0, 3]]])).tolist()
    0.96875
    """
    others, fires = counted[..., 0].astype(np.float64), counted[..., 1].astype(np.float64)
    below = np.cumsum(others, axis=-1) - others / 2
    pairs = (fires.sum(axis=-1) * others.sum(axis=-1)).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.where(pairs > 0, (fires * below).sum(axis=(-1, -2)) / pairs, np.nan)
    return found


def over_all(counted: Array) -> Array:
    """Return `auroc` over all pairs of rows, whatever their strata."""
    return auroc(counted.sum(axis=-3, keepdims=True, dtype=np.int64))


def of_words(counted: Array) -> Array:
    """Return `auroc` of what words, length and source say, by its strata."""
    return auroc(counted.sum(axis=-2, dtype=np.int64)[..., None, :, :])


def measured(counted: Array) -> dict[str, Array]:
    """Return all three AUROC of histograms, SLAB features at a time.

    Parameters
    ----------
    counted : array, (set, feature, stratum, bin, 2), uint32

    Returns
    -------
    dict of str to array, (set, feature), float64
        ``plain``, ``given`` words and ``words`` alone.
    """
    found = {name: np.empty(counted.shape[:2]) for name in MEASURES}
    for start in range(0, counted.shape[1], SLAB):
        slab = slice(start, start + SLAB)
        for name, measure in MEASURES.items():
            found[name][:, slab] = measure(counted[:, slab])
    return found


def of_clusters(sets: Array, each: Sequence[Array]) -> dict[str, Array]:
    """Put the features of every cluster together, and hold it against its controls.

    Parameters
    ----------
    sets : array, (set, feature), int
        Labels that are told of, -1 noise: the clusters and their controls.
    each : sequence of array, (set, feature), float64
        AUROC in either direction, NaN where there is none.

    Returns
    -------
    dict of str to array, (cluster,), float64
        ``mean`` over the features; ``control``, the same of its controls; ``low`` and ``high``: a 95% interval of
        their difference, by how far the controls lie apart; ``p``, the chance that another control is as far above them
        (Student's t with draws - 1 degrees, one-sided: a prediction interval). NaN where no feature was measured, and
        interval and p where controls do not differ at all.
    """
    from scipy import stats

    stack = np.stack(each)
    known = (~np.isnan(stack)).sum(axis=0)
    values = np.nansum(stack, axis=0) / np.where(known > 0, known, np.nan)
    n_clusters = int(sets.max(initial=NOISE)) + 1
    means = np.full((len(sets), n_clusters), np.nan)
    for mean, label, value in zip(means, sets, values, strict=True):
        own = (label >= 0) & ~np.isnan(value)
        size = np.bincount(label[own], minlength=n_clusters)
        mean[:] = np.bincount(label[own], value[own], minlength=n_clusters) / np.where(size > 0, size, np.nan)
    controls = means[1:]
    draws = len(controls)
    control = controls.mean(axis=0)
    difference = means[0] - control
    spread = controls.std(axis=0, ddof=1) * np.sqrt(1 + 1 / draws)
    spread = np.where(spread > TINY, spread, np.nan)
    half = stats.t.ppf(0.975, draws - 1) * spread
    return {
        "mean": means[0], "control": control, "low": difference - half, "high": difference + half,
        "p": stats.t.sf(difference / spread, draws - 1),
    }  # fmt: skip


MEASURES = {"plain": over_all, "given": auroc, "words": of_words}
