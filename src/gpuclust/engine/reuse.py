"""A run on activations that another folder has: all of them as links, or those of some prompts as a copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from gpuclust import config_paths, schema, stage_table
from gpuclust.config import Config
from gpuclust.errors import StoreError
from gpuclust.results.run import Run
from gpuclust.storage import atomic, checksums, markers, reading, store
from gpuclust.storage.record import refuse_other_version, write_record
from gpuclust.storage.run_folder import differences
from gpuclust.types import Array

KEEPS_TOKENS = "keeps_tokens"


def link(source: Path, target: Path, config: Config | None = None) -> None:
    """Make a folder whose activations are those of another, and whose record says no more; the other is only read.

    Parameters
    ----------
    source, target : Path
        Folders of runs; the second must not exist.
    config : Config, optional
        Of the new run, default the other's; as long as what activations depend on is the same.
    """
    with atomic.replacing(target) as folder:
        folder.mkdir()
        for name in (schema.ACTIVATIONS, schema.SHARDS, schema.PROMPTS, schema.TOKENS):
            if name == schema.TOKENS and not (source / name).exists():
                continue
            (folder / name).symlink_to((source / name).resolve())
        _record(source, folder, config, {})


def texts(config: Config) -> dict[str, Any]:
    """What activations depend on: fields of the configuration and their values."""
    return {name: value for stage in stage_table.ACTIVATIONS
            for name, value in stage_table.values(stage_table.get(stage), config).items()}  # fmt: skip


def held(run: Run) -> dict[str, Any]:
    """Return what a run's activations depend on; tokens are there, too, where they were imported with prompts."""
    return texts(run.config) | ({KEEPS_TOKENS: True} if (run.path / schema.TOKENS).exists() else {})


def same(config: Config, run: Run) -> bool:
    """Whether a run has the activations that a configuration asks for, however it spells their paths."""
    known = held(run)
    wanted = config_paths.as_recorded(texts(config), known)
    if known[KEEPS_TOKENS]:  # what is asked of prompts alone is there, too
        wanted = wanted | {KEEPS_TOKENS: True}
    return wanted == known


def check(source: Path, wanted: Sequence[Config], target: Path | None = None) -> None:
    """Refuse a run whose activations cannot be taken for another.

    Parameters
    ----------
    source : Path
        Folder of the run that has them.
    wanted : sequence of Config
        Of what is to be computed; one of them has to need these activations.
    target : Path, optional
        Where it is to be computed.

    Raises
    ------
    StoreError
        If there are none, not all of them, or others than are needed, or if the target lies in the run's folder.
    """
    there = Run(source)
    refuse_other_version(there.record, f"--reuse {source}", "run")
    if "extract" not in there.record["stages"]:
        raise StoreError(f"--reuse {source}: the run has no activations yet; finish it, or leave --reuse out")
    known = held(there)
    if not any(same(config, there) for config in wanted):
        if wanted[0].keeps_tokens and not known[KEEPS_TOKENS]:
            raise StoreError(
                f"--reuse {source} has no tokens: it was extracted with extract.rows=prompt, and extract.rows is "
                f"{wanted[0].extract.rows} here. Extract anew without --reuse, or set extract.rows=prompt (in a "
                "sweep: take away what varies it)"
            )
        other = [f"{key} is {a!r} there and {b!r} here" for key, a, b in differences(known, texts(wanted[0]))]
        raise StoreError(
            f"--reuse {source} has other activations than are needed: {'; '.join(other[:4])}. Leave these settings as "
            f"they are there (in a sweep: base: {source / schema.CONFIG}), or leave --reuse out"
        )
    refuse_not_whole(source, there.record["stages"])
    if target is not None and target.resolve().is_relative_to(source.resolve()):
        raise StoreError(f"--out {target} lies in --reuse {source}, which is only read: give a folder beside it")


def refuse_not_whole(source: Path, stages: dict[str, Any]) -> None:
    """Refuse activations of which some are missing.

    Parameters
    ----------
    source : Path
        Folder of a run.
    stages : dict
        Of its record.

    Raises
    ------
    StoreError
    """
    lost = [name for name in stage_table.ACTIVATIONS if name not in stages]
    reason = f"the record has no stage {lost[0]}" if lost else _not_whole(source, stages["extract"])
    if reason:
        raise StoreError(
            f"--reuse {source}: its activations are not whole ({reason}); that run's own command makes them whole"
        )


