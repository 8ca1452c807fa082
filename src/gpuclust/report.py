"""The command ``gpuclust report DIR``: write a run's report anew."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gpuclust import schema, terminal
from gpuclust.places import place

DESCRIPTION = "Write a run's report.html anew."


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("run", type=place, metavar="DIR", help="folder of a run")


def work(args: argparse.Namespace) -> None:
    """Write the report."""
    from gpuclust.results.report import write
    from gpuclust.storage import atomic
    from gpuclust.storage.record import record_anew
    from gpuclust.storage.run_folder import claim

    with claim(args.run):
        atomic.remove_leftovers(args.run, schema.REPORT)
        size = write(args.run)
        record_anew(args.run, "report", [schema.REPORT])
    terminal.say(f"wrote {args.run / schema.REPORT} ({size / 1e6:.1f} MB)")


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input."""
    return terminal.command("gpuclust.report", DESCRIPTION, arguments, work, given)


if __name__ == "__main__":
    sys.exit(main())
