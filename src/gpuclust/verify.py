"""The command ``gpuclust verify DIR``: are a run's files what its stages wrote?"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpuclust import schema, stage_table, terminal
from gpuclust.places import place

if TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION = (
    "Check every file of a run or a sweep against its record and its checksums. What is damaged is marked, and its own "
    "command makes it anew. Exit code 0: all is well; 1: something is damaged."
)
SHOWN = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("run", type=place, metavar="DIR", help="folder of a run or a sweep")


def work(args: argparse.Namespace) -> None:
    """Check, say what is damaged, and mark it."""
    from rich.markup import escape

    from gpuclust.errors import CorruptDataError
    from gpuclust.formatting import counted
    from gpuclust.results.run import open_run
    from gpuclust.storage import verifying
    from gpuclust.storage.run_folder import claim

    console = terminal.console(quiet=False)
    if (args.run / schema.SWEEP).exists():
        _sweep(args.run, console)
        return
    run = open_run(args.run)
    stages = [name for name in stage_table.NAMES if name in run.record["stages"]]
    writable = os.access(args.run, os.W_OK)
    with claim(args.run) if writable else contextlib.nullcontext():
        found = verifying.damages(args.run)
        if not found:
            console.print(f"{escape(str(args.run))}: {len(stages)} stages, nothing is damaged")
            return
        bad = f"{counted(len(found), 'file')} damaged"
        for damage in found[:SHOWN]:
            console.print(f"{damage.stage}: {escape(damage.place)} {escape(damage.what)}", soft_wrap=True)
        if len(found) > SHOWN:
            console.print(f"and {len(found) - SHOWN:,} more")
        broken = [damage.stage for damage in found if damage.stage != verifying.CONFIGURATION]
        if not broken:
            raise CorruptDataError(f"{args.run}: {schema.CONFIG} is damaged. The run's own command writes it anew")
        first = min(broken, key=stage_table.NAMES.index)
        shards = args.run / schema.SHARDS
        if first in stage_table.ACTIVATIONS and shards.is_symlink() and not shards.exists():
            raise CorruptDataError(
                f"{args.run} takes its activations from {shards.readlink().parent}, which is not there any more: put "
                "that run back, or give --reuse where it is now and another --out"
            )
        imported = run.attributes.get("model") == schema.IMPORTED and not shards.is_symlink()
        if first in stage_table.ACTIVATIONS and (imported or not shards.exists()):
            if imported and writable:
                verifying.forget(args.run, first)
            raise CorruptDataError(f"{args.run}: imported activations are damaged; import them again, to this folder")
        if not writable:
            raise CorruptDataError(f"{args.run}: {bad}, and nothing can be written there")
        verifying.forget(args.run, first)
    again = [name for name in stage_table.after(first) if name in stages]
    raise CorruptDataError(
        f"{args.run}: {bad}. The run's own command makes anew what is damaged, in the stages {', '.join(again)}"
    )


def _sweep(path: Path, console: Console) -> None:
    """Check a sweep, and say what is damaged."""
    from rich.markup import escape

    from gpuclust.errors import CorruptDataError
    from gpuclust.formatting import counted
    from gpuclust.storage.run_folder import claim
    from gpuclust.sweep import verifying

    with claim(path, schema.SWEEP) if os.access(path, os.W_OK) else contextlib.nullcontext():
        found = list(verifying.damages(path))
    if not found:
        state = "a sweep" if verifying.finished(path) else "a sweep that is not finished"
        console.print(f"{escape(str(path))}: {state}, nothing is damaged")
        return
    for where, what in found[:SHOWN]:
        console.print(f"{escape(where)} {escape(what)}", soft_wrap=True)
    if len(found) > SHOWN:
        console.print(f"and {len(found) - SHOWN:,} more")
    raise CorruptDataError(f"{path}: {counted(len(found), 'file')} damaged. The sweep's own command makes it anew")


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 all is well, 1 something is damaged, 2 bad input."""
    return terminal.command("gpuclust.verify", DESCRIPTION, arguments, work, given)


if __name__ == "__main__":
    sys.exit(main())
