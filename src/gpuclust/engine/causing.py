"""What clusters cause: taken out of the hook (or amplified), how the output changes, next to changes as large."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.compute import causal, evidence, verdicts
from gpuclust.engine import cause_changes, cause_rows
from gpuclust.errors import InputError, ModelError
from gpuclust.extraction import extract_shard, patched
from gpuclust.formatting import counted
from gpuclust.hardware import backend
from gpuclust.results.run import Run
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

BUDGET = 2000  # forward passes of one prompt
SETS, FEWEST = 20, 8  # random sets; they take half of the budget at most, but FEWEST are tried


@dataclass(frozen=True)
class Cause:
    """What is asked for.

    Attributes
    ----------
    budget : int
        Forward passes, at most: one row of tokens, a prompt, once through the model (or up to the hook).
    amplify : float
        What the cluster's features are multiplied by: 0 takes them out, 2 doubles them.
    """

    budget: int = BUDGET
    amplify: float = 0.0

    def __post_init__(self) -> None:
        if self.amplify == 1:
            raise InputError("--amplify is 1, which changes nothing: 0 takes features out, 2 doubles them")
        if not np.isfinite(self.amplify):
            raise InputError(f"--amplify is {self.amplify}, which is no number")


@dataclass(frozen=True)
class Plan:
    """What a budget reaches.

    Attributes
    ----------
    clusters : int array
        In the order in which they are tried: those with the verdict stable, then fragile, then the others; of each the
        most stable first, without stability those of the largest mean activation.
    passes : int array
        Forward passes of each, at most.
    nulls : int
        Random sets that are tried before.
    reached : int
        Clusters that surely lie within the budget.
    first : str
        What comes first.
    """

    clusters: Array
    passes: Array
    nulls: int
    reached: int
    first: str


def plan(run: Run, cause: Cause) -> Plan:
    """Say what it will cost, without the model.

    Parameters
    ----------
    run : Run
    cause : Cause

    Raises
    ------
    InputError
        If the budget is not enough for FEWEST random sets and one cluster.
    """
    table = run.clusters
    table = table[table["cluster"] >= 0]
    by = "stability" if "stability" in table and table["stability"].notna().any() else "mean_activation"
    # Words of doubtful ones do not depend on what is tried
    doubt = table["verdict"].map({verdicts.STABLE: 0, verdicts.FRAGILE: 1}).fillna(2)
    order = table.assign(doubt=doubt).sort_values(["doubt", by, "cluster"], ascending=[True, False, True])
    passes = cause_changes.passes(order["size"].to_numpy(np.int64), len(run.prompts))
    a_set = cause_changes.null_passes(len(run.prompts))
    nulls = int(np.clip(cause.budget // 2 // a_set, FEWEST, SETS))
    reached = int((nulls * a_set + np.cumsum(passes) <= cause.budget).sum())
    if not reached:
        raise InputError(
            f"--budget is {cause.budget}, and {FEWEST} random sets and the first cluster take up to "
            f"{FEWEST * a_set + passes[0]} forward passes: give as many at least"
        )
    first = {"stability": "the most stable", "mean_activation": "the most active"}[by]
    return Plan(order["cluster"].to_numpy(np.int64), passes, nulls, reached, first)


def said(out: Path, cause: Cause) -> str:
    """Say in a line what it will cost, or why it will be left out, without the model.

    Parameters
    ----------
    out : Path
        Folder of a run.
    cause : Cause

    Raises
    ------
    InputError
        If the budget is not enough for one cluster.
    """
    run = Run(out)
    if "analyse" not in run.record["stages"] or not (run.clusters["cluster"] >= 0).any():
        return "cause: nothing to plan, the run has no clusters"
    if why := lacking(run):
        return f"cause: left out, {why}"
    planned = plan(run, cause)
    least, most = planned.passes.min(), planned.passes.max()
    each = str(most) if least == most else f"{least} to {most}"
    sets = planned.nulls * cause_changes.null_passes(len(run.prompts))
    return (
        f"cause: up to {each} forward passes of one prompt a cluster, {planned.first} first, after {sets} for "
        f"{planned.nulls} random sets; the budget of {cause.budget:,} reaches {planned.reached} of "
        f"{counted(len(planned.clusters), 'cluster')}"
    )


def lacking(run: Run) -> str:
    """Why a run cannot be tried, as far as it can be told without the model; nothing where it can."""
    if run.config.model.name == schema.IMPORTED or run.attributes.get("model") == schema.IMPORTED:
        return f"the activations of {run.path} were imported: there is no model to run"
    lengths = run.prompts["tokens"].map(len).to_numpy()
    if (off := np.flatnonzero(lengths != run.prompts["n_tokens"].to_numpy())).size:
        return (
            f"prompt {off[0]} of {run.path / schema.PROMPTS} has {lengths[off[0]]} token ids, and n_tokens is "
            f"{run.prompts['n_tokens'].iat[off[0]]}: they are not those of the run"
        )
    return ""


def measure(run: Run, cause: Cause) -> tuple[dict[str, Array], dict[str, Any]]:
    """Change what each cluster writes, as far as the budget goes, and measure what becomes of the output.

    Parameters
    ----------
    run : Run
    cause : Cause

    Returns
    -------
    columns : dict of arrays, (cluster,)
        Those of ``schema.VALIDATION_COLUMNS`` that begin with ``cause``; null where a cluster was not tried.
    facts : dict
        What was asked, and which clusters were not tried, and why.

    Raises
    ------
    InputError
        If the budget is not enough for one cluster.
    ModelError
        If the model or SAE cannot be had, is not the one that the run is of, or its hook cannot be changed; if no
        cluster is active.
    """
    planned = plan(run, cause)
    device = "cuda" if backend.cuda_status().usable else "cpu"
    model = patched.load_patched(run.config, device)
    extract_shard.same_weights(model.commits, run.attributes, run.config)
    x = cause_rows.subject(run, model)
    names = [name for name in schema.VALIDATION_COLUMNS if name.startswith("cause")]
    columns = {name: np.full(len(planned.clusters), np.nan) for name in names}
    meter, tried, silent = patched.Meter(cause.budget), 0, []
    null = _null(x, planned, cause, meter)
    began, before = time.monotonic(), meter.spent
    try:
        for cluster in planned.clusters.tolist():
            found = _tried(x, np.flatnonzero(x.label == cluster), cause, meter, [cluster])
            if found is None:
                silent.append(cluster)
            else:
                tried += 1
                for name, value in {**found, "cause_passes": meter.spent - before}.items():
                    columns[name][cluster] = value
                if tried == 1:
                    each = time.monotonic() - began
                    log.info("validate: cause takes %.1f seconds a cluster, on %s", each, device)
            before = meter.spent
    except patched.OverspentError:
        log.info("validate: cause ends with its budget, after %d clusters and %d passes", tried, meter.spent)
    if not tried:
        raise ModelError("cause: no cluster is active on its prompts' tokens, as extract reads them: nothing was tried")
    if silent:
        log.warning("validate: cause left out clusters %s: none of their features is active on their prompts",
                    ", ".join(map(str, silent)))  # fmt: skip
    if len(null) < 2:
        log.warning("validate: cause has no p: %d of %d random sets are active on their prompts",
                    len(null), planned.nulls)  # fmt: skip
    else:
        columns["cause_p"] = causal.chance(np.log(columns["cause_excess"]), np.log(null))
    columns["cause_q"] = evidence.discoveries(columns["cause_p"])
    tests = int(np.count_nonzero(~np.isnan(columns["cause_p"])))
    facts = {
        "budget": cause.budget, "passes": meter.spent, "amplify": cause.amplify, "prompts": cause_rows.PROMPTS,
        "hook": model.writes, "device": device, "tried": tried, "tests": tests, "never_active": silent,
        "random_sets": null.tolist(),
    }  # fmt: skip
    return columns, facts


def _null(x: cause_rows.Subject, planned: Plan, cause: Cause, meter: patched.Meter) -> Array:
    """Excess of random sets, features that fire and write about as those of the clusters do, (set,)."""
    found = []
    for i in range(planned.nulls):
        cluster = planned.clusters[i % len(planned.clusters)]
        own, others = (np.flatnonzero(at) for at in (x.label == cluster, x.label != cluster))
        if not len(others):
            continue
        drawn = causal.alike(own, others, x.times, x.norm, np.random.default_rng([x.run.config.seed, i, 1]))
        try:
            measured = _tried(x, np.unique(drawn), cause, meter, [i, 2], alone=True, check=not i)
        except patched.OverspentError:  # batches were halved
            break
        if measured is not None:
            found.append(measured["cause_excess"])
    return np.array(found, np.float64)


def _tried(
    x: cause_rows.Subject, own: Array, cause: Cause, meter: patched.Meter, seed: list[int], **how: bool
) -> dict[str, float] | None:
    """Try a set; None where none of its features is active."""
    found = cause_rows.rows(x, own, meter, check=how.get("check", False))
    if not found:
        return None
    random = np.random.default_rng([x.run.config.seed, *seed])
    tried = cause_changes.changes(x, own, found, cause.amplify - 1, random, alone=how.get("alone", False))
    return cause_changes.measured(x, found, tried, meter)
