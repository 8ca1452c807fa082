"""Rows of tokens put together, against plain loops over dense rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from gpuclust.compute import windows
from gpuclust.types import Array


def made(n_rows: int, n_features: int, density: float, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    values = np.round(rng.standard_normal((n_rows, n_features)), 1).astype(np.float32)  # with ties
    return np.where(rng.random(values.shape) < density, values, 0).astype(np.float32)


def prompts_of(lengths: list[int]) -> Array:
    return np.repeat(np.arange(len(lengths)) * 3 + 5, lengths)


@given(st.lists(st.integers(1, 12), max_size=6), st.integers(1, 9))
def test_windows_are_cut_prompt_by_prompt(lengths: list[int], size: int) -> None:
    expected, number = [], 0
    for length in lengths:
        for start in range(0, length, size):
            expected += [number] * min(size, length - start)
            number += 1
    assert windows.windows(prompts_of(lengths), size).tolist() == expected


def test_a_window_longer_than_prompts_is_the_prompt() -> None:
    assert windows.windows(prompts_of([3, 1, 2]), 10**9).tolist() == [0, 0, 0, 1, 2, 2]


def slowly(rows: Array, group: Array, how: str) -> Array:
    found = []
    for number in range(int(group[-1]) + 1 if len(group) else 0):
        own = rows[group == number].astype(np.float64)
        if how == "max":
            found.append(own[np.abs(own).argmax(axis=0), np.arange(rows.shape[1])])
        else:
            found.append({"mean": own.mean(axis=0), "sum": own.sum(axis=0), "last": own[-1]}[how])
    return np.array(found, np.float32).reshape(-1, rows.shape[1])


@given(
    st.lists(st.integers(1, 8), max_size=5), st.integers(1, 6), st.sampled_from([0.0, 0.2, 0.9]), st.integers(0, 99),
    st.sampled_from(["max", "mean", "sum", "last"]),
)  # fmt: skip
def test_rows_are_put_together(lengths: list[int], size: int, density: float, seed: int, how: str) -> None:
    prompt = prompts_of(lengths)
    rows, group = made(len(prompt), 5, density, seed), windows.windows(prompt, size)
    got = windows.aggregate(sparse.csr_array(rows), group, how)
    np.testing.assert_allclose(got.toarray(), slowly(rows, group, how), rtol=1e-6, atol=1e-7)
    assert got.has_sorted_indices
    if how == "max":
        np.testing.assert_array_equal(got.toarray(), slowly(rows, group, how))


@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.sampled_from([0.0, 0.3]), st.integers(0, 99))
def test_permuted_features_keep_their_prompts_together(lengths: list[int], density: float, seed: int) -> None:
    prompt = prompts_of([max(lengths)] * len(lengths))  # equally long, so that nothing meets
    rows = made(len(prompt), 6, density, seed)
    got = windows.permuted(sparse.csr_array(rows), prompt, [seed, 0]).toarray()
    shape = (len(lengths), max(lengths), 6)
    before, after = rows.reshape(shape), got.reshape(shape)
    for feature in range(6):
        assert sorted(map(turned, after[:, :, feature].tolist())) == sorted(map(turned, before[:, :, feature].tolist()))


def turned(values: list[float]) -> tuple[float, ...]:
    """The same, wherever in a ring it begins."""
    return min(tuple(values[at:] + values[:at]) for at in range(len(values)))


def test_what_fires_at_beginnings_is_together_no_more() -> None:
    prompt = np.repeat(np.arange(200), 20)
    rows = np.zeros((4000, 2), np.float32)
    rows[::20] = 1
    assert np.corrcoef(rows.T)[0, 1] == 1
    got = windows.permuted(sparse.csr_array(rows), prompt, [0]).toarray()
    assert got.sum(axis=0).tolist() == [200, 200]
    assert abs(np.corrcoef(got.T)[0, 1]) < 0.05


def test_features_are_permuted_apart_from_each_other() -> None:
    rows = np.tile(np.arange(1, 41, dtype=np.float32)[:, None], (1, 2))  # two copies
    got = windows.permuted(sparse.csr_array(rows), np.arange(40), [0, 1]).toarray()
    assert sorted(got[:, 0]) == sorted(got[:, 1]) == sorted(rows[:, 0])
    assert (got[:, 0] != got[:, 1]).sum() > 30
    again = windows.permuted(sparse.csr_array(rows), np.arange(40), [0, 1]).toarray()
    np.testing.assert_array_equal(again, got)
    assert (windows.permuted(sparse.csr_array(rows), np.arange(40), [0, 2]).toarray() != got).any()


def test_no_two_features_are_permuted_alike_however_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.tile(np.arange(1, 41, dtype=np.float32)[:, None], (1, 6))
    whole = windows.permuted(sparse.csr_array(rows), np.arange(40), [0, 1]).toarray()
    monkeypatch.setattr(windows, "PERMUTED", 2)
    got = windows.permuted(sparse.csr_array(rows), np.arange(40), [0, 1]).toarray()
    np.testing.assert_array_equal(np.sort(got, axis=0), rows)
    assert len({tuple(column) for column in got.T}) == 6
    first = windows.permuted(sparse.csr_array(rows[:, :2]), np.arange(40), [0, 1]).toarray()
    np.testing.assert_array_equal(got[:, :2], first)
    assert (whole[:, 2:] != got[:, 2:]).any()


@pytest.mark.parametrize("lengths", [[1, 9], [9, 1], [4, 2, 7]])
def test_prompts_of_other_lengths_hold_what_moves_to_them(lengths: list[int]) -> None:
    prompt = prompts_of(lengths)
    rows = made(len(prompt), 50, 0.5, 3)
    got = windows.permuted(sparse.csr_array(rows), prompt, [0])
    assert got.shape == rows.shape
    assert np.isin(got.toarray(), rows).all()
    assert 0.5 * (rows != 0).sum() < got.nnz <= (rows != 0).sum()
