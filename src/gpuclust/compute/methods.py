"""The clustering methods behind one function: a member of a consensus, and all members of a view of the prompts."""

from __future__ import annotations

import numpy as np

from gpuclust.compute import communities, consensus, dbscan
from gpuclust.compute.clustering import Clustering, cluster_embedding
from gpuclust.config import Config
from gpuclust.types import Array


def member(
    indices: Array,
    distances: Array,
    n_prompts: int,
    config: Config,
    number: int,
    resolution: float | None = None,
    backend: str = "cpu",
    errors: Array | None = None,
) -> Array:
    """Cluster once: the labels of a member of the consensus, of a method that has members.

    Parameters
    ----------
    indices, distances : array, (feature, k), int32 and float32
    n_prompts, number : int
        As of `consensus.member_embedding`.
    config : Config
    resolution : float, optional
        Of communities; default what `communities.choose_resolution` says.
    backend : {"cpu", "cuda"}
        Of UMAP, HDBSCAN and DBSCAN; communities are found on the host.
    errors : array, (feature, k), float32, optional
        As of `consensus.perturb`.

    Returns
    -------
    array, (feature,), int32
        Labels, -1 noise.
    """
    if config.cluster.method == "communities":
        if resolution is None:
            resolution, _ = communities.choose_resolution(indices, distances, n_prompts, config, errors)
        return communities.member(indices, distances, n_prompts, config, number, resolution, errors)
    embedding = consensus.member_embedding(indices, distances, n_prompts, config, number, backend, errors)
    if config.cluster.method == "dbscan":
        return dbscan.of_embedding(embedding, config, backend).clustering.labels
    return cluster_embedding(embedding, config.hdbscan, backend=backend).labels


def of_communities(
    indices: Array,
    distances: Array,
    n_prompts: int,
    config: Config,
    allowed: int | None = None,
    resolution: float | None = None,
    errors: Array | None = None,
) -> tuple[Clustering, Array]:
    """Cluster a view of the prompts by communities: their consensus, and the labels of its members.

    Parameters
    ----------
    indices, distances, n_prompts, config, resolution, errors
        As of `member`.
    allowed : int, optional
        As of `consensus.combine`.

    Returns
    -------
    Clustering
    members : array, (member, feature), int32
    """
    if resolution is None:
        resolution, _ = communities.choose_resolution(indices, distances, n_prompts, config, errors)
    members = [
        communities.member(indices, distances, n_prompts, config, number, resolution, errors)
        for number in range(config.n_members)
    ]
    return consensus.combine(members, config, allowed), np.stack(members)
