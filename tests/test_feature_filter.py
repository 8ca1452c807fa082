from __future__ import annotations

import numpy as np
import pytest

from gpuclust.compute.feature_filter import select
from gpuclust.compute.reductions import MOMENTS
from gpuclust.config_sections import SelectConfig
from gpuclust.errors import SelectionError
from tests import reference
from tests.strategies import sae_like

CONFIG = SelectConfig(entropy_low=2.0, entropy_high=5.0, sparsity_min=0.05, sparsity_max=0.5, min_active_prompts=3)


def test_filter_and_quadrants_equal_the_notebooks() -> None:
    data = sae_like(400, 300, 0.15)
    data[:, 5] = 0
    data[2:, 6] = 0
    table, removed = select(MOMENTS.finalize(MOMENTS.chunk(data, 0.005)), CONFIG, needed=3)
    expected = reference.notebook_statistics(data, 0.005)
    kept = reference.notebook_filter(expected, 2.0, 5.0, 0.05, 0.5, 3)
    assert 10 < kept.sum() < 300
    np.testing.assert_array_equal(table["kept"], kept)
    assert removed["kept"] == kept.sum()
    assert removed["n_active >= 3"] == (expected["n_active"] < 3).sum()
    names = reference.notebook_quadrants(expected["entropy"][kept], expected["varentropy"][kept])
    assert table.loc[table["kept"], "quadrant"].tolist() == names
    assert table.loc[~table["kept"], "quadrant"].isna().all()


def test_bounds_are_strict() -> None:
    statistics = MOMENTS.finalize(MOMENTS.chunk(np.eye(4, dtype=np.float16) + 1))
    limits = SelectConfig(sparsity_min=0.0, sparsity_max=1.0, entropy_high=99)
    with pytest.raises(SelectionError, match="keeps 0 of 4"):
        select(statistics, limits, needed=2)


def test_refusal_says_what_each_threshold_removes() -> None:
    statistics = MOMENTS.finalize(MOMENTS.chunk(sae_like(100, 20)))
    with pytest.raises(
        SelectionError, match=r"keeps 0 of 20 features; .* need at least 16.*entropy > 14 removes 20.*Widen"
    ):
        select(statistics, SelectConfig(entropy_low=14), needed=16)
