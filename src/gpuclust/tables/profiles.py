"""What clusters do over prompts, computed from blocks of prompts: no array here grows with the number of prompts.

`average` makes a block of (prompt, cluster) from a block of (prompt, feature); `profile` reduces such blocks, in two
passes, to what tables and keywords need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from gpuclust.schema import NOISE
from gpuclust.types import Array

Blocks = Callable[[], Iterable[Array]]

N_MARKING = 30  # most distinctive prompts, whose words and sources describe a cluster


@dataclass(frozen=True)
class ByCluster:
    """The clustered features, cluster by cluster.

    Attributes
    ----------
    columns : int array, (clustered,)
        Feature numbers.
    starts, sizes : int arrays, (cluster,)
        Where in `columns` each cluster begins, and how many features it has.
    """

    columns: Array
    starts: Array
    sizes: Array


def by_cluster(columns: Array, labels: Array) -> ByCluster:
    """Sort features by cluster; noise is left out.

    Parameters
    ----------
    columns, labels : int arrays, (kept,)
        Feature numbers, and their clusters: 0 to the largest, none empty; -1 is noise.
    """
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] > NOISE]
    sizes = np.bincount(labels[order], minlength=int(labels.max(initial=NOISE)) + 1)
    return ByCluster(columns[order], np.cumsum(sizes) - sizes, sizes)


def average(block: Array, clusters: ByCluster) -> Array:
    """Average abs(a) over the features of every cluster.

    Parameters
    ----------
    block : array, (prompt, feature)
        All features of the store.

    Returns
    -------
    array, (prompt, cluster), float64
    """
    if not len(clusters.sizes):
        return np.zeros((len(block), 0))
    magnitude = np.abs(block[:, clusters.columns]).astype(np.float64)
    return np.add.reduceat(magnitude, clusters.starts, axis=1) / clusters.sizes


@dataclass(frozen=True)
class Profile:
    """Clusters over prompts, reduced.

    Attributes
    ----------
    top, marking : int arrays, (rank, cluster)
        Prompts by falling activation, and by falling distinctiveness; ties by number. At most as many as asked for, or
        as there are prompts.
    top_strength, marking_strength : arrays, (rank, cluster), float64
        Their activations.
    correlation : array, (cluster, cluster), float64
        Pearson's, over prompts; NaN for a cluster that does not vary.
    half_correlations : tuple of array, (cluster, cluster), float64
        The same over each half of the prompts; empty without halves.
    """

    top: Array
    top_strength: Array
    marking: Array
    marking_strength: Array
    correlation: Array
    half_correlations: tuple[Array, ...] = ()


class _Products:
    """Means and products of deviations, which merge by the pairwise update of Chan, Golub and LeVeque (1979)."""

    def __init__(self, n_clusters: int) -> None:
        self.n, self.mean, self.products = 0, np.zeros(n_clusters), np.zeros((n_clusters, n_clusters))

    def add(self, block: Array) -> None:
        if not len(block):
            return
        mean = block.mean(axis=0)
        deviation = block - mean
        self._merge(len(block), mean, deviation.T @ deviation)

    def merge(self, other: _Products) -> None:
        if other.n:
            self._merge(other.n, other.mean, other.products)

    def _merge(self, n: int, mean: Array, products: Array) -> None:
        shift, total = mean - self.mean, self.n + n
        self.products += products + np.outer(shift, shift) * (self.n * n / total)
        self.mean = self.mean + shift * (n / total)
        self.n = total

    def spread(self) -> Array:
        """Standard deviations, 0 where they are no more than rounding."""
        spread = np.sqrt(np.diag(self.products) / max(self.n, 1))
        found: Array = np.where(spread > 1e-12 * np.abs(self.mean), spread, 0)
        return found

    def correlation(self) -> Array:
        spread = self.spread()
        norm = np.where(spread > 0, spread * np.sqrt(max(self.n, 1)), np.nan)
        found: Array = self.products / norm[:, None] / norm[None, :]
        return found


def profile(
    blocks: Blocks, n_clusters: int, n_top: int, n_marking: int = N_MARKING, half: Array | None = None
) -> Profile:
    """Reduce activations of clusters to their strongest and most distinctive prompts and their correlations.

    A prompt is distinctive of a cluster by its z-score over prompts, less its mean over clusters: a long prompt is
    strong in nearly every cluster, and says little about any. With one cluster, it is the z-score.

    Parameters
    ----------
    blocks : callable
        Returns all blocks of (prompt, cluster), float64, in order; called twice.
    n_clusters, n_top, n_marking : int
    half : array, (prompt,), int, optional
        0 or 1: of which half each prompt is, where correlations over halves are wanted.

    Returns
    -------
    Profile

    Notes
    -----
    Memory: ``cluster² * 24`` bytes, with halves ``cluster² * 48``, and a few times a block.
    """
    sums = [_Products(n_clusters) for _ in range(1 if half is None else 2)]
    top, first = _Best(n_clusters, n_top), 0
    for block in blocks():
        top.add(block, block, first)
        for number, part in enumerate(sums):
            part.add(block if half is None else block[half[first : first + len(block)] == number])
        first += len(block)
    correlations = tuple(part.correlation() for part in sums[: 0 if half is None else 2])
    whole = sums[0]
    for part in sums[1:]:
        whole.merge(part)
    marking, first, spread = _Best(n_clusters, n_marking), 0, whole.spread()
    for block in blocks():
        marking.add(_relative_strength(block, whole.mean, spread), block, first)
        first += len(block)
    return Profile(top.prompts, top.strength, marking.prompts, marking.strength, whole.correlation(), correlations)


def _relative_strength(block: Array, mean: Array, spread: Array) -> Array:
    """z-scores less their mean over clusters."""
    z = (block - mean) / np.where(spread > 0, spread, 1)
    relative: Array = z - z.mean(axis=1, keepdims=True) if z.shape[1] > 1 else z
    return relative


class _Best:
    """The prompts of largest score of every cluster, over blocks that come in order."""

    def __init__(self, n_clusters: int, n: int) -> None:
        self.n = n
        self.score = np.zeros((0, n_clusters))
        self.strength = np.zeros((0, n_clusters))
        self.prompts = np.zeros((0, n_clusters), np.int64)

    def add(self, score: Array, strength: Array, first: int) -> None:
        number = np.broadcast_to(np.arange(first, first + len(score))[:, None], score.shape)
        score = np.concatenate([self.score, score])
        order = np.argsort(-score, axis=0, kind="stable")[: self.n]
        self.score = np.take_along_axis(score, order, axis=0)
        self.strength = np.take_along_axis(np.concatenate([self.strength, strength]), order, axis=0)
        self.prompts = np.take_along_axis(np.concatenate([self.prompts, number]), order, axis=0)
