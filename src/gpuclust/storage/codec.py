"""The store's codec: which elements are not zero, and then their values, packed.

Most activations of a sparse autoencoder are zero, and the rest is noise to a general compressor: a bit an element and
the values as they are take no more room than zstd, and decode near the speed of memory. Where fewer than a ninth are
not zero, as of tokens, their places take less room than the bits. zarr finds `BitmapCodec` as ``gpuclust.bitmap``, its
entry point, in any process that has gpuclust installed, imported or not.

A chunk of `n` elements of `b` bytes, `k` of them non-zero, every integer little-endian:

- 32 bytes, the header: magic ``GCBM``, version (uint8), `b`, `l` (uint8), a zero byte, `n` and `k` (uint64), 4 zero
  bytes, CRC-32C (uint32) of every other byte of the chunk;
- where they are: of version 1, the bitmap (`l` is 0), ``8 * ceil(n / 64)`` bytes: bit ``i % 8`` of byte ``i // 8`` is
  element `i` in C order; zeros past `n`. Of version 2, buckets of ``256 ** l`` elements (`l` is 1 or 2):
  ``8 * ceil((k + ceil(n / 256 ** l)) / 64)`` bytes of bits, for each bucket in turn a one for every non-zero element in
  it and then a zero; then the elements' numbers within their buckets, ``8 * ceil(k * l / 8)`` bytes (see
  `codec_packed`);
- ``8 * ceil(k * b / 8)`` bytes, the non-zero elements in order. All padding is zeros.

`encode` writes what is smallest, of those version 1 rather than 2, and `l` 1 rather than 2. An element is non-zero when
its bit pattern is: -0.0 and every NaN come back bit for bit. Each part is a multiple of 8 bytes, so that chunks stay
aligned within a shard. The checksum is the format's own, not zarr's ``crc32c`` behind this codec: a chunk is safe
whoever composes the codecs, a flipped bit is a `CorruptDataError`, and no copy is made.
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
from gpuclust.storage import codec_packed

NAME, _MAGIC, _BITMAP, _BUCKETS = "gpuclust.bitmap", b"GCBM", 1, 2
_HEADER = struct.Struct("<4sBBBxQQ4xI")
Encoded = bytes | bytearray | memoryview | NDArray[np.uint8]
Sparse = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Any]]


def encode(array: ArrayLike) -> NDArray[np.uint8]:
    """Pack an array into which of its elements are not zero, and their values, in the layout that is smaller.

    Parameters
    ----------
    array : array, any shape, float16 or float32
        Taken in C order, and copied if it is not C-contiguous, aligned and little-endian. Of its shape and dtype only
        the number and the size of the elements are kept.

    Returns
    -------
    array, (bytes,), uint8
        The same bytes for the same array: ``32 + 8 * ceil(n / 64) + 8 * ceil(k * itemsize / 8)`` of them, or fewer.
        Beside them, encoding allocates a bit an element, and 16 bytes a non-zero element where they are few.

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
    from gpuclust.storage import codec_kernels, codec_packed_kernels

    dtype = _check_dtype(np.asarray(array).dtype)
    values = np.require(array, dtype, ["C", "A"]).reshape(-1).view(f"<u{dtype.itemsize}")
    values.flags.writeable = False  # of this view: one type for numba, whatever comes in
    words, nonzero = codec_kernels.bitmap(values)
    if nonzero <= codec_packed.most(values.size):
        positions = np.empty(nonzero, np.int64)
        codec_packed_kernels.marked(words, positions)
        return _in_buckets(positions, values[positions], values.size)
    start, end, size = _layout(values.size, nonzero, dtype.itemsize)
    chunk = np.zeros(size, np.uint8)
    chunk[_HEADER.size : start] = words.view(np.uint8)
    codec_kernels.gather(values, words, chunk[start:end].view(values.dtype))
    return _sealed(chunk, (_BITMAP, dtype.itemsize, 0, values.size, nonzero))


