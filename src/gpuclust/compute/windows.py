"""Rows of tokens put together: windows of a prompt, or whole prompts, from what fires on each token."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclust.types import Array

PERMUTED = 1 << 14  # features whose prompts are permuted at once: 8 bytes a prompt of the block for each


def windows(prompt: Array, size: int) -> Array:
    """Cut each prompt's rows into windows, in order; a prompt's last window may have fewer rows.

    Parameters
    ----------
    prompt : array, (row,), int
        Of each row; rows of a prompt stand together.
    size : int
        Rows of a window.

    Returns
    -------
    array, (row,), int64
        Number of the window of each row, from 0, ascending.

    Examples
    --------
    >>> windows(np.array([7, 7, 7, 8, 8]), 2).tolist()
    [0, 0, 1, 2, 2]
    """
    begin = np.flatnonzero(np.concatenate([[True], prompt[1:] != prompt[:-1]])[: len(prompt)])
    place = np.arange(len(prompt)) - np.repeat(begin, np.diff([*begin, len(prompt)]))
    found: Array = np.cumsum(place % size == 0) - 1
    return found


def aggregate(rows: Any, group: Array, how: str) -> Any:
    """Put rows together.

    Parameters
    ----------
    rows : scipy.sparse.csr_array, (row, feature), float32
        Columns ascend within a row.
    group : array, (row,), int
        From 0, ascending, none left out.
    how : {"max", "mean", "sum", "last"}
        As ``extract.aggregate``: max is the value of the largest abs(activation), the first of equal ones; mean is over
        all rows of the group; last is the last row. Sums are in float64.

    Returns
    -------
    scipy.sparse.csr_array, (group, feature), float32
    """
    n_groups = int(group[-1]) + 1 if len(group) else 0
    shape = (n_groups, rows.shape[1])
    if how == "last":
        last = np.flatnonzero(np.diff(group, append=n_groups))
        return rows[last]
    entry = np.repeat(group, np.diff(rows.indptr))
    place = entry * rows.shape[1] + rows.indices
    if how == "max":
        chosen = peaks(place, rows.data)
        place, values = place[chosen], rows.data[chosen]
    else:
        place, inverse = np.unique(place, return_inverse=True)
        values = np.bincount(inverse, rows.data.astype(np.float64), minlength=len(place))
        if how == "mean":
            values = values / np.bincount(group, minlength=n_groups)[place // rows.shape[1]]
    return _rows(place, values.astype(np.float32), shape)


def permuted(rows: Any, prompt: Array, seed: list[int]) -> Any:
    """Permute each feature's activations over the prompts of a block, all rows of a prompt together.

    What a feature does within a prompt stays together, as does how often it fires; what features do together goes. In
    its new prompt it begins anywhere and goes on from the first row after the last, so that what fires at beginnings
    is together no more. Where two of its rows meet, in a shorter prompt, the larger abs(activation) stays.

    Parameters
    ----------
    rows : scipy.sparse.csr_array, (row, feature), float32
    prompt : array, (row,), int
        Of each row; rows of a prompt stand together.
    seed : list of int

    Returns
    -------
    scipy.sparse.csr_array, (row, feature), float32
    """
    if not len(prompt):
        return rows
    _, begin, number = np.unique(prompt, return_index=True, return_inverse=True)
    length = np.bincount(number)
    row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    own = number[row]
    place = np.empty(rows.nnz, np.int64)
    for first in range(0, rows.shape[1], PERMUTED):
        slab = [] if first == 0 else [first]
        width = min(PERMUTED, rows.shape[1] - first)
        at = np.flatnonzero((rows.indices >= first) & (rows.indices < first + width))
        moved, turn = _moved(width, len(begin), seed + slab)
        column = rows.indices[at] - first
        to = moved[column, own[at]]
        begun = (turn[column, own[at]] * length[to]).astype(np.int64)
        place[at] = (begin[to] + (row[at] - begin[own[at]] + begun) % length[to]) * rows.shape[1] + rows.indices[at]
    chosen = peaks(place, rows.data)
    return _rows(place[chosen], rows.data[chosen], rows.shape)


def _moved(n_features: int, n_prompts: int, seed: list[int]) -> tuple[Array, Array]:
    """Where each feature's prompts go, and how far into them they begin: (feature, prompt), int32 and float32."""
    rng = np.random.default_rng(seed)
    prompts = np.tile(np.arange(n_prompts, dtype=np.int32), (n_features, 1))
    return rng.permuted(prompts, axis=1), rng.random((n_features, n_prompts), np.float32)


def peaks(place: Array, values: Array) -> Array:
    """Return which entries stay where several have one place: the largest abs(value), of equal ones the first.

    Parameters
    ----------
    place, values : array, (entry,), int and floating
        Two dimensions in one: row times columns and column.

    Returns
    -------
    array, (place,), int64
        Numbers of entries, by place.
    """
    order = np.lexsort((np.arange(len(place)), -np.abs(values), place))
    chosen: Array = order[np.concatenate([[True], np.diff(place[order]) > 0])[: len(place)]]
    return chosen


def _rows(place: Array, values: Array, shape: tuple[int, int]) -> Any:
    """Sparse rows from ascending places in C order."""
    from scipy.sparse import csr_array

    starts = np.searchsorted(place, np.arange(shape[0] + 1) * shape[1])
    return csr_array((values, (place % shape[1]).astype(np.int32), starts), shape=shape)
