"""HDBSCAN: of an embedding, of a matrix of distances, or of a spanning tree that somebody already has.

All three end in the same place: a minimum spanning tree of the mutual reachability graph, and the `hdbscan` library's
own code for what follows. Labels, numbers of clusters included, equal those of `hdbscan.HDBSCAN`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpuclust.compute.spanning_tree import chord_edges, mutual_reachability_tree, sort_edges
from gpuclust.config_sections import HdbscanConfig
from gpuclust.errors import ConfigError, InputError, SelectionError
from gpuclust.types import Array

CUML_SAMPLES = 1023


@dataclass(frozen=True, eq=False)
class Clustering:
    """What HDBSCAN found.

    Attributes
    ----------
    labels : array, (feature,), int32
        Cluster of every feature, from 0; -1 is noise.
    probabilities : array, (feature,), float64
        Strength of membership, 0 (noise) to 1.
    outlier_scores : array, (feature,), float64
        GLOSH, 0 (typical) to 1 (outlying).
    persistence : array, (cluster,), float64
        Stability of every cluster relative to its size and the largest density.
    condensed_tree : array, (edge,), structured
        Fields ``parent``, ``child``, ``lambda_val`` (1 / distance) and ``child_size``, as `hdbscan`'s own.
    notes : tuple of str
        What the user should know.
    """

    labels: Array
    probabilities: Array
    outlier_scores: Array
    persistence: Array
    condensed_tree: Array
    notes: tuple[str, ...] = ()

    @property
    def n_clusters(self) -> int:
        """Number of clusters, noise not counted."""
        return len(self.persistence)


def cluster_embedding(embedding: Array, config: HdbscanConfig, *, backend: str = "cpu") -> Clustering:
    """Cluster an embedding with HDBSCAN on euclidean distances.

    Parameters
    ----------
    embedding : array, (feature, component), float32
    config : HdbscanConfig
    backend : {"cpu", "cuda"}
        With ``cuda`` the spanning tree is cuML's, in float32; what follows is the same code, so outlier scores,
        persistence and the condensed tree, which cuML lacks or has otherwise, are there all the same.

    Returns
    -------
    Clustering

    Raises
    ------
    SelectionError
        If there are too few features for `config`.
    InputError
        If the embedding holds NaN or infinity.

    Notes
    -----
    Exact (Prim's algorithm, no approximate tree) and deterministic: one thread. O(feature² component) time, about
    ``feature * (16 * component + 26 * min_samples + 300)`` bytes.
    """
    _check_size(len(embedding), config)
    return cluster_tree(embedding_tree(embedding, config.min_samples, backend=backend), config)


def embedding_tree(embedding: Array, min_samples: int, *, backend: str = "cpu") -> Array:
    """Return the minimum spanning tree of mutual reachability on an embedding, for `cluster_tree`.

    Settings that differ in anything but `min_samples` share it: ``cluster_tree(embedding_tree(e, m), config)`` has the
    labels of ``cluster_embedding(e, config)``.

    Parameters
    ----------
    embedding : array, (feature, component), float32
    min_samples : int
    backend : {"cpu", "cuda"}
        As of `cluster_embedding`.

    Returns
    -------
    array, (feature - 1, 3), float64

    Raises
    ------
    SelectionError, InputError
        As `cluster_embedding`.
    """
    config = HdbscanConfig(min_cluster_size=2, min_samples=min_samples)
    _check_size(len(embedding), config)
    embedding = _checked(embedding)
    return _tree_cuml(embedding, config) if backend == "cuda" else _tree_hdbscan(embedding, config)


def exact_edges(edges: Array, metric: str | None) -> Array:
    """Give the spanning tree of exact cosine distances the weights of ``hdbscan.metric``.

    Those of ``euclidean`` are the distances of vectors of length 1, the chords (`chord_edges`); all else is cosine.
    """
    return chord_edges(edges) if metric == "euclidean" else edges


def _checked(embedding: Array) -> Array:
    embedding = np.asarray(embedding)
    if embedding.ndim != 2:
        raise InputError(f"the embedding has shape {embedding.shape}; (feature, component) is expected")
    bad = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
    if len(bad):
        raise InputError(
            f"the embedding of {len(bad)} of {len(embedding)} features is NaN or infinite, first in row {bad[0]}: "
            "check the neighbours it was made from"
        )
    return embedding


def _tree_hdbscan(embedding: Array, config: HdbscanConfig) -> Array:
    """Spanning tree of mutual reachability by the `hdbscan` library."""
    import hdbscan

    # Prim's algorithm breaks ties as `spanning` does; Borůvka's does not, and is half to 1.3 times as fast.
    model = hdbscan.HDBSCAN(
        min_cluster_size=config.min_cluster_size,
        min_samples=config.min_samples,
        cluster_selection_epsilon=float(config.cluster_selection_epsilon),
        cluster_selection_method=config.cluster_selection_method,
        metric="euclidean",
        algorithm="prims_kdtree",
        approx_min_span_tree=False,
        core_dist_n_jobs=1,
        gen_min_span_tree=True,
    )
    tree: Array = model.fit(embedding).minimum_spanning_tree_.to_numpy()
    return tree


def _tree_cuml(embedding: Array, config: HdbscanConfig) -> Array:
    """Spanning tree of mutual reachability by cuML: euclidean, min_samples without the feature itself, as here.

    cuML has distances as ``√(|a|² + |b|² - 2ab)`` in float32, which is 0 for points that are near each other and far
    from the origin. So the points are centred, and an edge that still has no length is given that of its ends.
    """
    from cuml.cluster import HDBSCAN

    if config.min_samples > CUML_SAMPLES:
        raise ConfigError(
            f"hdbscan.min_samples is {config.min_samples}, but cuML takes at most {CUML_SAMPLES}: lower it"
        )
    model = HDBSCAN(
        min_cluster_size=config.min_cluster_size,
        min_samples=config.min_samples,  # its default, min_cluster_size, costs memory
        metric="euclidean",
        gen_min_span_tree=True,
        build_algo="brute_force",
        output_type="numpy",
    )
    points = embedding.astype(np.float64)
    points -= points.mean(axis=0)
    model.fit(points.astype(np.float32))
    edges = np.array(model.minimum_spanning_tree_.to_numpy(), np.float64)
    without = edges[:, 2] == 0
    a, b = edges[without, :2].astype(np.int64).T
    edges[without, 2] = np.linalg.norm(points[a] - points[b], axis=1)
    return sort_edges(edges)


def cluster_distances(distances: Array, config: HdbscanConfig, *, chord: bool = False) -> Clustering:
    """Cluster a matrix of distances with exact HDBSCAN.

    Parameters
    ----------
    distances : array, (feature, feature), float32 or float64
        Symmetric, zeros on the diagonal: cosine distances, for example. It is only read.
    config : HdbscanConfig
        `cluster_selection_epsilon` is in the units of the distances clustered on; `metric` is not used.
    chord : bool
        False: the result equals ``hdbscan.HDBSCAN(metric="precomputed")`` on the same matrix.
        True: distances are cosine, and clusters are chosen by the euclidean ones, ``sqrt(2 d)``: the result equals
        ``hdbscan.HDBSCAN(metric="euclidean", algorithm="prims_kdtree")`` on the normalised vectors.

    Returns
    -------
    Clustering

    Raises
    ------
    SelectionError
        If there are too few features for `config`.
    InputError
        If the matrix is not square, not floating point, or holds NaN or infinity.

    Notes
    -----
    Exact and deterministic; O(feature²) time on one core, about 300 bytes a feature beside the matrix.

    Examples
    --------
    >>> import numpy as np
    >>> places = np.array([0.0, 0.1, 0.2, 5.0, 5.1, 5.2])
    >>> config = HdbscanConfig(min_cluster_size=3, min_samples=1)
    >>> cluster_distances(np.abs(np.subtract.outer(places, places)), config).labels.tolist()
    [0, 0, 0, 1, 1, 1]
    """
    distances = np.asarray(distances)
    _check_size(len(distances), config)
    edges = mutual_reachability_tree(distances, config.min_samples)
    return cluster_tree(exact_edges(edges, "euclidean" if chord else "cosine"), config)


def cluster_tree(edges: Array, config: HdbscanConfig) -> Clustering:
    """Cluster from a minimum spanning tree of the mutual reachability graph.

    Parameters
    ----------
    edges : array, (feature - 1, 3), float64
        ``[a, b, weight]``, from light to heavy, such as `spanning_tree.mutual_reachability_tree` returns.
    config : HdbscanConfig
        `min_samples` went into the weights and is not used again; `cluster_selection_epsilon` is in their units.

    Returns
    -------
    Clustering

    Raises
    ------
    SelectionError
        If there are too few features for `config`.
    InputError
        If the edges are no such tree.

    Notes
    -----
    The `hdbscan` library's code for single linkage, condensing and choosing clusters. O(feature log feature) time,
    about 300 bytes a feature. Deterministic.
    """
    edges = np.ascontiguousarray(edges, np.float64)
    if edges.ndim != 2 or edges.shape[1] != 3:
        raise InputError(f"the tree's edges have shape {edges.shape}; (feature - 1, 3) is expected")
    _check_size(len(edges) + 1, config)
    if not np.isfinite(edges).all() or (np.diff(edges[:, 2]) < 0).any():
        raise InputError("the tree's edges must be finite and sorted by weight (see spanning.sort_edges)")
    _check_tree(edges)

    from hdbscan._hdbscan_linkage import label
    from hdbscan.hdbscan_ import _tree_to_labels

    labels, probabilities, persistence, condensed, _ = _tree_to_labels(
        None,
        label(edges),
        config.min_cluster_size,
        config.cluster_selection_method,
        cluster_selection_epsilon=float(config.cluster_selection_epsilon),
    )
    return _clustering(labels, probabilities, persistence, condensed, config)


def _clustering(
    labels: Array, probabilities: Array, persistence: Array, condensed: Array, config: HdbscanConfig
) -> Clustering:
    """Add outlier scores and notes to what the library returned."""
    from hdbscan._hdbscan_tree import outlier_scores

    duplicates = int(np.isinf(condensed["lambda_val"]).sum())
    with np.errstate(invalid="ignore"):
        scores = np.nan_to_num(outlier_scores(condensed), nan=1.0)  # (inf - density) / inf: the limit is 1
    notes = []
    if (labels < 0).all():
        notes.append(
            f"all {len(labels)} features are noise: no two groups of hdbscan.min_cluster_size "
            f"({config.min_cluster_size}) or more features stand apart; try a smaller hdbscan.min_cluster_size or "
            f"hdbscan.min_samples ({config.min_samples}), or a smaller hdbscan.cluster_selection_epsilon "
            f"({config.cluster_selection_epsilon:g})"
        )
    if duplicates:
        notes.append(
            f"{duplicates} features have more than hdbscan.min_samples ({config.min_samples}) exact duplicates: at "
            "infinite density the persistence of every cluster reads 1 and probabilities beside them 0; drop "
            "duplicates (select.min_active_prompts)"
        )
    return Clustering(
        labels=np.asarray(labels, np.int32),
        probabilities=np.asarray(probabilities, np.float64),
        outlier_scores=np.asarray(scores, np.float64),
        persistence=np.asarray(persistence, np.float64),
        condensed_tree=condensed,
        notes=tuple(notes),
    )


def _check_size(size: int, config: HdbscanConfig) -> None:
    """Refuse what the library would silently clip."""
    if size < config.min_cluster_size:
        raise SelectionError(
            f"{size} features cannot hold a cluster of hdbscan.min_cluster_size={config.min_cluster_size}: lower it or "
            "keep more features (select)"
        )
    if size <= config.min_samples:
        raise SelectionError(
            f"{size} features are too few for hdbscan.min_samples={config.min_samples}, which needs "
            f"{config.min_samples} others around each: lower it or keep more features (select)"
        )


def _check_tree(edges: Array) -> None:
    """Refuse edges that do not span: the library reads memory that is not its own, or never returns."""
    import scipy.sparse.csgraph

    size = len(edges) + 1
    ends = edges[:, :2].astype(np.int64)
    if (ends < 0).any() or (ends >= size).any() or (ends != edges[:, :2]).any():
        raise InputError(f"the tree's edges name features outside 0 to {size - 1}")
    graph = scipy.sparse.coo_array((np.ones(size - 1, np.int8), (ends[:, 0], ends[:, 1])), shape=(size, size))
    parts = scipy.sparse.csgraph.connected_components(graph, directed=False)[0]
    if parts != 1:
        raise InputError(f"the tree's {size - 1} edges leave {size} features in {parts} parts; 1 is expected")
