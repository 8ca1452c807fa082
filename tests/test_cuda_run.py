"""A whole run with `--scheduler local-cuda` on a stand-in for a GPU, against the same run on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuclust import embed, memory, models, schema
from tests import cuda_stub, tiny
from tests.test_run import go, results


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.build(tmp_path_factory.mktemp("tiny"))


def on_gpus(folder: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, workers: int) -> Path:
    """Run on the stand-in; PyTorch has none, so model and SAE stay on the CPU."""
    load = models.load_encoder
    monkeypatch.setattr(models, "load_encoder", lambda config, device: load(config, "cpu"))
    with cuda_stub.installed() as calls:
        cuda_stub.STATE["workers"] = workers
        out = go(folder, settings, scheduler="local-cuda")
        assert any(name == "cupy.cuda.cublas.gemmEx" for name, _, _ in calls)
        return out


@pytest.mark.parametrize(("umap", "workers"), [(True, 1), (False, 2)])
def test_a_run_on_a_gpu_equals_one_on_the_cpu(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umap: bool, workers: int
) -> None:
    monkeypatch.setattr(embed, "_umap_learn", lambda indices, distances, start, config: start)  # compiles for seconds
    monkeypatch.setattr(memory, "budget", lambda *args: 40 * 10**9)  # not what is free just now
    settings = settings | {"umap": settings["umap"] | {"enabled": umap}}
    cpu = results(go(tmp_path, settings, name="cpu"))
    out = on_gpus(tmp_path, settings, monkeypatch, workers)
    gpu = results(out)
    np.testing.assert_array_equal(cpu["activations"], gpu["activations"])
    for name in ("entropy", "varentropy", "sparsity", "mean", "std", "max"):
        np.testing.assert_allclose(cpu["features"][name], gpu["features"][name], rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(cpu["distances"], gpu["distances"], atol=4e-6)
    assert (cpu["indices"] == gpu["indices"]).mean() > 0.98  # ties of the CPU's may be apart by rounding
    if not umap:
        np.testing.assert_array_equal(cpu["labels"], gpu["labels"])
    assert gpu["features"].loc[gpu["features"]["kept"], "outlier_score"].notna().all()
    stages = json.loads((out / schema.RECORD).read_text())["stages"]
    for name, stage in stages.items():
        assert len(stage["device_peak_bytes"]) == workers
        assert all(set(peaks) == {"pool", "process"} for peaks in stage["device_peak_bytes"].values())
        assert name in ("prompts", "select", "report") or stage["device_projected_bytes"] >= 7e8
    assert stages["embed"]["method"] == "cuml"
