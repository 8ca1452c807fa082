from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from gpuclust import schema
from gpuclust.config_sections import StoreConfig
from gpuclust.errors import ActivationError, CorruptDataError, StoreError
from gpuclust.storage import markers, store
from tests.strategies import sae_like

CONFIG = StoreConfig(shard_prompts=20, chunk_prompts=8, chunk_features=16)
KEY = "key"


def make(folder: Path, data: np.ndarray, config: StoreConfig = CONFIG) -> Path:
    path = folder / schema.ACTIVATIONS
    store.create(path, *data.shape, config, {"model": "m"})
    for index, (first, stop) in enumerate(store.shard_ranges(path)):
        markers.write_shard(path, folder / schema.SHARDS, index, first, data[first:stop], {"s": np.arange(2)}, KEY)
    return path


@pytest.mark.parametrize("codec", ["bitmap", "zstd"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [(53, 37), (8, 16), (1, 1), (16, 40)])
def test_round_trip(tmp_path: Path, codec: str, dtype: str, shape: tuple[int, int]) -> None:
    data = sae_like(*shape).astype(dtype)
    config = CONFIG.model_copy(update={"codec": codec, "dtype": dtype})
    path = make(tmp_path, data, config)
    opened = xr.open_zarr(path)
    np.testing.assert_array_equal(opened["activations"].values, data)
    assert opened["activations"].dims == ("prompt", "feature")
    assert opened.attrs["model"] == "m"
    np.testing.assert_array_equal(opened["feature"], np.arange(shape[1]))
    for rows in (1, 7, 100):
        blocks = list(store.read_rows(path, rows))
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), data)
        assert [first for first, _ in blocks] == list(range(0, shape[0], rows))


def test_a_shard_is_one_file_of_whole_chunks(tmp_path: Path) -> None:
    path = make(tmp_path, sae_like(53, 37))
    array: Any = zarr.open_array(path / "activations", mode="r")
    assert (array.chunks, array.shards) == ((8, 16), (16, 48))
    assert store.shard_ranges(path) == [(0, 16), (16, 32), (32, 48), (48, 53)]
    assert len(list((path / "activations" / "c").rglob("0"))) == 4 + 1  # four shards, and the folder of shard 0


def test_done_only_with_marker_checksum_and_key(tmp_path: Path) -> None:
    path, shards = make(tmp_path, sae_like(53, 37)), tmp_path / schema.SHARDS
    assert [markers.shard_done(path, shards, i, KEY) for i in range(4)] == [None] * 4
    assert markers.shard_done(path, shards, 0, "other") == "computed with another configuration"
    (shards / "00001.json").unlink()
    assert markers.shard_done(path, shards, 1, KEY) == "not computed yet"
    with (path / "activations/c/2/0").open("r+b") as file:
        file.seek(40)
        byte = file.read(1)
        file.seek(40)
        file.write(bytes([byte[0] ^ 1]))
    assert markers.shard_done(path, shards, 2, KEY) == "the activations file does not match its checksum"
    (shards / "00003.npz").unlink()
    assert markers.shard_done(path, shards, 3, KEY) == "the states file does not match its checksum"


@pytest.mark.parametrize("codec", ["bitmap", "zstd"])
def test_a_flipped_byte_is_refused_and_says_where(tmp_path: Path, codec: str) -> None:
    data = sae_like(53, 37)
    path = make(tmp_path, data, CONFIG.model_copy(update={"codec": codec}))
    with (path / "activations/c/2/0").open("r+b") as file:
        file.seek(60)
        byte = file.read(1)
        file.seek(60)
        file.write(bytes([byte[0] ^ 0x10]))
    with pytest.raises(CorruptDataError, match=r"prompts 32 to 39 cannot be read.*gpuclust verify"):
        list(store.read_rows(path, 8))


def test_a_partial_shard_is_refused(tmp_path: Path) -> None:
    data = sae_like(53, 37)
    path = tmp_path / schema.ACTIVATIONS
    store.create(path, *data.shape, CONFIG, {})
    with pytest.raises(
        StoreError, match=r"shard 1 at prompt 16 has shape \(3, 37\).*the store expects prompt 16, shape"
    ):
        markers.write_shard(path, tmp_path / "shards", 1, 16, data[16:19], {}, KEY)
    with pytest.raises(StoreError, match="expects prompt 16"):
        markers.write_shard(path, tmp_path / "shards", 1, 10, data[10:26], {}, KEY)


def test_shards_may_come_in_any_order_and_twice(tmp_path: Path) -> None:
    data = sae_like(53, 37)
    path = tmp_path / schema.ACTIVATIONS
    store.create(path, *data.shape, CONFIG, {})
    ranges = list(enumerate(store.shard_ranges(path)))
    for index, (first, stop) in [*reversed(ranges), ranges[1]]:
        markers.write_shard(path, tmp_path / "shards", index, first, data[first:stop], {}, KEY)
    np.testing.assert_array_equal(np.concatenate([block for _, block in store.read_rows(path, 11)]), data)


def test_template_is_made_once(tmp_path: Path) -> None:
    path = make(tmp_path, sae_like(5, 5))
    with pytest.raises(StoreError, match="exists already"):
        store.create(path, 5, 5, CONFIG, {})


def test_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a gpuclust store"):
        store.open_array(tmp_path)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.nan, "float16", r"shard 3: the activation of feature 2 for the prompt at row 1 is nan"),
        (np.inf, "float32", "is inf"),
        (70000.0, "float16", r"70000, does not fit float16 \(at most 65504\). Set store.dtype=float32"),
    ],
)
def test_what_cannot_be_stored_is_refused(value: float, dtype: str, message: str) -> None:
    data = np.zeros((3, 4), np.float32)
    data[1, 2] = value
    with pytest.raises(ActivationError, match=message):
        store.to_stored(data, dtype, "shard 3")


def test_large_values_fit_float32() -> None:
    assert store.to_stored(np.full((1, 1), 70000.0, np.float32), "float32", "x")[0, 0] == 70000


def test_zstd_store_opens_without_gpuclust(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = make(tmp_path, sae_like(30, 20), CONFIG.model_copy(update={"codec": "zstd"}))
    code = (
        "import sys; sys.modules['gpuclust'] = None\n"
        f"import xarray; print(float(xarray.open_zarr({str(path)!r})['activations'].sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(float(sae_like(30, 20).sum(dtype=np.float32)), rel=1e-2)


def test_dataset_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "d.zarr"
    for size in (3, 5):
        store.write_dataset(target, {"x": (("i",), np.arange(size)), "e": (("i", "c"), np.zeros((size, 0)))}, {"a": 1})
        opened = xr.open_zarr(target)
        assert (opened["x"].shape, opened["e"].shape, opened.attrs["a"]) == ((size,), (size, 0), 1)
