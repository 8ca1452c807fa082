"""A run's folder: its configuration, its record, and which stages are done.

A stage is done when ``run.json`` says so under the same key and its files are there. The key is a hash of the
configuration the stage depends on, of the keys of the stages before it, and of the data it reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from gpuclust import schema
from gpuclust.config import Config
from gpuclust.errors import StoreError
from gpuclust.store import write_json, write_text

PACKAGES = (
    "gpuclust", "dask", "datasets", "hdbscan", "numpy", "sae-lens", "torch", "transformer-lens", "transformers",
    "umap-learn", "xarray", "zarr",
)  # fmt: skip
GPU_PACKAGES = ("cuml-cu13", "cupy-cuda13x", "dask-cuda", "rmm-cu13")  # where they are installed
RECORD_VERSION = 1
# Settings that change how a run is computed, not what comes out, and settings that the first two stages depend on.
RESULT_FREE = ("scheduler", "device", "plan", "extract.batch_tokens")
AFTER_EXTRACTION = (
    "extract.activation_threshold", "select", "neighbors", "umap", "hdbscan", "consensus", "quality", "analyse",
)  # fmt: skip
EXTRACTION = ("extract", "store", "sae")


def content_key(*parts: Any) -> str:
    """Hash plain data; equal data give equal keys on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


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
        If the folder holds another run, or something that is no run. While the run is not finished,
        settings of what comes after the extraction may change: a filter that kept nothing is widened.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        resolved = config.resolved()
        if path.exists() and not path.is_dir():
            raise StoreError(f"--out {path} is a file; give a folder")
        existing, record = path / schema.CONFIG, path / schema.RECORD
        self.record: dict[str, Any] = {"stages": {}}
        if record.exists() and existing.exists():
            self.record = read_record(record)
            stored = yaml.safe_load(existing.read_text(encoding="utf8"))
            if not isinstance(stored, dict):
                raise StoreError(f"{existing} is damaged: it holds no configuration. Restore it, or give another --out")
            self._refuse_other_run(stored, resolved)
        elif there := others(path):
            some = ", ".join(there[:3])
            raise StoreError(f"--out {path} is not empty and holds no run (it has {some}); give a new or empty folder")
        path.mkdir(parents=True, exist_ok=True)
        self.record |= {"record_version": RECORD_VERSION, "versions": versions(), "python": platform.python_version()}
        write_text(existing, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
        if not record.exists():
            self.save()

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
        for name in schema.STAGES[schema.STAGES.index(stage) :]:
            self.record["stages"].pop(name, None)
        self.save()

    def done(self, stage: str, key: str, files: Sequence[str]) -> bool:
        """Whether a stage was completed under this key and its files are still there."""
        entry = self.record["stages"].get(stage)
        return bool(entry and entry["key"] == key and all((self.path / name).exists() for name in files))

    def complete(self, stage: str, key: str, **facts: Any) -> None:
        """Record a completed stage."""
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        self.record["stages"][stage] = {"key": key, **facts, "finished": finished}
        self.save()

    def save(self) -> None:
        """Write ``run.json``."""
        self.record["warnings"] = [
            f"{stage}: {text}" for stage, entry in self.record["stages"].items() for text in entry.get("warnings", [])
        ]
        write_json(self.path / schema.RECORD, self.record)


def read_record(path: Path) -> dict[str, Any]:
    """Read ``run.json``.

    Raises
    ------
    StoreError
        If it is damaged.
    """
    try:
        data = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise StoreError(
            f"{path} is damaged ({error}). Restore it, or compute the run anew in another --out"
        ) from error
    if not isinstance(data, dict) or "stages" not in data:
        raise StoreError(f"{path} is no record of a run. Restore it, or compute the run anew in another --out")
    return data


def others(path: Path) -> list[str]:
    """Names of what is in a folder beside its lock, sorted; none for a folder that does not exist."""
    return sorted(p.name for p in path.iterdir() if p.name != schema.LOCK) if path.exists() else []


def _within(key: str, sections: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in sections)


def fingerprint(path: Path) -> Any:
    """Tell local files apart by size and content: all of a file, or both ends of those above 256 MiB; None if missing.

    A folder is the fingerprints of its files. Times do not count, so a copied folder is the same.
    """
    if path.is_dir():
        return {p.name: fingerprint(p) for p in sorted(path.iterdir()) if p.is_file()}
    if not path.is_file():
        return None
    size, whole = path.stat().st_size, 256 << 20
    with path.open("rb") as file:
        if size <= whole:
            return [size, hashlib.file_digest(file, "sha256").hexdigest()[:24]]
        ends = file.read(1 << 20)
        file.seek(-(1 << 20), 2)
        return [size, hashlib.sha256(ends + file.read()).hexdigest()[:24]]


def differences(a: Any, b: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """List (key, value in a, value in b) wherever two nested configurations differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in [*a, *(key for key in b if key not in a)]:
            found += differences(a.get(key), b.get(key), f"{prefix}{key}.")
        return found
    return [] if a == b else [(prefix.removesuffix("."), a, b)]


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    for name in GPU_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
