"""A run's folder: its configuration, its record, and which stages are done.

A stage is done when ``run.json`` says so under the same key (`keys`) and its files are there. Its entry says which
packages made it; ``versions`` at the top are those of the last command.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from gpuclust import schema, stage_table
from gpuclust.config import Config
from gpuclust.errors import StoreError
from gpuclust.storage import atomic, checksums, markers
from gpuclust.storage.atomic import write_json, write_text

log = logging.getLogger("gpuclust")

PACKAGES = (
    "gpuclust", "dask", "datasets", "hdbscan", "icu4py", "numpy", "sae-lens", "torch", "transformer-lens",
    "transformers", "umap-learn", "xarray", "zarr",
)  # fmt: skip
GPU_PACKAGES = ("cuml-cu13", "cupy-cuda13x", "dask-cuda", "rmm-cu13")  # where they are installed
RECORD_VERSION = 2  # of run.json: 1 had other keys, and no versions of a stage
# Settings that change how a run is computed, not what comes out, and settings that the first two stages depend on.
RESULT_FREE = ("scheduler", "device", "plan", "extract.batch_tokens")
AFTER_EXTRACTION = (
    "extract.activation_threshold", "select", "neighbors", "umap", "hdbscan", "consensus", "quality", "analyse",
)  # fmt: skip
EXTRACTION = ("extract", "store", "sae")
LEFT_IN = (".", "state", schema.VIEWS, schema.SHARDS, f"{schema.ACTIVATIONS}/activations/c")  # where leftovers may lie


@contextmanager
def claim(path: Path, mark: str = schema.RECORD) -> Iterator[None]:
    """Hold a run's folder while computing in it, so that no second process does; the system lets go of a killed one.

    Parameters
    ----------
    path : Path
    mark : str
        The file that tells such a folder from any other; a folder with other things and without it is left alone.

    Raises
    ------
    StoreError
        If another process holds it, or nothing can be written there.
    """
    from filelock import FileLock, Timeout

    if path.is_file() or (not (path / mark).exists() and others(path)):
        yield  # no run, which `Folder` refuses; nothing is put there
        return
    lock = FileLock(path / schema.LOCK)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(
            f"another process is computing in --out {path}. Wait for it, stop it, or give another --out"
        ) from error
    except OSError as error:
        raise StoreError(f"nothing can be written to --out {path}: {error.strerror}. Give another --out") from error
    try:
        yield
    finally:
        lock.release()


class Folder:
    """The folder of one run, open for writing.

    Parameters
    ----------
    path : Path
        Created when missing.
    config : Config

    Raises
    ------
    StoreError
        If the folder holds another run, a run of an older version, or something that is no run. While the run is not
        finished, settings of what comes after the extraction may change: a filter that kept nothing is widened.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        resolved = config.resolved()
        if path.exists() and not path.is_dir():
            raise StoreError(f"--out {path} is a file; give a folder")
        existing, record = path / schema.CONFIG, path / schema.RECORD
        self.record: dict[str, Any] = {"stages": {}}
        if record.exists():
            self.record = read_record(record)
            refuse_other_version(self.record, f"--out {path}", "run")
        if existing.exists() and record.exists():
            self._refuse_other_run(self.record.get("config") or read_settings(existing), resolved)
        elif record.exists() and "config" in self.record:
            self._refuse_other_run(self.record["config"], resolved)
        elif self.record["stages"]:
            raise StoreError(f"--out {path} holds a run without its {schema.CONFIG}. Restore it, or give another --out")
        elif not record.exists() and (there := others(path)):
            some = ", ".join(there[:3])
            raise StoreError(f"--out {path} is not empty and holds no run (it has {some}); give a new or empty folder")
        path.mkdir(parents=True, exist_ok=True)
        for name in LEFT_IN:
            atomic.remove_leftovers(path / name)
        self.record |= {
            "config": resolved,
            "record_version": RECORD_VERSION,
            "versions": versions(),
            "python": platform.python_version(),
        }
        if not record.exists():  # before the configuration, which alone would be anybody's
            self.save()
        write_text(existing, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))

    def _refuse_other_run(self, stored: Any, resolved: Mapping[str, Any]) -> None:
        """Refuse settings that what is there was made with; an unfinished run may be set otherwise further on."""
        differing = [
            f"{key} is {there!r} there and {here!r} now"
            for key, there, here in differences(stored, resolved)
            if self._made(key)
        ]
        if differing:
            more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
            raise StoreError(
                f"--out {self.path} holds another run: {'; '.join(differing[:3])}{more}. Give another --out, or delete "
                "that folder; nothing in it was changed"
            )

    def _made(self, key: str) -> bool:
        """Whether something that is done depends on a setting."""
        stages = self.record["stages"]
        if _within(key, RESULT_FREE):
            return False
        if _within(key, AFTER_EXTRACTION):
            return "analyse" in stages
        return "extract" in stages or (not _within(key, EXTRACTION) and "prompts" in stages)

    def begin(self, stage: str) -> None:
        """Forget a stage and all after it: they are about to be computed anew."""
        for name in stage_table.after(stage):
            self.record["stages"].pop(name, None)
        self.save()

    def done(self, stage: str, key: str, files: Sequence[str]) -> bool:
        """Whether a stage was completed under this key, and its files are still there and what they were.

        Parameters
        ----------
        stage, key : str
        files : sequence of str
            Files and folders that the stage writes, from the run's folder on.
        """
        entry = self.record["stages"].get(stage)
        if entry is None or entry["key"] != key:
            return False
        known = entry.get("files", {})
        if not all((self.path / name).exists() and self._count(name) >= known.get(name, 1) for name in files):
            return False
        bad = checksums.damaged(self.path, entry.get("checksums", {}))
        if schema.SHARDS in files:
            bad += markers.shards_changed(self.path / schema.ACTIVATIONS, self.path / schema.SHARDS)
        if bad:
            log.warning("%s: %s is not what the stage wrote, so it is made anew", stage, ", ".join(bad[:3]))
        return not bad

    def complete(self, stage: str, key: str, files: Sequence[str], **facts: Any) -> None:
        """Record a completed stage, with the versions that made it and how many files there are of each it wrote.

        Parameters
        ----------
        stage, key, files
            As in `done`.
        **facts
            What else is recorded of the stage.
        """
        self.record["stages"][stage] = {
            "key": key,
            "version": stage_table.get(stage).version,
            **facts,
            "files": {name: self._count(name) for name in files},
            "checksums": checksums.of_files(self.path, files),
            "versions": versions(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.save()

    def _count(self, name: str) -> int:
        """Files of a folder at any depth; 1 for a file, and for shards' states: the reduction can do without some."""
        path = self.path / name
        if not path.is_dir() or name == schema.SHARDS:
            return 1
        return sum(1 for file in path.rglob("*") if file.is_file())

    def save(self) -> None:
        """Write ``run.json``."""
        self.record["warnings"] = [
            f"{stage}: {text}" for stage, entry in self.record["stages"].items() for text in entry.get("warnings", [])
        ]
        write_json(self.path / schema.RECORD, self.record)

    def close(self) -> None:
        """Write ``run.json`` where it says something else, such as the versions of a command that computed nothing."""
        if read_record(self.path / schema.RECORD) != self.record:
            self.save()


def read_record(path: Path) -> dict[str, Any]:
    """Read ``run.json``.

    Raises
    ------
    StoreError
        If it is damaged, or of a newer version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise StoreError(
            f"{path} is damaged ({error}). Restore it, or compute the run anew in another --out"
        ) from error
    if not isinstance(data, dict) or "stages" not in data or not isinstance(data.get("record_version", 1), int):
        raise StoreError(f"{path} is no record of a run. Restore it, or compute the run anew in another --out")
    _refuse_newer(data, str(path))
    return data


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
        write_json(path / schema.RECORD, record)


def read_settings(path: Path) -> dict[str, Any]:
    """Read a configuration that gpuclust wrote.

    Raises
    ------
    StoreError
        If it is damaged.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf8"))
    except FileNotFoundError as error:
        raise StoreError(f"there is no {path}: give the folder of a run or a sweep") from error
    except (yaml.YAMLError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        said = " ".join(str(error).split())[:200]
        raise StoreError(f"{path} is damaged ({said}). Restore it, or give another --out") from error
    if not isinstance(data, dict):
        raise StoreError(f"{path} is damaged: it holds no configuration. Restore it, or give another --out")
    return data


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


def others(path: Path) -> list[str]:
    """Names of what is in a folder beside its lock and leftovers, sorted; none for a folder that does not exist."""
    if not path.exists():
        return []
    return sorted(p.name for p in path.iterdir() if p.name != schema.LOCK and not atomic.is_leftover(p))


def _within(key: str, sections: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in sections)


def differences(a: Any, b: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """List (key, value in a, value in b) wherever two nested configurations differ.

    Parameters
    ----------
    a, b : dict, or a value in one
    prefix : str
        Goes before every key.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in [*a, *(key for key in b if key not in a)]:
            found += differences(a.get(key), b.get(key), f"{prefix}{key}.")
        return found
    return [] if a == b else [(prefix.removesuffix("."), a, b)]


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    for name in GPU_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
