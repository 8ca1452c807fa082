"""A finished sweep in Python: its tables, and any of its settings as a run."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gpuclust import schema
from gpuclust.errors import CorruptDataError, InputError, StoreError
from gpuclust.places import place
from gpuclust.results.run import Run
from gpuclust.storage import checksums, store
from gpuclust.storage.keys import content_key
from gpuclust.storage.record import read_record
from gpuclust.storage.run_folder import read_settings
from gpuclust.sweep import subsets
from gpuclust.sweep.experiment import EXTRACTIONS, LABELS, PAIR_TABLE, RECORD, SETTING_TABLE, SWEEP
from gpuclust.sweep.grid import SweepConfig, expand
from gpuclust.sweep.sharing import PARTS, Extraction, Trial, extraction_name, there
from gpuclust.sweep.trial_list import extractions_wanted, read_extraction, trials_of

if TYPE_CHECKING:
    import xarray as xr

RUNS = "runs"
AGAIN = "The sweep's own command makes it anew, from what it has kept"


class Sweep:
    """A finished sweep, read from its folder when asked.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    StoreError
        If the folder is no finished sweep.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = place(path)
        missing = [name for name in (SWEEP, RECORD, SETTING_TABLE) if not (self.path / name).exists()]
        if missing:
            raise StoreError(
                f"{self.path} is no finished gpuclust sweep: it has no {missing[0]}. Give the --out folder of a sweep, "
                "or run its command again to finish it"
            )

    def __repr__(self) -> str:
        return f"Sweep({str(self.path)!r}, {self.record['settings']} settings, {self.record['seeds']} seeds)"

    @cached_property
    def record(self) -> dict[str, Any]:
        """``sweep.json``: what was asked, versions, what was computed."""
        try:
            found = checksums.read_json(self.path / RECORD)
        except ValueError as error:
            raise CorruptDataError(f"{self.path / RECORD} is damaged: {error}. {AGAIN}") from error
        if "settings" not in found:
            raise CorruptDataError(f"{self.path / RECORD} is damaged: it is no record of a sweep. {AGAIN}")
        return found

    def _file(self, name: str) -> Path:
        """A file that is what the sweep wrote."""
        if bad := checksums.damaged(self.path, self.record.get("checksums", {}), within=name):
            raise CorruptDataError(f"{self.path / bad[0]} is not what the sweep wrote: it fails its checksum. {AGAIN}")
        if not (self.path / name).exists():
            raise StoreError(f"{self.path} has no {name}. {AGAIN}")
        return self.path / name

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row per setting and seed: fields that vary, clusters, noise, agreement of halves and seeds, errors."""
        return store.read_table(self._file(SETTING_TABLE))

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Agreement between settings that differ in nothing but the group of prompts."""
        return store.read_table(self._file(PAIR_TABLE))

    @cached_property
    def labels(self) -> xr.DataArray:
        """Labels, (trial, part, feature): -1 noise, -2 not kept; parts are all prompts and the two halves.

        Along ``trial`` lie the coordinates ``setting`` and ``seed``, as in `table`; settings that failed have none.
        """
        import xarray

        opened = xarray.open_zarr(self._file(LABELS), consolidated=False)
        found: xr.DataArray = opened["labels"].assign_coords(
            setting=opened["setting"].load(), seed=opened["seed"].load(), part=list(PARTS)
        )
        return found

    @cached_property
    def _trials(self) -> list[Trial]:
        written = read_settings(self.path / SWEEP)
        base = written.pop("base")
        sweep = SweepConfig.model_validate(
            {name: written[name] for name in SweepConfig.model_fields if name in written}
        )
        settings = expand(sweep, base)
        extractions: dict[str, Extraction | str] = {}
        for name, wanted in extractions_wanted(settings).items():
            config = there(self.path / EXTRACTIONS, wanted)
            path = self.path / EXTRACTIONS / extraction_name(config)
            stages = read_record(path / schema.RECORD)["stages"] if (path / schema.RECORD).exists() else {}
            if "extract" in stages:
                extractions[name] = read_extraction(path, config, stages["extract"]["key"], stages["prompts"])
            else:
                extractions[name] = f"{path} has no activations"
        return trials_of(sweep, base, settings, extractions)

    def run(self, setting: int = 0, seed: int | None = None, scheduler: str = "threads") -> Run:
        """Open a setting as a run.

        The first time it is computed, from the sweep's activations, into a folder under ``runs``: everything that a run
        has, stability and cluster tables included, with the labels that the sweep has for it. After that it is opened.

        Parameters
        ----------
        setting : int
            As in the column ``setting`` of `table`; 0 is the base.
        seed : int, optional
            As in the column ``seed``; default the first.
        scheduler : str
            As ``--scheduler``.

        Raises
        ------
        InputError
            If there is no such setting or seed.
        StoreError
            If the setting has failed in the sweep, or its activations are gone.
        """
        own = [trial for trial in self._trials if trial.setting.number == setting]
        if not own:
            numbers = sorted({trial.setting.number for trial in self._trials})
            raise InputError(f"setting {setting} is not in {self.path}: it has {numbers[0]} to {numbers[-1]}")
        trial = next((trial for trial in own if seed in (None, trial.seed)), None)
        if trial is None:
            raise InputError(f"seed {seed} is not in {self.path}: it has {', '.join(str(one.seed) for one in own)}")
        if trial.error is not None or trial.extraction is None or trial.subset is None:
            raise StoreError(f"setting {setting} of {self.path} has no clusters: {trial.error}")
        return Run(self._computed(trial, trial.extraction, trial.subset, scheduler))

    def _computed(self, trial: Trial, extraction: Extraction, subset: subsets.Subset, scheduler: str) -> Path:
        from rich.console import Console

        from gpuclust.engine.execute import execute
        from gpuclust.engine.reuse import link, take
        from gpuclust.engine.scheduler import choose
        from gpuclust.storage.run_folder import Folder, claim

        config = trial.config.model_copy(update={"n_prompts": subset.n})
        key = content_key(extraction.key, trial.pattern, subset, config.resolved())
        path = self.path / RUNS / key
        choose(scheduler)
        if not path.exists():
            chosen = subsets.group_prompts(extraction.prompts, trial.pattern, subset.source, subset.length)[: subset.n]
            if len(chosen) == len(extraction.prompts):
                link(extraction.run, path, config)
            elif config.keeps_tokens:
                raise StoreError(
                    f"setting {trial.setting.number} of {self.path} is over {config.extract.rows}s of {subset}, of "
                    f"{len(extraction.prompts)}, and tokens of some prompts are not copied: open one of all prompts, "
                    "or run it by itself"
                )
            else:
                take(extraction.run, path, config, chosen)
        with claim(path):
            execute(
                config, Folder(path, config), scheduler, Console(quiet=True), quiet=True, report=False, imported=True
            )
        return path


def open_sweep(path: str | Path) -> Sweep:
    """Open a finished sweep.

    Parameters
    ----------
    path : str or Path
        Its folder.

    Raises
    ------
    StoreError
        If the folder is no finished sweep.
    """
    return Sweep(path)
