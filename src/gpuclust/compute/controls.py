"""Controls: random sets and clusterings of features that fire as often as those of clusters."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclust.schema import NOISE
from gpuclust.types import Array

STRATA = 20  # of the number of active prompts, for random sets
FEWEST = 40  # features of a stratum, next to one another by how often they fire, that are exchanged
OWN = 0.1  # share of its controls' features that may be a cluster's own


def matched_sets(labels: Array, degree: Array, draws: int, seed: int) -> Any:
    """Draw random sets of features that match each cluster in size and in how many prompts its features fire on.

    Every feature is replaced by a feature of its stratum of `degree`, of STRATA with equal numbers of features.

    Parameters
    ----------
    labels : array, (feature,), int
    degree : array, (feature,), int
        Prompts on which each feature fires.
    draws : int
        Sets of a cluster.
    seed : int

    Returns
    -------
    sparse array, (feature, cluster times draw), float64
        Draws of cluster 0 first. A feature may be drawn twice; it counts twice.
    """
    from scipy import sparse

    random = np.random.default_rng(seed)
    rank = np.empty(len(degree), np.int64)
    rank[np.argsort(degree, kind="stable")] = np.arange(len(degree))
    stratum = rank * STRATA // len(degree)
    by_stratum = [np.flatnonzero(stratum == s) for s in range(STRATA)]
    rows, columns = [], []
    for cluster in range(int(labels.max(initial=NOISE)) + 1):
        for s, count in zip(*np.unique(stratum[labels == cluster], return_counts=True), strict=True):
            rows.append(by_stratum[s][_places(random, len(by_stratum[s]), int(count), draws)].ravel())
            columns.append(np.repeat(cluster * draws + np.arange(draws), count))
    shape = (len(labels), (int(labels.max(initial=NOISE)) + 1) * draws)
    if not rows:
        return sparse.csr_array(shape)
    place = (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_array((np.ones(len(place[0])), place), shape=shape)


def exchanged(labels: Array, degree: Array, draws: int, seed: int) -> Array:
    """Draw permutations of the features, for clusterings of the same sizes whose features fire as often.

    A feature is exchanged with one of those next to it by `degree`: they are put in order and cut into strata of
    FEWEST. None gets one of its own cluster, as far as its stratum has others (`kept_share` says how far).

    Parameters
    ----------
    labels : array, (feature,), int
    degree : array, (feature,), int
        Rows on which each feature fires.
    draws, seed : int

    Returns
    -------
    array, (draw, feature), int64
        ``labels[found]`` are the labels of controls; so are those of other clusterings of the same features, in which
        what a control's features have in common with theirs is what the clusters' have.
    """
    random = np.random.default_rng(seed)
    order = np.argsort(degree, kind="stable")
    found = np.empty((draws, len(labels)), np.int64)
    for one in found:
        for own in np.array_split(order, max(1, len(order) // FEWEST)):
            one[own] = own[_apart(labels[own], random)]
    return found


def _apart(labels: Array, random: np.random.Generator) -> Array:
    """Permute places so that none but noise gets a label that it has, if it can be."""
    found: Array = random.permutation(len(labels))
    for at in np.flatnonzero((labels[found] == labels) & (labels >= 0)):
        given = labels[found]
        if given[at] == labels[at] and len(others := np.flatnonzero((labels != given[at]) & (given != labels[at]))):
            other = random.choice(others)
            found[[at, other]] = found[[other, at]]
    return found


def kept_share(labels: Array, permutations: Array) -> Array:
    """Return what share of its controls' features are a cluster's own, (cluster,), float64.

    Parameters
    ----------
    labels : array, (feature,), int
    permutations : array, (draw, feature), int
        Of `exchanged`.
    """
    n = int(labels.max(initial=NOISE)) + 1
    same = ((labels[permutations] == labels) & (labels >= 0)).mean(axis=0)
    inside = labels >= 0
    share: Array = np.bincount(labels[inside], same[inside], minlength=n) / np.bincount(labels[inside], minlength=n)
    return share


def _places(random: np.random.Generator, n: int, count: int, draws: int) -> Array:
    """Draw `count` of n places `draws` times, (draw, place); each once in a draw where there are so many."""
    if count > n:
        return random.integers(n, size=(draws, count))
    if count * count > n:
        return random.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)[:, :count]
    places = random.integers(n, size=(draws, count))
    while (twice := (np.diff(np.sort(places, axis=1), axis=1) == 0).any(axis=1)).any():
        places[twice] = random.integers(n, size=(int(twice.sum()), count))
    return places
