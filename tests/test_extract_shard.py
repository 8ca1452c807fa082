"""Aggregation over tokens, on a stand-in for model and SAE whose activations are given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpuclust.configfile import validate
from gpuclust.errors import ActivationError
from gpuclust.extraction import extract_shard
from gpuclust.storage import store


class Given:
    """An encoder that returns the activations it was made with, whatever the tokens."""

    def __init__(self, activations: np.ndarray) -> None:
        self.activations = torch.from_numpy(np.asarray(activations, np.float32))
        self.d_sae, self.device = activations.shape[1], "cpu"
        self.tokenizer = SimpleNamespace(bos_token_id=None, pad_token_id=0, all_special_ids=[])

    def residual(self, ids: Any, mask: Any) -> Any:
        return self.activations[None, : ids.shape[1]].expand(len(ids), -1, -1)

    def features(self, residual: Any) -> Any:
        return residual


def aggregate(activations: np.ndarray, how: str, step: int) -> tuple[np.ndarray, np.ndarray]:
    config = validate({"extract": {"aggregate": how}})
    acts = torch.from_numpy(activations)
    value, at = extract_shard._aggregate(Given(activations), acts, step, config)
    return value.numpy(), at.numpy()


@given(st.data())
def test_signed_features_keep_the_value_at_their_peak(data: st.DataObject) -> None:
    n_tokens, n_features = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    values = st.integers(-4, 4)
    rows = st.lists(st.lists(values, min_size=n_features, max_size=n_features), min_size=n_tokens, max_size=n_tokens)
    activations = np.array(data.draw(rows), np.float32)
    step = data.draw(st.integers(1, 10))
    peak = np.abs(activations).argmax(axis=0)
    value, at = aggregate(activations, "max", step)
    np.testing.assert_array_equal(at, peak)
    np.testing.assert_array_equal(value, activations[peak, np.arange(n_features)])
    for how, expected in (("mean", activations.mean(0)), ("sum", activations.sum(0)), ("last", activations[-1])):
        value, at = aggregate(activations, how, step)
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(at, peak)


@pytest.mark.parametrize("peak", [35_000, 66_000])
def test_a_peak_far_into_a_prompt_is_where_it_is(peak: int) -> None:
    activations = np.zeros((70_000, 2), np.float32)
    activations[peak] = 1
    got, positions = extract_shard.aggregate_prompts(Given(activations), [np.arange(70_000)], validate({}))
    assert got.tolist() == [[1, 1]]
    assert positions.tolist() == [[peak, peak]]


def test_values_too_small_for_float16_are_counted_and_said() -> None:
    from gpuclust.engine.tasks import _doubts

    small = np.array([[3e-8, 1e-9, 0.0, 1.0]], np.float32)
    stored = store.to_stored(small, "float16", "here")
    assert np.count_nonzero(stored) == 2
    (warning,) = _doubts(2, "max", negative=0, underflowed=1)
    assert "1 activations that are not zero (33.33%) are too small for store.dtype=float16" in warning
    assert store.underflow(1, 2, "float16") == [warning]  # an imported cache says the same
    assert store.underflow(0, 0, "float16") == _doubts(2, "max", negative=5, underflowed=0) == []
    assert "may cancel" in _doubts(9, "mean", negative=5, underflowed=0)[0]
    with pytest.raises(ActivationError, match="does not fit float16"):
        store.to_stored(small * 1e6, "float16", "here")
