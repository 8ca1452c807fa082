"""Sparse rows of a store are its dense rows, whatever the layout of chunks, and the other way round."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuclust import schema
from gpuclust.config_sections import StoreConfig
from gpuclust.errors import ConfigError, CorruptDataError, StoreError
from gpuclust.hardware import backend
from gpuclust.storage import codec, codec_packed, export, row_blocks, shards, sparse_rows, store, verifying
from tests import cuda_stub
from tests.test_codec import bits
from tests.test_shards import make, source

CONFIG = {"shard_prompts": 20, "chunk_prompts": 8, "chunk_features": 300}


def tokens(rows: int, features: int, active: float, seed: int = 0, dtype: str = "float16") -> np.ndarray:
    """Activations of tokens: few features a row, by Zipf's law; the first half of the features are dense in row 0."""
    rng = np.random.default_rng(seed)
    weights = 1 / rng.permutation(np.arange(1, features + 1))
    rates = np.minimum(active * weights / weights.sum(), 1)
    values = np.where(rng.random((rows, features)) < rates, rng.gamma(2, 1, (rows, features)) + 0.05, 0)
    values[0, : features // 2] = 1
    return values.astype(dtype)


def csr_of(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    marked = bits(array) != 0
    return np.concatenate([[0], np.cumsum(marked.sum(axis=1))]), np.nonzero(marked)[1], array[marked]


def layouts(path: Path) -> set[int]:
    """Versions of the format among a store's chunks."""
    found = set()
    stored = source(path)
    for index in range(len(store.shard_ranges(path))):
        for place in shards.places(stored, index).reshape(-1, 2):
            chunk = shards.stored_chunk(stored, index, place)
            found |= set() if chunk is None else {int(chunk[4])}
    return found


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_range_is_the_dense_rows(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 700)))
    layout = {
        "shard_prompts": data.draw(st.integers(1, 20)),
        "chunk_prompts": data.draw(st.integers(1, 20)),
        "chunk_features": data.draw(st.integers(1, 700)),
    }
    active = data.draw(st.sampled_from([0, 3, shape[1] / 2]))
    values = tokens(*shape, active, data.draw(st.integers(0, 99)), data.draw(st.sampled_from(["float16", "float32"])))
    values[-1, 0] = -0.0
    path = make(tmp_path_factory.mktemp("r") / "s", values, **layout)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, shape[0]), st.integers(0, shape[0]))))
    seen = start
    for first, block in sparse_rows.read_rows(path, data.draw(st.integers(1, 50)), start, stop):
        assert (first, block.dtype, block.indices.dtype) == (seen, np.float32, np.int32)
        wanted = values[first : first + block.shape[0]]
        for got, expected in zip((block.indptr, block.indices, block.data), csr_of(wanted), strict=True):
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(np.signbit(block.data), np.signbit(csr_of(wanted)[2]))
        block.check_format(full_check=True)
        assert block.has_canonical_format
        seen += block.shape[0]
    assert seen == stop


def test_a_store_of_both_layouts_is_read_by_all(tmp_path: Path) -> None:
    values = tokens(53, 701, 3)
    path = make(tmp_path / "s", values, **CONFIG)
    assert layouts(path) == {1, 2}
    np.testing.assert_array_equal(xr.open_zarr(path)["activations"].values, values)
    np.testing.assert_array_equal(np.concatenate([block for _, block in store.read_rows(path, 7)]), values)
    ((_, block),) = sparse_rows.read_rows(path, 100)
    np.testing.assert_array_equal(block.toarray(), values)


def test_it_makes_nothing_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = tokens(53, 701, 3)
    path = make(tmp_path / "s", values, **CONFIG)
    for name in ("decode", "encode"):
        monkeypatch.setattr(codec, name, lambda *_, **__: pytest.fail("dense"))
    ((_, block),) = sparse_rows.read_rows(path, 100)
    np.testing.assert_array_equal(block.toarray(), values)
    for index, (first, stop) in enumerate(store.shard_ranges(path)):
        sparse_rows.write_rows(path, index, first, *csr_of(values[first:stop]))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_sparse_rows_are_written_as_the_dense_ones(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 700)))
    layout = {
        "shard_prompts": data.draw(st.integers(1, 20)),
        "chunk_prompts": data.draw(st.integers(1, 20)),
        "chunk_features": data.draw(st.integers(1, 700)),
    }
    values = tokens(*shape, data.draw(st.sampled_from([0, 3, 200])), data.draw(st.integers(0, 99)))
    folder = tmp_path_factory.mktemp("w")
    dense = make(folder / "dense", values, **layout)
    store.create(folder / "sparse", *shape, StoreConfig(**layout), {})
    for index, (first, stop) in enumerate(store.shard_ranges(dense)):
        sparse_rows.write_rows(folder / "sparse", index, first, *csr_of(values[first:stop]))
        file = Path("activations") / "c" / str(index) / "0"
        assert (folder / "sparse" / file).read_bytes() == (dense / file).read_bytes()


