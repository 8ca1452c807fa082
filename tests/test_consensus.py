from __future__ import annotations

import numpy as np
import pytest

from gpuclust import consensus, neighbors
from gpuclust.config import Config, validate
from tests.planted import planted
from tests.test_neighbors import whole

CONFIG = validate({"consensus": {"n_epochs": 30}})


def near(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    return neighbors.exact(whole(values, values.shape[1]), k, "cosine")


def test_redrawn_neighbours_keep_the_contract_and_both_directions_of_a_pair() -> None:
    values, _ = planted(n_prompts=300, n_clusters=4, n_noise=20)
    indices, distances = near(values, 100)  # all of them: every pair is there both ways
    moved, far = consensus.perturb(indices, distances, 300, seed=3)
    assert (moved.dtype, far.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(moved[:, 0], np.arange(100))
    np.testing.assert_array_equal(np.sort(moved, axis=1), np.sort(indices, axis=1))
    assert (far[:, 0] == 0).all()
    assert (np.diff(far, axis=1) >= 0).all()
    matrix = np.zeros((100, 100))
    np.put_along_axis(matrix, moved.astype(np.int64), far, axis=1)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert not np.array_equal(moved, consensus.perturb(indices, distances, 300, seed=4)[0])


def test_redrawn_similarities_spread_as_those_of_other_prompts_do() -> None:
    rng = np.random.default_rng(0)
    n, rho = 400, 0.4
    mix = np.linalg.cholesky(np.full((6, 6), rho) + (1 - rho) * np.eye(6)).T
    drawn = []
    for _ in range(400):
        unit = rng.standard_normal((n, 6)) @ mix
        unit /= np.linalg.norm(unit, axis=0)
        drawn.append((unit.T @ unit)[0, 1])
    indices = np.array([[0, 1], [1, 0]], np.int32)
    distances = np.array([[0, 1 - rho], [0, 1 - rho]], np.float32)
    redrawn = [1 - consensus.perturb(indices, distances, n, seed)[1][0, 1] for seed in range(400)]
    assert np.std(redrawn) == pytest.approx(np.std(drawn), rel=0.2)


def test_pairs_are_counted_and_noise_is_never_together() -> None:
    members = [np.array([0, 0, 1, -1, -1]), np.array([0, 0, 0, 1, -1]), np.array([2, 2, 0, 0, 1])]
    times = consensus.together(members)
    expected = np.zeros((5, 5), np.uint8)
    for a, b, count in ((0, 1, 3), (0, 2, 1), (1, 2, 1), (2, 3, 1)):
        expected[a, b] = expected[b, a] = count
    np.testing.assert_array_equal(times, expected)


def test_clusters_are_what_stays_together() -> None:
    config = validate({"hdbscan": {"min_cluster_size": 3, "min_samples": 1}})
    a = np.repeat([0, 1, 2], 4)
    b = np.array([1, 1, 1, 1, 0, 0, 0, 0, -1, -1, -1, 0])  # the third falls apart, its last goes to the second
    found = consensus.combine([a, b, b, b], config)
    np.testing.assert_array_equal(found.labels, [0] * 4 + [1] * 4 + [-1] * 3 + [1])
    np.testing.assert_allclose(found.probabilities, [1] * 4 + [15 / 16] * 4 + [0] * 3 + [3 / 4])
    np.testing.assert_allclose(found.persistence, [1, 0.9])
    np.testing.assert_allclose(found.outlier_scores[8:], [15 / 16 + 1 / 80] * 3 + [1 / 4], atol=0.02)
    assert np.isfinite(found.condensed_tree["lambda_val"]).all()


def test_nothing_that_stays_together_is_noise_and_said() -> None:
    rng = np.random.default_rng(0)
    found = consensus.combine([rng.permutation(np.repeat(np.arange(5), 10)) for _ in range(6)], Config())
    assert (found.labels == -1).all()
    assert "all 50 features are noise" in found.notes[0]


def test_members_are_reproducible_and_differ() -> None:
    values, _ = planted(n_prompts=300, n_clusters=4, n_noise=20)
    indices, distances = near(values, 60)
    labels = [consensus.member(indices, distances, len(values), CONFIG, number) for number in (1, 1, 2)]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert not np.array_equal(labels[0], labels[2])
