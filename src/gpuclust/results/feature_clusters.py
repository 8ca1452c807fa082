"""Clusters of features of activations in hand: what `cluster_features` returns, and what two halves say of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclust.config import Config
from gpuclust.types import Array

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("gpuclust")

FEWEST_PROMPTS = 8  # that are halved: correlations over fewer than four prompts are all near 1 or -1


@dataclass(frozen=True, repr=False)
class FeatureClusters:
    """Clusters of features of activations in hand.

    Attributes
    ----------
    features : DataFrame
        A row per feature, columns of ``schema.FEATURE_COLUMNS``.
    labels : array, (kept,), int32
        Clusters of the kept features, -1 = noise. Exact duplicates are clustered as one and share what follows, too.
    probabilities : array, (kept,), float64
    persistence : array, (cluster,), float64
        HDBSCAN's, or the mean share of members of the consensus that put a pair together. It is of these prompts alone,
        and may be high for a cluster that chance made.
    embedding : array, (kept, component), float32, or None without UMAP
    indices, distances : array, (kept, k)
        Neighbours; `indices` count the kept features.
    notes : tuple of str
    method : str
        As ``cluster.method``.
    stability : array, (cluster,), float64, or None
        Mean best-match Jaccard index with the clusters of each half of the prompts, clustered apart; None where no
        halves were looked at.
    found_again : float or None
        Share of the features that lie in a cluster of one half that the other finds again, at a Jaccard index of 0.5.
    """

    features: pd.DataFrame
    labels: Array
    probabilities: Array
    persistence: Array
    embedding: Array | None
    indices: Array
    distances: Array
    notes: tuple[str, ...]
    method: str
    stability: Array | None = None
    found_again: float | None = None

    def __repr__(self) -> str:
        noise = float((self.labels < 0).mean()) if len(self.labels) else 0.0
        again = "" if self.found_again is None else f", {self.found_again:.0%} found again in halves of the prompts"
        return (
            f"FeatureClusters({len(self.labels):,} of {len(self.features):,} features kept, {len(self.persistence):,} "
            f"clusters, {noise:.0%} noise, by {self.method}{again})"
        )


@dataclass(frozen=True)
class Halves:
    """What two halves of the prompts, clustered apart, say of the clusters of all.

    Attributes
    ----------
    stability : array, (cluster,), float64, or None where there are too few prompts to halve
    found_again : float or None
    notes : tuple of str
    """

    stability: Array | None
    found_again: float | None
    notes: tuple[str, ...]


def gram_of(
    blocks: Iterable[Array], n_kept: int, lengths: Array | None = None, active_above: float | None = None
) -> Any:
    """Return the Gram matrix of activations in memory, `compute.gram.Gram`.

    Parameters
    ----------
    blocks : iterable of array, (prompt, kept)
    n_kept : int
    lengths : array, (prompt,), optional
        Of the prompts, for partial correlations.
    active_above : float, optional
        As of `gram.accumulate`.
    """
    from gpuclust.compute import gram
    from gpuclust.hardware import budget

    tile = min(budget.TILE, n_kept)
    (tiles,) = gram.plan_passes(n_kept, tile, n_kept**2 * 16 + tile**2 * 16)
    return gram.accumulate(blocks, n_kept, tiles, tile, lengths=lengths, active_above=active_above)


def by_distances(matrix: Any, config: Config) -> Any:
    """Cluster by HDBSCAN on exact cosine distances, `compute.clustering.Clustering`.

    Parameters
    ----------
    matrix : Gram
    config : Config
        Section hdbscan.
    """
    from gpuclust.compute import neighbors
    from gpuclust.compute.clustering import cluster_distances

    dense = neighbors.all_distances(matrix, "cosine")
    return cluster_distances(dense, config.hdbscan, chord=config.hdbscan.metric == "euclidean")


def by_dbscan(matrix: Any, indices: Array, distances: Array, config: Config) -> Any:
    """Cluster by DBSCAN on exact distances, `compute.dbscan.Found`.

    Parameters
    ----------
    matrix : Gram
    indices, distances : array, (feature, k), int32 and float32
    config : Config
        Sections dbscan and neighbors.
    """
    from gpuclust.compute import dbscan, neighbors
    from gpuclust.compute.spanning_tree import mutual_reachability_tree

    tree = mutual_reachability_tree(neighbors.all_distances(matrix, config.metric), config.tree_samples or 1)
    return dbscan.of_tree(tree, indices, distances, config)


def compare_halves(
    data: Array, mask: Array, labels: Array, config: Config, resolution: float | None, lengths: Array | None = None
) -> Halves:
    """Cluster two halves of the prompts apart, as a run does, and compare; warn where nothing comes back.

    Parameters
    ----------
    data : array, (prompt, feature)
    mask : array, (feature,), bool
        Features that were clustered, of copies the first.
    labels : array, (clustered feature,), int
        Of all prompts.
    config : Config
        ``seed`` says which prompts go into which half, ``quality.stable`` what counts as found again.
    resolution : float or None
        Of communities, as it was taken for all prompts.
    lengths : array, (prompt,), optional
        Of the prompts, for partial correlations.

    Notes
    -----
    Memory: one Gram matrix of the features at a time.
    """
    from gpuclust.compute import measures, validity, verdicts
    from gpuclust.compute.halves import half_of

    if len(data) < FEWEST_PROMPTS:
        note = f"no halves: {len(data)} prompts are fewer than the {FEWEST_PROMPTS} that two halves need"
        return Halves(None, None, (note,))
    half = half_of(len(data), config.seed)
    first, second = (
        _labels_of(data, np.flatnonzero(half == side), mask, config, resolution, lengths) for side in (0, 1)
    )
    stability = np.mean([validity.best_match(labels.astype(np.int64), other) for other in (first, second)], axis=0)
    found = measures.of_halves(first, second)["found_again"]
    again = int((stability >= config.quality.stable).sum())
    text = verdicts.doubt(again, len(stability), len(data), found, over_tokens=False)
    if text is not None:
        log.warning("cluster_features: %s", text)
    return Halves(stability, found, () if text is None else (text,))


def _labels_of(
    data: Array, rows: Array, mask: Array, config: Config, resolution: float | None, lengths: Array | None
) -> Array:
    """Cluster some prompts by the method and its consensus."""
    from gpuclust.compute import consensus, methods, neighbors
    from gpuclust.hardware import budget

    columns = np.flatnonzero(mask)
    starts = range(0, len(rows), budget.MAX_ROWS)
    blocks = (data[np.ix_(rows[start : start + budget.MAX_ROWS], columns)] for start in starts)
    matrix = gram_of(blocks, len(columns), None if lengths is None else lengths[rows], config.active_above)
    indices, distances = neighbors.exact(matrix, min(config.n_neighbors, len(columns)), config.metric)
    errors = neighbors.errors_of(matrix, indices, distances, config.metric)
    if config.cluster.method == "distances":
        labels = by_distances(matrix, config).labels
    elif config.tree_samples is not None:
        labels = by_dbscan(matrix, indices, distances, config).clustering.labels
    else:
        members = [
            methods.member(indices, distances, len(rows), config, number, resolution, errors=errors)
            for number in range(config.n_members)
        ]
        labels = consensus.of_labels(members, config, budget.budget(config))
    return np.asarray(labels, np.int64)
