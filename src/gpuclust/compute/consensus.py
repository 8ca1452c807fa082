"""Consensus of clusterings over redrawn neighbours: what another sample of the prompts would have left together.

UMAP and HDBSCAN turn small changes of the neighbours into other clusters, and the neighbours themselves are estimates
from a sample of prompts. A member of the consensus redraws the similarities with their standard error, takes the
nearest anew, and embeds and clusters those with a seed of its own. Two features belong together as often as members
put them into one cluster; average linkage on that share gives the clusters. All of it follows from one list of
neighbours: no pass over the prompts, and no Gram matrix, is needed for a member.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.compute.clustering import Clustering, cluster_tree
from gpuclust.compute.embedding import embed
from gpuclust.config import SIMILARITIES, Config
from gpuclust.errors import MemoryBudgetError
from gpuclust.formatting import gigabytes
from gpuclust.hardware import budget
from gpuclust.types import Array

log = logging.getLogger("gpuclust")


def perturb(
    indices: Array, distances: Array, n_prompts: int, seed: int, tails: float = 1.0, errors: Array | None = None
) -> tuple[Array, Array]:
    """Redraw similarities with their standard error, and sort every feature's candidates anew.

    A similarity r = 1 - d, a cosine or a correlation, over n prompts has the standard error (1 - r²) / √n (Fisher 1915,
    of a correlation of normal variables); both directions of a pair are given the same draw. What has nothing in
    common, a similarity of 0 or less, is not redrawn: chance would make neighbours of features that never fire
    together.

    Parameters
    ----------
    indices, distances : array, (feature, k), int32 and float32
        Nearest neighbours, the feature itself in column 0; more of them than will be used, so that others can move up.
    n_prompts : int
    seed : int
    tails : float
        Times the normal's standard error.
    errors : array, (feature, k), float32, optional
        Standard errors, where they are known better: `association.standard_errors`. `n_prompts` and `tails` then have
        no effect.

    Returns
    -------
    indices, distances : array, (feature, k), int32 and float32
        The same features in another order, ascending, the feature itself in column 0 at distance 0.
    """
    draw = _pair_normals(indices, seed)
    similarity = 1 - distances.astype(np.float64)
    draw[similarity <= 0] = 0
    width = tails * (1 - similarity**2) / np.sqrt(n_prompts) if errors is None else errors
    redrawn = np.maximum(1 - similarity - width * draw, 0)
    redrawn[:, 0] = -1  # stays first
    order = np.argsort(redrawn, axis=1, kind="stable")
    redrawn[:, 0] = 0
    moved = np.take_along_axis(redrawn, order, axis=1).astype(np.float32)
    return np.take_along_axis(indices, order, axis=1).astype(np.int32), moved


def _pair_normals(indices: Array, seed: int) -> Array:
    """Standard normals, a number a pair of features whichever of them lists the other: (feature, k), float64.

    Pairs are counted, and the count is mixed (SplitMix64, Steele et al. 2014): no list of all pairs is sorted.
    """
    from scipy.special import ndtri

    size, own = np.uint64(len(indices)), np.arange(len(indices), dtype=np.uint64)[:, None]
    other = indices.astype(np.uint64)
    start = np.random.default_rng(seed).integers(2**64, dtype=np.uint64)
    bits = (np.minimum(own, other) * size + np.maximum(own, other) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits += start
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    normals: Array = ndtri(((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53)
    return normals


def member_embedding(
    indices: Array, distances: Array, n_prompts: int, config: Config, number: int, backend: str = "cpu",
    errors: Array | None = None,
) -> Array:  # fmt: skip
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
    errors : array, optional
        As of `perturb`.

    Returns
    -------
    array, (feature, component), float32
    """
    umap = config.umap
    if number:
        seed = umap.random_state + number
        if config.metric in SIMILARITIES:
            indices, distances = perturb(indices, distances, n_prompts, seed, errors=errors)
        elif number == 1:
            log.info("consensus: no standard error is known for the metric %s; members differ by seed", config.metric)
        umap = umap.model_copy(update={"random_state": seed, "n_epochs": config.consensus.n_epochs})
    return embed(indices, distances, umap, backend=backend)[0]


