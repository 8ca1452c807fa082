from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuclust import memory
from gpuclust.config import validate
from gpuclust.errors import MemoryBudgetError

GB = 10**9


@given(
    st.integers(1, 1_000_000),
    st.sampled_from([2048, 32_768, 131_072]),
    st.floats(0.05, 1),
    st.sampled_from([4, 6, 24, 80]),
)
def test_neighbours_fit_the_budget_whatever_the_shape(prompts: int, features: int, share: float, allowed: int) -> None:
    kept = max(16, int(features * share))
    config = validate({"umap": {"n_components": 10}})
    plan = memory.plan(config, memory.Shapes(prompts, features, kept, 512), allowed * GB, only="neighbors")
    stage = next(stage for stage in plan.stages if stage.stage == "neighbors")
    assert stage.peak <= allowed * GB
    blocks = -(-kept // plan.tile)
    assert stage.passes * plan.tiles_per_pass >= blocks * (blocks + 1) // 2
    assert 1 <= plan.rows <= memory.MAX_ROWS


def test_less_memory_means_more_passes_and_no_fewer_bytes() -> None:
    config = validate({})
    shapes = memory.Shapes(100_000, 131_072, 131_072, 512)
    few, many = (memory.plan(config, shapes, allowed * GB, only="neighbors") for allowed in (80, 6))
    passes = [next(s for s in plan.stages if s.stage == "neighbors").passes for plan in (few, many)]
    assert passes[0] < passes[1]


def test_refusal_names_stage_numbers_and_setting() -> None:
    with pytest.raises(
        MemoryBudgetError,
        match=r"stage extract needs \d+\.\d\d GB .*device.memory allows 2.00 GB. Raise device.memory, or",
    ):
        memory.plan(validate({}), memory.Shapes(1000, 131_072, 131_072, 4096), 2 * GB, only="extract")


def test_without_umap_all_distances_must_fit() -> None:
    config = validate({"umap": {"enabled": False}})
    with pytest.raises(MemoryBudgetError, match="stage neighbors needs"):
        memory.plan(config, memory.Shapes(1000, 131_072, 131_072, 512), 24 * GB)


def test_default_budget_is_a_share_of_what_is_free() -> None:
    assert 10**8 < memory.budget(validate({})) < 10**13
    assert memory.budget(validate({"device": {"memory": "6GB"}})) == 6 * GB
