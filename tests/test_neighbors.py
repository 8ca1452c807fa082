from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuclust.compute import gram, neighbors
from gpuclust.errors import ActivationError, InputError
from tests import reference
from tests.strategies import activations, cuts, sae_like

METRICS = ["cosine", "correlation", "euclidean", "dot"]


def whole(values: np.ndarray, tile: int, sparse: bool | None = None, lengths: np.ndarray | None = None) -> gram.Gram:
    n = values.shape[1]
    (tiles,) = gram.plan_passes(n, tile, 1 << 40)
    return gram.accumulate([values], n, tiles, tile, sparse=sparse, lengths=lengths)


@given(st.data(), activations(signed=True), st.integers(1, 7))
def test_gram_is_exact_however_cut_and_tiled(data: st.DataObject, values: np.ndarray, tile: int) -> None:
    values = np.round(values.astype(np.float32) * 64) / 64  # products fit 53 bits: sums are exact
    n = values.shape[1]
    pieces = [values[piece] for piece in data.draw(cuts(len(values)))]
    budget = data.draw(st.integers(1, 5)) * tile * tile * 8
    expected = values.astype(np.float64).T @ values.astype(np.float64)
    for tiles in gram.plan_passes(n, tile, budget):
        half = len(pieces) // 2
        parts = [gram.accumulate(part, n, tiles, tile) for part in (pieces[:half], pieces[half:])]
        got = gram.combine(parts)
        for (i, j), held in got.tiles.items():
            np.testing.assert_array_equal(held, expected[got.block(i), got.block(j)])
        np.testing.assert_array_equal(got.squares, np.diag(expected))
        assert got.n_prompts == len(values)


def test_passes_cover_the_upper_triangle_once() -> None:
    for budget in (1, 3 * 16 * 8, 10**9):
        tiles = [tile for one in gram.plan_passes(19, 4, budget) for tile in one]
        assert sorted(tiles) == [(i, j) for i in range(5) for j in range(i, 5)]


