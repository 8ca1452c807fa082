"""A Zarr codec pipeline that decodes whole shards of the bitmap codec straight into the result.

Zarr's own pipeline decodes each chunk into an array, copies that into its shard, and copies the shard into the result,
on one thread. For the shards that gpuclust writes, this one reads a shard's file, checks its index, and decodes its
chunks in place, a thread a shard. Whatever is not such a shard, or is asked for in part, goes Zarr's way. Zarr chooses
a pipeline when an array is opened, so only arrays opened within `direct` are read by it.

The index of a shard is the last ``16 n + 4`` bytes of its file: offset and length (uint64) of each of its n chunks in C
order, all ones for a chunk that is not stored, and their CRC-32C (Zarr v3 specification, sharding-indexed codec).
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AbstractContextManager
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.abc.store import SupportsGetSync
from zarr.codecs.sharding import ShardingCodec, ShardingCodecIndexLocation
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline

from gpuclust.codec import BitmapCodec, decode
from gpuclust.errors import CorruptDataError

MISSING = np.uint64(0xFFFFFFFFFFFFFFFF)


class DirectPipeline(BatchedCodecPipeline):
    """Zarr's batched pipeline, with whole bitmap shards decoded in place."""

    async def read_batch(self, batch_info: Any, out: Any, drop_axes: tuple[int, ...] = ()) -> None:
        """Read a batch of shards into `out`; same contract as Zarr's."""
        target = out.as_ndarray_like()
        direct: list[Any] = []
        others: list[Any] = []
        for item in batch_info:
            whole = not drop_axes and isinstance(target, np.ndarray) and self._is_whole(item)
            (direct if whole else others).append(item)
        if others:
            await super().read_batch(others, out, drop_axes)
        if direct:
            await asyncio.gather(*(self._read_shard(item, target) for item in direct))

    def _is_whole(self, item: Any) -> bool:
        """Whether a shard of ours is asked for from its first row and column on, to its end or the array's."""
        _, spec, selection, out_selection, _ = item
        codec = self.array_bytes_codec
        return (
            isinstance(codec, ShardingCodec)
            and len(codec.codecs) == 1
            and isinstance(codec.codecs[0], BitmapCodec)
            and codec.index_location is ShardingCodecIndexLocation.end
            and not spec.fill_value
            and len(selection) == len(out_selection) == len(spec.shape) == 2
            and all(isinstance(s, slice) and s.start in (0, None) and s.step in (1, None) for s in selection)
            and all(isinstance(s, slice) for s in out_selection)
            and out_selection[1].start in (0, None)
        )

    async def _read_shard(self, item: Any, target: np.ndarray[Any, Any]) -> None:
        """Read and decode a shard, both in one thread where the store can be read without awaiting."""
        getter, spec, _, out_selection, _ = item
        if isinstance(getter.store, SupportsGetSync):
            await asyncio.to_thread(
                lambda: self._decode(getter.get_sync(prototype=spec.prototype), spec, target[out_selection])
            )
        else:
            stored = await getter.get(prototype=spec.prototype)
            await asyncio.to_thread(self._decode, stored, spec, target[out_selection])

    def _decode(self, stored: Any, spec: Any, out: np.ndarray[Any, Any]) -> None:
        if stored is None:
            out[...] = 0
            return
        codec: Any = self.array_bytes_codec
        decode_shard(stored.as_numpy_array(), spec.shape, codec.chunk_shape, out)


def decode_shard(
    stored: np.ndarray[Any, Any], shard: tuple[int, ...], chunk: tuple[int, ...], out: np.ndarray[Any, Any]
) -> None:
    """Decode the first rows and columns of a shard.

    Parameters
    ----------
    stored : array, (byte,), uint8
        The whole file.
    shard, chunk : tuple of int
        Shapes; a shard is a whole number of chunks.
    out : array, (row, column)
        Filled; rows and columns past its shape are left out.

    Raises
    ------
    CorruptDataError
        If the index or a chunk does not match its checksum.
    """
    grid = tuple(s // c for s, c in zip(shard, chunk, strict=True))
    size = 16 * math.prod(grid) + 4
    index, checksum = stored[-size:-4].tobytes(), stored[-4:].tobytes()
    if len(stored) < size or google_crc32c.value(index) != int.from_bytes(checksum, "little"):
        raise CorruptDataError(f"the index of a shard of {len(stored)} bytes does not match its checksum")
    places = np.frombuffer(index, "<u8").reshape(*grid, 2)
    for i, j in np.ndindex(*grid):
        part = out[i * chunk[0] : (i + 1) * chunk[0], j * chunk[1] : (j + 1) * chunk[1]]
        if not part.size:
            continue
        offset, length = places[i, j]
        if offset == MISSING:
            part[...] = 0
            continue
        encoded = stored[int(offset) : int(offset) + int(length)]
        if part.shape == chunk and part.flags.c_contiguous:
            decode(encoded, chunk, out.dtype, out=part)
        else:
            part[...] = decode(encoded, chunk, out.dtype)[: part.shape[0], : part.shape[1]]


def direct() -> AbstractContextManager[Any]:
    """Within this context, arrays are opened to be read by `DirectPipeline`."""
    register_pipeline(DirectPipeline)
    setting: AbstractContextManager[Any] = zarr.config.set(
        {"codec_pipeline.path": f"{DirectPipeline.__module__}.{DirectPipeline.__qualname__}"}
    )
    return setting
