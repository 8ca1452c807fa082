from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import gpuclust
from gpuclust.errors import InputError


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
