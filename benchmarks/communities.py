"""From neighbours to clusters by communities: seconds of each step and memory, for up to a million features.

    python -m benchmarks.communities [--features 6000 131072] [--members 16]

Neighbours are drawn: groups of 10 to 60 features, whose pairs have similarities around 0.35, and features of no group;
all else on a list is as near as chance leaves over the prompts. Prints a row a number of features.
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from gpuclust.compute import communities, consensus, methods
from gpuclust.configfile import validate

Array = np.ndarray[Any, Any]
PROMPTS, LISTED, GROUPED = 6000, 80, 0.7


def drawn(size: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Return neighbours as a run has them, and the group of every feature, -1 for none."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(10, 60, size)
    sizes = sizes[np.cumsum(sizes) <= GROUPED * size]
    truth = np.full(size, -1)
    truth[: sizes.sum()] = np.repeat(np.arange(len(sizes)), sizes)
    indices = rng.integers(0, size, (size, LISTED), dtype=np.int32)
    similarity = (np.sort(rng.standard_normal((size, LISTED), np.float32)) / 4 + 3) / np.sqrt(PROMPTS)
    start = 0
    for number in sizes:
        rows = np.arange(start, start + number)
        inside = rng.normal(0.35, 0.08, (number, number))
        inside = np.clip((inside + inside.T) / 2, 0.05, 0.95)
        others = np.array([np.delete(rows, at) for at in range(number)])
        indices[rows, 1:number] = others
        similarity[rows, 1:number] = np.array([np.delete(inside[at], at) for at in range(number)])
        start += number
    indices[:, 0], similarity[:, 0] = np.arange(size), 2
    order = np.argsort(-similarity, axis=1, kind="stable")
    distances = 1 - np.take_along_axis(similarity, order, axis=1)
    distances[:, 0] = 0
    return np.take_along_axis(indices, order, axis=1), distances.astype(np.float32), truth


def gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, nargs="+", default=[6000, 131072])
    parser.add_argument("--members", type=int)
    options = parser.parse_args()
    config = validate({"consensus": {"members": options.members}} if options.members else {})
    print("| features | neighbours GB | graph s | one Leiden s | redraw s | resolution s | a member s | consensus s | "
          "clusters | clustered | ARI | peak GB |\n|" + 12 * "---|")  # fmt: skip
    for size in options.features:
        indices, distances, truth = drawn(size)
        held = (indices.nbytes + distances.nbytes) / 1e9

        def seconds(function: Any, *args: Any) -> tuple[float, Any]:
            began = time.perf_counter()
            result = function(*args)
            return time.perf_counter() - began, result

        graphed, graph = seconds(communities.neighbor_graph, indices, distances, config)
        once, _ = seconds(communities.leiden, graph, size / communities.COMMUNITY, 0)
        redrawn, _ = seconds(consensus.perturb, indices, distances, PROMPTS, 1)
        chosen, (resolution, _) = seconds(communities.choose_resolution, indices, distances, PROMPTS, config)
        member, _ = seconds(communities.member, indices, distances, PROMPTS, config, 1, resolution)
        whole, (found, _) = seconds(methods.of_communities, indices, distances, PROMPTS, config, None, resolution)
        inside = truth >= 0
        print(
            f"| {size:,} | {held:.2f} | {graphed:.1f} | {once:.1f} | {redrawn:.1f} | {chosen:.1f} | {member:.1f} | "
            f"{whole - config.n_members * member:.1f} | "
            f"{found.labels.max() + 1:,} | {(found.labels >= 0).mean():.2f} | "
            f"{adjusted_rand_score(truth[inside], found.labels[inside]):.3f} | {gigabytes():.1f} |",
            flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
