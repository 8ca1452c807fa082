"""More than a clustering tells of its clusters: held-out prediction, and at what level features fire together."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema, stage_table
from gpuclust.compute import controls, evidence, levels
from gpuclust.config import Config
from gpuclust.engine import causing, held_out, replicating, token_rows
from gpuclust.errors import InputError, MemoryBudgetError, ModelError, StoreError
from gpuclust.hardware import budget
from gpuclust.results.run import Run
from gpuclust.storage import atomic, reading, record, store, validated
from gpuclust.tables import cluster_table, feature_table
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

PREDICTION, LEVELS, CAUSE, REPLICATE = "prediction", "levels", "cause", "replicate"
PARTS = (PREDICTION, LEVELS)  # of what a run has stored: a run makes them by itself
ALL = (REPLICATE, *PARTS, CAUSE)  # what may be refused comes first
DRAWS = 8  # control clusterings
CONTROLLED = (
    "prediction_random", "prediction_given_words_random", "prediction_low", "prediction_high", "prediction_p",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What is asked of the parts.

    Attributes
    ----------
    draws : int
        Control clusterings, at least 2.
    other : Path, optional
        Folder of a run of another SAE over the same prompts, among whose clusters this run's are looked for.
    cause : causing.Cause
        How many forward passes, and what is done to a cluster's features.
    """

    draws: int = DRAWS
    other: Path | None = None
    cause: causing.Cause = field(default_factory=causing.Cause)


def validate(
    out: Path, parts: Collection[str] = PARTS, asked: Asked | None = None, by_default: bool = False
) -> dict[str, Any]:
    """Compute parts of the validation of a run's clusters, and write them into its folder beside those that are there.

    Parameters
    ----------
    out : Path
        Folder of a run whose clusters were checked (its stage quality is done); the caller has claimed it.
    parts : collection of str
        Of ALL. What a run has no data, no model or no memory for is left out, and said.
    asked : Asked, optional
    by_default : bool
        Nobody asked for the parts: what a run has no data for is no warning.

    Returns
    -------
    dict
        What ``validation.json`` holds: facts of each part, and ``left_out``, of every part that was asked for why it
        was left out.

    Raises
    ------
    StoreError
        If the clusters were not checked, or the other run is none to compare with (`replicating.replicate`).
    """
    asked = asked or Asked()
    run = Run(out)
    stages = run.record["stages"]
    if "quality" not in stages:
        raise StoreError(f"{out} is not finished: its stage quality is not done; the run's own command goes on")
    features = run.features
    features = features[feature_table.is_point(features)].reset_index(drop=True)
    label = features["label"].to_numpy(np.int64)
    n_clusters = int(label.max(initial=schema.NOISE)) + 1
    before, facts = validated.kept(out, stages) or (pd.DataFrame(), {})
    facts["left_out"] = {part: why for part, why in facts.get("left_out", {}).items() if part not in parts}
    found: dict[str, Any] = {str(name): values.to_numpy() for name, values in before.items()}
    found |= {"cluster": np.arange(n_clusters), "size": np.bincount(label[label >= 0], minlength=n_clusters)}
    for part in [name for name in ALL if name in parts] if n_clusters else []:
        why, level = _lacking(part, run), logging.INFO if by_default else logging.WARNING
        if not why:
            try:
                columns, told = WORK[part](run, features, label, asked)
                found |= columns
                facts[part] = told
            except (MemoryBudgetError, ModelError) as error:
                why, level = str(error), logging.WARNING
        if why:
            facts["left_out"][part] = why
            log.log(level, "validate: left out %s: %s", part, why)
    table = pd.DataFrame({name: found.get(name, np.nan) for name in schema.VALIDATION_COLUMNS})
    table = _judged(table, run.quality, amplified=bool(facts.get(CAUSE, {}).get("amplify")))
    facts["evidence"] = evidence.counted(table["evidence"].to_numpy(object))
    validated.write(out, stages, table, facts)
    return facts


def _judged(table: pd.DataFrame, quality: pd.DataFrame, amplified: bool) -> pd.DataFrame:
    """Give every cluster its word, and every column its dtype; what a cluster does amplified is no test of it."""
    types = {name: dtype for name, (dtype, _) in schema.VALIDATION_COLUMNS.items()}
    words = [name for name, dtype in types.items() if dtype == "string"]
    for name in words:
        table[name] = _objects(table[name])
    for name in (name for name, dtype in types.items() if dtype in ("Int64", "boolean")):
        table[name] = pd.Series(_objects(table[name]), dtype=types[name])
    arrays = {str(name): values.to_numpy() for name, values in table.items()}
    if amplified:
        del arrays["cause_q"]
    verdict, reason = (_objects(quality[name]).to_numpy(object) for name in ("verdict", "verdict_reason"))
    table["evidence"], table["evidence_reason"] = evidence.judge(arrays, verdict, reason)
    return table.astype(dict.fromkeys(words, schema.text_dtype()))


