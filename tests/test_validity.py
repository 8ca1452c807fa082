from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.metrics import silhouette_samples

from gpuclust.compute import controls, validity
from tests.planted import planted

SHUFFLES = 300


def labelled(seed: int, n: int = 40, clusters: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, clusters, n)


def taken(values: np.ndarray, labels: np.ndarray, sets: object = None) -> validity.Sums:
    wide = values.astype(np.float64)
    return validity.sums(np.array_split(values, 3), np.sqrt((wide**2).sum(axis=0)), labels, sets)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_best_match_is_the_largest_jaccard_index(a: int, b: int) -> None:
    labels, other = labelled(a), labelled(b, clusters=3)
    got = validity.best_match(labels, other)
    for cluster, value in enumerate(got):
        mine = set(np.flatnonzero(labels == cluster))
        others = [set(np.flatnonzero(other == c)) for c in range(int(other.max()) + 1)]
        assert value == pytest.approx(max(len(mine & o) / max(len(mine | o), 1) for o in others))


def test_chance_finds_large_clusters_and_not_small_ones() -> None:
    labels = np.repeat([0, 1], [90, 10])
    large, small = validity.chance_match(labels, [labels, labels], draws=10, seed=0)
    assert large > 0.7 > 0.3 > small


def test_cohesion_and_silhouette_equal_those_from_all_pairs() -> None:
    values, labels = planted(n_prompts=200, n_clusters=4, size=8, n_noise=10)
    found = taken(values, labels)
    unit = values / np.linalg.norm(values.astype(float), axis=0)
    cosine = unit.T @ unit
    for cluster, got in enumerate(validity.cohesion(found, labels)):
        block = cosine[np.ix_(labels == cluster, labels == cluster)]
        assert got == pytest.approx(block[np.triu_indices(8, 1)].mean())
    inside = labels >= 0
    distance = np.clip(1 - cosine[np.ix_(inside, inside)], 0, None)
    np.fill_diagonal(distance, 0)
    each = silhouette_samples(distance, labels[inside], metric="precomputed")
    expected = [each[labels[inside] == cluster].mean() for cluster in range(4)]
    np.testing.assert_allclose(validity.silhouette(found, labels), expected, rtol=1e-9)
    assert np.isnan(validity.silhouette(taken(values, np.minimum(labels, 0)), np.minimum(labels, 0))).all()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("slab", [5, 1000])
def test_sums_and_silhouette_a_slab_at_a_time(monkeypatch: pytest.MonkeyPatch, sparse: bool, slab: int) -> None:
    monkeypatch.setattr(validity, "COSINES", slab)
    values, labels = planted(n_prompts=200, n_clusters=4, size=8, n_noise=10)
    norms = np.sqrt((values.astype(np.float64) ** 2).sum(axis=0))
    sets = controls.matched_sets(labels, np.count_nonzero(values, axis=0), 3, seed=1)
    blocks = np.array_split(values.astype(np.float32), 3)
    found = validity.sums(map(csr_array, blocks) if sparse else blocks, norms, labels, sets)
    unit = values / norms
    inside = labels[:, None] == np.arange(4)
    np.testing.assert_allclose(found.cosine, unit.T @ (unit @ inside), rtol=1e-9, atol=1e-12)
    of_sets = ((unit @ sets.toarray()) ** 2).sum(axis=0) - sets.toarray().sum(axis=0)
    np.testing.assert_allclose(found.squares, of_sets, rtol=1e-9, atol=1e-9)
    distance = np.clip(1 - (unit.T @ unit)[np.ix_(labels >= 0, labels >= 0)], 0, None)
    np.fill_diagonal(distance, 0)
    each = silhouette_samples(distance, labels[labels >= 0], metric="precomputed")
    expected = [each[labels[labels >= 0] == cluster].mean() for cluster in range(4)]
    np.testing.assert_allclose(validity.silhouette(found, labels), expected, rtol=1e-9)


