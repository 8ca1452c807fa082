"""The codec's layout of very sparse chunks: where the non-zero elements are, in place of a bit for every element.

Elias and Fano's representation of an ascending sequence, with whole bytes below (Elias 1974, doi:10.1145/321812.321820;
Fano 1971; as Vigna 2013 describes it, doi:10.1145/2433396.2433409). An element's place in the chunk is cut in two: its
low 8 or 16 bits are stored as they are, what is above them is the number of a bucket of 256 or 65,536 elements. Buckets
are one row of bits: for each in turn a one for every non-zero element in it, then a zero. So the size follows from the
number of elements alone, wherever they are, and rows and columns need no counts of their own.
"""

from __future__ import annotations

from bisect import bisect
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuclust.errors import ConfigError

LOWS: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2")}  # by the bytes of a low part
Positions = NDArray[np.int64]


def size(count: int, nonzero: int, low: int) -> int:
    """Return the bytes of the places of a chunk's elements: the buckets' bits and the low parts.

    Parameters
    ----------
    count, nonzero : int
        Elements of the chunk, and those that are not zero.
    low : int
        Bytes of a low part, 1 or 2.
    """
    return 8 * -(-_bits(count, nonzero, low) // 64) + 8 * -(-nonzero * low // 8)


def best_low(count: int, nonzero: int) -> int:
    """Return the bytes of a low part, 1 or 2, with which the places take fewer; 1 where both take the same."""
    return min(LOWS, key=lambda low: size(count, nonzero, low))


@lru_cache
def most(count: int) -> int:
    """Return how many of a chunk's elements may not be zero for this layout to be smaller than a bit an element.

    -1 where it is not even for none.
    """

    def larger(nonzero: int) -> bool:
        return size(count, nonzero, best_low(count, nonzero)) >= 8 * -(-count // 64)

    return bisect(range(count + 1), False, key=larger) - 1


def write(positions: Positions, low: int, places: NDArray[np.uint8]) -> None:
    """Write the places of a chunk's elements.

    Parameters
    ----------
    positions : array, (k,), int64
        In C order, strictly ascending.
    low : int
        Bytes of a low part, 1 or 2.
    places : array, (`size`,), uint8
        Zeros, at a multiple of 8 bytes; filled.
    """
    from gpuclust.storage import codec_packed_kernels as kernels

    end = len(places) - 8 * -(-len(positions) * low // 8)
    kernels.pack(positions, places[:end].view("<u8"), places[end:].view(LOWS[low])[: len(positions)])


def read(places: NDArray[np.uint8], count: int, nonzero: int, low: int) -> Positions | str:
    """Return what `write` wrote, having checked all of it, or what is wrong with it.

    Parameters
    ----------
    places : array, (`size`,), uint8
    count, nonzero, low
        As of `size`; `nonzero` is at most `count`.

    Returns
    -------
    array, (nonzero,), int64
        Strictly ascending, from 0 to below `count`.
    """
    from gpuclust.storage import codec_packed_kernels as kernels

    end = len(places) - 8 * -(-nonzero * low // 8)
    buckets = np.require(places[:end].view("<u8"), requirements="A")
    lows = np.require(places[end:].view(LOWS[low]), requirements="A")
    marked, bits = int(np.bitwise_count(buckets).sum()), _bits(count, nonzero, low)
    if marked != nonzero or (bits and int(buckets[-1]) >> (bits - 1) % 64):  # the last is the zero of the last bucket
        return f"its buckets hold {marked} elements, not {nonzero} in {bits} bits that end with a zero"
    if lows[nonzero:].any():
        return "the padding of its low parts is not zeros"
    lows, positions = lows[:nonzero], np.empty(nonzero, np.int64)
    buckets.flags.writeable = lows.flags.writeable = False
    if not kernels.unpack(buckets, lows, positions) or (nonzero and int(positions[-1]) >= count):
        return f"the places of its elements do not ascend to below {count}"
    return positions


def positions_of_csr(
    indptr: NDArray[Any], indices: NDArray[Any], entries: tuple[int, ...], shape: tuple[int, int]
) -> Positions:
    """Return the places in C order of the entries of compressed sparse rows.

    Parameters
    ----------
    indptr : array, (row + 1,), integer
    indices : array, (entry,), integer
    entries : tuple of int
        Shape of the values.
    shape : (int, int)
        Rows and columns.

    Returns
    -------
    array, (entry,), int64
        Strictly ascending.

    Raises
    ------
    ConfigError
        If they are none: they do not fit together, or columns do not ascend within a row or are out of range.
    """
    rows, columns = shape
    sizes = indptr.shape, indices.shape, entries
    if indptr.dtype.kind not in "iu" or indices.dtype.kind not in "iu":
        raise ConfigError(f"indptr is {indptr.dtype} and indices {indices.dtype}: pass integers.")
    if sizes[0] != (rows + 1,) or sizes[1] != entries or len(entries) != 1 or indptr[0] or indptr[-1] != entries[0]:
        raise ConfigError(f"indptr, indices and values have shapes {sizes}: these are not {rows} sparse rows.")
    starts = indptr.astype(np.int64)
    lengths = starts[1:] - starts[:-1]
    if (lengths < 0).any() or (entries[0] and not 0 <= int(indices.min()) <= int(indices.max()) < columns):
        raise ConfigError(f"indptr descends, or an index is not of {columns} columns: these are not sparse rows.")
    positions: Positions = np.repeat(np.arange(rows) * columns, lengths) + indices.astype(np.int64)
    if not (positions[1:] > positions[:-1]).all():
        raise ConfigError("columns do not ascend within a row: sum_duplicates() of a csr_array sorts and joins them.")
    return positions


def _bits(count: int, nonzero: int, low: int) -> int:
    return nonzero - (-count >> 8 * low)
