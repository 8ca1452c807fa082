"""Similarities of when features are active: counts, formulas, standard errors, and what the engine makes of them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, jaccard_score, matthews_corrcoef

from gpuclust.compute import association, gram, neighbors, reductions
from gpuclust.config import ACTIVITY
from gpuclust.hardware import backend
from tests import cuda_stub, reference
from tests.strategies import activations, cuts, sae_like

KNOW_CHANCE = [metric for metric in ACTIVITY if metric not in ("jaccard", "dice", "overlap")]


def counted(values: np.ndarray, threshold: float = 0.0, tile: int | None = None) -> gram.Gram:
    n = values.shape[1]
    (tiles,) = gram.plan_passes(n, tile or n, 1 << 40)
    return gram.accumulate([values], n, tiles, tile or n, active_above=threshold)


def odd_ones(n: int = 300, size: int = 40) -> np.ndarray:
    """Some never active, some always, some twice, some on the other prompts, and negative ones."""
    values = sae_like(n, size)
    values[:, 3], values[:, 4], values[:, 5] = 0, 1.5, 2.5
    values[:, 7], values[:, 8] = values[:, 6], values[:, 6] == 0
    values[:, 9] *= -1
    return values


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("metric", ACTIVITY)
@pytest.mark.parametrize("tile", [7, 40])
def test_neighbors_equal_brute_force(metric: str, tile: int, threshold: float) -> None:
    values = odd_ones()
    indices, distances = neighbors.exact(counted(values, threshold, tile), 9, metric)
    expected = 1 - reference.association(values, threshold, metric)
    np.fill_diagonal(expected, -1)
    nearest = np.sort(expected, axis=1)[:, :9]
    np.testing.assert_allclose(distances[:, 1:], nearest[:, 1:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(expected, indices, 1)[:, 1:], nearest[:, 1:], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(indices[:, 0], np.arange(40))
    np.testing.assert_array_equal(distances[:, 0], 0)
    for row in range(40):
        pairs = list(zip(distances[row, 1:], indices[row, 1:], strict=True))
        assert pairs == sorted(pairs)
    whole = neighbors.all_distances(counted(values, threshold, tile), metric)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-6)
    assert whole.min() == 0
    assert whole.max() <= 2
    np.testing.assert_array_equal(whole, whole.T)
    assert whole[6, 7] == 0 or metric == "lift"  # active together, whatever rounding; lift says how rare that is
    if metric in KNOW_CHANCE:
        np.testing.assert_array_equal(np.delete(whole[4:6], [4, 5], axis=1), 1)  # always active: says nothing


@given(st.data(), activations(signed=True), st.integers(1, 7), st.sampled_from([0.0, 0.1, 1.0, 3.3]))
def test_counts_are_exact_however_cut_and_tiled(
    data: st.DataObject, values: np.ndarray, tile: int, threshold: float
) -> None:
    n = values.shape[1]
    pieces = [values[piece] for piece in data.draw(cuts(len(values)))]
    groups = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=len(values), max_size=len(values))))
    (tiles,) = gram.plan_passes(n, tile, 1 << 40)
    active = (abs(values.astype(np.float64)) > threshold).astype(np.int64)
    for sparse in (None, True, False):
        whole = gram.accumulate(pieces, n, tiles, tile, sparse=sparse, active_above=threshold)
        np.testing.assert_array_equal(whole.dense(), active.T @ active)
        np.testing.assert_array_equal(whole.sums, active.sum(axis=0))
        np.testing.assert_array_equal(whole.squares, active.sum(axis=0))
    parts = gram.accumulate_groups([values], groups, 3, n, tiles, tile, active_above=threshold)
    chosen = active[groups > 0]
    both = gram.weighted(parts, [0, 1, 1]) if len(chosen) else gram.weighted(parts, [1, 0, 0])
    chosen = chosen if len(chosen) else active[groups == 0]
    np.testing.assert_array_equal(both.dense(), chosen.T @ chosen)
    assert both.n_prompts == len(chosen)


@given(st.integers(0, 10**6), st.sampled_from([np.float16, np.float32]))
def test_activity_is_what_statistics_count(seed: int, dtype: type) -> None:
    """A threshold that the stored type does not hold is not rounded to it."""
    rng = np.random.default_rng(seed)
    threshold = float(rng.random())
    near = np.asarray(threshold, dtype)
    values = np.array([[-near], [near], [np.nextafter(near, dtype(9))], [np.nextafter(near, dtype(-9))], [0]])
    values = values.astype(dtype).reshape(-1, 1)
    found = association.activity(values, threshold)
    assert found.dtype == np.float64
    assert found.sum() == reductions.moments_chunk(values, threshold)["n_active"][0]


def test_counts_of_a_gpu_are_exact_where_float32_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "EXACT_ROWS", 3)
    values = odd_ones(10, 12)
    active = (abs(values.astype(np.float64)) > 0.5).astype(int)
    with cuda_stub.installed():
        xp = backend.resolve("cuda").xp
        held = gram.accumulate([xp.asarray(values)], 12, [(0, 0)], 12, xp, active_above=0.5)
        assert held.tiles[0, 0].dtype == np.int32
        tile = held.tiles[0, 0] + np.int32(2**24)  # float32 has no 2^24 + 1
        on_device = association.activity(xp.asarray(values), 0.5, xp)
        assert on_device.dtype == np.float16
        gram.add_product(tile, on_device, on_device, xp)
        np.testing.assert_array_equal(backend.to_host(tile), 2**24 + 2 * (active.T @ active))


def test_ties_are_broken_by_feature_number() -> None:
    rng = np.random.default_rng(2)
    values = (rng.random((12, 30)) < 0.4).astype(np.float16)
    held = counted(values, tile=11)
    active = values.astype(int)
    both, n = active.T @ active, active.sum(axis=0)
    for metric, ratio in {
        "jaccard": lambda i, j: Fraction(int(both[i, j]), int(n[i] + n[j] - both[i, j]) or 1),
        "dice": lambda i, j: Fraction(2 * int(both[i, j]), int(n[i] + n[j]) or 1),
        "overlap": lambda i, j: Fraction(int(both[i, j]), int(min(n[i], n[j])) or 1),
    }.items():
        indices, _ = neighbors.exact(held, 12, metric)
        for i in range(30):
            order = sorted((j for j in range(30) if j != i), key=lambda j, i=i, ratio=ratio: (-ratio(i, j), j))
            assert indices[i].tolist() == [i, *order[:11]], metric


def test_metrics_are_those_of_the_literature() -> None:
    values = sae_like(400, 20)
    active = values > 0
    found = {metric: 1 - neighbors.all_distances(counted(values), metric).astype(float) for metric in ACTIVITY}
    n, both = active.sum(axis=0), active.astype(int).T @ active
    for i, j in [(0, 1), (2, 9), (5, 17)]:
        one, other = active[:, i], active[:, j]
        assert found["jaccard"][i, j] == pytest.approx(jaccard_score(one, other), abs=1e-6)
        assert found["phi"][i, j] == pytest.approx(matthews_corrcoef(one, other), abs=1e-6)
        assert found["corrected_dice"][i, j] == pytest.approx(cohen_kappa_score(one, other), abs=1e-6)
        largest = (min(n[i], n[j]) / 400 - n[i] * n[j] / 400**2) / (one.std() * other.std())  # of phi
        if found["phi"][i, j] > 0:
            assert found["corrected_overlap"][i, j] == pytest.approx(found["phi"][i, j] / largest, abs=1e-6)
    pairs = np.triu_indices(20, 1)
    lift = (both * 400 / np.outer(n, n))[pairs]
    np.testing.assert_array_equal(
        np.argsort(lift, kind="stable"), np.argsort(np.round(found["lift"][pairs], 6), kind="stable")
    )


@pytest.mark.parametrize("metric", KNOW_CHANCE)
def test_independent_features_have_nothing_in_common(metric: str) -> None:
    for a, b in [(10, 20), (50, 50), (2, 100), (100, 150)]:
        n, both = 200.0, a * b / 200
        found = association.similarity(metric, *(np.array([float(x)]) for x in (both, a, b)), n)
        assert found[0] == pytest.approx(0, abs=1e-12)
        fewer, more = (
            association.similarity(metric, *(np.array([float(x)]) for x in (both + by, a, b)), n)[0]
            for by in (-0.5, 0.5)
        )
        assert fewer <= found[0] <= more


@pytest.mark.parametrize("metric", ["jaccard", "dice", "overlap"])
def test_correction_takes_out_how_often_features_are_active(metric: str) -> None:
    """By the raw metric a feature that is nearly always active is nearer than one that belongs."""
    rng = np.random.default_rng(0)
    topic, often = rng.random(100_000) < 0.05, rng.random((100_000, 2)) < 0.9
    pair = topic[:, None] & (rng.random((100_000, 2)) < 0.5)
    values = np.concatenate([pair, often], axis=1).astype(np.float16)
    raw, less = (neighbors.all_distances(counted(values), name) for name in (metric, f"corrected_{metric}"))
    if metric == "overlap":
        assert raw[0, 2] < raw[0, 1]
    assert raw[2, 3] < raw[0, 1]
    assert less[0, 1] < 0.8
    assert less[[0, 2], [2, 3]].min() > 0.85


COUNTS = st.integers(2, 400).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(1, n)).flatmap(
        lambda t: st.tuples(st.just(t), st.integers(max(1, t[1] + t[2] - t[0]), min(t[1], t[2])))
    )
)


@given(COUNTS, st.sampled_from(ACTIVITY))
def test_counts_come_back_from_stored_distances(counts: tuple[tuple[int, int, int], int], metric: str) -> None:
    (n, a, b), both = counts
    found = association.similarity(metric, *(np.array([float(x)]) for x in (both, a, b)), n)
    known = metric not in KNOW_CHANCE or max(a, b) < n
    stored = 1 - (1 - found).astype(np.float32).astype(np.float64)
    errors = association.standard_errors(metric, stored, np.array([a]), np.array([b]), n)
    assert np.isfinite(errors).all()
    if known and found[0] > -0.99:
        assert association.together(metric, stored, np.array([a]), np.array([b]), n)[0] == both


@pytest.mark.parametrize("metric", ACTIVITY)
@pytest.mark.parametrize(("both", "a", "b"), [(40, 60, 90), (30, 45, 400), (150, 300, 200), (60, 61, 90)])
def test_standard_errors_are_those_of_bootstraps(metric: str, both: int, a: int, b: int) -> None:
    n = 1000
    cells = np.array([both, a - both, b - both, n - a - b + both])
    drawn = np.random.default_rng(0).multinomial(n, cells / n, 20_000).astype(float)
    one, other = drawn[:, 0] + drawn[:, 1], drawn[:, 0] + drawn[:, 2]
    bootstraps = association.similarity(metric, drawn[:, 0], one, other, n)
    found = association.similarity(metric, *(np.array([float(x)]) for x in (both, a, b)), n)
    error = association.standard_errors(metric, found, np.array([a]), np.array([b]), n)[0]
    assert error == pytest.approx(bootstraps.std(), rel=0.08)


def test_standard_errors_of_neighbors_are_those_of_resampled_prompts() -> None:
    values = sae_like(800, 30)
    held = counted(values)
    for metric in ("corrected_jaccard", "phi", "npmi"):
        indices, distances = neighbors.exact(held, 4, metric)
        errors = neighbors.errors_of(held, indices, distances, metric)
        assert errors is not None
        assert errors.dtype == np.float32
        rng = np.random.default_rng(0)
        again = []
        for _ in range(200):
            whole = neighbors.all_distances(counted(values[rng.integers(0, 800, 800)]), metric)
            again.append(np.take_along_axis(whole, indices, axis=1))
        spread = np.std(again, axis=0)
        assert np.median(errors[:, 1:] / spread[:, 1:]) == pytest.approx(1, abs=0.05)
        np.testing.assert_allclose(errors[:, 0], 0, atol=1e-12)
    assert neighbors.errors_of(held, indices, distances, "cosine") is None
