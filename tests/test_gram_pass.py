"""Neighbours of groups of prompts from one pass, on workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gpuclust import schema
from gpuclust.compute import neighbors
from gpuclust.compute.spanning_tree import mutual_reachability_tree
from gpuclust.config_sections import StoreConfig
from gpuclust.configfile import validate
from gpuclust.engine import exact_pass, prompt_rows
from gpuclust.engine.progress import Progress
from gpuclust.engine.views import PromptGroups, View, read_errors, read_neighbors
from gpuclust.hardware import budget
from gpuclust.storage import markers, store
from tests.strategies import sae_like
from tests.test_association import counted
from tests.test_neighbors import whole
from tests.test_store import make

N, F, K = 90, 50, 6


@pytest.mark.parametrize("umap", [True, False])
def test_views_of_one_pass_equal_passes_of_their_own(tmp_path: Path, umap: bool) -> None:
    from distributed import Client

    config = validate(
        {
            "umap": {"n_neighbors": K},
            "cluster": {"method": "umap" if umap else "distances"},
            "consensus": {"members": 1},
            "hdbscan": {"min_cluster_size": 4, "min_samples": 3},
            "store": {"shard_prompts": 20, "chunk_prompts": 10},
        }
    )
    values = sae_like(N, F)
    path = tmp_path / schema.ACTIVATIONS
    store.create(path, N, F, config.store, {})
    for index, (first, stop) in enumerate(store.shard_ranges(path)):
        markers.write_shard(path, tmp_path / schema.SHARDS, index, first, values[first:stop], {}, "key")
    kept = np.flatnonzero(np.arange(F) % 7)
    groups = np.random.default_rng(1).integers(-1, 3, N)
    weights = {"whole": [1, 1, 1, 0], "first": [1, 0, 0, 0], "bootstrap": [0, 2, 1, 0], "other layer": [0, 0, 0, 1]}
    some = kept[::2]
    tree = {} if umap else {3: "tree3.npy", 5: "tree5.npy"}

    def view(name: str, features: np.ndarray | None = None, metric: str = "cosine") -> View:
        path = tmp_path / name
        trees = {samples: path.with_name(f"{path.name} {file}") for samples, file in tree.items()}
        return View(np.array(weights[name.split(",")[0]]), path, metric, K, features, trees)

    views = [
        *map(view, weights), view("first, some", some), view("whole, dot", some, "dot"),
        view("whole, partial", some, "partial_correlation"), view("bootstrap, partial", None, "partial_correlation"),
    ]  # fmt: skip
    lengths = np.random.default_rng(2).integers(5, 90, N)
    plan = budget.Plan(0, rows=7, tile=16, tiles_per_pass=2, stages=())
    codes = np.stack([groups, np.where(np.arange(N) % 2, -1, 3)])
    with Client(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as client:
        workers = list(client.scheduler_info()["workers"])
        facts = exact_pass.exact_neighbors(
            client, workers, tmp_path, kept, PromptGroups(codes, 4, lengths=lengths), views, plan,
            Progress(Console(), quiet=True),
        )  # fmt: skip
    assert facts["passes"] == 3
    for view in views:
        times = np.where(groups < 0, 0, view.weights[groups]) + view.weights[3] * (np.arange(N) % 2 == 0)
        features = kept if view.features is None else view.features
        held = whole(np.repeat(values, times, axis=0)[:, features], len(features), lengths=np.repeat(lengths, times))
        indices, distances = neighbors.exact(held, K, view.metric)
        got_kept, got_indices, got_distances = read_neighbors(view.path)
        np.testing.assert_array_equal(got_kept, features)
        np.testing.assert_array_equal(got_indices, indices)
        np.testing.assert_array_equal(got_distances, distances)
        far = neighbors.tile_distances(held, 0, 0, view.metric, float(held.squares.max()))
        np.fill_diagonal(far, 0)
        for samples, path in view.trees.items():
            np.testing.assert_array_equal(np.load(path), mutual_reachability_tree(far, samples))


def test_views_of_counts_equal_passes_of_their_own(tmp_path: Path) -> None:
    from distributed import Client

    values = sae_like(N, F)
    make(tmp_path, values, StoreConfig(shard_prompts=20, chunk_prompts=10, chunk_features=F))
    kept, above = np.flatnonzero(np.arange(F) % 7), 1.2
    groups = np.random.default_rng(1).integers(-1, 3, N)
    views = [
        View(np.array(weights), tmp_path / f"{metric}{number}", metric, K, features, trees)
        for metric in ("corrected_jaccard", "phi", "npmi", "overlap")
        for number, (weights, features, trees) in enumerate([
            ([1, 1, 1], None, {3: tmp_path / f"{metric}.npy"}), ([0, 1, 0], kept[::2], {}), ([2, 0, 1], kept[1::2], {}),
        ])
    ]  # fmt: skip
    plan = budget.Plan(0, rows=7, tile=16, tiles_per_pass=2, stages=())
    given = PromptGroups(groups, 3, active_above=above)
    with Client(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as client:
        workers, progress = list(client.scheduler_info()["workers"]), Progress(Console(), quiet=True)
        exact_pass.exact_neighbors(client, workers, tmp_path, kept, given, views, plan, progress)
    for view in views:
        times = np.where(groups < 0, 0, view.weights[groups])
        features = kept if view.features is None else view.features
        held = counted(np.repeat(values, times, axis=0)[:, features], above)
        indices, distances = neighbors.exact(held, K, view.metric)
        got_kept, got_indices, got_distances = read_neighbors(view.path)
        np.testing.assert_array_equal(got_kept, features)
        np.testing.assert_array_equal(got_indices, indices)
        np.testing.assert_array_equal(got_distances, distances)
        errors = neighbors.errors_of(held, indices, distances, view.metric)
        np.testing.assert_array_equal(read_errors(view.path), errors)
        for samples, path in view.trees.items():
            expected = mutual_reachability_tree(neighbors.all_distances(held, view.metric), samples)
            np.testing.assert_array_equal(np.load(path), expected)


def test_plan_counts_the_tiles_of_every_group() -> None:
    config = validate({})
    for groups in (1, 8):
        shapes = budget.Shapes(10_000, 32_768, 32_768, 512, n_groups=groups)
        plan = budget.plan(config, shapes, 12 * 10**9, held=("neighbors",))
        held = plan.tiles_per_pass * groups * plan.tile**2 * 8
        assert held <= 12 * 10**9 - budget.PROCESS
        assert plan.stages[2].passes > 1 or groups == 1


def test_a_permutation_depends_on_the_prompts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((100, 6)).astype(np.float32)
    make(tmp_path, values, StoreConfig(dtype="float32", shard_prompts=20, chunk_prompts=10, chunk_features=6))
    monkeypatch.setattr(budget, "PERMUTED_ROWS", 32)
    kept = np.array([0, 2, 5])

    def read(rows: int, *shares: tuple[int, int]) -> np.ndarray:
        plan = budget.Plan(10**9, rows, 6, 1, ())
        return np.concatenate([b for share in shares for b in prompt_rows.read_blocks(tmp_path, kept, plan, 7, *share)])

    every = read(64, (0, 100))
    assert not np.array_equal(every, values[:, kept])
    np.testing.assert_array_equal(np.sort(every[:32], axis=0), np.sort(values[:32, kept], axis=0))
    np.testing.assert_array_equal(read(7, (0, 100)), every)
    np.testing.assert_array_equal(read(50, (0, 40), (40, 100)), every)
