"""What `gpuclust validate` found of a run's clusters: a table and facts, kept as long as the clusters are the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuclust import schema
from gpuclust.storage import atomic, checksums, store

if TYPE_CHECKING:
    import pandas as pd

CLUSTERED = "clustered"  # the keys of the stages that it is of
TABLE = "table"  # size and checksum of the table


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

    Parameters
    ----------
    out, stages
        As of `write`.
    """
    try:
        facts = checksums.read_json(out / schema.VALIDATION_FACTS)
    except (FileNotFoundError, ValueError):
        return None
    clustered, table = facts.pop(CLUSTERED, None), facts.pop(TABLE, None)
    if clustered != _of(stages) or table != checksums.of_file(out / schema.VALIDATION):
        return None
    return store.read_table(out / schema.VALIDATION), facts


def _of(stages: Mapping[str, Any]) -> dict[str, Any]:
    return {name: stages.get(name, {}).get("key") for name in ("cluster", "quality")}
