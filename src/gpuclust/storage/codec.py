"""The store's codec: a bitmap of the non-zero elements, then their values, packed.

Most activations of a sparse autoencoder are zero, and the rest is noise to a general compressor: a bit an element and
the values as they are take no more room than zstd, and decode near the speed of memory. zarr finds `BitmapCodec` as
``gpuclust.bitmap``, its entry point, in any process that has gpuclust installed, imported or not.

A chunk of `n` elements of `b` bytes, `k` of them non-zero, every integer little-endian:

- 32 bytes, the header: magic ``GCBM``, version 1 (uint8), `b` (uint8), 2 zero bytes, `n` and `k` (uint64), 4 zero
  bytes, CRC-32C (uint32) of every other byte of the chunk;
- ``8 * ceil(n / 64)`` bytes, the bitmap: bit ``i % 8`` of byte ``i // 8`` is element `i` in C order; zeros past `n`;
- ``8 * ceil(k * b / 8)`` bytes, the non-zero elements in order; zeros past `k`.

An element is non-zero when its bit pattern is: -0.0 and every NaN come back bit for bit. Each part is a multiple of 8
bytes, so that chunks stay aligned within a shard. The checksum is the format's own, not zarr's ``crc32c`` behind this
codec: a chunk is safe whoever composes the codecs, a flipped bit is a `CorruptDataError`, and no copy is made.
"""

from __future__ import annotations

import asyncio
import math
import struct
from dataclasses import dataclass
from typing import Any, Self

import google_crc32c
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration

from gpuclust.errors import ConfigError, CorruptDataError

NAME, _MAGIC, _VERSION = "gpuclust.bitmap", b"GCBM", 1
_HEADER = struct.Struct("<4sBB2xQQ4xI")
Encoded = bytes | bytearray | memoryview | NDArray[np.uint8]


def encode(array: ArrayLike) -> NDArray[np.uint8]:
    """Pack an array into a bitmap of its non-zero elements and their values.

    Parameters
    ----------
    array : array, any shape, float16 or float32
        Taken in C order, and copied if it is not C-contiguous, aligned and little-endian. Of its shape and dtype only
        the number and the size of the elements are kept.

    Returns
    -------
    array, (``32 + 8 * ceil(n / 64) + 8 * ceil(k * itemsize / 8)``,), uint8
        The same bytes for the same array. Beside them, encoding allocates a byte an element.

    Raises
    ------
    ConfigError
        The dtype is neither float16 nor float32.

    Examples
    --------
    >>> chunk = encode(np.array([[0, 1.5], [-0.0, 0]], np.float16))
    >>> chunk.size, decode(chunk, (4,), np.float16)
    (48, array([ 0. ,  1.5, -0. ,  0. ], dtype=float16))
    """
    from gpuclust.storage import codec_kernels

    dtype = _check_dtype(np.asarray(array).dtype)
    values = np.require(array, dtype, ["C", "A"]).reshape(-1).view(f"<u{dtype.itemsize}")
    values.flags.writeable = False  # of this view: one type for numba, whatever comes in
    nonzero = int(np.count_nonzero(values))
    start, end, size = _layout(values.size, nonzero, dtype.itemsize)
    chunk = np.zeros(size, np.uint8)
    bits = np.packbits(values != 0, bitorder="little")
    chunk[_HEADER.size : _HEADER.size + bits.size] = bits
    codec_kernels.gather(values, chunk[_HEADER.size : start].view("<u8"), chunk[start:end].view(values.dtype))
    _HEADER.pack_into(chunk.data, 0, _MAGIC, _VERSION, dtype.itemsize, values.size, nonzero, 0)
    struct.pack_into("<I", chunk.data, _HEADER.size - 4, _crc(chunk))
    return chunk