def encode_csr(indptr: ArrayLike, indices: ArrayLike, values: ArrayLike, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Pack a matrix of compressed sparse rows, without making it dense.

    Parameters
    ----------
    indptr : array, (row + 1,), integer
        Where each row begins among `indices` and `values`; its last number is where the last one ends.
    indices : array, (entry,), integer
        Columns, strictly ascending within a row.
    values : array, (entry,), float16 or float32
    shape : (int, int)
        Rows and columns.

    Returns
    -------
    array, (bytes,), uint8
        The bytes that `encode` returns for the dense matrix. Entries that are 0.0 are left out.

    Raises
    ------
    ConfigError
        These are not compressed sparse rows of that shape, or the dtype is neither float16 nor float32.
    """
    from gpuclust.storage import codec_packed_kernels as kernels

    data = np.asarray(values)
    dtype = _check_dtype(data.dtype)
    positions = codec_packed.positions_of_csr(np.asarray(indptr), np.asarray(indices), data.shape, shape)
    packed = np.require(data, dtype, ["C", "A"]).view(f"<u{dtype.itemsize}")
    if not packed.all():
        positions, packed = positions[packed != 0], packed[packed != 0]
    count, nonzero = math.prod(shape), len(packed)
    if nonzero <= codec_packed.most(count):
        return _in_buckets(positions, packed, count)
    start, end, size = _layout(count, nonzero, dtype.itemsize)
    chunk = np.zeros(size, np.uint8)
    kernels.mark(positions, chunk[_HEADER.size : start].view("<u8"))
    chunk[start:end].view(packed.dtype)[:] = packed
    return _sealed(chunk, (_BITMAP, dtype.itemsize, 0, count, nonzero))


def decode(buffer: Encoded, shape: tuple[int, ...], dtype: DTypeLike, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Unpack an encoded chunk, of either layout.

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
    from gpuclust.storage import codec_kernels, codec_packed_kernels

    stored = _check_dtype(np.dtype(dtype))
    target = np.empty(shape, stored) if out is None else out
    if target.shape != shape or target.dtype != stored or not target.flags.c_contiguous:
        raise ConfigError(f"out is {target.dtype} {target.shape}: pass a C-contiguous array, {stored} {shape}.")
    where, packed, in_buckets = _checked(np.frombuffer(buffer, np.uint8), math.prod(shape), stored.itemsize)
    fill = codec_packed_kernels.place if in_buckets else codec_kernels.scatter
    fill(where, packed, target.reshape(-1).view(packed.dtype))
    return target.astype(dtype, copy=False)


def decode_csr(buffer: Encoded, shape: tuple[int, int], dtype: DTypeLike) -> Sparse:
    """Unpack an encoded chunk, of either layout, into compressed sparse rows. Nothing dense is made of it.

    Parameters
    ----------
    buffer : bytes-like, or array, (bytes,), uint8
        What `encode` or `encode_csr` returned.
    shape : (int, int)
        Rows and columns of the matrix that was encoded; fewer than 2,147,483,648 columns.
    dtype : dtype
        float16 or float32; its itemsize must be the chunk's.

    Returns
    -------
    indptr : array, (row + 1,), int64
        Where each row begins among the entries; the last number is how many there are.
    indices : array, (entry,), int32
        Columns, ascending within a row.
    values : array, (entry,), `dtype`
        Elements whose bit pattern is not 0.0's. A read-only view of `buffer` where that lies at a multiple of 8 bytes.

    Raises
    ------
    ConfigError, CorruptDataError
        As of `decode`.
    """
    from gpuclust.storage import codec_packed_kernels as kernels

    stored = _check_dtype(np.dtype(dtype))
    rows, columns = shape
    if columns > np.iinfo(np.int32).max:
        raise ConfigError(f"a chunk of {columns:,} columns has no int32 indices: make chunks of fewer features.")
    positions, packed, in_buckets = _checked(np.frombuffer(buffer, np.uint8), rows * columns, stored.itemsize)
    if not in_buckets:
        words, positions = positions, np.empty(len(packed), np.int64)
        kernels.marked(words, positions)
    starts = np.arange(rows + 1) * columns
    indptr = np.searchsorted(positions, starts)
    indices = (positions - np.repeat(starts[:-1], np.diff(indptr))).astype(np.int32)
    return indptr, indices, packed.view(stored).astype(dtype, copy=False)


def sections(chunk: NDArray[np.uint8], count: int, itemsize: int) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """Return a chunk's bitmap and its non-zero values, having checked all that kernels, which check no bounds, rely on.

    Parameters
    ----------
    chunk : array, (byte,), uint8
        An encoded chunk, of either layout: of the one without a bitmap, one is made.
    count, itemsize : int
        Elements of the chunk, and bytes of one.

    Returns
    -------
    array, (ceil(count / 64),), uint64
    array, (non-zero,), uint16 or uint32
        Bits of the values. Both are read-only; but for a bitmap that was made, they are views of `chunk`.

    Raises
    ------
    CorruptDataError
        If the bytes are not what `encode` writes.
    """
    from gpuclust.storage import codec_packed_kernels as kernels

    where, packed, in_buckets = _checked(chunk, count, itemsize)
    if not in_buckets:
        return where, packed
    words = np.zeros(-(-count // 64), "<u8")
    kernels.mark(where, words)
    words.flags.writeable = False
    return words, packed


def _checked(chunk: NDArray[np.uint8], count: int, itemsize: int) -> tuple[NDArray[Any], NDArray[Any], bool]:
    """Return a checked chunk's bitmap, or the places of its elements; their bits; and which of the two it was."""
    if chunk.size < _HEADER.size:
        raise _corrupt(f"it has {chunk.size} bytes, fewer than the {_HEADER.size} of a header")
    count = int(count)  # not of 64 bits: a damaged header says any number
    magic, version, size, low, number, nonzero, crc = _HEADER.unpack_from(chunk.data)
    kind, wanted = [magic, version, size, number], [_MAGIC, _BITMAP, itemsize, count]
    in_buckets = version == _BUCKETS and low in (1, 2)
    if kind != [_MAGIC, _BUCKETS if in_buckets else _BITMAP, itemsize, count] or (low and not in_buckets):
        raise _corrupt(f"its magic, version, itemsize and number of elements are {kind}, not {wanted}")
    start, end, whole = _layout(count, nonzero, itemsize, low if in_buckets else 0)
    if nonzero > count or chunk.size != whole:
        raise _corrupt(f"it has {chunk.size} bytes, not the {whole} of {nonzero} non-zero elements among {count}")
    if _crc(chunk) != crc:
        raise _corrupt(f"its CRC-32C is {_crc(chunk):#010x}, not {crc:#010x} as stored")
    packed = np.require(chunk[start:end].view(f"<u{itemsize}"), requirements="A")
    packed.flags.writeable = False
    if in_buckets:
        if chunk[7] or chunk[24:28].any() or chunk[end:].any() or not packed.all():
            raise _corrupt("its padding is not zeros, or a value is")
        positions = codec_packed.read(chunk[_HEADER.size : start], count, nonzero, low)
        if isinstance(positions, str):
            raise _corrupt(positions)
        return positions, packed, True
    words = np.require(chunk[_HEADER.size : start].view("<u8"), requirements="A")
    marked = int(np.bitwise_count(words).sum())
    if marked != nonzero or (count % 64 and int(words[-1]) >> count % 64):
        raise _corrupt(f"its bitmap marks {marked} elements, not {nonzero} among the first {count}")
    words.flags.writeable = False
    return words, packed, False


def _in_buckets(positions: NDArray[np.int64], packed: NDArray[Any], count: int) -> NDArray[np.uint8]:
    """Encode values and their places without a bitmap."""
    low = codec_packed.best_low(count, len(packed))
    start, end, size = _layout(count, len(packed), packed.itemsize, low)
    chunk = np.zeros(size, np.uint8)
    codec_packed.write(positions, low, chunk[_HEADER.size : start])
    chunk[start:end].view(packed.dtype)[:] = packed
    return _sealed(chunk, (_BUCKETS, packed.itemsize, low, count, len(packed)))


def _layout(count: int, nonzero: int, itemsize: int, low: int = 0) -> tuple[int, int, int]:
    """Return where the values start and end, and the chunk's size."""
    start = _HEADER.size + (codec_packed.size(count, nonzero, low) if low else 8 * -(-count // 64))
    end = start + nonzero * itemsize
    return start, end, -(-end // 8) * 8


def _sealed(chunk: NDArray[np.uint8], kind: tuple[int, ...]) -> NDArray[np.uint8]:
    """Write a chunk's header."""
    _HEADER.pack_into(chunk.data, 0, _MAGIC, *kind, 0)
    struct.pack_into("<I", chunk.data, _HEADER.size - 4, _crc(chunk))
    return chunk


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
