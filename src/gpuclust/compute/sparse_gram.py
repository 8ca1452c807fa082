"""Products of sparse rows, compiled by numba: an inverted index of the features, one row of the tile at a time.

For a feature, whatever fires with it in its prompts is added up in its row of the tile, which stays in the cache: the
work is k products an entry, k being the entries of a row, whatever the number of features. No kernel checks bounds, and
none starts threads: the threads here are Python's, each with rows of the tile of its own, so that no two write to one
place, and a place's sum is in the order of the prompts.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numba
import numpy as np

from gpuclust.hardware import jit
from gpuclust.types import Array

jit.keep_kernels()
_compile: Any = numba.njit(nogil=True, cache=True)


def add_product(held: Array, left: Any, right: Any) -> None:
    """Add AᵀB to a tile in place.

    Parameters
    ----------
    held : array, (row, column), float64, C-contiguous
    left : scipy.sparse.csc_array, (prompt, row), float64
    right : scipy.sparse.csr_array, (prompt, column), float64
    """
    threads = numba.config.NUMBA_NUM_THREADS  # as many as the process has cores
    shares = left.indptr[-1] * np.arange(1, threads) // threads  # of the entries
    edges = np.unique([0, *np.searchsorted(left.indptr, shares), len(held)])
    add = partial(_add, held, left.indptr, left.indices, left.data, right.indptr, right.indices, right.data)
    with ThreadPoolExecutor(len(edges)) as pool:
        parts = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        for done in [pool.submit(add, first, stop) for first, stop in parts]:
            done.result()


@_compile
def _add(
    held: Any, ends: Any, prompts: Any, values: Any, starts: Any, columns: Any, others: Any, first: int, stop: int
) -> None:
    """Add the rows of the tile from `first` to before `stop`."""
    for row in range(first, stop):
        target = held[row]
        for p in range(ends[row], ends[row + 1]):
            prompt, value = prompts[p], values[p]
            for q in range(starts[prompt], starts[prompt + 1]):
                target[columns[q]] += value * others[q]
