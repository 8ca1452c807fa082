"""Similarity of two features as the similarity of their neighbours: what both are near to says more than one number.

A similarity over prompts is an estimate from a sample, and so is every entry of a list of neighbours; what two lists
have in common averages over many. Neighbours are compared so by Jarvis and Patrick (1973) and Ertöz et al. (2003), who
count the shared ones; here they are weighted by their similarities.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from gpuclust.hardware import jit
from gpuclust.types import Array


def nearest(indices: Array, distances: Array, n_shared: int, k: int) -> tuple[Array, Array]:
    """Return the features whose lists of nearest neighbours are most alike, by cosine.

    A feature's list is a vector over all features: its similarity to each of its nearest, 1 to itself, 0 to the others
    and where a similarity is negative.

    Parameters
    ----------
    indices, distances : array, (feature, candidate), int32 and float32
        Nearest neighbours, the feature itself in column 0; a distance is 1 less the similarity.
    n_shared : int
        Of a list, the feature itself included.
    k : int
        To be returned, the feature itself included.

    Returns
    -------
    indices, distances : array, (feature, k), int32 and float32
        As given: ascending, cosines that are equal to the last bit by feature number, the feature itself in column 0
        at distance 0. Where fewer lists have anything in common, the feature itself again, at distance 1.

    Notes
    -----
    Exact and deterministic, on one thread. As many additions as features that share a neighbour, counted once for each;
    16 bytes a listed neighbour beside input and output.
    """
    from scipy import sparse

    n = len(indices)
    columns = indices[:, :n_shared]
    weights = np.maximum(1 - distances[:, :n_shared].astype(np.float64), 0)
    weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
    lists = sparse.csr_array(
        (weights.ravel(), columns.ravel(), np.arange(0, columns.size + 1, columns.shape[1])), shape=(n, n)
    )
    lists.eliminate_zeros()
    listed_by = lists.T.tocsr()
    near = np.repeat(np.arange(n, dtype=np.int32)[:, None], k, axis=1)
    apart = np.ones((n, k), np.float32)
    apart[:, 0] = 0
    _kernel()(lists.indptr, lists.indices, lists.data, listed_by.indptr, listed_by.indices, listed_by.data, near, apart)
    return near, apart


@cache
def _kernel() -> Callable[..., Any]:
    """Compile on first use, so that importing this module does not import numba."""
    import numba

    jit.keep_kernels()
    return numba.njit(cache=True, nogil=True)(_nearest_rows)  # type: ignore[no-any-return]


def _nearest_rows(
    begin: Array, columns: Array, weights: Array, t_begin: Array, t_rows: Array, t_weights: Array,
    near: Array, apart: Array,
) -> None:  # fmt: skip
    """Fill rows of `near` and `apart` from column 1 on: of rows @ rows.T, the largest of each row but the diagonal."""
    n, k = near.shape
    product = np.zeros(n)
    met = np.empty(n, np.int64)
    best = np.empty(k)
    chosen = np.empty(k, np.int64)
    for row in range(n):
        count = 0
        for place in range(begin[row], begin[row + 1]):
            shared = columns[place]
            for other in range(t_begin[shared], t_begin[shared + 1]):
                feature = t_rows[other]
                if feature == row:
                    continue
                if product[feature] == 0:
                    met[count] = feature
                    count += 1
                product[feature] += weights[place] * t_weights[other]
        taken = 0
        for at in range(count):  # into the best so far, in order: the largest first, of equal ones the first feature
            feature = met[at]
            score = product[feature]
            product[feature] = 0
            if taken == k - 1 and (
                taken == 0 or score < best[taken - 1] or (score == best[taken - 1] and feature > chosen[taken - 1])
            ):
                continue
            place = min(taken, k - 2)
            while place > 0 and (best[place - 1] < score or (best[place - 1] == score and chosen[place - 1] > feature)):
                best[place], chosen[place] = best[place - 1], chosen[place - 1]
                place -= 1
            best[place], chosen[place] = score, feature
            taken = min(taken + 1, k - 1)
        for at in range(taken):
            near[row, at + 1] = chosen[at]
            apart[row, at + 1] = max(1 - best[at], 0)
