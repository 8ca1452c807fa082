"""CPU and GPU side by side, peaks under a cap, and throughput against the card's own ceilings: one JSON file.

    python -m benchmarks.gpu [--json build/gpu.json] [--memory 6GB] [--minutes 8] [--only NAME ...]

For a fresh machine with a GPU, its driver and ``gpuclust[cuda13]``: at most eight minutes, nothing is downloaded.
Models have random weights in true shapes, activations are made up: times and memory mean something, clusters do not.
Sections that no longer fit the time are named as left out, and a section that fails is recorded with its error; the
exit code is 1 then. On a machine without a usable GPU it says why and exits with 2.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from gpuclust import schema
from gpuclust.compute import gram, neighbors, reductions
from gpuclust.compute.clustering import cluster_embedding, cluster_tree
from gpuclust.compute.embedding import embed
from gpuclust.compute.spanning_tree import mutual_reachability_tree
from gpuclust.config_sections import HdbscanConfig, StoreConfig, UmapConfig
from gpuclust.configfile import validate
from gpuclust.extraction import encoders, extract_shard
from gpuclust.hardware import backend, budget, device
from gpuclust.section import parse_bytes
from gpuclust.storage import markers, row_blocks, store
from gpuclust.storage.record import versions

Result = dict[str, Any]
HDBSCAN = HdbscanConfig(min_cluster_size=10, min_samples=5)


def activations(prompts: int, features: int, density: float = 0.25, seed: int = 0) -> np.ndarray:
    """Draw float16 activations of which groups of some 40 features are active together."""
    rng = np.random.default_rng(seed)
    groups = max(features // 40, 2)
    topic = rng.gamma(0.3, 1.0, (prompts, groups)).astype(np.float32)
    member = rng.integers(0, groups, features)
    out = np.empty((prompts, features), np.float16)
    for start in range(0, prompts, 512):
        part = slice(start, min(start + 512, prompts))
        shape = (part.stop - part.start, features)
        values = topic[part][:, member] * 2 + rng.standard_exponential(shape, dtype=np.float32) * 0.5
        out[part] = np.maximum(values - np.quantile(values[:64], 1 - density), 0)
    return out


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """Median of wall seconds with the GPU idle before and after; the first call, which compiles, is left out."""
    import cupy

    function()
    taken = []
    for _ in range(repeats):
        cupy.cuda.Device().synchronize()
        started = time.perf_counter()
        function()
        cupy.cuda.Device().synchronize()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


# ---------------------------------------------------------------- sections


def notebook(args: argparse.Namespace, work: Path) -> Result:
    """The notebook's case through all stages under the cap: 32,768 features x 1,000 prompts, random weights."""
    from tests.hub import Hub, build_pythia, build_pythia_sae, build_wikitext

    root, out = work / "hub", work / "run"
    build_pythia(root)
    build_pythia_sae(root)
    build_wikitext(root, articles=400)
    config = Path(__file__).parent.parent / "configs" / "notebook.yaml"
    command = [sys.executable, "-m", "gpuclust.run", "--config", str(config), "--out", str(out), "--quiet"]
    command += ["--scheduler", "local-cuda", "--no-report", "--set", f"device.memory={args.memory}"]
    with Hub(root) as hub:
        started = time.perf_counter()
        subprocess.run(command, env=hub.environment(work / "home"), check=True, timeout=args.minutes * 60)
        wall = time.perf_counter() - started
    record = json.loads((out / schema.RECORD).read_text())
    cap = parse_bytes(args.memory)
    stages = {}
    for name, stage in record["stages"].items():
        pools = [peaks["pool"] for peaks in stage["device_peak_bytes"].values()]
        processes = [peaks["process"] for peaks in stage["device_peak_bytes"].values()]
        # Projections count the context, the pool's counters do not.
        projected = stage["device_projected_bytes"]
        stages[name] = {
            "seconds": stage["seconds"], "pool_peak_bytes": max(pools), "process_bytes": max(p or 0 for p in processes),
            "projected_bytes": projected,
            "within": projected is None or max(pools) + device.RESERVE <= projected <= cap,
        }  # fmt: skip
    return {"wall_s": wall, "kept": record["stages"]["select"]["kept"], "stages": stages,
            "all_within": all(stage["within"] for stage in stages.values())}  # fmt: skip


def ceilings(args: argparse.Namespace, work: Path) -> Result:
    """What the card does by itself: copies and matrix products."""
    import cupy
    import cupyx

    n = 1 << 28
    host = cupyx.empty_pinned((n,), np.uint8)
    host[...] = 1
    one, two = cupy.empty(n, cupy.uint8), cupy.empty(n, cupy.uint8)
    stream = cupy.cuda.get_current_stream()
    found = {
        "host_to_device_bytes_s": n / seconds(lambda: one.set(host, stream=stream)),
        "device_copy_bytes_s": 2 * n / seconds(lambda: cupy.copyto(two, one)),
    }
    size = 4096
    for dtype in ("float16", "float32"):
        a = cupy.random.standard_normal((size, size), cupy.float32).astype(dtype)  # zeros and ones draw less power
        held = cupy.zeros((size, size), cupy.float32)
        took = seconds(lambda a=a, held=held: gram.add_product(held, a, a, cupy))
        found[f"{dtype}_flop_s"] = 2 * size**3 / took
    return found


