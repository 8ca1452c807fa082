from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from gpuclust.config_sections import StoreConfig
from gpuclust.errors import CorruptDataError
from gpuclust.storage import shards, store
from tests.strategies import sae_like


def make(path: Path, data: np.ndarray, **layout: Any) -> Path:
    store.create(path, *data.shape, StoreConfig(dtype=str(data.dtype), **layout), {})
    for index, (first, stop) in enumerate(store.shard_ranges(path)):
        store.write_rows(path, index, first, data[first:stop])
    return path


def source(path: Path) -> shards.Shards:
    found = shards.of(store.open_array(path), path / "activations")
    assert isinstance(found, shards.Shards)
    return found


def read(path: Path, first: int, stop: int) -> np.ndarray:
    with ThreadPoolExecutor(2) as pool:
        return shards.read(source(path), first, stop, pool)


@given(st.data())
def test_every_range_is_what_zarr_reads(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 30)))
    layout = {
        "shard_prompts": data.draw(st.integers(1, 20)),
        "chunk_prompts": data.draw(st.integers(1, 20)),
        "chunk_features": data.draw(st.integers(1, 30)),
    }
    values = sae_like(*shape, seed=data.draw(st.integers(0, 99))).astype(data.draw(st.sampled_from(["f2", "f4"])))
    path = make(tmp_path_factory.mktemp("r") / "s", values, **layout)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, shape[0]), st.integers(0, shape[0]))))
    np.testing.assert_array_equal(store.open_array(path)[start:stop], values[start:stop])
    got = read(path, start, stop)
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values[start:stop])


def test_zarr_reads_no_activations_of_the_bitmap_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = sae_like(40, 30)
    path = make(tmp_path / "s", values, shard_prompts=16, chunk_prompts=8, chunk_features=16)

    def refuse(*_: Any) -> None:
        raise AssertionError("read through zarr")

    monkeypatch.setattr(zarr.Array, "__getitem__", refuse)
    np.testing.assert_array_equal(np.concatenate([block for _, block in store.read_rows(path, 9)]), values)


def test_a_chunk_is_decoded_only_where_its_rows_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = sae_like(40, 30)
    path = make(tmp_path / "s", values, shard_prompts=16, chunk_prompts=8, chunk_features=16)
    calls: list[int] = []
    original = shards.stored_chunk
    monkeypatch.setattr(shards, "stored_chunk", lambda *a: (calls.append(a[1]), original(*a))[1])
    np.testing.assert_array_equal(read(path, 9, 17), values[9:17])
    assert sorted(calls) == [0, 0, 1, 1]  # one band of two chunks in each of two shards


@pytest.mark.parametrize(
    ("layout", "reason"),
    [({"codec": "zstd"}, "its codec is bytes, not gpuclust.bitmap")],
)
def test_other_stores_go_zarrs_way_and_say_why(
    tmp_path: Path, layout: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    values = sae_like(40, 30)
    path = make(tmp_path / "s", values, shard_prompts=16, **layout)
    with caplog.at_level("INFO", "gpuclust"):
        np.testing.assert_array_equal(np.concatenate([block for _, block in store.read_rows(path, 9)]), values)
    assert reason in caplog.text


def test_chunks_that_are_not_stored_are_zeros(tmp_path: Path) -> None:
    path = make(tmp_path / "s", sae_like(32, 30), shard_prompts=16, chunk_prompts=8)
    array: Any = zarr.open_array(path / "activations", mode="r+", config={"write_empty_chunks": False})
    array[8:24] = 0
    got = read(path, 0, 32)
    assert not got[8:24].any()
    np.testing.assert_array_equal(got[24:], sae_like(32, 30)[24:])


@pytest.mark.parametrize("where", [-2, -9, 40])
@pytest.mark.parametrize("rows", [7, 40])
def test_damage_is_refused(tmp_path: Path, where: int, rows: int) -> None:
    path = make(tmp_path / "s", sae_like(40, 30), shard_prompts=16, chunk_prompts=8)
    file = path / "activations/c/1/0"
    raw = bytearray(file.read_bytes())
    raw[where] ^= 4
    file.write_bytes(raw)
    with pytest.raises(CorruptDataError, match=r"checksum|CRC-32C"):
        list(store.read_rows(path, rows))
    with pytest.raises(CorruptDataError, match=r"checksum|CRC-32C"):
        list(shards.packed_bands(source(path), 0, 40))


@pytest.mark.parametrize("size", [0, 3, 100])
def test_a_file_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    path = make(tmp_path / "s", sae_like(40, 30), shard_prompts=16, chunk_prompts=8)
    file = path / "activations/c/1/0"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CorruptDataError, match=f"a shard of {size} bytes"):
        list(store.read_rows(path, 40))


@pytest.mark.parametrize("codec", ["bitmap", "zstd"])
@pytest.mark.parametrize("lost", ["c/1/0", "c/1", "c"])
def test_a_missing_file_is_never_zeros(tmp_path: Path, codec: str, lost: str) -> None:
    path = make(tmp_path / "s", sae_like(40, 30), shard_prompts=16, codec=codec)
    gone = path / "activations" / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(CorruptDataError, match="is missing"):
        list(store.read_rows(path, 7))


@pytest.mark.parametrize("codec", ["bitmap", "zstd"])
def test_zeros_are_stored(tmp_path: Path, codec: str) -> None:
    path = make(tmp_path / codec, np.zeros((40, 30), np.float16), shard_prompts=16, codec=codec)
    assert [(path / "activations" / "c" / str(i) / "0").is_file() for i in range(3)] == [True] * 3
    assert not any(block.any() for _, block in store.read_rows(path, 7))
    assert not store.open_array(path)[:].any()


@pytest.mark.parametrize("codec", ["bitmap", "zstd"])
@pytest.mark.parametrize("damage", [lambda raw: raw[:5], lambda raw: bytes(len(raw))])
def test_a_damaged_shard_is_written_over(tmp_path: Path, codec: str, damage: Any) -> None:
    values = sae_like(40, 30)
    path = make(tmp_path / "s", values, shard_prompts=16, codec=codec)
    file = path / "activations/c/1/0"
    file.write_bytes(damage(file.read_bytes()))
    store.write_rows(path, 1, 16, values[16:32])
    np.testing.assert_array_equal(np.concatenate([block for _, block in store.read_rows(path, 7)]), values)
