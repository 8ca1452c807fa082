"""Communities of the mutual graph of exact neighbours: clusters of features without an embedding.

Features are as similar as their lists of neighbours are (`shared_neighbors`). A feature that is near to everything, a
hub, is among the nearest of thousands of others. So similarities are corrected for hubness: each is lowered by what its
two features have with their nearest on average (CSLS, Conneau et al. 2018). Two features are joined where each is among
the nearest of the other by the corrected similarity, with their similarity as the weight. Communities of that graph by
the Leiden algorithm (Traag et al. 2019) for modularity are the clusters. It runs on the host, on one thread, and is the
same for the same seed.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.compute import shared_neighbors, validity
from gpuclust.compute.consensus import perturb
from gpuclust.config import CORRELATIONS, Config
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

HUBNESS_NEIGHBORS = 10  # nearest whose mean similarity says how much of a hub a feature is
ITERATIONS = 3  # of Leiden: more changed no modularity on real graphs
COMMUNITY = 200  # features a unit of resolution that the search begins with: near the best on real activations
COARSE, FINE = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0), (2**-0.5, 2**0.5)  # of it, then of the best of these
LEAST = 1.0  # resolution: below it all of a graph may be one community, which is found again for nothing
# Times what is in common by chance: of permuted activations groups have 0.9 to 1.1, of real ones 2 to 4
ABOVE_CHANCE = 1.5
# Times the normal's standard error of a similarity: bootstraps of real prompts have 1.25 (below 0.1) to 1.9 (above 0.3)
TAILS = 1.5
HALVED = 2  # redrawn similarities that stand for halves of the prompts have the error of so many times fewer
DRAWS, MANY = 4, 20_000  # redrawn halves, compared by twos; only two of more than MANY features, whose mean is surer
_ONE_AT_A_TIME = threading.Lock()  # NetworKit's seed and number of threads are the process's


def neighbor_graph(indices: Array, distances: Array, config: Config) -> Any:
    """Return the graph whose communities are the clusters.

    Parameters
    ----------
    indices, distances : array, (feature, k), int32 and float32
        Nearest neighbours, as of `mutual_graph`.
    config : Config
        Section communities; its metric.

    Returns
    -------
    sparse array, (feature, feature), float64
    """
    if config.shared_neighbors:
        k = min(max(config.graph_neighbors, indices.shape[1]), len(indices))
        indices, distances = shared_neighbors.nearest(indices, distances, config.shared_neighbors, k)
    return mutual_graph(indices, distances, config.graph_neighbors, config.communities.correct_hubs)


def mutual_graph(indices: Array, distances: Array, n_neighbors: int, corrected: bool = True) -> Any:
    """Join features that are among each other's nearest.

    Parameters
    ----------
    indices, distances : array, (feature, k), int32 and float32
        Nearest neighbours, the feature itself in column 0, and where there are no more; a distance is 1 less the
        similarity. More of them than `n_neighbors` let others move up when hubs are put back.
    n_neighbors : int
        Neighbours of a feature, itself included.
    corrected : bool
        Choose them by similarity corrected for hubness: twice the similarity, less the mean similarity that each of
        the two has with its HUBNESS_NEIGHBORS nearest.

    Returns
    -------
    sparse array, (feature, feature), float64
        Symmetric; similarities, all above 0.
    """
    from scipy import sparse

    near, similarity = indices[:, 1:], 1 - distances[:, 1:].astype(np.float64)
    score = similarity
    if corrected and similarity.shape[1]:
        own = np.sort(similarity, axis=1)[:, -HUBNESS_NEIGHBORS:].mean(axis=1)
        score = 2 * similarity - own[:, None] - own[near]
        score[near == np.arange(len(near))[:, None]] = -np.inf  # stands for none
    best = np.argsort(-score, axis=1, kind="stable")[:, : n_neighbors - 1]
    rows = np.repeat(np.arange(len(indices)), best.shape[1])
    columns = np.take_along_axis(near, best, axis=1).ravel()
    weights = np.maximum(np.take_along_axis(similarity, best, axis=1).ravel(), 0)
    directed = sparse.csr_array((weights, (rows, columns)), shape=(len(indices), len(indices)))
    both = sparse.csr_array(directed.minimum(directed.T))
    both.eliminate_zeros()
    return both


def leiden(graph: Any, resolution: float, seed: int) -> Array:
    """Return communities of a weighted graph that maximise modularity, by NetworKit's Leiden algorithm.

    Parameters
    ----------
    graph : sparse array, (node, node)
        Symmetric weights, above 0.
    resolution : float
        Of modularity (Reichardt and Bornholdt 2006): larger finds more and smaller communities.
    seed : int

    Returns
    -------
    array, (node,), int64
        Numbers from 0; a node without an edge is a community of its own.

    Notes
    -----
    Deterministic under a seed, on one thread: with several the library's result depends on their timing.
    """
    import networkit
    from scipy import sparse

    upper = sparse.triu(graph, 1).tocoo()
    if not upper.nnz:
        return np.arange(graph.shape[0])
    ends = (upper.row.astype(np.uint64), upper.col.astype(np.uint64))
    with _ONE_AT_A_TIME:
        threads = networkit.getMaxNumberOfThreads()
        networkit.setNumberOfThreads(1)
        networkit.setSeed(seed, False)
        try:
            edges = networkit.GraphFromCoo((upper.data, ends), n=graph.shape[0], weighted=True, directed=False)
            found = networkit.community.ParallelLeiden(edges, ITERATIONS, True, resolution)
            found.run()
            labels = np.asarray(found.getPartition().getVector(), np.int64)
        finally:
            networkit.setNumberOfThreads(threads)
    numbers: Array = np.unique(labels, return_inverse=True)[1]
    return numbers


def without_small(labels: Array, least: int) -> Array:
    """Make noise of groups of fewer than `least` features, and number the others by size, the largest first.

    Parameters
    ----------
    labels : array, (feature,), int
        From 0.
    least : int

    Returns
    -------
    array, (feature,), int32
    """
    sizes = np.bincount(labels)
    large = np.flatnonzero(sizes >= least)
    number = np.full(len(sizes), schema.NOISE, np.int32)
    number[large[np.argsort(-sizes[large], kind="stable")]] = np.arange(len(large))
    renamed: Array = number[labels]
    return renamed


def above_chance(labels: Array, indices: Array, distances: Array, n_prompts: int) -> Array:
    """Say which features have more in common with their group than the nearest of independent features have.

    A correlation of independent features over n prompts has the standard deviation 1/√n, whatever their distribution;
    the m nearest of N others then are on average at φ(z) / (m / N) / √n, z being what m of N normal variables exceed. A
    feature that lists m others of its group can have no more in common with them by chance, but for tails longer than
    the normal's.

    Parameters
    ----------
    labels : array, (feature,), int
        From 0; -1 is in no group.
    indices, distances : array, (feature, k), int32 and float32
        Of correlations, partial or not.
    n_prompts : int
        That they are over.

    Returns
    -------
    array, (feature,), bool
        Whether the mean similarity with those of its group that it lists is ABOVE_CHANCE times that, or more.
    """
    from scipy.special import ndtri

    near, similarity = indices[:, 1:], 1 - distances[:, 1:].astype(np.float64)
    together = (labels[:, None] >= 0) & (labels[:, None] == labels[near])
    listed = together.sum(axis=1)
    share = listed / max(len(labels) - 1, 1)
    z = -ndtri(np.clip(share, 1e-300, 1 - 1e-12))
    by_chance = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) / np.maximum(share, 1e-300)
    above: Array = (similarity * together).sum(axis=1) > ABOVE_CHANCE * by_chance * listed / np.sqrt(n_prompts)
    return above


def groups(graph: Any, indices: Array, distances: Array, n_prompts: int, config: Config, resolution: float, seed: int,
           least: int = 2) -> Array:  # fmt: skip
    """Find communities of a graph, and leave out of them what chance may have put there, and what is small.

    Features that have no more in common with their group than chance leaves are taken out of it, then those that have
    not with the features that are left, until none is taken out.

    Parameters
    ----------
    graph : sparse array, (feature, feature)
    indices, distances, n_prompts
        As they were measured, of all pairs that the graph may join.
    config : Config
        Whose metric says whether chance is known: that of correlations is.
    resolution, seed
        As of `leiden`.
    least : int
        Features of a group.

    Returns
    -------
    array, (feature,), int32
        Labels from 0 by size, the largest first; -1 is in no group.
    """
    labels = leiden(graph, resolution, seed)
    known = n_prompts > 0 and config.metric in CORRELATIONS
    while known:
        by_chance = (labels >= 0) & ~above_chance(labels, indices, distances, n_prompts)
        labels[by_chance] = schema.NOISE
        known = bool(by_chance.any())
    alone = np.flatnonzero(labels < 0)
    labels[alone] = len(labels) + alone  # each a community of its own
    return without_small(np.unique(labels, return_inverse=True)[1], least)


def member(
    indices: Array, distances: Array, n_prompts: int, config: Config, number: int, resolution: float,
    errors: Array | None = None,
) -> Array:  # fmt: skip
    """Find communities once: member 0 on the neighbours as they are, the others on redrawn ones (`perturb`).

    Parameters
    ----------
    indices, distances : array, (feature, k), int32 and float32
    n_prompts : int
        Prompts that the neighbours were computed from.
    config : Config
        Section communities; ``umap.random_state``.
    number : int
    resolution : float
    errors : array, (feature, k), float32, optional
        As of `perturb`.

    Returns
    -------
    array, (feature,), int32
        Labels; -1 is a feature that is in no community with another, or that chance may have put there (`groups`).
    """
    seed, near = config.umap.random_state + number, (indices, distances)
    if number:
        near = perturb(indices, distances, n_prompts, seed, TAILS, errors)
    graph = neighbor_graph(*near, config)
    return groups(graph, indices, distances, n_prompts, config, resolution, seed)


def choose_resolution(
    indices: Array, distances: Array, n_prompts: int, config: Config, errors: Array | None = None
) -> tuple[float, dict[float, float]]:
    """Return the resolution whose communities say most of the features that other prompts would say again.

    The similarities are redrawn in pairs, with the error that half the prompts would leave, which stands for two halves
    of the prompts; the resolution is taken at which the clusters that the other finds again say most
    (`validity.information_found_again`; the share of features in such clusters alone is high for few coarse ones). No
    halves of the prompts are looked at: what they say of the clusters stays a test.

    Parameters
    ----------
    indices, distances, n_prompts, config, errors
        As of `member`.

    Returns
    -------
    resolution : float
        ``communities.resolution`` where it is set.
    tried : dict of float to float
        Bits a feature, by the resolutions that were tried.
    """
    if config.communities.resolution is not None:
        return config.communities.resolution, {}
    least, tried = config.hdbscan.min_cluster_size, {}
    fewer, seed = max(n_prompts // HALVED, 1), config.umap.random_state
    wider = None if errors is None else errors * np.sqrt(HALVED)
    graphs = [
        neighbor_graph(*perturb(indices, distances, fewer, seed + 1 + draw, TAILS, wider), config)
        for draw in range(DRAWS if len(indices) <= MANY else 2)
    ]

    def look_at(resolution: float) -> None:
        found = [
            groups(graph, indices, distances, n_prompts, config, resolution, seed + draw, least)
            for draw, graph in enumerate(graphs)
        ]
        pairs = zip(found[::2], found[1::2], strict=True)
        tried[resolution] = float(np.mean([validity.information_found_again(*pair) for pair in pairs]))

    for factors in (COARSE, FINE):
        begin = max(tried, key=lambda one: (tried[one], one)) if tried else len(indices) / COMMUNITY
        for factor in factors:
            look_at(max(begin * factor, LEAST))
    best = max(tried, key=lambda one: (tried[one], one))  # of equal ones the finer
    log.info("communities: resolution %.3g, where clusters that %d redrawn halves find again say %.2f bits a feature",
             best, len(graphs), tried[best])  # fmt: skip
    return best, dict(sorted(tried.items()))


def why_noise(labels: Array, unmoved: Array, indices: Array, distances: Array, config: Config) -> Array:
    """Say why each feature is noise.

    Parameters
    ----------
    labels, unmoved : array, (feature,), int
        Of the consensus, and of member 0.
    indices, distances, config
        As of `member`.

    Returns
    -------
    array, (feature,), object
        Of `schema.NOISE_REASONS`; None where clustered.
    """
    graph = neighbor_graph(indices, distances, config)
    sizes = np.bincount(unmoved[unmoved >= 0], minlength=1)
    small = (unmoved < 0) | (sizes[np.maximum(unmoved, 0)] < config.hdbscan.min_cluster_size)
    reasons = np.where(small, schema.SMALL, schema.DISAGREE).astype(object)
    reasons[unmoved < 0] = schema.CHANCE
    reasons[np.diff(graph.indptr) == 0] = schema.ALONE
    reasons[labels >= 0] = None
    return reasons