def _not_whole(source: Path, entry: dict[str, Any]) -> str | None:
    """Why not all activations are there; imported ones, and copies of some, have no markers."""
    if gone := [name for name in entry.get("files", {}) if not (source / name).exists()]:
        return f"{', '.join(gone)} is missing"
    if schema.SHARDS in entry.get("files", {}):
        return markers.not_whole(source / schema.ACTIVATIONS, source / schema.SHARDS, entry["key"])
    there = (source / schema.ACTIVATIONS).is_dir()
    return None if there else f"{schema.ACTIVATIONS} is missing"


def settings(source: Path) -> Path:
    """Return where a run's settings are; StoreError where there is no run."""
    if not (source / schema.RECORD).exists():
        raise StoreError(f"--reuse {source}: there is no run; give the folder of a finished one")
    return source / schema.CONFIG


def begin(source: Path, target: Path, config: Config) -> None:
    """Make a run's folder on the activations of another run, unless it is there already; the other is only read.

    Parameters
    ----------
    source, target : Path
        Folders of runs.
    config : Config
        Of the new one.

    Raises
    ------
    StoreError
        As `check`, which is called first, and if the new folder holds another run's activations.
    """
    check(source, [config], target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rmdir()
        link(source, target, config)
    elif (target / schema.ACTIVATIONS).resolve() != (source / schema.ACTIVATIONS).resolve():
        raise StoreError(
            f"--out {target} is there already, and not on the activations of --reuse {source}: give another --out"
        )


def take(source: Path, target: Path, config: Config, prompts: Array) -> None:
    """Make a folder with the activations of some of another's prompts, renumbered from 0; the other is only read.

    Where in its prompt a feature peaks is not kept with activations, so the new run's examples have no positions.

    Parameters
    ----------
    source, target : Path
        Folders of runs; the second must not exist.
    config : Config
        Of the new run.
    prompts : array, (chosen,), int
        Ascending.
    """
    table = pd.read_parquet(source / schema.PROMPTS).iloc[prompts].reset_index(drop=True)
    table["prompt"] = np.arange(len(table))
    with atomic.replacing(target) as folder:
        folder.mkdir()
        atomic.write_table(folder / schema.PROMPTS, table)
        path, array = folder / schema.ACTIVATIONS, store.open_array(source / schema.ACTIVATIONS)
        attributes = store.attributes(source / schema.ACTIVATIONS)
        store.create(path, len(prompts), array.shape[1], config.store, attributes)
        ranges = store.shard_ranges(path)
        rows = _rows(source / schema.ACTIVATIONS, prompts, ranges[0][1])
        held = np.zeros((0, array.shape[1]), array.dtype)
        for index, (first, stop) in enumerate(ranges):
            while len(held) < stop - first:
                held = np.concatenate([held, next(rows)])
            store.write_rows(path, index, first, held[: stop - first])
            held = held[stop - first :]
        tokens = int(table["n_tokens"].clip(lower=0).sum())
        _record(source, folder, config, {"rows": len(table), "tokens": tokens})


def _rows(path: Path, prompts: Array, rows: int) -> Iterator[Array]:
    """Yield the activations of some prompts, block by block."""
    for first, block in store.read_rows(path, rows):
        own = prompts[(prompts >= first) & (prompts < first + len(block))]
        if len(own):
            yield block[own - first]


def _record(source: Path, folder: Path, config: Config | None, facts: dict[str, Any]) -> None:
    files = reading.Files(source)
    settings = files.settings() if config is None else config.resolved()
    atomic.write_text(folder / schema.CONFIG, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    record = files.record()
    stages = {name: record["stages"][name] | facts for name in stage_table.ACTIVATIONS}
    if facts:  # other files
        for stage in stages.values():
            there = {name: n for name, n in stage.get("files", {}).items() if (folder / name).is_file()}
            stage |= {"files": there, "checksums": checksums.of_files(folder, there)}
    write_record(folder / schema.RECORD, {**record, "config": settings, "stages": stages})
