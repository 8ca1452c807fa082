"""The command ``python -m gpuclust.report DIR``: write a run's report anew."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpuclust import schema, terminal
from gpuclust.results.report import write


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m gpuclust.report", description="Write a run's report.html anew.")
    parser.add_argument("run", type=Path, metavar="DIR", help="folder of a run")
    args = parser.parse_args(arguments)

    def work() -> None:
        size = write(args.run)
        print(f"wrote {args.run / schema.REPORT} ({size / 1e6:.1f} MB)")

    return terminal.exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
