"""What clusters cause, next to random sets: how large their excess is, and what it costs.

    OMP_NUM_THREADS=1 python -m benchmarks.cause RUN [--budget N] [--amplify X] [--out FILE.json]

RUN has clusters and a model. Prints medians over the clusters that the budget reaches, the excess of clusters and of
random sets, and the processor's seconds a forward pass; nothing is written into RUN.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

import gpuclust
from gpuclust.engine import causing


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--budget", type=int, default=causing.BUDGET)
    parser.add_argument("--amplify", type=float, default=0.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    run = gpuclust.open_run(args.run)
    started = time.process_time()
    columns, facts = causing.measure(run, causing.Cause(args.budget, args.amplify))
    seconds = time.process_time() - started
    table = pd.DataFrame(columns).dropna(subset="cause_kl")
    excess = {"clusters": table["cause_excess"], "random sets": pd.Series(facts["random_sets"])}
    found = {
        "model": run.config.model.name,
        "passes": facts["passes"],
        "seconds of processor, loading included": round(seconds, 1),
        "clusters": len(table),
        "q at most 0.05": int((table["cause_q"] <= 0.05).sum()),
        "p below 0.05": int((table["cause_p"] < 0.05).sum()),
        "median": {name: float(f"{value:.3g}") for name, value in table.median().items()},
        "excess, quartiles": {
            name: [float(f"{q:.3g}") for q in np.quantile(values, (0, 0.25, 0.5, 0.75, 1))]
            for name, values in excess.items()
        },
    }
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
