"""Exact cosine HDBSCAN from the Gram matrix against `hdbscan.HDBSCAN` on the normalised vectors.

    python -m benchmarks.exact_hdbscan                                   # made-up activations, 6,000 x 6,000: minutes
    python -m benchmarks.exact_hdbscan --features 2000                   # fewer features
    python -m benchmarks.exact_hdbscan --real acts.npy --features 6000   # (prompt, feature), float16 or float32

The library gets the vectors as a user would give them, of unit length, with its default algorithm (Prim's over a k-d
tree above 60 dimensions). Ours has three parts: the Gram matrix, which the pipeline computes anyway for the neighbours;
distances from it; and the clustering proper. Each line has seconds by the clock and, for machines with other work, CPU
seconds of all threads. The adjusted Rand indices compare labels, noise included.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import hdbscan
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from gpuclust.compute import gram, neighbors
from gpuclust.compute.clustering import cluster_tree
from gpuclust.compute.spanning_tree import chord_edges, mutual_reachability_tree
from gpuclust.config_sections import HdbscanConfig

Array = NDArray[Any]


def synthetic(prompts: int, features: int, seed: int = 0) -> Array:
    """Draw activations: two features in three belong to groups of some 40 that are active together."""
    random = np.random.default_rng(seed)
    groups = max(features // 60, 2)
    latent = random.gamma(0.3, 1.0, (prompts, groups)).astype(np.float32)
    group = random.integers(0, groups * 3 // 2, features)
    out = np.zeros((prompts, features), np.float16)
    for feature in range(features):
        values = random.gamma(0.3, 1.0, prompts)
        if group[feature] < groups:
            values = latent[:, group[feature]] * random.uniform(0.5, 1.5) + random.uniform(0.2, 0.8) * values
        out[:, feature] = np.maximum(values - 0.5, 0)
    return out


def timed(name: str, function: Callable[[], Any]) -> tuple[Any, float]:
    """Call, print seconds, and return the result with its CPU seconds."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = function()
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    print(f"  {name:<44} {clock:>9.2f} s {cpu:>9.2f} CPU s", flush=True)
    return result, cpu


def from_gram(acts: Array, config: HdbscanConfig) -> tuple[Array, Array, list[float]]:
    """Cluster by our route; return labels by both densities, and the CPU seconds of Gram, distances and clustering."""
    size = acts.shape[1]
    tile = min(size, 4096)
    (tiles,) = gram.plan_passes(size, tile, 1 << 62)
    chunks = (acts[start : start + 512] for start in range(0, len(acts), 512))
    whole, gram_seconds = timed("Gram matrix, float64", lambda: gram.accumulate(chunks, size, tiles, tile))

    def distances() -> Array:
        sides = {"sums": whole.sums, "squares": whole.squares}
        found: Array = neighbors.distances("cosine", whole.dense(), whole.n_prompts, sides, sides, 0.0)
        np.fill_diagonal(found, 0)
        return found

    matrix, a = timed("cosine distances, float32", distances)
    edges, b = timed("spanning tree", lambda: mutual_reachability_tree(matrix, config.min_samples))
    chord, c = timed("clusters, by euclidean density", lambda: cluster_tree(chord_edges(edges), config))
    cosine, _ = timed("clusters, by cosine density", lambda: cluster_tree(edges, config))
    return chord.labels, cosine.labels, [gram_seconds, a, b + c]


def main() -> None:
    """Run both routes once and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", help="activations, .npy, (prompt, feature)")
    parser.add_argument("--prompts", type=int, default=6000, help="prompts at most")
    parser.add_argument("--features", type=int, default=6000, help="features at most")
    parser.add_argument("--min-cluster-size", type=int, default=10)
    parser.add_argument("--min-samples", type=int, default=10)
    parser.add_argument("--epsilon", type=float, default=0.01)
    parser.add_argument("--method", choices=["eom", "leaf"], default="eom")
    args = parser.parse_args()
    config = HdbscanConfig(
        min_cluster_size=args.min_cluster_size,
        min_samples=args.min_samples,
        cluster_selection_epsilon=args.epsilon,
        cluster_selection_method=args.method,
    )
    if args.real:
        acts = np.load(args.real, mmap_mode="r")[: args.prompts, : args.features]
        acts = np.ascontiguousarray(acts)
    else:
        acts = synthetic(args.prompts, args.features)
    active = (acts != 0).sum(axis=0) >= 2
    acts = np.ascontiguousarray(acts[:, active])
    print(
        f"{'real' if args.real else 'made-up'} activations, {len(acts)} prompts x {acts.shape[1]} features "
        f"({(~active).sum()} active in fewer than 2 prompts dropped), {(acts != 0).mean():.1%} non-zero\n"
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"hdbscan {version('hdbscan')}, numpy {np.__version__}"
    )
    mutual_reachability_tree(np.zeros((3, 3), np.float32), 1)  # compiles
    ours, by_cosine, seconds = from_gram(acts, config)
    vectors = acts.T.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    model = hdbscan.HDBSCAN(
        min_cluster_size=args.min_cluster_size,
        min_samples=args.min_samples,
        cluster_selection_epsilon=args.epsilon,
        cluster_selection_method=args.method,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, library = timed("hdbscan.HDBSCAN on the vectors", lambda: model.fit(vectors).labels_)
    print(
        f"clusters: {theirs.max() + 1} (library), {ours.max() + 1} (ours); noise {(theirs < 0).mean():.1%}, "
        f"{(ours < 0).mean():.1%}\n"
        f"ARI with the library: {adjusted_rand_score(theirs, ours):.6f} by euclidean density, "
        f"{adjusted_rand_score(theirs, by_cosine):.6f} by cosine density; "
        f"{(theirs != ours).sum()} labels differ\n"
        f"CPU time: {library / seconds[2]:.0f} times faster from distances, {library / sum(seconds[1:]):.0f} from the "
        f"Gram matrix, {library / sum(seconds):.0f} from the activations"
    )


if __name__ == "__main__":
    main()
