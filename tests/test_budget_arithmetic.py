"""The projections, number by number: what each stage's bytes are made of, at shapes that a hand can follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psutil
import pytest

from gpuclust.compute import gram, reductions
from gpuclust.configfile import validate
from gpuclust.errors import MemoryBudgetError
from gpuclust.extraction import extract_shard
from gpuclust.hardware import budget, device

MIB, GIB = 1 << 20, 1 << 30
ROOM = 10**15  # more than anything needs
WORKER, GPU_WORKER, CONTEXT = 1_800_000_000, 3_000_000_000, 800_000_000
N, F, K, D = 1000, 10_000, 4000, 64  # prompts, features, kept features, width of the hook
MODEL, SAE = 100_000_000, 2 * D * F * 4
SHAPES = budget.Shapes(N, F, K, D, MODEL, n_clusters=100, sae_bytes=D * F * 4 + 7)
BASE = WORKER + MODEL + SAE
ONE: dict[str, Any] = {"consensus": {"members": 1}, "cluster": {"method": "umap"}}
BLOCK = 512  # prompts of a block: a chunk
ROWS = BLOCK * (F * 2 * 2 + K * (2 + 8))  # a block: all features twice, the kept ones once more and in float64
EXTRA = K * K * (8 + 4 + 8) + 3 * 1024 * K * 8  # beside one tile: a product, its distances, keys


def peaks(settings: dict[str, Any], shapes: budget.Shapes = SHAPES, **more: Any) -> dict[str, int]:
    plan = budget.plan(validate(settings), shapes, ROOM, (), **more)
    return {stage.stage: stage.peak for stage in plan.stages}


def device_peaks(settings: dict[str, Any], shapes: budget.Shapes = SHAPES, allowed: int = ROOM) -> dict[str, int]:
    plan = budget.plan(validate(settings), shapes, ROOM, (), device_allowed=allowed)
    return {stage.stage: stage.device_peak or 0 for stage in plan.stages}


def test_constants_are_what_the_modules_hold_at_a_time() -> None:
    assert budget.SLABS == 6 * 8 * reductions.SLAB
    assert 3 * extract_shard.ENCODE_BYTES["cpu"] == budget.ENCODE
    assert 3 * extract_shard.ENCODE_BYTES["cuda"] == budget.DEVICE_ENCODE
    assert budget.BACK == 2 * extract_shard.BACK_BYTES
    assert budget.MOMENT_SLABS == 4 * extract_shard.SLICE_BYTES + 9 * 8 * reductions.DEVICE_SLAB
    assert budget.SUMS == 2 * 8 * gram.SUMS
    assert device.RESERVE == budget.CONTEXT == CONTEXT


@pytest.mark.parametrize(("dtype", "item"), [("float16", 2), ("float32", 4)])
def test_extract(dtype: str, item: int) -> None:
    settings = {"store": {"dtype": dtype, "shard_prompts": 300}, "extract": {"batch_tokens": 500, "top_examples": 7}}
    forward = 500 * D * 4 * 24
    shard = 300 * F * (4 + 4 + 2 * item)  # as it comes from the model, where it peaks, as stored, and packed
    examples = F * 7 * 16 * 2
    assert peaks(settings)["extract"] == (
        BASE + forward + 768 * MIB + 128 * MIB + 48 * MIB + shard + examples
    )  # fmt: skip
    few = replace(SHAPES, n_prompts=20)
    assert peaks(settings, few)["extract"] == peaks(settings)["extract"] - 280 * F * (4 + 4 + 2 * item)


def test_neighbors_of_one_tile() -> None:
    got = peaks(ONE)
    assert got["neighbors"] == BASE + ROWS + K * K * 8 + EXTRA
    assert peaks(ONE | {"neighbors": {"metric": "npmi"}}) == got  # counts are where products would be
    halves = peaks(ONE, replace(SHAPES, n_groups=2, n_views=3))
    assert halves["neighbors"] == BASE + ROWS + 2 * K * K * 8 + EXTRA + 3 * K * K * 8
    dense = peaks({"cluster": {"method": "distances"}}, replace(SHAPES, n_groups=2, n_views=3))
    assert dense["neighbors"] == halves["neighbors"] + K * K * (4 + 4 * 3)  # one tile, whole
    three = replace(SHAPES, n_kept=3 * budget.TILE, n_groups=2, n_views=3)  # of 3 by 3 tiles, 6 are made
    wide, without = (peaks(ONE | {"cluster": {"method": on}}, three)["neighbors"] for on in ("distances", "umap"))
    assert wide - without == (9 + 3 * 6) * budget.TILE**2 * 4


def test_neighbors_of_a_sketch() -> None:
    got = peaks(ONE | {"neighbors": {"method": "sketch", "sketch_size": 100}})
    assert got["neighbors"] == BASE + ROWS + K * 100 * 24 + EXTRA


def test_blocks_and_tiles_have_a_largest_size() -> None:
    many = budget.plan(validate({}), budget.Shapes(100_000, 20_000, 20_000), ROOM, ())
    assert (many.rows, many.tile, many.tiles_per_pass) == (2048, 4096, 15)  # of 5 by 5 tiles, those on one side
    few = budget.plan(validate({}), SHAPES, ROOM, ())
    assert (few.rows, few.tile, few.tiles_per_pass) == (BLOCK, K, 1)


def test_embed_and_cluster() -> None:
    settings = ONE | {"umap": {"n_components": 6, "n_neighbors": 11}, "hdbscan": {"min_samples": 4}}
    got = peaks(settings)
    assert got["embed"] == BASE + K * (24 * 11 + 2 * (120 * 11 + 80 * (6 + 10)))
    several = peaks(settings | {"consensus": {"members": 2, "candidates": 3}})
    assert several["embed"] == BASE + K * (24 * 33 + 2 * (120 * 11 + 80 * (6 + 10)))
    assert got["cluster"] == BASE + K * (300 + 24 * 11 + 16 * 6 + 30 * 4)
    assert peaks(settings | {"cluster": {"method": "distances"}})["cluster"] == got["cluster"]
    graph = {"n_neighbors": 10, "shared_neighbors": 7}
    found = peaks(settings | {"cluster": {"method": "communities"}, "communities": graph})["cluster"]
    assert found == got["cluster"] + K * (24 * 33 + 2 * 116 * 44)  # four times the neighbours; two graphs
    wider = peaks(settings | {"cluster": {"method": "communities"}, "communities": graph | {"n_neighbors": 60}})
    assert wider["cluster"] == found + K * 2 * 116 * (60 - 44)


def test_consensus() -> None:
    pairs = 40 * 4 * MIB
    assert budget.consensus(K, 5, 1000) == WORKER + 9 * 1000**2 + pairs + K * (30 * 5 + 600)
    near = {"neighbors": {"n_neighbors": 20}}
    several, one = (peaks(near | {"consensus": {"members": n}})["cluster"] for n in (5, 1))
    assert several - one == 9 * min(K, 12_000) ** 2 + pairs + K * (30 * 5 + 600)


@pytest.mark.parametrize(("dtype", "item"), [("float16", 2), ("float32", 4)])
def test_reduce(dtype: str, item: int) -> None:
    settings = {"store": {"dtype": dtype}, "extract": {"top_examples": 7}}
    blocks = BLOCK * F * (2 * item + 4)  # this one, the one before, and positions that are not known
    merged = F * (160 + 160 * 7)
    assert peaks(settings)["reduce"] == BASE + 48 * MIB + blocks + merged
    landing = F * item + F // 8
    pinned = 2 << (BLOCK * landing - 1).bit_length()
    on_gpu = peaks(settings, device_allowed=ROOM)
    assert on_gpu["reduce"] == GPU_WORKER + pinned + 512 * F * item + BLOCK * F * item + merged


def test_quality() -> None:
    clusters, sets = 6000, 6000 * 30
    shapes = replace(SHAPES, n_clusters=clusters)
    rows = BLOCK * (F * 2 * 2 + K * (2 + 24) + 16 * clusters + 16 * min(sets, 4096))
    cosines = 8 * clusters * (K + 3 * min(4096, K))
    drawn = 48 * 30 * K
    settings = ONE | {"quality": {"random_sets": 30, "null": False}}
    assert peaks(settings, shapes)["quality"] == BASE + rows + cosines + drawn
    settings["quality"]["null"] = True  # summed after the clusters themselves
    assert peaks(settings, shapes)["quality"] == BASE + rows + cosines + drawn
    on_gpu = peaks(settings, shapes, device_allowed=ROOM)
    assert on_gpu["quality"] == GPU_WORKER + rows + cosines + drawn


def test_quality_permutes_in_blocks_of_their_own() -> None:
    shapes = replace(SHAPES, n_clusters=1)
    settings = ONE | {"store": {"chunk_prompts": 100}, "quality": {"random_sets": 0}}
    config = validate(settings)
    plan = budget.plan(config, shapes, BASE + 8 * 100 * (F * 4 + K * 10), ())
    assert plan.rows == 100
    by_name = {stage.stage: stage.peak for stage in plan.stages}
    assert by_name["quality"] == by_name["neighbors"] + 412 * (F + 2 * K) * 2  # the rest of 512 rows
    without = validate(settings | {"quality": {"random_sets": 0, "null": False}})
    plan = budget.plan(without, shapes, BASE + 8 * 100 * (F * 4 + K * 10), ())
    assert plan.stages[5].peak == plan.stages[2].peak >= by_name["neighbors"]


@pytest.mark.parametrize("rows", ["prompt", "token"])
@pytest.mark.parametrize("gigabytes", [12, 14, 30, 60])
def test_tiles_leave_room_for_what_else_neighbours_hold(rows: str, gigabytes: int) -> None:
    config = validate({"extract": {"rows": rows}})
    many = budget.Shapes(20_000, 131_072, 131_072, 512, n_groups=2, n_views=3, n_clusters=1000, n_tokens=1_600_000)
    plan = budget.plan(config, many, gigabytes * 10**9, ("neighbors", "quality"))
    held = {stage.stage: stage.peak for stage in plan.stages}
    assert 0.9 * gigabytes * 10**9 < held["quality"] <= gigabytes * 10**9
    assert held["neighbors"] <= held["quality"]


def test_quality_is_at_least_its_clusterings() -> None:
    got = peaks({"hdbscan": {"min_samples": 100_000}}, replace(SHAPES, n_clusters=1))
    assert got["quality"] == got["cluster"] > got["neighbors"]


def test_analyse() -> None:
    settings = ONE | {"extract": {"top_examples": 7}, "analyse": {"promoted_tokens": 0}}
    examples = F * 7 * 320
    assert peaks(settings)["analyse"] == BASE + ROWS + 100 * 8 * (6 * N + 8 * 100) + examples + SAE
    many = replace(SHAPES, n_prompts=10_000)
    assert peaks(settings, many)["analyse"] == (
        peaks(settings)["analyse"] + 100 * 8 * 6 * (4096 - N) + (many_rows(many) - BLOCK) * (ROWS // BLOCK)
    )
    settings["analyse"]["promoted_tokens"] = 1
    whole = replace(SHAPES, whole_bytes=3 * MODEL)
    assert peaks(settings, whole)["analyse"] - peaks(settings)["analyse"] == 3 * (3 * MODEL - MODEL) // 2
    unknown = replace(SHAPES, n_clusters=0)  # as many as their smallest size allows
    tables = K // 10 * 8 * (6 * N + 8 * (K // 10)) - 100 * 8 * (6 * N + 8 * 100)
    assert peaks(settings, unknown)["analyse"] - peaks(settings)["analyse"] == tables


def many_rows(shapes: budget.Shapes) -> int:
    return budget.plan(validate(ONE), shapes, ROOM, ()).rows


def test_budget_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    class Free:
        available = 50 * 10**9

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Free)
    assert budget.budget(validate({})) == 30 * 10**9
    assert budget.budget(validate({}), n_workers=3) == 10 * 10**9
    limited = validate({"device": {"memory": "6GB"}})
    assert budget.budget(limited, n_workers=3) == 6 * 10**9
    assert budget.budget(limited, n_workers=3, device="cuda") == 10 * 10**9


def test_what_just_fits_is_allowed() -> None:
    config = validate(ONE)
    needed = peaks(ONE)["extract"]
    budget.plan(config, SHAPES, needed, ("extract",))
    with pytest.raises(MemoryBudgetError, match="stage extract needs"):
        budget.plan(config, SHAPES, needed - 1, ("extract",))
    for stage in ("extract", "embed", "cluster"):
        just = device_peaks(ONE)[stage]
        budget.plan(config, SHAPES, ROOM, (stage,), device_allowed=just)
        with pytest.raises(MemoryBudgetError, match=f"stage {stage} needs .* of GPU memory"):
            budget.plan(config, SHAPES, ROOM, (stage,), device_allowed=just - 1)


# ---------------------------------------------------------------- GPU workers


def test_extract_on_a_gpu() -> None:
    settings = {"extract": {"batch_tokens": 500}}
    weights = MODEL + D * F * 4 + 7
    moments = 512 * MIB + 288 * MIB
    assert device_peaks(settings)["extract"] == CONTEXT + weights + moments
    wide = {"extract": {"batch_tokens": 1_000_000}, "model": {"dtype": "float16"}}
    encode = 1_000_000 * D * 2 * 24 + 384 * MIB + 256 * MIB
    assert device_peaks(wide)["extract"] == CONTEXT + weights + encode


def test_reduce_and_neighbors_on_a_gpu() -> None:
    landing = F * 2 + F // 8
    per_row = 2 * landing + 2 * F * 2 + 2 * K * 2
    got = device_peaks(ONE)
    assert got["reduce"] == CONTEXT + BLOCK * per_row + 512 * MIB + 288 * MIB
    extra = K * K * 8 + 256 * K * 8 * 6 + 1024 * K * 36 + 64 * MIB
    assert got["neighbors"] == CONTEXT + BLOCK * per_row + K * K * 4 + extra
    three = device_peaks(ONE, replace(SHAPES, n_groups=2))
    assert three["neighbors"] == got["neighbors"] + BLOCK * K * 2 + K * K * 4 + 3 * K * K * 4
    assert device_peaks(ONE | {"neighbors": {"method": "sketch"}})["neighbors"] == CONTEXT
    for metric in ("jaccard", "phi"):  # when the kept features are active, in float16
        counted = device_peaks(ONE | {"neighbors": {"metric": metric}})
        assert counted["neighbors"] == got["neighbors"] + BLOCK * K * 2


def test_embed_and_cluster_on_a_gpu() -> None:
    settings = ONE | {"umap": {"n_components": 6, "n_neighbors": 11}, "hdbscan": {"min_samples": 4}}
    got = device_peaks(settings)
    assert got["embed"] == CONTEXT + 300_000_000 + K * (96 * 11 + 16 * 6)
    assert got["cluster"] == CONTEXT + 1_000_000_000 + K * (8 * 6 + 36 * 4 + 300)
    assert got["quality"] == max(got[stage] for stage in ("neighbors", "embed", "cluster"))
    assert device_peaks(settings | {"cluster": {"method": "communities"}})["cluster"] == got["cluster"]  # on the host


def test_hosts_of_gpu_workers() -> None:
    settings = ONE | {"store": {"shard_prompts": 300, "chunk_prompts": 100}, "extract": {"top_examples": 7}}
    got = peaks(settings, device_allowed=ROOM)
    shard, examples = 300 * F, F * 7 * 16 * 2
    assert got["extract"] == GPU_WORKER + MODEL + SAE + shard * 12 + 512 * MIB + examples
    pinned = 2 * 32 * MIB  # 1000 rows of 21,250 bytes, rounded up to a power of two, twice
    blocks = pinned + shard * 2 + 1000 * F * 2
    assert got["neighbors"] == GPU_WORKER + blocks + 4 * K * K * 8
    dense = peaks(settings | {"cluster": {"method": "distances"}}, device_allowed=ROOM)
    assert dense["neighbors"] == got["neighbors"] + K * K * (4 + 4)


@pytest.mark.parametrize(("rows", "quality"), [("token", {"null": True}), ("window", {"null": False})])
def test_tokens_take_what_fires_on_them(rows: str, quality: dict[str, bool]) -> None:
    settings = ONE | {"store": {"shard_prompts": 300}, "quality": quality}
    tokens = settings | {"extract": {"rows": rows}, "max_tokens": 90}
    plain = peaks(settings | {"neighbors": {"metric": "correlation"}})
    each = 64  # features that fire on a token, at least
    block = 60 << 22
    for n_tokens, length in ((0, 90), (30 * N, 30)):
        shard, mixed = 300 * length * each, min(512, N) * length * each if quality["null"] else 0
        more = {name: size - plain[name] for name, size in peaks(tokens, replace(SHAPES, n_tokens=n_tokens)).items()}
        assert more["extract"] == 64 * shard
        assert more["neighbors"] == 24 * shard + block
        assert more["quality"] == 24 * shard + block + 90 * mixed
        assert more["analyse"] == (24 + 80) * shard
        assert more["reduce"] == more["embed"] == 0
    wide = replace(SHAPES, n_features=100_000)
    assert peaks(tokens, wide)["neighbors"] - peaks(settings, wide)["neighbors"] == 24 * 300 * 90 * 500 + block
    assert device_peaks(tokens) == device_peaks(settings | {"neighbors": {"metric": "correlation"}})
    on_gpu, plain = (
        peaks(one, device_allowed=ROOM) for one in (tokens, settings | {"neighbors": {"metric": "correlation"}})
    )
    assert on_gpu["extract"] - plain["extract"] == 64 * 300 * 90 * each


def test_an_index_has_the_room_that_process_and_weights_leave() -> None:
    assert budget.plan(validate({}), SHAPES, BASE + 12345, ()).room == 12345
    assert budget.plan(validate({}), SHAPES, BASE - 1, ()).room == 0
    assert budget.plan(validate({}), SHAPES, ROOM, (), device_allowed=ROOM).room == 0
