"""A run's folder: its configuration, its record, and which stages are done.

A stage is done when ``run.json`` says so under the same key (`keys`) and its files are there. Its entry says which
packages made it; ``versions`` at the top are those of the last command.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from gpuclust import config_paths, configfile, schema, stage_table
from gpuclust.config import Config
from gpuclust.errors import CorruptDataError, StoreError
from gpuclust.storage import atomic, checksums, markers
from gpuclust.storage.atomic import write_text
from gpuclust.storage.record import RECORD_VERSION, read_record, refuse_other_version, versions, write_record

log = logging.getLogger("gpuclust")

# Settings that change how a run is computed, not what comes out, and settings that the first two stages depend on.
RESULT_FREE = ("scheduler", "device", "plan", "extract.batch_tokens")
AFTER_EXTRACTION = (
    "extract.activation_threshold", "select", "neighbors", "cluster", "communities", "dbscan", "umap",
    "hdbscan", "consensus", "quality", "validation", "analyse",
)  # fmt: skip
EXTRACTION = ("extract", "store", "sae")
_HELD: set[Path] = set()  # folders that this process computes in
LEFT_IN = (
    ".", "state", schema.VIEWS, schema.SHARDS, f"{schema.ACTIVATIONS}/activations/c", f"{schema.TOKENS}/activations/c",
)  # fmt: skip  # where leftovers may lie


def holds_run(path: Path) -> bool:
    """Whether a folder holds a run, though its record may be lost."""
    made = (schema.PROMPTS, schema.ACTIVATIONS)
    lost = (path / schema.CONFIG).exists() and any((path / name).exists() for name in made)
    return (path / schema.RECORD).exists() or lost


@contextmanager
def claim(path: Path, mark: str | None = None) -> Iterator[None]:
    """Hold a run's folder while computing in it, so that no second process does; the system lets go of a killed one.

    Parameters
    ----------
    path : Path
    mark : str, optional
        The file that tells such a folder from any other, for what is no run; a folder with other things, and without
        it, is left alone.

    Raises
    ------
    StoreError
        If another process holds it, or nothing can be written there.
    """
    from filelock import FileLock, Timeout

    ours = holds_run(path) if mark is None else (path / mark).exists()
    if path.is_file() or (not ours and others(path)):
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
    _HELD.add(path.absolute())
    try:
        yield
    finally:
        _HELD.discard(path.absolute())
        lock.release()


def computing(path: Path) -> bool:
    """Whether another process computes in a run's folder just now."""
    from filelock import FileLock, Timeout

    if path.absolute() in _HELD or not (path / schema.LOCK).exists():
        return False
    try:
        with FileLock(path / schema.LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that may only be read: nobody here computes in it
        return False


class Folder:
    """The folder of one run, open for writing.

    Parameters
    ----------
    path : Path
        Created when missing.
    config : Config
        As `config` it has the paths as what is there has them: runs of earlier versions kept relative ones.

    Raises
    ------
    StoreError
        If the folder holds another run, a run of an older version, or something that is no run. While the run is not
        finished, settings of what comes after the extraction may change: a filter that kept nothing is widened.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        resolved = config.resolved()
        if path.exists() and not path.is_dir():
            raise StoreError(f"--out {path} is a file; give a folder")
        existing, record = path / schema.CONFIG, path / schema.RECORD
        self.record: dict[str, Any] = {"stages": {}}
        if holds_run(path):
            if (known := self._known()) is not None:
                resolved = config_paths.as_recorded(resolved, known)
                if resolved != config.resolved():
                    self.config = configfile.validate(resolved)
                self._refuse_other_run(known, resolved)
        elif there := others(path):
            some = ", ".join(there[:3])
            raise StoreError(f"--out {path} is not empty and holds no run (it has {some}); give a new or empty folder")
        path.mkdir(parents=True, exist_ok=True)
        for name in LEFT_IN:
            if (path / name).resolve().is_relative_to(path.resolve()):  # not another run's, which may be computing them
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

    def _known(self) -> Any:
        """Take over the record; return the settings that what is there was made with, None where nothing is."""
        existing, record = self.path / schema.CONFIG, self.path / schema.RECORD
        try:
            self.record = read_record(record)
        except CorruptDataError as error:
            try:
                known = read_settings(existing)
            except StoreError as other:
                raise StoreError(f"{error}. {other}") from other
            log.warning("%s. That happens now", str(error).rstrip("."))
            self.record["lost"] = True
            return known
        refuse_other_version(self.record, f"--out {self.path}", "run")
        if "config" in self.record:
            return self.record["config"]
        if existing.exists():
            return read_settings(existing)
        if self.record["stages"]:
            raise StoreError(
                f"--out {self.path} holds a run without its {schema.CONFIG}. Restore it, or give another --out"
            )
        return None

    def _refuse_other_run(self, stored: Any, resolved: Mapping[str, Any]) -> None:
        """Refuse settings that what is there was made with; an unfinished run may be set otherwise further on.

        A setting that the version which made it did not know had its default.
        """
        stored = _with_defaults(stored, Config().resolved())
        differing = [
            f"{key} is {there!r} there and {here!r} now"
            for key, there, here in differences(stored, resolved)
            if self._made(key)
        ]
        if differing:
            more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
            tokens = any(key == "extract.rows" and there == "prompt" for key, there, _ in differences(stored, resolved))
            reuse = f"Another clustering of its activations: gpuclust run --reuse {self.path} --out OTHER --set …"
            raise StoreError(
                f"--out {self.path} holds another run: {'; '.join(differing[:3])}{more}. Give another --out, or delete "
                f"that folder; nothing in it was changed. {'It has no tokens to reuse' if tokens else reuse}"
            )

    @property
    def lost(self) -> bool:
        """Whether the record was lost and activations are not yet compared: nobody knows what was done."""
        return bool(self.record.get("lost", False))

    def _made(self, key: str) -> bool:
        """Whether something that is done depends on a setting."""
        stages = self.record["stages"]
        if _within(key, RESULT_FREE):
            return False
        if self.lost:
            return not _within(key, AFTER_EXTRACTION) or (self.path / schema.CLUSTERS).exists()
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
        if schema.SHARDS in files and not bad:  # else the store's own files may be what is damaged
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
        if stage == "extract":
            self.record.pop("lost", None)
        self.save()

    def _count(self, name: str) -> int:
        """Files of a folder at any depth; 1 for a file, and for shards' states: the reduction can do without some."""
        path = self.path / name
        if name == schema.SHARDS or not path.is_dir():
            return int(name != schema.SHARDS or path.is_dir())
        return sum(1 for file in path.rglob("*") if file.is_file())

    def save(self) -> None:
        """Write ``run.json``; what the run is worth stands first, where it is known."""
        headline = self.record["stages"].get("quality", {}).get("headline")
        rest = {name: value for name, value in self.record.items() if name != "headline"}
        self.record.clear()
        self.record.update(rest if headline is None else {"headline": headline} | rest)
        self.record["warnings"] = [
            f"{stage}: {text}" for stage, entry in self.record["stages"].items() for text in entry.get("warnings", [])
        ]
        write_record(self.path / schema.RECORD, self.record)

    def close(self) -> None:
        """Write ``run.json`` where it says something else, such as the versions of a command that computed nothing."""
        if read_record(self.path / schema.RECORD) != self.record:
            self.save()


def read_settings(path: Path) -> dict[str, Any]:
    """Read a configuration that gpuclust wrote.

    Raises
    ------
    StoreError
        If it is damaged.
    """
    try:
        data = configfile.parse(path.read_text(encoding="utf8"), room=10)
    except FileNotFoundError as error:
        raise StoreError(f"there is no {path}: give the folder of a run or a sweep") from error
    except (yaml.YAMLError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        said = " ".join(str(error).split())[:200]
        raise StoreError(f"{path} is damaged ({said}). Restore it, or give another --out") from error
    if not isinstance(data, dict):
        raise StoreError(f"{path} is damaged: it holds no configuration. Restore it, or give another --out")
    return data


def others(path: Path) -> list[str]:
    """Names of what is in a folder beside its lock and leftovers, sorted; none for a folder that does not exist."""
    if not path.exists():
        return []
    return sorted(p.name for p in path.iterdir() if p.name != schema.LOCK and not atomic.is_leftover(p))


def _within(key: str, sections: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in sections)


def _with_defaults(stored: Any, defaults: Mapping[str, Any]) -> Any:
    """Settings with the defaults of those that they lack."""
    if not isinstance(stored, Mapping):
        return stored
    both = {
        name: _with_defaults(stored[name], value) if isinstance(value, Mapping) and name in stored else value
        for name, value in defaults.items()
    }
    return both | {name: value for name, value in stored.items() if not isinstance(both.get(name), Mapping)}


def differences(a: Any, b: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """List (key, value in a, value in b) wherever two nested configurations differ; items of lists as long by number.

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
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        here, there = ({str(number): item for number, item in enumerate(one)} for one in (a, b))
        return differences(here, there, prefix)
    return [] if a == b else [(prefix.removesuffix("."), a, b)]