def _objects(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column of Python's own values, None where there is none."""
    return column.astype(object).where(column.notna(), None)


def put_in_place(out: Path) -> None:
    """Bring what was found into a finished run's cluster table and report, and into its record.

    Parameters
    ----------
    out : Path
        Folder of a run whose stages are done; the caller has claimed it.
    """
    from gpuclust.results.report import write

    run = Run(out)

    def recorded(stage: str) -> None:
        record.record_anew(out, stage, stage_table.get(stage).writes(run.config))

    recorded("validate")
    clusters = cluster_table.with_evidence(run.clusters, store.read_table(out / schema.VALIDATION))
    atomic.write_table(out / schema.CLUSTERS, clusters)
    recorded("analyse")
    if (out / schema.REPORT).exists():
        write(out)
        record.record_anew(out, "report", [schema.REPORT])


def _lacking(part: str, run: Run) -> str:
    """Why a part cannot be computed; nothing where it can."""
    if part == REPLICATE:
        return ""  # refused, with the reason
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


def _prediction(
    run: Run, features: pd.DataFrame, label: Array, asked: Asked
) -> tuple[dict[str, Array], dict[str, Any]]:
    plan = _plan(run.config, run, len(features))
    rows = token_rows.rows_of(run.config, run.path)
    degree = features["n_active"].to_numpy()
    if rows is not None:
        degree = token_rows.norms(run.path, features["feature"].to_numpy(), rows, plan.rows)[1]
    exchanged = controls.exchanged(label, degree, asked.draws, run.config.seed)
    halves = np.load(reading.Files(run.path).path(schema.HALF_LABELS))
    subject = held_out.Subject(run.path, run.config, plan, features, run.prompts, halves, exchanged)
    columns, facts = held_out.predict(subject)
    large = np.flatnonzero(controls.kept_share(label, exchanged) > controls.OWN)
    for name in CONTROLLED:
        columns[name][large] = np.nan
    if len(large):
        log.warning(
            "validate: clusters %s have no controls: too few other features fire as often as theirs",
            ", ".join(map(str, large[:10])) + (" …" if len(large) > 10 else ""),
        )
    columns["prediction_q"] = evidence.discoveries(columns["prediction_p"])
    tests = int(np.count_nonzero(~np.isnan(columns["prediction_p"])))
    return columns, facts | {"tests": tests, "without_controls": large.tolist(), "draws": asked.draws}


def _levels(run: Run, features: pd.DataFrame, label: Array, asked: Asked) -> tuple[dict[str, Array], dict[str, Any]]:
    kept, above = features["feature"].to_numpy(), run.config.extract.activation_threshold
    degree = features["n_active"].to_numpy()
    sets = np.concatenate([[label], label[controls.exchanged(label, degree, asked.draws, run.config.seed)]])
    state, n_tokens = levels.nothing(sets), 0
    for where, fired in token_rows.shards(run.path, kept, token_rows.Rows(None, run.config.extract.aggregate)):
        fired.data[np.abs(fired.data) <= above] = 0
        state = levels.merge([state, levels.chunk(fired, where["prompt"], sets)])
        n_tokens += fired.shape[0]
    return levels.finish(state, sets), {"tokens": n_tokens, "draws": asked.draws}


def _replicate(run: Run, features: pd.DataFrame, label: Array, asked: Asked) -> tuple[dict[str, Array], dict[str, Any]]:
    if asked.other is None:
        raise InputError("replicate needs another run: give its folder")
    return replicating.replicate(run, Run(asked.other), asked.draws)


def _cause(run: Run, features: pd.DataFrame, label: Array, asked: Asked) -> tuple[dict[str, Array], dict[str, Any]]:
    return causing.measure(run, asked.cause)


WORK = {PREDICTION: _prediction, LEVELS: _levels, CAUSE: _cause, REPLICATE: _replicate}


def _plan(config: Config, run: Run, n_kept: int) -> budget.Plan:
    """How many prompts are read at a time."""
    stages = run.record["stages"]
    shapes = budget.Shapes(stages["prompts"]["rows"], stages["reduce"]["rows"], n_kept, 0)
    return budget.plan(config, shapes, budget.budget(config), held=())