def test_what_does_not_belong_is_not_written(tmp_path: Path) -> None:
    values = tokens(53, 701, 3)
    path = make(tmp_path / "s", values, **CONFIG)
    rows = csr_of(values[:16])
    for index, first, entries, message in (
        (1, 0, rows, "the store expects row 16, 16 rows, float16"),
        (0, 0, csr_of(values[:15]), "has 15 sparse rows of float16; the store expects row 0, 16 rows"),
        (0, 0, (*rows[:2], rows[2].astype(np.float32)), "sparse rows of float32"),
    ):
        with pytest.raises(StoreError, match=message):
            sparse_rows.write_rows(path, index, first, *entries)
    with pytest.raises(ConfigError, match="not of 701 columns"):  # though the chunk has room for it
        sparse_rows.write_rows(path, 0, 0, rows[0], np.where(rows[1] == rows[1][-1], 701, rows[1]), rows[2])
    np.testing.assert_array_equal(next(store.read_rows(path, 53))[1], values)


def test_other_stores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = tokens(53, 701, 3)
    values[1, 5] = -0.0
    path = make(tmp_path / "s", values, codec="zstd", **CONFIG)
    with caplog.at_level(logging.INFO, "gpuclust"):
        ((_, block),) = sparse_rows.read_rows(path, 100)
    assert "made from dense blocks, because its codec is" in caplog.text
    for got, expected in zip((block.indptr, block.indices, block.data), csr_of(values), strict=True):
        np.testing.assert_array_equal(got, expected)
    with pytest.raises(StoreError, match=r"takes no sparse rows, because its codec is .* store\.codec=bitmap"):
        sparse_rows.write_rows(path, 0, 0, *csr_of(values[:16]))


def test_a_chunk_that_is_not_stored_is_rows_without_entries(tmp_path: Path) -> None:
    path = make(tmp_path / "s", tokens(53, 701, 3), **CONFIG)
    shards.write_empty(path / "activations", 1, source(path).grid)
    ((_, block),) = sparse_rows.read_rows(path, 16, 16, 32)
    assert (block.shape, block.nnz) == ((16, 701), 0)


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_damage_is_one_error(tmp_path: Path, damage: str) -> None:
    path = make(tmp_path / "s", tokens(53, 701, 3), **CONFIG)
    file = path / "activations" / "c" / "1" / "0"
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.unlink()
    if damage == "flipped":
        file.write_bytes(data)
    with pytest.raises(CorruptDataError, match=r"prompts 0 to 52 cannot be read: .*gpuclust verify"):
        list(sparse_rows.read_rows(path, 100))


def test_an_entry_past_the_last_feature_is_damage(tmp_path: Path) -> None:
    """A chunk at the array's edge has room for it, and SciPy checks no bounds."""
    path = make(tmp_path / "s", tokens(8, 301, 3), **CONFIG)
    wide = shards.Shards(path / "activations", (8, 600), (8, 600), (8, 300), np.dtype(np.float16))
    bad = np.zeros((8, 600), np.float16)
    bad[3, 301] = 1
    shards.write(wide, 0, bad)
    with pytest.raises(CorruptDataError, match="a chunk has feature 301, of 301"):
        list(sparse_rows.read_rows(path, 100))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_gpu_gets_bitmaps_of_them(tmp_path: Path, dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    values = tokens(53, 701, 3, dtype=dtype)
    path = make(tmp_path / "s", values, **CONFIG)
    assert layouts(path) == {1, 2}
    with cuda_stub.installed(), caplog.at_level(logging.INFO, "gpuclust"):
        blocks = [(at, block.get()) for at, block in row_blocks.rows(path, 100, backend.Backend("cuda", "a stand-in"))]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), values)
    assert "expanded on the GPU" in caplog.text


def test_a_run_of_them_is_verified_and_exported(tmp_path: Path) -> None:
    """As activations that were imported: without markers, so that every shard is read."""
    run = tmp_path / "run"
    run.mkdir()
    values = tokens(53, 701, 3)
    path = make(run / schema.ACTIVATIONS, values, **CONFIG)
    assert layouts(path) == {1, 2}
    entry: dict[str, Any] = {"key": "k"}
    assert verifying._shards(run, entry) == []
    export.export(run, tmp_path / "plain.zarr")
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "plain.zarr")["activations"].values, values)
    file = path / "activations" / "c" / "2" / "0"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    (found,) = verifying._shards(run, entry)
    assert found.place.endswith("c/2/0")


def test_positions_of_sparse_rows() -> None:
    indptr, indices = np.array([0, 2, 2, 3]), np.array([1, 4, 0], np.uint8)
    found = codec_packed.positions_of_csr(indptr, indices, (3,), (3, 100_000))
    assert found.tolist() == [1, 4, 200_000]
