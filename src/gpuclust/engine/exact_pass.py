"""Exact neighbours of any views of the prompts: from Gram tiles, or from an index of the rows where they are sparse."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust.compute import gram, neighbors, row_errors
from gpuclust.compute.association import MOST_PROMPTS
from gpuclust.config import ACTIVITY
from gpuclust.engine import neighbor_route
from gpuclust.engine.failures import submit
from gpuclust.engine.gram_pass import by_tiles
from gpuclust.engine.views import Found, PromptGroups, View, write_neighbors
from gpuclust.errors import InputError, MemoryBudgetError
from gpuclust.hardware import budget
from gpuclust.types import Array

log = logging.getLogger("gpuclust")


def exact_neighbors(
    client: Any, workers: list[str], run: Path, features: Array, groups: PromptGroups, views: Sequence[View],
    plan: budget.Plan, progress: Any, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Write the neighbours of every view, and the spanning trees that views want.

    Parameters
    ----------
    client : distributed.Client
    workers : list of str
    run : Path
        Folder with the store.
    features : array, (feature,), int
        Features of the pass, in the SAE's numbers, ascending.
    groups : PromptGroups
    views : sequence of View
    plan : budget.Plan
        Made for as many groups and views.
    progress : Progress
    device : {"cpu", "cuda"}

    Returns
    -------
    dict
        ``rows`` (features) and ``passes`` over the store; by tiles ``tiles`` and ``routes`` of the products; by an
        index ``entries`` and ``compared`` (features of views that were compared with all others).

    Raises
    ------
    InputError
        If a view's metric is not of what the groups add up, or a GPU cannot count so many prompts.
    """
    _refuse_other_metrics(groups, views, device)
    found = _by_index(client, len(workers), run, features, groups, views, plan, progress, device)
    if found is None:
        found = by_tiles(client, workers, run, features, groups, views, plan, progress, device)
    for view, keys in zip(views, found.keys, strict=True):
        place = None if view.features is None else np.searchsorted(features, view.features)
        indices, far = neighbors.finish(keys, min(view.k, len(keys)))
        whole = gram.weighted(found.totals, view.weights)
        whole = whole if place is None else gram.chosen(whole, place)
        errors = neighbors.errors_of(whole, indices, far, view.metric)
        if errors is None and groups.rows is not None:
            n_prompts = int(np.append(view.weights, 0)[groups.groups].sum())
            if whole.n_prompts > n_prompts:  # else each row is a prompt
                errors = row_errors.standard_errors(far, whole.n_prompts, n_prompts)
        write_neighbors(view.path, features if place is None else features[place], indices, far, view.metric, errors)
    return {"rows": len(features), **found.facts}


def _by_index(
    client: Any, n_workers: int, run: Path, features: Array, groups: PromptGroups, views: Sequence[View],
    plan: budget.Plan, progress: Any, device: str,
) -> Found | None:  # fmt: skip
    """What an index of the rows finds; None, and the reason logged, where tiles are the way."""
    reason = neighbor_route.why_tiles(groups, views, len(features), device)
    if reason is None:
        sample = submit(client, "neighbors", neighbor_route.sample_task, run, features, groups)
        reason = neighbor_route.why_not(sample.result(), len(features), views, groups.n_groups, plan, n_workers)
    if reason is not None:
        log.info("neighbors: by tiles of a Gram matrix: %s", reason)
        return None
    from gpuclust.engine import inverted_pass  # imports numba

    try:
        return inverted_pass.by_index(client, n_workers, run, features, groups, views, plan, progress, sample)
    except MemoryBudgetError as error:
        log.warning("neighbors: by tiles of a Gram matrix, as the rows are more than was expected: %s", error)
        return None


def _refuse_other_metrics(groups: PromptGroups, views: Sequence[View], device: str) -> None:
    counted = groups.active_above is not None
    for view in views:
        if (view.metric in ACTIVITY) != counted:
            held = "counts of active prompts" if counted else "products of activations"
            raise InputError(
                f"metric={view.metric} for {view.path}, but the groups add up {held}: give it groups of its own, with "
                f"active_above={'None' if counted else 'the threshold'}"
            )
    most = int(max(view.weights.max() for view in views)) * groups.groups.shape[-1]
    if counted and device == "cuda" and most > MOST_PROMPTS:
        raise InputError(
            f"{most:,} prompts are more than the {MOST_PROMPTS:,} that a GPU counts exactly for metric="
            f"{views[0].metric}: use fewer prompts, or --scheduler local, whose counts are exact to 2^53"
        )
