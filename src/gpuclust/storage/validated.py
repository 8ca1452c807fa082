"""What `gpuclust validate` found of a run's clusters: two files beside those of its stages, of its present clusters."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuclust import schema
from gpuclust.storage import atomic, checksums, store

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("gpuclust")

CLUSTERED = "clustered"  # the keys of the stages that it is of


def write(out: Path, stages: Mapping[str, Any], table: pd.DataFrame, facts: Mapping[str, Any]) -> None:
    """Write table and facts, with their checksums.

    Parameters
    ----------
    out : Path
        Folder of the run.
    stages : mapping
        Of its record.
    table : DataFrame
        Columns of ``schema.VALIDATION_COLUMNS``.
    facts : mapping
    """
    atomic.write_table(out / schema.VALIDATION, table)
    atomic.write_json(out / schema.VALIDATION_FACTS, {CLUSTERED: _of(stages), **facts})
    for name in (schema.VALIDATION, schema.VALIDATION_FACTS):
        checksums.seal(out / name)


def read(out: Path, stages: Mapping[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """Return table and facts; None where there are none, or they are damaged or of clusters that are no more.

    Parameters
    ----------
    out, stages
        As of `write`.
    """
    names = (schema.VALIDATION, schema.VALIDATION_FACTS)
    if not any((out / name).exists() for name in names):
        return None
    if not all(checksums.sealed(out / name, "counts for nothing: gpuclust validate makes it anew") for name in names):
        return None
    facts = checksums.plain_json(out / schema.VALIDATION_FACTS)
    if facts.get(CLUSTERED) != _of(stages):
        log.warning("%s is of other clusters than the run has now: gpuclust validate makes it anew", out / names[0])
        return None
    return store.read_table(out / schema.VALIDATION), facts


def _of(stages: Mapping[str, Any]) -> dict[str, Any]:
    return {name: stages.get(name, {}).get("key") for name in ("cluster", "quality")}
