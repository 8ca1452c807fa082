"""Blocks of sparse rows: what a Gram matrix takes of them, as it takes dense ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclust.types import Array

if TYPE_CHECKING:
    from gpuclust.compute.gram import Gram


def is_sparse(chunk: Any) -> bool:
    """Say whether a block is sparse rows, of scipy."""
    return hasattr(chunk, "tocsr")


def active_rows(rows: Any, above: float) -> Any:
    """Return ones where sparse rows are active: `association.activity` of them.

    Parameters
    ----------
    rows : scipy.sparse.csr_array, (row, feature)
    above : float
        Compared in float64.

    Returns
    -------
    scipy.sparse.csr_array, (row, feature), float32
    """
    active = rows.copy()
    active.data = (np.abs(rows.data.astype(np.float64)) > above).astype(np.float32)
    active.eliminate_zeros()
    return active


def entries(chunk: Any) -> int:
    """Count what is not zero."""
    return int(chunk.nnz if is_sparse(chunk) else np.count_nonzero(chunk))


def as_rows(chunk: Any) -> Any:
    """Return a block as scipy.sparse.csr_array, (row, feature), float32: what is not zero."""
    from scipy import sparse

    return chunk if is_sparse(chunk) else sparse.csr_array(chunk.astype(np.float32, copy=False))


def add(gram: Gram, chunk: Any, lengths: Array | None) -> None:
    """Add a block to a Gram in place, by the inverted index (`sparse_gram`).

    Parameters
    ----------
    gram : Gram
    chunk : array or scipy.sparse.csr_array, (row, feature)
    lengths : array, (row,), optional
    """
    rows = as_rows(chunk).astype(np.float64)
    add_sums(gram, rows, lengths)
    _add_tiles(gram, rows)


def add_sums(gram: Gram, rows: Any, lengths: Array | None) -> None:
    """Add the column sums of sparse rows to a Gram in place.

    Parameters
    ----------
    gram : Gram
    rows : scipy.sparse.csr_array, (row, feature)
    lengths : array, (row,), optional
    """
    n, values = rows.shape[1], rows.data.astype(np.float64, copy=False)
    gram.sums += np.bincount(rows.indices, values, minlength=n)
    gram.squares += np.bincount(rows.indices, values**2, minlength=n)
    if lengths is not None:
        long = lengths.astype(np.float64)
        gram.lengths += [long.sum(), long @ long]
        gram.by_length += np.bincount(rows.indices, values * np.repeat(long, np.diff(rows.indptr)), minlength=n)


def _add_tiles(gram: Gram, rows: Any) -> None:
    """Add sparse rows, float64, tile by tile."""
    from gpuclust.compute import sparse_gram

    columns = rows.tocsc()
    wanted = {index for pair in gram.tiles for index in pair}
    left = {index: columns[:, gram.block(index)] for index in wanted}
    right = {index: left[index].tocsr() for index in {column for _, column in gram.tiles}}
    for (i, j), held in gram.tiles.items():
        sparse_gram.add_product(held, left[i], right[j])
