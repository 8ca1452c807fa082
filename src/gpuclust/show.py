"""The command ``python -m gpuclust.show DIR``: a run, a cluster or a feature in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gpuclust import terminal
from gpuclust.errors import StoreError
from gpuclust.results import summary
from gpuclust.results.run import open_run


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    result = argparse.ArgumentParser(prog="python -m gpuclust.show", description="Show a run in the terminal.")
    result.add_argument("run", type=Path, metavar="DIR", help="folder of a run")
    result.add_argument("--cluster", type=int, metavar="N", action="append", default=[], help="a cluster's card")
    result.add_argument("--feature", type=int, metavar="N", action="append", default=[], help="a feature's card")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input."""
    args = parser().parse_args(arguments)
    console = Console(highlight=False)

    def work() -> None:
        run = open_run(args.run)
        for number in args.cluster:
            console.print(run.cluster(number))
        for number in args.feature:
            console.print(run.feature(number))
        if not args.cluster and not args.feature:
            if "analyse" not in run.record["stages"]:
                raise StoreError(
                    f"{args.run} has no clusters yet: its run stopped before the stage analyse; run the same command "
                    "again to go on"
                )
            summary.show(args.run, run.record, console)

    return terminal.exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
