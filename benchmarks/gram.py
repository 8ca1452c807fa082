"""Where the sparse product overtakes the dense one: seconds of one Gram pass.

    python -m benchmarks.gram [--prompts 4096] [--features 4096]

Made-up activations; each density is timed dense and sparse in turn, three times, and the medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from gpuclust.compute import gram


def seconds(blocks: list[np.ndarray], n: int, sparse: bool) -> float:
    """Time one pass over blocks of prompts."""
    (tiles,) = gram.plan_passes(n, min(n, 4096), 1 << 40)
    started = time.perf_counter()
    gram.accumulate(blocks, n, tiles, min(n, 4096), sparse=sparse)
    return time.perf_counter() - started


def main() -> None:
    """Print a table of densities."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4096)
    parser.add_argument("--features", type=int, default=4096)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    print(
        f"{args.prompts} prompts x {args.features} features\n{'density':>8} {'dense s':>9} {'sparse s':>9} {'ratio':>7}"
    )
    for density in (0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25):
        data = np.where(
            rng.random((args.prompts, args.features)) < density, rng.gamma(2, 1, (args.prompts, args.features)), 0
        ).astype(np.float16)
        blocks = [data[start : start + 1024] for start in range(0, len(data), 1024)]
        times = {True: [], False: []}
        for _ in range(3):
            for sparse in (True, False):
                times[sparse].append(seconds(blocks, args.features, sparse))
        dense, thin = statistics.median(times[False]), statistics.median(times[True])
        print(f"{density:>8.3f} {dense:>9.3f} {thin:>9.3f} {dense / thin:>7.2f}")


if __name__ == "__main__":
    main()
