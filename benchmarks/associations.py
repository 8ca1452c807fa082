"""Which similarity finds clusters that other prompts find again? Metrics of the activity beside those of its strength.

    python -m benchmarks.associations RUN_DIR [--splits 0 1 2] [--metrics jaccard phi ...] [--json FILE]

Of a finished run, its features without copies. Each half of the prompts has counts or products, neighbours, and
communities of its own, at the resolution of the first half. Prints a row a metric and a way of comparing features (by
lists of 20 neighbours, or by their own similarity): the median and the range over splits of the clusters, the share of
features found again (best-match Jaccard index of 0.5 and 0.75), bits, coverage, the largest cluster, and how many
features have the same feature among their 19 nearest, at most. `raw jaccard` is without the correction for chance;
`--normal-errors` redraws similarities as if they were correlations of normal variables; `--threshold` is of activity.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.compute import communities, gram, methods, neighbors, validity
from gpuclust.config import ACTIVITY
from gpuclust.configfile import validate
from gpuclust.hardware import budget
from gpuclust.storage import store
from gpuclust.tables import feature_table

Array = np.ndarray[Any, Any]
LIST = 20
METRICS = (
    "partial_correlation", "correlation", "cosine", "phi", "jaccard", "raw jaccard", "dice", "raw dice", "overlap",
    "raw overlap", "npmi", "lift",
)  # fmt: skip


def settings(name: str, shared: int) -> dict[str, Any]:
    raw = name.startswith("raw ")
    communities_of = {"shared_neighbors": shared, "n_neighbors": 30 if shared else 20}
    return {"neighbors": {"metric": name.removeprefix("raw "), "corrected": not raw, "n_neighbors": 80},
            "communities": communities_of}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--splits", type=int, nargs="+", default=[0])
    parser.add_argument("--metrics", nargs="+", default=METRICS)
    parser.add_argument("--shared", type=int, nargs="+", default=[LIST, 0])
    parser.add_argument("--normal-errors", action="store_true")
    parser.add_argument("--threshold", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    mask = feature_table.is_point(pd.read_parquet(options.run / "features.parquet"))
    blocks = [block[:, mask] for _, block in store.read_rows(options.run / "activations.zarr", budget.MAX_ROWS)]
    activations = np.concatenate(blocks)
    lengths = store.read_table(options.run / "prompts.parquet", ["n_tokens"])["n_tokens"].to_numpy()
    n, size = activations.shape
    print(f"{options.run}: {n} prompts, {size} features without copies", flush=True)
    (tiles,) = gram.plan_passes(size, budget.TILE, 1 << 50)
    rows: list[dict[str, Any]] = []
    for split in options.splits:
        order = np.random.default_rng(100 + split).permutation(n)
        halves = [np.sort(order[half::2]) for half in range(2)]
        held: dict[tuple[int, bool], gram.Gram] = {}
        for name in options.metrics:
            config = validate(settings(name, 0) | {"extract": {"activation_threshold": options.threshold}})
            near = []
            for half, chosen in enumerate(halves):
                key = (half, config.metric in ACTIVITY)
                if key not in held:
                    cut = [chosen[start : start + budget.MAX_ROWS] for start in range(0, len(chosen), budget.MAX_ROWS)]
                    held[key] = gram.accumulate(
                        (activations[part] for part in cut), size, tiles, budget.TILE, lengths=lengths[chosen],
                        active_above=config.active_above,
                    )  # fmt: skip
                indices, distances = neighbors.exact(held[key], config.n_neighbors, config.metric)
                errors = None
                if not options.normal_errors:
                    errors = neighbors.errors_of(held[key], indices, distances, config.metric)
                near.append((indices, distances, errors))
            for shared in options.shared:
                began = time.perf_counter()
                rows.append(
                    {"metric": name, "lists": shared, "split": split} | measured(near, n // 2, settings(name, shared))
                )
                rows[-1]["seconds"] = (time.perf_counter() - began) / 2
                print(json.dumps(rows[-1]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def measured(near: list[tuple[Array, Array, Array | None]], prompts: int, given: dict[str, Any]) -> dict[str, float]:
    config = validate(given)
    indices, distances, errors = near[0]
    resolution, _ = communities.choose_resolution(indices, distances, prompts, config, errors)
    found = [
        methods.of_communities(i, d, prompts, config, resolution=resolution, errors=e)[0].labels.astype(np.int64)
        for i, d, e in near
    ]
    sizes = [np.bincount(one[one >= 0]) for one in found]
    return validity.found_again(*found) | {
        "bits": validity.information_found_again(*found),
        "clusters": float(np.mean([len(size) for size in sizes])),
        "covered": float(np.mean([(one >= 0).mean() for one in found])),
        "largest": max(int(size.max(initial=0)) for size in sizes) / len(found[0]),
        "in_degree": float(np.mean([np.bincount(i[:, 1:LIST].ravel()).max() for i, _, _ in near])),
    }


def table(rows: list[dict[str, Any]]) -> str:
    names = [name for name in rows[0] if name not in ("metric", "lists", "split")]
    lines = [f"| metric | lists | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for key in dict.fromkeys((row["metric"], row["lists"]) for row in rows):
        own = [row for row in rows if (row["metric"], row["lists"]) == key]
        cells = []
        for column in names:
            values = [row[column] for row in own]
            digits = 0 if column in ("clusters", "in_degree") else 1 if column == "seconds" else 3
            cells.append(f"{np.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]")
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