def of_trees(trees: Sequence[Array], config: Config, allowed: int | None = None) -> Clustering:
    """Cluster a view of the prompts from the spanning trees of its members: one clustering, or their consensus.

    Parameters
    ----------
    trees : sequence of array, (feature - 1, 3), float64
        A tree a member, as `cluster_tree` takes it.
    config, allowed
        As of `of_members`.
    """
    first, *others = [cluster_tree(edges, config.hdbscan) for edges in trees]
    return of_members(first, [other.labels for other in others], config, allowed)


def of_members(first: Clustering, others: Sequence[Array], config: Config, allowed: int | None = None) -> Clustering:
    """Cluster a view of the prompts: by member 0 where it is the only one, else by `combine`.

    Parameters
    ----------
    first : Clustering
        Of the neighbours as they are.
    others : sequence of array, (feature,), int32
        Labels of the further members.
    config, allowed
        As of `combine`.
    """
    return combine([first.labels, *others], config, allowed) if len(others) else first


def of_labels(members: Sequence[Array], config: Config, allowed: int | None = None) -> Array:
    """Labels alone, of all members of a view in order.

    Parameters
    ----------
    members, config, allowed
        As of `combine`.
    """
    several = len(members) > 1 or config.cluster.method == "communities"  # whose members keep small groups
    return combine(members, config, allowed).labels if several else members[0]


def combine(members: Sequence[Array], config: Config, allowed: int | None = None) -> Clustering:
    """Cluster by how often members put two features into one cluster (evidence accumulation, Fred and Jain 2005).

    The share of members, noise never together, is a similarity; average linkage on it is cut where a cluster's
    features share fewer than `consensus.agreement` of the members on average, and what is smaller than
    `hdbscan.min_cluster_size` then is noise.

    Parameters
    ----------
    members : sequence of array, (feature,), int32
    config : Config
    allowed : int, optional
        Bytes of memory that may be used.

    Returns
    -------
    Clustering
        ``probabilities`` are each feature's mean share with the others of its cluster, ``persistence`` its mean over
        the cluster, ``outlier_scores`` 1 less the largest mean share with any cluster. The condensed tree is of the
        average linkage up to the cut, at distances 1 - share m / (m + 1) of m members: none is certain. Above the
        cut whole clusters are linked by their mean shares, and noise joins last.

    Raises
    ------
    MemoryBudgetError
        If the largest group that is linked at once needs more than `allowed`; before it is linked.

    Notes
    -----
    Deterministic. Two clusters merge before the cut only if some pair between them shares `agreement` of the members,
    so the groups that such pairs connect are linked one by one: 8 bytes an ordered pair of features of the largest. A
    group of more than `budget.LINKED` features is linked in parts, those that pairs in more members connect.
    """
    from hdbscan._hdbscan_tree import condense_tree

    memberships = _memberships(members)
    tree, top = _link(memberships, len(members), config.agreement, allowed)
    labels = _numbered(top, config.hdbscan.min_cluster_size)
    n_clusters = int(labels.max(initial=schema.NOISE)) + 1
    own, largest = _mean_shares(memberships, labels, len(members))
    clustered = labels >= 0
    sizes = np.bincount(labels[clustered], minlength=n_clusters)
    notes = []
    if not n_clusters:
        notes.append(
            f"all {len(labels)} features are noise: no {config.hdbscan.min_cluster_size} of them stay together in "
            f"{config.agreement:g} of {len(members)} clusterings over redrawn neighbours"
        )
    return Clustering(
        labels=labels,
        probabilities=np.clip(own, 0, 1),
        outlier_scores=1 - np.clip(largest, 0, 1),
        persistence=np.clip(np.bincount(labels[clustered], own[clustered], minlength=n_clusters) / sizes, 0, 1),
        condensed_tree=condense_tree(
            _whole(tree, top, labels, memberships, len(members)), config.hdbscan.min_cluster_size
        ),
        notes=tuple(notes),
    )


