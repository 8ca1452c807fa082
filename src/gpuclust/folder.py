"""A run's folder: its configuration, its record, and which stages are done.

A stage is done when ``run.json`` says so under the same key and its files are there. The key is a hash of the
configuration the stage depends on, of the keys of the stages before it, and of the data it reads.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from gpuclust import schema
from gpuclust.config import Config
from gpuclust.errors import StoreError
from gpuclust.store import write_json

PACKAGES = (
    "gpuclust", "dask", "datasets", "hdbscan", "numpy", "sae-lens", "torch", "transformer-lens", "transformers",
    "umap-learn", "xarray", "zarr",
)  # fmt: skip
RECORD_VERSION = 1
# The first stage that a setting matters to, most special first; scheduler and device matter to no result.
FIRST_STAGE = {
    "scheduler": None,
    "device": None,
    "extract.activation_threshold": "reduce",
    "extract.batch_tokens": None,
    "extract.prepend_bos": "prompts",
    "extract": "extract",
    "store": "extract",
    "select": "select",
    "neighbors": "select",
    "umap.n_neighbors": "select",
    "umap.metric": "select",
    "umap.enabled": "select",
    "umap": "embed",
    "hdbscan.min_samples": "neighbors",
    "hdbscan": "cluster",
    "quality": "cluster",
    "analyse": "analyse",
}


def content_key(*parts: Any) -> str:
    """Hash plain data; equal data give equal keys on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


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
        If the folder holds another run, or something that is no run. Settings of stages that are not done yet may
        change: a filter that kept nothing is widened without extracting again.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        resolved = config.resolved()
        if path.exists() and not path.is_dir():
            raise StoreError(f"--out {path} is a file; give a folder")
        existing, record = path / schema.CONFIG, path / schema.RECORD
        self.record: dict[str, Any] = json.loads(record.read_text(encoding="utf8")) if record.exists() else {}
        self.record.setdefault("stages", {})
        if existing.exists():
            self._refuse_other_run(yaml.safe_load(existing.read_text(encoding="utf8")), resolved)
        elif path.exists() and any(path.iterdir()):
            some = ", ".join(sorted(p.name for p in path.iterdir())[:3])
            raise StoreError(f"--out {path} is not empty and holds no run (it has {some}); give a new or empty folder")
        path.mkdir(parents=True, exist_ok=True)
        existing.write_text(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), encoding="utf8")
        self.record |= {"record_version": RECORD_VERSION, "versions": versions(), "python": platform.python_version()}

    def _refuse_other_run(self, stored: Any, resolved: Mapping[str, Any]) -> None:
        """Refuse settings that would change a stage that is done; what comes after may still be set otherwise."""
        differing = [
            f"{key} is {there!r} there and {here!r} now"
            for key, there, here in differences(stored, resolved)
            if _first_stage(key) in self.record["stages"]
        ]
        if differing:
            more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
            raise StoreError(
                f"--out {self.path} holds another run: {'; '.join(differing[:3])}{more}. Give another --out, or delete "
                "that folder; nothing in it was changed"
            )

    def done(self, stage: str, key: str, files: Sequence[str]) -> bool:
        """Whether a stage was completed under this key and its files are still there."""
        entry = self.record["stages"].get(stage)
        return bool(entry and entry["key"] == key and all((self.path / name).exists() for name in files))

    def complete(self, stage: str, key: str, **facts: Any) -> None:
        """Record a completed stage."""
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        self.record["stages"][stage] = {"key": key, **facts, "finished": finished}
        self.save()

    def fact(self, stage: str, name: str) -> Any:
        """Return one recorded fact of a completed stage, or None."""
        return self.record["stages"].get(stage, {}).get(name)

    def save(self) -> None:
        """Write ``run.json``."""
        self.record["warnings"] = [
            f"{stage}: {text}" for stage, entry in self.record["stages"].items() for text in entry.get("warnings", [])
        ]
        write_json(self.path / schema.RECORD, self.record)


def _first_stage(key: str) -> str | None:
    """The first stage that a setting matters to."""
    return next((stage for name, stage in FIRST_STAGE.items() if f"{key}.".startswith(f"{name}.")), "prompts")


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
    return {name: importlib.metadata.version(name) for name in PACKAGES}
