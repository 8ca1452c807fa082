"""The command ``gpuclust import FILE``: a run of activations that are there already.

Python's own ``import`` cannot say this module's name; ``python -m gpuclust.import`` can.
"""

# ruff: noqa: N999 (a keyword is no name, but this is the command's)

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gpuclust import terminal
from gpuclust.places import place

DESCRIPTION = (
    "Make a run of activations that you have: .npy, .npz, .h5ad, Zarr, delphi's safetensors, the notebook's .pt. "
    "The same command on the same folder resumes."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("file", type=place, metavar="FILE", help="file or folder of activations (row, feature)")
    parser.add_argument("--out", type=place, metavar="DIR", help="folder of the run; default runs/NAME of the file")
    parser.add_argument("--config", type=place, metavar="FILE", help="YAML file: what comes after the activations")
    parser.add_argument(
        "--prompts", type=place, metavar="FILE",
        help="texts of the prompts, in order: .txt (one a line), .jsonl, .csv or .parquet",
    )  # fmt: skip
    parser.add_argument("--column", default="text", metavar="NAME", help="column of the texts; default text")
    parser.add_argument(
        "--tokenizer", metavar="MODEL", help="folder or hub id of the tokenizer of token ids, for words and texts"
    )
    parser.add_argument("--n-features", type=int, metavar="N", help="features of the SAE, where the file has no number")
    terminal.computing(parser)
    terminal.quiet(parser)


def work(args: argparse.Namespace) -> None:
    """Import, or go on."""
    from gpuclust import configfile
    from gpuclust.importing import import_activations

    console = terminal.console(args.quiet)
    run = import_activations(
        args.file, args.out, configfile.load(args.config, args.set), args.scheduler, prompts=args.prompts,
        column=args.column, tokenizer=args.tokenizer, n_features=args.n_features,
        console=None if args.quiet else console,
    )  # fmt: skip
    if args.quiet:
        terminal.say(str(run.path))


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input or configuration, 1 a failure."""
    return terminal.command("gpuclust.import", DESCRIPTION, arguments, work, given)


if __name__ == "__main__":
    sys.exit(main())
