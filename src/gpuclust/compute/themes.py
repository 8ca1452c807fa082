"""Themes: which clusters rise and fall together over the prompts, as a level above the clusters.

Two clusters are of one theme when they go together with the same clusters. That is looked at, and not only how far the
two go together, because a correlation over prompts is mostly what all clusters share, above all the prompts' length.
Themes are for orientation: unlike clusters, more than half of what they join changes with the prompts, and `agreement`
says how far.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpuclust import schema
from gpuclust.compute import agreement as clusterings
from gpuclust.types import Array

FEWEST = 12  # clusters that are put into themes at all


def find(correlation: Array, sizes: Array) -> Array:
    """Put clusters into themes: Ward's linkage of the correlations that each has with all, cut at √n groups.

    Parameters
    ----------
    correlation : array, (cluster, cluster), float64
        Over prompts; NaN for a cluster that does not vary, which counts as 0.
    sizes : array, (cluster,), int
        Features.

    Returns
    -------
    array, (cluster,), int64
        Themes from 0 by features, the largest first; -1 for all where there are fewer than FEWEST clusters.

    Notes
    -----
    Rows of the matrix are standardised, so that the squared distance of two is proportional to 1 less their Pearson
    correlation; Ward (1963).
    """
    from scipy.cluster.hierarchy import fcluster, ward

    n = len(correlation)
    if n < FEWEST:
        return np.full(n, schema.NOISE)
    rows = np.nan_to_num(correlation)
    rows = rows - rows.mean(axis=1, keepdims=True)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    names = fcluster(ward(rows), round(n**0.5), "maxclust")
    _, first, found = np.unique(names, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.lexsort((first, -np.bincount(found, sizes)))] = np.arange(len(first))  # of equal ones the first
    numbers: Array = rank[found]
    return numbers


def agreement(half_correlations: Sequence[Array], sizes: Array) -> float | None:
    """Return the adjusted Rand index of the themes by each half of the prompts; None where there are none."""
    if len(half_correlations) < 2 or len(sizes) < FEWEST:
        return None
    a, b = (find(correlation, sizes) for correlation in half_correlations)
    return float(clusterings.agreement(a, b)["ari"])
