"""The store's codec: a bitmap of the non-zero elements, then their values, packed.

Most activations of a sparse autoencoder are zero, and the rest is noise to a general compressor: a bit an element and
the non-zero values as they are take no more room than zstd, and decode near the speed of memory. zarr finds
`BitmapCodec` by its entry point, ``gpuclust.bitmap``, in any process that has gpuclust installed, imported or not.

A chunk of `n` elements of `b` bytes, `k` of them non-zero, every integer little-endian:

- 32 bytes, the header: magic ``GCBM``, version 1 (uint8), `b` (uint8), 2 zero bytes, `n` and `k` (uint64), 4 zero bytes,
  CRC-32C (uint32) of every other byte of the chunk;
- ``8 * ceil(n / 64)`` bytes, the bitmap: bit ``i % 8`` of byte ``i // 8`` is element `i` in C order; zeros past `n`;
- ``8 * ceil(k * b / 8)`` bytes, the non-zero elements in order; zeros past `k`.

An element is non-zero when its bit pattern is: -0.0, subnormals and every NaN come back bit for bit. Every part is a
multiple of 8 bytes, so chunks that lie end to end in a shard stay aligned. The checksum is the format's own, not zarr's
``crc32c`` behind this codec: a chunk is safe whoever composes the codecs, a flipped bit is a `CorruptDataError` as any
other damage is, and nothing is copied to append four bytes. It takes about a quarter of decoding, at 27% density.

The kernels run on the calling thread, without the GIL: zarr and Dask decode chunks on several threads as it is, and
numba's default threading layer must not be entered from two at once. The first chunk imports numba, not this module.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import google_crc32c
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.chunk_grids import ChunkGrid
from zarr.core.common import JSON, parse_named_configuration
from zarr.core.dtype.wrapper import ZDType

from gpuclust.errors import ConfigError, CorruptDataError

NAME = "gpuclust.bitmap"
_MAGIC, _VERSION = b"GCBM", 1
_HEADER = struct.Struct("<4sBB2xQQ4xI")
_BITS: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
_WORD: np.dtype[np.uint64] = np.dtype("<u8")

_ZERO, _ONE = np.uint64(0), np.uint64(1)  # in a kernel, a uint64 and a signed integer make a float64


def encode(array: ArrayLike) -> NDArray[np.uint8]:
    """Pack an array into a bitmap of its non-zero elements and their values.

    Parameters
    ----------
    array : array, any shape, float16 or float32
        Taken in C order. Of its shape and dtype only the number and the size of the elements are kept.

    Returns
    -------
    array, (bytes,), uint8
        ``32 + 8 * ceil(n / 64) + 8 * ceil(k * itemsize / 8)`` bytes, the same for the same array. Memory: no more, but
        for a copy of an `array` that is not C-contiguous, aligned and little-endian.

    Raises
    ------
    ConfigError
        The dtype is neither float16 nor float32.

    Examples
    --------
    >>> import numpy as np
    >>> chunk = encode(np.array([[0, 1.5, 0], [-0.0, 0, 0]], np.float16))
    >>> chunk.size  # header 32, bitmap 8, two values 8
    48
    >>> decode(chunk, (2, 3), np.float16)
    array([[ 0. ,  1.5,  0. ],
           [-0. ,  0. ,  0. ]], dtype=float16)
    """
    source = np.asarray(array)
    dtype = _check_dtype(source.dtype)
    values = np.require(source, dtype, ["C", "A"]).reshape(-1).view(_BITS[dtype.itemsize])
    values.flags.writeable = False  # of this view: one type for numba, whatever comes in
    mark, pack, _ = _kernels()
    words = np.empty(-(-values.size // 64), _WORD)
    mark(values, words)
    nonzero = int(np.bitwise_count(words).sum(dtype=np.int64))
    start, end, size = _layout(values.size, nonzero, dtype.itemsize)
    chunk = np.empty(size, np.uint8)
    chunk[_HEADER.size : start] = words.view(np.uint8)
    pack(values, words, chunk[start:end].view(values.dtype))
    chunk[end:] = 0
    _HEADER.pack_into(chunk.data, 0, _MAGIC, _VERSION, dtype.itemsize, values.size, nonzero, 0)
    chunk[_HEADER.size - 4 : _HEADER.size] = np.array([_crc(chunk)], "<u4").view(np.uint8)
    return chunk


def decode(buffer: bytes | memoryview | NDArray[np.uint8], shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Unpack an encoded chunk.

    Parameters
    ----------
    buffer : bytes-like, or array, (bytes,), uint8
        What `encode` returned.
    shape : tuple of int
        The array's shape; its number of elements must be the chunk's.
    dtype : dtype
        float16 or float32; its itemsize must be the chunk's.

    Returns
    -------
    array, `shape`, `dtype`
        A new array in C order, bit for bit what was encoded. Memory: no more, but for a copy of a `buffer` that does
        not lie at a multiple of 8 bytes.

    Raises
    ------
    ConfigError
        `dtype` is neither float16 nor float32.
    CorruptDataError
        The chunk is of another format, itemsize or number of elements, truncated, too long, or fails its checksum.
    """
    stored = _check_dtype(np.dtype(dtype))
    words, packed = _sections(np.frombuffer(buffer, np.uint8), math.prod(shape), stored.itemsize)
    out = np.empty(math.prod(shape), packed.dtype)
    _kernels()[2](words, packed, out)
    return out.view(stored).astype(dtype, copy=False).reshape(shape)


