"""Planted clusters are found and judged stable; in pure noise nothing is above the null."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

import gpuclust
from gpuclust import schema
from gpuclust.compute import verdicts
from tests.planted import planted

FEWER = {"consensus": {"members": 3}}  # of the default's members, for time


def judged(folder: Path, values: np.ndarray, settings: dict[str, Any]) -> gpuclust.Run:
    import torch

    file = folder / "planted.pt"
    torch.save({"acts": torch.from_numpy(values), "prompts": [f"prompt {i}" for i in range(len(values))]}, file)
    return gpuclust.import_cache(file, folder / "run", settings)


@pytest.mark.parametrize(("method", "least"), [("communities", 0.95), ("umap", 0.9)])
def test_planted_clusters_are_recovered_and_stable(tmp_path: Path, method: str, least: float) -> None:
    values, truth = planted(n_prompts=2000, size=25, n_noise=240)
    # Of UMAP a quarter of the seeds make a cluster of features of no group, and are below 0.9 (0.92 on average)
    run = judged(tmp_path, values, FEWER | {"cluster": {"method": method}, "umap": {"random_state": 101}})
    features, clusters = run.features, run.clusters
    kept = features["kept"].to_numpy()
    labels = features.loc[kept, "label"].to_numpy(int)
    assert kept[truth >= 0].mean() > 0.95
    assert adjusted_rand_score(truth[kept], labels) >= least
    verdict = clusters.set_index("cluster")["verdict"]
    real = pd.Series(labels)[truth[kept] >= 0].mode()[0]
    assert verdict[real] == verdicts.STABLE
    assert (verdict == verdicts.STABLE).sum() >= 11
    table = pd.read_parquet(run.path / schema.QUALITY)
    assert list(table.columns) == list(schema.QUALITY_COLUMNS)
    facts = json.loads((run.path / schema.RECORD).read_text())["stages"]["quality"]
    assert facts["halves"]["found_again_75"] > 0.9 * (truth[kept] >= 0).mean()
    assert facts["halves"]["ari_clustered"] > 0.8
    assert facts["skipped"] == ["decoder: the activations were imported, there is no SAE"]


@pytest.mark.parametrize("members", [1, 3])
def test_in_pure_noise_nothing_is_above_the_null(tmp_path: Path, members: int) -> None:
    values, _ = planted(n_prompts=800, n_clusters=1, size=1, n_noise=300, long=False)
    run = judged(tmp_path, values[:, 1:], {"consensus": {"members": members}})
    verdict = run.clusters.loc[run.clusters["cluster"] >= 0, "verdict"]
    assert verdict.isin([verdicts.LOST, verdicts.RANDOM]).all()
