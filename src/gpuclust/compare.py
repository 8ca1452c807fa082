"""The command ``gpuclust compare RUN_A RUN_B …``: what two or more runs on one SAE agree on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gpuclust import terminal
from gpuclust.places import place

DESCRIPTION = "Compare the clusters of runs on the same SAE; the first run is the reference."


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("runs", nargs="+", type=place, metavar="RUN", help="folder of a run; two or more")
    parser.add_argument("--out", type=place, metavar="DIR", help="write tables and compare.html there")
    parser.add_argument("--csv", action="store_true", help="write the tables as CSV instead of Parquet")


def work(args: argparse.Namespace) -> None:
    """Compare, print, and write where that is asked for."""
    from rich.markup import escape

    from gpuclust.results import comparison

    console = terminal.console(quiet=False)
    tables = comparison.compare(args.runs)
    comparison.show(tables, console)
    if args.out is not None:
        comparison.write(tables, args.out, args.runs, "csv" if args.csv else "parquet")
        console.print(f"tables and {comparison.PAGE} are in {escape(str(args.out))}")


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input."""
    return terminal.command("gpuclust.compare", DESCRIPTION, arguments, work, given)


if __name__ == "__main__":
    sys.exit(main())
