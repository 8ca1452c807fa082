"""A sweep in a folder: settings, the activations that they need, and the table that comes of it.

Everything below the folder has a name made of all that it depends on (`sharing`), so a killed sweep goes on,
and a changed one computes only what is new.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.console import Console

from gpuclust import config_paths, schema
from gpuclust.config import Config
from gpuclust.engine import reuse
from gpuclust.engine.pipeline import Pipeline
from gpuclust.engine.progress import Progress
from gpuclust.engine.scheduler import Scheduler, start
from gpuclust.errors import GpuclustError, SelectionError, StoreError
from gpuclust.formatting import counted
from gpuclust.hardware import process
from gpuclust.results.run import Run
from gpuclust.storage import atomic, checksums, store
from gpuclust.storage.record import RECORD_VERSION, refuse_other_version, versions
from gpuclust.storage.run_folder import Folder, claim, differences, others, read_settings
from gpuclust.sweep.computation import Computation
from gpuclust.sweep.grid import LENGTH, SOURCE, Setting, SweepConfig, expand
from gpuclust.sweep.sharing import Counts, Extraction, Trial, extraction_name, there, with_tokens
from gpuclust.sweep.trial_list import extractions_wanted, identity, read_extraction, trials_of

log = logging.getLogger("gpuclust")

SWEEP, RECORD = schema.SWEEP, "sweep.json"
RESULTS = SETTING_TABLE, PAIR_TABLE, LABELS = "sweep.parquet", "pairs.parquet", "labels.zarr"
EXTRACTIONS = "extractions"


@dataclass(eq=False)
class Experiment:
    """One sweep in one folder.

    Parameters
    ----------
    sweep : SweepConfig
    base : dict
        The resolved base configuration.
    out : Path
        Folder of the sweep.
    scheduler : str
        As ``--scheduler``, checked before.
    console : Console
    quiet : bool
    reuse : Path, optional
        Folder of a run whose activations are used where they are what settings need. It is only read.
    """

    sweep: SweepConfig
    base: dict[str, Any]
    out: Path
    scheduler: str
    console: Console
    quiet: bool
    reuse: Path | None = None
    counts: Counts = field(default_factory=Counts)

    def run(self) -> pd.DataFrame:
        """Compute what is missing, write the tables, and return the main one: a row per setting and seed.

        Raises
        ------
        GpuclustError
            If the folder holds something else, or the activations of the base cannot be had. What goes wrong with other
            settings is in their rows.
        """
        self._spell_paths()
        settings = expand(self.sweep, self.base)
        if self.reuse is not None:
            reuse.check(self.reuse, list(extractions_wanted(settings).values()), self.out)
        with claim(self.out, SWEEP):
            return self._run(settings)

    def _run(self, settings: Sequence[Setting]) -> pd.DataFrame:
        began = time.perf_counter()
        self._begin_folder()
        extractions = self._extract(settings)
        found = trials_of(self.sweep, self.base, settings, extractions)
        progress = Progress(self.console, self.quiet)
        with self._workers() as started, progress.stage("sweep"):
            work = Computation(started, progress, self.out, self.counts)
            work.compute(found)
            table = self._table(found, work.facts(found))
            pairs = self._pairs(settings, found, work)
            done = [trial for trial in found if trial.error is None]
            if not done:  # what an earlier command has found stays
                raise SelectionError(
                    f"all of the sweep failed, {counted(len(settings), 'setting')}; the first: {table['error'].iloc[0]}"
                )
            work.gather_labels(self.out / LABELS, done)
        atomic.write_table(self.out / SETTING_TABLE, table)
        atomic.write_table(self.out / PAIR_TABLE, pairs)
        first = extractions[identity(settings[0])]
        assert isinstance(first, Extraction)
        record = {
            "record_version": RECORD_VERSION, "versions": versions(),
            "settings": len(settings), "seeds": self.sweep.seeds, "rows": len(table),
            "failed": int(table["error"].notna().sum()), "seconds": round(time.perf_counter() - began, 1),
            "computed": vars(self.counts), "fields": self.sweep.fields, "default": settings[0].values,
            "prompts": len(first.prompts), "d_sae": first.d_sae, "attributes": first.attributes,
            "checksums": checksums.of_files(self.out, [name for name in RESULTS if (self.out / name).exists()]),
            "base": {key: value for key, _, value in differences(Config().resolved(), self.base) if _is_setting(key)},
            "questions": {name: [grid.vary for grid in grids] for name, grids in self.sweep.questions.items()},
        }  # fmt: skip
        checksums.write_json(self.out / RECORD, record)
        return table

    def _spell_paths(self) -> None:
        """Keep the relative paths of a sweep that an earlier version began here: files are named by them."""
        with contextlib.suppress(StoreError):  # nothing is there, or it is damaged, which is said later
            self.base = config_paths.as_recorded(self.base, read_settings(self.out / SWEEP).get("base"))

    def _begin_folder(self) -> None:
        """A folder of a sweep goes on, also with a changed sweep: files are named by what they depend on."""
        self.out = self.out.resolve()
        if self.out.is_file() or (others(self.out) and not (self.out / SWEEP).exists()):
            raise StoreError(f"--out {self.out} is not empty and holds no sweep; give a new or empty folder")
        if (self.out / SWEEP).exists():
            try:
                there = read_settings(self.out / SWEEP)
            except StoreError as error:  # what is there is named by what it depends on, and none of it is lost
                log.warning("sweep: %s is damaged and written anew (%s)", SWEEP, error)
            else:
                refuse_other_version(there, f"--out {self.out}", "sweep")
        self.out.mkdir(parents=True, exist_ok=True)
        atomic.remove_leftovers(self.out)
        data = {
            "record_version": RECORD_VERSION,
            "versions": versions(),
            **self.sweep.model_dump(mode="json"),
            "base": self.base,
        }
        atomic.write_text(self.out / SWEEP, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))

    @contextlib.contextmanager
    def _workers(self) -> Iterator[Scheduler]:
        """Workers for the settings: one per core on this machine, as trials run on one thread each."""
        process.check_room()
        base = Config.model_validate(self.base)
        settings = base.scheduler
        if settings.n_workers is None:
            settings = settings.model_copy(update={"n_workers": process.cores()})
        with start(self.scheduler, settings, base.device_bytes) as started:
            yield started

    # ------------------------------------------------------------ activations

    def _extract(self, settings: Sequence[Setting]) -> dict[str, Extraction | str]:
        """Activations by what they depend on; the text of the error where a setting other than the base fails."""
        wanted = extractions_wanted(settings)
        found: dict[str, Extraction | str] = {}
        for name, config in wanted.items():
            try:
                found[name] = self._extraction(config)
            except GpuclustError as error:
                if name == identity(settings[0]):
                    raise
                log.warning("a setting has no activations: %s", error)
                found[name] = str(error)
        return found

    def _extraction(self, config: Config) -> Extraction:
        config = there(self.out / EXTRACTIONS, config)
        path = self.out / EXTRACTIONS / extraction_name(config)
        if not path.exists() and self.reuse is not None and reuse.same(config, source := Run(self.reuse)):
            config = with_tokens(config) if source.config.keeps_tokens else config
            path = self.out / EXTRACTIONS / extraction_name(config)
            reuse.link(self.reuse, path, config)
        folder = Folder(path, config)
        if store.imported(path / schema.ACTIVATIONS):  # nothing here computes them
            reuse.refuse_not_whole(path, folder.record["stages"])
            key = folder.record["stages"]["extract"]["key"]
            return read_extraction(path, config, key, folder.record["stages"]["prompts"])
        with contextlib.ExitStack() as stack:
            pipeline = Pipeline(
                config, folder, _once(lambda: stack.enter_context(
                    start(self.scheduler, config.scheduler, config.device_bytes)
                )),
                Progress(self.console, self.quiet), report=False,
            )  # fmt: skip
            before = folder.record["stages"].get("extract", {}).get("key")
            key = pipeline.activations()
        self.counts.extractions += key != before
        return read_extraction(path, config, key, folder.record["stages"]["prompts"])

    # ------------------------------------------------------------ tables

    def _table(self, found: Sequence[Trial], facts: dict[Any, Any]) -> pd.DataFrame:
        rows = []
        for trial in found:
            setting = trial.setting
            questions = " ".join(sorted(f"{name}:{number}" for name, number in setting.grids))
            n = trial.subset.n if trial.subset is not None else None
            row = {"setting": setting.number, "seed": trial.seed, "questions": questions, "prompts": n}
            rows.append(row | facts.get((setting.number, trial.seed), {}) | {"error": trial.error})
        table = pd.DataFrame(rows)
        values = {key: plain([trial.setting.values[key] for trial in found]) for key in self.sweep.fields}
        place = list(table.columns).index("prompts")
        return pd.concat([table.iloc[:, :place], pd.DataFrame(values), table.iloc[:, place:]], axis=1)

    def _pairs(self, settings: Sequence[Setting], found: Sequence[Trial], work: Computation) -> pd.DataFrame:
        """Agreement between settings that differ in nothing but the group of prompts."""
        by_key = {(trial.setting.number, trial.seed): trial for trial in found if trial.error is None}
        seeds = sorted({trial.seed for trial in found})
        wanted = []
        for question, grids in self.sweep.questions.items():
            for number, grid in enumerate(grids):
                for name in (SOURCE, LENGTH):
                    if name in grid.vary:
                        own = [setting for setting in settings if (question, number) in setting.grids]
                        wanted += [
                            (question, number, name, a, b, by_key[a.number, seed], by_key[b.number, seed])
                            for a in own for b in own for seed in seeds
                            if a.number < b.number and _differ_in(a, b) == [name]
                            and (a.number, seed) in by_key and (b.number, seed) in by_key
                        ]  # fmt: skip
        agreements = work.between([(a, b) for *_, a, b in wanted])
        rows = [
            {"question": question, "grid": number, "field": name, "setting_a": a.number, "setting_b": b.number,
             "level_a": level(a.values[name]), "level_b": level(b.values[name]), "seed": trial.seed, **facts}
            for (question, number, name, a, b, trial, _), facts in zip(wanted, agreements, strict=True)
        ]  # fmt: skip
        columns = ["question", "grid", "field", "setting_a", "setting_b", "level_a", "level_b", "seed", "found_again"]
        return pd.DataFrame(rows, columns=None if rows else columns)


def level(value: Any) -> str:
    """Write a value of a varied field."""
    return value if isinstance(value, str) else json.dumps(value)


def plain(values: Sequence[Any]) -> list[Any]:
    """Values of one type for a column: numbers or booleans as they are, all else as text; None stays."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or kinds == {bool}:
        return list(values)
    return [None if value is None else level(value) for value in values]


def _differ_in(a: Setting, b: Setting) -> list[str]:
    return [key for key in a.values if a.values[key] != b.values[key]]


def _is_setting(key: str) -> bool:
    """Whether a field says how to cluster, and not of what or on which machine."""
    return key.split(".")[0] not in ("model", "sae", "prompts", "n_prompts", "store", "scheduler", "device", "plan")


def _once(make: Callable[[], Scheduler]) -> Callable[[], Scheduler]:
    made: list[Scheduler] = []

    def get() -> Scheduler:
        if not made:
            made.append(make())
        return made[0]

    return get
