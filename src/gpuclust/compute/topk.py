"""The k smallest of many (float32 value, index) pairs, with ties broken by index: exact, and mergeable.

A non-negative float32 and an index below 2³² are packed into one uint64 whose order is the order of the pairs
(the bits of non-negative IEEE floats sort like integers), so one integer partition does the work of a stable sort.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclust.types import AnyArray

NOTHING = np.uint64(0xFFFFFFFFFFFFFFFF)  # sorts behind every pair


def pack(values: AnyArray, indices: AnyArray, xp: Any = np) -> AnyArray:
    """Pack values and indices into sortable keys.

    Parameters
    ----------
    values : array, float32, not negative, not NaN
    indices : array, integers in [0, 2**32), broadcast against `values`
    xp : module
        numpy, or cupy for device arrays.

    Returns
    -------
    array, uint64
    """
    bits = xp.ascontiguousarray(values, dtype=xp.float32).view(xp.uint32).astype(xp.uint64)
    bits <<= xp.uint64(32)
    bits |= indices.astype(xp.uint64)
    return bits


def unpack(keys: AnyArray, xp: Any = np) -> tuple[AnyArray, AnyArray]:
    """Return the values (float32) and indices (int64) of keys; NOTHING gives (nan, 4294967295)."""
    indices = (keys & xp.uint64(0xFFFFFFFF)).astype(xp.int64)
    values = (keys >> xp.uint64(32)).astype(xp.uint32).view(xp.float32)
    return values, indices


def smallest(keys: AnyArray, k: int, xp: Any = np) -> AnyArray:
    """Return the k smallest keys of every row, sorted; rows shorter than k are filled with NOTHING.

    Parameters
    ----------
    keys : array, (row, candidate), uint64
    k : int
    xp : module
        As in `pack`.
    """
    n = keys.shape[1]
    if n > k:
        keys = xp.partition(keys, k - 1, axis=1)[:, :k]
    elif n < k:
        keys = xp.concatenate([keys, xp.full((len(keys), k - n), NOTHING, dtype=xp.uint64)], axis=1)
    return xp.sort(keys, axis=1)
