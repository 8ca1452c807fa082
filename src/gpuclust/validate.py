"""The command ``gpuclust validate DIR``: do clusters predict anything, and is it more than topic?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from gpuclust import terminal
from gpuclust.places import place

DESCRIPTION = (
    "Validate a run's clusters: do mates tell where a feature fires in prompts they were not chosen from, beyond its "
    "words; do they fire on the same token, near one another, or only in the same prompt; what does the output do "
    "without them; does another SAE find them? Without a part named, the first two, which a run makes by itself."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("run", type=place, metavar="DIR", help="folder of a run")
    parser.add_argument("--prediction", action="store_true", help="held-out prediction by cluster-mates")
    parser.add_argument("--levels", action="store_true", help="same token, near, or same prompt (needs kept tokens)")
    parser.add_argument("--cause", action="store_true", help="what the output does without a cluster (runs the model)")
    parser.add_argument(
        "--replicate", type=place, metavar="RUN", help="a run of another SAE over the same prompts: does it find them?"
    )
    parser.add_argument("--draws", type=int, default=8, metavar="N", help="control clusterings, 2 or more; default 8")
    parser.add_argument(
        "--budget", type=int, metavar="N", help="forward passes of one prompt for --cause; default 2000"
    )
    parser.add_argument(
        "--amplify", type=float, default=0.0, metavar="X", help="for --cause: features times X; default 0, taken out"
    )
    parser.add_argument("--plan", action="store_true", help="say what --cause would cost, and do nothing")
    terminal.quiet(parser)


def work(args: argparse.Namespace) -> None:
    """Compute, write, and print."""
    from gpuclust import Run, schema, stage_table
    from gpuclust.engine import causing, validating
    from gpuclust.errors import InputError, StoreError
    from gpuclust.results import tried
    from gpuclust.storage.run_folder import claim, holds_run

    console = terminal.console(args.quiet)
    if args.draws < 2:
        raise InputError(f"--draws is {args.draws}; controls need 2 at least, and tell more with 8")
    if not holds_run(args.run):
        raise StoreError(f"{args.run} is no gpuclust run: give the --out folder of a run")
    parts = [name for name in validating.ALL if getattr(args, name)] or list(validating.PARTS)
    asked = validating.Asked(args.draws, args.replicate)
    if args.cause:
        cause = causing.Cause(causing.BUDGET if args.budget is None else args.budget, args.amplify)
        asked = replace(asked, cause=cause)
        console.print(causing.said(args.run, cause), markup=False)
    elif args.plan or args.budget is not None or args.amplify:
        raise InputError("--plan, --budget and --amplify are of --cause: give it, too")
    if args.plan:
        return
    with claim(args.run):
        run = Run(args.run)
        if not len(run.quality):
            raise StoreError(f"{args.run} has no clusters: there is nothing to validate")
        if left := [name for name in stage_table.NAMES if name not in run.record["stages"] and name != "report"]:
            raise StoreError(f"{args.run}: its stage {left[0]} is not done. The run's own command goes on")
        facts = validating.validate(args.run, parts, asked)
        validating.put_in_place(args.run)
    if set(parts) <= set(facts["left_out"]):
        told = "; ".join(f"{part}: {why}" for part, why in facts["left_out"].items())
        raise StoreError(f"{args.run}: nothing of what is asked can be computed ({told})")
    table = Run(args.run).validation
    if args.quiet:
        terminal.say(str(args.run / schema.VALIDATION))
        return
    for line in tried.lines(table, facts):
        console.print(line, markup=False)
    console.print(f"a row a cluster: {args.run / schema.VALIDATION}; on its card: show --cluster N", markup=False)


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input."""
    return terminal.command("gpuclust.validate", DESCRIPTION, arguments, work, given)


if __name__ == "__main__":
    sys.exit(main())