@pytest.mark.parametrize("density", [0.01, 0.3])
def test_sparse_and_dense_products_are_equal(density: float) -> None:
    values = sae_like(300, 50, density)
    for a, b in zip(whole(values, 16, True).tiles.values(), whole(values, 16, False).tiles.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


def test_measured_density_chooses_the_product() -> None:
    assert set(whole(sae_like(300, 50, 0.001), 16).routes) == {"sparse"}
    assert set(whole(sae_like(300, 50, 0.3), 16).routes) == {"dense"}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("tile", [7, 64, 300])
def test_neighbors_equal_brute_force(metric: str, tile: int) -> None:
    values = sae_like(500, 200)
    k = 9
    indices, distances = neighbors.exact(whole(values, tile), k, metric)
    assert indices.shape == distances.shape == (200, k)
    assert (indices.dtype, distances.dtype) == (np.int32, np.float32)
    expected = reference.distances(values, metric)
    np.fill_diagonal(expected, -np.inf)
    order = np.argsort(expected, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(
        distances[:, 1:], np.take_along_axis(expected, order, axis=1)[:, 1:], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(distances[:, 0], 0)


@given(st.integers(0, 1000), st.integers(1, 30))
def test_ties_are_broken_by_feature_number(seed: int, tile: int) -> None:
    rng = np.random.default_rng(seed)
    base = sae_like(40, 6, seed=seed)
    values = base[:, rng.integers(0, 6, 30)] * np.float16(2) ** rng.integers(-2, 3, 30).astype(np.float16)
    indices, distances = neighbors.exact(whole(values, tile), 12, "cosine")
    np.testing.assert_array_equal(indices[:, 0], np.arange(30))
    for row in range(30):
        pairs = list(zip(distances[row, 1:], indices[row, 1:], strict=True))
        assert pairs == sorted(pairs)
    exact = np.argsort(
        np.where(np.eye(30, dtype=bool), -1, np.round(reference.distances(values, "cosine"), 9)), 1, "stable"
    )
    np.testing.assert_array_equal(indices, exact[:, :12])


def partial(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """1 less the correlation of what least squares on the lengths leaves of each feature."""
    design = np.column_stack([np.ones(len(lengths)), lengths])
    values = values.astype(np.float64)
    left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return 1 - np.corrcoef(left.T)


@pytest.mark.parametrize("tile", [7, 200])
def test_partial_correlations_are_those_of_residuals(tile: int) -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(3, 200, 400)
    values = sae_like(400, 60).astype(np.float64)
    values[:, :20] += 0.05 * lengths[:, None]  # as a feature of function words does
    cut = [slice(0, 90), slice(90, 97), slice(97, 400)]
    (tiles,) = gram.plan_passes(60, tile, 1 << 40)
    held = gram.accumulate([values[part] for part in cut], 60, tiles, tile, lengths=lengths)
    expected = partial(values, lengths)
    for i, j in tiles:
        got = neighbors.tile_distances(held, i, j, "partial_correlation", 0.0)
        np.testing.assert_allclose(got, expected[held.block(i), held.block(j)], atol=1e-6)
    far = neighbors.tile_distances(held, 0, 0, "correlation", 0.0)
    assert far[0, 1] < expected[0, 1] - 0.2  # the length is what they had in common


def test_partial_correlations_of_unions_and_some_features() -> None:
    rng = np.random.default_rng(4)
    lengths, groups = rng.integers(3, 200, 300), rng.integers(-1, 2, 300)
    values = sae_like(300, 40).astype(np.float64) + 0.01 * lengths[:, None]
    parts = gram.accumulate_groups([values[:100], values[100:]], groups, 2, 40, [(0, 0)], 40, lengths=lengths)
    for weights in ([1, 0], [1, 1], [2, 1]):
        times = np.where(groups < 0, 0, np.array(weights)[groups])
        view = gram.chosen(gram.weighted(parts, weights), np.arange(0, 40, 3))
        got = neighbors.tile_distances(view, 0, 0, "partial_correlation", 0.0)
        expected = partial(np.repeat(values[:, ::3], times, axis=0), np.repeat(lengths, times))
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("lengths", [None, np.full(50, 17), np.full(50, -1)])
def test_partial_correlations_of_equally_long_prompts_are_correlations(lengths: np.ndarray | None) -> None:
    values = sae_like(50, 10)
    held = gram.accumulate([values], 10, [(0, 0)], 10, lengths=lengths)
    np.testing.assert_array_equal(
        neighbors.tile_distances(held, 0, 0, "partial_correlation", 0.0),
        neighbors.tile_distances(held, 0, 0, "correlation", 0.0),
    )


def test_feature_that_is_the_length_is_far_from_all() -> None:
    lengths = np.random.default_rng(0).integers(3, 200, 300)
    values = sae_like(300, 10).astype(np.float64)
    values[:, 3], values[:, 4] = lengths, 3 * lengths + 5
    held = gram.accumulate([values], 10, [(0, 0)], 10, lengths=lengths)
    distances = neighbors.tile_distances(held, 0, 0, "partial_correlation", 0.0)
    np.testing.assert_array_equal(distances[3:5], 1)


def test_feature_of_zeros_is_far_from_all() -> None:
    values = sae_like(50, 10)
    values[:, 3] = 0
    _, distances = neighbors.exact(whole(values, 4), 4, "cosine")
    np.testing.assert_array_equal(distances[3, 1:], 1)


@given(st.data())
def test_sketch_does_not_depend_on_the_cuts(data: st.DataObject) -> None:
    values = sae_like(30, 8)
    pieces = data.draw(cuts(30))
    one = neighbors.sketch([(0, values)], 8, 16, seed=3)
    many = neighbors.sketch([(p.start, values[p]) for p in pieces], 8, 16, seed=3)
    np.testing.assert_allclose(one, many, rtol=1e-12, atol=1e-12)


def test_sketch_finds_most_neighbors() -> None:
    values = sae_like(2000, 150)
    projected = neighbors.sketch([(0, values)], 150, 1500, seed=0)
    exact, _ = neighbors.exact(whole(values, 64), 6, "cosine")
    approximate, _ = neighbors.exact(whole(projected.T, 64), 6, "cosine")
    recall = np.mean([len(set(a[1:]) & set(b[1:])) / 5 for a, b in zip(exact, approximate, strict=True)])
    assert recall > 0.35  # chance is 5/149 = 0.03


@given(st.data(), activations(), st.integers(1, 7))
def test_groups_add_up_to_the_gram_of_their_union(data: st.DataObject, values: np.ndarray, tile: int) -> None:
    values = np.round(values.astype(np.float32) * 64) / 64
    n = values.shape[1]
    groups = np.array(data.draw(st.lists(st.integers(-1, 3), min_size=len(values), max_size=len(values))))
    step = data.draw(st.integers(1, len(values)))
    chunks = [values[start : start + step] for start in range(0, len(values), step)]
    (tiles,) = gram.plan_passes(n, tile, 1 << 40)
    parts = gram.accumulate_groups(chunks, groups, 4, n, tiles, tile)
    for wanted in ([0], [1, 3], [0, 1, 2, 3]):
        weights = np.isin(np.arange(4), wanted).astype(float)
        rows = values[np.isin(groups, wanted)].astype(np.float64)
        got = gram.weighted(parts, weights)
        np.testing.assert_array_equal(got.dense(), rows.T @ rows)
        np.testing.assert_array_equal(got.sums, rows.sum(axis=0))
        assert got.n_prompts == len(rows)
    twice = values[groups >= 0].astype(np.float64)
    np.testing.assert_array_equal(gram.weighted(parts, [2, 2, 2, 2]).dense(), 2 * twice.T @ twice)


def test_groups_that_do_not_fit_the_prompts_are_refused() -> None:
    values = sae_like(20, 5)
    for groups, message in (([0] * 19, "given for 19 prompts"), ([0] * 21, "given for 21"), ([2] * 20, "2 to 2")):
        with pytest.raises(InputError, match=message):
            gram.accumulate_groups([values], np.array(groups), 2, 5, [(0, 0)], 5)


def test_neighbors_of_vectors_do_not_depend_on_the_tile() -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    whole = neighbors.of_vectors(vectors, 6, "cosine", 50)
    tiled = neighbors.of_vectors(vectors, 6, "cosine", 16)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit.T), axis=1)[:, :6]
    np.testing.assert_array_equal(whole[0], order)
    for a, b in zip(whole, tiled, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [2.0**-200, 2.0**-70, 2.0**70, 2.0**120])
def test_distances_are_right_at_any_scale_or_refused(metric: str, scale: float) -> None:
    values = sae_like(80, 30).astype(np.float64)
    values[:, 3] = 0  # a feature of zeros is no small one
    indices, distances = neighbors.exact(whole(values, 8), 5, metric)
    factor = {"euclidean": scale, "dot": scale**2}.get(metric, 1.0)
    if 1e-29 < factor < 1e29:
        found, far = neighbors.exact(whole(values * scale, 8), 5, metric)
        np.testing.assert_array_equal(found, indices)
        np.testing.assert_allclose(far, distances * factor, rtol=1e-5)
        return
    with pytest.raises(ActivationError, match=rf"metric={metric}: .*float32 cannot hold its distances. Multiply the"):
        neighbors.exact(whole(values * scale, 8), 5, metric)


def test_squares_that_a_float32_tile_cannot_hold_are_refused() -> None:
    side = {"sums": np.ones(2), "squares": np.full(2, 1e32)}
    with pytest.raises(ActivationError, match=r"length 1e\+16, outside 1e-15 to 1e\+15"):
        neighbors.distances("euclidean", np.zeros((2, 2), np.float32), 1, side, side, 1e32)
