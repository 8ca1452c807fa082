from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.abc.store import SupportsGetSync

from gpuclust import reading, store
from gpuclust.config import StoreConfig
from gpuclust.errors import CorruptDataError
from tests.strategies import sae_like


def make(path: Path, data: np.ndarray, **layout: Any) -> Path:
    store.create(path, *data.shape, StoreConfig(dtype=str(data.dtype), **layout), {})
    array: Any = zarr.open_array(path / "activations", mode="r+")
    array[:] = data
    return path / "activations"


def opened(path: Path) -> Any:
    with reading.direct():
        return zarr.open_array(path, mode="r")


@given(st.data())
def test_every_selection_equals_zarrs_own(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 30)))
    layout = {
        "shard_prompts": data.draw(st.integers(1, 20)),
        "chunk_prompts": data.draw(st.integers(1, 20)),
        "chunk_features": data.draw(st.integers(1, 30)),
    }
    values = sae_like(*shape, seed=data.draw(st.integers(0, 99))).astype(data.draw(st.sampled_from(["f2", "f4"])))
    path = make(tmp_path_factory.mktemp("r") / "s", values, **layout)
    array = opened(path)
    assert type(array._async_array.codec_pipeline) is reading.DirectPipeline
    start, stop = sorted(data.draw(st.tuples(st.integers(0, shape[0]), st.integers(0, shape[0]))))
    np.testing.assert_array_equal(array[:], values)
    np.testing.assert_array_equal(array[start:stop], values[start:stop])
    np.testing.assert_array_equal(array[start:stop, 1::2], values[start:stop, 1::2])
    np.testing.assert_array_equal(array[:, 0], values[:, 0])
    np.testing.assert_array_equal(array.oindex[:, [shape[1] - 1, 0]], values[:, [shape[1] - 1, 0]])


def test_whole_shards_are_read_in_place_and_parts_zarrs_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = sae_like(40, 30)
    array = opened(make(tmp_path / "s", values, shard_prompts=16, chunk_prompts=8, chunk_features=16))
    calls: list[tuple[int, ...]] = []
    original = reading.decode_shard
    monkeypatch.setattr(reading, "decode_shard", lambda *a: (calls.append(a[3].shape), original(*a)))
    np.testing.assert_array_equal(array[:], values)
    assert sorted(calls) == [(8, 30), (16, 30), (16, 30)]
    calls.clear()
    np.testing.assert_array_equal(array[5:9], values[5:9])
    assert calls == []


def test_stores_that_must_be_awaited(tmp_path: Path) -> None:
    values = sae_like(40, 30)
    inner = zarr.storage.LocalStore(make(tmp_path / "s", values, shard_prompts=16), read_only=True)
    awaited: Any = zarr.storage.LoggingStore(inner)
    assert not isinstance(awaited, SupportsGetSync)
    with reading.direct():
        array: Any = zarr.open_array(awaited, mode="r")
    np.testing.assert_array_equal(array[:], values)


def test_other_codecs_go_zarrs_way(tmp_path: Path) -> None:
    values = sae_like(40, 30)
    np.testing.assert_array_equal(opened(make(tmp_path / "s", values, codec="zstd", shard_prompts=16))[:], values)


def test_shards_and_chunks_that_are_not_stored_are_zeros(tmp_path: Path) -> None:
    path = make(tmp_path / "s", sae_like(32, 30), shard_prompts=16, chunk_prompts=8)
    array: Any = zarr.open_array(path, mode="r+", config={"write_empty_chunks": False})
    array[:24] = 0
    assert not (path / "c/0/0").exists()
    got = opened(path)[:]
    assert not got[:24].any()
    np.testing.assert_array_equal(got[24:], sae_like(32, 30)[24:])


@pytest.mark.parametrize("where", [-2, -9, 40])
def test_damage_is_refused(tmp_path: Path, where: int) -> None:
    path = make(tmp_path / "s", sae_like(40, 30), shard_prompts=16, chunk_prompts=8)
    file = path / "c/1/0"
    raw = bytearray(file.read_bytes())
    raw[where] ^= 4
    file.write_bytes(raw)
    with pytest.raises(CorruptDataError, match=r"checksum|CRC-32C"):
        opened(path)[:]
