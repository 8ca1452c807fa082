"""What each stage really takes: `python -m tests.peaks FOLDER NAME...` runs cases in this process and prints bytes.

Every case makes its inputs as files, lets go of them, and measures one task of the pipeline: how far the process's
peak rises over what it used before. The first line is what the process takes with its libraries imported and used.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from gpuclust.compute.halves import half_of
from gpuclust.config import Config
from gpuclust.configfile import validate
from gpuclust.hardware import budget

Array = np.ndarray[Any, Any]
MB = 10**6
SLICE = 256 << 20  # float32 activations that a run's SAE encodes at a time
SHARE = 4  # slices that the SAE encodes are so much smaller here than in a run, for time
SEVERAL = {"n_groups": 2, "n_views": 3}  # the whole and both halves


@dataclass(frozen=True)
class Case:
    """A stage at one shape; `room` is the budget beside the process."""

    stage: str
    run: Callable[[Case, Path], Callable[[], Any]]
    shapes: budget.Shapes
    settings: dict[str, Any] = field(default_factory=dict)
    room: int = 10**10
    tokens: int = 0

    @property
    def config(self) -> Config:
        return validate(self.settings)

    @property
    def plan(self) -> budget.Plan:
        return budget.plan(self.config, self.shapes, budget.PROCESS + self.room, ())

    @property
    def projected(self) -> int:
        """Bytes beside the process."""
        peak = next(stage.peak for stage in self.plan.stages if stage.stage == self.stage)
        spared = budget.ENCODE - budget.ENCODE // SHARE if self.stage == "extract" else 0
        return peak - budget.PROCESS - spared


# ---------------------------------------------------------------- inputs


def make_store(case: Case, out: Path, states: bool = False) -> Path:
    """A store of sparse random activations, shard by shard."""
    from gpuclust import schema
    from gpuclust.extraction import extract_shard
    from gpuclust.hardware.backend import resolve
    from gpuclust.storage import markers, store

    n, width = case.shapes.n_prompts, case.shapes.n_features
    path = out / schema.ACTIVATIONS
    store.create(path, n, width, case.config.store, {})
    rng = np.random.default_rng(0)
    for index, (first, stop) in enumerate(store.shard_ranges(path)):
        data = np.zeros((stop - first, width), case.config.store.dtype)
        places = rng.integers(0, data.size, data.size // 20)
        data.reshape(-1)[places] = rng.random(len(places)) + 0.1
        if states:
            positions = np.zeros(data.shape, np.int16)
            found = extract_shard.shard_states(data, positions, first, case.config, resolve("cpu"))
            markers.write_shard(path, out / schema.SHARDS, index, first, data, found, "key")
        else:
            store.write_rows(path, index, first, data)
    return path


def random_neighbors(n: int, k: int) -> tuple[Array, Array]:
    """Neighbours that keep the contract, near each other in number."""
    rng = np.random.default_rng(0)
    steps = np.sort(rng.permuted(np.tile(np.arange(1, 4 * k), (n, 1)), axis=1)[:, : k - 1], axis=1)
    indices = np.concatenate([np.arange(n)[:, None], (np.arange(n)[:, None] + steps) % n], axis=1).astype(np.int32)
    distances = np.concatenate([np.zeros((n, 1)), steps / (4 * k)], axis=1).astype(np.float32)
    return indices, distances


def write_clusters(case: Case, out: Path) -> Array:
    """Tables of `n_clusters` clusters of equal size, as the cluster stage leaves them; returns the labels."""
    import pandas as pd

    from gpuclust import schema
    from gpuclust.compute.clustering import cluster_tree
    from gpuclust.storage import atomic

    shapes = case.shapes
    kept, size = shapes.n_kept, shapes.n_kept // shapes.n_clusters
    steps = np.arange(kept - 1)
    weight = np.where((steps + 1) % size, 0.1 + 1e-6 * steps, 2 + 1e-6 * steps)
    edges = np.stack([steps, steps + 1, weight], axis=1)[np.argsort(weight)]
    found = cluster_tree(edges, case.config.hdbscan)
    assert found.n_clusters == shapes.n_clusters
    rng = np.random.default_rng(0)
    features = pd.DataFrame({"feature": np.arange(shapes.n_features)})
    for name in ("entropy", "varentropy", "sparsity", "mean", "std", "max"):
        features[name] = rng.random(len(features))
    features["n_active"] = rng.integers(1, 100, len(features))
    features["kept"] = features["feature"] < kept
    features["label"] = pd.array([*found.labels, *[pd.NA] * (len(features) - kept)], dtype="Int64")
    features["hdbscan_label"] = features["label"]
    features["duplicate_of"] = pd.array([pd.NA] * len(features), dtype="Int64")
    atomic.write_table(out / schema.FEATURES, features)
    atomic.write_table(out / schema.CONDENSED_TREE, pd.DataFrame(found.condensed_tree))
    (out / schema.PERSISTENCE).parent.mkdir(exist_ok=True)
    np.save(out / schema.PERSISTENCE, found.persistence)
    number = np.arange(shapes.n_prompts)
    texts = [f"the word{i % 97} of a prompt" for i in number]
    atomic.write_table(
        out / schema.PROMPTS, pd.DataFrame({"prompt": number, "text": texts, "n_tokens": 2, "source": "a"})
    )
    return found.labels.astype(np.int64)


# ---------------------------------------------------------------- stages


class Encoder:
    """Random weights and no language model."""

    def __init__(self, width: int) -> None:
        import torch

        torch.manual_seed(0)
        self.d_sae, self.device, self.commits = width, "cpu", {}
        self.tokenizer = SimpleNamespace(bos_token_id=None, pad_token_id=0, all_special_ids=[0])
        self.weights = torch.randn(8, width)

    def residual(self, ids: Any, mask: Any) -> Any:
        import torch

        return torch.randn((*ids.shape, 8))

    def features(self, residual: Any) -> Any:
        import torch

        return torch.relu(residual @ self.weights - 4)


def extract(case: Case, out: Path) -> Callable[[], Any]:
    from gpuclust import schema
    from gpuclust.extraction import encoders, extract_shard
    from gpuclust.storage import store

    extract_shard.ENCODE_BYTES["cpu"] = SLICE // SHARE
    store.create(out / schema.ACTIVATIONS, case.shapes.n_prompts, case.shapes.n_features, case.config.store, {})
    encoder = Encoder(case.shapes.n_features)
    encoders.load_encoder = lambda config, device: encoder  # type: ignore[assignment,misc]
    tokens = [np.ones(case.tokens, np.int32)] * case.shapes.n_prompts
    return lambda: extract_shard.run_shard(case.config, out, 0, 0, tokens, "key", "cpu")


def reduce(case: Case, out: Path) -> Callable[[], Any]:
    from gpuclust.engine import tasks

    make_store(case, out, states=True)
    options = case.config.extract
    return lambda: tasks.reduce_task(out, options.activation_threshold, case.plan.rows, options.top_examples)


def reduce_again(case: Case, out: Path) -> Callable[[], Any]:
    """Nothing but the activations is left: everything is read again."""
    from gpuclust.engine import tasks

    make_store(case, out)
    options = case.config.extract
    return lambda: tasks.reduce_task(out, options.activation_threshold, case.plan.rows, options.top_examples)


def neighbors(case: Case, out: Path) -> Callable[[], Any]:
    from distributed import Client
    from rich.console import Console

    from gpuclust.engine import exact_pass, tasks
    from gpuclust.engine.progress import Progress
    from gpuclust.engine.views import PromptGroups, View

    make_store(case, out)
    config, kept = case.config, np.arange(case.shapes.n_kept)
    if config.neighbors.method == "sketch":
        return lambda: tasks.sketch_task(out, kept, config, case.plan)
    several = case.shapes.n_groups == 2
    n = case.shapes.n_prompts
    groups = PromptGroups(half_of(n, 0) if several else np.zeros(n, np.int64), case.shapes.n_groups)
    weights = {"whole": [1, 1], "half0": [1, 0], "half1": [0, 1]} if several else {"whole": [1]}

    def view(name: str) -> View:
        trees = {} if config.tree_samples is None else {config.hdbscan.min_samples: out / f"{name}.npy"}
        return View(np.array(weights[name]), out / name, config.metric, config.n_neighbors, trees=trees)

    def compute() -> None:
        with Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as client:
            workers = list(client.scheduler_info()["workers"])
            progress = Progress(Console(), quiet=True)
            # by tiles, which the projection is of: an index is as large as there is room
            plan = replace(case.plan, room=0)
            exact_pass.exact_neighbors(client, workers, out, kept, groups, list(map(view, weights)), plan, progress)

    return compute


def write_near(case: Case, out: Path) -> None:
    """Neighbours of the kept features, at random."""
    from gpuclust import schema
    from gpuclust.engine.views import write_neighbors

    n = case.shapes.n_kept
    near = random_neighbors(n, min(n, case.config.n_neighbors))
    write_neighbors(out / schema.NEIGHBORS, np.arange(n), *near, "cosine")


def embed(case: Case, out: Path) -> Callable[[], Any]:
    from gpuclust import schema
    from gpuclust.engine import tasks
    from gpuclust.engine.views import write_neighbors

    kept = np.arange(case.shapes.n_kept)
    write_neighbors(out / schema.NEIGHBORS, kept, *random_neighbors(len(kept), case.config.n_neighbors), "cosine")
    return lambda: tasks.embed_task(out, case.config)


def cluster(case: Case, out: Path) -> Callable[[], Any]:
    from gpuclust import schema
    from gpuclust.engine import tasks
    from gpuclust.engine.views import write_neighbors
    from gpuclust.storage import store

    n, config = case.shapes.n_kept, case.config
    write_clusters(case, out)
    write_neighbors(out / schema.NEIGHBORS, np.arange(n), *random_neighbors(n, config.n_neighbors), "cosine")
    embedding = np.random.default_rng(0).standard_normal((n, config.umap.n_components)).astype(np.float32)
    store.write_dataset(out / schema.EMBEDDING, {"embedding": (("feature", "component"), embedding)}, {})
    (out / schema.SELECTED).write_bytes((out / schema.FEATURES).read_bytes())
    np.save(out / schema.MAP, embedding[:, :2])
    labels = np.arange(n, dtype=np.int32) // 20
    members = [labels] * config.n_members if config.cluster.method == "communities" else []
    return lambda: tasks.cluster_task(out, config, members)


def consensus(case: Case, out: Path) -> Callable[[], Any]:
    """Members agree on one cluster of as many features as the projection assumes, and on nothing else."""
    from gpuclust.compute import consensus

    n, rng = case.shapes.n_kept, np.random.default_rng(0)
    linked = min(n, budget.LINKED)
    few = np.zeros(linked, np.int32)
    members = [
        np.concatenate([few, 1 + rng.permutation(n - linked) // 4]).astype(np.int32)
        for _ in range(case.config.n_members)
    ]
    return lambda: consensus.combine(members, case.config)


def quality(case: Case, out: Path) -> Callable[[], Any]:
    from gpuclust import schema
    from gpuclust.engine import quality_task

    make_store(case, out)
    labels = write_clusters(case, out)
    write_near(case, out)
    rng = np.random.default_rng(1)
    found = {name: [rng.permutation(labels)] for name in (*schema.HALVES, schema.NULL)}
    return lambda: quality_task.quality_task(out, case.config, case.plan, found, [])


def make_tokenizer(out: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    from tests import hub

    hub.build_tokenizer(out / "tokenizer", vocab=600)
    return PreTrainedTokenizerFast(tokenizer_file=str(out / "tokenizer/tokenizer.json"))


def analyse(case: Case, out: Path) -> Callable[[], Any]:
    import pandas as pd

    from gpuclust import schema
    from gpuclust.engine import analyse_task
    from gpuclust.extraction import encoders
    from gpuclust.storage import atomic

    make_store(case, out)
    write_clusters(case, out)
    if case.tokens:  # prompts that were read, not imported; the decoder has a term of its own
        tokenizer = make_tokenizer(out)
        encoders.load_tokenizer = lambda config: tokenizer
        analyse_task.decoder_columns = lambda *_: ({}, [])
        prompts = pd.read_parquet(out / schema.PROMPTS)
        ids = [np.asarray(tokenizer(text)["input_ids"], np.int32) for text in prompts["text"]]
        atomic.write_table(out / schema.PROMPTS, prompts.assign(tokens=ids))
    n, k = case.shapes.n_clusters, case.config.extract.top_examples
    checked = pd.DataFrame(
        {"verdict": ["stable"] * n, "verdict_reason": "", "stability": 0.5, "hdbscan_match": 0.3, "silhouette": 0.1}
    )
    atomic.write_table(out / schema.QUALITY, checked)
    tried = pd.DataFrame({name: np.zeros(n) for name in schema.VALIDATION_COLUMNS}).assign(cluster=range(n))
    atomic.write_table(out / schema.VALIDATION, tried)
    features = np.repeat(np.arange(case.shapes.n_features), k)
    rank = np.tile(np.arange(k), case.shapes.n_features)
    examples = {"feature": features, "rank": rank, "prompt": rank, "value": 1.0 / (1 + rank), "position": rank % 3}
    atomic.write_table(out / schema.EXAMPLES, pd.DataFrame(examples))
    return lambda: analyse_task.analyse_task(out, case.config, case.plan.rows)


def of(n_prompts: int, n_features: int, n_kept: int = 0, **more: Any) -> budget.Shapes:
    return budget.Shapes(n_prompts, n_features, n_kept or n_features, **more)


SMALL = {"hdbscan": {"min_cluster_size": 3, "min_samples": 2}}
ONE = {"consensus": {"members": 1}}
CASES = {
    "extract-long": Case("extract", extract, of(1, 16_384), {"extract": {"aggregate": "sum"}}, tokens=1500),
    "extract-many": Case("extract", extract, of(128, 32_768), tokens=4),
    "reduce": Case("reduce", reduce, of(128, 65_536), {"store": {"shard_prompts": 32, "chunk_prompts": 32}}),
    "reduce-again": Case("reduce", reduce_again, of(512, 65_536), {"store": {"shard_prompts": 512}}),
    "neighbors": Case("neighbors", neighbors, of(256, 8192, 6144, **SEVERAL), room=900 * MB),
    "neighbors-one": Case("neighbors", neighbors, of(512, 65_536, 4096), {"quality": {"halves": False}}),
    "neighbors-dense": Case("neighbors", neighbors, of(128, 4096, **SEVERAL), {"cluster": {"method": "distances"}}),
    "sketch": Case("neighbors", neighbors, of(256, 8192), {"neighbors": {"method": "sketch"}}, room=500 * MB),
    "embed-wide": Case("embed", embed, of(1, 16_000), {"umap": {"n_components": 200, "n_epochs": 2}}),
    "embed-near": Case(
        "embed", embed, of(1, 8000), ONE | {"umap": {"n_components": 2, "n_neighbors": 100, "n_epochs": 2}}
    ),
    "cluster": Case(
        "cluster", cluster, of(10, 3000, n_clusters=1000),
        ONE | {"umap": {"n_components": 30}, "hdbscan": {"min_cluster_size": 3, "min_samples": 1000}},
    ),
    "consensus": Case("cluster", consensus, of(10, 16_000), SMALL | {"consensus": {"members": 4}}),
    "quality": Case(
        "quality", quality, of(192, 8192, 4500, n_clusters=1125, **SEVERAL),
        SMALL | {"quality": {"random_sets": 10, "decoder": False}}, room=300 * MB,
    ),
    "quality-sets": Case(
        "quality", quality, of(256, 8192, 6000, n_clusters=300, **SEVERAL),
        SMALL | {"quality": {"random_sets": 1500, "decoder": False, "null": False}}, room=300 * MB,
    ),
    "analyse": Case("analyse", analyse, of(4096, 4096, 4000, n_clusters=1000), SMALL),
    "analyse-examples": Case("analyse", analyse, of(64, 65_536, 4000, n_clusters=10), SMALL),
    "analyse-tokens": Case("analyse", analyse, of(64, 24_000, n_clusters=24), SMALL, tokens=1),
}  # fmt: skip


def used() -> int:
    """Resident bytes with all that is free given back."""
    import psutil

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def warm() -> None:
    """Import and use once what the stages use, so that what is left is arrays."""
    import torch
    import umap  # noqa: F401

    from gpuclust.compute.clustering import cluster_embedding
    from gpuclust.compute.embedding import embed as embed_features
    from gpuclust.compute.spanning_tree import mutual_reachability_tree
    from gpuclust.config_sections import HdbscanConfig, UmapConfig
    from gpuclust.storage.codec import decode, encode
    from gpuclust.tables import words

    list(words.terms("words ภาษา 我们 ភាសា ພາສາ မြန်မာ é"))  # ICU's dictionaries
    words.whole("é", 0, 1)
    embed_features(*random_neighbors(100, 10), UmapConfig(n_neighbors=10, n_epochs=2))
    random = np.random.default_rng(0).random((300, 300)).astype(np.float32)
    cluster_embedding(random[:, :3], HdbscanConfig())
    mutual_reachability_tree(random + random.T, 5)
    for dtype in (np.float16, np.float32):
        decode(encode(random.astype(dtype)), random.shape, dtype)
    torch.relu(torch.randn(500, 8) @ torch.randn(8, 500)).abs().max(dim=0)
    np.linalg.eigh(random.astype(np.float64) @ random)


def main(folder: Path, names: list[str]) -> None:
    """Measure, and print a line of JSON a case."""
    import time

    from gpuclust.hardware import process

    warm()
    print(json.dumps({"name": "process", "bytes": used()}), flush=True)
    for name in names:
        case = CASES[name]
        out = folder / name
        out.mkdir()
        started = time.perf_counter()
        compute = case.run(case, out)
        before = used()
        ready = time.perf_counter()
        process.reset_peak()
        compute()
        peak = process.peak_bytes()
        facts = {"name": name, "grown": peak - before, "peak": peak, "projected": case.projected}
        facts |= {"made": round(ready - started, 1), "seconds": round(time.perf_counter() - ready, 1)}
        print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(CASES))
