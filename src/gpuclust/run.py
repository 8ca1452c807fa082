"""The command ``gpuclust run``, which is ``python -m gpuclust.run``: the main job, from prompts to cluster tables."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from gpuclust import plan, schema, terminal
from gpuclust.places import place

log = logging.getLogger("gpuclust")

DESCRIPTION = (
    "Cluster the features of a sparse autoencoder by how they fire over prompts. Without --config, the embedded demo. "
    "The same command on the same folder resumes."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    plan.arguments(parser)
    parser.add_argument("--out", type=place, metavar="DIR", help="folder of the run; default runs/NAME of the config")
    parser.add_argument(
        "--reuse", type=place, metavar="RUN",
        help="take the activations of this run, and without --config its settings; it is only read",
    )  # fmt: skip
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print stages, passes, bytes, peak memory, and time where --out or --reuse says it; run nothing",
    )
    parser.add_argument("--no-report", action="store_true", help="do not make report.html")
    terminal.quiet(parser)


def work(args: argparse.Namespace) -> None:
    """Run, or resume."""
    from gpuclust import configfile
    from gpuclust.engine import reuse
    from gpuclust.engine.execute import execute
    from gpuclust.engine.scheduler import choose
    from gpuclust.errors import InputError
    from gpuclust.extraction import prompts
    from gpuclust.storage.run_folder import Folder, claim
    from gpuclust.tables import labeller

    if args.reuse is not None:
        if args.out is None and not args.plan:
            raise InputError("--reuse needs --out: a folder for the new run, beside the one whose activations it takes")
        args.config = args.config or reuse.settings(args.reuse)
    if args.plan:
        if args.reuse is not None:
            reuse.check(args.reuse, [configfile.load(args.config, args.set)], args.out)
        plan.work(args)
        return
    console = terminal.console(args.quiet)
    config = configfile.load(args.config, args.set)
    if idle := configfile.without_effect(config):
        log.warning(idle)
    if config.model.name == schema.IMPORTED and args.reuse is None:
        raise InputError(
            f"these are settings of activations that were imported from {config.sae.path}, without a model: gpuclust "
            "import goes on with that run, and gpuclust run --reuse RUN --out OTHER clusters its activations anew"
        )
    out = args.out or Path("runs") / (args.config.stem if args.config else "demo")
    if config.analyse.labeller is not None:
        labeller.find(config.analyse.labeller)
    if args.reuse is None:  # else nothing is read of them
        prompts.check(config.prompts)
    choose(args.scheduler)  # refuses what cannot be had before anything is written
    if args.reuse is not None:
        reuse.begin(args.reuse, out, config)
    with claim(out):
        folder = Folder(out, config)
        execute(
            folder.config, folder, args.scheduler, console, quiet=args.quiet, report=not args.no_report,
            imported=args.reuse is not None,
        )  # fmt: skip
    if args.quiet:
        terminal.say(str(out))


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input or configuration, 1 a failure."""
    return terminal.command("gpuclust.run", DESCRIPTION, arguments, work, given)


if __name__ == "__main__":
    sys.exit(main())