def agreement(args: argparse.Namespace, work: Path) -> Result:
    """Stage by stage on the same activations: what differs between CPU and GPU, and whether it is within bounds."""
    import cupy

    values = activations(2048, 4096)
    n, k = values.shape[1], 16
    on_device = cupy.asarray(values)
    cpu = reductions.MOMENTS.finalize(reductions.MOMENTS.chunk(values, 0.0))
    gpu = backend.on_host(reductions.MOMENTS.finalize(reductions.MOMENTS.chunk(on_device, 0.0, cupy)))
    moments = max(float(np.abs(gpu[f] - cpu[f]).max() / np.abs(cpu[f]).max()) for f in cpu)
    (tiles,) = gram.plan_passes(n, n, 1 << 60)
    host = gram.accumulate([values], n, tiles, n)
    card = gram.accumulate([on_device], n, tiles, n, cupy)
    near, far = neighbors.exact(host, k, "cosine")
    near_gpu, far_gpu = map(backend.to_host, neighbors.exact(card, k, "cosine", cupy))
    sides = [{"sums": g.sums, "squares": g.squares} for g in (host, card)]
    dense = neighbors.distances("cosine", host.dense(), len(values), sides[0], sides[0], 0.0)
    tile = card.tiles[0, 0]
    dense_gpu = backend.to_host(neighbors.distances("cosine", tile, len(values), sides[1], sides[1], 0.0, cupy))
    labels = []
    for matrix in (dense, dense_gpu):
        np.fill_diagonal(matrix, 0)
        symmetric = np.minimum(matrix, matrix.T)
        labels.append(cluster_tree(mutual_reachability_tree(symmetric, HDBSCAN.min_samples), HDBSCAN).labels)
    # Neighbours are equal up to ties when no chosen one is farther than the last should be, by more than the bound.
    bound = float(2 * len(values) * 2.0**-24)
    worst = float(np.abs(np.sort(far_gpu, axis=1) - far).max())
    routes: dict[str, list[np.ndarray]] = {"cpu": [], "cuda": []}
    for seed in (1, 2):
        settings = UmapConfig(n_neighbors=k, n_components=10, random_state=seed)
        for name, found in routes.items():
            points, _ = embed(near, far, settings, backend=name)
            found.append(cluster_embedding(points, HDBSCAN, backend=name).labels)
    within = {name: adjusted_rand_score(*found) for name, found in routes.items()}
    across = adjusted_rand_score(routes["cpu"][0], routes["cuda"][0])
    return {
        "moments_largest_relative_difference": moments, "moments_within_1e-6": moments < 1e-6,
        "neighbours_identical_share": float((near == near_gpu).mean()), "distance_largest_difference": worst,
        "neighbours_equal_up_to_ties": worst <= bound, "distance_bound": bound,
        "exact_hdbscan_ari": float(adjusted_rand_score(*labels)),
        "umap_ari_two_seeds": within, "umap_ari_cpu_against_gpu": float(across),
        "umap_as_stable_across_as_within": across >= min(within.values()) - 0.1,
    }  # fmt: skip


def reductions_rate(args: argparse.Namespace, work: Path) -> Result:
    """Moments and Gram tiles of blocks that are on the device, against copies and the matrix rate."""
    import cupy

    block = cupy.asarray(activations(512, 32_768))
    tile = budget.TILE
    (tiles,) = gram.plan_passes(tile * 3, tile, 1 << 60)
    three = cupy.ascontiguousarray(block[:, : tile * 3])
    moments = seconds(lambda: reductions.MOMENTS.chunk(block, 0.0, cupy))
    products = seconds(lambda: gram.accumulate([three] * 4, tile * 3, tiles, tile, cupy))
    return {
        "moments_bytes_s": block.nbytes / moments,
        "gram_flop_s": 4 * 2 * len(block) * tile * tile * len(tiles) / products,
    }


def store_pass(args: argparse.Namespace, work: Path) -> Result:
    """The pass over a store, packed and decoded, against reading and decoding alone."""
    values = activations(8192, 16_384)
    found: Result = {"bytes": values.nbytes}
    cuda = backend.Backend("cuda", "benchmark")
    for codec in ("bitmap", "zstd"):
        path = work / codec / schema.ACTIVATIONS
        path.parent.mkdir()
        store.create(path, *values.shape, StoreConfig(codec=codec), {})
        for index, (first, stop) in enumerate(store.shard_ranges(path)):
            markers.write_shard(path, path.parent / schema.SHARDS, index, first, values[first:stop], {}, "benchmark")
        read = seconds(lambda path=path: [None for _ in store.read_rows(path, 512)])
        copied = seconds(lambda path=path: [None for _ in row_blocks.rows(path, 512, cuda)])
        found[codec] = {"host_read_bytes_s": values.nbytes / read, "to_gpu_bytes_s": values.nbytes / copied}
    return found


