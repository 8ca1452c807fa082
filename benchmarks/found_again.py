"""Which clustering do other prompts find again? Random halves of a run's prompts, each clustered by itself.

    python benchmarks/found_again.py RUN_DIR [--splits 3]

Prints, for the notebook's settings, one UMAP of 10 components with HDBSCAN, and communities (the default), the median
and the range over splits of: the share of kept features in clusters found again (best-match Jaccard index of 0.5 and
0.75, mean of both directions), clusters, coverage, the largest cluster, ARI, AMI, and seconds a half. Each half has
exact neighbours of its own; `bits` is what a feature's cluster says of it where it is found again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

from gpuclust.compute import communities, methods, neighbors, validity
from gpuclust.compute.feature_filter import select
from gpuclust.compute.reductions import MOMENTS
from gpuclust.config import Config
from gpuclust.configfile import validate
from gpuclust.hardware import budget
from gpuclust.storage import store

Array = np.ndarray[Any, Any]
ONE = {"method": "umap"}
WAYS: dict[str, dict[str, Any]] = {
    "notebook: UMAP 50, HDBSCAN 10/10": {
        "cluster": ONE, "consensus": {"members": 1}, "umap": {"n_components": 50, "min_dist": 0.1, "metric": "cosine"},
        "hdbscan": {"min_samples": 10},
    },
    "UMAP 10, HDBSCAN 10/5, cosine": {"cluster": ONE, "consensus": {"members": 1}, "umap": {"metric": "cosine"}},
    "UMAP 10, HDBSCAN 10/5, partial correlation": {"cluster": ONE, "consensus": {"members": 1}},
    "communities, one member": {"consensus": {"members": 1}},
    "communities": {},
    "communities, agreement 0.3": {"consensus": {"agreement": 0.3}},
    "communities, correlation": {"umap": {"metric": "correlation"}},
    "communities, cosine": {"umap": {"metric": "cosine"}},
    "communities, hubs left": {"communities": {"correct_hubs": False}},
    "communities, lists not compared": {"communities": {"shared_neighbors": 0, "n_neighbors": 20}},
    "the same, cosine": {"communities": {"shared_neighbors": 0, "n_neighbors": 20}, "umap": {"metric": "cosine"}},
}  # fmt: skip


def kept(path: Path, config: Config) -> Array:
    """Activations (prompt, kept feature), float32."""
    blocks = [block for _, block in store.read_rows(path, budget.MAX_ROWS)]
    moments = MOMENTS.merge(MOMENTS.chunk(block, 0.0) for block in blocks)
    table, _ = select(MOMENTS.finalize(moments), config.select, config.fewest_features)
    return np.concatenate([block[:, table["kept"].to_numpy()].astype(np.float32) for block in blocks])


def without_length(values: Array, lengths: Array) -> Array:
    """Residuals of least squares on the prompts' lengths, whose correlations are partial correlations."""
    design = np.column_stack([np.ones(len(lengths)), lengths])
    left: Array = values - design @ np.linalg.lstsq(design, values.astype(np.float64), rcond=None)[0]
    return left.astype(np.float32)


def labels_of(indices: Array, distances: Array, n: int, config: Config, resolution: float | None) -> Array:
    if config.cluster.method == "communities":
        return methods.of_communities(indices, distances, n, config, resolution=resolution)[0].labels.astype(np.int64)
    return methods.member(indices, distances, n, config, 0).astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--splits", type=int, default=3)
    options = parser.parse_args()
    activations = kept(options.run / "activations.zarr", Config())
    lengths = store.read_table(options.run / "prompts.parquet", ["n_tokens"])["n_tokens"].to_numpy()
    print(f"{options.run}: {activations.shape[0]} prompts, {activations.shape[1]} features kept")
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    cached: dict[tuple[int, int, str], tuple[Array, Array]] = {}
    for split in range(options.splits):
        order = np.random.default_rng(100 + split).permutation(len(activations))
        halves = [np.sort(order[half::2]) for half in range(2)]
        for name, settings in WAYS.items():
            config = validate(settings)
            found, resolution, seconds = [], None, 0.0
            for half, chosen in enumerate(halves):
                key = (split, half, config.metric)
                if key not in cached and config.metric == "partial_correlation":
                    left = without_length(activations[chosen], lengths[chosen])
                    cached[key] = neighbors.of_vectors(left.T, 80, "correlation", 2048)
                elif key not in cached:
                    cached[key] = neighbors.of_vectors(activations[chosen].T, 80, config.metric, 2048)
                near = cached[key]
                began = time.perf_counter()
                if config.cluster.method == "communities" and resolution is None:  # of the first half, for both
                    resolution, _ = communities.choose_resolution(*near, len(chosen), config)
                found.append(labels_of(*near, len(chosen), config, resolution))
                seconds += time.perf_counter() - began
            sizes = [np.bincount(one[one >= 0]) for one in found]
            rows[name].append(
                validity.found_again(*found)
                | {
                    "clusters": float(np.mean([len(size) for size in sizes])),
                    "covered": float(np.mean([(one >= 0).mean() for one in found])),
                    "largest": max(int(size.max(initial=0)) for size in sizes) / activations.shape[1],
                    "ari": adjusted_rand_score(*found),
                    "ami": adjusted_mutual_info_score(*found),
                    "bits": validity.information_found_again(*found),
                    "seconds": seconds / 2,
                }
            )
        cached.clear()
    names = list(next(iter(rows.values()))[0])
    print(f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for name, several in rows.items():
        cells = []
        for column in names:
            values = [row[column] for row in several]
            digits = 0 if column == "clusters" else 1 if column == "seconds" else 3
            cells.append(f"{np.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
