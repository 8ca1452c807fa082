"""DBSCAN (Ester et al. 1996): one density for all clusters, on exact distances or on an embedding.

A feature is a *core* where at least ``min_samples`` features, itself among them, lie within eps. Cores within eps of
each other belong together. On exact distances that is the spanning tree of mutual reachability cut at eps, exact with
nothing but the tree and the nearest neighbours in memory (Campello et al. 2015); on an embedding it is scikit-learn's
DBSCAN, or cuML's. What is no core and has a core within eps, a *border* feature, is put with the nearest of them, ties
by feature number: which one other programs take depends on the order of the features. All else is noise, and so are
groups of fewer than ``hdbscan.min_cluster_size`` features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.compute.clustering import Clustering, cluster_tree
from gpuclust.compute.communities import without_small
from gpuclust.config import Config
from gpuclust.errors import InputError, MemoryBudgetError, SelectionError
from gpuclust.formatting import gigabytes
from gpuclust.types import Array

UNRELATED = 1.0  # cosine and correlation distance of features that have nothing in common
LEAST = 1e-6  # eps: below it distances are rounding
GIANT = 0.5  # share of the features in one cluster that is worth a note
HELD = 3 * 8  # bytes a pair within eps: scikit-learn lists the neighbours of all features at once, and joins the lists


@dataclass(frozen=True, eq=False)
class Found:
    """What DBSCAN found.

    Attributes
    ----------
    clustering : Clustering
        ``probabilities`` are 1 for cores, and for border features the features within eps over ``min_samples``;
        ``outlier_scores`` 1 less that number for all, noise included; ``persistence`` its mean over the cluster. The
        condensed tree is HDBSCAN's of the exact distances, and empty of an embedding.
    eps : float or None
        None where none could be chosen: no feature has so many others that it has anything in common with.
    reasons : array, (feature,), object
        Of `schema.NOISE_REASONS`; None where clustered.
    """

    clustering: Clustering
    eps: float | None
    reasons: Array


def elbow(distances: Array) -> float | None:
    """Return the distance at which the sorted distances to the k-th nearest bend upwards.

    Up to there features have company, beyond it they are ever more alone (the k-distance plot of Ester et al. 1996).
    The bend is where the curve, scaled to the unit square, lies farthest below the chord from its first to its last
    point (Satopää et al. 2011).

    Parameters
    ----------
    distances : array, (feature,), float
        To the k-th nearest feature, in any order.

    Returns
    -------
    float or None
        A distance that is there, at most a step of float32 above it; None of no distances.

    Examples
    --------
    >>> import numpy as np
    >>> round(elbow(np.array([0.1, 0.9, 0.2, 0.11, 0.12, 0.8])), 6)
    0.2
    """
    curve = np.sort(np.asarray(distances, np.float64))
    if not len(curve):
        return None
    share = np.linspace(0, 1, len(curve))
    height = (curve - curve[0]) / max(curve[-1] - curve[0], np.finfo(np.float64).tiny)
    at = len(curve) - 1 - int(np.argmax((share - height)[::-1]))  # the last: where nothing bends, none is alone
    # A step further: the pair at the elbow is within, however a library sums its distance
    return max(float(np.nextafter(np.float32(curve[at]), np.float32(np.inf))), LEAST)


def of_tree(edges: Array, indices: Array, distances: Array, config: Config) -> Found:
    """Cluster by exact distances between features.

    Parameters
    ----------
    edges : array, (feature - 1, 3), float64
        Spanning tree of mutual reachability with ``config.tree_samples``.
    indices, distances : array, (feature, k), int32 and float32
        Nearest neighbours by the same distances, the feature itself in column 0; at least ``dbscan.min_samples``.
    config : Config
        Section dbscan; ``hdbscan.min_cluster_size``.

    Returns
    -------
    Found

    Raises
    ------
    SelectionError
        If there are too few features.
    InputError
        If the tree and the neighbours are not of the same features.

    Notes
    -----
    Exact: the core distance is in the list of neighbours, edges of the tree no longer than eps join cores only, and a
    feature that is no core has all that lies within eps among its ``min_samples`` nearest. O(feature) beside the tree.
    """
    if len(edges) + 1 != len(indices):
        raise InputError(f"the tree has {len(edges) + 1} features, the neighbours are of {len(indices)}")
    k_distances = _k_distances(distances, config)
    eps = config.dbscan.eps or elbow(k_distances[k_distances < UNRELATED])
    core = distances[:, config.dbscan.min_samples - 1] <= (-1.0 if eps is None else eps)
    groups = np.full(len(indices), schema.NOISE)
    groups[core] = _joined(edges, eps or 0.0, len(indices))[core]
    condensed = cluster_tree(edges, config.hdbscan).condensed_tree
    return _found(groups, core, indices, distances, eps, condensed, config)


def of_embedding(embedding: Array, config: Config, backend: str = "cpu", allowed: int | None = None) -> Found:
    """Cluster an embedding by euclidean distances.

    Parameters
    ----------
    embedding : array, (feature, component), float32
    config : Config
        As in `of_tree`.
    backend : {"cpu", "cuda"}
        With ``cuda`` cores and what joins them are cuML's, in float32.
    allowed : int, optional
        Bytes of host memory that may be used.

    Returns
    -------
    Found

    Raises
    ------
    SelectionError
        If there are too few features.
    MemoryBudgetError
        If so many pairs lie within eps that scikit-learn's lists of them need more than `allowed`.

    Notes
    -----
    Deterministic. O(feature log feature) time where few features lie within eps of each other.
    """
    from sklearn.neighbors import KDTree

    points = np.asarray(embedding, np.float64)
    points = points - points.mean(axis=0)  # cuML's distances lose digits far from the origin
    least = config.dbscan.min_samples
    _refuse_few(len(points), config)
    tree = KDTree(points)
    distances, indices = tree.query(points, k=max(least, 2))
    eps = config.dbscan.eps or elbow(_k_distances(distances, config))
    assert eps is not None
    if backend == "cuda":
        core, labels = _by_cuml(points, eps, least)
    else:
        if allowed is not None:
            pairs = int(tree.query_radius(points, eps, count_only=True).sum())
            _refuse_large(pairs * HELD, allowed, eps)
        core, labels = _by_sklearn(points, eps, least)
    groups = np.where(core, labels, schema.NOISE)
    return _found(groups, core, indices, distances, eps, _no_tree(), config)


def with_eps(config: Config, eps: float | None) -> Config:
    """The same with an eps that was chosen, if one was: on all prompts, for parts of them and for permuted activations.

    Parameters
    ----------
    config : Config
    eps : float or None
    """
    if eps is None:
        return config
    return config.model_copy(update={"dbscan": config.dbscan.model_copy(update={"eps": eps})})


def _k_distances(distances: Array, config: Config) -> Array:
    """Distance to the min_samples-th nearest feature, itself counted as one, but to another at least, (feature,)."""
    least = config.dbscan.min_samples
    _refuse_few(len(distances), config)
    if distances.shape[1] < max(least, 2):
        raise InputError(
            f"the neighbours are {distances.shape[1]} a feature, itself included, but dbscan.min_samples is {least}: "
            "compute more (neighbors.n_neighbors)"
        )
    column: Array = distances[:, max(least, 2) - 1]
    return column


def _refuse_few(size: int, config: Config) -> None:
    if size < max(config.dbscan.min_samples, 2):
        raise SelectionError(
            f"{size} features are fewer than dbscan.min_samples ({config.dbscan.min_samples}), so that none can be a "
            "core: lower dbscan.min_samples, or keep more features (select)"
        )


def _refuse_large(needed: int, allowed: int, eps: float) -> None:
    if needed > allowed:
        raise MemoryBudgetError(
            f"DBSCAN on the embedding needs {gigabytes(needed)} for the pairs within dbscan.eps ({eps:.4g}), but "
            f"{gigabytes(allowed)} may be used. Lower dbscan.eps, raise device.memory, or set dbscan.on=distances"
        )


def _joined(edges: Array, eps: float, size: int) -> Array:
    """Number the components that edges no longer than eps make, (feature,), int32."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    near = edges[edges[:, 2] <= eps, :2].astype(np.int64)
    graph = coo_array((np.ones(len(near), np.int8), (near[:, 0], near[:, 1])), shape=(size, size))
    component: Array = connected_components(graph, directed=False)[1]
    return component


