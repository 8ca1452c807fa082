"""Hypothesis strategies: activations that look like an SAE's, and ways to cut them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

Array = np.ndarray[Any, Any]


@st.composite
def activations(draw: st.DrawFn, max_prompts: int = 40, max_features: int = 12, signed: bool = False) -> Array:
    """(prompt, feature), float16 or float32: many zeros, some dead features, some duplicates."""
    shape = (draw(st.integers(1, max_prompts)), draw(st.integers(1, max_features)))
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    values = draw(
        hnp.arrays(
            np.float32,
            shape,
            elements=st.one_of(st.just(0.0), st.floats(-8 if signed else 2**-7, 64, width=32, allow_subnormal=False)),
            fill=st.just(0.0),
        )
    )
    return values.astype(dtype)


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[slice]:
    """Slices that cover range(length), in any order."""
    inner = draw(st.lists(st.integers(1, max(length - 1, 1)), unique=True, max_size=6)) if length > 1 else []
    edges = [0, *sorted(inner), length]
    pieces = [slice(a, b) for a, b in pairwise(edges) if b > a]
    return list(draw(st.permutations(pieces)))


def sae_like(n_prompts: int, n_features: int, density: float = 0.2, seed: int = 0) -> Array:
    """Activations in float16 with groups of features that fire together, none dead, no ties."""
    rng = np.random.default_rng(seed)
    topics = rng.random((n_prompts, 8)) < 0.25
    member = rng.integers(0, 8, n_features)
    fires = rng.random((n_prompts, n_features)) < np.where(topics[:, member], 3 * density, density / 3)
    fires[rng.integers(0, n_prompts, n_features), np.arange(n_features)] = True
    return np.where(fires, rng.gamma(2.0, 1.0, fires.shape) + 0.05, 0).astype(np.float16)
