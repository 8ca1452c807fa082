"""The bitmap codec's chunks, copied to the GPU as they are and expanded there.

The packed form is what lies on disk (see `codec`): fewer bytes cross the bus, and the host does not spend the time to
decode. Checks of the format, its checksum included, stay on the host.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gpuclust.types import AnyArray

THREADS = 256

# A thread an element. `ends` counts the non-zero elements up to the end of each word, so an element's place among the
# packed values is that less those at or after it in its own word.
SOURCE = r"""
extern "C" __global__ void expand(const unsigned long long* words, const long long* ends, const VALUE* packed,
                                  long long count, long long columns, long long used, long long stride, VALUE* out) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    long long row = i / columns, column = i % columns;
    if (column >= used) return;
    unsigned long long word = words[i >> 6], bit = 1ULL << (i & 63);
    long long place = ends[i >> 6] - __popcll(word & ~(bit - 1));
    out[row * stride + column] = (word & bit) ? packed[place] : (VALUE)0;
}
"""
VALUES = {2: "unsigned short", 4: "unsigned int"}


@cache
def kernel(itemsize: int) -> Any:
    """Compile the kernel for values of 2 or 4 bytes."""
    import cupy

    return cupy.RawKernel(SOURCE.replace("VALUE", VALUES[itemsize]), "expand")


def expand(words: AnyArray, packed: AnyArray, columns: int, out: AnyArray) -> None:
    """Expand one chunk on the device into a part of a block.

    Parameters
    ----------
    words : cupy array, (ceil(elements / 64),), uint64
        The chunk's bitmap.
    packed : cupy array, (non-zero,), uint16 or uint32
        The bits of its non-zero elements, in order.
    columns : int
        Columns of the chunk; the last ones may lie past `out`.
    out : cupy array, (row, column), float16 or float32
        Rows of the chunk that are wanted; every element is written. Columns are contiguous.

    Notes
    -----
    Memory: 9 bytes a word. The kernel runs on the current stream.
    """
    import cupy

    ends = cupy.cumsum(cupy.bitwise_count(words), dtype=cupy.int64)
    count = out.shape[0] * columns
    arguments = (
        words, ends, packed, np.int64(count), np.int64(columns), np.int64(out.shape[1]),
        np.int64(out.strides[0] // out.itemsize), out,
    )  # fmt: skip
    kernel(out.itemsize)((-(-count // THREADS),), (THREADS,), arguments)


def expand_host(words: AnyArray, packed: AnyArray, columns: int, out: AnyArray) -> None:
    """Do what `expand` does, on the host, by the kernel's own arithmetic: its plain twin for tests.

    Parameters
    ----------
    words, packed, columns, out
        As of `expand`, but NumPy's.
    """
    ends = np.cumsum(np.bitwise_count(words), dtype=np.int64)
    i = np.arange(out.shape[0] * columns, dtype=np.int64)
    word, bit = words[i >> 6], np.uint64(1) << (i & 63).astype(np.uint64)
    place = ends[i >> 6] - np.bitwise_count(word & ~(bit - np.uint64(1)))
    marked = (word & bit) != 0
    values = np.zeros(len(i), packed.dtype)
    values[marked] = packed[place[marked]]
    out[...] = values.view(out.dtype).reshape(out.shape[0], columns)[:, : out.shape[1]]
