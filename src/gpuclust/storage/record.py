"""The record of a run, ``run.json``: which stages are done, what made them, and the checksums of their files."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gpuclust import schema
from gpuclust.errors import CorruptDataError, StoreError
from gpuclust.storage import checksums

PACKAGES = (
    "gpuclust", "dask", "datasets", "hdbscan", "icu4py", "numpy", "sae-lens", "torch", "transformer-lens",
    "transformers", "umap-learn", "xarray", "zarr",
)  # fmt: skip
GPU_PACKAGES = ("cuml-cu13", "cupy-cuda13x", "dask-cuda", "rmm-cu13")  # where they are installed
RECORD_VERSION = 2  # of run.json: 1 had other keys, and no versions of a stage
KEYED = 2  # the version since which every stage has a key
ENTRY = {"files": dict, "checksums": dict, "attributes": dict, "versions": dict, "warnings": list}  # of a stage
MENDED = "The run's own command begins it anew: whole shards stay, and the stages after them are made again"


def read_record(path: Path) -> dict[str, Any]:
    """Read ``run.json``.

    Raises
    ------
    CorruptDataError
        If it is damaged or missing.
    StoreError
        If it is of a newer version.
    """
    try:
        data = checksums.read_json(path)
    except FileNotFoundError as error:
        raise CorruptDataError(f"{path} is missing. {MENDED}") from error
    except ValueError as error:
        raise CorruptDataError(f"{path} is damaged: {error}. {MENDED}") from error
    if not _is_record(data):
        raise CorruptDataError(f"{path} is damaged: it holds no record of a run. {MENDED}")
    _refuse_newer(data, str(path))
    return data


def _is_record(data: Mapping[str, Any]) -> bool:
    """Whether what is read of a record is what it should be: it may have been edited, its checksum taken away."""
    stages, version = data.get("stages"), data.get("record_version", 1)
    if not isinstance(stages, dict) or not isinstance(version, int) or not isinstance(data.get("config", {}), dict):
        return False
    for entry in stages.values():
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k, kind()), kind) for k, kind in ENTRY.items()):
            return False
        if not isinstance(entry.get("key"), str) and version >= KEYED:
            return False
        if not all(isinstance(count, int) for count in entry.get("files", {}).values()):
            return False
    return True


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``, with a checksum of its own."""
    checksums.write_json(path, record)


def record_anew(path: Path, stage: str, files: Sequence[str]) -> None:
    """Record the checksums of files that were written again outside the run's own command.

    Parameters
    ----------
    path : Path
        The run's folder.
    stage : str
        A stage that is done; nothing is recorded of others.
    files : sequence of str
        All that it writes.
    """
    record = read_record(path / schema.RECORD)
    entry = record["stages"].get(stage)
    if entry is not None and "checksums" in entry:
        entry["checksums"] = checksums.of_files(path, files)
        write_record(path / schema.RECORD, record)


def _refuse_newer(record: Mapping[str, Any], where: str) -> None:
    version = record.get("record_version", 1)
    if version > RECORD_VERSION:
        raise StoreError(
            f"{where} has record version {version}, but this version of gpuclust reads up to {RECORD_VERSION}: it was "
            "written by a newer one. Update gpuclust"
        )


def refuse_other_version(record: Mapping[str, Any], where: str, what: str) -> None:
    """Refuse to compute in a folder whose record is of another version: its keys are of another kind.

    Parameters
    ----------
    record : mapping
        With ``record_version`` and ``versions``, of a run or a sweep.
    where, what : str
        Of the message: the option and the folder, and what it holds.

    Raises
    ------
    StoreError
    """
    _refuse_newer(record, where)
    version = record.get("record_version", 1)
    if version < RECORD_VERSION:
        known = record.get("versions", {}).get("gpuclust")
        made = f" by gpuclust {known}" if known else ""
        raise StoreError(
            f"{where} holds a {what} made{made} with record version {version}, and this version (gpuclust "
            f"{importlib.metadata.version('gpuclust')}) goes on only with {RECORD_VERSION}. What is there can be read "
            "and reported as it is; to compute, give another --out, or delete that folder; nothing in it was changed"
        )


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on; "unknown" for one without metadata, such as a bare folder."""
    found = dict.fromkeys(PACKAGES, "unknown")
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    for name in GPU_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
