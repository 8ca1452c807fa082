"""UMAP of a graph of nearest neighbours, and the layout that it starts from.

`umap.UMAP` wants the vectors even where the neighbours are given: it reads `X` when neighbours have the wrong shape
(with only a warning), below 4,096 rows it does not trim surplus ones, and its spectral start reads `X` when the graph
falls apart. So this module calls the two functions below that class, which never see vectors, and brings its own
start: the same array for every backend.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np

from gpuclust.config_sections import UmapConfig
from gpuclust.errors import ConfigError, InputError, SelectionError
from gpuclust.hardware import jit
from gpuclust.types import Array

OVERSAMPLE = 10  # vectors iterated beyond those wanted
ROUNDS, DEGREE = 3, 20  # restarts of the subspace iteration, and the degree of its polynomial
CUML_SERIAL = 512  # components that cuML's serial epochs take
REACH, JITTER = 10.0, 1e-4  # largest coordinate of the start, and its noise: umap-learn's own
# Threads of BLAS are the process's, and one of numba's threading layers does not run parallel kernels side by side
_ONE_AT_A_TIME = threading.Lock()


def embed(
    indices: Array, distances: Array, config: UmapConfig, n_components: int | None = None, *, backend: str = "cpu"
) -> tuple[Array, tuple[str, ...]]:
    """Embed features by their nearest neighbours with UMAP.

    Parameters
    ----------
    indices : array, (feature, k), int32
        Nearest neighbours of every feature, nearest first; column 0 is the feature itself.
    distances : array, (feature, k), float32
        Their distances, ascending; column 0 is 0.
    config : UmapConfig
        `n_neighbors` of the k columns are used.
    n_components : int, optional
        Dimensions of the embedding; default `config.n_components`.
    backend : {"cpu", "cuda"}
        umap-learn, or cuML's UMAP: the same neighbours, start and settings, but another optimiser, so coordinates
        differ.

    Returns
    -------
    embedding : array, (feature, n_components), float32
    notes : tuple of str
        What the user should know: the graph falls apart.

    Raises
    ------
    ConfigError
        If there are fewer columns than `config.n_neighbors`, or `config.min_dist` is above 1.
    SelectionError
        If there are not more features than `config.n_neighbors`.
    InputError
        If the arrays do not fit together or break the promises above.

    Notes
    -----
    Deterministic: one thread, seeded; two calls agree in every bit. Memory, beside the neighbours, about
    ``feature * (120 * n_neighbors + 56 * (n_components + 10))`` bytes. The first call in a process compiles UMAP's
    kernels: some 10 seconds.
    """
    indices, distances = _checked(indices, distances, config)
    components = config.n_components if n_components is None else n_components
    with _ONE_AT_A_TIME:
        start = initial_layout(indices, distances, components, config.random_state)

    import scipy.sparse.csgraph

    layout = _umap_cuml if backend == "cuda" else _umap_learn
    embedding = layout(indices, distances, start, config)
    if not np.isfinite(embedding).all():
        raise InputError(f"UMAP ({backend}) gave coordinates that are not finite: check the neighbours' distances")
    parts, part = scipy.sparse.csgraph.connected_components(_weights(indices, distances), directed=False)
    return embedding, _note_parts(int(parts), part, config)


def _umap_learn(indices: Array, distances: Array, start: Array, config: UmapConfig) -> Array:
    import numba

    jit.keep_kernels()
    _prepare_umap()
    from umap.umap_ import find_ab_params, fuzzy_simplicial_set, simplicial_set_embedding

    random = np.random.RandomState(config.random_state)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)  # UMAP's kernels sum in parallel, in no fixed order
    try:
        with _ONE_AT_A_TIME:
            graph, _, _ = fuzzy_simplicial_set(
                np.empty((len(indices), 1), np.float32),  # only its length is read
                config.n_neighbors,
                random,
                "precomputed",
                knn_indices=indices,
                knn_dists=distances,
            )
        a, b = find_ab_params(1.0, config.min_dist)
        embedding, _ = simplicial_set_embedding(
            data=None,
            graph=graph,
            n_components=start.shape[1],
            initial_alpha=1.0,
            a=a,
            b=b,
            gamma=1.0,
            negative_sample_rate=5,
            n_epochs=config.n_epochs,
            init=start,
            random_state=random,
            metric="precomputed",
            metric_kwds={},
            densmap=False,
            densmap_kwds={},
            output_dens=False,
        )
    finally:
        numba.set_num_threads(threads)
    return np.asarray(embedding, np.float32)


@cache
def _prepare_umap() -> None:
    from umap import layouts, umap_

    names = [(umap_, "smooth_knn_dist"), (umap_, "compute_membership_strengths")]
    names += [(layouts, "_nb_optimize_layout_euclidean_single_epoch")]
    jit.prepare(getattr(module, name, None) for module, name in names)


def _umap_cuml(indices: Array, distances: Array, start: Array, config: UmapConfig) -> Array:
    """cuML's UMAP of the same graph. It checks only that each row names itself: order and column 0 are ours.

    It takes a start as it is, where umap-learn stretches every column to 0 to 10: so does this.
    """
    from cuml.manifold import UMAP

    low, high = start.min(axis=0), start.max(axis=0)
    start = (10.0 * (start - low) / (high - low)).astype(np.float32)

    model = UMAP(
        n_neighbors=config.n_neighbors,
        n_components=start.shape[1],
        n_epochs=config.n_epochs,
        min_dist=config.min_dist,
        spread=1.0,
        negative_sample_rate=5,
        init=start,  # its spectral start falls back to a random one with only a log line
        force_serial_epochs=start.shape[1] <= CUML_SERIAL,  # its default for a spectral start: no outliers
        random_state=config.random_state,
        build_algo="brute_force_knn",  # the only one that takes a graph as it is
        output_type="numpy",
    )
    placeholder = np.zeros((len(indices), 1), np.float32)  # only its length is read
    graph = (indices.astype(np.int64), distances)
    return np.asarray(model.fit_transform(placeholder, knn_graph=graph), np.float32)


def initial_layout(indices: Array, distances: Array, n_components: int, random_state: int) -> Array:
    """Lay features out by the slow modes of their neighbour graph, for UMAP to start from.

    Every connected part of the graph is laid out by itself: leading eigenvectors of ``D^-1/2 W D^-1/2`` without
    the trivial one, where ``W`` is the symmetrised graph. Several parts are set apart at random and scaled to
    half the distance to the nearest other one (as umap-learn does around its own centres). All is then scaled to at
    most 10, with noise of 1e-4, which also fills dimensions that a small part does not have.

    Parameters
    ----------
    indices, distances : array, (feature, k), int32 and float32
        As in `embed`.
    n_components, random_state : int
        Dimensions, and the seed.

    Returns
    -------
    array, (feature, n_components), float32

    Notes
    -----
    Deterministic: seeded, and linear algebra on one thread. Parts too large for dense eigenvectors get 60 products
    with the graph, Chebyshev-filtered: an approximation, never a failure to converge. Memory as in `embed`.
    """
    import scipy.sparse.csgraph
    import scipy.spatial
    from threadpoolctl import threadpool_limits

    random = np.random.default_rng(random_state)
    weights = _weights(indices, distances)
    parts, part = scipy.sparse.csgraph.connected_components(weights, directed=False)
    layout = np.zeros((len(indices), n_components))
    with threadpool_limits(1, user_api="blas"):
        if parts == 1:
            layout[:] = _modes(weights, n_components, random)
        else:
            centres = random.standard_normal((parts, n_components))
            gaps = scipy.spatial.KDTree(centres).query(centres, k=2)[0][:, 1]
            order = np.argsort(part, kind="stable")
            for number, own in enumerate(np.split(order, np.cumsum(np.bincount(part))[:-1])):
                modes = _modes(weights[own][:, own], n_components, random)
                layout[own] = centres[number] + modes * (gaps[number] / 2)
    layout *= REACH / max(float(np.abs(layout).max()), np.finfo(np.float64).tiny)
    noise: Array = random.normal(scale=JITTER, size=layout.shape)
    return (layout + noise).astype(np.float32)


def _weights(indices: Array, distances: Array) -> Any:
    """Symmetric sparse affinities: 1 at the nearest neighbour, decaying on each feature's own scale."""
    import scipy.sparse

    size, k = indices.shape
    beyond = distances[:, 1:].astype(np.float64) - distances[:, 1:2]
    scale = np.maximum(beyond.mean(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    affinity = np.exp(-beyond / scale)
    rows = np.repeat(np.arange(size), k - 1)
    graph = scipy.sparse.csr_array((affinity.ravel(), (rows, indices[:, 1:].ravel())), shape=(size, size))
    return graph.maximum(graph.T).tocsr()


def _modes(weights: Any, n_components: int, random: np.random.Generator) -> Array:
    """Leading nontrivial modes of a connected graph, at most 1 in size; zeros where it has too few."""
    import scipy.sparse

    size = weights.shape[0]
    modes = np.zeros((size, n_components))
    if size <= 2:
        modes[:, 0] = np.arange(size)
        return modes
    degree = np.asarray(weights.sum(axis=1)).ravel()
    trivial = np.sqrt(degree / degree.sum())
    root = scipy.sparse.dia_array((1 / np.sqrt(degree)[None], [0]), shape=(size, size))
    walk = (root @ weights @ root).tocsr()
    width = n_components + OVERSAMPLE
    if size <= 2 * width:
        vectors = np.linalg.eigh(walk.toarray() - np.outer(trivial, trivial) * 3)[1][:, :0:-1]
    else:
        vectors = _leading(walk, trivial, random.standard_normal((size, width)))
    vectors = vectors[:, :n_components]
    found = vectors.shape[1]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(found)])
    modes[:, :found] = vectors * signs / np.abs(vectors).max()
    return modes