def extraction(args: argparse.Namespace, work: Path) -> Result:
    """Tokens a second of a shard's extraction against the bare forward pass and encoding of the same batches."""
    import torch

    from tests import tiny

    with tiny_shapes(512, 32_768):
        folder = work / "model"
        folder.mkdir()
        settings = tiny.build(folder)
    config = validate(settings | {"device": {"memory": args.memory}, "extract": {"batch_tokens": 4096}})
    encoder = encoders.load_encoder(config, "cuda")
    rng = np.random.default_rng(0)
    tokens = [rng.integers(5, 500, 64).astype(np.int32) for _ in range(512)]
    total = sum(map(len, tokens))
    ids = torch.from_numpy(np.stack(tokens[:62]).astype(np.int64))
    mask = torch.ones_like(ids)

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(512 // 62 + 1):
                residual = encoder.residual(ids, mask).flatten(0, 1)
                for part in residual.split(1024):
                    encoder.features(part)

    ours = seconds(lambda: extract_shard.aggregate_prompts(encoder, tokens, config))
    alone = seconds(bare)
    return {"tokens_s": total / ours, "bare_tokens_s": (512 // 62 + 1) * ids.numel() / alone}


class tiny_shapes:  # noqa: N801
    """Within it, `tests.tiny` builds a wider model and SAE."""

    def __init__(self, width: int, d_sae: int) -> None:
        self.values = {"WIDTH": width, "D_SAE": d_sae}

    def __enter__(self) -> None:
        from tests import tiny

        self.before = {name: getattr(tiny, name) for name in self.values}
        vars(tiny).update(self.values)

    def __exit__(self, *exception: object) -> None:
        from tests import tiny

        vars(tiny).update(self.before)


def cuml_alone(args: argparse.Namespace, work: Path) -> Result:
    """cuML's own UMAP fed the matrix itself, features x prompts: time and peak, up to where it fails."""
    from cuml.manifold import UMAP

    found = []
    for prompts in (1000, 4000, 16_000, 64_000):
        values = activations(prompts, 16_384)
        matrix = np.ascontiguousarray(values.T, np.float32)
        device.reset_peak()
        started = time.perf_counter()
        line: Result = {"features": matrix.shape[0], "prompts": prompts, "matrix_bytes": matrix.nbytes}
        try:
            UMAP(n_neighbors=15, n_components=10, random_state=0, output_type="numpy").fit_transform(matrix)
        except (MemoryError, RuntimeError) as error:
            found.append(line | {"failed": f"{type(error).__name__}: {device.first_line(error)}"})
            break
        found.append(line | {"seconds": time.perf_counter() - started, "device": device.peaks()})
    return {"cap": args.memory, "runs": found}


# In order: the first runs in processes of its own, before this one takes its pool.
SECTIONS: dict[str, tuple[Callable[[argparse.Namespace, Path], Result], float]] = {
    "notebook": (notebook, 3.5), "ceilings": (ceilings, 0.3), "agreement": (agreement, 1.5),
    "reductions": (reductions_rate, 0.4), "store_pass": (store_pass, 0.8), "extraction": (extraction, 0.5),
    "cuml_alone": (cuml_alone, 1.0),
}  # fmt: skip


def main() -> int:
    """Run the sections that fit the time and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("build/gpu.json"))
    parser.add_argument("--memory", default="6GB", help="cap, CUDA context included")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    args = parser.parse_args()
    status = backend.cuda_status()
    if not status.usable:
        print(f"benchmarks.gpu needs a GPU and RAPIDS: {status.reason}; {status.fix}", file=sys.stderr)
        return 2
    began, result = time.perf_counter(), about()
    _write(args.json, result)
    for name in args.only:
        section, minutes = SECTIONS[name]
        left = args.minutes - (time.perf_counter() - began) / 60
        if minutes > left:
            result[name] = {"left_out": f"{left:.1f} minutes were left, about {minutes} are needed"}
            _write(args.json, result)
            continue
        started, work = time.perf_counter(), Path(tempfile.mkdtemp(prefix="gpuclust-gpu-"))
        try:
            if name != "notebook":
                device.install(parse_bytes(args.memory))
            result[name] = section(args, work)
        except Exception as error:
            result[name] = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        finally:
            shutil.rmtree(work, ignore_errors=True)
        result[name]["section_s"] = round(time.perf_counter() - started, 1)
        print(name, json.dumps({k: v for k, v in result[name].items() if k != "traceback"}), flush=True)
        _write(args.json, result)
    return int(any("error" in part for part in result.values() if isinstance(part, dict)))


def _write(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, default=str) + "\n")


def about() -> Result:
    """The machine."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    return {
        "date": time.strftime("%Y-%m-%d"), "machine": platform.platform(), "cores": os.cpu_count(),
        "gpu": properties["name"].decode(), "gpu_bytes": int(properties["totalGlobalMem"]),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "driver_cuda": int(cupy.cuda.runtime.driverGetVersion()), "versions": versions(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
