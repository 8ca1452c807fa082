"""Projected peak bytes of every stage: pure arithmetic on shapes, no array library.

A figure is what a worker process needs at once, the process itself included. Stages are planned to fit the budget:
block rows, Gram tiles and passes follow from it; what cannot fit is refused before anything runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuclust.config import Config, parse_bytes
from gpuclust.errors import MemoryBudgetError

PROCESS = 1_800_000_000  # a worker with its libraries imported, and what malloc keeps
SLABS = 6 * 8 * (1 << 20)  # float64 slabs of the moments
ENCODE = 3 * (256 << 20)  # float32 SAE activations of a slice of tokens and their temporaries
TILE = 4096
MAX_ROWS = 2048
RESERVE = 0.6  # share of the free memory that is used when no budget is set


@dataclass(frozen=True)
class Shapes:
    """What a projection depends on. `model_bytes` counts the weights in memory; 0 where they are not known yet.

    `n_groups` and `n_views` count the groups of prompts that have a Gram of their own, and the sums of them that
    neighbours are wanted for.
    """

    n_prompts: int
    n_features: int
    n_kept: int
    d_in: int = 0
    model_bytes: int = 0
    n_groups: int = 1
    n_views: int = 1


@dataclass(frozen=True)
class StagePlan:
    """One line of the plan: bytes are of reading and writing the store, peak is of a worker."""

    stage: str
    passes: int
    bytes: int
    peak: int
    setting: str


@dataclass(frozen=True)
class Plan:
    """The plan of a run within a budget.

    Attributes
    ----------
    rows : int
        Prompts of a block read at a time.
    tile, tiles_per_pass : int
        Features of a Gram tile, and tiles held at a time.
    """

    budget: int
    rows: int
    tile: int
    tiles_per_pass: int
    stages: tuple[StagePlan, ...]


def budget(config: Config, n_workers: int = 1) -> int:
    """Return the bytes a worker may use: ``device.memory``, or its part of a share of what is free on this machine."""
    if config.device.memory is not None:
        return parse_bytes(config.device.memory)
    import psutil

    return int(psutil.virtual_memory().available * RESERVE / n_workers)


def plan(config: Config, shapes: Shapes, allowed: int, only: str | None = None) -> Plan:
    """Project every stage and refuse what cannot fit; with `only`, hold just that stage to the budget.

    Raises
    ------
    MemoryBudgetError
        Names the stage that needs most, the projected and the allowed bytes, and the setting to change.
    """
    item = 2 if config.store.dtype == "float16" else 4
    store = shapes.n_prompts * shapes.n_features * item
    base = PROCESS + _weights(shapes)  # the encoder stays loaded
    room = max(allowed - base, 0)
    per_row = shapes.n_features * item * 2 + shapes.n_kept * (item + 8)
    rows = max(1, min(MAX_ROWS, shapes.n_prompts, room // 8 // max(per_row, 1)))
    if rows > config.store.chunk_prompts:
        rows -= rows % config.store.chunk_prompts
    tile = min(TILE, max(shapes.n_kept, 1))
    extra = _gram_extra(tile, shapes)
    while tile > 256 and extra + shapes.n_groups * tile * tile * 8 > room // 2:
        tile //= 2
        extra = _gram_extra(tile, shapes)
    blocks = -(-shapes.n_kept // tile)
    n_tiles = blocks * (blocks + 1) // 2
    tile_bytes = shapes.n_groups * tile * tile * 8
    per_pass = max(1, min(n_tiles, (room - extra - rows * per_row) // tile_bytes))
    passes = -(-n_tiles // per_pass)
    stages = [
        StagePlan("extract", 1, store, _extract(config, shapes, item), "store.shard_prompts or extract.batch_tokens"),
        StagePlan("reduce", 0, 0, base + SLABS + 20 * shapes.n_features * 8, "store.shard_prompts"),
    ]
    if config.neighbors.method == "sketch":
        peak = base + rows * per_row + shapes.n_kept * config.neighbors.sketch_size * 24
        stages.append(StagePlan("neighbors", 1, store, peak + extra, "neighbors.sketch_size"))
    else:
        peak = base + rows * per_row + per_pass * tile_bytes + extra
        if not config.umap.enabled:
            peak += shapes.n_kept**2 * (
                4 + 2 * shapes.n_views
            )  # a matrix of distances, and the tiles they are made from
        stages.append(StagePlan("neighbors", passes, passes * store, peak, "device.memory or select.*"))
    if config.umap.enabled:
        dims = max(config.umap.n_components, 2)
        graph = shapes.n_kept * config.n_neighbors * 2 * 48
        points = shapes.n_kept * dims * 8
        stages.append(StagePlan("embed", 0, 0, base + graph + 12 * points, "umap.n_components or select.*"))
        stages.append(
            StagePlan("cluster", 0, 0, base + 6 * points + shapes.n_kept * 400, "umap.n_components or select.*")
        )
    else:
        stages.append(StagePlan("cluster", 0, 0, base + shapes.n_kept * 400, "select.*"))
    clusters = max(1, shapes.n_kept // config.hdbscan.min_cluster_size)
    examples = shapes.n_features * config.extract.top_examples * 8 * 7
    analyse = base + rows * per_row + 4 * clusters * 8 * (shapes.n_prompts + shapes.n_kept)
    analyse += _weights(shapes) + examples  # SAE and unembedding are loaded once more
    stages.append(StagePlan("analyse", 1, store, analyse, "hdbscan.min_cluster_size or n_prompts"))
    result = Plan(allowed, rows, tile, per_pass, tuple(stages))
    worst = max((s for s in stages if only in (None, s.stage)), key=lambda stage: stage.peak)
    if worst.peak > allowed:
        raise MemoryBudgetError(
            f"stage {worst.stage} needs {gigabytes(worst.peak)} ({gigabytes(base)} of them for the process and its "
            f"weights), but device.memory allows {gigabytes(allowed)}. Raise device.memory, or change {worst.setting}"
        )
    return result


def _extract(config: Config, shapes: Shapes, item: int) -> int:
    shard = min(config.store.shard_prompts, shapes.n_prompts) * shapes.n_features
    forward = config.extract.batch_tokens * shapes.d_in * 4 * 24
    examples = shapes.n_features * config.extract.top_examples * 14 * 2
    return PROCESS + _weights(shapes) + forward + ENCODE + SLABS + shard * (4 + 2 + 2 * item) + examples


def _weights(shapes: Shapes) -> int:
    return shapes.model_bytes + 2 * shapes.d_in * shapes.n_features * 4


def _gram_extra(tile: int, shapes: Shapes) -> int:
    """A product, a tile of distances, and packed keys of a slab of rows; with groups, their sums over workers too."""
    several = (shapes.n_groups + 1) * tile * tile * 8 if shapes.n_groups > 1 else 0
    return tile * tile * (8 + 4 + 8) + 3 * 1024 * tile * 8 + several


def gigabytes(n: int) -> str:
    """Write bytes for people.

    Examples
    --------
    >>> gigabytes(2_150_000_000)
    '2.15 GB'
    """
    return f"{n / 1e9:.2f} GB"


def table(result: Plan) -> list[dict[str, Any]]:
    """Return the plan as rows for printing."""
    return [
        {"stage": s.stage, "passes": s.passes, "bytes": gigabytes(s.bytes), "peak": gigabytes(s.peak)}
        for s in result.stages
    ]
