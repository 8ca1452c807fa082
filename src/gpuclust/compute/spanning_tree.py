"""Minimum spanning trees of mutual reachability graphs: exact, from a dense matrix of distances.

HDBSCAN needs nothing of the data but this tree. The core distance of a feature is the distance to its
``min_samples``-th nearest *other* feature (the `hdbscan` library's convention; scikit-learn's counts the feature
itself), and the mutual reachability distance of two features is the largest of their distance and both core
distances. Prim's algorithm reads every distance once, so the tree costs one pass over the matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from gpuclust.errors import InputError, SelectionError
from gpuclust.hardware import jit
from gpuclust.types import Array


def core_distances(distances: Array, min_samples: int) -> Array:
    """Return the distance from every feature to its `min_samples`-th nearest other feature.

    That is the order statistic number `min_samples`, counted from 0, of a row with its own zero in it: what
    `hdbscan` takes of a precomputed matrix. Exact and deterministic.

    Parameters
    ----------
    distances : array, (feature, feature), float32 or float64
        Symmetric; zeros on the diagonal.
    min_samples : int
        Neighbours, the feature itself not counted.

    Returns
    -------
    array, (feature,), dtype of `distances`

    Raises
    ------
    InputError
        If the matrix is not square, not floating point, or holds NaN or infinity.
    SelectionError
        If there are no `min_samples` other features.

    Notes
    -----
    One pass over the matrix; 8 bytes a feature beside it (4 for float32).

    Examples
    --------
    >>> import numpy as np
    >>> core_distances(np.abs(np.subtract.outer([0.0, 1.0, 3.0], [0.0, 1.0, 3.0])), 1)
    array([1., 1., 2.])
    """
    distances = _checked(distances, min_samples)
    core: Array = np.empty(len(distances), distances.dtype)
    bad = int(_kernels()[0](distances, min_samples, core))
    if bad >= 0:
        raise InputError(
            f"the distances of feature row {bad} hold NaN or infinity: a feature without direction (all zero) has no "
            "cosine; leave it out (select.min_active_prompts), or look for NaN in the activations"
        )
    return core


def mutual_reachability_tree(distances: Array, min_samples: int) -> Array:
    """Return a minimum spanning tree of the mutual reachability graph, its edges from light to heavy.

    Prim's algorithm from feature 0. Among equal distances the lowest feature number wins, as in `hdbscan`, so the edges
    equal the library's in every bit. Deterministic; for the order of equal weights see `sort_edges`.

    Parameters
    ----------
    distances : array, (feature, feature), float32 or float64
        Symmetric; zeros on the diagonal. It is only read.
    min_samples : int
        Neighbours that make a core, the feature itself not counted.

    Returns
    -------
    array, (feature - 1, 3), float64
        ``[a, b, weight]``: `a` was in the tree when `b` joined it.

    Raises
    ------
    InputError, SelectionError
        As `core_distances`.

    Notes
    -----
    O(feature²) time: two passes over the matrix, on one core, without the GIL. 64 bytes a feature beside the matrix.

    Examples
    --------
    >>> import numpy as np
    >>> mutual_reachability_tree(np.abs(np.subtract.outer([0.0, 1.0, 3.0], [0.0, 1.0, 3.0])), 1)
    array([[0., 1., 1.],
           [1., 2., 2.]])
    """
    distances = _checked(distances, min_samples)
    core = core_distances(distances, min_samples)
    edges = np.empty((len(distances) - 1, 3), np.float64)
    _kernels()[1](distances, core, edges)
    return sort_edges(edges)


def sort_edges(edges: Array) -> Array:
    """Return edges from light to heavy, equal weights in the order in which `hdbscan` has them.

    Ties are the rule here: all edges into a sparse spot weigh its core distance. Their order decides which of two
    clusters a feature between them joins, so labels equal `hdbscan.HDBSCAN`'s only if the sort is the same: NumPy's
    default, which is not stable, and is deterministic on one kind of processor.

    Parameters
    ----------
    edges : array, (edge, 3), float64

    Returns
    -------
    array, (edge, 3), float64
    """
    return np.ascontiguousarray(edges[np.argsort(edges[:, 2])])


def chord_edges(edges: Array) -> Array:
    """Turn the cosine weights of a tree into euclidean ones, ``sqrt(2 w)``: distances between normalised vectors.

    The root is monotone, so the tree stays a minimum spanning tree and its order stays. What changes is ``1 / w``,
    the density by which HDBSCAN weighs clusters against each other: only with this does the excess of mass choose the
    clusters that it chooses on the normalised vectors themselves. A `cluster_selection_epsilon` changes likewise.

    Parameters
    ----------
    edges : array, (edge, 3), float64
        Weights are cosine distances; what rounding left below 0 counts as 0.

    Returns
    -------
    array, (edge, 3), float64

    Examples
    --------
    >>> import numpy as np
    >>> chord_edges(np.array([[0.0, 1.0, 0.5]]))
    array([[0., 1., 1.]])
    """
    chords = np.array(edges, np.float64)
    chords[:, 2] = np.sqrt(2 * np.maximum(chords[:, 2], 0))
    return chords


def _checked(distances: Array, min_samples: int) -> Array:
    distances = np.asarray(distances)
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise InputError(f"distances have shape {distances.shape}; a square (feature, feature) is expected")
    if distances.dtype not in (np.float32, np.float64):
        raise InputError(f"distances are {distances.dtype}; float32 or float64 is expected")
    if min_samples < 1:
        raise InputError(f"min_samples is {min_samples}; at least 1 is expected")
    if len(distances) <= min_samples:
        raise SelectionError(
            f"{len(distances)} features are too few for hdbscan.min_samples={min_samples}, which needs "
            f"{min_samples} others around each: lower hdbscan.min_samples or keep more features (select)"
        )
    return np.ascontiguousarray(distances)


@cache
def _kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Compile on first use, so that importing this module does not import numba."""
    import numba

    jit.keep_kernels()
    compiled = numba.njit(cache=True, nogil=True)
    return compiled(_core_rows), compiled(_prim)


