"""Prompts, windows or tokens: how far neighbours agree between halves of the prompts, and how many hubs there are.

    python -m benchmarks.rows RUN [--window 16] [--features N] [--out FILE.json]

RUN has a store of tokens (``extract.rows=token``); all three kinds of rows are taken from it. By cosine, 15 neighbours:

- share of non-zero entries;
- neighbours shared: of a feature's 15 nearest in one half of the prompts, the share that are in the other half too;
- the most often somebody's neighbour: in how many lists of 15 one feature is, over all prompts;
- share of decoder neighbours: of the 15 nearest by activation, the share among the 15 nearest decoder directions.

Binary activity (above 0) is compared by Jaccard, phi and NPMI besides.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import gpuclust
from gpuclust import schema
from gpuclust.compute import gram, neighbors, validity
from gpuclust.compute.halves import half_of
from gpuclust.engine import token_rows
from gpuclust.extraction import directions

K = 15
METRICS = ("cosine", "jaccard", "phi", "npmi")
BLOCK = 4096


def lists(held: gram.Gram, metric: str) -> np.ndarray:
    """Neighbours of every feature, itself left out, (feature, K)."""
    largest = float(held.squares.max())
    n = held.edges[-1]
    tiles = [neighbors.candidates(held, *tile, metric, K, largest, np) for tile in held.tiles]
    merged: dict[int, Any] = {}
    for found in tiles:
        for block, keys in found.items():
            merged[block] = neighbors.merge([merged[block], keys], K) if block in merged else keys
    indices, _ = neighbors.finish(np.concatenate([merged[block] for block in sorted(merged)]), min(K + 1, n))
    return indices[:, 1:]


def shared(a: np.ndarray, b: np.ndarray) -> float:
    """Mean share of the neighbours in one list that are in the other."""
    return float(np.mean([len(np.intersect1d(x, y)) / a.shape[1] for x, y in zip(a, b, strict=True)]))


def measure(run: Path, kept: np.ndarray, rows: token_rows.Rows, decoder: np.ndarray) -> dict[str, Any]:
    """The figures of one kind of rows."""
    prompt = token_rows.prompts_of(run, rows)
    half = half_of(int(prompt[-1]) + 1, 0)[prompt]
    entries = sum(block.nnz for block in token_rows.blocks(run, kept, rows, BLOCK))
    found: dict[str, Any] = {"rows": len(prompt), "non-zero": entries / (len(prompt) * len(kept))}
    (tiles,) = gram.plan_passes(len(kept), len(kept), 1 << 60)
    for above, metrics in ((None, METRICS[:1]), (0.0, METRICS[1:])):
        started = time.perf_counter()
        blocks = token_rows.blocks(run, kept, rows, BLOCK)
        halves = gram.accumulate_groups(blocks, half, 2, len(kept), tiles, len(kept), active_above=above)
        found[f"seconds of the Gram matrix, {'activity' if above is not None else 'products'}"] = round(
            time.perf_counter() - started, 2
        )
        for metric in metrics:
            near = [lists(one, metric) for one in (*halves, gram.weighted(halves, [1, 1]))]
            found[metric] = {
                "neighbours shared by halves": round(shared(near[0], near[1]), 3),
                "most often a neighbour": int(np.bincount(near[2].ravel()).max()),
                "share of decoder neighbours": round(validity.neighbor_overlap(
                    np.column_stack([np.arange(len(kept)), decoder]), np.column_stack([np.arange(len(kept)), near[2]])
                ), 3),
            }  # fmt: skip
        del halves
    return found


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--features", type=int, help="a random choice of so many")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    opened = gpuclust.open_run(args.run)
    table = pd.read_parquet(args.run / schema.FEATURES)
    kept = table.loc[table["kept"], "feature"].to_numpy()
    if args.features:
        kept = np.sort(np.random.default_rng(0).choice(kept, args.features, replace=False))
    weights = directions.load_directions(opened.config, unembedding=False)[0][kept]
    decoder = neighbors.of_vectors(weights, K + 1, "cosine", len(kept))[0][:, 1:]
    kinds = {"prompts": 10**9, f"windows of {args.window}": args.window, "tokens": None}
    found = {
        name: measure(args.run, kept, token_rows.Rows(window, opened.config.extract.aggregate), decoder)
        for name, window in kinds.items()
    }
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(json.dumps({"features": len(kept), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
