"""The command ``gpuclust show DIR``: a run, a cluster or a feature in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gpuclust import terminal
from gpuclust.places import place

DESCRIPTION = "Show a run, its clusters or its features in the terminal."


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("run", type=place, metavar="DIR", help="folder of a run")
    parser.add_argument("--cluster", type=int, metavar="N", action="append", default=[], help="a cluster's card")
    parser.add_argument("--feature", type=int, metavar="N", action="append", default=[], help="a feature's card")
    parser.add_argument("--clusters", action="store_true", help="all clusters, a line each")
    parser.add_argument("--themes", action="store_true", help="all themes, with their clusters")
    parser.add_argument("--figure", type=place, metavar="FILE", help="write the map there: .svg, .pdf or .png")
    parser.add_argument("--evidence", type=place, metavar="FILE", help="write what was tried on each cluster there")
    parser.add_argument("--dark", action="store_true", help="figures on dark ground")


def work(args: argparse.Namespace) -> None:
    """Print cards, or write the map, or print the summary."""
    from gpuclust.formatting import counted
    from gpuclust.results import summary
    from gpuclust.results.run import open_run

    console = terminal.console(quiet=False)
    run = open_run(args.run)
    for number in args.cluster:
        console.print(run.cluster(number))
    for number in args.feature:
        console.print(run.feature(number))
    if args.clusters:
        console.print(summary.clusters_of(run, console.width))
    if args.themes:
        console.print(summary.themes_of(run))
    if args.figure:
        named = run.write_map(args.figure, dark=args.dark)
        terminal.say(f"{args.figure}: {len(named)} of {len(run.clusters) - 1} clusters are named")
    if args.evidence:
        run.write_evidence(args.evidence, dark=args.dark)
        terminal.say(f"{args.evidence}: what was tried on {counted(len(run.clusters) - 1, 'cluster')}")
    if not (args.cluster or args.feature or args.clusters or args.themes or args.figure or args.evidence):
        if "analyse" not in run.record["stages"]:
            run.clusters  # noqa: B018  says why there are none
        summary.show(args.run, run.record, console)


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input."""
    return terminal.command("gpuclust.show", DESCRIPTION, arguments, work, given)


if __name__ == "__main__":
    sys.exit(main())
