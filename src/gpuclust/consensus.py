"""Consensus of clusterings over redrawn neighbours: what another sample of the prompts would have left together.

UMAP and HDBSCAN turn small changes of the neighbours into other clusters, and the neighbours themselves are estimates
from a sample of prompts. A member of the consensus redraws the similarities with their standard error, takes the
nearest anew, and embeds and clusters those with a seed of its own. Two features belong together as often as members
put them into one cluster; average linkage on that share gives the clusters. All of it follows from one list of
neighbours: no pass over the prompts, and no Gram matrix, is needed for a member.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuclust.cluster import Clustering, cluster_embedding
from gpuclust.config import Config
from gpuclust.embed import embed

Array = NDArray[Any]

log = logging.getLogger("gpuclust")

ROWS = 512  # of pairs looked at together


def perturb(indices: Array, distances: Array, n_prompts: int, seed: int) -> tuple[Array, Array]:
    """Redraw similarities with their standard error, and sort every feature's candidates anew.

    A similarity r = 1 - d, cosine or correlation, over n prompts has the standard error (1 - r²) / √n (Fisher 1915, of
    a correlation of normal variables); both directions of a pair are given the same draw.

    Parameters
    ----------
    indices, distances : array, (feature, k), int32 and float32
        Nearest neighbours, the feature itself in column 0; more of them than will be used, so that others can move up.
    n_prompts : int
    seed : int

    Returns
    -------
    indices, distances : array, (feature, k), int32 and float32
        The same features in another order, ascending, the feature itself in column 0 at distance 0.
    """
    size = len(indices)
    own = np.arange(size)[:, None]
    pairs = np.minimum(own, indices).astype(np.int64) * size + np.maximum(own, indices)
    unique, place = np.unique(pairs, return_inverse=True)
    draw = np.random.default_rng(seed).standard_normal(len(unique))[place.reshape(indices.shape)]
    similarity = 1 - distances.astype(np.float64)
    redrawn = np.maximum(1 - similarity - (1 - similarity**2) / np.sqrt(n_prompts) * draw, 0)
    redrawn[:, 0] = -1  # stays first
    order = np.argsort(redrawn, axis=1, kind="stable")
    redrawn[:, 0] = 0
    moved = np.take_along_axis(redrawn, order, axis=1).astype(np.float32)
    return np.take_along_axis(indices, order, axis=1).astype(np.int32), moved


def member(
    indices: Array, distances: Array, n_prompts: int, config: Config, number: int, backend: str = "cpu"
) -> Array:
    """Cluster once: the labels of a member of the consensus.

    Parameters
    ----------
    indices, distances, n_prompts, config, number, backend
        As in `member_embedding`; section hdbscan applies too.

    Returns
    -------
    array, (feature,), int32
        Labels, -1 noise.
    """
    embedding = member_embedding(indices, distances, n_prompts, config, number, backend)
    return cluster_embedding(embedding, config.hdbscan, backend=backend).labels


def member_embedding(
    indices: Array, distances: Array, n_prompts: int, config: Config, number: int, backend: str = "cpu"
) -> Array:
    """Embed once: member 0 on the neighbours as they are, the others on redrawn ones with seeds of their own.

    Parameters
    ----------
    indices, distances : array, (feature, k), int32 and float32
    n_prompts : int
        Prompts that the neighbours were computed from.
    config : Config
        Sections umap and consensus.
    number : int
    backend : {"cpu", "cuda"}

    Returns
    -------
    array, (feature, component), float32
    """
    umap = config.umap
    if number:
        seed = umap.random_state + number
        if config.metric in ("cosine", "correlation"):
            indices, distances = perturb(indices, distances, n_prompts, seed)
        elif number == 1:
            log.info("consensus: no standard error is known for the metric %s; members differ by seed", config.metric)
        umap = umap.model_copy(update={"random_state": seed, "n_epochs": config.consensus.n_epochs})
    return embed(indices, distances, umap, backend=backend)[0]


def combine(members: Sequence[Array], config: Config) -> Clustering:
    """Cluster by how often members put two features into one cluster (evidence accumulation, Fred and Jain 2005).

    The share of members, noise never together, is a similarity; average linkage on it is cut where a cluster's
    features share fewer than `consensus.agreement` of the members on average, and what is smaller than
    `hdbscan.min_cluster_size` then is noise.

    Parameters
    ----------
    members : sequence of array, (feature,), int32
    config : Config

    Returns
    -------
    Clustering
        ``probabilities`` are each feature's mean share with the others of its cluster, ``persistence`` its mean over
        the cluster, ``outlier_scores`` 1 less the largest mean share with any cluster. The condensed tree is of the
        average linkage, at distances 1 - share m / (m + 1) of m members: none is certain.

    Notes
    -----
    Deterministic. O(feature²) time, and 9 bytes an ordered pair of features.
    """
    from hdbscan._hdbscan_tree import condense_tree
    from scipy.cluster.hierarchy import average, fcluster

    size, n_members = len(members[0]), len(members)
    times = together(members)
    certainty = n_members / (n_members + 1)
    distance = np.empty(size * (size - 1) // 2)
    first = 0
    for i in range(size - 1):  # the upper triangle, row by row, as scipy wants it
        distance[first : first + size - 1 - i] = 1 - times[i, i + 1 :] * (certainty / n_members)
        first += size - 1 - i
    tree = average(distance)
    del distance
    found = fcluster(tree, 1 - config.consensus.agreement * certainty, "distance")
    labels = _numbered(found, config.hdbscan.min_cluster_size)
    n_clusters = int(labels.max(initial=-1)) + 1
    clustered = labels >= 0
    inside = (labels[:, None] == np.arange(n_clusters)).astype(np.float32)
    sizes = inside.sum(axis=0)
    total = np.concatenate([times[rows].astype(np.float32) @ inside for rows in _slabs(size)])
    mean = total.astype(np.float64) / n_members / np.maximum(sizes - inside, 1)
    probabilities = np.where(clustered, mean[np.arange(size), labels] if n_clusters else 0, 0.0)
    persistence = np.bincount(labels[clustered], probabilities[clustered], minlength=n_clusters) / np.maximum(sizes, 1)
    notes = []
    if not n_clusters:
        notes.append(
            f"all {size} features are noise: no {config.hdbscan.min_cluster_size} of them stay together in "
            f"{config.consensus.agreement:g} of {len(members)} clusterings over redrawn neighbours"
        )
    return Clustering(
        labels=labels,
        probabilities=np.clip(probabilities, 0, 1),
        outlier_scores=1 - np.clip(mean.max(axis=1, initial=0), 0, 1),
        persistence=np.clip(persistence, 0, 1),
        condensed_tree=condense_tree(tree, config.hdbscan.min_cluster_size),
        notes=tuple(notes),
    )


def together(members: Sequence[Array]) -> Array:
    """Count the members that put each pair into one cluster, (feature, feature), uint8; 0 on the diagonal."""
    size = len(members[0])
    times = np.zeros((size, size), np.uint8)
    for labels in members:
        for rows in _slabs(size):
            times[rows] += (labels[rows, None] == labels) & (labels[rows, None] >= 0)
    np.fill_diagonal(times, 0)
    return times


def _slabs(size: int) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, size, ROWS)]


def _numbered(found: Array, min_cluster_size: int) -> Array:
    """Number the large enough groups from 0 by their first feature; -1 for the others."""
    _, first, inverse, counts = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    large = np.flatnonzero(counts >= min_cluster_size)
    number = np.full(len(counts), -1, np.int32)
    number[large[np.argsort(first[large])]] = np.arange(len(large), dtype=np.int32)
    labels: Array = number[inverse]
    return labels
