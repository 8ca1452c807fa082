"""On a real GPU: `make test-gpu`. CPU and GPU agree, stage by stage, and memory stays below its cap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuclust import schema
from gpuclust.compute import topk
from gpuclust.compute.clustering import cluster_embedding
from gpuclust.config_sections import HdbscanConfig, StoreConfig
from gpuclust.hardware import backend
from gpuclust.storage import codec, codec_cuda, row_blocks, store
from tests import tiny
from tests.strategies import sae_like
from tests.test_run import go, results
from tests.test_store import make

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]
GB = 10**9


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_kernel_expands_what_was_encoded(dtype: type) -> None:
    import cupy

    values = sae_like(513, 1000).astype(dtype)
    words, packed = codec.sections(codec.encode(values), values.size, values.itemsize)
    out = cupy.full(values.shape, 7, dtype)
    codec_cuda.expand(cupy.asarray(words), cupy.asarray(packed), values.shape[1], out)
    np.testing.assert_array_equal(out.get(), values)


@pytest.mark.parametrize("name", ["bitmap", "zstd"])
def test_blocks_are_what_the_host_reads(tmp_path: Path, name: str) -> None:
    values = sae_like(1000, 700)
    path = make(tmp_path, values, StoreConfig(shard_prompts=256, chunk_prompts=128, chunk_features=300, codec=name))
    kept = np.arange(0, 700, 3)
    seen = 0
    for start, block in row_blocks.rows(path, 256, backend.resolve("cuda"), columns=kept):
        np.testing.assert_array_equal(block.get(), values[start : start + len(block), kept])
        seen += len(block)
    assert seen == len(values) == store.shard_ranges(path)[-1][1]


@pytest.mark.parametrize("shape", [(1024, 4096), (2048, 2048)])
@pytest.mark.parametrize("k", [14, 20, 63])
def test_the_smallest_keys_are_numpys(shape: tuple[int, int], k: int) -> None:
    import cupy

    rng = np.random.default_rng(k)
    for _ in range(30):
        keys = rng.integers(0, 2**64, shape, np.uint64)
        keys[rng.random(shape) < 0.1] = topk.NOTHING
        np.testing.assert_array_equal(topk.smallest(cupy.asarray(keys), k, cupy).get(), topk.smallest(keys, k))


def test_clusters_of_an_embedding_agree() -> None:
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(0)
    centres = rng.normal(scale=8, size=(20, 10))
    points = (centres[rng.integers(0, 20, 4000)] + rng.normal(scale=0.6, size=(4000, 10)) + 50).astype(np.float32)
    config = HdbscanConfig(min_cluster_size=20, min_samples=5)
    cpu, gpu = (cluster_embedding(points, config, backend=name) for name in ("cpu", "cuda"))
    assert adjusted_rand_score(cpu.labels, gpu.labels) > 0.99
    assert len(gpu.condensed_tree)
    assert np.isfinite(gpu.outlier_scores).all()


@pytest.mark.parametrize("umap", [True, False])
def test_a_run_on_the_gpu_agrees_with_one_on_the_cpu(tmp_path: Path, umap: bool) -> None:
    (tmp_path / "tiny").mkdir()
    settings: dict[str, Any] = tiny.build(tmp_path / "tiny") | {"device": {"memory": "6GB"}}
    settings["cluster"] = {"method": "umap" if umap else "distances"}
    cpu = results(go(tmp_path, settings, name="cpu"))
    out = go(tmp_path, settings, name="gpu", scheduler="local-cuda")
    gpu = results(out)
    np.testing.assert_allclose(cpu["activations"], gpu["activations"], rtol=2e-3, atol=1e-3)
    for name in ("entropy", "varentropy", "mean", "std"):
        np.testing.assert_allclose(cpu["features"][name], gpu["features"][name], rtol=1e-3, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(cpu["distances"], gpu["distances"], atol=1e-3)
    for name, stage in json.loads((out / schema.RECORD).read_text())["stages"].items():
        for peaks in stage["device_peak_bytes"].values():
            projected = stage["device_projected_bytes"] or 6 * GB
            assert peaks["pool"] <= projected <= 6 * GB, name
            assert peaks["process"] is None or peaks["process"] <= 6 * GB, name
