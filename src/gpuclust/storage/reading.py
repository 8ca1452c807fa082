"""A run's files for reading: each is compared with its record before it is used, once, and damage is one clear error.

What a stage is about to read was compared when the command began (`Folder.done`); this is for all that reads a run
from outside: reports, cards, comparisons, exports, and `open_run`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuclust import schema, stage_table
from gpuclust.configfile import validate
from gpuclust.errors import ConfigError, CorruptDataError, StoreError
from gpuclust.storage import checksums, markers, store
from gpuclust.storage.record import read_record
from gpuclust.storage.run_folder import computing, holds_run, read_settings

if TYPE_CHECKING:
    import pandas as pd

COMPUTING = "a process is computing in that folder, and has not come that far. Wait for it"


class Files:
    """The files of one run.

    Parameters
    ----------
    run : Path
        Its folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._checked: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether the run has a file or folder, or should have: older runs were made without some."""
        return (self.run / name).exists() or self._recorded(name)

    def _recorded(self, name: str) -> bool:
        """Whether a stage that is done wrote a file or folder."""
        return any(name in entry.get("files", {}) for entry in self.record()["stages"].values())

    def settings(self) -> dict[str, Any]:
        """Return the configuration: the record's, or of older runs that in ``config.yaml``."""
        recorded = self.record().get("config") if (self.run / schema.RECORD).exists() else None
        return recorded or read_settings(self.run / schema.CONFIG)

    def knows_its_settings(self) -> bool:
        """Whether the record has the configuration, as that of every newer run."""
        return (self.run / schema.RECORD).exists() and "config" in self.record()

    def record(self) -> dict[str, Any]:
        """Return ``run.json``."""
        path = self.run / schema.RECORD
        if not holds_run(self.run):
            raise StoreError(f"{self.run} has no {schema.RECORD}: give the --out folder of a run")
        return read_record(path)

    def path(self, name: str) -> Path:
        """Return the place of a file or folder.

        Raises
        ------
        StoreError
            If it is not there.
        CorruptDataError
            If it is not what its stage wrote.
        """
        path = self.run / name
        if not self.run.is_dir():
            raise StoreError(f"there is no folder {self.run}: give the --out folder of a run")
        if not path.exists():
            raise StoreError(f"{self.run} has no {name}: {self._why_missing(name)}")
        if name not in self._checked:
            self._check(name)
            self._checked.add(name)
        return path

    def _why_missing(self, name: str) -> str:
        if computing(self.run):
            return COMPUTING
        if self._makers and name not in self._makers:
            if name in (schema.TOKENS, schema.CONTEXTS):
                return "only runs over tokens or windows have it (extract.rows), contexts with analyse.top_contexts"
            return "its settings make none"
        stage = self._makers.get(name)
        if stage and (self.run / schema.RECORD).exists() and stage not in self.record()["stages"]:
            return f"its stage {stage} is not done. The run's own command makes it"
        return "the run has not come that far, or was made without it. The run's own command makes what is missing"

    def _check(self, name: str) -> None:
        stages = read_record(self.run / schema.RECORD)["stages"] if (self.run / schema.RECORD).exists() else {}
        for stage, entry in stages.items():
            if bad := checksums.damaged(self.run, entry.get("checksums", {}), within=name):
                raise CorruptDataError(
                    f"{self.run / bad[0]} is not what the stage {stage} wrote: it fails its checksum. The run's own "
                    "command makes it anew"
                )
        if (stage := self._makers.get(name)) and stage not in stages:  # `verify` found it damaged, or it is being made
            way = f"and {COMPUTING}" if computing(self.run) else "and the run's own command makes it anew"
            raise StoreError(f"{self.run / name} is of the stage {stage}, which is not done, {way}")
        if name == schema.ACTIVATIONS:
            store.refuse_missing(self.run / name)  # Zarr would read zeros
            if bad := markers.shards_changed(self.run / name, self.run / schema.SHARDS):
                raise CorruptDataError(
                    f"{self.run / bad[0]} is not what the stage extract wrote: it has another size, or says nothing. "
                    "The run's own command makes it anew"
                )

    @cached_property
    def _makers(self) -> dict[str, str]:
        """The stage that writes each file and folder."""
        try:
            config = validate(self.settings(), where=str(self.run / schema.CONFIG))
        except (ConfigError, StoreError):  # of an older version, or there is none
            return {}
        return {name: stage.name for stage in stage_table.STAGES for name in stage.writes(config)}

    def table(self, name: str, columns: list[str] | None = None) -> pd.DataFrame:
        """Return a table; all its columns, or some."""
        return store.read_table(self.path(name), columns)

    def facts(self, name: str) -> dict[str, Any]:
        """Return JSON that a stage wrote; nothing where no stage did, as of older runs."""
        return checksums.read_json(self.path(name)) if self._recorded(name) else {}

    def group(self, name: str) -> Any:
        """Return a Zarr group, open for reading."""
        import zarr

        return zarr.open_group(self.path(name), mode="r")
