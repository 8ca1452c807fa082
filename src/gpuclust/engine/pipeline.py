"""A run: a loop over the stage table, on a Dask client; a stage is skipped when its key and files say it is done.

The driver only orchestrates: whatever computes is a task on a worker. `Pipeline.run` is what `execute` calls.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gpuclust import schema, stage_table
from gpuclust.config import Config
from gpuclust.engine.failures import everywhere
from gpuclust.engine.progress import Progress
from gpuclust.engine.scheduler import Scheduler, check_places
from gpuclust.engine.steps import STEPS, Context
from gpuclust.errors import CorruptDataError, StoreError
from gpuclust.extraction import encoders
from gpuclust.hardware import budget, device, process
from gpuclust.stage_table import Stage
from gpuclust.storage import markers
from gpuclust.storage.keys import inputs, stage_key
from gpuclust.storage.run_folder import Folder

log = logging.getLogger("gpuclust")


class Pipeline:
    """One run, stage by stage.

    Parameters
    ----------
    config : Config
    folder : Folder
    scheduler : callable
        Gives the `Scheduler`; called when the first stage has something to compute, so that a run with nothing to do
        starts no workers.
    progress : Progress
    report : bool
        Make ``report.html``.
    """

    def __init__(
        self, config: Config, folder: Folder, scheduler: Callable[[], Scheduler], progress: Progress, report: bool
    ) -> None:
        self.config = config
        self.folder = folder
        self.out = folder.path.resolve()
        self._scheduler = scheduler
        self.progress = progress
        self.report = report

    def run(self, imported: bool = False) -> None:
        """Compute what is missing, in order; from the reductions on, where the activations were imported."""
        known: dict[str, str] = {}
        if imported:
            self._refuse_without_activations()
            known = {name: self.folder.record["stages"][name]["key"] for name in stage_table.ACTIVATIONS}
        left_out = set(known) | (set() if self.report else {"report"})
        self._loop((name for name in stage_table.NAMES if name not in left_out), known)
        self.folder.close()

    def _refuse_without_activations(self) -> None:
        """Refuse to go on with imported activations that the record has lost."""
        if lost := [name for name in stage_table.ACTIVATIONS if name not in self.folder.record["stages"]]:
            raise StoreError(
                f"{self.out} has lost its activations: its record has no stage {' and no '.join(lost)}. Delete that "
                "folder, and do again what made it"
            )

    def activations(self) -> str:
        """Compute prompts and activations where they are missing; return the key that they have."""
        return self._loop(stage_table.ACTIVATIONS, {})["extract"]

    def _loop(self, names: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
        """Run stages in order; return all keys, those that were known before among them."""
        keys = dict(known)
        for stage in map(stage_table.get, names):
            done = self.folder.record["stages"]
            keys[stage.name] = key = stage_key(stage, self.config, keys, inputs(stage, self.config, done))
            if stage.name in _REFUSALS:
                _REFUSALS[stage.name](self.config, self.out, done, key)
            self._stage(stage, key, mendable="extract" not in known)
        return keys

    def _stage(self, stage: Stage, key: str, mendable: bool) -> None:
        """Run one stage unless it is done, with its time and peak memory recorded.

        `mendable`: activations that are damaged can be computed anew, because they come from this run.
        """
        name, files = stage.name, stage.writes(self.config)
        if self.folder.done(name, key, files):
            self.progress.skipped(name)
            return
        self.folder.begin(name)
        scheduler = self._scheduler()
        client = scheduler.client
        check_places(scheduler, self.config, self.out)
        if scheduler.device == "cuda" and name not in stage_table.ACTIVATIONS:  # these need the room of the weights
            everywhere(client, encoders.release)
        everywhere(client, process.reset_peak)
        everywhere(client, device.reset_peak)
        process.reset_peak()
        done = self.folder.record["stages"]
        started = time.perf_counter()
        with self.progress.stage(name):
            x = Context(name, self.config, self.out, key, done, scheduler, self.progress, self.folder.lost)
            facts, plan = self._computed(x, mendable)
        peaks = everywhere(client, process.peak_bytes)
        facts |= {
            "seconds": round(time.perf_counter() - started, 3),
            "peak_bytes": {"driver": process.peak_bytes(), **dict(sorted(peaks.items()))},
            "projected_bytes": _projected(plan, name, "peak"),
            "scheduler": scheduler.name,
        }
        if scheduler.device == "cuda":
            facts["device_peak_bytes"] = dict(sorted(everywhere(client, device.peaks).items()))
            facts["device_projected_bytes"] = _projected(plan, name, "device_peak")
        self.folder.record["scheduler"] = {"name": scheduler.name, "reason": scheduler.reason}
        self.folder.record["device"] = scheduler.device
        self.folder.complete(name, key, files, **facts)

    def _computed(self, x: Context, mendable: bool) -> tuple[dict[str, Any], budget.Plan | None]:
        """Run a step; activations that turn out to be damaged are not done any more, so that they are computed anew."""
        try:
            return STEPS[x.stage](x)
        except CorruptDataError as error:
            if x.stage in stage_table.ACTIVATIONS or not mendable:
                raise
            self.folder.begin("extract")
            raise CorruptDataError(
                f"{error}. The same command again computes the shards anew that are damaged"
            ) from error


def _projected(plan: budget.Plan | None, name: str, what: str) -> int | None:
    if plan is None:
        return None
    return next((getattr(stage, what) for stage in plan.stages if stage.stage == name), None)


# ---------------------------------------------------------------- activations of something else


def _refuse_other_prompts(config: Config, out: Path, done: Mapping[str, Any], key: str) -> None:
    """Leave a folder alone whose activations are of prompts that are not there any more."""
    known, shards = done.get("prompts"), markers.shards_done(out / schema.SHARDS)
    if known is None or known["key"] == key or not shards:
        return
    raise StoreError(
        f"{out} holds {shards} shards that were computed with other prompts: {_why(config, known)}. Restore it, give "
        "another --out, or delete that folder; nothing in it was changed"
    )


def _why(config: Config, known: Mapping[str, Any]) -> str:
    """Why the prompts' key is another one."""
    version = stage_table.get("prompts").version
    if known["version"] != version:
        return f"the stage prompts was of version {known['version']} there and is {version} now"
    sae = known["attributes"]["sae"]
    if sae != config.sae.label:
        return f"the SAE was {sae} there and is {config.sae.label} now"
    files = [source.path for source in config.prompts if source.path is not None and source.path != "demo"]
    missing = [path for path in files if not Path(path).exists()]
    return f"{', '.join(missing)} is not there" if missing else f"{', '.join(files) or 'a source'} has changed"


def _refuse_other_extraction(config: Config, out: Path, done: Mapping[str, Any], key: str) -> None:
    """Leave a store alone that holds activations of something else."""
    path, shards = out / schema.ACTIVATIONS, markers.shards_done(out / schema.SHARDS)
    held = shards or any((path / "activations" / "c").glob("*"))  # imported ones, and copies of some, have no markers
    if held and path.exists() and markers.begun_with(path, out / schema.SHARDS) not in (None, key):
        raise StoreError(
            f"{path} holds {shards or 'imported or copied'} shards that were computed with other settings, prompts or "
            "weights, or by another version. Give another --out, restore what was changed, or delete that folder; "
            "nothing in it was changed"
        )


_REFUSALS = {"prompts": _refuse_other_prompts, "extract": _refuse_other_extraction}
