"""Projected peak bytes of every stage: pure arithmetic on shapes, no array library.

A figure is what a worker needs at once, its process included: host memory, and on GPU workers GPU memory too. Block
rows, Gram tiles and passes follow from the budget; what cannot fit is refused before anything runs.

``device.memory`` bounds one thing: on GPU workers the GPU's memory, CUDA context included; on CPU workers the process's
host memory. The host memory of GPU workers is held to a share of what is free.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from gpuclust.config import Config
from gpuclust.errors import MemoryBudgetError
from gpuclust.formatting import gigabytes
from gpuclust.hardware import process, token_budget
from gpuclust.hardware.device import RESERVE as CONTEXT
from gpuclust.section import parse_bytes
from gpuclust.stage_table import PLANNED

PROCESS = 1_800_000_000  # a worker with its libraries imported, and what malloc keeps
PROCESS_CUDA = 3_000_000_000  # the same, 0.4 GB of RAPIDS once imported, and an allowance for CUDA's own on the host
SLABS = 6 * 8 * (1 << 20)  # float64 slabs of the moments
ENCODE = 3 * (256 << 20)  # float32 SAE activations of a slice of tokens and their temporaries
DEVICE_ENCODE = 3 * (128 << 20)  # the same on a GPU, where slices are smaller
BACK = 2 * (128 << 20)  # aggregated values and positions of a batch, and those of the batch before, on their way
# Slices of a shard on a GPU with their positions, this one and the one before; slabs of moments and keys
MOMENT_SLABS = 4 * (128 << 20) + 9 * 8 * (1 << 22)
SUMS = 2 * 8 * (1 << 22)  # float64 slabs of a block's column sums on a GPU
UMAP_WORK, HDBSCAN_WORK = 300_000_000, 1_000_000_000  # cuML's workspaces: estimates, not measured
TILE = 4096
MAX_ROWS = 2048
PROFILE_ROWS = 4096  # prompts of a block of clusters' activations
PERMUTED_ROWS = 512  # prompts of a block within which activations are permuted
COSINES = 4096  # features whose cosines with all clusters are added at a time, and random sets that are summed
CONSENSUS_PAIRS = 1 << 22  # of features, that a consensus counts at a time
GRAPH = 116  # bytes a neighbour of redrawn similarities, their order, features with lists alike, graph of mutual ones
LINKED = 12_000  # features that a consensus links at once, unless all its members have more in one cluster
AT_ONCE = 2  # embeddings or clusterings on a worker of the host
FREE_SHARE = 0.6  # of the free host memory, used when no budget is set
TO_CLUSTERS = PLANNED[: PLANNED.index("cluster") + 1]


@dataclass(frozen=True)
class Shapes:
    """What a projection depends on. `model_bytes` and `sae_bytes` count weights in memory; 0 where not known yet.

    `n_groups` and `n_views` count the groups of prompts that have a Gram of their own, and the sums of them that
    neighbours are wanted for. `n_clusters` is 0 while it is not known; as many as `min_cluster_size` allows are then
    counted. `whole_bytes` is the whole language model as it is loaded, `n_tokens` counts those of all prompts; 0 where
    not known.
    """

    n_prompts: int
    n_features: int
    n_kept: int
    d_in: int = 0
    model_bytes: int = 0
    n_groups: int = 1
    n_views: int = 1
    sae_bytes: int = 0
    n_clusters: int = 0
    whole_bytes: int = 0
    n_tokens: int = 0


@dataclass(frozen=True)
class StagePlan:
    """One line of the plan: bytes are of reading and writing the store, peaks of a worker; None without a GPU."""

    stage: str
    passes: int
    bytes: int
    peak: int
    setting: str
    device_peak: int | None = None


@dataclass(frozen=True)
class Plan:
    """The plan of a run within a budget.

    Attributes
    ----------
    budget, device_budget : int, the second or None
        Bytes of host memory and of GPU memory that a worker may use.
    rows : int
        Prompts of a block read at a time.
    tile, tiles_per_pass : int
        Features of a Gram tile, and tiles held at a time.
    room : int
        Bytes of the budget that process and weights leave a stage on the host; 0 on a GPU.
    """

    budget: int
    rows: int
    tile: int
    tiles_per_pass: int
    stages: tuple[StagePlan, ...]
    device_budget: int | None = None
    room: int = 0


def budget(config: Config, n_workers: int = 1, device: str = "cpu") -> int:
    """Return the host bytes a worker may use.

    Parameters
    ----------
    config, n_workers : Config and int
        ``device.memory`` counts on CPU workers; else a worker has its part of a share of what is free here.
    device : {"cpu", "cuda"}
    """
    if config.device.memory is not None and device == "cpu":
        return parse_bytes(config.device.memory)
    return int(process.available() * FREE_SHARE / n_workers)


def plan(
    config: Config, shapes: Shapes, allowed: int, held: Collection[str] = PLANNED, device_allowed: int | None = None
) -> Plan:
    """Project every stage and refuse what cannot fit.

    Parameters
    ----------
    config, shapes : Config and Shapes
    allowed, device_allowed : int, the second optional
        Bytes of a worker's host memory and GPU memory; on a GPU, blocks, tiles and passes follow from the second.
    held : collection of str
        Stages that are held to the budget: those whose shapes are known.

    Raises
    ------
    MemoryBudgetError
        Names the first stage that does not fit, the projected and the allowed bytes, and the setting to change.
    """
    item = 2 if config.store.dtype == "float16" else 4
    if device_allowed is None:
        result = _plan_cpu(config, shapes, allowed, item)
    else:
        result = _plan_cuda(config, shapes, allowed, device_allowed, item)
    _refuse(result, held, shapes)
    return result


def _plan_cpu(config: Config, shapes: Shapes, allowed: int, item: int) -> Plan:
    kept = shapes.n_kept
    store = shapes.n_prompts * shapes.n_features * item
    base = PROCESS + _weights(shapes)  # the encoder stays loaded
    per_row = shapes.n_features * item * 2 + kept * (item + 8)
    dense = _dense(shapes) if config.neighbors.method != "sketch" and config.tree_samples is not None else 0
    tokens = _tokens(config, shapes)

    def beside(
        rows: int,
    ) -> int:  # what neighbours, or those of permuted activations, hold that is no block and no tile
        return max(tokens.get("neighbors", 0), tokens.get("quality", 0) + _mixed(config, shapes, rows, item))

    room = max(allowed - base - dense, 0)
    rows, tile, per_pass, n_tiles = _blocks(config, shapes, room, per_row, 8, _gram_extra, beside)
    shard = min(config.store.shard_prompts, shapes.n_prompts) * shapes.n_features
    examples = shapes.n_features * config.extract.top_examples * 16 * 2
    extract = base + _forward(config, shapes, 4) + ENCODE + BACK // 2 + SLABS + shard * (4 + 4 + 2 * item) + examples
    peaks = {
        "extract": extract,
        "reduce": base + SLABS + rows * shapes.n_features * (2 * item + 4) + _merged(config, shapes),
        "neighbors": base + dense + rows * per_row + per_pass * shapes.n_groups * tile * tile * 8
        + _gram_extra(tile, shapes),
    }  # fmt: skip
    if config.neighbors.method == "sketch":
        peaks["neighbors"] = (
            base + rows * per_row + kept * config.neighbors.sketch_size * 24 + _gram_extra(tile, shapes)
        )
    peaks |= _host_of_clusters(config, shapes, base)
    peaks["quality"] = _quality(config, shapes, rows, base, peaks)
    peaks["analyse"] = base + rows * per_row + _tables(config, shapes) + _directions(config, shapes)
    _add(peaks, tokens)
    stages = _stages(config, store, -(-n_tiles // per_pass), peaks, {})
    return Plan(allowed, rows, tile, per_pass, stages, room=max(allowed - base, 0))


def _plan_cuda(config: Config, shapes: Shapes, allowed: int, device_allowed: int, item: int) -> Plan:
    kept, features = shapes.n_kept, shapes.n_features
    store = shapes.n_prompts * features * item
    landing = features * item + -(-features // 8)  # a row as it crosses the bus, packed at worst
    copies = 2 if shapes.n_groups == 1 else 3  # the kept columns of a block and of the one before; a group's part of it
    per_row = 2 * landing + 2 * features * item + copies * kept * item
    per_row += 0 if config.active_above is None else 2 * kept  # when they are active, in float16
    rows, tile, per_pass, n_tiles = _blocks(config, shapes, max(device_allowed - CONTEXT, 0), per_row, 4, _device_extra)
    weights = shapes.model_bytes + (shapes.sae_bytes or shapes.d_in * features * 4)
    width = 4 if config.model.dtype == "float32" else 2
    encode = _forward(config, shapes, width) + DEVICE_ENCODE + BACK
    gram = CONTEXT + rows * per_row + per_pass * shapes.n_groups * tile * tile * 4 + _device_extra(tile, shapes)
    components = max(config.umap.n_components, 2)
    device = {
        "extract": CONTEXT + weights + max(encode, MOMENT_SLABS),
        "reduce": CONTEXT + rows * per_row + MOMENT_SLABS,
        "neighbors": CONTEXT if config.neighbors.method == "sketch" else gram,
        "embed": CONTEXT + UMAP_WORK + kept * (96 * config.umap.n_neighbors + 16 * components),
        "cluster": CONTEXT,
        "analyse": CONTEXT,
    }
    device["cluster"] += HDBSCAN_WORK + kept * (8 * components + 36 * config.hdbscan.min_samples + 300)
    host_weights = shapes.model_bytes + 2 * shapes.d_in * features * 4  # they pass through host memory
    shard = min(config.store.shard_prompts, shapes.n_prompts) * features
    base = PROCESS_CUDA
    examples = features * config.extract.top_examples * 16 * 2
    decoded = max(rows, min(config.store.chunk_prompts, shapes.n_prompts)) * features * item
    pinned = 2 << (rows * landing - 1).bit_length()  # two buffers, each rounded up to a power of two
    blocks = pinned + shard * item + decoded  # a shard as stored, and what of it is decoded
    host = {
        "extract": base + host_weights + shard * (4 + 4 + 2 * item) + 2 * BACK + examples,
        "reduce": base + blocks + _merged(config, shapes),
        "neighbors": base + blocks + 4 * shapes.n_groups * tile * tile * 8,
    }
    if config.neighbors.method == "sketch":
        host["neighbors"] += (
            rows * kept * (item + 8) + kept * config.neighbors.sketch_size * 24 + _gram_extra(tile, shapes)
        )
    elif config.tree_samples is not None:
        host["neighbors"] += _dense(shapes)
    host |= _host_of_clusters(config, shapes, base)
    host["quality"] = _quality(config, shapes, rows, base, host)
    host["analyse"] = (
        base + rows * (features * item * 2 + kept * (item + 8)) + _tables(config, shapes) + _directions(config, shapes)
    )
    _add(host, _tokens(config, shapes))
    device["quality"] = max(device[name] for name in ("neighbors", "embed", "cluster"))
    stages = _stages(config, store, -(-n_tiles // per_pass), host, device)
    return Plan(allowed, rows, tile, per_pass, stages, device_allowed)


def _tokens(config: Config, shapes: Shapes) -> dict[str, int]:
    """What tokens take beside, by stage."""
    return token_budget.bytes_of_stages(config, shapes.n_prompts, shapes.n_features, shapes.n_tokens, PERMUTED_ROWS)


def _add(peaks: dict[str, int], more: dict[str, int]) -> None:
    for stage, size in more.items():
        peaks[stage] += size


def _blocks(
    config: Config, shapes: Shapes, room: int, per_row: int, entry: int, extra: Callable[[int, Shapes], int],
    beside: Callable[[int], int] = lambda rows: 0,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Prompts of a block, features of a tile, tiles of a pass, and tiles in all, for `room` bytes.

    `beside` says, by the prompts of a block, what tiles must leave of it.
    """
    rows = max(1, min(MAX_ROWS, shapes.n_prompts, room // 8 // max(per_row, 1)))
    chunk = config.store.chunk_prompts
    if rows > chunk:
        rows -= rows % chunk
    else:
        rows = -(-chunk // -(-chunk // rows))  # blocks end where chunks do, as nearly as can be
    room = max(room - beside(rows), 0)
    tile = min(TILE, max(shapes.n_kept, 1))
    entry *= shapes.n_groups
    while tile > 256 and extra(tile, shapes) + tile * tile * entry > room // 2:
        tile //= 2
    blocks = -(-shapes.n_kept // tile)
    n_tiles = blocks * (blocks + 1) // 2
    per_pass = max(1, min(n_tiles, (room - extra(tile, shapes) - rows * per_row) // (tile * tile * entry)))
    return rows, tile, per_pass, n_tiles


def _stages(
    config: Config, store: int, passes: int, host: dict[str, int], device: dict[str, int]
) -> tuple[StagePlan, ...]:
    """The lines of the plan."""
    extract = "store.shard_prompts or extract.batch_tokens"
    neighbors = "select.*"
    if device:
        extract = "the model's layer (sae), model.dtype, extract.batch_tokens or store.shard_prompts"
    if config.neighbors.method == "sketch":
        passes, neighbors = 1, "neighbors.sketch_size"
    clusters = "umap.n_components or select.*"
    if config.n_members > 1:
        clusters = "consensus.members (to 1), umap.n_components or select.*"
    checks = 1 + (1 + passes if config.quality.null and config.neighbors.method != "sketch" else 0)
    lines = {  # passes over the store, and what to change
        "extract": (1, extract),
        "reduce": (0, "store.shard_prompts"),
        "neighbors": (passes, neighbors),
        "embed": (0, "umap.n_components or select.*"),
        "cluster": (0, clusters),
        "quality": (checks, "hdbscan.min_cluster_size, quality.random_sets or select.*"),
        "analyse": (1, "hdbscan.min_cluster_size or analyse.promoted_tokens (to 0)"),
    }
    return tuple(
        StagePlan(name, n, n * store, host[name], setting, device.get(name))
        for name, (n, setting) in ((name, lines[name]) for name in PLANNED)
    )


def _refuse(result: Plan, held: Collection[str], shapes: Shapes) -> None:
    stages = [stage for stage in result.stages if stage.stage in held]
    if result.device_budget is not None:
        for stage in stages:
            if (needed := stage.device_peak or 0) <= result.device_budget:
                continue
            fixed = f"{gigabytes(CONTEXT)} of them for the CUDA context and libraries"
            if stage.stage == "extract":
                fixed += f", {gigabytes(shapes.model_bytes)} for the language model up to the hook, and "
                fixed += f"{gigabytes(shapes.sae_bytes or shapes.d_in * shapes.n_features * 4)} for the SAE"
            raise MemoryBudgetError(
                f"stage {stage.stage} needs {gigabytes(needed)} of GPU memory ({fixed}), but device.memory allows "
                f"{gigabytes(result.device_budget)}. Raise device.memory, or change {stage.setting}"
            )
    for stage in stages:
        if stage.peak <= result.budget:
            continue
        if result.device_budget is not None:
            raise MemoryBudgetError(
                f"stage {stage.stage} needs {gigabytes(stage.peak)} of host memory, but {gigabytes(result.budget)} a "
                f"worker may be used ({FREE_SHARE:.0%} of what is free). Change {stage.setting}, or free memory"
            )
        base = PROCESS + _weights(shapes)
        raise MemoryBudgetError(
            f"stage {stage.stage} needs {gigabytes(stage.peak)} ({gigabytes(base)} of them for the process and its "
            f"weights), but device.memory allows {gigabytes(result.budget)}. Raise device.memory, or change "
            f"{stage.setting}"
        )


def _host_of_clusters(config: Config, shapes: Shapes, base: int) -> dict[str, int]:
    """Embedding and clusters on the host; with a GPU, what is left there is less."""
    kept, components = shapes.n_kept, max(config.umap.n_components, 2)
    cluster = 300 + 24 * config.n_neighbors
    cluster += 16 * components + 30 * config.hdbscan.min_samples
    if config.cluster.method == "communities":
        cluster += AT_ONCE * GRAPH * max(config.n_neighbors, config.graph_neighbors)
    one = 120 * config.umap.n_neighbors + 80 * (components + 10)
    pairs = consensus(kept, config.n_members, min(kept, LINKED)) - PROCESS if config.n_members > 1 else 0
    return {
        "embed": base + kept * (24 * config.n_neighbors + AT_ONCE * one),
        "cluster": base + kept * cluster + pairs,
    }


def consensus(n_features: int, n_members: int, linked: int) -> int:
    """Bytes of a consensus of clusterings: process, distances of `linked` features and a copy, pairs, clusters, merges.

    Parameters
    ----------
    n_features, n_members, linked : int
        `linked` features at most are linked at once.
    """
    return PROCESS + 9 * linked**2 + 40 * CONSENSUS_PAIRS + n_features * (30 * n_members + 600)


def _merged(config: Config, shapes: Shapes) -> int:
    """Moments of two states; the strongest prompts of two, merged and as a table."""
    return shapes.n_features * (20 * 8 + 160 * config.extract.top_examples)


def _quality(config: Config, shapes: Shapes, rows: int, base: int, host: dict[str, int]) -> int:
    """The largest of: neighbours of permuted activations, a consensus, sums of unit features over clusters and sets."""
    clusters = _clusters(config, shapes)
    sets = config.quality.random_sets * clusters
    item = 2 if config.store.dtype == "float16" else 4
    kept = shapes.n_kept
    sums = rows * (shapes.n_features * item * 2 + kept * (item + 24) + 16 * clusters + 16 * min(sets, COSINES))
    sums += 8 * clusters * (kept + 3 * min(COSINES, kept)) + 48 * config.quality.random_sets * kept
    mixed = _mixed(config, shapes, rows, item)
    return max(host["neighbors"] + mixed, host["embed"], host["cluster"], base + sums + mixed)


def _mixed(config: Config, shapes: Shapes, rows: int, item: int) -> int:
    """Of permuted activations, rows of a block that others do not read."""
    more = max(PERMUTED_ROWS - rows, 0) if config.quality.null else 0
    return more * (shapes.n_features + 2 * shapes.n_kept) * item


def _tables(config: Config, shapes: Shapes) -> int:
    """A block of clusters over prompts, with temporaries; correlations, also of halves; examples and places."""
    clusters = _clusters(config, shapes)
    examples = shapes.n_features * config.extract.top_examples * 320
    return clusters * 8 * (6 * min(PROFILE_ROWS, shapes.n_prompts) + 8 * clusters) + examples


def _clusters(config: Config, shapes: Shapes) -> int:
    return shapes.n_clusters or max(1, shapes.n_kept // config.hdbscan.min_cluster_size)


def _dense(shapes: Shapes) -> int:
    """A matrix of distances, and the tiles on and over the diagonal that every view's is made from."""
    kept = shapes.n_kept
    return 4 * kept**2 + 2 * shapes.n_views * kept * (kept + min(TILE, kept))


def _forward(config: Config, shapes: Shapes, width: int) -> int:
    """Activations of a batch in the language model."""
    return config.extract.batch_tokens * shapes.d_in * width * 24


def _weights(shapes: Shapes) -> int:
    return shapes.model_bytes + 2 * shapes.d_in * shapes.n_features * 4


def _directions(config: Config, shapes: Shapes) -> int:
    """The SAE loaded once more, and for its promoted tokens the whole language model with a float32 unembedding."""
    whole = max(shapes.whole_bytes, shapes.model_bytes) if config.analyse.promoted_tokens else 0
    return 2 * shapes.d_in * shapes.n_features * 4 + whole * 3 // 2


def _gram_extra(tile: int, shapes: Shapes) -> int:
    """A product, a tile of distances, and packed keys of a slab of rows; with groups, their sums over workers too."""
    several = (shapes.n_groups + 1) * tile * tile * 8 if shapes.n_groups > 1 else 0
    return tile * tile * (8 + 4 + 8) + 3 * 1024 * tile * 8 + several


def _device_extra(tile: int, shapes: Shapes) -> int:
    """Tiles brought from elsewhere, their distances and float64 temporaries, packed keys; column sums."""
    several = (shapes.n_groups + 1) * tile * tile * 4 if shapes.n_groups > 1 else 0
    return tile * tile * (4 + 4) + 256 * tile * 8 * 6 + 1024 * tile * (4 * 8 + 4) + SUMS + several


def table(result: Plan) -> list[dict[str, Any]]:
    """Return the plan as rows for printing; peaks on the GPU where there is one."""
    rows = []
    for s in result.stages:
        row = {"stage": s.stage, "passes": s.passes, "bytes": gigabytes(s.bytes), "peak": gigabytes(s.peak)}
        if s.device_peak is not None:
            row["GPU peak"] = gigabytes(s.device_peak)
        rows.append(row)
    return rows
