"""Processes that begin with everything imported and compiled: forks of one that has not started a thread of Dask.

`warm` does what is slow once, without Dask and zarr, whose threads a fork would lose. numba is set to one thread of its
own layer, which a fork survives; OpenMP's does not.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ONE_THREAD = {
    "NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "300",
    "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TERM": "dumb",
    "PYTHONWARNINGS": "ignore",
}  # fmt: skip
MODULES = (
    "gpuclust.cli", "gpuclust.engine.execute", "gpuclust.engine.tasks", "gpuclust.engine.planning",
    "gpuclust.engine.quality_task", "gpuclust.results.report.content", "gpuclust.results.comparison",
    "gpuclust.extraction.encoders", "gpuclust.extraction.extract_shard", "gpuclust.sweep.experiment",
    "gpuclust.sweep.report", "gpuclust.importing", "gpuclust.notebook_cache",
    "gpuclust.tables.profiles", "distributed", "zarr", "xarray",
    "transformers", "transformer_lens", "sae_lens", "pyarrow.parquet", "anndata", "datasets", "plotly.offline",
)  # fmt: skip
TRACEBACK = 70  # exit code of a child whose function raised what nobody foresaw
LINES = 12  # of what a child said are kept


@dataclass
class Child:
    """What became of a process.

    Attributes
    ----------
    code : int
        Its exit code; minus the number of the signal that ended it; -999 for one that had to be ended: it hung.
    text : str
        The last lines that it wrote.
    rows : list
        What it noted, in order (`Note`).
    """

    code: int
    text: str
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def hung(self) -> bool:
        return self.code == -999

    @property
    def raised(self) -> bool:
        """Whether it ended with a traceback, by a signal that nobody sent, or had to be ended."""
        return self.code == TRACEBACK or self.code < 0 or "Traceback (most recent call last)" in self.text

    @property
    def last(self) -> str:
        """The last line that says something."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return lines[-1] if lines else ""


Note = Callable[[dict[str, Any]], None]


def warm() -> None:
    """Import and compile, in this process, all that a run needs. Call it once, before `run`."""
    if os.environ.get("NUMBA_NUM_THREADS") != "1":
        raise RuntimeError("set forking.ONE_THREAD in the environment before anything is imported")
    import numpy as np
    import torch
    import tqdm

    import gpuclust

    tqdm.tqdm.monitor_interval = 0
    torch.set_num_threads(1)
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    values = np.abs(np.random.default_rng(0).normal(size=(60, 48))).astype(np.float32)
    sizes: dict[str, Any] = {"hdbscan": {"min_cluster_size": 4, "min_samples": 3}, "select": {"sparsity_max": 1.01}}
    umap = {"n_components": 3, "n_neighbors": 6, "n_epochs": 20}
    gpuclust.cluster_features(values, {**sizes, "umap": umap, "consensus": {"members": 2, "n_epochs": 20}})
    gpuclust.cluster_features(values, {**sizes, "umap": umap, "cluster": {"method": "distances"}})


def run(work: Callable[[Note], object], *, seconds: float = 120.0) -> Child:
    """Run a function in a fork and wait for it.

    Parameters
    ----------
    work : callable
        Given a function that notes a row (plain data) for the parent. What it returns, an int or None, is the exit
        code.
    seconds : float
        After which it counts as hung and is ended.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    said, noted = _Pipe(), _Pipe()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _be_child(work, said, noted)
    while True:
        said.read()
        noted.read()
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() - began > seconds:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            code = -999
            break
        time.sleep(0.005)
    text, lines = said.close().decode(errors="replace"), noted.close().decode().splitlines()
    if "Traceback (most recent call last)" not in text:
        text = "\n".join(text.splitlines()[-LINES:])
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):  # cut short by a kill
            rows.append(json.loads(line))
    return Child(code, text, time.monotonic() - began, rows)


class _Pipe:
    """What a child writes: through a pipe, which no limit on files and no full disk touches."""

    def __init__(self) -> None:
        self.reads, self.writes = os.pipe()
        os.set_blocking(self.reads, False)
        self.found = bytearray()

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while block := os.read(self.reads, 1 << 16):
                self.found += block

    def close(self) -> bytes:
        """All of it; the child has ended."""
        os.close(self.writes)
        self.read()
        os.close(self.reads)
        return bytes(self.found)


def _be_child(work: Callable[[Note], object], said: _Pipe, noted: _Pipe) -> None:
    """The child: its output to a pipe, its exit code from what the function did. Never returns."""
    code: object = TRACEBACK
    try:
        os.setsid()
        os.dup2(said.writes, 1)
        os.dup2(said.writes, 2)
        sys.stdout = open(1, "w", buffering=1, encoding="utf8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, encoding="utf8", closefd=False)  # noqa: SIM115

        def note(row: dict[str, Any]) -> None:
            os.write(noted.writes, (json.dumps(row) + "\n").encode())

        code = work(note) or 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
