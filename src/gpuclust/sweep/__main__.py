"""The command ``gpuclust sweep CONFIG``: many settings at little more than the cost of one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpuclust import terminal
from gpuclust.places import place

DESCRIPTION = (
    "Compute many settings that share their stages, and report what matters. The same command on the same folder goes "
    "on; a changed sweep computes only what is new."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("sweep", type=place, metavar="CONFIG", help="YAML file; see configs/questions.yaml")
    terminal.computing(parser)
    parser.add_argument("--out", type=place, metavar="DIR", help="folder of the sweep; default runs/NAME of the file")
    parser.add_argument("--reuse", type=place, metavar="RUN", help="take the activations of this run; it is only read")
    parser.add_argument("--markdown", type=place, metavar="FILE", help="write the answers and their tables there too")
    terminal.quiet(parser)


def work(args: argparse.Namespace) -> None:
    """Compute what is new, and answer."""
    from gpuclust.engine.scheduler import choose
    from gpuclust.sweep import grid
    from gpuclust.sweep.experiment import Experiment
    from gpuclust.sweep.report import report

    console = terminal.console(args.quiet)
    sweep, base = grid.load(args.sweep, args.set)
    out = args.out or Path("runs") / args.sweep.stem
    choose(args.scheduler)
    Experiment(sweep, base, out, args.scheduler, console, args.quiet, args.reuse).run()
    report(out, args.markdown, console, args.quiet)
    if args.quiet:
        terminal.say(str(out))


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input or configuration, 1 a failure."""
    return terminal.command("gpuclust.sweep", DESCRIPTION, arguments, work, given)


if __name__ == "__main__":
    sys.exit(main())
