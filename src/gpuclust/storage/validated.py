"""What `gpuclust validate` found of a run's clusters: a table and facts, kept as long as the clusters are the same."""

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
TABLE = "table"  # size and checksum of the table
ADDED = ("cause", "replicate")  # parts that no run makes by itself


def write(out: Path, stages: Mapping[str, Any], table: pd.DataFrame, facts: Mapping[str, Any]) -> None:
    """Write table and facts.

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
    about = {CLUSTERED: _of(stages), TABLE: checksums.of_file(out / schema.VALIDATION)}
    checksums.write_json(out / schema.VALIDATION_FACTS, {**facts, **about})


def kept(out: Path, stages: Mapping[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """Return table and facts; None where there are none, or they are damaged or of clusters that are no more.

    What is lost with them is said: a run makes its own parts by itself, and no others.

    Parameters
    ----------
    out, stages
        As of `write`.
    """
    table, path = out / schema.VALIDATION, out / schema.VALIDATION_FACTS
    if not table.exists() and not path.exists():
        return None
    try:
        facts = checksums.read_json(path)
    except (FileNotFoundError, ValueError) as error:
        facts, why = {}, f"{path} is missing or damaged ({error})"
    else:
        why = "" if facts.pop(TABLE, None) == checksums.of_file(table) else f"{table} is missing or damaged"
        if not why and facts.pop(CLUSTERED, None) != _of(stages):
            why = f"the clusters of {out} are others now"
    if not why:
        return store.read_table(table), facts
    parts = [name for name in ADDED if name in facts]
    if not facts:
        parts = [f"{name}, if it was there" for name in ADDED]
    if parts:
        log.warning("validate: what was found before counts for nothing, because %s. Lost with it: %s; "
                    "gpuclust validate makes it again", why, " and ".join(parts))  # fmt: skip
    return None


def _of(stages: Mapping[str, Any]) -> dict[str, Any]:
    return {name: stages.get(name, {}).get("key") for name in ("cluster", "quality")}