def _by_sklearn(points: Array, eps: float, min_samples: int) -> tuple[Array, Array]:
    from sklearn.cluster import DBSCAN

    return _cores(DBSCAN(eps=eps, min_samples=min_samples, algorithm="kd_tree").fit(points))


def _by_cuml(points: Array, eps: float, min_samples: int) -> tuple[Array, Array]:
    from cuml.cluster import DBSCAN

    model = DBSCAN(eps=eps, min_samples=min_samples, metric="euclidean", output_type="numpy")
    model.fit(points.astype(np.float32))
    return _cores(model)


def _cores(model: Any) -> tuple[Array, Array]:
    """Which features are cores, (feature,), bool, and the labels of a fitted DBSCAN."""
    labels = np.asarray(model.labels_)
    core = np.zeros(len(labels), bool)
    indices = np.asarray(model.core_sample_indices_, np.int64)
    core[indices[indices >= 0]] = True  # libcuml fills the rest with -1
    return core, labels


def _found(
    groups: Array, core: Array, indices: Array, distances: Array, eps: float | None, condensed: Array, config: Config
) -> Found:
    """Put border features with their nearest core, drop small groups, and say what is left out and why."""
    least = config.dbscan.min_samples
    within = distances[:, :least] <= (-1.0 if eps is None else eps)
    beside = within & core[indices[:, :least]]
    border = np.flatnonzero(~core & beside.any(axis=1))
    groups = groups.copy()
    groups[border] = groups[indices[border, np.argmax(beside[border], axis=1)]]
    labels = np.full(len(groups), schema.NOISE, np.int32)
    grouped = groups >= 0
    labels[grouped] = without_small(np.unique(groups[grouped], return_inverse=True)[1], config.hdbscan.min_cluster_size)
    clustered = labels >= 0
    share = within.sum(axis=1) / least
    reasons = np.where(grouped, schema.SMALL, schema.SPARSE).astype(object)
    reasons[clustered] = None
    sizes = np.bincount(labels[clustered])
    notes = _notes(sizes, core, _k_distances(distances, config), eps, config)
    clustering = Clustering(
        labels=labels,
        probabilities=np.where(clustered, share, 0.0),
        outlier_scores=1 - share,
        persistence=np.bincount(labels[clustered], share[clustered]) / sizes,
        condensed_tree=condensed,
        notes=notes,
    )
    return Found(clustering, eps, reasons)


