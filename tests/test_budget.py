from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuclust.configfile import validate
from gpuclust.errors import MemoryBudgetError
from gpuclust.hardware import budget

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
    plan = budget.plan(config, budget.Shapes(prompts, features, kept, 512), allowed * GB, held=("neighbors",))
    stage = next(stage for stage in plan.stages if stage.stage == "neighbors")
    assert stage.peak <= allowed * GB
    blocks = -(-kept // plan.tile)
    assert stage.passes * plan.tiles_per_pass >= blocks * (blocks + 1) // 2
    assert 1 <= plan.rows <= budget.MAX_ROWS


def test_less_memory_means_more_passes_and_no_fewer_bytes() -> None:
    config = validate({})
    shapes = budget.Shapes(100_000, 131_072, 131_072, 512)
    few, many = (budget.plan(config, shapes, allowed * GB, held=("neighbors",)) for allowed in (80, 6))
    passes = [next(s for s in plan.stages if s.stage == "neighbors").passes for plan in (few, many)]
    assert passes[0] < passes[1]


def test_refusal_names_stage_numbers_and_setting() -> None:
    with pytest.raises(
        MemoryBudgetError,
        match=r"stage extract needs \d+\.\d\d GB .*device.memory allows 2.00 GB. Raise device.memory, or",
    ):
        budget.plan(validate({}), budget.Shapes(1000, 131_072, 131_072, 4096), 2 * GB, held=("extract",))


def test_without_umap_all_distances_must_fit() -> None:
    config = validate({"cluster": {"method": "distances"}})
    with pytest.raises(MemoryBudgetError, match="stage neighbors needs"):
        budget.plan(config, budget.Shapes(1000, 131_072, 131_072, 512), 24 * GB)


def test_clusters_are_held_to_the_budget_once_their_number_is_known() -> None:
    shapes = budget.Shapes(100_000, 131_072, 131_072, 512)
    with pytest.raises(MemoryBudgetError, match=r"stage quality needs .*hdbscan.min_cluster_size"):
        budget.plan(validate({}), shapes, 14 * GB)
    budget.plan(validate({}), shapes, 14 * GB, budget.TO_CLUSTERS)
    budget.plan(validate({}), replace(shapes, n_clusters=2000), 14 * GB)
    with pytest.raises(MemoryBudgetError, match="stage quality needs"):
        budget.plan(validate({}), replace(shapes, n_clusters=12_000), 14 * GB)


def test_analyse_counts_the_language_model_that_promoted_tokens_need() -> None:
    shapes = budget.Shapes(1000, 2048, 2048, 64, 10**8, whole_bytes=2 * GB)
    peaks = [
        budget.plan(validate({"analyse": {"promoted_tokens": n}}), shapes, 24 * GB).stages[-1].peak for n in (0, 10)
    ]
    assert peaks[1] - peaks[0] == 3 * GB


def test_default_budget_is_a_share_of_what_is_free() -> None:
    assert 10**8 < budget.budget(validate({})) < 10**13
    assert budget.budget(validate({"device": {"memory": "6GB"}})) == 6 * GB


# ---------------------------------------------------------------- GPU workers


@given(
    st.integers(1, 1_000_000),
    st.sampled_from([2048, 32_768, 131_072]),
    st.floats(0.05, 1),
    st.sampled_from([4, 6, 12, 24, 80]),
    st.sampled_from(["float16", "float32"]),
)
def test_neighbours_fit_the_gpu_whatever_the_shape(
    prompts: int, features: int, share: float, allowed: int, dtype: str
) -> None:
    kept = max(16, int(features * share))
    config = validate({"store": {"dtype": dtype}})
    shapes = budget.Shapes(prompts, features, kept, 512)
    plan = budget.plan(config, shapes, 10**15, held=("neighbors",), device_allowed=allowed * GB)
    stage = next(stage for stage in plan.stages if stage.stage == "neighbors")
    assert stage.device_peak is not None
    assert stage.device_peak <= allowed * GB
    blocks = -(-kept // plan.tile)
    tiles = blocks * (blocks + 1) // 2
    assert stage.passes * plan.tiles_per_pass >= tiles
    assert (stage.passes - 1) * plan.tiles_per_pass < tiles
    assert stage.bytes == stage.passes * prompts * features * (2 if dtype == "float16" else 4)
    held = plan.tiles_per_pass * plan.tile**2 * 4
    assert held + plan.rows * features <= stage.device_peak


def test_a_gpus_tiles_fill_what_is_free() -> None:
    shapes = budget.Shapes(1_000_000, 131_072, 131_072, 4096)
    passes = []
    for allowed in (6, 12, 24, 80):
        plan = budget.plan(validate({}), shapes, 10**15, held=("neighbors",), device_allowed=allowed * GB)
        (stage,) = (stage for stage in plan.stages if stage.stage == "neighbors")
        passes.append(stage.passes)
        if stage.passes > 1:
            assert stage.device_peak is not None
            assert stage.device_peak + 4 * plan.tile**2 > allowed * GB
    assert passes == sorted(passes, reverse=True)
    assert passes[0] > 4 > passes[-1] == 1


def test_the_notebooks_case_fits_a_6_gb_gpu_in_one_pass() -> None:
    shapes = budget.Shapes(1000, 32_768, 32_768, 512, 150_000_000)
    plan = budget.plan(validate({}), shapes, 10**15, device_allowed=6 * GB)
    assert max(stage.device_peak or 0 for stage in plan.stages) < 6 * GB
    assert next(stage for stage in plan.stages if stage.stage == "neighbors").passes == 1


def test_a_gpu_without_room_for_the_weights_is_refused_with_the_numbers() -> None:
    shapes = budget.Shapes(100_000, 131_072, 131_072, 4096, 8_000_000_000)
    with pytest.raises(
        MemoryBudgetError,
        match=r"stage extract needs 1\d.\d\d GB of GPU memory \(0.80 GB .* 8.00 GB for the language model .* 2.15 "
        r"GB for the SAE\), but device.memory allows 6.00 GB. Raise device.memory, or change the model's layer \(sae\)",
    ):
        budget.plan(validate({}), shapes, 10**15, held=("extract",), device_allowed=6 * GB)


def test_a_gpu_workers_host_memory_is_held_to_what_is_free() -> None:
    config = validate({"cluster": {"method": "distances"}, "device": {"memory": "6GB"}})
    assert budget.budget(config, device="cuda") != 6 * GB
    with pytest.raises(MemoryBudgetError, match=r"stage neighbors needs .* of host memory, but 32.00 GB a worker may"):
        budget.plan(config, budget.Shapes(1000, 131_072, 131_072, 512), 32 * GB, device_allowed=6 * GB)


def test_groups_of_prompts_take_their_tiles_on_a_gpu() -> None:
    config = validate({})
    one, ten = (
        budget.plan(config, budget.Shapes(1000, 32_768, 32_768, 512, n_groups=n), 10**15, ("neighbors",), 6 * GB)
        for n in (1, 10)
    )
    assert one.tiles_per_pass * one.tile**2 > 5 * ten.tiles_per_pass * ten.tile**2
