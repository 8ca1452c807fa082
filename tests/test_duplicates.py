"""Exact duplicates are one point to the clustering, whatever the route."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

import gpuclust
from gpuclust import schema
from gpuclust.compute import duplicates, verdicts
from gpuclust.compute.reductions import MOMENTS
from gpuclust.engine.views import read_neighbors
from gpuclust.errors import SelectionError
from gpuclust.tables import feature_table
from tests.planted import planted
from tests.strategies import activations
from tests.test_quality_task import judged

UMAP = {"umap": {"n_components": 3, "n_epochs": 50}, "consensus": {"members": 3, "n_epochs": 30}}
EXACT = {"cluster": {"method": "distances"}, "hdbscan": {"min_cluster_size": 5, "min_samples": 3}}
WIDE = {"select": {"sparsity_max": 1.01, "sparsity_min": 0.0}}
N_COPIES = 96


def found(values: np.ndarray, kept: np.ndarray, by: str | None = duplicates.DIRECTION, rows: int = 7) -> list[int]:
    blocks = [(start, values[start : start + rows]) for start in range(0, len(values), rows)]
    moments = MOMENTS.merge(MOMENTS.chunk(block) for _, block in blocks)
    return duplicates.find(iter(blocks), moments, kept, by).tolist()


def copied(values: np.ndarray, n: int = N_COPIES) -> np.ndarray:
    """Put `n` copies of the first feature after the others."""
    return np.concatenate([values, np.repeat(values[:, :1], n - 1, axis=1)], axis=1)


def noise(n_prompts: int = 400, n: int = 150, seed: int = 0) -> np.ndarray:
    return planted(n_prompts=n_prompts, n_clusters=1, size=1, n_noise=n, long=False, seed=seed)[0]


@given(activations(signed=True), st.integers(1, 50))
def test_copies_are_the_columns_of_one_direction(values: np.ndarray, rows: int) -> None:
    kept = np.arange(values.shape[1])
    wide = values.astype(np.float64)
    norm = np.linalg.norm(wide, axis=0)
    unit = wide / np.where(norm > 0, norm, 1)
    gap = np.linalg.norm(unit[:, :, None] - unit[:, None, :], axis=0)
    if ((gap > 1e-9) & (gap < 1e-4)).any():  # near copies: either answer is right
        return
    fires = (wide != 0).sum(axis=0)  # copies fire on as many prompts
    same = fires[:, None] == fires[None, :]
    assert found(values, kept, rows=rows) == ((gap < 1e-6) & same).argmax(axis=0).tolist()
    assert found(values, kept, None, rows) == kept.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_scaled_and_negated_columns(dtype: Any) -> None:
    values = noise(200, 30).astype(dtype)
    values[:, 11] = values[:, 4] * dtype(2)
    values[:, 12] = -values[:, 4]
    values[:, 13] = values[:, 4]
    values[:, 14] = values[:, 4]
    values[np.flatnonzero(values[:, 4])[0], 14] *= dtype(1.25)  # nearly a copy
    if dtype == np.float32:
        values[:, 15] = values[:, 4] * dtype(3)  # a copy but for rounding
    kept = np.arange(values.shape[1])
    expected = kept.copy()
    expected[[11, 13]] = 4
    expected[15] = 4 if dtype == np.float32 else 15
    assert found(values, kept) == expected.tolist()
    assert np.flatnonzero(np.array(found(values, kept, duplicates.COLUMN)) != kept).tolist() == [13]
    assert found(values, kept[5:]) == [11 if f in (13, *([15] if dtype == np.float32 else [])) else f for f in kept[5:]]


def test_a_run_and_a_sweep_agree_on_a_tiny_activation_more() -> None:
    values = noise(200, 30)
    values[:, 9] = values[:, 4]
    values[np.flatnonzero(values[:, 4] == 0)[0], 9] = np.float16(1e-6)  # 1e-7 of the norm
    kept = np.arange(values.shape[1])
    moments = MOMENTS.chunk(values)
    sketched = duplicates.sketch([(0, values)], len(kept))
    swept = duplicates.points(sketched, moments["u0"], moments["n_nonzero"], duplicates.DIRECTION)
    assert swept.tolist() == found(values, kept) == kept.tolist()


def test_no_prompts_are_read_where_no_two_features_look_alike() -> None:
    values = noise(200, 30)
    moments = MOMENTS.chunk(values)
    kept = np.arange(values.shape[1])
    assert duplicates.find(iter(["not read"]), moments, kept, duplicates.DIRECTION).tolist() == kept.tolist()


@pytest.mark.parametrize("settings", [UMAP, EXACT], ids=["umap", "exact"])
def test_copies_alone_are_no_cluster(settings: dict[str, Any]) -> None:
    values = copied(noise())
    before = gpuclust.cluster_features(values, settings | WIDE | {"quality": {"duplicates": False}})
    after = gpuclust.cluster_features(values, settings | WIDE)
    copies = np.isin(np.arange(values.shape[1]), [0, *range(values.shape[1] - N_COPIES + 1, values.shape[1])])
    shares = [copies[before.labels == c].mean() for c in range(before.labels.max() + 1)]
    assert max(shares) > 0.5  # the fault that this is about
    for cluster in range(after.labels.max() + 1):
        assert (after.labels == cluster).sum() - max((copies & (after.labels == cluster)).sum() - 1, 0) >= 5
    assert after.features["duplicate_of"].notna().sum() == N_COPIES - 1
    assert (after.features["duplicate_of"].dropna() == 0).all()
    assert len(set(after.labels[copies])) == 1
    for name in ("label", "probability", "outlier_score", "x", "y"):
        assert after.features.loc[copies, name].nunique() == 1, name
    assert any("95 of" in note for note in after.notes)
    assert (after.indices[:, 0] == np.arange(len(values[0]))).all()
    assert not np.isin(after.indices[:, 1:], np.flatnonzero(copies)[1:]).any()


@pytest.mark.parametrize("settings", [UMAP, EXACT], ids=["umap", "exact"])
def test_without_the_copies_the_result_is_the_same(settings: dict[str, Any]) -> None:
    values = noise()
    alone, with_copies = (gpuclust.cluster_features(v, settings | WIDE) for v in (values, copied(values)))
    without = gpuclust.cluster_features(values, settings | WIDE | {"quality": {"duplicates": False}})
    n = values.shape[1]
    for result in (with_copies, without):
        np.testing.assert_array_equal(result.labels[:n], alone.labels)
        np.testing.assert_array_equal(result.indices[:n], alone.indices)
        np.testing.assert_array_equal(result.features["x"][:n], alone.features["x"])


def test_planted_clusters_keep_their_labels_when_members_are_duplicated() -> None:
    values, truth = planted(n_prompts=1200, n_clusters=8, size=20, n_noise=60)
    doubled = np.random.default_rng(0).permutation(len(truth))[:100]
    values, truth = np.concatenate([values, values[:, doubled]], axis=1), np.concatenate([truth, truth[doubled]])
    result = gpuclust.cluster_features(values, {"consensus": {"members": 3}} | WIDE)
    clustered = truth >= 0
    assert adjusted_rand_score(truth[clustered], result.labels[clustered]) >= 0.95
    assert result.features["duplicate_of"].notna().sum() == 100


@pytest.mark.parametrize("settings", [UMAP, EXACT], ids=["umap", "exact"])
def test_features_of_a_single_prompt_are_a_point_a_prompt(settings: dict[str, Any]) -> None:
    values = noise()
    single = np.zeros((len(values), 60), np.float16)
    single[np.arange(60) % 3, np.arange(60)] = np.random.default_rng(0).uniform(0.5, 9, 60)
    config = settings | {"select": {"entropy_low": -1.0, "min_active_prompts": 1, "sparsity_min": 0, "sparsity_max": 1}}
    result = gpuclust.cluster_features(np.concatenate([values, single], axis=1), config)
    assert result.features["duplicate_of"].notna().sum() == 57
    n = values.shape[1]
    assert all(len(set(result.labels[n + first :: 3])) == 1 for first in range(3))


def test_too_few_that_differ_are_refused_with_both_numbers() -> None:
    with pytest.raises(SelectionError, match=r"keeps 96 features, but 95 of them are exact duplicates.* there are 1\."):
        gpuclust.cluster_features(copied(noise()[:, :1]), EXACT | WIDE)


@pytest.mark.parametrize("settings", [UMAP, EXACT], ids=["umap", "exact"])
def test_a_run_counts_shows_and_spreads_copies(tmp_path: Path, settings: dict[str, Any]) -> None:
    values = copied(noise())
    run = judged(tmp_path, values, settings | WIDE)
    features = run.features
    assert list(features.columns) == list(schema.FEATURE_COLUMNS)
    assert features["duplicate_of"].notna().sum() == N_COPIES - 1
    stages = json.loads((run.path / schema.RECORD).read_text())["stages"]
    assert stages["cluster"]["duplicates"] == stages["select"]["duplicates"] == N_COPIES - 1
    direct = gpuclust.cluster_features(values, settings | WIDE)
    np.testing.assert_array_equal(features["label"].to_numpy(int), direct.labels)
    points = feature_table.is_point(features)
    np.testing.assert_array_equal(run.neighbors["feature"], np.flatnonzero(points))
    copies = (features["duplicate_of"].notna() | (features["feature"] == 0)).to_numpy()
    for cluster in run.clusters.loc[run.clusters["cluster"] >= 0].to_dict("records"):
        assert not copies[np.array(cluster["features"])].all()
    table = pd.read_parquet(run.path / schema.QUALITY)
    sizes = run.clusters.loc[run.clusters["cluster"] >= 0, "size"].tolist()
    assert table["size"].tolist() == sizes
    assert not ((table["verdict"] == verdicts.STABLE) & (table["size"] >= N_COPIES)).any()
    card = run.feature(len(features) - 1)
    assert ("exact duplicate of", "feature 0, with whose neighbours it is clustered") in card.facts
    assert (run.path / schema.REPORT).exists()
    pytest.importorskip("anndata")
    assert run.to_anndata().shape == values.T.shape


def test_workers_tiles_and_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from gpuclust.hardware import budget

    values = copied(noise())
    file = tmp_path / "values.pt"
    torch.save({"acts": torch.from_numpy(values), "prompts": [f"prompt {i}" for i in range(len(values))]}, file)
    store = {"shard_prompts": 128, "chunk_prompts": 64}
    tables = []
    for number, (tile, rows, scheduler) in enumerate([(2048, 512, "threads"), (40, 64, "threads"), (40, 64, "local")]):
        monkeypatch.setattr(budget, "TILE", tile)
        monkeypatch.setattr(budget, "MAX_ROWS", rows)
        settings = EXACT | WIDE | {"scheduler": {"n_workers": 2}, "store": store}
        out = tmp_path / str(number)
        if scheduler == "local":  # in a process of its own: starting workers changes how many threads Numba wants here
            code = "import json, sys, gpuclust; gpuclust.import_cache(*sys.argv[1:3], json.loads(sys.argv[3]), 'local')"
            subprocess.run([sys.executable, "-c", code, str(file), str(out), json.dumps(settings)], check=True)
            run = gpuclust.open_run(out)
        else:
            run = gpuclust.import_cache(file, out, settings, scheduler)
        tables.append(run.features[["label", "probability", "duplicate_of"]])
        assert read_neighbors(run.path / schema.NEIGHBORS)[0].size == values.shape[1] - N_COPIES + 1
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])
