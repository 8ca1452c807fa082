"""Every array step on every array module of the capability table (conftest.ARRAYS), against plain formulas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from gpuclust.compute import association, gram, neighbors, reductions
from gpuclust.config import ACTIVITY
from gpuclust.errors import SchedulerError
from gpuclust.hardware import backend
from tests import reference
from tests.strategies import sae_like

U = 2.0**-24  # unit roundoff of float32


def test_moments_and_examples(xp: Any) -> None:
    values = sae_like(90, 40)
    values[:, 3] = 0
    values[40:42, 5] = values[:, 5].max()  # a tie
    positions = np.arange(values.size, dtype=np.int32).reshape(values.shape) % 50
    on_device, places = xp.asarray(values), xp.asarray(positions)
    parts = [(0, 25), (25, 26), (26, 90)]
    moments = reductions.MOMENTS.merge(reductions.moments_chunk(on_device[a:b], 0.1, xp) for a, b in parts)
    found = backend.on_host(reductions.MOMENTS.finalize(moments))
    for name, expected in reference.notebook_statistics(values, 0.1).items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-6, atol=1e-9, err_msg=name)
    examples = [reductions.examples_chunk(on_device[a:b], places[a:b], a, 4, xp) for a, b in parts]
    got = reductions.EXAMPLES.merge(backend.on_host(state) for state in examples)
    wanted = reductions.examples_chunk(values, positions, 0, 4)
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("tile", [16, 50])
def test_gram_is_within_its_bound(xp: Any, dtype: type, tile: int) -> None:
    values = sae_like(300, 50).astype(dtype)
    values[0, 0] = 300  # a product of two overflows float16
    n, chunks = 50, 5
    (tiles,) = gram.plan_passes(n, tile, 1 << 40)
    blocks = [xp.asarray(values[start : start + 60]) for start in range(0, 300, 60)]
    got = gram.accumulate(blocks, n, tiles, tile, xp)
    exact = values.astype(np.float64)
    bound = (2 * 60 + chunks + 1) * U * (abs(exact).T @ abs(exact))
    for (i, j), held in got.tiles.items():
        error = abs(backend.to_host(held) - (exact.T @ exact)[got.block(i), got.block(j)])
        assert (error <= bound[got.block(i), got.block(j)]).all()
    np.testing.assert_allclose(backend.to_host(got.sums), exact.sum(axis=0), rtol=1e-13)
    np.testing.assert_allclose(backend.to_host(got.squares), (exact**2).sum(axis=0), rtol=1e-13)


@pytest.mark.parametrize("above", [None, 1.0])
def test_sparse_rows_add_up_as_dense_ones_do(xp: Any, above: float | None) -> None:
    values = np.where(np.random.default_rng(0).random((80, 30)) < 0.05, sae_like(80, 30), 0).astype(np.float32)
    (tiles,) = gram.plan_passes(30, 16, 1 << 40)
    blocks = [sparse.csr_array(values[start : start + 20]) for start in range(0, 80, 20)]
    got = gram.accumulate_groups(blocks, np.arange(80) % 2, 2, 30, tiles, 16, xp, active_above=above)
    for group, found in enumerate(got):
        own = values[group::2].astype(np.float64)
        own = own if above is None else (np.abs(own) > above).astype(np.float64)
        assert found.n_prompts == 40
        for (i, j), held in found.tiles.items():
            expected = (own.T @ own)[found.block(i), found.block(j)]
            np.testing.assert_allclose(backend.to_host(held), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(backend.to_host(found.sums), own.sum(axis=0), rtol=1e-12)
        np.testing.assert_allclose(backend.to_host(found.squares), (own**2).sum(axis=0), rtol=1e-12)


def test_groups_of_prompts_add_up(xp: Any) -> None:
    values = sae_like(90, 30)
    groups = np.random.default_rng(0).integers(-1, 3, 90)
    tiles = [(0, 0), (0, 1), (1, 1)]
    blocks = [xp.asarray(values[start : start + 40]) for start in range(0, 90, 40)]
    grams = gram.accumulate_groups(blocks, groups, 3, 30, tiles, 16, xp)
    view = gram.weighted(grams, np.array([1.0, 0.0, 2.0]))
    weight = np.where(groups == 0, 1, np.where(groups == 2, 2, 0))[:, None]
    expected = (values * weight).astype(np.float64).T @ values.astype(np.float64)
    for (i, j), held in view.tiles.items():
        np.testing.assert_allclose(backend.to_host(held), expected[view.block(i), view.block(j)], rtol=1e-5)
    assert [part.n_prompts for part in grams] == [int((groups == group).sum()) for group in range(3)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_counts_of_active_prompts_are_exact(xp: Any, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    values = sae_like(300, 50).astype(dtype)
    values[:, 3], values[:, 4] = 0, -2
    active = (abs(values.astype(np.float64)) > 1).astype(int)
    monkeypatch.setattr(gram, "EXACT_ROWS", 70)  # several products a block
    monkeypatch.setattr(association, "DEVICE_SLAB", 999)
    (tiles,) = gram.plan_passes(50, 16, 1 << 40)
    blocks = [xp.asarray(values[start : start + 120]) for start in range(0, 300, 120)]
    got = gram.accumulate(blocks, 50, tiles, 16, xp, active_above=1.0)
    assert {held.dtype for held in got.tiles.values()} == {np.dtype(np.float64 if xp is np else np.int32)}
    groups = np.random.default_rng(0).integers(-1, 3, 300)
    parts = gram.accumulate_groups(blocks, groups, 3, 50, tiles, 16, xp, active_above=1.0)
    weights = np.array([1.0, 0.0, 2.0])
    times = np.where(groups < 0, 0, weights[groups]).astype(int)
    for whole, rows in ((got, active), (gram.weighted(parts, weights), np.repeat(active, times, axis=0))):
        for (i, j), held in whole.tiles.items():
            np.testing.assert_array_equal(backend.to_host(held), (rows.T @ rows)[whole.block(i), whole.block(j)])
        np.testing.assert_array_equal(backend.to_host(whole.sums), rows.sum(axis=0))
        assert whole.n_prompts == len(rows)
    for metric in ACTIVITY:
        for found, expected in zip(
            neighbors.exact(got, 6, metric, xp),
            neighbors.exact(gram.accumulate([values], 50, tiles, 16, active_above=1.0), 6, metric),
            strict=True,
        ):
            np.testing.assert_allclose(backend.to_host(found), expected, rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "correlation", "euclidean", "dot"])
def test_neighbors_equal_brute_force_up_to_ties(xp: Any, metric: str) -> None:
    values = sae_like(400, 120)
    values[:, 7] = values[:, 3]  # a duplicate
    k, tile = 6, 48
    (tiles,) = gram.plan_passes(120, tile, 1 << 40)
    whole = gram.accumulate([xp.asarray(values)], 120, tiles, tile, xp)
    indices, distances = map(backend.to_host, neighbors.exact(whole, k, metric, xp))
    expected = reference.distances(values, metric)
    np.fill_diagonal(expected, -1)
    nearest = np.sort(expected, axis=1)[:, :k]
    nearest[:, 0] = 0
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if metric != "euclidean" else {"rtol": 1e-4, "atol": 1e-2}
    np.testing.assert_allclose(distances, nearest, **tolerance)
    np.testing.assert_allclose(np.take_along_axis(expected, indices.astype(int), 1)[:, 1:], nearest[:, 1:], **tolerance)
    np.testing.assert_array_equal(indices[:, 0], np.arange(120))
    if metric == "cosine":
        assert distances[3, 1] == 0
        assert indices[3, 1] == 7


def test_backend_is_resolved_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    backend.resolve.cache_clear()
    assert backend.resolve("cpu").xp is np
    missing = backend.CudaStatus(False, "no CUDA device is visible", "get one")
    monkeypatch.setattr(backend, "cuda_status", lambda: missing)
    with pytest.raises(
        SchedulerError, match=r"cannot compute on a GPU: no CUDA device is visible. To change .*get one"
    ):
        backend.resolve("cuda")


@pytest.mark.parametrize(
    ("cards", "driver", "packages", "torch", "reason"),
    [
        ([(9, 0)], 13000, True, True, "1 CUDA device"),
        ([(9, 0)], 12040, True, True, "knows CUDA up to 12.4, RAPIDS here needs 13.0"),
        ([(9, 0), (7, 0)], 13000, True, True, r"1 of 2 visible GPU\(s\) are older than Turing"),
        ([(9, 0)], 13000, True, False, "PyTorch is a CPU build"),
        ([(9, 0)], 13000, False, True, "are not installed"),
        ([], 0, True, True, "no CUDA device is visible"),
        (
            [],
            0,
            False,
            True,
            "no GPU and RAPIDS found: no CUDA device is visible and cupy, rmm, cuml, dask_cuda are not installed",
        ),
    ],
)
def test_cuda_status_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, cards: Any, driver: int, packages: bool, torch: bool, reason: str
) -> None:
    monkeypatch.setattr(backend, "_cards", lambda: (cards, driver))
    monkeypatch.setattr(backend, "_torch_has_cuda", lambda: torch)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: packages or None)
    status = backend.cuda_status()
    assert status.usable == (reason == "1 CUDA device")
    assert re.search(reason, status.reason)
    assert status.usable or status.fix


@pytest.mark.parametrize(
    ("line", "found"), [("cuda: Optional[str] = None", False), ("cuda: Optional[str] = '13.0'", True), ("", False)]
)
def test_build_of_torch_is_read_from_its_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, found: bool
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2'\n{line}\nhip: Optional[str] = None\n")
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: spec)
    assert backend._torch_has_cuda() == found
