"""The command ``gpuclust validate DIR``: do clusters predict anything, and is it more than topic?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpuclust import terminal
from gpuclust.places import place

if TYPE_CHECKING:
    import pandas as pd

DESCRIPTION = (
    "Validate a run's clusters: do mates tell where a feature fires in prompts they were not chosen from, beyond its "
    "words; do they fire on the same token, near one another, or only in the same prompt; what does the output do "
    "without them? Without a part named, the first two: the last runs the model."
)
SURE = 0.05  # false discoveries among clusters that are said to predict


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("run", type=place, metavar="DIR", help="folder of a run")
    parser.add_argument("--prediction", action="store_true", help="held-out prediction by cluster-mates")
    parser.add_argument("--levels", action="store_true", help="same token, near, or same prompt (needs kept tokens)")
    parser.add_argument("--cause", action="store_true", help="what the output does without a cluster (runs the model)")
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
    from gpuclust import schema
    from gpuclust.engine import causing, validating
    from gpuclust.errors import InputError, StoreError
    from gpuclust.storage.run_folder import claim, holds_run

    console = terminal.console(args.quiet)
    if args.draws < 2:
        raise InputError(f"--draws is {args.draws}; controls need 2 at least, and tell more with 8")
    if not holds_run(args.run):
        raise StoreError(f"{args.run} is no gpuclust run: give the --out folder of a run")
    parts = [name for name in validating.ALL if getattr(args, name)] or validating.PARTS
    cause = None
    if args.cause:
        cause = causing.Cause(causing.BUDGET if args.budget is None else args.budget, args.amplify)
        console.print(causing.said(args.run, cause), markup=False)
    elif args.plan or args.budget is not None or args.amplify:
        raise InputError("--plan, --budget and --amplify are of --cause: give it, too")
    if args.plan:
        return
    with claim(args.run):
        table, facts = validating.validate(args.run, parts, args.draws, cause)
    if args.quiet:
        terminal.say(str(args.run / schema.VALIDATION))
        return
    for line in summary(table, facts):
        console.print(line, markup=False)
    console.print(
        f"a row a cluster is in {args.run / schema.VALIDATION}, and on its card (show --cluster N)", markup=False
    )


def summary(table: pd.DataFrame, facts: dict[str, Any]) -> list[str]:
    """Say in a few lines what was found; what was left out is in the log.

    Parameters
    ----------
    table : DataFrame
        Columns of ``schema.VALIDATION_COLUMNS``.
    facts : dict
        As of `validating.validate`.
    """
    from gpuclust.compute.levels import LEVELS
    from gpuclust.formatting import counted

    lines, n = [], len(table)
    if "prediction" in facts:
        some = facts["prediction"]
        mean = table.mean(numeric_only=True)
        sure = int((table["prediction_q"] <= SURE).sum())
        lines += [
            f"cluster-mates tell where a feature fires in the other half of {counted(some['prompts'], 'prompt')} "
            f"(AUROC): {mean['prediction']:.2f}; random mates {mean['prediction_random']:.2f}; words, length and "
            f"source alone {mean['prediction_words']:.2f}",
            f"given these words: {mean['prediction_given_words']:.3f}, random mates "
            f"{mean['prediction_given_words_random']:.3f}; more than random mates do {sure} of {counted(n, 'cluster')} "
            f"({SURE:.0%} of them falsely, Benjamini and Hochberg, {counted(some['tests'], 'test')})",
        ]
    if "levels" in facts:
        times = table["level"].value_counts()
        said = {"token": "on the same token", "near": "within 16 tokens", "topic": "in the same prompt only"}
        told = [f"{times[word]} {said[word]}" for word in LEVELS.values() if word in times]
        told += [f"{times['none']} no more than matched features do"] if "none" in times else []
        lines.append(f"features of a cluster fire together: {', '.join(told) or 'nothing to count'}")
    if "cause" in facts:
        some, tried = facts["cause"], table.dropna(subset="cause_kl")
        kl = {name: tried[f"cause_kl{name}"].median() for name in ("", "_random", "_flipped", "_noise")}
        sure = int((tried["cause_q"] <= SURE).sum())
        done = f"times {some['amplify']:g}" if some["amplify"] else "taken out"
        lines += [
            f"a cluster {done} at {some['hook']}: KL {kl['']:.2g} nats per active token (median of "
            f"{counted(len(tried), 'cluster')} within {some['passes']:,} forward passes); as much of "
            f"others that are active there {kl['_random']:.2g}, flipped {kl['_flipped']:.2g}, noise {kl['_noise']:.2g}",
            f"more than random sets do {sure} of {counted(some['tests'], 'cluster')} ({SURE:.0%} of them falsely, "
            "Benjamini and Hochberg); single features of a cluster change the output alike: cosine "
            f" {tried['cause_same_direction'].mean():.2f}, of random sets "
            f"{tried['cause_same_direction_random'].mean():.2f}",
        ]
    return lines


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 bad input."""
    return terminal.command("gpuclust.validate", DESCRIPTION, arguments, work, given)


if __name__ == "__main__":
    sys.exit(main())
