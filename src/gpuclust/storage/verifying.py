"""Whether a run's files are what its stages wrote, and which stages have to be made anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuclust import schema, stage_table
from gpuclust.errors import CorruptDataError, StoreError
from gpuclust.storage import checksums, markers, store
from gpuclust.storage.record import read_record, write_record
from gpuclust.storage.run_folder import read_settings

CONFIGURATION = "configuration"  # stands for a stage: the run's own command writes it first of all


@dataclass(frozen=True)
class Damage:
    """One file that is not what its stage wrote."""

    stage: str
    place: str
    what: str


def damages(run: Path) -> list[Damage]:
    """Check every file of a run against its record, and every shard against its checksums.

    Raises
    ------
    StoreError
        If the record itself cannot be read.
    """
    record = read_record(run / schema.RECORD)
    stages = record["stages"]
    found: list[Damage] = []
    if "config" in record:
        try:
            same = read_settings(run / schema.CONFIG) == record["config"]
        except (OSError, StoreError):
            same = False
        found += [] if same else [Damage(CONFIGURATION, schema.CONFIG, f"is not what {schema.RECORD} holds")]
    for stage in [name for name in stage_table.NAMES if name in stages]:
        entry = stages[stage]
        gone = [name for name in entry.get("files", {}) if not (run / name).exists()]
        own = [Damage(stage, place, "is missing") for place in gone]
        bad = checksums.damaged(run, entry.get("checksums", {}))
        bad = [place for place in bad if not any(f"{place}/".startswith(f"{name}/") for name in gone)]
        own += [Damage(stage, place, "fails its checksum" if (run / place).exists() else "is missing") for place in bad]
        if stage == "extract" and not own:
            own = _shards(run, entry)
        found += own
    return found


def _shards(run: Path, entry: dict[str, Any]) -> list[Damage]:
    """Shards by their markers; those of imported activations, which have none, by reading them."""
    path, shards = run / schema.ACTIVATIONS, run / schema.SHARDS
    found = [Damage("extract", place, "is missing") for place in markers.lost(path, shards)]
    for index, (first, stop) in enumerate(store.shard_ranges(path)):
        reason = None
        if (shards / f"{index:05d}.json").exists():
            reason = markers.shard_done(path, shards, index, entry["key"])
        else:
            try:
                for _ in store.read_rows(path, stop - first, first, stop):
                    pass
            except CorruptDataError as error:
                reason = str(error)
        if reason is not None:
            found.append(Damage("extract", f"{schema.ACTIVATIONS}/activations/c/{index}/0", reason))
    return found


def forget(run: Path, stage: str) -> None:
    """Take a stage and all after it out of the record, so that the run's command makes them anew."""
    record = read_record(run / schema.RECORD)
    for name in stage_table.after(stage):
        record["stages"].pop(name, None)
    write_record(run / schema.RECORD, record)
