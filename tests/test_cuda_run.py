"""A whole run with `--scheduler local-cuda` on a stand-in for a GPU, against the same run on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import gpuclust
from gpuclust import schema
from gpuclust.compute import embedding
from gpuclust.compute.clustering import cluster_embedding, embedding_tree
from gpuclust.config_sections import HdbscanConfig, UmapConfig
from gpuclust.extraction import encoders
from gpuclust.hardware import budget
from gpuclust.storage import store
from gpuclust.sweep import __main__ as sweep
from tests import cuda_stub, tiny
from tests.test_run import go, results


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.build(tmp_path_factory.mktemp("tiny"))


def on_gpus(folder: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, workers: int) -> Path:
    """Run on the stand-in; PyTorch has none, so model and SAE stay on the CPU."""
    load = encoders.load_encoder
    monkeypatch.setattr(encoders, "load_encoder", lambda config, device: load(config, "cpu"))
    with cuda_stub.installed() as calls:
        cuda_stub.STATE["workers"] = workers
        out = go(folder, settings, scheduler="local-cuda")
        assert any(name == "cupy.cuda.cublas.gemmEx" for name, _, _ in calls)
        return out


def length_explains(out: Path, features: np.ndarray) -> np.ndarray:
    """The share of each feature's variance over prompts that their length explains."""
    values = store.open_array(out / schema.ACTIVATIONS)[:][:, features].astype(np.float64)
    lengths = pd.read_parquet(out / schema.PROMPTS)["n_tokens"].to_numpy(np.float64)
    share: np.ndarray = np.corrcoef(values.T, lengths)[-1, :-1] ** 2
    return share


@pytest.mark.parametrize(
    ("umap", "workers", "metric", "rows"),
    [
        (True, 1, "correlation", "prompt"),
        (True, 1, "partial_correlation", "prompt"),
        (False, 2, "cosine", "prompt"),
        (True, 2, "jaccard", "prompt"),
        (True, 2, "correlation", "token"),
        (True, 1, "cosine", "window"),
    ],
)
def test_a_run_on_a_gpu_equals_one_on_the_cpu(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umap: bool, workers: int, metric: str,
    rows: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        embedding, "_umap_learn", lambda indices, distances, start, config: start
    )  # compiles for seconds
    monkeypatch.setattr(budget, "budget", lambda *args: 40 * 10**9)  # not what is free just now
    settings = settings | {"cluster": {"method": "umap" if umap else "distances"}, "neighbors": {"metric": metric}}
    settings = settings | {"extract": settings.get("extract", {}) | {"rows": rows}}
    cpu = results(go(tmp_path, settings, name="cpu"))
    out = on_gpus(tmp_path, settings, monkeypatch, workers)
    gpu = results(out)
    np.testing.assert_array_equal(cpu["activations"], gpu["activations"])
    for name in ("entropy", "varentropy", "sparsity", "mean", "std", "max"):
        np.testing.assert_allclose(cpu["features"][name], gpu["features"][name], rtol=1e-9, err_msg=name)
    exact = 4e-6
    if metric == "partial_correlation":  # the same error of a tile, of what the length leaves of the variances
        kept = cpu["features"].loc[cpu["features"]["kept"], "feature"].to_numpy()
        exact /= 1 - length_explains(tmp_path / "cpu", kept).max()
    np.testing.assert_allclose(cpu["distances"], gpu["distances"], atol=exact)
    assert (cpu["indices"] == gpu["indices"]).mean() > 0.98  # ties of the CPU's may be apart by rounding
    if not umap:
        np.testing.assert_array_equal(cpu["labels"], gpu["labels"])
    assert gpu["features"].loc[gpu["features"]["kept"], "outlier_score"].notna().all()
    stages = json.loads((out / schema.RECORD).read_text())["stages"]
    for name, stage in stages.items():
        assert len(stage["device_peak_bytes"]) == workers
        assert all(set(peaks) == {"pool", "process"} for peaks in stage["device_peak_bytes"].values())
        assert name in ("prompts", "select", "validate", "report") or stage["device_projected_bytes"] >= 7e8
    assert stages["embed"]["method"] == "cuml"


def test_clusters_far_from_the_origin_keep_their_distances() -> None:
    """float32 has no digits left for them in |a|² + |b|² - 2ab, which is how cuML has distances."""
    rng = np.random.default_rng(0)
    centres = rng.normal(scale=8, size=(6, 10))
    belongs = rng.integers(0, 6, 400)
    spread = np.where(belongs == 0, 1e-5, 0.5)[:, None]  # the first is tight: float32 sees no distances in it
    points = (centres[belongs] + rng.normal(size=(400, 10)) * spread + 300).astype(np.float32)
    config = HdbscanConfig(min_cluster_size=10, min_samples=5)
    cpu, cpu_tree = cluster_embedding(points, config), embedding_tree(points, 5)
    with cuda_stub.installed():
        gpu, gpu_tree = (cluster_embedding(points, config, backend="cuda"), embedding_tree(points, 5, backend="cuda"))
    np.testing.assert_array_equal(cpu.labels, gpu.labels)
    assert cpu.n_clusters == 6
    loose = cpu_tree[:, 2] > 0.1
    np.testing.assert_allclose(cpu_tree[loose, 2], gpu_tree[loose, 2], rtol=1e-3)
    assert (gpu_tree[:, 2] > 0).all()
    assert gpu.notes == cpu.notes


def test_both_optimisers_start_from_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 4))
    gaps = np.linalg.norm(points[:, None] - points, axis=2)
    indices = np.argsort(gaps, axis=1)[:, :8].astype(np.int32)
    distances = np.take_along_axis(gaps, indices, axis=1).astype(np.float32)
    started = []
    monkeypatch.setattr(
        embedding, "_umap_learn", lambda indices, distances, start, config: started.append(start) or start
    )
    with cuda_stub.installed():
        embedding.embed(indices, distances, UmapConfig(n_neighbors=8), 3, backend="cuda")
    (start,) = started
    np.testing.assert_allclose(start.min(axis=0), 0)
    np.testing.assert_allclose(start.max(axis=0), 10)  # as umap-learn scales any start


def test_a_sweep_on_a_gpu_equals_one_on_the_cpu(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "_umap_learn", lambda indices, distances, start, config: start)
    monkeypatch.setattr(budget, "budget", lambda *args: 40 * 10**9)
    file = tmp_path / "sweep.yaml"
    vary = {"cluster.method": ["distances", "umap"], "n_prompts": [30, 60]}
    file.write_text(yaml.safe_dump({"base": settings, "vary": vary, "seeds": 1}))

    def swept(name: str) -> gpuclust.Sweep:
        scheduler = {"cpu": "threads", "gpu": "local-cuda"}[name]
        assert sweep.main([str(file), "--out", str(tmp_path / name), "--scheduler", scheduler, "--quiet"]) == 0
        return gpuclust.open_sweep(tmp_path / name)

    cpu = swept("cpu")
    load = encoders.load_encoder
    monkeypatch.setattr(encoders, "load_encoder", lambda config, device: load(config, "cpu"))
    with cuda_stub.installed() as calls:
        gpu = swept("gpu")
        called = {name for name, _, _ in calls}
    assert "cupy.cuda.cublas.gemmEx" in called
    assert any(name.startswith("cuml.") and "UMAP" in name for name in called), sorted(called)
    assert gpu.table["error"].isna().all()
    exact = (cpu.table["cluster.method"] == "distances").to_numpy()
    np.testing.assert_array_equal(cpu.labels[exact], gpu.labels[exact])
    assert cpu.table["n_kept"].tolist() == gpu.table["n_kept"].tolist()
