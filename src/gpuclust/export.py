"""The command ``gpuclust export DIR OUT``: copy a run's activations to a store that needs no gpuclust."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gpuclust import terminal
from gpuclust.places import place

DESCRIPTION = "Copy a run's activations to a Zarr store that needs no gpuclust."


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("run", type=place, metavar="DIR", help="folder of a run")
    parser.add_argument("target", type=place, metavar="OUT", help="new Zarr store")
    parser.add_argument("--codec", choices=("zstd", "bitmap"), default="zstd", help="default zstd, which needs nothing")


def work(args: argparse.Namespace) -> None:
    """Copy."""
    from gpuclust.storage.export import export

    export(args.run, args.target, args.codec)
    terminal.say(f"wrote {args.target}")


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input."""
    return terminal.command("gpuclust.export", DESCRIPTION, arguments, work, given)


if __name__ == "__main__":
    sys.exit(main())
