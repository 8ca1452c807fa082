"""A run on a scheduler that starts only when there is something to compute."""

from __future__ import annotations

import contextlib

from rich.console import Console
from rich.markup import escape

from gpuclust.config import Config
from gpuclust.engine.pipeline import Pipeline
from gpuclust.engine.progress import Progress
from gpuclust.engine.scheduler import Scheduler, start
from gpuclust.hardware import process
from gpuclust.results.summary import show
from gpuclust.storage.run_folder import Folder


def execute(
    config: Config, folder: Folder, scheduler: str, console: Console, *, quiet: bool, report: bool,
    imported: bool = False,
) -> Pipeline:  # fmt: skip
    """Run the pipeline on a scheduler that is started only when there is something to compute.

    Parameters
    ----------
    config : Config
    folder : Folder
    scheduler : str
        A name, checked by `scheduler.choose` before, or an address.
    console : Console
    quiet, report : bool
        Print nothing; make ``report.html``.
    imported : bool
        The activations were put there by other means: begin with the reductions.
    """
    with contextlib.ExitStack() as stack:
        started: list[Scheduler] = []

        def on_demand() -> Scheduler:
            if not started:
                process.check_room()
                started.append(stack.enter_context(start(scheduler, config.scheduler, config.device_bytes)))
                if not quiet:
                    console.print(f"[dim]{escape(started[0].where)}[/dim]")
            return started[0]

        pipeline = Pipeline(config, folder, on_demand, Progress(console, quiet), report)
        if not quiet:
            console.print(f"[bold]gpuclust[/bold] → {escape(str(folder.path))}")
        pipeline.run(imported)
    if not quiet:
        show(folder.path, folder.record, console)
    return pipeline