def decode(buffer: Encoded, shape: tuple[int, ...], dtype: DTypeLike, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Unpack an encoded chunk.

    Parameters
    ----------
    buffer : bytes-like, or array, (bytes,), uint8
        What `encode` returned; copied if it does not lie at a multiple of 8 bytes.
    shape : tuple of int
        The array's shape; its number of elements must be the chunk's.
    dtype : dtype
        float16 or float32; its itemsize must be the chunk's.
    out : array, `shape`, `dtype`, optional
        Where to unpack: C-contiguous and little-endian. Every element is written. Without it, a new array.

    Returns
    -------
    array, `shape`, `dtype`
        Bit for bit what was encoded, in C order.

    Raises
    ------
    ConfigError
        `dtype` is neither float16 nor float32, or `out` is not as it has to be.
    CorruptDataError
        The chunk is of another format, itemsize or number of elements, truncated, too long, or fails its checksum.
    """
    from gpuclust.storage import codec_kernels

    stored = _check_dtype(np.dtype(dtype))
    target = np.empty(shape, stored) if out is None else out
    if target.shape != shape or target.dtype != stored or not target.flags.c_contiguous:
        raise ConfigError(f"out is {target.dtype} {target.shape}: pass a C-contiguous array, {stored} {shape}.")
    words, packed = sections(np.frombuffer(buffer, np.uint8), math.prod(shape), stored.itemsize)
    codec_kernels.scatter(words, packed, target.reshape(-1).view(packed.dtype))
    return target.astype(dtype, copy=False)


def sections(chunk: NDArray[np.uint8], count: int, itemsize: int) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """Return a chunk's bitmap and its non-zero values, having checked all that kernels, which check no bounds, rely on.

    Parameters
    ----------
    chunk : array, (byte,), uint8
        An encoded chunk.
    count, itemsize : int
        Elements of the chunk, and bytes of one.

    Returns
    -------
    array, (ceil(count / 64),), uint64
    array, (non-zero,), uint16 or uint32
        Bits of the values. Both are read-only views of `chunk`.

    Raises
    ------
    CorruptDataError
        If the bytes are not what `encode` writes.
    """
    if chunk.size < _HEADER.size:
        raise _corrupt(f"it has {chunk.size} bytes, fewer than the {_HEADER.size} of a header")
    *kind, nonzero, crc = _HEADER.unpack_from(chunk.data)
    if kind != (wanted := [_MAGIC, _VERSION, itemsize, count]):
        raise _corrupt(f"its magic, version, itemsize and number of elements are {kind}, not {wanted}")
    start, end, size = _layout(count, nonzero, itemsize)
    if nonzero > count or chunk.size != size:
        raise _corrupt(f"it has {chunk.size} bytes, not the {size} of {nonzero} non-zero elements among {count}")
    if _crc(chunk) != crc:
        raise _corrupt(f"its CRC-32C is {_crc(chunk):#010x}, not {crc:#010x} as stored")
    words = np.require(chunk[_HEADER.size : start].view("<u8"), requirements="A")
    marked = int(np.bitwise_count(words).sum())
    if marked != nonzero or (count % 64 and int(words[-1]) >> count % 64):
        raise _corrupt(f"its bitmap marks {marked} elements, not {nonzero} among the first {count}")
    packed = np.require(chunk[start:end].view(f"<u{itemsize}"), requirements="A")
    words.flags.writeable = packed.flags.writeable = False
    return words, packed


def _layout(count: int, nonzero: int, itemsize: int) -> tuple[int, int, int]:
    """Return where the values start and end, and the chunk's size."""
    start = _HEADER.size + 8 * -(-count // 64)
    end = start + nonzero * itemsize
    return start, end, -(-end // 8) * 8


def _crc(chunk: NDArray[np.uint8]) -> int:
    return int(google_crc32c.extend(google_crc32c.value(chunk[: _HEADER.size - 4]), chunk[_HEADER.size :]))


def _corrupt(what: str) -> CorruptDataError:
    return CorruptDataError(f"a {NAME} chunk is corrupt: {what}; `gpuclust verify` on the run's folder finds its shard")


def _check_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Refuse a dtype that the codec does not hold; return it little-endian."""
    if dtype.kind != "f" or dtype.itemsize not in (2, 4):
        raise ConfigError(f"{NAME} holds float16 or float32, not {dtype.name}: convert, or use another codec (zstd).")
    return dtype.newbyteorder("<")


@dataclass(frozen=True)
class BitmapCodec(ArrayBytesCodec):
    """Zarr v3 array-to-bytes codec of sparse float16 or float32 arrays, without settings.

    It is the ``serializer`` of `zarr.create_array`, with ``compressors=None``. Set ``write_empty_chunks`` in the
    ``config``: an empty chunk takes 1/16 of its bytes at most, and zarr's search for them takes longer than encoding.
    """

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        parse_named_configuration(data, NAME, require_configuration=False)
        return cls()

    def to_dict(self) -> dict[str, JSON]:
        return {"name": NAME}

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """Refuse other dtypes: zarr calls this when it creates or opens an array, sharded or not."""
        _check_dtype(array_spec.dtype.to_native_dtype())
        return self

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError  # it depends on the values

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        array = decode(chunk_data.as_numpy_array(), chunk_spec.shape, chunk_spec.dtype.to_native_dtype())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(array)

    def _encode_sync(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        return chunk_spec.prototype.buffer.from_array_like(encode(chunk_data.as_numpy_array()))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._encode_sync, chunk_data, chunk_spec)
