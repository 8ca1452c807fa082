"""The command ``python -m gpuclust.sweep CONFIG``: many settings at little more than the cost of one run."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from gpuclust import grid
from gpuclust.errors import GpuclustError
from gpuclust.experiment import Experiment
from gpuclust.scheduler import NAMES, choose

log = logging.getLogger("gpuclust")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    result = argparse.ArgumentParser(
        prog="python -m gpuclust.sweep",
        description="Compute many settings that share their stages, and report what matters. The same command on the "
        "same folder goes on; a changed sweep computes only what is new.",
    )
    result.add_argument("sweep", type=Path, metavar="CONFIG", help="YAML file; see configs/questions.yaml")
    result.add_argument(
        "--scheduler", default="auto", metavar="|".join((*NAMES, "tcp://…")), help="where it computes; default auto"
    )
    result.add_argument("--out", type=Path, metavar="DIR", help="folder of the sweep; default runs/NAME of the file")
    result.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="on top of the base configuration"
    )
    result.add_argument("--reuse", type=Path, metavar="RUN", help="take the activations of this run; it is only read")
    result.add_argument("--markdown", type=Path, metavar="FILE", help="write the answers and their tables there too")
    result.add_argument("--quiet", action="store_true", help="log lines instead of bars and the summary")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input or configuration, 1 a failure."""
    args = parser().parse_args(arguments)
    console = Console(stderr=args.quiet, highlight=False)
    handler = RichHandler(console=console, show_path=False, markup=False, show_level=args.quiet)
    logging.basicConfig(level=logging.INFO if args.quiet else logging.WARNING, format="%(message)s", handlers=[handler])
    if args.quiet:
        logging.getLogger("gpuclust").setLevel(logging.INFO)
        logging.getLogger("distributed").setLevel(logging.WARNING)
    try:
        sweep, base = grid.load(args.sweep, args.set)
        out = args.out or Path("runs") / args.sweep.stem
        choose(args.scheduler)
        Experiment(sweep, base, out, args.scheduler, console, args.quiet, args.reuse).run()
    except GpuclustError as error:
        said = Console(stderr=True, highlight=False)
        said.print(f"[bold red]error:[/bold red] {escape(str(error))}", soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        console.print("[yellow]stopped; the same command goes on from here[/yellow]")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
