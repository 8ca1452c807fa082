"""Neighbours from an index of sparse rows on Dask: no matrix of all pairs, whatever the number of features.

Every worker reads the rows of its own, all of them, and finds the neighbours of its share of the features. What each
finds, the nearest of every feature among the pairs it has met, is put together by the driver.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust.compute import gram, inverted_index, inverted_pairs, neighbors, never_together, topk
from gpuclust.compute.inverted_index import Index
from gpuclust.compute.inverted_pairs import Wanted
from gpuclust.engine import neighbor_route
from gpuclust.engine.failures import submit
from gpuclust.engine.neighbor_route import Sample
from gpuclust.engine.views import Found, PromptGroups, View, read
from gpuclust.hardware import budget
from gpuclust.hardware.backend import resolve
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

RANGES = 4  # of the features, for each worker


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
        rows.blocks, rows.groups.reshape(-1), groups.n_groups, seen.times, rows.lengths, groups.active_above, most
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
    client: Any, n_workers: int, run: Path, features: Array, groups: PromptGroups, views: Sequence[View],
    plan: budget.Plan, progress: Any, sample: Any,
) -> Found:  # fmt: skip
    """Find the neighbours of every view.

    Parameters
    ----------
    client, run, features, groups, views, plan, progress
        As of `exact_pass.exact_neighbors`; groups do not overlap.
    n_workers : int
    sample : distributed.Future
        Of a `neighbor_route.Sample`.

    Raises
    ------
    MemoryBudgetError
        If the rows are more than the sample lets expect, and more than the plan has room for.
    """
    places = [None if view.features is None else np.searchsorted(features, view.features) for view in views]
    wanted = [
        Wanted(view.weights, view.metric, min(view.k, len(features if place is None else place)) - 1, place)
        for view, place in zip(views, places, strict=True)
    ]
    most = plan.room - neighbor_route.held(views, groups.n_groups, len(features))
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
    return Found(keys, sums, {"passes": 1, "entries": entries, "compared": compared})