def _sections(chunk: NDArray[np.uint8], count: int, itemsize: int) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """Return a chunk's bitmap and values, having checked all that the kernel, which checks no bounds, relies on."""
    if chunk.size < _HEADER.size:
        raise _corrupt(f"it has {chunk.size} bytes, fewer than the {_HEADER.size} of a header")
    magic, version, *its, nonzero, crc = _HEADER.unpack_from(chunk.data)
    if (magic, version) != (_MAGIC, _VERSION):
        raise _corrupt(f"it begins with {magic!r}, version {version}, not with {_MAGIC!r}, version {_VERSION}")
    if its != [itemsize, count]:
        raise _corrupt(f"it holds {its[1]} elements of {its[0]} bytes, not {count} of {itemsize}")
    start, end, size = _layout(count, nonzero, itemsize)
    if nonzero > count or chunk.size != size:
        raise _corrupt(f"it has {chunk.size} bytes, not the {size} of {nonzero} non-zero elements among {count}")
    if _crc(chunk) != crc:
        raise _corrupt(f"its CRC-32C is {_crc(chunk):#010x}, not {crc:#010x} as stored")
    words: NDArray[np.uint64] = np.require(chunk[_HEADER.size : start].view(_WORD), requirements="A")
    marked = int(np.bitwise_count(words).sum(dtype=np.int64))
    if marked != nonzero or (count % 64 and int(words[-1]) >> count % 64):
        raise _corrupt(f"its bitmap marks {marked} elements, not {nonzero} among the first {count}")
    packed = np.require(chunk[start:end].view(_BITS[itemsize]), requirements="A")
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
    return CorruptDataError(f"A {NAME} chunk is corrupt: {what}. Delete the shard that holds it and compute it again.")


def _check_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Refuse a dtype that the codec does not hold; return it little-endian."""
    if dtype.kind != "f" or dtype.itemsize not in _BITS:
        raise ConfigError(f"{NAME} holds float16 or float32, not {dtype.name}: convert, or use another codec (zstd).")
    return dtype.newbyteorder("<")


def _popcount(word: Any) -> Any:
    """Count a word's bits; LLVM makes it one instruction."""
    word -= (word >> _ONE) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


def _lowest(word: Any) -> Any:
    """Return the position of a word's lowest bit, 64 if it has none."""
    return _popcount(~word & (word - _ONE))


def _mark(values: NDArray[Any], words: NDArray[np.uint64]) -> None:
    """Write the bitmap of `values`."""
    for i in range(words.size):
        word = _ZERO
        for j in range(min(64, values.size - i * 64)):
            word |= np.uint64(values[i * 64 + j] != 0) << np.uint64(j)
        words[i] = word


def _pack(values: NDArray[Any], words: NDArray[np.uint64], packed: NDArray[Any]) -> None:
    """Gather the `values` that are marked: `_expand` the other way."""
    k = 0
    for i in range(words.size):
        word = words[i]
        end = k + _popcount(word)
        step = 8 if i + 1 < words.size and end + 7 <= packed.size else 1
        while k < end:
            for j in range(step):
                packed[k + j] = values[i * 64 + _lowest(word)]
                word &= word - _ONE
            k += step
        k = end


def _expand(words: NDArray[np.uint64], packed: NDArray[Any], out: NDArray[Any]) -> None:
    """Scatter the packed values to where they are marked, and zero the rest.

    Eight at a time, although a word's last few may be fewer: those too many fall on the next word's first element, which
    is written after. It doubles the speed: a loop to each word's last bit ends in a mispredicted branch.
    """
    k = 0
    for i in range(words.size):
        for j in range(min(64, out.size - i * 64)):
            out[i * 64 + j] = 0
        word = words[i]
        end = k + _popcount(word)
        step = 8 if i + 1 < words.size and end + 7 <= packed.size else 1
        while k < end:
            for j in range(step):
                out[i * 64 + _lowest(word)] = packed[k + j]
                word &= word - _ONE
            k += step
        k = end


@cache
def _kernels() -> tuple[Callable[..., None], ...]:
    """Compile the kernels, or load them from numba's cache."""
    import numba
    from numba.extending import register_jitable

    register_jitable(_popcount)
    register_jitable(_lowest)
    return tuple(numba.njit(nogil=True, cache=True)(kernel) for kernel in (_mark, _pack, _expand))


@dataclass(frozen=True)
class BitmapCodec(ArrayBytesCodec):
    """Zarr v3 array-to-bytes codec of sparse float16 or float32 arrays, without settings.

    It is the ``serializer`` of `zarr.create_array`, with ``compressors=None``. Set ``write_empty_chunks`` in the
    ``config``: an empty chunk takes 1/16 of its bytes at most, and zarr's search for them takes longer than encoding.
    """

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Read the metadata; refuse settings, which a later version may have written."""
        _, settings = parse_named_configuration(data, NAME, require_configuration=False)
        if settings:
            raise ConfigError(f"{NAME} has no settings, got {settings}: a newer gpuclust may read this store.")
        return cls()

    def to_dict(self) -> dict[str, JSON]:
        """Return the metadata."""
        return {"name": NAME}

    def validate(self, *, shape: tuple[int, ...], dtype: ZDType[Any, Any], chunk_grid: ChunkGrid) -> None:
        """Refuse other dtypes, for an array without shards."""
        _check_dtype(dtype.to_native_dtype())

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """Refuse other dtypes, for an array with shards (zarr validates the outer codec alone)."""
        _check_dtype(array_spec.dtype.to_native_dtype())
        return self

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Refuse: the size depends on the values."""
        raise NotImplementedError

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        array = decode(chunk_data.as_numpy_array(), chunk_spec.shape, chunk_spec.dtype.to_native_dtype())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(array)

    def _encode_sync(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        return chunk_spec.prototype.buffer.from_array_like(encode(chunk_data.as_numpy_array()))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._encode_sync, chunk_data, chunk_spec)