def _leading(walk: Any, trivial: Array, basis: Array) -> Array:
    """Turn a random basis into leading eigenvectors, largest first, by Chebyshev-filtered subspace iteration."""
    bound = 0.0
    for _ in range(ROUNDS):
        # The polynomial is small on [-1, bound], the unwanted part of the spectrum, and grows steeply above it.
        centre, half = (bound - 1) / 2, (bound + 1) / 2
        before, now = basis, (walk @ basis - centre * basis) / half
        for _ in range(DEGREE - 1):
            before, now = now, (walk @ now - centre * now) * (2 / half) - before
        now -= np.outer(trivial, trivial @ now)
        basis = np.linalg.qr(now)[0]
        values, turn = np.linalg.eigh(basis.T @ (walk @ basis))
        basis = basis @ turn[:, ::-1]
        bound = float(np.clip(values[0], -0.9, 0.999))
    return basis


def _checked(indices: Array, distances: Array, config: UmapConfig) -> tuple[Array, Array]:
    """Trim to `n_neighbors` columns and refuse what breaks the contract."""
    k = config.n_neighbors
    if indices.ndim != 2 or indices.shape != distances.shape:
        raise InputError(
            f"neighbour indices {indices.shape} and distances {distances.shape} must be two (feature, k) arrays alike"
        )
    if config.min_dist > 1:
        raise ConfigError(f"umap.min_dist is {config.min_dist:g}: at most 1, the spread of the embedding, is possible")
    size, columns = indices.shape
    if columns < k:
        raise ConfigError(
            f"umap.n_neighbors is {k}, but only {columns} neighbours a feature were computed: raise "
            f"neighbors.n_neighbors to {k} or lower umap.n_neighbors to {columns}"
        )
    if size <= k:
        raise SelectionError(
            f"{size} features are too few for umap.n_neighbors={k}: lower umap.n_neighbors below {size} or keep more "
            "features (select)"
        )
    near = np.ascontiguousarray(indices[:, :k], np.int32)
    far = np.ascontiguousarray(distances[:, :k], np.float32)
    if not np.isfinite(far).all():
        raise InputError("neighbour distances hold NaN or infinity: leave out features without direction (all zero)")
    if near.min() < 0 or near.max() >= size:
        raise InputError(f"neighbour indices run from {near.min()} to {near.max()}; 0 to {size - 1} is expected")
    if (near[:, 0] != np.arange(size)).any() or far[:, 0].any() or (np.diff(far, axis=1) < 0).any():
        raise InputError("neighbours must be sorted by distance, with the feature itself in column 0 at distance 0")
    return near, far


def _note_parts(parts: int, part: Array, config: UmapConfig) -> tuple[str, ...]:
    if parts == 1:
        return ()
    return (
        f"the neighbour graph falls into {parts} unconnected parts (the largest has {np.bincount(part).max()} of "
        f"{len(part)} features): distances between parts mean nothing; raise umap.n_neighbors "
        f"({config.n_neighbors}) to join them",
    )
