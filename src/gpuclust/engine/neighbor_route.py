"""By which way exact neighbours are found: tiles of a Gram matrix, or an index of the rows where they are sparse.

Both give the same. What they cost is estimated from some of the rows, and what an index takes has to fit the plan.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpuclust import schema
from gpuclust.compute import gram, sparse_blocks
from gpuclust.engine import token_rows
from gpuclust.engine.views import PromptGroups, View
from gpuclust.formatting import gigabytes
from gpuclust.hardware import budget, process, token_budget
from gpuclust.storage import markers, store
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

SAMPLES = 4  # shards that are looked at to choose
# Nanoseconds on two cores (docs/decisions.md). By an index: a pair of entries of a row, to put an entry into it, a pair
# of features that fire together, by view. By tiles: a pair of entries, or a product of a dense tile; a pair by view
INDEXED, PUT, OFFERED = 5.5, 45.0, 10.0
SPARSE, DENSE, PAIR = 8.0, 0.025, 25.0
SLACK = 1.05  # of the entries, whose number is estimated
ENTRY = 12  # bytes of an entry of an index
FEATURE = 72  # of every thread, a feature and view besides the nearest, and as much again for a group


@dataclass(frozen=True, eq=False)
class Sample:
    """What some of the rows say of all.

    Attributes
    ----------
    n_rows, of : int
        Rows of the sample, and all.
    times : array, (feature,), int64
        Rows of the sample on which each feature fires.
    pairs : float
        Pairs of entries of a row of the sample, added up.
    """

    n_rows: int
    of: int
    times: Array
    pairs: float

    @property
    def entries(self) -> float:
        """About how many activations are not zero, of all rows."""
        return float(self.times.sum()) * self.of / max(self.n_rows, 1)


def sample_task(out: Path, kept: Array, groups: PromptGroups) -> Sample:
    """Look at some of the rows: of tokens at the first of some shards, of prompts at the states of these.

    Parameters
    ----------
    out : Path
        Folder with the store.
    kept : array, (feature,), int
        The SAE's numbers, ascending.
    groups : PromptGroups
    """
    n_prompts = groups.groups.shape[-1]
    ranges = store.shard_ranges(out / schema.ACTIVATIONS)
    n_rows, times, pairs = 0, np.zeros(len(kept), np.int64), 0.0
    for index in np.unique(np.linspace(0, len(ranges) - 1, SAMPLES).astype(int)).tolist():
        if groups.rows is None:
            state = markers.read_states(out / schema.SHARDS, index, ("moments.n", "moments.n_nonzero"))
            if state is not None:
                n, fires = int(state["moments.n"]), state["moments.n_nonzero"][kept]
                each = fires.sum() / n  # as if all prompts had as many
                n_rows, times, pairs = n_rows + n, times + fires, pairs + float(n * each * (each - 1) / 2)
                continue
            first, stop = ranges[index]  # imported by an earlier version
            _, block = next(iter(store.read_rows(out / schema.ACTIVATIONS, budget.MAX_ROWS, first, stop)))
            rows = sparse_blocks.as_rows(block[:, kept])
        else:
            rows = token_rows.first_rows(out, kept, groups.rows, index)
        if groups.active_above is not None:
            rows = sparse_blocks.active_rows(rows, groups.active_above)
        own = np.diff(rows.indptr).astype(np.float64)
        n_rows, pairs = n_rows + len(own), pairs + float(own @ (own - 1)) / 2
        times += np.bincount(rows.indices, minlength=len(kept))
    of = n_prompts if groups.rows is None else len(token_rows.prompts_of(out, groups.rows))
    return Sample(n_rows, of, times, pairs)


def why_tiles(groups: PromptGroups, views: Sequence[View], n_features: int, device: str) -> str | None:
    """Say why there can be no index, if so, before anything is looked at.

    Parameters
    ----------
    groups, views, device
        As of `exact_pass.exact_neighbors`.
    n_features : int
    """
    if device == "cuda":
        return "an index of the rows is of the host"
    if groups.groups.ndim > 1 and len(groups.groups) > 1:
        return "groups of prompts overlap"
    if any(view.trees for view in views):
        return "the distances of all pairs are wanted"
    for view in views:
        if view.metric == "euclidean":
            return "by metric=euclidean features that never fire together are near to each other"
        if min(view.k, n_features if view.features is None else len(view.features)) < 2:
            return "a feature alone has no neighbours"
    return None


def why_not(
    seen: Sample, n_features: int, views: Sequence[View], n_groups: int, plan: budget.Plan, n_workers: int
) -> str | None:
    """Say why an index is not worth it or has no room, if so; else log what it takes.

    Parameters
    ----------
    seen : Sample
    n_features : int
    views : sequence of View
    n_groups : int
    plan : budget.Plan
    n_workers : int
        Each puts all rows into an index of its own.
    """
    pairs, entries = seen.pairs * seen.of / max(seen.n_rows, 1), seen.entries
    all_pairs = n_features * (n_features + 1) / 2
    sparse = entries < gram.SPARSE_DENSITY * n_features * seen.of
    tiles = (pairs * SPARSE if sparse else seen.of * all_pairs * DENSE) + all_pairs * len(views) * PAIR
    index = pairs * INDEXED + entries * PUT * n_workers + min(pairs, all_pairs) * len(views) * OFFERED
    if index > tiles:
        dense = entries / max(seen.of * n_features, 1)
        return (
            f"of its rows {dense:.1%} are not zero: some {tiles / 1e9:.3g} s, by an index of them {index / 1e9:.3g} s"
        )
    needed = int(entries * SLACK) * ENTRY + held(views, n_groups, n_features)
    if needed > plan.room:
        return f"an index of the rows takes {gigabytes(needed)}, and {gigabytes(plan.room)} are left of the plan's"
    log.info(
        "neighbors: by an index of the rows, %s: %.3g pairs of what fires together, where tiles have %.3g of features",
        gigabytes(needed), pairs, all_pairs,
    )  # fmt: skip
    return None


def held(views: Sequence[View], n_groups: int, n_features: int) -> int:
    """Return the bytes of an index besides its entries: a block of rows; sums and nearest of every thread.

    Parameters
    ----------
    views : sequence of View
    n_groups, n_features : int
    """
    each = 8 * n_groups + 4 + sum(8 * view.k + FEATURE for view in views)
    return token_budget.BLOCK + n_features * ((process.cores() + 1) * each + 8 * n_groups)
