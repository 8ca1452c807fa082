"""Which clusters of a run another SAE has, and what nulls would be said to have.

    python -m benchmarks.replicate RUN OTHER [OTHER …] [--again N] [--out FILE.json]

For each other run: how many clusters are replicated, partly and not, either way round, with correlations, angles and
prompts beside their controls; and the same for three nulls, of which nothing should be called replicated:

- shuffled prompts: the other run's prompts in a drawn order, `--again` times, as the others;
- other's features exchanged: the other run's clusters of features drawn among those that fire as often;
- own features exchanged: this run's clusters of such features.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust.compute import controls, replication
from gpuclust.engine import replicating
from gpuclust.results.run import Run
from gpuclust.storage import atomic
from gpuclust.tables import feature_table


def told(columns: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    words = [str(word) for word in columns["replicated"]]
    means = {name: float(np.nanmean(value)) for name, value in columns.items()
             if name.startswith("replicate_") and not np.isnan(value).all()}  # fmt: skip
    p = columns["replicate_p"][~np.isnan(columns["replicate_p"])]
    return {
        "clusters": len(words), **{word: words.count(word) for word in (*replication.WORDS, "None")},
        "p below 0.05": float((p <= 0.05).mean()), "controls called replicated": facts["random"], **means,
        "prompts": facts["prompts"], "no angles": facts["no_angles"],
    }  # fmt: skip


def drawn(path: Path, seed: int) -> Run:
    """A run whose labels are of features that fire as often."""
    run = Run(path)
    table = run.features.copy()
    point = feature_table.is_point(table)
    label = table.loc[point, "label"].to_numpy(np.int64)
    order = controls.exchanged(label, table.loc[point, "n_active"].to_numpy(), 1, seed)[0]
    table.loc[point, "label"] = label[order]
    run.features = table
    return run


def summed(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts added up, and means of the others."""
    counts = ("clusters", *replication.WORDS, "None")
    return {name: sum(one[name] for one in found) if name in counts else float(np.mean([one[name] for one in found]))
            for name in found[0] if isinstance(found[0][name], int | float)}  # fmt: skip


def of_pair(path: Path, other: Path, again: int) -> dict[str, Any]:
    started = time.perf_counter()
    found = {"forth": told(*replicating.replicate(Run(path), Run(other), 32))}
    found["forth"]["seconds"] = time.perf_counter() - started
    found["back"] = told(*replicating.replicate(Run(other), Run(path), 32))
    plain = replicating.shared
    nulls: dict[str, list[dict[str, Any]]] = {"shuffled prompts": [], "other's exchanged": [], "own exchanged": []}
    for seed in range(again):

        def shuffled(run: Run, there: Run, seed: int = seed) -> Any:
            own, theirs = plain(run, there)
            return own, np.random.default_rng(seed).permutation(theirs)

        replicating.shared = shuffled
        nulls["shuffled prompts"].append(told(*replicating.replicate(Run(path), Run(other), 32)))
        replicating.shared = plain
        nulls["other's exchanged"].append(told(*replicating.replicate(Run(path), drawn(other, 100 + seed), 32)))
        nulls["own exchanged"].append(told(*replicating.replicate(drawn(path, 100 + seed), Run(other), 32)))
    return found | {name: summed(some) for name, some in nulls.items()}


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("others", type=Path, nargs="+")
    parser.add_argument("--again", type=int, default=3, help="draws of every null")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = {other.name: of_pair(args.run, other, args.again) for other in args.others}
    print(json.dumps(found, indent=1))
    if args.out:
        atomic.write_json(args.out, found)


if __name__ == "__main__":
    main()
