"""The command ``python -m gpuclust.sweep CONFIG``: many settings at little more than the cost of one run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape

from gpuclust import terminal
from gpuclust.engine.scheduler import NAMES, choose
from gpuclust.storage import store
from gpuclust.sweep import answers_page, grid
from gpuclust.sweep.answers import answers
from gpuclust.sweep.experiment import PAIRS, RECORD, TABLE, Experiment

PAGE, MARKDOWN = "sweep.html", "sweep.md"


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
    terminal.log_to(console, args.quiet)

    def work() -> None:
        sweep, base = grid.load(args.sweep, args.set)
        out = args.out or Path("runs") / args.sweep.stem
        choose(args.scheduler)
        Experiment(sweep, base, out, args.scheduler, console, args.quiet, args.reuse).run()
        report(out, args.markdown, console, args.quiet)

    return terminal.exit_code(work, "stopped; the same command goes on from here")


def report(out: Path, markdown: Path | None, console: Console, quiet: bool) -> None:
    """Answer from a sweep's tables: the page, the Markdown, and a summary.

    Parameters
    ----------
    out : Path
        Folder of a finished sweep.
    markdown : Path, optional
        Another place for the Markdown.
    console : Console
    quiet : bool
        No summary.
    """
    table, pairs = pd.read_parquet(out / TABLE), pd.read_parquet(out / PAIRS)
    record = json.loads((out / RECORD).read_text(encoding="utf8"))
    found = answers(table, pairs, record)
    written = answers_page.markdown(found, record)
    for path in filter(None, (out / MARKDOWN, markdown)):
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(path, written)
    store.write_text(out / PAGE, answers_page.html(found, table, record))
    if quiet:
        return
    for answer in found:
        console.print(f"\n[bold]{escape(answer.title)}[/bold] {answer.verdict}")
        for line in (*answer.sentences, *answer.notes):
            console.print(f"  {escape(line)}")
    console.print(f"\ntables, {PAGE} and {MARKDOWN} are in {escape(str(out))}")


if __name__ == "__main__":
    sys.exit(main())
