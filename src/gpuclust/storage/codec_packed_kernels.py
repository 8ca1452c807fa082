"""The loops of the codec's layout of very sparse chunks, compiled by numba.

As in `codec_kernels` no kernel checks bounds and none starts threads. Import this module when a chunk is encoded or
decoded, not before: numba takes longer to import than zarr.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from gpuclust.hardware import jit
from gpuclust.storage.codec_kernels import Words, popcount

jit.keep_kernels()

Positions = NDArray[np.int64]
SLAB = 1 << 14  # elements that are written together: they stay in the processor's cache
_ONE = np.uint64(1)  # in a kernel, a uint64 and a signed integer make a float64
_compile: Any = numba.njit(nogil=True, cache=True)


@_compile
def pack(positions: Positions, buckets: Words, lows: Any) -> None:
    """Write an ascending sequence as buckets and low parts.

    Parameters
    ----------
    positions : array, (k,), int64
    buckets : array, (words,), uint64
        Zeros; filled with a one for every element and a zero after every bucket.
    lows : array, (k,), uint8 or uint16
    """
    shift = 8 * lows.itemsize
    for k in range(positions.size):
        at = (positions[k] >> shift) + k
        buckets[at >> 6] |= _ONE << np.uint64(at & 63)
        lows[k] = positions[k] & ((1 << shift) - 1)


@_compile
def unpack(buckets: Words, lows: Any, positions: Positions) -> bool:
    """Fill `positions` with what `pack` wrote, and return whether they ascend strictly.

    Parameters
    ----------
    buckets, lows
        As of `pack`; as many ones as there are low parts.
    positions : array, (k,), int64
    """
    shift = 8 * lows.itemsize
    k, last, ascends = 0, -1, True
    for i in range(buckets.size):
        word = buckets[i]
        n = popcount(word)
        part, low = positions[k : k + n], lows[k : k + n]  # of which no index is negative: LLVM looks for none
        for j in range(n):
            at = ((i * 64 - k - j + popcount(~word & (word - _ONE))) << shift) + np.int64(low[j])
            ascends &= at > last
            last = at
            part[j] = at
            word &= word - _ONE
        k += n
    return ascends


@_compile
def marked(words: Words, positions: Positions) -> None:
    """Fill `positions` with the places of a bitmap's bits.

    Parameters
    ----------
    words : array, (words,), uint64
    positions : array, (k,), int64
        As long as bits are set.
    """
    k = 0
    for i in range(words.size):
        word = words[i]
        while word != 0:
            positions[k] = i * 64 + popcount(~word & (word - _ONE))
            word &= word - _ONE
            k += 1


@_compile
def mark(positions: Positions, words: Words) -> None:
    """Set the bits of a bitmap: `marked` the other way.

    Parameters
    ----------
    positions : array, (k,), int64
        Below 64 a word.
    words : array, (words,), uint64
        Zeros; filled.
    """
    for k in range(positions.size):
        words[positions[k] >> 6] |= _ONE << np.uint64(positions[k] & 63)


@_compile
def place(positions: Positions, values: Any, out: Any) -> None:
    """Fill `out` with the values at their places, and zeros elsewhere.

    Parameters
    ----------
    positions : array, (k,), int64
        Ascending, below the size of `out`.
    values : array, (k,), uint16 or uint32
    out : array, (n,), the dtype of `values`
    """
    k = 0
    for start in range(0, out.size, SLAB):
        stop = min(start + SLAB, out.size)
        out[start:stop] = 0
        while k < positions.size and positions[k] < stop:
            out[positions[k]] = values[k]
            k += 1
