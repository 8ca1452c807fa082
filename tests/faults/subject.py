"""What faults are tried on: a tiny model and SAE, the commands on them, and their undisturbed results."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import scripts, tiny
from tests.faults import forking

# Of records: what a resumed run counts otherwise than one in a go
COUNTED = {"computed", "shards_computed", "store_reads", "files", "checksums", "stored_bytes", "warnings", "bytes"}
PAGES = (".html", ".lock")  # hold times; not tables
LATER = {
    "umap": {"n_components": 3, "n_neighbors": 6, "n_epochs": 50},
    "hdbscan": {"min_cluster_size": 4, "min_samples": 3},
}


@dataclass
class Subject:
    """Folders: `base` has the model and all undisturbed results; `work` is where each try happens."""

    base: Path

    @property
    def work(self) -> Path:
        return self.base / "work"

    @property
    def out(self) -> Path:
        return self.work / "out"

    @property
    def config(self) -> Path:
        return self.base / "config.yaml"

    def undisturbed(self, command: str) -> Path:
        """The folder that `work` was after an undisturbed command."""
        return self.base / f"undisturbed-{command}"

    @property
    def finished(self) -> Path:
        """A finished run."""
        return self.undisturbed("run") / "out"

    @property
    def other(self) -> Path:
        """Another finished run, on other settings."""
        return self.base / "other"

    def wipe(self, command: str = "") -> None:
        """Make `work` what a command begins with."""
        if self.work.exists():
            shutil.rmtree(self.work)
        self.work.mkdir()
        if command == "report":
            shutil.copytree(self.finished, self.out, symlinks=True)

    def run(self, work: Callable[[forking.Note], object], seconds: float = 120.0) -> forking.Child:
        """Run a function in a fork."""
        return forking.run(work, seconds=seconds)

    def command(self, name: str, before: Callable[[forking.Note], object] | None = None) -> forking.Child:
        """Run a command in a fork, after `before`."""

        def work(note: forking.Note) -> object:
            if before is not None:
                before(note)
            return COMMANDS[name](self)

        return self.run(work)

    def compared(self, command: str, there: Path | None = None) -> list[str]:
        """How `work` differs from what an undisturbed command leaves; nothing where it does not."""
        return self.unlike(self.undisturbed(command), there or self.work)

    def unlike(self, before: Path, after: Path) -> list[str]:
        """How a folder differs from another, in a process of its own."""

        def work(note: forking.Note) -> object:
            for line in differences(before, after):
                note({"line": line})
            return 0

        child = self.run(work)
        lines = [str(row["line"]) for row in child.rows]
        return lines if child.code == 0 else [*lines, f"cannot be compared: {child.last}"]


def differences(before: Path, after: Path) -> Iterator[str]:
    """Differences of tables and arrays, and files that only one has."""
    compare = scripts.load("compare_folders")
    for line in compare.differences(before, after, compare.VOLATILE | COUNTED):
        name = line.partition(":")[0]
        if not (name.endswith(PAGES) and "only" not in line) and ".lock: only" not in line:
            yield line


def prepare(base: Path, commands: tuple[str, ...]) -> Subject:
    """Make model, prompts and undisturbed results.

    Raises
    ------
    RuntimeError
        If an undisturbed command fails.
    """
    import yaml

    subject = Subject(base)
    base.mkdir(parents=True, exist_ok=True)
    settings = tiny.build(base) | {"quality": {"null": False, "decoder": False, "random_sets": 2}}
    subject.config.write_text(yaml.safe_dump(settings))
    small = {**settings, "consensus": {"members": 1}}
    sweep = {"base": small, "vary": {"umap.n_neighbors": [4, 6]}, "seeds": 1}
    (base / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    (base / "other.yaml").write_text(yaml.safe_dump({**settings, "hdbscan": {"min_cluster_size": 3, "min_samples": 2}}))
    child = subject.run(
        lambda note: (
            _cache(base)
            or _main(
                "run", "--config", base / "other.yaml", "--out", subject.other, "--scheduler", "threads", "--quiet"
            )
        )
    )
    if child.code:
        raise RuntimeError(f"the undisturbed other run fails: {child.text}")
    for name in ("run", *(one for one in commands if one != "run")):
        subject.wipe(name)
        child = subject.command(name)
        if child.code:
            raise RuntimeError(f"the undisturbed command {name} fails with {child.code}: {child.text}")
        subject.work.rename(subject.undisturbed(name))
    return subject


def _cache(base: Path) -> None:
    """A notebook's cache, made of random numbers."""
    import torch

    generator = torch.Generator().manual_seed(0)
    values = torch.rand(40, 48, generator=generator)
    torch.save({"acts": values, "prompts": [f"prompt {i} on topic {i % 7}" for i in range(40)]}, base / "cache.pt")


def _main(*arguments: object) -> int:
    from gpuclust import cli

    return cli.main([str(one) for one in arguments])


def run_command(subject: Subject, out: Path) -> int:
    """The command ``run``."""
    return _main("run", "--config", subject.config, "--out", out, "--scheduler", "threads", "--quiet")


def _sweep(subject: Subject) -> int:
    return _main("sweep", subject.base / "sweep.yaml", "--out", subject.out, "--scheduler", "threads", "--quiet")


def _import(subject: Subject) -> int:
    from gpuclust import import_cache, terminal

    config: dict[str, Any] = {
        **LATER, "select": {"sparsity_max": 2.0}, "consensus": {"members": 1}, "quality": {"random_sets": 2},
        "store": {"shard_prompts": 16, "chunk_prompts": 8, "chunk_features": 40},
    }  # fmt: skip
    return terminal.exit_code(lambda: import_cache(subject.base / "cache.pt", subject.out, config, "threads"))


COMMANDS: dict[str, Callable[[Subject], int]] = {
    "run": lambda s: run_command(s, s.out),
    "sweep": _sweep,
    "export": lambda s: _main("export", s.finished, s.out),
    "import_cache": _import,
    "compare": lambda s: _main("compare", s.finished, s.other, "--out", s.out),
    "report": lambda s: _main("report", s.out),
}
