"""Neighbours from an index of sparse rows: the same as from the whole Gram matrix, to the bit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import sparse

from gpuclust import schema
from gpuclust.compute import gram, inverted_index, inverted_pairs, neighbors, never_together, pair_distance, topk
from gpuclust.compute.inverted_pairs import Wanted
from gpuclust.config import ACTIVITY, SIMILARITIES
from gpuclust.config_sections import StoreConfig
from gpuclust.engine import exact_pass, neighbor_route
from gpuclust.engine.progress import Progress
from gpuclust.engine.views import PromptGroups, View, read_errors, read_neighbors
from gpuclust.errors import ActivationError, MemoryBudgetError
from gpuclust.hardware import budget
from tests.strategies import sae_like
from tests.test_store import make

K = 5


def found(
    values: np.ndarray, groups: np.ndarray, n_groups: int, wanted: list[Wanted], parts: int,
    lengths: np.ndarray | None = None, above: float | None = None,
) -> tuple[list[np.ndarray], int]:  # fmt: skip
    """Keys of every view by an index, and how many features were compared with all."""
    cut = len(values) // 3
    blocks = iter([sparse.csr_array(values[:cut]), values[cut:]])
    index = inverted_index.build(blocks, groups, n_groups, (values != 0).sum(axis=0), lengths, above)
    edges = np.linspace(0, values.shape[1], parts + 1).astype(int).tolist()
    several: list[list[np.ndarray]] = []
    for first, stop in reversed(list(pairwise(edges))):
        known = [topk.unpack(keys[:, -1])[0] for keys in several[-1]] if several else None
        several.append(inverted_pairs.nearest(index, wanted, index.sums, first, stop, known))
    result, left = [], 0
    for view, one in enumerate(wanted):
        keys = neighbors.merge([part[view] for part in several], one.k)
        some = never_together.complete(keys, one, index.sums, index.signed)
        keys[some] = never_together.compared(index, one, index.sums, some)
        result.append(keys)
        left += len(some)
    return result, left


@pytest.mark.parametrize("metric", list(pair_distance.KINDS))
@given(
    seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.005, 0.03, 0.3]), signed=st.booleans(),
    n_groups=st.integers(1, 3), parts=st.integers(1, 4), copies=st.booleans(),
)  # fmt: skip
def test_the_same_neighbours_as_from_the_whole_matrix(
    metric: str, seed: int, density: float, signed: bool, n_groups: int, parts: int, copies: bool
) -> None:
    rng = np.random.default_rng(seed)
    n_rows, n = 120, 40
    fires = rng.random((n_rows, n)) < 3 * density * rng.random(n) ** 2
    values = np.where(fires, rng.gamma(1.0, 1.0, fires.shape), 0).astype(np.float16).astype(np.float32)
    if signed:
        values *= rng.choice([-1, 1], fires.shape).astype(np.float32)
    if copies:
        values[:, n // 2 :] = values[:, : n // 2]
    groups = rng.integers(-1, n_groups, n_rows)
    groups[:n_groups] = np.arange(n_groups)
    lengths = rng.integers(5, 50, n_rows) if metric == "partial_correlation" else None
    above = 0.1 if metric in ACTIVITY else None
    place = np.sort(rng.choice(n, 15, replace=False))
    weights = [np.ones(n_groups, int), np.arange(n_groups) + 1, np.eye(n_groups, dtype=int)[0]]
    wanted = [Wanted(one, metric, K, some) for one in weights for some in (None, place)]
    got, _ = found(values, groups, n_groups, wanted, parts, lengths, above)
    grams = gram.accumulate_groups(
        [values], groups, n_groups, n, [(0, 0)], n, sparse=False, lengths=lengths, active_above=above
    )
    for one, keys in zip(wanted, got, strict=True):
        view = gram.weighted(grams, one.weights)
        view = view if one.place is None else gram.chosen(view, one.place)
        indices, distances = neighbors.exact(view, K + 1, metric)
        mine, far = neighbors.finish(keys, K + 1)
        np.testing.assert_array_equal(far, distances)
        np.testing.assert_array_equal(mine, indices)


def test_few_are_compared_with_all() -> None:
    values = sae_like(400, 60, density=0.05).astype(np.float32)
    for metric in ("cosine", "correlation", "phi"):
        above = 0.0 if metric in ACTIVITY else None
        _, left = found(values, np.zeros(400, int), 1, [Wanted(np.ones(1), metric, K)], 1, above=above)
        assert left == 0


def test_sums_that_come_back_to_nothing() -> None:
    """A product that cancels another leaves 0, and is added up once."""
    values = np.array([[1, 2, 3, 1], [1, -2, 1, 0], [1, 2, 0, 1], [0, 1, 1, 5]], np.float32)
    wanted = [Wanted(np.ones(1), metric, 3) for metric in ("cosine", "dot", "correlation")]
    got, _ = found(values, np.zeros(4, int), 1, wanted, 1)
    whole = gram.accumulate([values], 4, [(0, 0)], 4, sparse=False)
    for one, keys in zip(wanted, got, strict=True):
        for mine, expected in zip(neighbors.finish(keys, 4), neighbors.exact(whole, 4, one.metric), strict=True):
            np.testing.assert_array_equal(mine, expected)


def test_what_there_is_no_room_for_is_refused() -> None:
    values = sae_like(50, 20).astype(np.float32)
    rows, times = sparse.csr_array(values), np.ones(20)
    with pytest.raises(MemoryBudgetError, match="takes more than"):
        inverted_index.build(iter([rows]), np.zeros(50, int), 1, times, most=12 * rows.nnz - 1)
    assert inverted_index.build(iter([rows]), np.zeros(50, int), 1, times, most=12 * rows.nnz).n_entries == rows.nnz


def test_distances_that_float32_cannot_hold_are_refused() -> None:
    values = np.full((3, 4), 1e18, np.float32)
    with pytest.raises(ActivationError, match="squared length"):
        found(values, np.zeros(3, int), 1, [Wanted(np.ones(1), "dot", 2)], 1)


PLAN = budget.Plan(0, rows=7, tile=16, tiles_per_pass=2, stages=(), room=10**9)


def passed(out: Path, groups: PromptGroups, views: list[View], plan: budget.Plan, kept: np.ndarray) -> dict[str, int]:
    """Facts of a pass on two workers."""
    from distributed import Client

    with Client(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as client:
        workers, progress = list(client.scheduler_info()["workers"]), Progress(Console(), quiet=True)
        return exact_pass.exact_neighbors(client, workers, out, kept, groups, views, plan, progress)


@pytest.mark.parametrize("metric", ["cosine", "partial_correlation", "corrected_jaccard"])
@pytest.mark.parametrize("permute", [None, 3])
def test_passes_on_workers_by_index_and_by_tiles_are_the_same(
    tmp_path: Path, metric: str, permute: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    n_prompts, n = 90, 50
    make(
        tmp_path,
        sae_like(n_prompts, n, density=0.03),
        StoreConfig(shard_prompts=20, chunk_prompts=10, chunk_features=n),
    )
    kept = np.flatnonzero(np.arange(n) % 7)
    groups = PromptGroups(
        np.random.default_rng(1).integers(-1, 2, (1, n_prompts)), 2, permute, np.arange(n_prompts) + 5,
        1.2 if metric in ACTIVITY else None,
    )  # fmt: skip
    facts, views = {}, {}
    for name, plan in (("index", PLAN), ("tiles", replace(PLAN, room=0))):
        views[name] = [
            View(np.array(weights), tmp_path / f"{name}{number}", metric, K, features)
            for number, (weights, features) in enumerate([([1, 1], None), ([0, 1], kept[::2]), ([2, 1], None)])
        ]
        with caplog.at_level("INFO", logger="gpuclust"):
            facts[name] = passed(tmp_path, groups, views[name], plan, kept)
    assert ("entries" in facts["index"], "tiles" in facts["index"]) == (True, False)
    assert ("entries" in facts["tiles"], "tiles" in facts["tiles"]) == (False, True)
    assert "0.00 GB are left of the plan's" in caplog.text
    for mine, other in zip(views["index"], views["tiles"], strict=True):
        for one, two in zip(read_neighbors(mine.path), read_neighbors(other.path), strict=True):
            np.testing.assert_array_equal(one, two)
        if metric in ACTIVITY:
            np.testing.assert_array_equal(read_errors(mine.path), read_errors(other.path))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"metric": "euclidean"}, "by metric=euclidean features that never fire together are near"),
        ({"k": 1}, "a feature alone has no neighbours"),
        ({"trees": {3: Path("tree.npy")}}, "the distances of all pairs are wanted"),
        ({}, "None"),
    ],
)
def test_why_there_is_no_index(change: dict[str, object], why: str) -> None:
    view = replace(View(np.ones(1), Path("x"), "cosine", K), **change)
    groups = PromptGroups(np.zeros((1, 9), int), 1)
    assert why in str(neighbor_route.why_tiles(groups, [view], 9, "cpu"))
    assert neighbor_route.why_tiles(groups, [view], 9, "cuda") == "an index of the rows is of the host"
    layers = PromptGroups(np.zeros((2, 9), int), 1)
    assert neighbor_route.why_tiles(layers, [view], 9, "cpu") == "groups of prompts overlap"
    assert set(SIMILARITIES) | {"dot"} == set(pair_distance.KINDS)


def test_it_is_chosen_by_what_it_costs_and_has_room_for() -> None:
    views = [View(np.ones(1), Path("x"), "cosine", K)]

    def why(density: float, plan: budget.Plan = PLAN, n_workers: int = 1, n_rows: int = 2000) -> str | None:
        each = int(3000 * density)
        seen = neighbor_route.Sample(500, n_rows, np.full(3000, 500 * density), 500 * each * (each - 1) / 2)
        return neighbor_route.why_not(seen, 3000, views, 1, plan, n_workers)

    assert why(0.01) is None
    assert str(why(0.5)).startswith("of its rows 50.0% are not zero: some 0.338 s, by an index of them 12.5 s")
    tight = replace(PLAN, room=neighbor_route.held(views, 1, 3000) + int(60_000 * 1.05) * 12)
    assert why(0.01, tight) is None
    assert "are left of the plan's" in str(why(0.01, replace(tight, room=tight.room - 1)))
    assert "are left of the plan's" in str(why(0.01, tight, n_rows=2100))  # the sample stands for all
    assert why(0.01, n_workers=20) is None
    assert "are not zero" in str(why(0.01, n_workers=100))  # each puts all rows into an index of its own


def test_constants_are_what_an_index_holds() -> None:
    assert neighbor_route.ENTRY == inverted_index.BYTES == inverted_index.ENTRY.itemsize + 4
    assert neighbor_route.FEATURE == 8 * (inverted_pairs.FACTS + 1)


def test_more_rows_than_expected_go_by_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, sae_like(40, 30, density=0.02), StoreConfig(shard_prompts=20, chunk_prompts=10, chunk_features=30))
    monkeypatch.setattr(neighbor_route, "held", lambda *_: PLAN.room - 100)
    monkeypatch.setattr(neighbor_route, "SLACK", 0)
    view = View(np.ones(1), tmp_path / "near", "cosine", K)
    facts = passed(tmp_path, PromptGroups(np.zeros(40, int), 1), [view], PLAN, np.arange(30))
    assert "tiles" in facts
    assert "as the rows are more than was expected" in caplog.text
    assert len(read_neighbors(view.path)[0]) == 30


def test_of_prompts_the_states_say_how_much_there_is(tmp_path: Path) -> None:
    values = sae_like(60, 30, density=0.1)
    values[:, 3] = 0
    make(tmp_path, values, StoreConfig(shard_prompts=20, chunk_prompts=10, chunk_features=30))
    kept, groups = np.arange(1, 30, 2), PromptGroups(np.zeros(60, int), 1)
    times = (values[:, kept] != 0).sum(axis=0)
    read = neighbor_route.sample_task(tmp_path, kept, groups)  # their states say nothing
    own = (values[:, kept] != 0).sum(axis=1)
    np.testing.assert_array_equal(read.times, times)
    assert (read.n_rows, read.of, read.pairs) == (60, 60, (own * (own - 1)).sum() / 2)
    (tmp_path / schema.SHARDS).mkdir(exist_ok=True)
    for index in range(3):
        part = values[20 * index : 20 * (index + 1)]
        state = {"moments.n": np.int64(20), "moments.n_nonzero": (part != 0).sum(axis=0)}
        np.savez(tmp_path / schema.SHARDS / f"{index:05d}.npz", **state)
    seen = neighbor_route.sample_task(tmp_path, kept, groups)
    np.testing.assert_array_equal(seen.times, times)
    each = [(values[a : a + 20, kept] != 0).sum() / 20 for a in (0, 20, 40)]
    assert seen.pairs == pytest.approx(sum(20 * mean * (mean - 1) / 2 for mean in each))
    assert seen.entries == times.sum()


def test_lengths_may_bring_features_together_that_hardly_fire_together() -> None:
    """What the length takes off is below 0 for features of very long and very short prompts: a product is no bound."""
    nearer = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        end = np.repeat([-1, 1, 0], [20, 20, 560])  # few prompts are much longer or shorter than the others
        side = np.where(np.arange(24) % 2 == 0, 1, -1)
        fires = rng.random((600, 24)) < np.where(end[:, None] == side, 0.8, 0.02)
        values = np.where(fires, (rng.random(fires.shape) + 0.5) ** 3, 0).astype(np.float16).astype(np.float32)
        lengths = 50 + 40 * end + rng.integers(0, 3, 600)
        wanted = Wanted(np.ones(1), "partial_correlation", K)
        (keys,), _ = found(values, np.zeros(600, int), 1, [wanted], 1, lengths)
        whole = gram.accumulate([values], 24, [(0, 0)], 24, sparse=False, lengths=lengths)
        indices, distances = neighbors.exact(whole, K + 1, "partial_correlation")
        mine, far = neighbors.finish(keys, K + 1)
        np.testing.assert_array_equal(mine, indices)
        np.testing.assert_array_equal(far, distances)
        nearer += int((side[indices[:, 1:]] != side[:, None]).sum())
    assert nearer > 100
