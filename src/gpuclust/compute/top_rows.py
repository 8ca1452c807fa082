"""Top rows: the tokens or windows on which most features of a cluster fire at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuclust.types import Array


@dataclass(frozen=True, eq=False)
class TopRows:
    """The rows of every cluster, best first; of a cluster each is of another prompt.

    Attributes
    ----------
    cluster, row, prompt, n_features : arrays, (found,), int64
        Ascending by cluster. `row` is counted over all blocks; `n_features` of the cluster fire there.
    score : array, (found,), float64
        Sum over these of abs(activation) over the feature's largest.
    columns : list of arrays, (n_features,), int
        Which they are, nearest to their largest first.
    """

    cluster: Array
    row: Array
    prompt: Array
    n_features: Array
    score: Array
    columns: list[Array]


def top(rows: Any, prompt: Array, first: int, label: Array, largest: Array, threshold: float, n: int) -> TopRows:
    """Return the rows of a block on which most features of each cluster fire; equal numbers by score, then in order.

    Activations are scaled by each feature's largest, so that loud features do not rule, and not by its root mean
    square: a maximum is exact however rows are cut, and no feature counts more than 1.

    Parameters
    ----------
    rows : scipy.sparse.csr_array, (row, column), float32
        Features of clusters only. Columns ascend within a row.
    prompt : array, (row,), int
        Of each row.
    first : int
        Number of the first row.
    label : array, (column,), int
        Cluster of each column, from 0.
    largest : array, (column,), float
        Largest abs(activation) of each column over the rows of all blocks.
    threshold : float
        A feature fires where its abs(activation) is above.
    n : int
        Rows of a cluster, at most.

    Returns
    -------
    TopRows

    Notes
    -----
    Memory: some 80 bytes an entry of the block.
    """
    from scipy.sparse import csr_array

    size = np.abs(rows.data)
    fires = size > threshold
    entry = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))[fires]
    column = rows.indices[fires]
    share = size[fires].astype(np.float64) / largest[column]
    indptr = np.searchsorted(entry, np.arange(rows.shape[0] + 1))
    shape, member = rows.shape, _member(label)
    score = csr_array((share, column, indptr), shape=shape) @ member
    times = csr_array((np.ones(len(share)), column, indptr), shape=shape) @ member  # its entries are those of score
    row = np.repeat(np.arange(shape[0]), np.diff(score.indptr))
    cluster = score.indices.astype(np.int64)
    best = _best(cluster, row, prompt[row].astype(np.int64), times.data.astype(np.int64), score.data, n)
    columns = []
    for of, at in zip(cluster[best].tolist(), row[best].tolist(), strict=True):
        own = slice(indptr[at], indptr[at + 1])
        mine = np.flatnonzero(label[column[own]] == of)
        columns.append(column[own][mine][np.argsort(-share[own][mine], kind="stable")])
    return TopRows(
        cluster[best], row[best] + first, prompt[row[best]].astype(np.int64), times.data[best].astype(np.int64),
        score.data[best], columns,
    )  # fmt: skip


def merge(parts: Sequence[TopRows], n: int) -> TopRows:
    """Return the best rows of several blocks, in whatever order the blocks come.

    Parameters
    ----------
    parts : sequence of TopRows
        At least one; each made with this `n`.
    n : int
        Rows of a cluster, at most.
    """
    cluster, row, prompt, n_features, score = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("cluster", "row", "prompt", "n_features", "score")
    )
    columns = [own for part in parts for own in part.columns]
    best = _best(cluster, row, prompt, n_features, score, n)
    return TopRows(
        cluster[best], row[best], prompt[best], n_features[best], score[best], [columns[at] for at in best.tolist()]
    )


def nothing() -> TopRows:
    """Return what no row leaves: `merge` with it changes nothing."""
    none = np.zeros(0, np.int64)
    return TopRows(none, none, none, none, np.zeros(0), [])


def _member(label: Array) -> Any:
    """(column, cluster): 1 where a column is of a cluster."""
    from scipy.sparse import csr_array

    n = len(label)
    return csr_array((np.ones(n), label, np.arange(n + 1)), shape=(n, int(label.max(initial=-1)) + 1))


def _best(cluster: Array, row: Array, prompt: Array, n_features: Array, score: Array, n: int) -> Array:
    """Which candidates stay, in order: of each cluster the first of every prompt, and of those n."""
    order = np.lexsort((row, -score, -n_features, cluster))
    _, firsts = np.unique(cluster[order] * (prompt.max(initial=0) + 1) + prompt[order], return_index=True)
    order = order[np.sort(firsts)]
    rank = np.arange(len(order)) - np.searchsorted(cluster[order], cluster[order])
    found: Array = order[rank < n]
    return found