@pytest.mark.parametrize("sparse", [False, True])
def test_cohesion_needs_no_cosines_with_other_clusters(sparse: bool) -> None:
    values, labels = planted(n_prompts=200, n_clusters=4, size=8, n_noise=10)
    norms = np.sqrt((values.astype(np.float64) ** 2).sum(axis=0))
    blocks = np.array_split(values.astype(np.float32), 3)
    some = [csr_array(block) for block in blocks] if sparse else blocks
    whole, alone = (make(some, norms, labels) for make in (validity.sums, validity.sums_within))
    assert alone.cosine.shape == (len(labels), 0)
    for measure in (validity.cohesion, validity.permutation_z):
        np.testing.assert_allclose(measure(alone, labels), measure(whole, labels), rtol=1e-9)
    none = np.full(len(labels), -1)
    assert len(validity.permutation_z(validity.sums_within(some, norms, none), none)) == 0


def test_silhouette_of_duplicates_is_not_rounding() -> None:
    one, other = np.random.default_rng(0).random((2, 50)).astype(np.float32)
    values = np.stack([one, one * 3, one * 7, one / 3, other, other * 5], axis=1)
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert validity.silhouette(taken(values, labels), labels).tolist() == [0, 0, pytest.approx(1)]


def test_permutation_moments_equal_those_of_permutations() -> None:
    values, _ = planted(n_prompts=60, n_clusters=2, size=5, n_noise=6)
    labels = np.repeat([0, 1, -1], [4, 7, 5])
    rng = np.random.default_rng(0)
    drawn = np.array([validity.cohesion(taken(rng.permuted(values, axis=0), labels), labels) for _ in range(SHUFFLES)])
    expected = (validity.cohesion(taken(values, labels), labels) - drawn.mean(axis=0)) / drawn.std(axis=0)
    np.testing.assert_allclose(validity.permutation_z(taken(values, labels), labels), expected, rtol=0.15, atol=0.3)


def test_matched_sets_match_size_and_degree() -> None:
    rng = np.random.default_rng(0)
    degree, labels = rng.integers(1, 1000, 400), np.where(np.arange(400) < 60, np.arange(400) % 2, -1)
    sets = controls.matched_sets(labels, degree, 30, seed=0)
    assert sets.shape == (400, 60)
    np.testing.assert_array_equal(sets.sum(axis=0), 30)
    drawn = (degree @ sets).reshape(2, 30).mean(axis=1) / 30
    np.testing.assert_allclose(drawn, [degree[labels == c].mean() for c in (0, 1)], rtol=0.05)


@pytest.mark.parametrize(("n", "count"), [(100, 3), (100, 10), (100, 11), (100, 100), (7, 5), (4, 9), (1, 1)])
def test_places_are_each_drawn_once_and_as_often(n: int, count: int) -> None:
    places = controls._places(np.random.default_rng(0), n, count, 4000)
    assert places.shape == (4000, count)
    if count <= n:
        assert (np.diff(np.sort(places, axis=1), axis=1) > 0).all()
    times = np.bincount(places.ravel(), minlength=n)
    assert len(times) == n
    expected = 4000 * count / n
    assert abs(times - expected).max() < 5 * np.sqrt(expected)


def test_matched_z_tells_true_groups_from_drawn_ones() -> None:
    values, truth = planted(n_prompts=400, n_clusters=5, size=10, n_noise=100)
    degree = (values > 0).sum(axis=0)
    drawn = np.full(len(truth), -1)
    drawn[50:] = np.random.default_rng(0).integers(0, 5, 100)  # of no group
    for labels, true in ((truth, True), (drawn, False)):
        found = taken(values, labels, controls.matched_sets(labels, degree, 50, 0))
        z = validity.matched_z(found, labels, 50)
        assert (z > 10).all() if true else (abs(z) < 5).all()


def test_dbcv_is_guarded() -> None:
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(0, 0.1, (20, 2)), rng.normal(5, 0.1, (20, 2))])
    score, why = validity.dbcv(two, np.repeat([0, 1], 20))
    assert why == ""
    assert score is not None
    assert score > 0.9
    assert validity.dbcv(two, np.zeros(40, int)) == (None, "DBCV needs two clusters")
    assert validity.dbcv(np.zeros((40, 2)), np.repeat([0, 1], 20))[0] is None


def test_overlap_of_neighbours() -> None:
    a = np.array([[0, 1, 2], [1, 0, 3]])
    assert validity.neighbor_overlap(a, a) == 1
    assert validity.neighbor_overlap(a, np.array([[0, 2, 3], [1, 2, 4]])) == 0.25
