"""What is said of a clustering as a whole, in a run's record and in a row of a sweep alike.

Its sizes, whether the clusters of the halves of the prompts agree, how far clusters kept neighbours of the input space
together, and what features of a cluster have in common. NaN is said where there is nothing to measure.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gpuclust.compute import agreement, validity
from gpuclust.types import Array

PURITY_NEIGHBORS = 10  # neighbours that the purity of a clustering looks at
SHARED = ("entropy", "sparsity", "mean")  # statistics that features of a cluster may have in common


def of_clustering(
    labels: Array, persistence: Array, indices: Array, statistics: Mapping[str, Array]
) -> dict[str, float]:
    """Measure one clustering of features without copies.

    Parameters
    ----------
    labels : array, (feature,), int
    persistence : array, (cluster,), float64
        As of `Clustering`.
    indices : array, (feature, k), int
        Nearest neighbours, the feature itself in column 0.
    statistics : mapping of str to array, (feature,)
        Those of `SHARED`.

    Returns
    -------
    dict
        As `shape_of`; ``persistence`` (mean over clusters), ``purity``, and ``shared_entropy`` and so on.
    """
    return {
        **shape_of(labels),
        "persistence": float(persistence.mean()) if len(persistence) else np.nan,
        "purity": purity(labels, indices),
        **{f"shared_{name}": shared(labels, np.asarray(statistics[name])) for name in SHARED},
    }


def of_halves(first: Array, second: Array) -> dict[str, float]:
    """Compare the clusterings of the two halves of the prompts; NaN where neither has any: nothing could be stable.

    Parameters
    ----------
    first, second : array, (feature,), int

    Returns
    -------
    dict
        As `agreement.agreement_of_halves`, without the number of features; ``recovered``, the share of clusters, of
        both halves, whose match has a Jaccard index of at least one half; ``clusters`` and ``noise``, means of both;
        and what `validity.found_again` says.
    """
    found = agreement.agreement_of_halves(first, second)
    matched = agreement.relate(first, second).clusters["jaccard"]
    halves = [shape_of(first), shape_of(second)]
    return {
        **{name: value for name, value in found.items() if name != "common"},
        "recovered": float((matched >= agreement.HALF).mean()) if len(matched) else np.nan,
        **{name: float(np.mean([half[name] for half in halves])) for name in ("clusters", "noise")},
        **validity.found_again(first, second),
    }


def shape_of(labels: Array) -> dict[str, float]:
    """Number of clusters, share of noise, median size, and the share of the features that is in the largest."""
    sizes = np.bincount(labels[labels >= 0])
    return {
        "clusters": len(sizes),
        "noise": float((labels < 0).mean()),
        "median_size": float(np.median(sizes)) if len(sizes) else np.nan,
        "largest": float(sizes.max() / len(labels)) if len(sizes) else 0.0,
    }


def purity(labels: Array, indices: Array) -> float:
    """Mean share of a clustered feature's nearest neighbours that are in its cluster; NaN without clusters.

    The neighbours are those of the input space, so this says how far the embedding kept them together.
    """
    clustered = labels >= 0
    near = indices[clustered, 1 : PURITY_NEIGHBORS + 1]
    return float((labels[near] == labels[clustered, None]).mean()) if clustered.any() else np.nan


def shared(labels: Array, values: Array) -> float:
    """Share of the variance of ranks that lies between clusters, adjusted for chance: 0 on average by chance, 1 all.

    ``1 - (1 - eta²)(n - 1)/(n - c)`` over the n features in c clusters (Kelley's epsilon squared). NaN with fewer than
    two clusters, or values all alike.
    """
    from scipy.stats import rankdata

    clustered = labels >= 0
    own, ranks = labels[clustered], rankdata(values[clustered])
    n, c = len(own), len(np.unique(own))
    total = float(((ranks - ranks.mean()) ** 2).sum()) if n else 0.0
    if c < 2 or total == 0 or n <= c:
        return np.nan
    counts = np.bincount(own)
    means = np.bincount(own, ranks) / np.maximum(counts, 1)
    within = float(((ranks - means[own]) ** 2).sum())
    return 1 - (within / total) * (n - 1) / (n - c)
