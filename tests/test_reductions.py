from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuclust.compute.reductions import EXAMPLES, MOMENTS
from tests import reference
from tests.strategies import activations, cuts, sae_like


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_statistics_equal_the_notebooks(dtype: type) -> None:
    data = sae_like(700, 60).astype(dtype)
    got = MOMENTS.finalize(MOMENTS.chunk(data, 0.005))
    expected = reference.notebook_statistics(data, 0.005)
    for name, values in expected.items():
        np.testing.assert_allclose(
            got[name], values, rtol=1e-6, atol=1e-6 if name == "entropy" else 1e-12, err_msg=name
        )
    np.testing.assert_array_equal(got["n_active"], expected["n_active"])


def test_dead_feature_has_no_entropy() -> None:
    got = MOMENTS.finalize(MOMENTS.chunk(np.zeros((5, 2), np.float16)))
    assert all((got[name] == 0).all() for name in got)


def test_uniform_feature_has_the_entropy_of_its_prompts() -> None:
    got = MOMENTS.finalize(MOMENTS.chunk(np.ones((50, 1), np.float32)))
    np.testing.assert_allclose(got["entropy"], np.log(50))
    np.testing.assert_allclose(got["varentropy"], 0, atol=1e-15)


def test_one_dominant_activation_keeps_its_digits() -> None:
    data = np.full((4000, 1), 1e-3, np.float32)
    data[7] = 6e4
    got = MOMENTS.finalize(MOMENTS.chunk(data))
    p = data[:, 0].astype(np.longdouble) / data.astype(np.longdouble).sum()  # without the notebook's guards
    np.testing.assert_allclose(got["entropy"], float(-(p * np.log(p)).sum()), rtol=1e-10)


@given(st.data(), activations())
def test_moments_do_not_depend_on_the_cuts(data: st.DataObject, values: np.ndarray) -> None:
    pieces = data.draw(cuts(len(values)))
    whole = MOMENTS.finalize(MOMENTS.chunk(values, 0.5))
    parts = MOMENTS.finalize(MOMENTS.merge(MOMENTS.chunk(values[piece], 0.5) for piece in pieces))
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_state_fields_are_as_declared() -> None:
    state = MOMENTS.chunk(sae_like(10, 3))
    assert {name: str(array.dtype) for name, array in state.items()} == dict(MOMENTS.fields)


@given(st.data(), activations(signed=True), st.integers(1, 5))
def test_examples_are_the_strongest_prompts_however_cut(data: st.DataObject, values: np.ndarray, k: int) -> None:
    positions = np.arange(values.size, dtype=np.int32).reshape(values.shape)
    pieces = data.draw(cuts(len(values)))
    merged = EXAMPLES.merge(EXAMPLES.chunk(values[p], positions[p], p.start, k) for p in pieces)
    assert {name: str(array.dtype) for name, array in merged.items()} == dict(EXAMPLES.fields)
    for feature in range(values.shape[1]):
        column = values[:, feature].astype(np.float32)
        order = [p for p in np.lexsort((np.arange(len(column)), -np.abs(column))) if column[p] != 0][:k]
        n = len(order)
        np.testing.assert_array_equal(merged["prompt"][feature, :n], order)
        np.testing.assert_array_equal(merged["value"][feature, :n], column[order])
        np.testing.assert_array_equal(merged["position"][feature, :n], positions[order, feature])
        assert (merged["prompt"][feature, n:] == -1).all()


def test_examples_table_leaves_empty_places_out() -> None:
    table = EXAMPLES.finalize(EXAMPLES.chunk(np.array([[0, 2], [0, 3]], np.float16), np.zeros((2, 2), np.int32), 10, 3))
    assert table["feature"].tolist() == [1, 1]
    assert table["prompt"].tolist() == [11, 10]


def test_merging_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no states"):
        MOMENTS.merge([])
