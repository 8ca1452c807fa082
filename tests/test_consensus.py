from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import average, fcluster
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score

from gpuclust.compute import consensus, methods, neighbors
from gpuclust.config import Config
from gpuclust.configfile import validate
from gpuclust.errors import MemoryBudgetError
from gpuclust.hardware import budget
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


def test_similarities_are_redrawn_with_errors_that_are_known() -> None:
    indices = np.array([[0, 1], [1, 0]], np.int32)
    distances = np.array([[0, 0.6], [0, 0.6]], np.float32)
    errors = np.array([[0, 0.02], [0, 0.02]], np.float32)
    redrawn = [consensus.perturb(indices, distances, 400, seed, 1.5, errors)[1] for seed in range(400)]
    assert np.std([far[0, 1] for far in redrawn]) == pytest.approx(0.02, rel=0.1)
    assert all(far[0, 1] == far[1, 1] for far in redrawn)


def together(members: list[np.ndarray]) -> np.ndarray:
    """Members that put each pair into one cluster, of all pairs at once; 0 on the diagonal."""
    times = sum(((labels[:, None] == labels) & (labels >= 0)).astype(int) for labels in members)
    assert isinstance(times, np.ndarray)
    np.fill_diagonal(times, 0)
    return times


def random_members(seed: int, n_members: int, size: int) -> list[np.ndarray]:
    """Clusterings that each move, lose and merge some features of one of several sizes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, rng.integers(1, 9), size)
    members = []
    for _ in range(n_members):
        labels = np.where(rng.random(size) < 0.3, rng.integers(0, 9, size), truth)
        members.append(np.where(rng.random(size) < 0.2, -1, labels).astype(np.int32))
    return members


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("agreement", [0.3, 0.5])
def test_labels_equal_average_linkage_of_all_pairs(
    seed: int, agreement: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = random_members(seed, 200, 90)  # so many members that hardly two shares tie
    config = validate({"hdbscan": {"min_cluster_size": 3}, "consensus": {"agreement": agreement}})
    times = together(members)
    tree = average(1 - squareform(times) / 201)
    groups = fcluster(tree, 1 - agreement * 200 / 201, "distance")
    monkeypatch.setattr(budget, "CONSENSUS_PAIRS", 500)
    found = consensus.combine(members, config)
    large = np.isin(groups, np.flatnonzero(np.bincount(groups) >= 3))
    np.testing.assert_array_equal(found.labels >= 0, large)
    assert adjusted_rand_score(groups[large], found.labels[large]) == 1
    mean = [[times[i, (found.labels == c) & (np.arange(90) != i)].mean() / 200 for c in range(found.n_clusters)]
            for i in range(90)]  # fmt: skip
    np.testing.assert_allclose(found.outlier_scores, 1 - np.max(mean, axis=1, initial=0))
    np.testing.assert_allclose(found.probabilities[large], np.array(mean)[large, found.labels[large]])


@given(st.integers(0, 10**6), st.integers(2, 9), st.sampled_from([0.25, 0.5, 0.75]))
def test_clusters_share_enough_and_no_two_could_merge(seed: int, n_members: int, agreement: float) -> None:
    members = random_members(seed, n_members, 40)
    config = validate({"hdbscan": {"min_cluster_size": 2}, "consensus": {"agreement": agreement}})
    found = consensus.combine(members, config)
    times = together(members)
    groups = [np.flatnonzero(found.labels == c) for c in range(found.n_clusters)]
    groups += [np.array([i]) for i in np.flatnonzero(found.labels < 0)]
    for a, first in enumerate(groups):
        if len(first) > 1:
            inside = times[np.ix_(first, first)].sum() / (len(first) * (len(first) - 1)) / n_members
            assert inside >= agreement - 1e-9
        for other in groups[:a]:
            assert times[np.ix_(first, other)].mean() / n_members < agreement + 1e-9
    tree = found.condensed_tree
    assert sorted(tree["child"][tree["child_size"] == 1]) == list(range(40))
    assert np.isfinite(tree["lambda_val"]).all()
    assert (tree["lambda_val"] >= 1).all()  # noise joins last, at distance 1


def test_a_group_too_large_for_memory_is_refused_with_the_way_out() -> None:
    members = [np.zeros(3000, np.int32)] * 4
    needed = budget.consensus(3000, 4, 3000)
    assert consensus.combine(members, Config(), allowed=needed).n_clusters == 1
    with pytest.raises(MemoryBudgetError, match=r"3000 of the 3000 features .*consensus\.members=1"):
        consensus.combine(members, Config(), allowed=needed - 1)


def test_clusters_are_what_stays_together() -> None:
    config = validate({"hdbscan": {"min_cluster_size": 3, "min_samples": 1}, "consensus": {"agreement": 0.3}})
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
    found = consensus.combine(
        [rng.permutation(np.repeat(np.arange(5), 10)) for _ in range(6)], validate({"consensus": {"agreement": 0.3}})
    )
    assert (found.labels == -1).all()
    assert "all 50 features are noise" in found.notes[0]


def test_members_are_reproducible_and_differ() -> None:
    values, _ = planted(n_prompts=300, n_clusters=4, n_noise=20)
    indices, distances = near(values, 60)
    labels = [methods.member(indices, distances, len(values), CONFIG, number) for number in (1, 1, 2)]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert not np.array_equal(labels[0], labels[2])


def test_groups_too_large_to_link_are_cut_by_what_more_members_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of pairs in one member connect nearly all features of real activations."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(20), 10)
    members = []
    for _ in range(5):
        member = clusters.copy()
        moved = rng.random(len(member)) < 0.15
        member[moved] = rng.integers(0, 20, moved.sum())
        members.append(member)
    config = validate({"consensus": {"members": 5, "agreement": 0.2}, "hdbscan": {"min_cluster_size": 5}})
    whole = consensus.combine(members, config)
    memberships = consensus._memberships(members)
    assert np.bincount(consensus._groups(memberships, 1, 5)).max() == 200
    monkeypatch.setattr(budget, "LINKED", 60)
    groups = consensus._groups(memberships, 1, 5)
    assert np.bincount(groups).max() <= 60
    parts = consensus.combine(members, config)
    assert adjusted_rand_score(whole.labels, parts.labels) > 0.9
    monkeypatch.setattr(budget, "LINKED", 3)
    same = consensus._groups(consensus._memberships([clusters] * 5), 1, 5)
    assert np.bincount(same).tolist() == [10] * 20  # all members agree: there is nothing to cut them by
