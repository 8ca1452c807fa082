"""Subsets of prompts and the atoms that add up to them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuclust.compute.halves import half_of
from gpuclust.errors import SelectionError
from gpuclust.sweep.subsets import Subset, group_prompts, layers, refuse_small

PROMPTS = pd.DataFrame(
    {"source": [f"{17 + i % 3}{i}-x" for i in range(100)], "n_tokens": [(i * 7) % 40 for i in range(100)]}
)
PATTERN = r"^(\d\d)"
GROUPS = [(None, None), ("17", None), ("18", None), (None, (0, 19)), (None, (10, 30)), ("19", (20, 39))]


@given(st.lists(st.tuples(st.sampled_from(GROUPS), st.integers(1, 100)), min_size=1, max_size=8))
def test_atoms_add_up_to_halves(wanted: list[tuple[tuple[str | None, tuple[int, int] | None], int]]) -> None:
    subsets = {
        Subset(source, length, min(n, len(group_prompts(PROMPTS, PATTERN, source, length))))
        for (source, length), n in wanted
    }
    made = layers(subsets, PROMPTS, PATTERN, seed=3)
    assert sum(len(layer.atoms) for layer in made) == len(subsets)
    for layer in made:
        assert layer.codes.max() < layer.n_atoms
        for subset, halves in layer.atoms.items():
            members = group_prompts(PROMPTS, PATTERN, *subset.group)[: subset.n]
            own = half_of(len(members), seed=3)
            for half, atoms in enumerate(halves):
                assert np.flatnonzero(np.isin(layer.codes, atoms)).tolist() == members[own == half].tolist()


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 10**6))
def test_halves_are_equal_nested_and_blind_to_what_alternates(n: int, fewer: int, seed: int) -> None:
    halves = half_of(n, seed)
    assert abs(int((halves == 0).sum()) - int((halves == 1).sum())) == n % 2
    np.testing.assert_array_equal(half_of(min(n, fewer), seed), halves[: min(n, fewer)])


def test_halves_depend_on_the_seed_and_mix_what_alternates() -> None:
    assert not np.array_equal(half_of(200, 0), half_of(200, 1))
    for half in (0, 1):
        assert 350 < (np.flatnonzero(half_of(2000, 0) == half) % 2).sum() < 650


def test_groups_without_common_prompts_share_a_layer() -> None:
    apart = [Subset("17", None, 30), Subset("18", None, 30), Subset("19", None, 30)]
    assert len(layers(apart, PROMPTS, PATTERN, seed=0)) == 1
    assert len(layers([*apart, Subset(None, None, 50), Subset(None, None, 100)], PROMPTS, PATTERN, seed=0)) == 2


def test_a_small_group_is_refused_with_what_there_is() -> None:
    with pytest.raises(SelectionError, match=r"only 0 prompts.*source 16.*finds 17 \(34\)"):
        refuse_small(0, Subset("16", None, 0), PROMPTS, PATTERN)
    with pytest.raises(SelectionError, match="0 to 39 tokens"):
        refuse_small(3, Subset(None, (50, 60), 3), PROMPTS, PATTERN)
    refuse_small(20, Subset(None, None, 20), PROMPTS, PATTERN)
