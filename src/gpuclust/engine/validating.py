"""More than a clustering tells of its clusters: held-out prediction, and at what level features fire together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.compute import controls, levels
from gpuclust.config import Config
from gpuclust.engine import causing, held_out, token_rows
from gpuclust.errors import ModelError, StoreError
from gpuclust.hardware import budget
from gpuclust.results.run import Run
from gpuclust.storage import reading, validated
from gpuclust.tables import feature_table
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

PREDICTION, LEVELS, CAUSE = "prediction", "levels", "cause"
PARTS = (PREDICTION, LEVELS)  # of what a run has stored
ALL = (*PARTS, CAUSE)
DRAWS = 8  # control clusterings
OWN = 0.1  # share of its controls' features that may be a cluster's own
CONTROLLED = (
    "prediction_random", "prediction_given_words_random", "prediction_low", "prediction_high", "prediction_p",
)  # fmt: skip


def validate(
    out: Path, parts: Collection[str] = PARTS, draws: int = DRAWS, cause: causing.Cause | None = None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Compute parts of the validation of a run's clusters, and write them into its folder.

    Parameters
    ----------
    out : Path
        Folder of a run whose clusters are analysed; the caller has claimed it.
    parts : collection of str
        Of ALL. What a run has no data or no model for is left out, and said.
    draws : int
        Control clusterings, or random sets of a cluster, at least 2.
    cause : Cause, optional
        What is asked of that part.

    Returns
    -------
    table : DataFrame
        ``validation.parquet``, columns of ``schema.VALIDATION_COLUMNS``; those of parts left out are null.
    facts : dict
        ``validation.json``.

    Raises
    ------
    StoreError
        If the run is not finished, has no cluster, or nothing of what is asked can be computed.
    """
    run = Run(out)
    stages = run.record["stages"]
    if "analyse" not in stages:
        raise StoreError(f"{out} is not finished: its stage analyse is not done; the run's own command goes on")
    features = run.features
    features = features[feature_table.is_point(features)].reset_index(drop=True)
    label = features["label"].to_numpy(np.int64)
    n_clusters = int(label.max(initial=schema.NOISE)) + 1
    if not n_clusters:
        raise StoreError(f"{out} has no clusters: there is nothing to validate")
    found: dict[str, Any] = {"cluster": np.arange(n_clusters), "size": np.bincount(label[label >= 0])}
    facts: dict[str, Any] = {"left_out": [], "draws": draws}
    works: dict[str, Callable[..., Any]] = {
        PREDICTION: _prediction, LEVELS: _levels, CAUSE: partial(_cause, cause=cause or causing.Cause()),
    }  # fmt: skip
    for part in parts:
        if why := _lacking(part, run):
            facts["left_out"].append(f"{part}: {why}")
            log.warning("validate: left out %s: %s", part, why)
            continue
        try:
            columns, facts[part] = works[part](run, features, label, draws)
        except ModelError as error:  # the other parts need no model
            facts["left_out"].append(f"{part}: {error}")
            log.warning("validate: left out %s: %s", part, error)
            continue
        found |= columns
    if len(found) == 2:
        raise StoreError(f"{out}: nothing of what is asked can be computed ({'; '.join(facts['left_out'])})")
    table = pd.DataFrame({name: found.get(name, np.nan) for name in schema.VALIDATION_COLUMNS})
    table["level"] = table["level"].astype(object).where(table["level"].notna(), None).astype("string")
    validated.write(out, stages, table, facts)
    return table, facts


def _lacking(part: str, run: Run) -> str:
    """Why a part cannot be computed; nothing where it can."""
    if part == CAUSE:
        return causing.lacking(run)
    if part == LEVELS:
        if (run.path / schema.TOKENS).exists():
            return ""
        return (
            f"{run.path} has no {schema.TOKENS}, which says on which tokens features fire: extract with "
            "extract.rows=token, and take its prompts by --reuse"
        )
    if not run.config.halved:
        return "the halves of the prompts were not clustered (quality.halves, neighbors.method)"
    if not (run.path / schema.HALF_LABELS).exists():
        return (
            f"{run.path} was made by a version that did not keep the halves' clusters: the run's own command makes them"
        )
    return ""


def _prediction(run: Run, features: pd.DataFrame, label: Array, draws: int) -> tuple[dict[str, Array], dict[str, Any]]:
    from scipy import stats

    plan = _plan(run.config, run, len(features))
    rows = token_rows.rows_of(run.config, run.path)
    degree = features["n_active"].to_numpy()
    if rows is not None:
        degree = token_rows.norms(run.path, features["feature"].to_numpy(), rows, plan.rows)[1]
    exchanged = controls.exchanged(label, degree, draws, run.config.seed)
    halves = np.load(reading.Files(run.path).path(schema.HALF_LABELS))
    subject = held_out.Subject(run.path, run.config, plan, features, run.prompts, halves, exchanged)
    columns, facts = held_out.predict(subject)
    large = np.flatnonzero(controls.kept_share(label, exchanged) > OWN)
    for name in CONTROLLED:
        columns[name][large] = np.nan
    if len(large):
        log.warning(
            "validate: clusters %s have no controls: too few other features fire as often as theirs",
            ", ".join(map(str, large[:10])) + (" …" if len(large) > 10 else ""),
        )
    p = columns["prediction_p"]
    known = ~np.isnan(p)
    columns["prediction_q"] = np.full(len(p), np.nan)
    columns["prediction_q"][known] = stats.false_discovery_control(p[known]) if known.any() else p[known]
    return columns, facts | {"tests": int(known.sum()), "without_controls": large.tolist()}


def _levels(run: Run, features: pd.DataFrame, label: Array, draws: int) -> tuple[dict[str, Array], dict[str, Any]]:
    kept, above = features["feature"].to_numpy(), run.config.extract.activation_threshold
    degree = features["n_active"].to_numpy()
    sets = np.concatenate([[label], label[controls.exchanged(label, degree, draws, run.config.seed)]])
    state, n_tokens = levels.nothing(sets), 0
    for where, fired in token_rows.shards(run.path, kept, token_rows.Rows(None, run.config.extract.aggregate)):
        fired.data[np.abs(fired.data) <= above] = 0
        state = levels.merge([state, levels.chunk(fired, where["prompt"], sets)])
        n_tokens += fired.shape[0]
    return levels.finish(state, sets), {"tokens": n_tokens}


def _cause(
    run: Run, features: pd.DataFrame, label: Array, draws: int, cause: causing.Cause
) -> tuple[dict[str, Array], dict[str, Any]]:
    return causing.measure(run, cause)


def _plan(config: Config, run: Run, n_kept: int) -> budget.Plan:
    """How many prompts are read at a time."""
    stages = run.record["stages"]
    shapes = budget.Shapes(stages["prompts"]["rows"], stages["reduce"]["rows"], n_kept, 0)
    return budget.plan(config, shapes, budget.budget(config), held=())
