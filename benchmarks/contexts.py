"""Top contexts of clusters: how long they take, what scaling does to them, and whether they tell stable clusters apart.

    python -m benchmarks.contexts RUN [--out FILE.json]

RUN has rows of tokens or windows, and clusters. Among rows with equally many firing features, the sum of activations
decides, each over the feature's largest, over its root mean square (of the rows on which it fires), or as it is:

- same first: of the clusters, the share whose first context is the same as by the largest;
- same five: of all contexts, the share that is among those by the largest.

And by verdict: the mean share of a cluster's features that fire at its first context.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import gpuclust
from gpuclust.compute import top_rows
from gpuclust.engine import token_contexts, token_rows
from gpuclust.extraction import encoders


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    run = gpuclust.open_run(args.run)
    kept = run.features[run.features["kept"]]
    numbers, label = kept["feature"].to_numpy(np.int64), kept["label"].to_numpy(np.int64)
    tokenizer = encoders.load_tokenizer(run.config)
    started = time.perf_counter()
    peak = kept["max"].to_numpy()
    contexts = token_contexts.contexts(args.run, run.config, numbers, label, peak, run.prompts, tokenizer)
    seconds = time.perf_counter() - started
    features, label = numbers[label >= 0], label[label >= 0]
    rows = token_rows.rows_of(run.config, args.run)
    assert rows is not None
    largest, squares = np.zeros(len(features)), np.zeros(len(features))
    times, entries, n_rows = np.zeros(len(features)), 0, 0
    for _, fired in token_rows.shards(args.run, features, rows):
        np.maximum.at(largest, fired.indices, np.abs(fired.data))
        squares += np.bincount(fired.indices, fired.data.astype(float) ** 2, minlength=len(features))
        times += np.bincount(fired.indices, minlength=len(features))
        entries, n_rows = entries + fired.nnz, n_rows + fired.shape[0]
    found = {}
    scales = {
        "largest": largest,
        "root mean square": np.sqrt(squares / np.maximum(times, 1)),
        "none": np.ones(len(features)),
    }
    n, above = run.config.n_contexts, run.config.extract.activation_threshold
    for name, scale in scales.items():
        best, first = top_rows.nothing(), 0
        for where, fired in token_rows.shards(args.run, features, rows):
            part = top_rows.top(fired, rows.of(where["prompt"]), first, label, scale, above, n)
            best, first = top_rows.merge([best, part], n), first + fired.shape[0]
        found[name] = best

    def same(name: str, n_first: int) -> float:
        chosen = []
        for one in (found["largest"], found[name]):
            rank = np.arange(len(one.cluster)) - np.searchsorted(one.cluster, one.cluster)
            chosen.append(set(zip(one.cluster[rank < n_first].tolist(), one.row[rank < n_first].tolist(), strict=True)))
        return round(len(chosen[0] & chosen[1]) / max(len(chosen[0]), 1), 3)

    first_rows = contexts[contexts["rank"] == 0].set_index("cluster")
    clusters = run.clusters[run.clusters["cluster"] >= 0].set_index("cluster")
    share = first_rows["n_features"] / clusters["size"]
    figures: dict[str, Any] = {
        "rows": n_rows, "non-zero": entries, "clusters": len(clusters), "contexts": len(contexts),
        "seconds": round(seconds, 2),
        "same first": {name: same(name, 1) for name in scales}, "same five": {name: same(name, n) for name in scales},
        "share firing, by verdict": share.groupby(clusters["verdict"]).mean().round(3).to_dict(),
        "clusters, by verdict": clusters["verdict"].value_counts().to_dict(),
        "rank correlation with stability": round(float(share.corr(clusters["stability"], method="spearman")), 3),
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