def _notes(sizes: Array, core: Array, k_distances: Array, eps: float | None, config: Config) -> tuple[str, ...]:
    """What to know where one density says nothing: everything is noise, or nearly everything one cluster."""
    least, chosen, on = config.dbscan.min_samples, config.dbscan.eps is None, config.dbscan.on
    if eps is None:
        return (
            f"all {len(core)} features are noise: none has {least - 1} others (dbscan.min_samples {least}, itself "
            "counted) that it has anything in common with; lower dbscan.min_samples, or take more prompts",
        )
    said = f"dbscan.eps {eps:.4g}" + (" (the elbow)" if chosen else "")
    tenth, half = np.quantile(k_distances, [0.1, 0.5])
    reach = f"a tenth of the features are cores at {tenth:.4g}, half at {half:.4g}"
    if not len(sizes):
        return (
            f"all {len(core)} features are noise at {said} on the {on}: {int(core.sum())} are cores "
            f"(dbscan.min_samples {least}), in groups of fewer than hdbscan.min_cluster_size "
            f"({config.hdbscan.min_cluster_size}). Raise dbscan.eps or lower dbscan.min_samples; {reach}",
        )
    if sizes[0] > GIANT * len(core):
        return (
            f"one cluster holds {sizes[0] / len(core):.0%} of the features at {said} on the {on}: there is no one "
            f"density that parts them. Lower dbscan.eps, or set another cluster.method; {reach}",
        )
    return ()


def _no_tree() -> Array:
    """A condensed tree without edges."""
    fields = [("parent", np.intp), ("child", np.intp), ("lambda_val", np.float64), ("child_size", np.intp)]
    return np.empty(0, fields)
