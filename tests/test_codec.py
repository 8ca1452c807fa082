from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zarr.abc.codec import SupportsSyncCodec
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.dtype import get_data_type_from_native_dtype

from gpuclust.errors import ConfigError, CorruptDataError
from gpuclust.storage import codec_kernels
from gpuclust.storage.codec import BitmapCodec, decode, encode

Array = np.ndarray[Any, Any]
FLOATS = {np.dtype(np.uint16): np.dtype(np.float16), np.dtype(np.uint32): np.dtype(np.float32)}
HEADER = "<4sBBHQQII"


def bits(array: Array) -> Array:
    """View floats as the unsigned integers that they are stored as: NaN compares, and -0.0 is not 0.0."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


@st.composite
def patterns(draw: st.DrawFn) -> Array:
    """Floats of any bit pattern and shape, a few of them drawn one by one."""
    raw = draw(st.sampled_from(list(FLOATS)))
    elements = st.one_of(st.just(0), st.integers(0, 2 ** (8 * raw.itemsize) - 1))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
    return draw(hnp.arrays(raw, shape, elements=elements)).view(FLOATS[raw])


@st.composite
def sparse(draw: st.DrawFn, max_side: int = 40) -> Array:
    """Matrices of many 64-bit words of bitmap, of any density: empty and full words, and everything between."""
    raw = draw(st.sampled_from(list(FLOATS)))
    shape = draw(st.tuples(st.integers(1, max_side), st.integers(1, max_side)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)))
    rates = np.full(shape[1], density) if draw(st.booleans()) else rng.random(shape[1]) * density
    values = rng.integers(1, 2 ** (8 * raw.itemsize), shape, dtype=raw)
    return (values * (rng.random(shape) < rates).astype(raw)).view(FLOATS[raw])


def reference(array: Array) -> bytes:
    """Encode an array slowly, from the description of the format: the smallest layout."""
    return min((as_bitmap(array), in_buckets(array, 1), in_buckets(array, 2)), key=len)


def as_bitmap(array: Array) -> bytes:
    """Encode as version 1 of the format does, however few elements are not zero."""
    flat = bits(array).reshape(-1)
    bitmap = np.packbits(flat != 0, bitorder="little").tobytes()
    values = flat[flat != 0].tobytes()
    return sealed(b"GCBM", 1, array.dtype.itemsize, flat.size, np.count_nonzero(flat), padded(bitmap) + padded(values))


def in_buckets(array: Array, low: int) -> bytes:
    """Encode as version 2 of the format does, however many elements are not zero."""
    flat = bits(array).reshape(-1)
    ones, lows = "", b""
    for start in range(0, flat.size, 256**low):
        places = np.flatnonzero(flat[start : start + 256**low])
        ones += "1" * len(places) + "0"
        lows += b"".join(int(place).to_bytes(low, "little") for place in places)
    buckets = np.packbits(np.array(list(ones), np.uint8), bitorder="little").tobytes() if ones else b""
    body = padded(buckets) + padded(lows) + padded(flat[flat != 0].tobytes())
    return sealed(b"GCBM", 2, array.dtype.itemsize, flat.size, np.count_nonzero(flat), body, low)


def padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 8)


def sealed(magic: bytes, version: int, itemsize: int, count: int, nonzero: int, body: bytes, low: int = 0) -> bytes:
    """Put a header with a right checksum before a body."""
    head = struct.pack(HEADER, magic, version, itemsize, low, count, nonzero, 0, 0)[:-4]
    return head + struct.pack("<I", google_crc32c.value(head + body)) + body


@given(st.one_of(patterns(), sparse()))
def test_round_trip_and_format(array: Array) -> None:
    chunk = encode(array)
    assert chunk.dtype == np.uint8
    assert chunk.tobytes() == reference(array)
    back = decode(chunk, array.shape, array.dtype)
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(bits(back), bits(array))


@pytest.mark.parametrize("width", [65536, 257, 64, 1])
def test_every_float16(width: int) -> None:
    count = 65536 // width * width
    every = np.arange(65536, dtype=np.uint16)[:count].reshape(-1, width).view(np.float16)
    np.testing.assert_array_equal(bits(decode(encode(every), every.shape, np.float16)), bits(every))


def test_special_float32() -> None:
    raw = np.array([0, 1, 0x80000000, 0x7F800001, 0xFFC12345, 0x7F800000, 0x007FFFFF, 0x00010000], np.uint32)
    chunk = encode(raw.view(np.float32))
    np.testing.assert_array_equal(bits(decode(chunk, (8,), np.float32)), raw)


@given(sparse())
def test_any_layout_and_byte_order(array: Array) -> None:
    for other in (
        np.asfortranarray(array),
        array.astype(array.dtype.newbyteorder(">")),
        np.repeat(array, 2, 1)[:, ::2],
    ):
        assert encode(other).tobytes() == encode(array).tobytes()
    back = decode(encode(array), array.shape, array.dtype.newbyteorder(">"))
    assert back.dtype == array.dtype.newbyteorder(">")
    np.testing.assert_array_equal(bits(back.astype(array.dtype)), bits(array))


@given(sparse(), st.integers(0, 8))
def test_buffers_at_any_address(array: Array, offset: int) -> None:
    chunk = encode(array).tobytes()
    for buffer in (chunk, memoryview(b"x" * offset + chunk)[offset:], bytearray(chunk)):
        np.testing.assert_array_equal(bits(decode(buffer, array.shape, array.dtype)), bits(array))


@given(sparse())
def test_decoding_into_an_array_writes_nothing_beside_it(array: Array) -> None:
    room = np.full(array.size + 200, 7, array.dtype)
    out = room[100:-100].reshape(array.shape)
    assert decode(encode(array), array.shape, array.dtype, out=out) is out
    np.testing.assert_array_equal(bits(out), bits(array))
    assert (room[:100] == 7).all()
    assert (room[-100:] == 7).all()


@pytest.mark.parametrize("first", range(18))
def test_kernels_stay_within_their_arrays(first: int) -> None:
    """Run them as Python, which checks the bounds that compiled code does not: they read and write ahead."""
    rng = np.random.default_rng(first)
    for last in range(10):  # non-zero elements of the last word, after one of `first`
        flat = np.zeros(64 + rng.integers(max(last, 1), 65), np.uint16)
        flat[rng.permutation(64)[:first]] = flat[64 + rng.permutation(flat.size - 64)[:last]] = 7
        bitmap = np.zeros(16, np.uint8)
        bitmap[: -(-flat.size // 8)] = np.packbits(flat != 0, bitorder="little")
        packed, out = np.empty(first + last, np.uint16), np.empty_like(flat)
        with np.errstate(over="ignore"):
            codec_kernels.gather.py_func(flat, bitmap.view(np.uint64), packed)
            codec_kernels.scatter_plain.py_func(bitmap.view(np.uint64), packed, out)
        assert (packed == 7).all()
        np.testing.assert_array_equal(out, flat)


@pytest.mark.skipif(not codec_kernels.has_shuffle(), reason="this processor has no byte shuffle that the kernels know")
@pytest.mark.parametrize("raw", [np.uint16, np.uint32])
@given(data=st.data())
def test_both_ways_of_scattering_agree(raw: Any, data: st.DataObject) -> None:
    flat = bits(data.draw(sparse())).reshape(-1).astype(raw)
    words = np.frombuffer(
        np.packbits(flat != 0, bitorder="little").tobytes() + bytes(8), np.uint64, -(-flat.size // 64)
    )
    plain, shuffled = np.full_like(flat, 9), np.full(flat.size + 200, 9, raw)
    codec_kernels.scatter_plain(words, flat[flat != 0], plain)
    codec_kernels.scatter(words, flat[flat != 0], shuffled[100:-100])
    np.testing.assert_array_equal(plain, flat)
    np.testing.assert_array_equal(shuffled[100:-100], flat)
    assert (shuffled[:100] == 9).all()
    assert (shuffled[-100:] == 9).all()


def test_says_why_the_plain_loop_decodes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    codec_kernels.has_shuffle.cache_clear()
    try:
        with caplog.at_level("INFO", "gpuclust"):
            array = np.eye(9, dtype=np.float16)
            np.testing.assert_array_equal(decode(encode(array), (9, 9), np.float16), array)
        assert "riscv64" in caplog.text
    finally:
        codec_kernels.has_shuffle.cache_clear()


@pytest.mark.parametrize(
    "out", [np.zeros((3, 2), np.float16), np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float16).T]
)
def test_refuses_another_out(out: Array) -> None:
    with pytest.raises(ConfigError, match="pass a C-contiguous array, float16"):
        decode(encode(np.zeros((2, 3), np.float16)), (2, 3), np.float16, out=out)


def test_threads() -> None:
    rng = np.random.default_rng(0)
    arrays = [(rng.random((50, 999)) * (rng.random((50, 999)) < 0.3)).astype(np.float16) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        back = list(pool.map(lambda array: decode(encode(array), array.shape, array.dtype), arrays))
    assert all((a == b).all() for a, b in zip(arrays, back, strict=True))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_flipped_bit_is_refused(dtype: Any) -> None:
    array = np.array([0, 1.5, 0, -0.0, 0, np.nan, 3, 0] * 9 + [2], dtype)
    chunk = encode(array)
    for position in range(chunk.size):
        for bit in range(8):
            damaged = chunk.copy()
            damaged[position] ^= 1 << bit
            with pytest.raises(CorruptDataError, match=r"gpuclust\.bitmap chunk is corrupt: .*gpuclust verify"):
                decode(damaged, array.shape, dtype)


@given(sparse(12), st.data())
def test_damage_is_refused(array: Array, data: st.DataObject) -> None:
    chunk = encode(array).tobytes()
    position = data.draw(st.integers(0, len(chunk) - 1))
    flipped = chunk[:position] + bytes([chunk[position] ^ data.draw(st.integers(1, 255))]) + chunk[position + 1 :]
    for damaged in (flipped, chunk[:position], chunk + b"\0", chunk + bytes(8), b""):
        with pytest.raises(CorruptDataError):
            decode(damaged, array.shape, array.dtype)


def body(*marked: int, count: int, values: int) -> bytes:
    """Return a bitmap with `marked` bits of `count`, padded to words, and so many float16 values, padded."""
    bitmap = np.zeros(-(-count // 64) * 64, bool)
    bitmap[list(marked)] = True
    return np.packbits(bitmap, bitorder="little").tobytes() + bytes(-(-values * 2 // 8) * 8)


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (sealed(b"GCBN", 1, 2, 70, 2, body(0, 69, count=70, values=2)), "magic, version, itemsize"),
        (sealed(b"GCBM", 2, 2, 70, 2, body(0, 69, count=70, values=2)), "magic, version, itemsize"),
        (sealed(b"GCBM", 1, 4, 70, 2, body(0, 69, count=70, values=4)), r"\[b'GCBM', 1, 4, 70\], not"),
        (sealed(b"GCBM", 1, 2, 71, 2, body(0, 69, count=71, values=2)), "not .*, 1, 2, 70"),
        (sealed(b"GCBM", 1, 2, 70, 71, body(0, 69, count=70, values=71)), "non-zero elements among 70"),
        (sealed(b"GCBM", 1, 2, 70, 2**63, body(0, 69, count=70, values=2)), "non-zero elements among 70"),
        (sealed(b"GCBM", 1, 2, 70, 1, body(0, 69, count=70, values=1)), "bitmap marks 2 elements, not 1"),
        (sealed(b"GCBM", 1, 2, 70, 3, body(0, 69, count=70, values=3)), "bitmap marks 2 elements, not 3"),
        (sealed(b"GCBM", 1, 2, 70, 2, body(0, 70, count=70, values=2)), "not 2 among the first 70"),
        (sealed(b"GCBM", 1, 2, 70, 2, body(0, 127, count=70, values=2)), "not 2 among the first 70"),
    ],
)
def test_a_right_checksum_does_not_save_a_wrong_chunk(chunk: bytes, reason: str) -> None:
    with pytest.raises(CorruptDataError, match=reason):
        decode(chunk, (70,), np.float16)


def test_no_checksum_but_crc32c() -> None:
    chunk = encode(np.array([1, 0, 2], np.float32)).tobytes()
    other = chunk[:28] + struct.pack("<I", zlib.crc32(chunk[:28] + chunk[32:])) + chunk[32:]
    with pytest.raises(CorruptDataError, match="CRC-32C"):
        decode(other, (3,), np.float32)


@pytest.mark.parametrize("dtype", [np.float64, np.int16, np.uint32, np.bool_, np.complex64])
def test_refuses_other_dtypes(dtype: Any) -> None:
    with pytest.raises(ConfigError, match=r"holds float16 or float32, not .*: convert"):
        encode(np.zeros(3, dtype))
    with pytest.raises(ConfigError, match="holds float16 or float32"):
        decode(encode(np.zeros(3, np.float32)), (3,), dtype)
    for shards in (None, (4, 4)):
        with pytest.raises(ConfigError, match="holds float16 or float32"):
            create({}, np.zeros((5, 5), dtype), (2, 2), shards)


def create(store: Any, data: Array, chunks: tuple[int, ...], shards: tuple[int, ...] | None, empty: bool = True) -> Any:
    array = zarr.create_array(
        store,
        name="activations",
        shape=data.shape,
        dtype=data.dtype,
        chunks=chunks,
        shards=shards,
        serializer=BitmapCodec(),
        compressors=None,
        fill_value=0,
        dimension_names=("prompt", "feature"),
        config={"write_empty_chunks": empty},
    )
    array[...] = data
    return array


@settings(max_examples=25)
@given(sparse(24), st.data())
def test_zarr(data: Array, draw: st.DataObject) -> None:
    """Sharded or not, with chunks and shards that do not divide the shape: all of it, and any window."""
    chunks = (draw.draw(st.integers(1, 9)), draw.draw(st.integers(1, 9)))
    inner = (draw.draw(st.integers(1, 3)), draw.draw(st.integers(1, 3)))
    shards = None if draw.draw(st.booleans()) else (chunks[0] * inner[0], chunks[1] * inner[1])
    store: dict[str, Any] = {}
    create(store, data, chunks, shards, empty=draw.draw(st.booleans()))
    array = zarr.open_array(store, path="activations", mode="r")
    np.testing.assert_array_equal(bits(array[...]), bits(data))
    rows, columns = (sorted(draw.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in data.shape)
    window = np.s_[rows[0] : rows[1], columns[0] : columns[1]]
    np.testing.assert_array_equal(bits(array[window]), bits(data[window]))


def test_zarr_keeps_negative_zeros() -> None:
    for empty in (True, False):
        store: dict[str, Any] = {}
        create(store, np.full((4, 4), -0.0, np.float16), (2, 2), (4, 4), empty)
        assert np.signbit(zarr.open_array(store, path="activations")[...]).all()


def test_zarr_refuses_every_flipped_byte_of_a_shard(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = (rng.random((7, 11)) * (rng.random((7, 11)) < 0.3)).astype(np.float16)
    create(tmp_path, data, (2, 6), (4, 12))
    shard = tmp_path / "activations" / "c" / "0" / "0"
    intact = shard.read_bytes()
    array = zarr.open_array(tmp_path / "activations", mode="r")
    refusals = []
    for position in range(len(intact)):
        damaged = bytearray(intact)
        damaged[position] ^= 1 + position % 255
        shard.write_bytes(damaged)
        # zarr's own index of the shard, its last bytes, has zarr's own error; all else is ours.
        with pytest.raises((CorruptDataError, ValueError)) as refusal:
            array[...]
        refusals.append(refusal.type)
    assert refusals.count(ValueError) == 4 * 16 + 4
    assert set(refusals[: -4 * 16 - 4]) == {CorruptDataError}
    shard.write_bytes(intact)
    np.testing.assert_array_equal(array[...], data)


def test_metadata() -> None:
    array = create({}, np.ones((3, 3), np.float16), (2, 2), None)
    assert array.metadata.to_dict()["codecs"] == ({"name": "gpuclust.bitmap"},)
    assert BitmapCodec.from_dict({"name": "gpuclust.bitmap"}) == BitmapCodec()
    with pytest.raises(ValueError, match=r"gpuclust\.bitmap"):
        BitmapCodec.from_dict({"name": "bitmap"})


def test_without_an_event_loop() -> None:
    """Pipelines that decode in place of awaiting call the codec's synchronous half."""
    bitmap = BitmapCodec()
    assert isinstance(bitmap, SupportsSyncCodec)
    data = np.array([[0, 1, 0], [0, 0, -2]], np.float32)
    spec = ArraySpec(
        shape=data.shape,
        dtype=get_data_type_from_native_dtype(data.dtype),
        fill_value=0,
        config=ArrayConfig(order="C", write_empty_chunks=True),
        prototype=default_buffer_prototype(),
    )
    with pytest.raises(NotImplementedError):  # a variable size, as the shard's index needs to know
        bitmap.compute_encoded_size(data.nbytes, spec)
    chunk = bitmap._encode_sync(spec.prototype.nd_buffer.from_numpy_array(data), spec)
    np.testing.assert_array_equal(bitmap._decode_sync(chunk, spec).as_numpy_array(), data)


def test_a_fresh_process_opens_the_store_with_xarray(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((9, 13)).astype(np.float16)
    data[data < 0.7] = 0
    create(tmp_path, data, (2, 8), (4, 16))
    script = (
        "import sys, numpy, xarray\n"
        "assert not any(name.startswith('gpuclust') for name in sys.modules)\n"
        f"lazy = xarray.open_zarr({str(tmp_path)!r}, consolidated=False).activations\n"
        "assert lazy.dims == ('prompt', 'feature') and 'gpuclust.storage.codec' in sys.modules\n"
        "assert 'numba' not in sys.modules  # opening is quick: the kernels wait for the first chunk\n"
        "sys.stdout.buffer.write(lazy.values.tobytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == data.tobytes()