def _core_rows(distances: Array, min_samples: int, core: Array) -> int:
    """Fill `core`; return the first row with a distance that is not finite, or -1.

    The smallest ``min_samples + 1`` distances of a row are kept in order; most distances only meet one comparison.
    """
    size = len(distances)
    smallest = np.empty(min_samples + 1, distances.dtype)
    for i in range(size):
        row = distances[i]
        smallest[:] = np.inf
        total = row[0] * 0
        for j in range(size):
            value = row[j]
            total += value * 0
            if value < smallest[min_samples]:
                place = min_samples
                while place > 0 and smallest[place - 1] > value:
                    smallest[place] = smallest[place - 1]
                    place -= 1
                smallest[place] = value
        if total != 0:  # NaN and infinity times 0 are NaN
            return i
        core[i] = smallest[min_samples]
    return -1


def _prim(distances: Array, core: Array, edges: Array) -> None:
    """Fill `edges` in the order in which features join the tree."""
    size = len(distances)
    outside = np.arange(size)
    reach = np.full(size, np.inf, distances.dtype)
    source = np.zeros(size, np.int64)
    current = 0
    place = 0
    left = size
    for step in range(size - 1):
        left -= 1
        for slot in range(place, left):  # close the gap, in order
            outside[slot] = outside[slot + 1]
            reach[slot] = reach[slot + 1]
            source[slot] = source[slot + 1]
        row = distances[current]
        own = core[current]
        best = np.inf
        place = 0
        for slot in range(left):
            j = outside[slot]
            weight = max(row[j], own, core[j])
            if weight < reach[slot]:
                reach[slot] = weight
                source[slot] = current
            if reach[slot] < best:
                best = reach[slot]
                place = slot
        edges[step, 0] = source[place]
        edges[step, 1] = outside[place]
        edges[step, 2] = best
        current = outside[place]
