"""The command ``gpuclust plan``, and ``gpuclust run --plan``: what a run would take, before anything runs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from gpuclust import terminal
from gpuclust.places import place

log = logging.getLogger("gpuclust")

DESCRIPTION = "Print what a run would take, stage by stage: passes, bytes and peak memory. Nothing runs."


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--config", type=place, metavar="FILE", help="YAML file; see configs/")
    terminal.computing(parser)


def work(args: argparse.Namespace) -> None:
    """Print what a run would take."""
    from gpuclust import configfile
    from gpuclust.engine.planning import show_plan
    from gpuclust.tables import labeller

    console = terminal.console(quiet=False)
    config = configfile.load(args.config, args.set)
    if idle := configfile.without_effect(config):
        log.warning(idle)
    if config.analyse.labeller is not None:
        labeller.find(config.analyse.labeller)
    reused, out = getattr(args, "reuse", None), getattr(args, "out", None)  # of gpuclust run --plan
    show_plan(config, console, args.scheduler, extracted=reused is not None, earlier=reused or out)


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input or configuration, 1 a failure."""
    return terminal.command("gpuclust.plan", DESCRIPTION, arguments, work, given)


if __name__ == "__main__":
    sys.exit(main())
