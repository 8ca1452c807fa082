"""The command ``python -m gpuclust.run``: the main job, from prompts to cluster tables."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gpuclust import configfile, terminal
from gpuclust.compute import feature_filter
from gpuclust.config import Config
from gpuclust.engine.pipeline import Pipeline
from gpuclust.engine.progress import Progress
from gpuclust.engine.scheduler import NAMES, Scheduler, choose, start
from gpuclust.errors import ConfigError
from gpuclust.extraction import model_sizes, prompts
from gpuclust.hardware import budget
from gpuclust.hardware.backend import cuda_status
from gpuclust.hardware.device import free_bytes
from gpuclust.storage.run_folder import Folder, claim
from gpuclust.tables import labeller

log = logging.getLogger("gpuclust")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    result = argparse.ArgumentParser(
        prog="python -m gpuclust.run",
        description="Cluster the features of a sparse autoencoder by how they fire over prompts. Without --config, the "
        "embedded demo. The same command on the same folder resumes.",
    )
    result.add_argument("--config", type=Path, metavar="FILE", help="YAML file; see configs/")
    result.add_argument(
        "--scheduler", default="auto", metavar="|".join((*NAMES, "tcp://…")), help="where it computes; default auto"
    )
    result.add_argument("--out", type=Path, metavar="DIR", help="folder of the run; default runs/NAME of the config")
    result.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="such as umap.n_components=10"
    )
    result.add_argument("--plan", action="store_true", help="print stages, passes, bytes and peak memory; run nothing")
    result.add_argument("--no-report", action="store_true", help="do not make report.html")
    result.add_argument("--quiet", action="store_true", help="log lines instead of bars and the summary")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input or configuration, 1 a failure."""
    args = parser().parse_args(arguments)
    console = Console(stderr=args.quiet, highlight=False)
    terminal.log_to(console, args.quiet)

    def work() -> None:
        config = configfile.load(args.config, args.set)
        out = args.out or Path("runs") / (args.config.stem if args.config else "demo")
        if config.analyse.labeller is not None:
            labeller.find(config.analyse.labeller)
        if args.plan:
            show_plan(config, console, args.scheduler)
            return
        prompts.check(config.prompts)
        choose(args.scheduler)  # refuses what cannot be had before anything is written
        with claim(out):
            folder = Folder(out, config)
            execute(config, folder, args.scheduler, console, quiet=args.quiet, report=not args.no_report)

    return terminal.exit_code(work, "stopped; the same command goes on from here")


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
        Log lines instead of bars; make ``report.html``.
    imported : bool
        The activations were put there by other means: begin with the reductions.
    """
    with contextlib.ExitStack() as stack:
        started: list[Scheduler] = []

        def on_demand() -> Scheduler:
            if not started:
                started.append(stack.enter_context(start(scheduler, config.scheduler, config.device_bytes)))
                if not quiet:
                    console.print(f"[dim]scheduler {started[0].name}: {escape(started[0].reason)}[/dim]")
            return started[0]

        pipeline = Pipeline(config, folder, on_demand, Progress(console, quiet), report)
        if not quiet:
            console.print(f"[bold]gpuclust[/bold] → {escape(str(folder.path))}")
        pipeline.run(imported)
    if not quiet:
        from gpuclust.results.summary import show

        show(folder.path, folder.record, console)
    return pipeline


def show_plan(config: Config, console: Console, scheduler: str = "auto") -> None:
    """Print what a run would do, with every feature kept (the most it can take).

    A plan is arithmetic: ``--scheduler local-cuda`` plans for GPU workers on any machine, given ``device.memory``.
    """
    facts = model_sizes.facts(config)
    feature_filter.check_size(facts["d_sae"], config.fewest_features)
    name = "local-cuda" if scheduler == "local-cuda" else choose(scheduler)[0]
    device = "cuda" if name == "local-cuda" else "cpu"
    on_device = None
    if device == "cuda" and (on_device := config.device_bytes) is None:
        if not cuda_status().usable:
            raise ConfigError(
                "--plan for GPU workers needs a budget where there is no GPU: --set device.memory=6GB, say"
            )
        on_device = free_bytes()
    whole = budget.Shapes(
        config.n_prompts,
        facts["d_sae"],
        facts["d_sae"],
        facts["d_in"],
        facts["model_bytes"],
        sae_bytes=facts["sae_bytes"],
    )
    allowed = budget.budget(config, device=device)
    plan = budget.plan(config, whole, allowed, held=("extract",), device_allowed=on_device)
    bounds = f"memory of a worker: {budget.gigabytes(allowed)}"
    if on_device is not None:
        bounds += f" of the host, {budget.gigabytes(on_device)} of its GPU"
    console.print(
        f"{config.n_prompts:,} prompts × {facts['d_sae']:,} features ({facts['model']}, {facts['source']}), {bounds}"
    )
    console.print(
        f"blocks of {plan.rows:,} prompts, Gram tiles of {plan.tile:,} features, {plan.tiles_per_pass} a pass"
    )
    rows = budget.table(plan)
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    model = budget.gigabytes(facts["model_bytes"]) + " of language model up to the hook counted in"
    bounds = "all features kept, as many clusters as hdbscan.min_cluster_size allows"
    console.print(f"[dim]upper bounds: {bounds}; {model}[/dim]")
    for stage in plan.stages:
        for needed, of, bound in ((stage.peak, "host", allowed), (stage.device_peak, "GPU", on_device)):
            if needed is not None and bound is not None and needed > bound:
                console.print(
                    f"[yellow]! {stage.stage} would not fit the {of}'s memory at these bounds: change "
                    f"{stage.setting}[/yellow]"
                )


if __name__ == "__main__":
    sys.exit(main())
