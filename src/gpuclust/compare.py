"""The command ``gpuclust compare RUN_A RUN_B …``: what runs on one SAE agree on, or what other SAEs find again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpuclust import terminal
from gpuclust.places import place

if TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION = (
    "Compare the clusters of runs; the first run is the reference. Runs on one SAE are compared feature by feature, "
    "those on others over the same prompts: by how clusters rise and fall over these, and by their decoders, against "
    "random sets."
)
DRAWS = 8  # control clusterings, of runs on other SAEs


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
    if comparison.of_other_saes(args.runs):
        replication(args, console)
        return
    tables = comparison.compare(args.runs)
    comparison.show(tables, console)
    if args.out is not None:
        comparison.write(tables, args.out, args.runs, "csv" if args.csv else "parquet")
        console.print(f"tables and {comparison.PAGE} are in {escape(str(args.out))}")


def replication(args: argparse.Namespace, console: Console) -> None:
    """Say which clusters of the first run the others, of other SAEs, have too."""
    from gpuclust.engine import replicating
    from gpuclust.results import comparison, replicated

    if args.out is not None:
        comparison.refuse_run_folder(args.out)
    table, told = replicating.compare(args.runs, DRAWS)
    replicated.show(table, told, console)
    if args.out is not None:
        replicated.write(table, told, args.out, "csv" if args.csv else "parquet")
        console.print(f"the table and {replicated.PAGE} are in {args.out}", markup=False)


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input."""
    return terminal.command("gpuclust.compare", DESCRIPTION, arguments, work, given)


if __name__ == "__main__":
    sys.exit(main())
