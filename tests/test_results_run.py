from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import gpuclust
from gpuclust import schema
from gpuclust.config_sections import StoreConfig
from gpuclust.errors import InputError
from gpuclust.storage import store


def test_to_anndata(small_run: Path) -> None:
    pytest.importorskip("anndata")
    run = gpuclust.open_run(small_run)
    data = run.to_anndata()
    kept = run.features[run.features["kept"]]
    assert data.shape == (len(kept), len(run.prompts))
    assert data.obs_names.tolist() == kept["feature"].astype(str).tolist()
    np.testing.assert_array_equal(data.X.toarray().T, run.activations.values[:, kept["feature"]].astype(np.float32))
    np.testing.assert_allclose(data.obsm["X_umap"], kept[["x", "y"]])
    np.testing.assert_array_equal(data.obsm["X_embedding"], run.embedding)
    near = data.obsp["distances"].tocsr()
    row = near[[2]].tocoo()
    expected = run.neighbors.isel(feature=2)
    assert sorted(kept["feature"].to_numpy()[row.col]) == sorted(expected["indices"].values[1:])


def test_without_anndata_the_way_out_is_said(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(InputError, match="pip install anndata"):
        gpuclust.open_run(small_run).to_anndata()


def test_means_of_large_activations_are_finite(small_run: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = random.uniform(50_000, 60_000, (700, 40)).astype(np.float16)
    shutil.copy(small_run / schema.CONFIG, tmp_path / schema.CONFIG)
    shape = StoreConfig(shard_prompts=128, chunk_prompts=64, chunk_features=16)
    store.create(tmp_path / schema.ACTIVATIONS, *values.shape, shape, {"model": "made up"})
    for index, (first, stop) in enumerate(store.shard_ranges(tmp_path / schema.ACTIVATIONS)):
        store.write_rows(tmp_path / schema.ACTIVATIONS, index, first, values[first:stop])
    (tmp_path / schema.RECORD).write_text(json.dumps({"stages": {"extract": {}}}))
    run = gpuclust.open_run(tmp_path)
    exact = values.astype(np.float64)
    for found, expected in (
        (run.activations.mean("prompt"), exact.mean(axis=0)),
        (run.activations.std("prompt"), exact.std(axis=0)),
        (run.activations.var(), exact.var()),
        (run.activations.sum(), exact.sum()),
        ((run.activations**2).mean(), (exact**2).mean()),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert run.activations.dtype == np.float32
    assert run.activations.attrs == xr.open_zarr(tmp_path / schema.ACTIVATIONS)["activations"].attrs
    np.testing.assert_array_equal(run.activations.astype(np.float16), values)
    # lazy, in the chunks that are stored: what is read at once is a chunk, at twice its bytes
    assert run.activations.chunks == xr.open_zarr(tmp_path / schema.ACTIVATIONS)["activations"].chunks