def why_noise(labels: Array, first: Array) -> Array:
    """Say why each feature is noise where members are HDBSCAN's: none would have it, or they disagree.

    Parameters
    ----------
    labels, first : array, (feature,), int
        Of the consensus, and of member 0.

    Returns
    -------
    array, (feature,), object
        Of `schema.NOISE_REASONS`; None where clustered.
    """
    reasons = np.where(first < 0, schema.SPARSE, schema.DISAGREE).astype(object)
    reasons[labels >= 0] = None
    return reasons


def _memberships(members: Sequence[Array]) -> Any:
    """Which clusters of which member each feature is in, sparse, (feature, all members' clusters), uint8.

    The product with its transpose counts the members that put a pair into one cluster; noise is in none.
    """
    from scipy.sparse import csr_array, hstack

    parts = []
    for labels in members:
        features = np.flatnonzero(labels >= 0)
        places = (features, labels[features])
        shape = (len(labels), int(labels.max(initial=0)) + 1)
        parts.append(csr_array((np.ones(len(features), np.uint8), places), shape=shape))
    return csr_array(hstack(parts, dtype=np.uint8))


def _components(memberships: Any, least: int) -> Array:
    """Number the groups that pairs put together by `least` members or more connect, (feature,), int32."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = memberships.shape[0]
    clusters = memberships.T.tocsr()
    first = np.arange(size)  # of every feature, one feature that it is connected with
    group = first
    pairs = memberships @ np.diff(clusters.indptr)  # of each feature, with those of its clusters
    for rows in _slabs(pairs):
        times = (memberships[rows] @ clusters).tocoo()
        strong = times.data >= least
        start, end = times.row[strong] + rows.start, times.col[strong]
        links = (np.concatenate([start, np.arange(size)]), np.concatenate([end, first]))
        graph = coo_array((np.ones(len(links[0]), np.uint8), links), shape=(size, size))
        _, group = connected_components(graph, directed=False)
        first = np.unique(group, return_index=True)[1][group]
    return group


def _groups(memberships: Any, least: int, n_members: int) -> Array:
    """Number the groups that are linked at once, (feature,), int: what `least` members connect.

    Of more than `budget.LINKED` features, what one member more connects, and so on: clusters that would lie across
    these parts are then found in each of them.
    """
    group = _components(memberships, least)
    while least < n_members and (large := np.flatnonzero(np.bincount(group) > budget.LINKED)).size:
        least += 1
        features = np.flatnonzero(np.isin(group, large))
        log.warning("consensus: %d features that pairs in %d of %d members connect are too many to link at once; "
                    "those that pairs in %d connect are", len(features), least - 1, n_members, least)  # fmt: skip
        group[features] = group.max() + 1 + _components(memberships[features], least)
        group = np.unique(group, return_inverse=True)[1]
    return group


def _link(memberships: Any, n_members: int, agreement: float, allowed: int | None) -> tuple[Array, Array]:
    """Average linkage up to the cut.

    Returns the merges as scipy has them, of distances 1 - share m / (m + 1), and each feature's node at the cut.
    """
    from scipy.cluster.hierarchy import average
    from scipy.spatial.distance import squareform

    size, certainty = memberships.shape[0], n_members / (n_members + 1)
    group = _groups(memberships, int(np.ceil(agreement * n_members - 1e-9)), n_members)
    order = np.argsort(group, kind="stable")
    several = [features for features in np.split(order, np.cumsum(np.bincount(group))[:-1]) if len(features) > 1]
    most = max(map(len, several), default=0)
    needed = budget.consensus(size, n_members, most)
    log.info("consensus: of %d features at most %d are linked at once, %s", size, most, gigabytes(needed))
    if allowed is not None and needed > allowed:
        raise MemoryBudgetError(
            f"the consensus needs {gigabytes(needed)} to link {most} of the {size} features at once, but "
            f"{gigabytes(allowed)} may be used. Raise device.memory or consensus.agreement ({agreement:g}), or "
            "set consensus.members=1"
        )
    merges = [np.empty((0, 4))]
    parent = np.arange(2 * size)
    made = size
    for features in several:
        own = memberships[features]
        times = (own @ own.T).toarray()
        np.fill_diagonal(times, 0)
        distance = 1 - squareform(times, checks=False) * (certainty / n_members)
        del times
        tree = average(distance)
        tree = tree[tree[:, 2] <= 1 - agreement * certainty]
        nodes = np.concatenate([features, np.arange(made, made + len(tree))])
        tree[:, :2] = nodes[tree[:, :2].astype(np.int64)]
        parent[tree[:, :2].astype(np.int64)] = np.arange(made, made + len(tree))[:, None]
        made += len(tree)
        merges.append(tree)
    for node in range(made - 1, -1, -1):  # a parent has a larger number than its children
        parent[node] = parent[parent[node]]
    return np.concatenate(merges), parent[:size]


def _whole(tree: Array, top: Array, labels: Array, memberships: Any, n_members: int) -> Array:
    """Complete the merges: clusters by average linkage of their mean shares, then all the rest at distance 1."""
    from scipy.cluster.hierarchy import average
    from scipy.sparse import csr_array
    from scipy.spatial.distance import squareform

    size, clustered = len(labels), np.flatnonzero(labels >= 0)
    n_clusters = int(labels.max(initial=schema.NOISE)) + 1
    weight = dict(zip(*np.unique(top, return_counts=True), strict=True))
    merges = tree.tolist()

    def merge(a: int, b: int, distance: float) -> int:
        node = size + len(merges)
        weight[node] = weight[a] + weight[b]
        merges.append([a, b, distance, weight[node]])
        return node

    joined: list[int] = []
    if n_clusters:
        nodes = dict(zip(labels[clustered].tolist(), top[clustered].tolist(), strict=True))
        joined = [nodes[c] for c in range(n_clusters)]
    if n_clusters > 1:
        places = (labels[clustered], clustered)
        inside = csr_array((np.ones(len(clustered)), places), shape=(n_clusters, size)) @ memberships
        sizes = np.bincount(labels[clustered])
        share = (inside @ inside.T).toarray()
        share /= np.outer(sizes, sizes)
        distance = 1 - squareform(share, checks=False) / (n_members + 1)
        for a, b, height, _ in average(distance).tolist():
            joined.append(merge(joined[int(a)], joined[int(b)], height))
    known = set(joined)
    last = joined[-1:] + [node for node in weight if node not in known]
    root = last[0]
    for node in last[1:]:
        root = merge(root, node, 1.0)
    return np.array(merges).reshape(-1, 4)


def _mean_shares(memberships: Any, labels: Array, n_members: int) -> tuple[Array, Array]:
    """Each feature's mean share of members with the others of its cluster, 0 for noise, and the largest with any."""
    from scipy.sparse import csr_array

    clustered = np.flatnonzero(labels >= 0)
    sizes = np.bincount(labels[clustered])
    own, largest = np.zeros(len(labels)), np.zeros(len(labels))
    if not len(sizes):
        return own, largest
    places = (clustered, labels[clustered])
    inside = csr_array((np.ones(len(clustered)), places), shape=(len(labels), len(sizes)))
    counts = memberships.T @ inside
    for rows in _slabs(np.full(len(labels), len(sizes))):
        part = memberships[rows]
        at = np.flatnonzero(labels[rows] >= 0)
        mean = (part @ counts).toarray() / n_members
        mine = mean[at, labels[rows][at]] - np.diff(part.indptr)[at] / n_members  # but for the feature itself
        mean /= sizes
        mean[at, labels[rows][at]] = mine / np.maximum(sizes[labels[rows][at]] - 1, 1)
        own[rows.start + at] = mean[at, labels[rows][at]]
        largest[rows] = mean.max(axis=1)
    return own, largest


def _slabs(entries: Array) -> list[slice]:
    """Cut rows of so many entries into slabs of about `budget.CONSENSUS_PAIRS`."""
    slab = (np.cumsum(entries) - 1) // budget.CONSENSUS_PAIRS
    edges = [0, *(np.flatnonzero(np.diff(slab)) + 1).tolist(), len(entries)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _numbered(found: Array, min_cluster_size: int) -> Array:
    """Number the large enough groups from 0 by their first feature; -1 for the others."""
    _, first, inverse, counts = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    large = np.flatnonzero(counts >= min_cluster_size)
    number = np.full(len(counts), -1, np.int32)
    number[large[np.argsort(first[large])]] = np.arange(len(large), dtype=np.int32)
    labels: Array = number[inverse]
    return labels
