"""Neighbours from an index of sparse rows on Dask: no matrix of all pairs, whatever the number of features.

Every worker reads the rows of its own, all of them, and finds the neighbours of its share of the features. What each
finds, the nearest of every feature among the pairs it has met, is put together by the driver.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numba
import numpy as np

from gpuclust import schema
from gpuclust.compute import gram, inverted_index, inverted_pairs, neighbors, never_together, sparse_blocks, topk
from gpuclust.compute.inverted_index import Index
from gpuclust.compute.inverted_pairs import Wanted
from gpuclust.compute.pair_distance import KINDS
from gpuclust.engine.failures import submit
from gpuclust.engine.views import Found, PromptGroups, View, read
from gpuclust.errors import MemoryBudgetError
from gpuclust.formatting import gigabytes
from gpuclust.hardware import budget, token_budget
from gpuclust.hardware.backend import resolve
from gpuclust.storage import markers, store
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

RANGES = 4  # of the features, for each worker
SAMPLES = 4  # shards that are looked at to choose
# Nanoseconds on two cores (docs/decisions.md): a pair of entries of a row by an index, and to put an entry into it; a
# pair by sparse tiles; a product of a dense tile; a pair of features of a view
INDEXED, PUT, SPARSE, DENSE, PAIR = 5.5, 45.0, 8.0, 0.025, 25.0
SLACK = 1.05  # of the entries, whose number is estimated


@dataclass(frozen=True, eq=False)
class Sample:
    """What some of the rows say of all.

    Attributes
    ----------
    n_rows : int
        Of the sample.
    times : array, (feature,), int64
        Rows on which each feature fires.
    pairs : float
        Pairs of entries of a row, added up.
    """

    n_rows: int
    times: Array
    pairs: float


def sample_task(
    out: Path, kept: Array, ranges: Sequence[tuple[int, int]], plan: budget.Plan, groups: PromptGroups
) -> Sample:
    """Look at the rows of some prompts.

    Parameters
    ----------
    out, kept, plan, groups
        As of `views.read`.
    ranges : sequence of (int, int)
        Of prompts.
    """
    n_rows, times, pairs = 0, np.zeros(len(kept), np.int64), 0.0
    for first, stop in ranges:
        for block in read(out, kept, first, stop, plan, groups, resolve("cpu")).blocks:
            rows = sparse_blocks.as_rows(block)
            if groups.active_above is not None:
                rows = sparse_blocks.active_rows(rows, groups.active_above)
            own = np.diff(rows.indptr).astype(np.float64)
            n_rows, pairs = n_rows + len(own), pairs + float(own @ (own - 1)) / 2
            times += np.bincount(rows.indices, minlength=len(kept))
    return Sample(n_rows, times, pairs)


def states_task(out: Path, kept: Array, shards: Sequence[int]) -> Sample | None:
    """Return what the moments of prompts say, without a look at the activations: as if all prompts had as many.

    Parameters
    ----------
    out, kept
        As of `views.read`.
    shards : sequence of int

    Returns
    -------
    Sample or None
        None where a shard has no moments.
    """
    n_rows, times = 0, np.zeros(len(kept), np.int64)
    for index in shards:
        state = markers.read_states(out / schema.SHARDS, index)
        if state is None or "moments.n_nonzero" not in state:
            return None
        n_rows, times = n_rows + int(state["moments.n"]), times + state["moments.n_nonzero"][kept]
    each = times.sum() / max(n_rows, 1)
    return Sample(n_rows, times, float(n_rows * each * (each - 1) / 2))


def index_task(out: Path, kept: Array, plan: budget.Plan, groups: PromptGroups, seen: Sample, most: int) -> Index:
    """Read all rows into an index.

    Parameters
    ----------
    out, kept, plan, groups
        As of `views.read`.
    seen : Sample
    most : int
        As of `inverted_index.build`.
    """
    rows = read(out, kept, 0, groups.groups.shape[-1], plan, groups, resolve("cpu"))
    return inverted_index.build(
        rows.blocks, rows.groups, groups.n_groups, seen.times, rows.lengths, groups.active_above, most
    )


def sums_task(index: Index) -> tuple[list[gram.Gram], bool, int]:
    """Return what the driver needs of an index: column sums, whether activations are below 0, how many are not 0.

    Parameters
    ----------
    index : Index
    """
    return index.sums, index.signed, index.n_entries


def nearest_task(
    index: Index, wanted: Sequence[Wanted], part: int, parts: int, known: Sequence[Array] | None
) -> list[Array]:
    """Return the nearest that one of several parts of the features meets, as of `inverted_pairs.nearest`.

    Parameters
    ----------
    index, wanted, known
        As there.
    part, parts : int
        The first has the features that fire most.
    """
    edges = inverted_pairs.shares(index, 0, len(index.order), parts)[::-1].tolist()
    stop, first = edges[part : part + 2] if part + 1 < len(edges) else (0, 0)
    return inverted_pairs.nearest(index, wanted, index.sums, first, stop, known)


def compared_task(index: Index, wanted: Wanted, features: Array) -> Array:
    """Compare features with all others where the index is: `never_together.compared`.

    Parameters
    ----------
    index, wanted, features
        As there.
    """
    return never_together.compared(index, wanted, index.sums, features)


def by_index(
    client: Any, workers: list[str], run: Path, features: Array, groups: PromptGroups, views: Sequence[View],
    plan: budget.Plan, progress: Any, device: str,
) -> Found | None:  # fmt: skip
    """Find the neighbours of every view; None where tiles of a Gram matrix are better, which is logged.

    Parameters
    ----------
    client, workers, run, features, groups, views, plan, progress, device
        As of `exact_pass.exact_neighbors`.
    """
    reason = _why_tiles(groups, views, features, device)
    if reason is None:
        ranges = store.shard_ranges(run / schema.ACTIVATIONS)
        shards = np.unique(np.linspace(0, len(ranges) - 1, SAMPLES).astype(int)).tolist()
        some = [ranges[at] for at in shards]
        seen = None
        if groups.rows is None:
            sample = submit(client, "neighbors", states_task, run, features, shards)
            seen = sample.result()
        if seen is None:
            sample = submit(client, "neighbors", sample_task, run, features, some, plan, replace(groups, permute=None))
            seen = sample.result()
        share = sum(stop - first for first, stop in some) / groups.groups.shape[-1]
        reason = _why_not(seen, share, len(features), views, groups, plan)
    if reason is not None:
        log.info("neighbors: by tiles of a Gram matrix: %s", reason)
        return None
    places = [None if view.features is None else np.searchsorted(features, view.features) for view in views]
    wanted = [
        Wanted(view.weights, view.metric, min(view.k, len(features if place is None else place)) - 1, place)
        for view, place in zip(views, places, strict=True)
    ]
    try:
        return _found(client, len(workers), run, features, groups, wanted, plan, progress, sample)
    except MemoryBudgetError as error:
        log.warning("neighbors: by tiles of a Gram matrix, as the rows are more than was expected: %s", error)
        return None


def _found(
    client: Any, n_workers: int, run: Path, features: Array, groups: PromptGroups, wanted: Sequence[Wanted],
    plan: budget.Plan, progress: Any, sample: Any,
) -> Found:  # fmt: skip
    most = plan.room - _held(wanted, groups, len(features))
    indices = [
        submit(client, "neighbors", index_task, run, features, plan, groups, sample, most, label=f"index {number}")
        for number in range(n_workers)
    ]
    sums, signed, entries = submit(client, "neighbors", sums_task, indices[0]).result()
    parts = n_workers * RANGES
    keys: list[Array] = []
    with progress.counting("ranges of features", parts) as advance:
        for begin in range(0, parts, n_workers):
            known = [topk.unpack(own[:, -1])[0] for own in keys] or None
            tasks = [
                submit(
                    client, "neighbors", nearest_task, index, wanted, begin + number, parts, known,
                    label=f"range {begin + number} of the features",
                )
                for number, index in enumerate(indices)
            ]  # fmt: skip
            for task in tasks:
                found = task.result()
                keys = [
                    neighbors.merge([old, new], one.k)
                    for one, old, new in zip(wanted, keys or [own[:, :0] for own in found], found, strict=True)
                ]
                advance()
    compared = 0
    for one, own in zip(wanted, keys, strict=True):
        left = never_together.complete(own, one, sums, signed)
        compared += len(left)
        split = [part for part in np.array_split(left, n_workers) if len(part)]
        jobs = [
            submit(client, "neighbors", compared_task, index, one, part)
            for index, part in zip(indices, split, strict=False)
        ]
        for part, job in zip(split, jobs, strict=True):
            own[part] = job.result()
    if compared:
        log.info("neighbors: %d features fire with too few others, and are compared with all", compared)
    return Found(keys, sums, {"entries": entries, "compared": compared})


def _why_tiles(groups: PromptGroups, views: Sequence[View], features: Array, device: str) -> str | None:
    """Why there can be no index, if so."""
    if device == "cuda":
        return "an index of the rows is of the host"
    if groups.groups.ndim > 1:
        return "groups of prompts overlap"
    if any(view.trees for view in views):
        return "the distances of all pairs are wanted"
    for view in views:
        if view.metric not in KINDS:
            return f"by metric={view.metric} features that never fire together are near to each other"
        if min(view.k, len(features if view.features is None else view.features)) < 2:
            return "a feature alone has no neighbours"
    return None


def _why_not(
    seen: Sample, share: float, n_features: int, views: Sequence[View], groups: PromptGroups, plan: budget.Plan,
) -> str | None:  # fmt: skip
    """Why an index is not worth it or has no room, if so."""
    pairs, entries = seen.pairs / share, float(seen.times.sum()) / share
    all_pairs = n_features * (n_features + 1) / 2
    sparse = entries < gram.SPARSE_DENSITY * n_features * seen.n_rows / share
    product = pairs * SPARSE if sparse else seen.n_rows / share * all_pairs * DENSE
    tiles = product + all_pairs * len(views) * PAIR
    index = pairs * INDEXED + entries * PUT
    if index > tiles:
        dense = entries / max(seen.n_rows / share * n_features, 1)
        return (
            f"of its rows {dense:.1%} are not zero: some {tiles / 1e9:.3g} s, by an index of them {index / 1e9:.3g} s"
        )
    needed = int(entries * SLACK) * inverted_index.BYTES + _held(views, groups, n_features)
    if needed > plan.room:
        return f"an index of the rows takes {gigabytes(needed)}, and {gigabytes(plan.room)} are left of the plan's"
    log.info(
        "neighbors: by an index of the rows, %s: %.3g pairs of what fires together, where tiles have %.3g of features",
        gigabytes(needed), pairs, all_pairs,
    )  # fmt: skip
    return None


def _held(wanted: Sequence[Wanted] | Sequence[View], groups: PromptGroups, n_features: int) -> int:
    """Bytes besides the entries: a block of rows, and of every thread sums, facts and the nearest of every view."""
    threads: int = numba.config.NUMBA_NUM_THREADS
    each = 8 * groups.n_groups + 4 + sum(8 * (one.k + inverted_pairs.FACTS + 1) for one in wanted)
    return token_budget.BLOCK + n_features * ((threads + 1) * each + 8 * groups.n_groups)
