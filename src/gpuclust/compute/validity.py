"""Is it real? Agreement between clusterings, stability and nulls of single clusters, validity of one clustering.

Labels are whole numbers from 0, -1 is noise. What needs distances between features is computed from the product of G
with indicators of sets of features, ``G H = Aᵀ(A H)``: one pass over the prompts, and never a matrix of all pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuclust.hardware.budget import COSINES
from gpuclust.schema import NOISE
from gpuclust.types import Array

ROUNDING = 1e-12  # cosine distances below are those of exact duplicates


def best_match(labels: Array, other: Array) -> Array:
    """Return the largest Jaccard index |A ∩ B| / |A ∪ B| of every cluster with any cluster of another clustering.

    Parameters
    ----------
    labels, other : array, (feature,), int

    Returns
    -------
    array, (cluster,), float64; 0 where the other has no cluster

    Examples
    --------
    >>> best_match(np.array([0, 0, 1, 1]), np.array([5, 5, 5, -1])).round(2).tolist()
    [0.67, 0.25]
    """
    n, m = int(labels.max(initial=NOISE)) + 1, int(other.max(initial=NOISE)) + 1
    if n == 0 or m == 0:
        return np.zeros(n)
    both = (labels >= 0) & (other >= 0)
    shared = np.bincount(labels[both] * np.int64(m) + other[both], minlength=n * m).reshape(n, m)
    sizes = np.bincount(labels[labels >= 0], minlength=n)[:, None] + np.bincount(other[other >= 0], minlength=m)
    best: Array = (shared / np.maximum(sizes - shared, 1)).max(axis=1)
    return best


FOUND = {"found_again": 0.5, "found_again_75": 0.75}  # Jaccard indices at which a cluster counts as found again


def found_again(first: Array, second: Array) -> dict[str, float]:
    """Return the share of features that lie in a cluster which the other clustering finds again, mean of both sides.

    More noise cannot buy it: what is left out is not found. One giant cluster can, because the other clustering finds a
    cluster of nearly everything in its own: look at the largest cluster too.

    Parameters
    ----------
    first, second : array, (feature,), int

    Returns
    -------
    dict
        By the names of `FOUND`: the share of all features in clusters whose `best_match` is at least that.

    Examples
    --------
    >>> found_again(np.array([0, 0, 1, 1]), np.array([0, 0, 1, -1]))
    {'found_again': 0.875, 'found_again_75': 0.5}
    """
    found = dict.fromkeys(FOUND, 0.0)
    for labels, other in ((first, second), (second, first)):
        sizes, match = np.bincount(labels[labels >= 0]), best_match(labels, other)
        for name, least in FOUND.items():
            found[name] += float(sizes[match >= least].sum() / max(len(labels), 1) / 2)
    return found


def information_found_again(first: Array, second: Array) -> float:
    """Return how many bits a feature's cluster says of it on average, where the other clustering finds it again.

    A cluster of the share p of the features says -log2 p bits, and one that is not found again nothing: neither more
    noise nor one giant cluster can buy it.

    Parameters
    ----------
    first, second : array, (feature,), int

    Returns
    -------
    float
        Mean of both sides, and of the least best matches of `FOUND`; 0 to log2 of the number of features.

    Examples
    --------
    >>> information_found_again(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    1.0
    >>> information_found_again(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 0]))
    0.0
    """
    bits = 0.0
    for labels, other in ((first, second), (second, first)):
        sizes, match = np.bincount(labels[labels >= 0]), best_match(labels, other)
        share = sizes / max(len(labels), 1)
        said = -share * np.log2(np.where(sizes, share, 1))
        bits += sum(float(said[match >= least].sum()) for least in FOUND.values()) / len(FOUND) / 2
    return bits


def chance_match(labels: Array, others: Sequence[Array], draws: int, seed: int) -> Array:
    """Return the largest mean best match of every cluster that random relabelling reached in `draws` draws.

    Each draw permutes the features of every other clustering: sizes and noise stay. A cluster of most features matches
    by chance, one of few does not.

    Parameters
    ----------
    labels : array, (feature,), int
    others : sequence of array, (feature,), int
        Other clusterings of the same features.
    draws, seed : int

    Returns
    -------
    array, (cluster,), float64
    """
    random = np.random.default_rng(seed)
    drawn = [np.mean([best_match(labels, random.permutation(other)) for other in others], axis=0) for _ in range(draws)]
    largest: Array = np.max(drawn, axis=0)
    return largest


@dataclass(frozen=True, eq=False)
class Sums:
    """What one pass over prompts gives of unit features u = a / |a| and sets of them.

    Attributes
    ----------
    cosine : array, (feature, cluster), float64
        Each feature's cosines summed over the features of a cluster: G of unit features times the indicators. Of
        `sums_within` (feature, 0).
    mean : array, (feature,), float64
        Mean of u over prompts.
    own : array, (feature,), float64
        |u|²: 1, or 0 of a feature of zeros.
    squares : array, (set,), float64
        |Σ u|² over the features of every further set, less Σ |u|²: its cosines, summed over all ordered pairs.
    n_prompts : int
    """

    cosine: Array
    mean: Array
    own: Array
    squares: Array
    n_prompts: int


def sums(blocks: Iterable[Array], norms: Array, labels: Array, sets: Any = None) -> Sums:
    """Sum unit features over clusters and sets in one pass over the prompts.

    ``G H = Aᵀ (A H)`` with H the indicators of clusters, scaled by the features' norms: far fewer products than G.

    Parameters
    ----------
    blocks : iterable of array, (prompt, feature), or scipy.sparse.csr_array
        The clustered features only.
    norms : array, (feature,), float64
        |a|, √Σ a² over prompts; a feature of zeros counts as at right angles to all others.
    labels : array, (feature,), int
    sets : sparse array, (feature, set), optional
        Indicators of further sets.
    """
    from scipy.sparse import csr_array, diags_array

    inverse = 1 / np.where(norms > 0, norms, np.inf)
    n_clusters = int(labels.max(initial=NOISE)) + 1
    own_cluster = np.flatnonzero(labels >= 0)
    place = (labels[own_cluster], own_cluster)
    inside = csr_array((np.ones(len(own_cluster)), place), shape=(n_clusters, len(labels)))
    n_sets = 0 if sets is None else sets.shape[1]
    across: Any = None if sets is None else sets.T.tocsr()
    cosine, total, squares = np.zeros((len(labels), n_clusters)), np.zeros(len(labels)), np.zeros(n_sets)
    n_prompts = 0
    for block in blocks:
        sparse = hasattr(block, "tocsr")
        unit: Any = block.astype(np.float64) @ diags_array(inverse) if sparse else block.astype(np.float64) * inverse
        turned = unit.T.tocsr() if sparse else np.ascontiguousarray(unit.T)  # (feature, prompt)
        within = inside @ turned
        within = within.toarray().T if sparse else within.T
        for start in range(0, len(labels), COSINES):
            cosine[start : start + COSINES] += turned[start : start + COSINES] @ within
        total += unit.sum(axis=0)
        n_prompts += block.shape[0]
        for start in range(0, n_sets, COSINES):
            inner = across[start : start + COSINES] @ turned
            squares[start : start + COSINES] += (inner.multiply(inner) if sparse else inner**2).sum(axis=1)
    own = (norms > 0).astype(np.float64)
    if n_sets:
        squares -= sets.T @ own
    return Sums(cosine, total / max(n_prompts, 1), own, squares, n_prompts)


def sums_within(blocks: Iterable[Array], norms: Array, labels: Array) -> Sums:
    """Sum unit features over clusters, as `sums`, but for no feature's cosines with other clusters.

    What `cohesion` and `permutation_z` need, in memory that does not grow with features times clusters.

    Parameters
    ----------
    blocks, norms, labels
        As of `sums`.

    Returns
    -------
    Sums
        Its sets are the clusters.
    """
    from scipy.sparse import csr_array

    clustered = np.flatnonzero(labels >= 0)
    shape = (len(labels), int(labels.max(initial=NOISE)) + 1)
    sets = csr_array((np.ones(len(clustered)), (clustered, labels[clustered])), shape=shape)
    return sums(blocks, norms, np.full(len(labels), NOISE), sets)


def cohesion(found: Sums, labels: Array) -> Array:
    """Return the mean cosine between two features of each cluster, (cluster,), float64."""
    total, size = _inner(found, labels)
    mean: Array = total / np.maximum(size * (size - 1), 1)
    return mean


def permutation_z(found: Sums, labels: Array) -> Array:
    """Return z-scores of cohesion under permutation of each feature's activations over prompts.

    Permuted independently, two unit features i and j have a cosine of mean n m_i m_j and variance v_i v_j / (n - 1),
    with m the mean over n prompts and v = 1 - n m²; pairs are uncorrelated. So both moments of a cluster's mean are
    exact, and nothing is drawn. It does not count that clusters were chosen for their cohesion: compare with the
    clusters of permuted activations.

    Returns
    -------
    array, (cluster,), float64
    """
    n = found.n_prompts
    _, size = _inner(found, labels)
    clustered = labels >= 0

    def per_cluster(values: Array) -> Array:
        added: Array = np.bincount(labels[clustered], values[clustered], minlength=len(size))
        return added

    pairs = np.maximum(size * (size - 1) / 2, 1)
    expected = n * (per_cluster(found.mean) ** 2 - per_cluster(found.mean**2)) / 2 / pairs
    left = np.maximum(found.own - n * found.mean**2, 0)
    variance = (per_cluster(left) ** 2 - per_cluster(left**2)) / 2 / max(n - 1, 1) / pairs**2
    z: Array = (cohesion(found, labels) - expected) / np.sqrt(np.maximum(variance, np.finfo(float).tiny))
    return z


def matched_z(found: Sums, labels: Array, draws: int) -> Array:
    """Return z-scores of cohesion against the sets of `controls.matched_sets`, (cluster,), float64.

    Parameters
    ----------
    found : Sums
        Over the sets of `controls.matched_sets`.
    labels : array, (feature,), int
    draws : int
        Sets of a cluster, as they were drawn.
    """
    _, size = _inner(found, labels)
    random = found.squares.reshape(len(size), draws) / np.maximum(size * (size - 1), 1)[:, None]
    spread = random.std(axis=1, ddof=1) if draws > 1 else np.full(len(size), np.nan)
    z: Array = (cohesion(found, labels) - random.mean(axis=1)) / np.maximum(spread, np.finfo(np.float32).tiny)
    return z


def silhouette(found: Sums, labels: Array) -> Array:
    """Return the mean cosine silhouette of each cluster (Rousseeuw 1987), noise left out.

    (b - a) / max(a, b) of a feature, a its mean distance 1 - cosine to the others of its cluster and b the smallest
    to another cluster; 0 for a feature at distance 0 from both; NaN where there is only one cluster.

    Returns
    -------
    array, (cluster,), float64
    """
    n_clusters = found.cosine.shape[1]
    if n_clusters < 2:
        return np.full(n_clusters, np.nan)
    clustered, sizes = np.flatnonzero(labels >= 0), np.bincount(labels[labels >= 0], minlength=n_clusters)
    total = np.zeros(n_clusters)
    for start in range(0, len(clustered), COSINES):
        features = clustered[start : start + COSINES]
        own, rows = labels[features], np.arange(len(features))
        apart = 1 - found.cosine[features] / sizes
        a = 1 - (found.cosine[features, own] - found.own[features]) / np.maximum(sizes[own] - 1, 1)
        apart[rows, own] = np.inf
        a, b = (np.where(distance > ROUNDING, distance, 0) for distance in (a, apart.min(axis=1)))
        farther = np.maximum(a, b)
        scores = np.where(farther > 0, b - a, 0) / np.where(farther > 0, farther, 1)
        total += np.bincount(own, scores, minlength=n_clusters)
    means: Array = total / sizes
    return means


def dbcv(embedding: Array, labels: Array) -> tuple[float | None, str]:
    """Return density-based validity (Moulavi et al. 2014) of clusters in an embedding, or None and why.

    The library's code divides by zero on duplicates and single clusters; what is not finite is not a score.
    """
    from hdbscan.validity import validity_index

    if labels.max(initial=NOISE) < 1:
        return None, "DBCV needs two clusters"
    with np.errstate(all="ignore"):
        score = float(validity_index(embedding.astype(np.float64), labels.astype(np.int64)))
    return (score, "") if np.isfinite(score) else (None, "DBCV is not finite: exact duplicates in the embedding")


def neighbor_overlap(a: Array, b: Array) -> float:
    """Return the mean share of neighbours that two lists, (feature, k), have in common; column 0 does not count."""
    shared = [len(np.intersect1d(x, y, assume_unique=True)) for x, y in zip(a[:, 1:], b[:, 1:], strict=True)]
    return float(np.mean(shared) / max(a.shape[1] - 1, 1))


def _inner(found: Sums, labels: Array) -> tuple[Array, Array]:
    """Cosines of each cluster summed over all ordered pairs, and its size."""
    clustered, n_clusters = np.flatnonzero(labels >= 0), int(labels.max(initial=NOISE)) + 1
    size = np.bincount(labels[clustered], minlength=n_clusters)
    if found.cosine.shape[1] < n_clusters:  # of `sums_within`
        return found.squares, size
    own = found.cosine[clustered, labels[clustered]] - found.own[clustered]
    return np.bincount(labels[clustered], own, minlength=n_clusters), size
