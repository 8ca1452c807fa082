from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuclust.tables import profiles
from tests.strategies import sae_like


def cut(array: np.ndarray, rows: int) -> list[np.ndarray]:
    return [array[i : i + rows] for i in range(0, len(array), rows)]


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_averages_are_of_the_clusters_features(rows: int) -> None:
    data = -sae_like(50, 10)
    clusters = profiles.by_cluster(np.array([0, 2, 3, 7, 9]), np.array([1, 0, 1, -1, 1]))
    got = np.concatenate([profiles.average(block, clusters) for block in cut(data, rows)])
    expected = np.abs(data.astype(np.float64))
    np.testing.assert_allclose(got[:, 0], expected[:, 2], rtol=1e-12)
    np.testing.assert_allclose(got[:, 1], expected[:, [0, 3, 9]].mean(axis=1), rtol=1e-12)


def test_no_clusters_have_no_profile() -> None:
    clusters = profiles.by_cluster(np.arange(3), np.full(3, -1))
    block = profiles.average(sae_like(5, 3), clusters)
    assert block.shape == (5, 0)
    got = profiles.profile(lambda: [block], 0, 2)
    assert got.top.shape == (2, 0)
    assert got.correlation.shape == (0, 0)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 50), st.integers(0, 99))
def test_profiles_are_those_of_the_whole_array(n_prompts: int, n_clusters: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = np.round(rng.random((n_prompts, n_clusters)), 1)  # with ties
    got = profiles.profile(lambda: cut(whole, rows), n_clusters, 4, 3)
    order = np.argsort(-whole, axis=0, kind="stable")[:4]
    np.testing.assert_array_equal(got.top, order)
    np.testing.assert_array_equal(got.top_strength, np.take_along_axis(whole, order, axis=0))
    np.testing.assert_array_equal(got.marking_strength, np.take_along_axis(whole, got.marking, axis=0))
    spread = whole.std(axis=0) * (np.ptp(whole, axis=0) > 0)
    z = (whole - whole.mean(axis=0)) / np.where(spread > 0, spread, 1)
    relative = z - z.mean(axis=1, keepdims=True) if n_clusters > 1 else z
    best = -np.sort(-relative, axis=0)[:3]
    np.testing.assert_allclose(np.take_along_axis(relative, got.marking, axis=0), best, atol=1e-9)
    varied = np.flatnonzero(spread)
    if len(varied) > 1:
        expected = np.corrcoef(whole[:, varied].T)
        np.testing.assert_allclose(got.correlation[np.ix_(varied, varied)], expected, atol=1e-9)


@pytest.mark.parametrize("constant", [1.0, 0.1, 1 / 3])  # the mean of blocks of the last two is rounded
def test_a_cluster_that_does_not_vary_correlates_with_nothing(constant: float) -> None:
    activations = np.random.default_rng(0).random((40, 3))
    activations[:, 2] = constant
    correlation = profiles.profile(lambda: cut(activations, 16), 3, 1).correlation
    assert np.isnan(correlation[2]).all()
    assert np.isfinite(correlation[:2, :2]).all()


def test_distinctive_prompts_are_not_just_the_long_ones() -> None:
    activations = np.array([[9.0, 9.0], [8.0, 9.0], [3.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    got = profiles.profile(lambda: [activations], 2, 1, 1)
    assert got.marking.tolist() == [[2, 3]]
    alone = profiles.profile(lambda: [activations[:, :1]], 1, 1, 1)
    assert alone.marking.tolist() == [[0]]


@given(st.integers(4, 60), st.integers(2, 5), st.integers(1, 50), st.integers(0, 99))
def test_halves_have_correlations_of_their_own_and_change_no_other(
    n: int, n_clusters: int, rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    whole = rng.random((n, n_clusters))
    half = rng.integers(2, size=n)
    got = profiles.profile(lambda: cut(whole, rows), n_clusters, 4, 3, half)
    without = profiles.profile(lambda: cut(whole, rows), n_clusters, 4, 3)
    assert without.half_correlations == ()
    np.testing.assert_array_equal(got.top, without.top)
    np.testing.assert_allclose(got.correlation, without.correlation, atol=1e-9)
    for number, found in enumerate(got.half_correlations):
        own = whole[half == number]
        if len(own) > 1:
            np.testing.assert_allclose(found, np.corrcoef(own.T), atol=1e-9)
        else:
            assert np.isnan(found).all()
