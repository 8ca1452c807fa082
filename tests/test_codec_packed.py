"""The codec's layout of very sparse chunks, and compressed sparse rows of chunks of either layout."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuclust.errors import ConfigError, CorruptDataError
from gpuclust.storage import codec_kernels, codec_packed
from gpuclust.storage import codec_packed_kernels as kernels
from gpuclust.storage.codec import decode, decode_csr, encode, encode_csr, sections
from tests.test_codec import Array, as_bitmap, bits, create, in_buckets, reference, sealed, sparse

RAW = {2: np.dtype(np.float16), 4: np.dtype(np.float32)}


@st.composite
def very_sparse(draw: st.DrawFn, rows: int = 9, columns: int = 3000) -> Array:
    """Matrices of few elements of any bit pattern, anywhere, alone or side by side."""
    itemsize = draw(st.sampled_from([2, 4]))
    shape = draw(st.integers(1, rows)), draw(st.one_of(st.integers(1, columns), st.sampled_from([1, 255, 256, 257])))
    flat = np.zeros(shape[0] * shape[1], f"u{itemsize}")
    patterns = st.integers(1, 2 ** (8 * itemsize) - 1)
    for place in draw(st.lists(st.integers(0, flat.size - 1), max_size=30)):
        run = draw(st.integers(1, 4))
        flat[place : place + run] = draw(patterns)
    return flat.view(RAW[itemsize]).reshape(shape)


def rows_of(array: Array) -> tuple[list[int], list[int], list[int]]:
    """The compressed sparse rows of a matrix, row by row: indptr, indices, and the bits of the values."""
    columns = [np.flatnonzero(row) for row in bits(array)]
    values = [row[there] for row, there in zip(bits(array), columns, strict=True)]
    indptr = [sum(len(there) for there in columns[:row]) for row in range(len(columns) + 1)]
    return indptr, [int(c) for there in columns for c in there], [int(v) for row in values for v in row]


def check_csr(chunk: Any, array: Array) -> None:
    indptr, indices, values = decode_csr(chunk, array.shape, array.dtype)
    assert (indptr.dtype, indices.dtype, values.dtype) == (np.int64, np.int32, array.dtype)
    assert (indptr.tolist(), indices.tolist(), bits(values).tolist()) == rows_of(array)


@settings(max_examples=60, deadline=None)
@given(very_sparse())
def test_round_trip_and_format(array: Array) -> None:
    chunk = encode(array)
    assert chunk.tobytes() == reference(array)
    np.testing.assert_array_equal(bits(decode(chunk, array.shape, array.dtype)), bits(array))
    check_csr(chunk, array)


@settings(max_examples=60, deadline=None)
@given(st.one_of(very_sparse(4, 600), sparse(24)))
def test_every_layout_of_any_density_is_read(array: Array) -> None:
    """A bitmap that a gpuclust before version 2 of the format wrote too, whatever would be written today."""
    for chunk in (as_bitmap(array), in_buckets(array, 1), in_buckets(array, 2)):
        np.testing.assert_array_equal(bits(decode(chunk, array.shape, array.dtype)), bits(array))
        check_csr(chunk, array)
        words, packed = sections(np.frombuffer(chunk, np.uint8), array.size, array.itemsize)
        old = sections(np.frombuffer(as_bitmap(array), np.uint8), array.size, array.itemsize)
        np.testing.assert_array_equal(words, old[0])
        np.testing.assert_array_equal(packed, old[1])
        assert not words.flags.writeable
        assert not packed.flags.writeable


@settings(max_examples=60, deadline=None)
@given(st.one_of(very_sparse(), sparse(24)))
def test_sparse_rows_are_encoded_as_the_dense_matrix(array: Array) -> None:
    indptr, indices, values = rows_of(array)
    stored = np.array(values, f"u{array.itemsize}").view(array.dtype)
    expected = encode(array).tobytes()
    assert encode_csr(indptr, np.array(indices, np.int64), stored, array.shape).tobytes() == expected
    assert encode_csr(*decode_csr(expected, array.shape, array.dtype), array.shape).tobytes() == expected
    padded = np.zeros(2 * len(stored), array.dtype)
    padded[::2] = stored
    assert encode_csr(indptr, np.array(indices, np.uint16), padded[::2], array.shape).tobytes() == expected


def test_entries_that_are_zero_are_left_out_and_negative_zeros_are_not() -> None:
    array = np.zeros((3, 5000), np.float16)
    array[1, 7], array[2, 4999] = -0.0, np.nan
    entries = np.array([0.0, -0.0, 0.0, np.nan], np.float16)
    chunk = encode_csr([0, 1, 2, 4], [9, 7, 0, 4999], entries, (3, 5000))
    assert chunk.tobytes() == encode(array).tobytes()
    check_csr(chunk, array)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("gap", [9, 300, 70_000])
def test_every_float16_and_odd_float32(itemsize: int, gap: int) -> None:
    """Subnormals, infinities, NaNs with any payload and -0.0, at places that either size of low part is best for."""
    patterns = np.arange(1, 65536, 97, np.uint16).astype(f"u{itemsize}") * (65537 if itemsize == 4 else 1)
    patterns[:3] = [1 << 8 * itemsize - 1, 1, 2 ** (8 * itemsize) - 1]
    flat = np.zeros(len(patterns) * gap, patterns.dtype)
    flat[gap - 1 :: gap] = patterns
    array = flat.view(RAW[itemsize]).reshape(1, -1)
    chunk = encode(array)
    assert tuple(chunk[[4, 6]]) == {9: (1, 0), 300: (2, 1), 70_000: (2, 2)}[gap]
    np.testing.assert_array_equal(bits(decode(chunk, array.shape, array.dtype)), bits(array))
    np.testing.assert_array_equal(bits(decode_csr(chunk, array.shape, array.dtype)[2]), patterns)


@pytest.mark.parametrize(
    ("shape", "places"),
    [
        ((4, 131_073), []),  # nothing at all
        ((4, 131_073), [0, 131_072, 131_073, 4 * 131_073 - 1]),  # past 17 bits, the first and the last of a row
        ((1, 131_073), [65_535, 65_536, 131_072]),
        ((1, 9000), [0, 8999]),
        ((9000, 1), [0, 17, 8999]),  # rows without any element
        ((70_000, 2), [139_999]),
        ((3, 256), [255, 256, 511, 512, 767]),  # the edges of buckets
        ((1, 64), []),
        ((1, 1), [0]),
        ((0, 5), []),
        ((5, 0), []),
    ],
)
def test_edges(shape: tuple[int, int], places: list[int]) -> None:
    flat = np.zeros(shape[0] * shape[1], np.float16)
    flat[places] = np.arange(1, len(places) + 1)
    array = flat.reshape(shape)
    chunk = encode(array)
    assert chunk.size <= len(as_bitmap(array))
    np.testing.assert_array_equal(decode(chunk, shape, np.float16), array)
    indptr, indices, values = decode_csr(chunk, shape, np.float16)
    assert indptr[-1] == len(places)
    assert (np.repeat(np.arange(shape[0]), np.diff(indptr)) * shape[1] + indices).tolist() == places
    assert encode_csr(indptr, indices, values, shape).tobytes() == chunk.tobytes()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 129, 1000, 4096, 200_000])
def test_the_smaller_layout_is_taken(count: int) -> None:
    most = codec_packed.most(count)
    assert -1 <= most <= count // 9
    assert most >= count // 10 or count < 1000
    rng = np.random.default_rng(0)
    for nonzero, version in ((most, 2), (most + 1, 1)):
        if nonzero >= 0:
            flat = np.zeros(count, np.float16)
            flat[rng.permutation(count)[:nonzero]] = 1
            chunk = encode(flat)
            assert chunk[4] == version
            assert chunk.tobytes() == reference(flat)
            assert (version == 2) == (chunk.size < len(as_bitmap(flat)))


@pytest.mark.parametrize(
    ("indptr", "indices", "entries", "reason"),
    [
        ([0, 1], [0], 1, "these are not 2 sparse rows"),
        ([0, 1, 2], [0], 1, "these are not 2 sparse rows"),
        ([1, 1, 1], [0], 1, "these are not 2 sparse rows"),
        ([0, 1, 1], [0], 2, "these are not 2 sparse rows"),
        ([0, 2, 1], [0], 1, "indptr descends"),
        ([0, 1, 1], [5], 1, "an index is not of 5 columns"),
        ([0, 1, 1], [-1], 1, "an index is not of 5 columns"),
        ([0, 1, 1], [0.0], 1, "pass integers"),
        ([0.0, 1, 1], [0], 1, "pass integers"),
        ([0, 2, 2], [3, 1], 2, "do not ascend within a row"),
        ([0, 2, 2], [3, 3], 2, "do not ascend within a row"),
    ],
)
def test_what_is_no_sparse_rows_is_refused(indptr: Any, indices: Any, entries: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        encode_csr(indptr, indices, np.ones(entries, np.float16), (2, 5))


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ConfigError, match="holds float16 or float32, not float64: convert"):
        encode_csr([0, 1], [0], np.ones(1), (1, 1))
    with pytest.raises(ConfigError, match="holds float16 or float32, not int16: convert"):
        decode_csr(encode(np.ones((1, 1), np.float16)), (1, 1), np.int16)
    with pytest.raises(ConfigError, match="2,147,483,648 columns"):
        decode_csr(encode(np.ones((1, 1), np.float16)), (1, 2**31), np.float16)


@given(very_sparse(3, 400), st.integers(0, 8))
def test_buffers_at_any_address(array: Array, offset: int) -> None:
    chunk = in_buckets(array, 1)
    for buffer in (chunk, memoryview(b"x" * offset + chunk)[offset:], bytearray(chunk)):
        np.testing.assert_array_equal(bits(decode(buffer, array.shape, array.dtype)), bits(array))
        check_csr(buffer, array)


# ---------------------------------------------------------------- damage


def resealed(chunk: bytes) -> bytes:
    """A chunk with a right checksum of whatever is in it."""
    crc = google_crc32c.value(chunk[:28] + chunk[32:])
    return chunk[:28] + struct.pack("<I", crc) + chunk[32:]


def accepted(chunk: bytes, array: Array, low: int) -> bool:
    """Whether a chunk is taken; if so it must be, byte for byte, that of the array it is decoded to."""
    readers: list[Any] = [decode, decode_csr, lambda c, s, d: sections(np.frombuffer(c, "u1"), np.prod(s), d.itemsize)]
    refusals = []
    for read in readers:
        try:
            read(chunk, array.shape, array.dtype)
        except CorruptDataError as error:
            refusals.append(str(error))
    assert len(refusals) in (0, len(readers))
    assert all("gpuclust.bitmap chunk is corrupt: " in refusal for refusal in refusals)
    if not refusals:
        back = decode(chunk, array.shape, array.dtype)
        assert in_buckets(back, low) == chunk
        check_csr(chunk, back)
    return not refusals


SWEPT = [  # low parts of one byte and of two, padding in every part
    (1, np.array([[0] * 250 + [1, 0, 0, 0, 2, 0, 3], [4, 5] + [0] * 255, [0] * 257, [0] * 256 + [6]], np.float16)),
    (2, np.array([[0] * 40_000 + [1.5, 0, -0.0], [0] * 40_001 + [np.nan, 0]], np.float32)),
    (1, np.zeros((3, 300), np.float16)),
]


@pytest.mark.parametrize(("low", "array"), SWEPT)
def test_every_damaged_byte_is_refused(low: int, array: Array) -> None:
    chunk = in_buckets(array, low)
    for position in range(len(chunk)):
        for change in (1, 2, 16, 128, 255, chunk[position] or 3):
            damaged = chunk[:position] + bytes([chunk[position] ^ change]) + chunk[position + 1 :]
            assert not accepted(damaged, array, low)
    for length in range(len(chunk)):
        assert not accepted(chunk[:length], array, low)
    for more in (1, 8):
        assert not accepted(chunk + bytes(more), array, low)


@pytest.mark.parametrize(("low", "array"), SWEPT)
def test_a_right_checksum_does_not_save_a_damaged_byte(low: int, array: Array) -> None:
    """Only another value, or another place between its neighbours, is a chunk, namely of another array."""
    chunk = in_buckets(array, low)
    nonzero, end = np.count_nonzero(bits(array)), len(chunk)
    values = end - -(-nonzero * array.itemsize // 8) * 8
    lows = values - -(-nonzero * low // 8) * 8
    free = {*range(lows, lows + nonzero * low), *range(values, values + nonzero * array.itemsize)}
    taken = 0
    for position in {*range(end)} - {*range(28, 32)}:
        for value in range(256) if position in free or position >= 32 else range(0, 256, 5):
            if value != chunk[position]:
                damaged = resealed(chunk[:position] + bytes([value]) + chunk[position + 1 :])
                fine = accepted(damaged, array, low)
                assert not fine or position in free or 32 <= position < lows
                taken += fine
    assert taken > 0 or not nonzero
    for length in (*range(32, end), end + 1, end + 8):
        assert not accepted(resealed((chunk + bytes(8))[:length]), array, low)


@settings(max_examples=200, deadline=None)
@given(very_sparse(3, 600), st.sampled_from([1, 2]), st.data())
def test_any_bytes_with_a_right_checksum(array: Array, low: int, data: st.DataObject) -> None:
    chunk = bytearray(in_buckets(array, low))
    for position in data.draw(st.lists(st.integers(0, len(chunk) - 1), max_size=6)):
        chunk[position] = data.draw(st.integers(0, 255))
    accepted(resealed(bytes(chunk)), array, low)


def body(ones: str, lows: list[int], values: int) -> bytes:
    """Buckets given bit by bit, low parts of one byte, and so many float16 ones, each part padded."""
    buckets = np.packbits([int(one) for one in ones], bitorder="little").tobytes()
    stored = np.ones(values, np.float16).tobytes()
    return b"".join(part + bytes(-len(part) % 8) for part in (buckets, bytes(lows), stored))


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (sealed(b"GCBM", 2, 2, 600, 2, body("10010", [9, 9], 2), 1), None),
        (sealed(b"GCBM", 2, 2, 600, 2, body("10010", [9, 9], 2), 0), "magic, version, itemsize"),
        (sealed(b"GCBM", 2, 2, 600, 2, body("10010", [9, 9], 2), 3), "magic, version, itemsize"),
        (sealed(b"GCBM", 1, 2, 600, 2, body("10010", [9, 9], 2), 1), "magic, version, itemsize"),
        (sealed(b"GCBM", 3, 2, 600, 2, body("10010", [9, 9], 2), 1), "magic, version, itemsize"),
        (sealed(b"GCBM", 2, 4, 600, 2, body("10010", [9, 9], 2), 1), "magic, version, itemsize"),
        (sealed(b"GCBM", 2, 2, 601, 2, body("10010", [9, 9], 2), 1), "magic, version, itemsize"),
        (sealed(b"GCBM", 2, 2, 600, 601, body("10010", [9, 9], 2), 1), "non-zero elements among 600"),
        (sealed(b"GCBM", 2, 2, 600, 2**63, body("10010", [9, 9], 2), 1), "non-zero elements among 600"),
        (sealed(b"GCBM", 2, 2, 600, 2, body("10010", [9, 9], 2), 1 + 256), "its padding is not zeros"),
        (sealed(b"GCBM", 2, 2, 600, 3, body("10010", [9, 9], 3), 1), "buckets hold 2 elements, not 3"),
        (sealed(b"GCBM", 2, 2, 600, 2, body("10110", [9, 9], 2), 1), "buckets hold 3 elements, not 2"),
        (sealed(b"GCBM", 2, 2, 600, 2, body("00011", [9, 9], 2), 1), "not 2 in 5 bits that end with a zero"),
        (sealed(b"GCBM", 2, 2, 600, 2, body("100001", [9, 9], 2), 1), "not 2 in 5 bits that end with a zero"),
        (sealed(b"GCBM", 2, 2, 600, 2, body("1000" + "0" * 59 + "1", [9, 9], 2), 1), "in 5 bits that end"),
        (sealed(b"GCBM", 2, 2, 600, 2, body("11000", [9, 9], 2), 1), "do not ascend to below 600"),
        (sealed(b"GCBM", 2, 2, 600, 2, body("11000", [9, 8], 2), 1), "do not ascend to below 600"),
        (sealed(b"GCBM", 2, 2, 600, 2, body("10010", [9, 88], 2), 1), "do not ascend to below 600"),
        (sealed(b"GCBM", 2, 2, 600, 2, body("10010", [9, 9, 1], 2), 1), "padding of its low parts"),
        (sealed(b"GCBM", 2, 2, 600, 2, body("10010", [9, 9], 3), 1), "its padding is not zeros, or a value is"),
        (sealed(b"GCBM", 2, 2, 600, 2, body("10010", [9, 9], 1), 1), "its padding is not zeros, or a value is"),
    ],
)
def test_every_check_has_its_reason(chunk: bytes, reason: str | None) -> None:
    if reason is None:  # the one that the others are made from
        assert np.flatnonzero(decode(chunk, (600,), np.float16)).tolist() == [9, 521]
        return
    with pytest.raises(CorruptDataError, match=reason):
        decode(chunk, (600,), np.float16)


@pytest.mark.parametrize("raw", [np.uint16, np.uint32])
@given(array=very_sparse(3, 300))
@settings(max_examples=15, deadline=None)
def test_kernels_stay_within_their_arrays(raw: Any, array: Array) -> None:
    """Run them as Python, which checks the bounds that compiled code does not."""
    flat = (bits(array).reshape(-1) % 65_521).astype(raw)
    places = np.flatnonzero(flat)
    words, back, out = np.zeros(-(-flat.size // 64), np.uint64), np.empty_like(places), np.full_like(flat, 9)
    with np.errstate(over="ignore"):
        kernels.mark.py_func(places, words)
        np.testing.assert_array_equal(words, codec_kernels.bitmap(flat)[0])
        assert codec_kernels.bitmap(flat)[1] == len(places)
        kernels.marked.py_func(words, back)
        np.testing.assert_array_equal(back, places)
        for low in (1, 2):
            buckets, lows = np.zeros(-(-(len(places) + (flat.size >> 8 * low) + 1) // 64), np.uint64), places * 0
            lows = lows.astype(codec_packed.LOWS[low])
            kernels.pack.py_func(places, buckets, lows)
            kernels.unpack.py_func(buckets, lows, back)
            np.testing.assert_array_equal(back, places)
        kernels.place.py_func(places, flat[places], out)
    np.testing.assert_array_equal(out, flat)


# ---------------------------------------------------------------- stores


def test_a_fresh_process_opens_the_store_with_xarray(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = (rng.random((50, 7000), np.float32) * (rng.random((50, 7000)) < 0.004)).astype(np.float16)
    create(tmp_path, data, (16, 4096), (32, 8192))
    assert (tmp_path / "activations" / "c" / "0" / "0").read_bytes()[:5] == b"GCBM\x02"
    script = (
        "import sys, xarray\n"
        f"lazy = xarray.open_zarr({str(tmp_path)!r}, consolidated=False).activations\n"
        "assert 'numba' not in sys.modules  # opening is quick: the kernels wait for the first chunk\n"
        "sys.stdout.buffer.write(lazy.values.tobytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == data.tobytes()
