"""The bitmap codec's loops, compiled by numba: mark a chunk's elements, gather those marked, or scatter them back.

Element `i` is marked by bit ``i % 64`` of word ``i // 64``. No kernel checks bounds, and none starts threads: zarr and
Dask decode on several, from which numba's default threading layer must not be entered. Import this module when a chunk
is encoded or decoded, not before: numba takes longer to import than zarr.
"""

from __future__ import annotations

import logging
import platform
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from gpuclust.hardware import jit

log = logging.getLogger("gpuclust")
jit.keep_kernels()

Words = NDArray[np.uint64]
VECTOR = 16  # bytes of a shuffle
_ONE = np.uint64(1)  # in a kernel, a uint64 and a signed integer make a float64
_compile: Any = numba.njit(nogil=True, cache=True)


@_compile
def popcount(word: Any) -> Any:
    """Count a word's bits; LLVM makes it one instruction."""
    word -= (word >> _ONE) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


def bitmap(values: NDArray[Any]) -> tuple[Words, int]:
    """Mark the elements that are not zero.

    Parameters
    ----------
    values : array, (n,), uint16 or uint32

    Returns
    -------
    words : array, (ceil(n / 64),), uint64
        No bit is set past `n`.
    nonzero : int
        How many are.
    """
    words = np.zeros(-(-values.size // 64), "<u8")
    whole = values.size // 64
    blocks = np.require(values[: whole * 64].view("<u8"), requirements="A").reshape(whole, 8 * values.itemsize)
    blocks.flags.writeable = False
    nonzero = _mark_blocks(values[: whole * 64].reshape(whole, 64), blocks, words)
    rest = values[whole * 64 :] != 0
    bits = np.packbits(rest, bitorder="little")
    words[whole:].view(np.uint8)[: bits.size] = bits
    return words, nonzero + int(np.count_nonzero(rest))


@_compile
def _mark_blocks(values: Any, blocks: Any, words: Words) -> int:
    """Mark 64 values at a time, and count; `blocks` are the same bytes. Those that are all zero are skipped."""
    nonzero = 0
    for i in range(values.shape[0]):
        some = np.uint64(0)
        for j in range(blocks.shape[1]):
            some |= blocks[i, j]
        word = np.uint64(0)
        if some != 0:
            for j in range(64):
                word |= np.uint64(values[i, j] != 0) << np.uint64(j)
            nonzero += popcount(word)
        words[i] = word
    return nonzero


@_compile
def gather(values: NDArray[Any], words: Words, packed: NDArray[Any]) -> None:
    """Fill `packed` with the marked elements of `values`.

    Parameters
    ----------
    values : array, (n,), uint16 or uint32
    words : array, (ceil(n / 64),), uint64
        The bitmap; no bit is set past `n`.
    packed : array, (k,), the dtype of `values`
        As long as bits are set.
    """
    k = 0
    for i in range(words.size):
        word = words[i]
        end = k + popcount(word)
        step = 8 if end + 7 <= packed.size else 1
        while k < end:
            for j in range(step):
                packed[k + j] = values[i * 64 + popcount(~word & (word - _ONE))]
                word &= word - _ONE
            k += step
        k = end


@_compile
def scatter_plain(words: Words, packed: NDArray[Any], out: NDArray[Any]) -> None:
    """Do what `scatter` does, on any processor.

    Parameters
    ----------
    words, packed, out
        As of `scatter`.
    """
    # Eight at a time, although a word's last eight may be fewer: with no bit left, the lowest is at 64, so the rest
    # fall on the next word's first element, written later: seven more values follow, so there is one. Twice as fast.
    k = 0
    for i in range(words.size):
        for j in range(min(64, out.size - i * 64)):
            out[i * 64 + j] = 0
        word = words[i]
        end = k + popcount(word)
        step = 8 if end + 7 <= packed.size else 1
        while k < end:
            for j in range(step):
                out[i * 64 + popcount(~word & (word - _ONE))] = packed[k + j]
                word &= word - _ONE
            k += step
        k = end


def scatter(words: Words, packed: NDArray[Any], out: NDArray[Any]) -> None:
    """Fill `out` with the packed elements where they are marked, and zeros elsewhere: `gather` the other way.

    Where the processor can, 16 bytes of `out` are one byte shuffle: a table holds, for every pattern of marks, which of
    the next packed bytes goes where. That takes as long at any density, and a third of the plain loop's time at 27%.

    Parameters
    ----------
    words, packed
        As of `gather`.
    out : array, (n,), the dtype of `packed`
    """
    if has_shuffle():
        _scatter_shuffled(words, packed, out, *_orders(packed.itemsize))
    else:
        scatter_plain(words, packed, out)


@cache
def has_shuffle() -> bool:
    """Whether this processor shuffles 16 bytes by the one instruction that is known here (x86-64 with SSSE3)."""
    machine = platform.machine()
    if machine in ("x86_64", "AMD64") and binding.get_host_cpu_features().get("ssse3"):
        return True
    log.info("bitmap codec: decoding by the plain loop, this processor (%s) has no SSSE3", machine)
    return False


@cache
def _orders(itemsize: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """For each pattern of marks of one vector: where its bytes come from (255: zero), flat, and how many are marked."""
    lanes = VECTOR // itemsize
    marked = np.arange(2**lanes)[:, None] >> np.arange(lanes) & 1
    source = (np.cumsum(marked, axis=1) - 1)[:, :, None] * itemsize + np.arange(itemsize)
    order = np.where(marked[:, :, None] == 1, source, 255)
    return order.astype(np.uint8).reshape(-1), marked.sum(axis=1).astype(np.uint8)


@_compile
def _scatter_shuffled(words: Words, packed: Any, out: Any, order: Any, counts: Any) -> None:
    lanes = VECTOR // packed.itemsize
    mask = np.uint64((1 << lanes) - 1)
    i, k = 0, 0
    # Every shuffle reads a whole vector of `packed`: the last few elements are left to the plain loop.
    while i < out.size // 64 and k + popcount(words[i]) + lanes <= packed.size:
        word = words[i]
        for j in range(64 // lanes):
            pattern = np.int64(word & mask)
            word >>= np.uint64(lanes)
            _shuffle(packed, k, order, pattern * VECTOR, out, i * 64 + j * lanes)
            k += counts[pattern]
        i += 1
    scatter_plain(words[i:], packed[k:], out[i * 64 :])


@intrinsic
def _shuffle(_: Any, source: Any, start: Any, order: Any, row: Any, target: Any, to: Any) -> Any:
    """Write at ``target[to]`` the 16 bytes from ``source[start]`` on, in the order that starts at ``order[row]``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), VECTOR)

        def place(n: int) -> Any:
            data = context.make_array(signature.args[n])(context, builder, args[n]).data
            return builder.bitcast(builder.gep(data, [args[n + 1]]), vector.as_pointer())

        instruction = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector, vector]), "llvm.x86.ssse3.pshuf.b.128"
        )
        shuffled = builder.call(instruction, [builder.load(place(0), align=1), builder.load(place(2), align=1)])
        builder.store(shuffled, place(4), align=1)
        return context.get_dummy_value()

    return types.void(source, start, order, row, target, to), generate
