"""Blocks of the stored activations where they are computed on: in host memory, or copied to the GPU ahead of time.

On a GPU a thread reads, checks and copies the next block into pinned memory and on to the device, on a CUDA stream of
its own, while the caller computes with this one. Chunks of the bitmap codec cross the bus packed and are expanded on
the device (see `expand`), those of very few elements as a bitmap that the host makes of them; other stores are decoded
on the host first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust.hardware.backend import Backend
from gpuclust.storage import codec_cuda, shards, store
from gpuclust.types import AnyArray, Array

log = logging.getLogger("gpuclust")

Item = tuple[Any, list[Array]]
ALIGN = 256  # bytes: where each array of an item begins
SLOTS = 2  # one is computed on while the other is filled


def rows(
    path: Path, n_rows: int, backend: Backend, first: int = 0, stop: int | None = None, columns: AnyArray | None = None
) -> Iterator[tuple[int, AnyArray]]:
    """Yield (first prompt, activations) for blocks of prompts, in order, where `backend` computes.

    Parameters
    ----------
    path : Path
        The store.
    n_rows : int
        Prompts of a block at most; packed bands of whole chunks may have fewer.
    backend : Backend
    first, stop : int
        Prompts; default all.
    columns : int array, optional
        Features to keep; default all.

    Yields
    ------
    first : int
    block : array, (prompt, feature), in the stored dtype; of numpy or cupy

    Raises
    ------
    CorruptDataError
        If stored bytes fail their checksum.

    Notes
    -----
    Device memory: two landing buffers of a block as it crosses the bus, the block, and the kept columns of it.
    """
    if backend.name == "cpu":
        for start, block in store.read_rows(path, n_rows, first, stop):
            yield start, block if columns is None else block[:, columns]
        return
    array = store.open_array(path)
    stop = array.shape[0] if stop is None else stop
    source = _packed(array, path, n_rows, first, stop)
    if isinstance(source, str):
        log.info("store: blocks are decoded on the host, because %s", source)
        blocks = _decoded(path, n_rows, first, stop, array)
    else:
        log.info("store: packed chunks are expanded on the GPU; of very sparse ones the host makes a bitmap first")
        blocks = _expanded(first, stop, source)
    xp = backend.xp
    wanted = None if columns is None or len(columns) == array.shape[1] else xp.asarray(columns)
    for start, block in blocks:
        yield start, block if wanted is None else xp.take(block, wanted, axis=1)


def _packed(array: Any, path: Path, n_rows: int, first: int, stop: int) -> shards.Shards | str:
    """Return the shards of a store, or why its chunks cannot be expanded on the GPU."""
    if array.chunks[0] > n_rows:
        return f"a chunk has {array.chunks[0]} prompts and the memory of the GPU takes {n_rows} at a time"
    if array.shards and (first % array.shards[0] or (stop % array.shards[0] and stop != array.shape[0])):
        return f"prompts {first} to {stop} are not whole shards"
    return shards.of(array, path / "activations")


def _decoded(path: Path, n_rows: int, first: int, stop: int, array: Any) -> Iterator[tuple[int, AnyArray]]:
    whole = max(n_rows, array.chunks[0])  # a chunk is decoded once, however few of its rows the GPU takes
    items = (
        (start + at, [block[at : at + n_rows]])
        for start, block in store.read_rows(path, whole, first, stop)
        for at in range(0, len(block), n_rows)
    )
    capacity = _aligned(min(n_rows, stop - first) * array.shape[1] * array.dtype.itemsize)
    for start, (block,) in to_device(items, capacity):
        yield start, block


def _expanded(first: int, stop: int, source: shards.Shards) -> Iterator[tuple[int, AnyArray]]:
    import cupy

    def items() -> Iterator[Item]:
        for start, n, chunks in shards.packed_bands(source, first, stop):
            arrays = [part for _, words, packed in chunks for part in (words, packed)]
            yield (start, n, [column for column, _, _ in chunks]), arrays

    raw = source.chunk[0] * source.shard[1] * source.dtype.itemsize
    across = source.grid[1]
    capacity = _aligned(raw + raw // 8 // source.dtype.itemsize) + 3 * ALIGN * across  # all non-zero: the most there is
    width = source.chunk[1]
    for (start, n, firsts), parts in to_device(items(), capacity):
        block = cupy.zeros((n, source.shape[1]), source.dtype)
        for index, column in enumerate(firsts):
            words, packed = parts[2 * index], parts[2 * index + 1]
            codec_cuda.expand(words, packed, width, block[:, column : column + width])
        yield start, block


def to_device(items: Iterator[Item], capacity: int) -> Iterator[tuple[Any, list[AnyArray]]]:
    """Copy arrays to the GPU one item ahead: read, packed into pinned memory, and sent on a stream of their own.

    Parameters
    ----------
    items : iterator of (label, list of array)
        Consumed in a thread.
    capacity : int
        Bytes of an item at most, each array rounded up to `ALIGN`.

    Yields
    ------
    label
    arrays : list of cupy array
        Valid, on the stream that was current at the first step, until the next step.
    """
    import cupy
    import cupyx

    device = cupy.cuda.Device()
    copying = cupy.cuda.Stream(non_blocking=True)
    using = cupy.cuda.get_current_stream()
    pinned = [cupyx.empty_pinned((capacity,), np.uint8) for _ in range(SLOTS)]
    landing = [cupy.empty((capacity,), np.uint8) for _ in range(SLOTS)]
    copied, used = ([cupy.cuda.Event(disable_timing=True) for _ in range(SLOTS)] for _ in range(2))
    copying.wait_event(using.record())  # the buffers' own allocation

    def fill(slot: int) -> Any:
        """Bring the next item to a slot; None at the end."""
        with device:
            item = next(items, None)
            if item is None:
                return None
            label, arrays = item
            copied[slot].synchronize()  # the pinned buffer's last contents are on their way no more
            places, end = [], 0
            for array in arrays:
                places.append((end, array.nbytes, array.dtype, array.shape))
                pinned[slot][end : end + array.nbytes] = array.reshape(-1).view(np.uint8)
                end += _aligned(array.nbytes)
            copying.wait_event(used[slot])
            if end:
                landing[slot][:end].set(pinned[slot][:end], stream=copying)
            copied[slot].record(copying)
            return label, places

    try:
        with ThreadPoolExecutor(1, thread_name_prefix="gpuclust-read") as reader:
            slot, coming = 0, reader.submit(fill, 0)
            while (filled := coming.result()) is not None:
                coming = reader.submit(fill, 1 - slot)
                using.wait_event(copied[slot])
                label, places = filled
                yield label, [landing[slot][at : at + n].view(dtype).reshape(shape) for at, n, dtype, shape in places]
                used[slot].record(using)
                slot = 1 - slot
    finally:
        copying.synchronize()  # before the buffers go: the caller may have stopped early
        pinned.clear()
        cupy.get_default_pinned_memory_pool().free_all_blocks()


def _aligned(n: int) -> int:
    return -(-n // ALIGN) * ALIGN
