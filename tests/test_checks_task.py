"""The task of the quality stage on files made by hand: each column is what its function gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpuclust import schema
from gpuclust.compute import validity
from gpuclust.compute.halves import half_of
from gpuclust.engine import prompt_rows, quality_task
from gpuclust.storage import atomic, store
from tests import peaks

SHAPES = peaks.of(90, 80, 60, n_clusters=5, n_groups=2, n_views=3)
SETTINGS = {
    "seed": 3,
    "store": {"shard_prompts": 32, "chunk_prompts": 16},
    "hdbscan": {"min_cluster_size": 3, "min_samples": 2},
    "consensus": {"members": 1},
    "quality": {"random_sets": 7, "decoder": False},
}
CASE = peaks.Case("quality", peaks.quality, SHAPES, SETTINGS)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Labels, those of the other clusterings, the table and the facts."""
    out = tmp_path_factory.mktemp("task")
    peaks.make_store(CASE, out)
    labels = peaks.write_clusters(CASE, out)
    peaks.write_near(CASE, out)
    labels[[7, 30]] = -1
    features = pd.read_parquet(out / schema.FEATURES)
    features.loc[features["kept"], "label"] = labels
    values = np.concatenate([block for _, block in store.read_rows(out / schema.ACTIVATIONS, 90)])[:, :60]
    values = values.astype(np.float64)
    features.loc[features["kept"], "mean"] = values.mean(axis=0)
    features.loc[features["kept"], "std"] = values.std(axis=0)
    atomic.write_table(out / schema.FEATURES, features)
    rng = np.random.default_rng(0)
    others = [np.where(rng.random(60) < share, labels, rng.permutation(labels)) for share in (0.8, 0.4)]
    null = rng.permutation(labels)
    found = {schema.HALVES[0]: [others[0]], schema.HALVES[1]: [others[1]], schema.NULL: [null]}
    facts = quality_task.quality_task(out, CASE.config, CASE.plan, found, ["why not"])
    table = pd.read_parquet(out / schema.QUALITY)
    return {
        "labels": labels, "halves": others, "null": null, "values": values, "table": table, "facts": facts, "out": out
    }  # fmt: skip


def test_chance_is_the_largest_of_two_hundred_draws(judged: dict[str, Any]) -> None:
    labels, halves, table = (judged[name] for name in ("labels", "halves", "table"))
    random = np.random.default_rng(3)
    drawn = [
        np.mean([validity.best_match(labels, random.permutation(half)) for half in halves], axis=0) for _ in range(200)
    ]
    np.testing.assert_array_equal(table["chance_stability"], np.max(drawn, axis=0))
    assert (table["chance_stability"] > np.mean(drawn, axis=0)).all()


def test_stability_is_the_mean_over_both_halves(judged: dict[str, Any]) -> None:
    first, second = (validity.best_match(judged["labels"], half) for half in judged["halves"])
    assert not np.allclose(first, second)
    np.testing.assert_allclose(judged["table"]["stability"], (first + second) / 2)


def test_the_null_is_of_permuted_activations(judged: dict[str, Any]) -> None:
    blocks = list(prompt_rows.read_blocks(judged["out"], np.arange(60), CASE.plan, permute=3))
    norms = np.linalg.norm(judged["values"], axis=0)
    reached = validity.permutation_z(validity.sums(blocks, norms, judged["null"]), judged["null"]).max()
    np.testing.assert_allclose(judged["table"]["permutation_z_null"], reached)
    assert abs(reached) > 1e-6
    assert judged["facts"]["null"] == {"clusters": 5, "noise_share": pytest.approx(2 / 60)}


def test_facts_count_noise_and_say_what_was_left_out(judged: dict[str, Any]) -> None:
    facts, table = judged["facts"], judged["table"]
    assert facts["clustering"]["noise"] == pytest.approx(2 / 60)
    assert table["size"].tolist() == np.bincount(judged["labels"][judged["labels"] >= 0]).tolist()
    assert facts["stability"] == pytest.approx(table["size"] @ table["stability"] / 58)
    assert facts["skipped"] == ["why not", "dbcv: there is no embedding"]
    members = judged["values"][:, judged["labels"] == 2]
    unit = members / np.maximum(np.linalg.norm(members, axis=0), 1e-9)  # one is silent
    pairs = (unit.T @ unit)[np.triu_indices(unit.shape[1], 1)]
    assert table["cohesion"][2] == pytest.approx(pairs.mean())


def test_halves_are_random_and_even() -> None:
    groups = half_of(101, 0)
    assert np.bincount(groups).tolist() == [51, 50]
    assert 20 < np.abs(np.diff(groups)).sum() < 80  # neighbouring prompts are not told apart by their order
    assert not np.array_equal(groups, half_of(101, 1))
