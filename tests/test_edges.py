"""The edges of the rules: values just at a bound, ties, weights other than 0 and 1, signs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuclust.compute import consensus, controls, gram, neighbors, validity, verdicts
from gpuclust.compute.agreement import relate
from gpuclust.compute.clustering import cluster_distances, cluster_tree
from gpuclust.compute.feature_filter import select
from gpuclust.compute.reductions import EXAMPLES, MOMENTS
from gpuclust.config_sections import HdbscanConfig, SelectConfig
from gpuclust.errors import CorruptDataError, SelectionError
from gpuclust.extraction import prompts
from gpuclust.storage.codec import decode
from gpuclust.tables import profiles
from tests import cuda_stub
from tests.strategies import sae_like
from tests.test_codec import sealed
from tests.test_neighbors import whole
from tests.test_prompts import Words, config

# ---------------------------------------------------------------- reductions


def test_moments_are_of_absolute_values() -> None:
    data = sae_like(50, 8).astype(np.float32)
    signs = np.where(np.arange(50) % 2, -1, 1)[:, None]
    plain, signed = (MOMENTS.finalize(MOMENTS.chunk(values, 0.5)) for values in (data, signs * data))
    for name, values in plain.items():
        np.testing.assert_array_equal(signed[name], values, err_msg=name)


def test_of_equal_examples_the_earlier_prompts_are_kept() -> None:
    data = np.array([[2, 1], [2, 2], [1, -2], [2, 2]], np.float32)
    positions = np.arange(8, dtype=np.int16).reshape(4, 2)
    for pieces in ([slice(0, 4)], [slice(2, 4), slice(0, 2)], [slice(0, 1), slice(1, 4)]):
        merged = EXAMPLES.merge(EXAMPLES.chunk(data[p], positions[p], p.start, 2) for p in pieces)
        assert merged["prompt"].tolist() == [[0, 1], [1, 2]]
        assert merged["position"].tolist() == [[0, 2], [3, 5]]


# ---------------------------------------------------------------- gram, neighbours


@pytest.mark.parametrize("weights", [[2, 1], [0, 3]])
def test_a_bootstrap_is_the_gram_of_repeated_prompts(weights: list[int]) -> None:
    values = np.round(sae_like(30, 6).astype(np.float32) * 16) / 16
    groups = np.arange(30) % 2
    parts = gram.accumulate_groups([values], groups, 2, 6, [(0, 0)], 6)
    got = gram.weighted(parts, weights)
    repeated = np.repeat(values, np.array(weights)[groups], axis=0).astype(np.float64)
    np.testing.assert_array_equal(got.dense(), repeated.T @ repeated)
    np.testing.assert_array_equal(got.sums, repeated.sum(axis=0))
    np.testing.assert_array_equal(got.squares, (repeated**2).sum(axis=0))
    assert got.n_prompts == len(repeated)


@pytest.mark.parametrize("metric", ["cosine", "correlation"])
def test_scaled_copies_are_at_no_distance(metric: str) -> None:
    one, other = np.random.default_rng(0).random((2, 200)).astype(np.float32)
    values = np.stack([one, other, one * 3, one / 7, one * np.float32(0.3)], axis=1)
    indices, distances = neighbors.exact(whole(values, 2), 4, metric)
    assert (distances[[0, 2, 3, 4]] < 1e-6).all()
    exact = np.stack([one.astype(np.float64), 3 * one.astype(np.float64), 7 * one.astype(np.float64), other], axis=1)
    indices, distances = neighbors.exact(whole(exact, 2), 3, metric)
    assert (distances[:3] == 0).all()
    assert indices[:3].tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1]]


def test_a_sketch_keeps_inner_products_and_has_a_seed() -> None:
    values = sae_like(400, 5)
    projected = neighbors.sketch([(0, values)], 5, 4000, seed=1)
    true = values.astype(np.float64).T @ values
    norm = np.sqrt(np.diag(true))
    np.testing.assert_allclose(projected @ projected.T, true, atol=5 / np.sqrt(4000) * np.outer(norm, norm).max())
    assert not np.allclose(projected, neighbors.sketch([(0, values)], 5, 4000, seed=2))


# ---------------------------------------------------------------- quality, matching


def test_verdicts_at_the_bounds() -> None:
    table = {
        "stability": np.array([0.5, 0.49, 0.3, 0.9, 0.9, 0.9]),
        "chance_stability": np.array([0.2, 0.2, 0.3, 0.2, 0.2, 0.2]),
        "permutation_z": np.array([17.0, 17, 17, 16, 17, 17]),
        "permutation_z_null": np.full(6, 8.0),
        "random_z": np.array([9.0, 9, 9, 9, 3, 2.9]),
    }
    wanted = ["stable", "fragile", "not found again", "no better than random", "stable", "no better than random"]
    assert verdicts.judge(table, 0.5)[0].tolist() == wanted
    quiet = {name: np.array([3.0 if name == "permutation_z" else values[0]]) for name, values in table.items()}
    quiet["permutation_z_null"] = np.zeros(1)  # without a null cluster three standard deviations are asked for
    assert verdicts.judge(quiet, 0.5)[0].tolist() == [verdicts.RANDOM]


def test_chance_is_the_largest_of_the_draws() -> None:
    labels = np.random.default_rng(0).integers(-1, 4, 40)
    random = np.random.default_rng(5)
    drawn = [validity.best_match(labels, random.permutation(labels)) for _ in range(30)]
    np.testing.assert_array_equal(validity.chance_match(labels, [labels], 30, seed=5), np.max(drawn, axis=0))
    assert (np.max(drawn, axis=0) > np.mean(drawn, axis=0)).all()


def test_matched_z_counts_the_spread_of_a_sample() -> None:
    values = sae_like(100, 100).astype(np.float64)
    labels = np.repeat([0, 1, -1], [6, 6, 88])
    sets = controls.matched_sets(labels, (values > 0).sum(axis=0), 3, seed=0)
    found = validity.sums([values], np.linalg.norm(values, axis=0), labels, sets)
    drawn = found.squares.reshape(2, 3) / 30  # ordered pairs of 6 features
    expected = (validity.cohesion(found, labels) - drawn.mean(axis=1)) / np.std(drawn, axis=1, ddof=1)
    np.testing.assert_allclose(validity.matched_z(found, labels, 3), expected)


def fate(a: list[int], b: list[int]) -> list[str]:
    clusters = relate(np.array(a), np.array(b)).clusters
    return clusters.loc[clusters["side"] == "a", "fate"].tolist()


def test_halves_in_what_became_of_a_cluster() -> None:
    assert fate([0] * 20, [0] * 10 + [-1] * 10) == ["same"]  # half of it is noise: it has not vanished
    assert fate([0] * 20, [0] * 9 + [-1] * 11) == ["vanished"]
    # Two of its parts hold just half of it, and just half of each part is its own
    a = [0] * 20 + [1] * 30
    assert fate(a, [0] * 5 + [1] * 5 + [2] * 10 + [0] * 5 + [1] * 5 + [2] * 20)[0] == "split"
    assert fate([0] * 10 + [1] * 2, [0] * 5 + [1] * 5 + [1] * 2)[0] == "split"


def test_clusters_without_a_common_feature_do_not_match() -> None:
    clusters = relate(np.array([0, 0, -1, -1]), np.array([-1, -1, 0, 0])).clusters
    assert clusters["match"].isna().all()


# ---------------------------------------------------------------- select


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("entropy_low", 2.0, [3, 4]),
        ("entropy_high", 3.0, [0, 1, 2]),
        ("sparsity_min", 0.2, [2, 3, 4]),
        ("sparsity_max", 0.4, [0, 1, 2]),
        ("min_active_prompts", 30, [2, 3, 4]),
    ],
)
def test_each_bound_of_the_filter(field: str, value: Any, kept: list[int]) -> None:
    statistics = {
        "entropy": np.array([1.0, 1.5, 2.0, 3.0, 4.0]),
        "varentropy": np.arange(5.0),
        "sparsity": np.array([0.1, 0.2, 0.3, 0.4, 0.45]),
        "n_active": np.array([10, 20, 30, 40, 45]),
    }
    table, removed = select(statistics, SelectConfig(**({"sparsity_min": 0.0} | {field: value})), needed=1)
    assert np.flatnonzero(table["kept"]).tolist() == kept
    assert removed["kept"] == len(kept)


def test_the_median_counts_as_low() -> None:
    statistics = {
        "entropy": np.array([1.0, 2.0, 3.0]),
        "varentropy": np.array([3.0, 2.0, 1.0]),
        "sparsity": np.full(3, 0.1),
        "n_active": np.full(3, 9),
    }
    table, _ = select(statistics, SelectConfig(), needed=1)
    assert table["quadrant"].tolist() == ["Exploring", "Flowing", "Careful"]


# ---------------------------------------------------------------- clusters


def test_the_smallest_numbers_of_features_that_do() -> None:
    def path(size: int) -> np.ndarray:
        steps = np.arange(size - 1.0)
        return np.stack([steps, steps + 1, 1 + steps / 10], axis=1)

    cluster_tree(path(10), HdbscanConfig(min_cluster_size=10, min_samples=9))
    with pytest.raises(SelectionError, match="min_cluster_size=11"):
        cluster_tree(path(10), HdbscanConfig(min_cluster_size=11, min_samples=9))
    with pytest.raises(SelectionError, match="min_samples=10"):
        cluster_tree(path(10), HdbscanConfig(min_cluster_size=10, min_samples=10))


def test_beside_duplicates_every_other_feature_is_an_outlier() -> None:
    places = np.concatenate([np.zeros(8), [0.1, 0.3, 0.6, 1.0], np.linspace(9, 10, 10)])
    found = cluster_distances(
        np.abs(np.subtract.outer(places, places)), HdbscanConfig(min_cluster_size=5, min_samples=2)
    )
    assert "exact duplicates" in found.notes[0]
    assert np.isinf(found.condensed_tree["lambda_val"]).any()
    assert np.isfinite(found.outlier_scores).all()
    assert (found.outlier_scores[8:12] == 1).all()
    assert (found.outlier_scores[12:] < 1).all()


def test_min_cluster_size_and_agreement_are_enough() -> None:
    settings = config({"path": "demo"}, hdbscan={"min_cluster_size": 3, "min_samples": 1}, cluster={"method": "umap"})
    a, b = np.repeat([0, 1], 3), np.repeat([0, -1], 3)
    assert consensus.combine([a, b], settings).labels.tolist() == [0, 0, 0, 1, 1, 1]  # half of the members
    assert consensus.combine([a, b, b], settings).labels.tolist() == [0, 0, 0, -1, -1, -1]  # a third


@pytest.mark.parametrize("similarity", [0.2, 0.9])
def test_similarities_are_redrawn_with_their_standard_error(similarity: float) -> None:
    indices, distances = np.array([[0, 1], [1, 0]], np.int32), np.array([[0, 1 - similarity]] * 2, np.float32)
    redrawn = [consensus.perturb(indices, distances, 400, seed)[1][0, 1] for seed in range(300)]
    assert np.std(redrawn) == pytest.approx((1 - similarity**2) / 20, rel=0.1)


# ---------------------------------------------------------------- prompts


def test_a_duplicate_keeps_its_first_source_and_min_tokens_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [("one two", "first"), ("three four", "only"), ("one two", "second"), ("five", "short"), ("\t ", "blank")]
    path.write_text("".join(json.dumps({"text": text, "who": who}) + "\n" for text, who in rows))
    source = {"path": str(path), "source_column": "who"}
    table, _ = prompts.build(config(source, min_tokens=2, n_prompts=2), Words())
    assert dict(zip(table["text"], table["source"], strict=True)) == {"one two": "first", "three four": "only"}


# ---------------------------------------------------------------- codec


@pytest.mark.parametrize("values", [bytes(8), bytes(24)])
def test_a_chunk_of_another_length_is_refused_though_its_checksum_is_right(values: bytes) -> None:
    chunk = sealed(b"GCBM", 1, 2, 64, 8, b"\xff" + bytes(7) + values)  # 8 values of 2 bytes: 16
    with pytest.raises(CorruptDataError, match=f"it has {40 + len(values)} bytes, not the 56 of 8 non-zero elements"):
        decode(chunk, (64,), np.float16)


def test_rounding_is_no_variation() -> None:
    activations = np.random.default_rng(0).random((1000, 3))
    activations[:, 2] = 0.1  # whose mean is not quite 0.1
    blocks = [activations[:7], activations[7:700], activations[700:]]
    assert any(block[:, 2].mean() != 0.1 for block in blocks)
    correlation = profiles.profile(lambda: blocks, 3, 1).correlation
    assert np.isnan(correlation[2]).all()
    assert np.isfinite(correlation[:2, :2]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_products_on_a_gpu_are_of_few_rows(dtype: Any) -> None:
    """Tensor cores truncate as they add: past 1,024 rows exact copies come apart."""
    a = sae_like(1300, 40).astype(dtype)
    with cuda_stub.installed():
        import cupy

        held = cupy.zeros((15, 25), np.float32)
        on = cupy.asarray(a)
        gram.add_product(held, on[:, :15], on[:, 15:], cupy)
        rows = [args[5] for name, args, _ in cuda_stub.CALLS if name == "cupy.cuda.cublas.gemmEx"]
        assert rows == [512, 512, 276]
        np.testing.assert_allclose(held.get(), a[:, :15].astype(float).T @ a[:, 15:].astype(float), rtol=1e-4)
