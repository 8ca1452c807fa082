"""Exact neighbours of very many features over very many tokens, by an index of the rows: time, memory, what is found.

    python -m benchmarks.inverted FEATURES TOKENS ACTIVE [--memory 14GB] [--communities] [--work FOLDER] [--out FILE]

Rows are drawn: SYNTHETIC. A feature fires by Zipf's law (c / rank, at most 0.2, features in random order), ACTIVE of
them a token on average. PLANTED of the features are in groups of GROUP that fire together: on a token where a group is
active each of its members fires with probability FIRES, its value one log-normal of the token's times one of its own.
Values are float16. The rows are written as a run's `tokens.zarr`, and read from it.

Neighbours are those of a run: by correlation over all tokens. Found again is, of the K nearest of a planted feature,
the share of its group's that are among them. Peaks are of the worker's process, a process of its own. With
``--communities`` the mutual graph of the neighbours is clustered by Leiden once, as a member of a run's consensus is.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd
from rich.console import Console

from gpuclust import schema
from gpuclust.config_sections import StoreConfig
from gpuclust.configfile import validate
from gpuclust.engine import token_rows
from gpuclust.engine.exact_pass import exact_neighbors
from gpuclust.engine.progress import Progress
from gpuclust.engine.views import PromptGroups, View, read_neighbors
from gpuclust.hardware import budget
from gpuclust.section import parse_bytes
from gpuclust.storage import store, token_store

GROUP, PLANTED, FIRES, K = 10, 0.1, 0.7, 16
PER_PROMPT = 100  # tokens
SHARD = 250  # prompts
STEPS = 1 << 20


def rates(n: int, active: float, seed: int = 0) -> np.ndarray:
    """How often each feature fires, by Zipf's law."""
    ranks = np.random.default_rng(seed).permutation(np.arange(1, n + 1))
    low, high = 0.0, float(n)
    for _ in range(60):  # the c that makes the rates sum to what is wanted
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle / ranks, 0.2).sum() < active else (low, middle)
    return np.minimum(high / ranks, 0.2)


def quantiles(rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cumulated rates, and where to begin to look for a number in them."""
    cumulated = np.cumsum(rate)
    return cumulated, np.searchsorted(cumulated, np.linspace(0, cumulated[-1], STEPS, endpoint=False))


@numba.njit(nogil=True, cache=True)
def one_of(cumulated: Any, begin: Any) -> int:
    """Draw one by its rate."""
    u = np.random.random()
    at = begin[int(u * STEPS)]
    while cumulated[at] < u * cumulated[-1] and at < len(cumulated) - 1:
        at += 1
    return at


@numba.njit(nogil=True, cache=True)
def key(feature: int, value: float) -> int:
    """Pack a feature and a value, so that keys sort by feature."""
    return (np.int64(feature) << 32) | np.int64(np.float32(value).view(np.int32))


@numba.njit(nogil=True, cache=True)
def drawn(alone: Any, together: Any, place: Any, n_rows: int, seed: int) -> Any:
    """Draw rows: features that fire alone and groups, by their cumulated rates; `place` numbers them all."""
    np.random.seed(seed)
    n_alone, n_groups = alone[0][-1], together[0][-1]
    starts = np.zeros(n_rows + 1, np.int64)
    keys = np.empty(int(n_rows * (n_alone + n_groups * GROUP) * 1.5) + 1000, np.int64)
    at = 0
    for row in range(n_rows):
        begin = at
        loud = np.exp(0.5 * np.random.standard_normal())
        for _ in range(np.random.poisson(n_alone)):
            feature = one_of(alone[0], alone[1])
            keys[at] = key(place[feature], np.exp(0.5 * np.random.standard_normal()))
            at += 1
        for _ in range(np.random.poisson(n_groups)):
            group = one_of(together[0], together[1])
            for member in range(GROUP):
                if np.random.random() < FIRES:
                    feature = len(alone[0]) + group * GROUP + member
                    keys[at] = key(place[feature], loud * np.exp(0.2 * np.random.standard_normal()))
                    at += 1
        keys[begin:at].sort()
        kept = begin
        for k in range(begin, at):
            if kept == begin or (keys[k] >> 32) != (keys[kept - 1] >> 32):
                keys[kept] = keys[k]
                kept += 1
        at = kept
        starts[row + 1] = at
    return starts, keys[:at].copy()


def written(out: Path, n: int, n_tokens: int, active: float) -> dict[str, Any]:
    """Write `tokens.zarr` and an empty store of prompts beside it; return facts."""
    n_prompts = -(-n_tokens // PER_PROMPT)
    n_planted = int(n * PLANTED) // GROUP * GROUP
    rate = np.sort(rates(n, active))[::-1]
    planted = np.random.default_rng(1).choice(n, n_planted, replace=False)
    alone = np.delete(rate, planted)
    together = np.sort(rate[planted])[::-1].reshape(-1, GROUP).mean(axis=1) / FIRES
    config = StoreConfig(shard_prompts=SHARD, chunk_prompts=SHARD)
    store.create(out / schema.ACTIVATIONS, n_prompts, n, config, {})
    ranges = store.shard_ranges(out / schema.ACTIVATIONS)
    rows = [(stop - first) * PER_PROMPT for first, stop in ranges]
    token_store.create(out / schema.TOKENS, rows, n, config, {})
    place = np.random.default_rng(2).permutation(n).astype(np.int32)  # planted ones lie anywhere
    sources = quantiles(alone), quantiles(together)
    (out / schema.SHARDS).mkdir()

    def write(index: int) -> int:
        first, stop = ranges[index]
        starts, keys = drawn(*sources, place, rows[index], index)
        column, values = (keys >> 32).astype(np.int32), keys.astype(np.uint32).view(np.float32)
        prompt = np.repeat(np.arange(first, stop, dtype=np.int32), PER_PROMPT)
        where = np.tile(np.arange(PER_PROMPT, dtype=np.int32), stop - first)
        tokens = token_store.Tokens(starts, column, values.astype(np.float16), prompt, where, where)
        token_store.write_shard(out / schema.TOKENS, index, tokens)
        np.savez(out / schema.SHARDS / f"{index:05d}.npz", **tokens.states())
        return len(column)

    with ThreadPoolExecutor(2) as pool:
        entries = sum(pool.map(write, range(len(ranges))))
    groups = np.full(n, -1)
    groups[place[len(alone) :]] = np.arange(n_planted) // GROUP
    np.save(out / "planted.npy", groups)
    return {"entries": entries, "active a token": round(entries / sum(rows), 2), "tokens": sum(rows)}


def found_again(indices: np.ndarray, groups: np.ndarray, kept: np.ndarray) -> float:
    """Share of the mates of planted features that are among their nearest."""
    own = groups[kept]
    some = np.flatnonzero(own >= 0)
    mates = (own[indices[some, 1:]] == own[some, None]).sum(axis=1)
    sizes = np.bincount(own[some])[own[some]] - 1
    return float(mates.sum() / sizes.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("active", type=float)
    parser.add_argument("--memory", default="14GB", help="what a worker may use")
    parser.add_argument("--work", type=Path, help="where rows are written, and kept")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--communities", action="store_true")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(exist_ok=True)
    began = time.perf_counter()
    if not (work / "facts.json").exists():
        facts = written(work, args.features, args.tokens, args.active)
        facts["seconds to draw and write"] = round(time.perf_counter() - began, 1)
        (work / "facts.json").write_text(json.dumps(facts))
    facts = json.loads((work / "facts.json").read_text())
    size = sum(file.stat().st_size for file in (work / schema.TOKENS).rglob("*") if file.is_file())
    facts |= {"features": args.features, "bytes of tokens.zarr": size}
    print(json.dumps(facts), flush=True)
    print(json.dumps(facts := facts | passed(work, args.features, args.memory)), flush=True)
    if args.communities:
        print(json.dumps(facts := facts | clustered(work)), flush=True)
    facts |= {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {numba.config.NUMBA_NUM_THREADS} cores",
    }
    if args.out:
        args.out.write_text(json.dumps(facts, indent=1) + "\n")
    if not args.work:
        shutil.rmtree(work)


def passed(work: Path, n: int, memory: str) -> dict[str, Any]:
    """Time and peak of the pass, on one worker."""
    from distributed import Client, LocalCluster

    config = validate({"extract": {"rows": "token"}, "store": {"shard_prompts": SHARD}, "device": {"memory": memory}})
    n_prompts = store.open_array(work / schema.ACTIVATIONS).shape[0]
    shapes = budget.Shapes(n_prompts, n, n)
    plan = budget.plan(config, shapes, parse_bytes(memory), held=())
    groups = PromptGroups(np.zeros(n_prompts, np.int64), 1, rows=token_rows.Rows(None, "max"))
    view = View(np.ones(1), work / "near", "correlation", K)
    shutil.rmtree(view.path, ignore_errors=True)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=None, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        workers = list(client.scheduler_info()["workers"])
        began = time.perf_counter()
        facts = exact_neighbors(
            client, workers, work, np.arange(n), groups, [view], plan, Progress(Console(), quiet=True)
        )
        seconds = time.perf_counter() - began
        peak = client.submit(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024).result()
        pairs = client.submit(_pairs, work).result()
    kept, indices, _ = read_neighbors(view.path)
    return {
        "route": "index" if "entries" in facts else "tiles", "seconds": round(seconds, 1), "pairs": pairs,
        "pairs a second": round(pairs / seconds), "worker's peak, GB": round(peak / 1e9, 2),
        "planted mates found": round(found_again(indices, np.load(work / "planted.npy"), kept), 4), **{
            name: facts[name] for name in ("compared", "passes") if name in facts},
    }  # fmt: skip


def _pairs(work: Path) -> float:
    """Pairs of entries of a row, over all rows."""
    total = 0.0
    for index in range(len(store.shard_ranges(work / schema.ACTIVATIONS))):
        _, rows = token_store.read(work, index)
        own = np.diff(rows.indptr).astype(np.float64)
        total += float(own @ (own - 1)) / 2
    return total


def clustered(work: Path) -> dict[str, Any]:
    """Time of one member of a run's consensus, on the graph of the neighbours."""
    from gpuclust.compute import communities

    _, indices, distances = read_neighbors(work / "near")
    config = validate(
        {"extract": {"rows": "token"}, "communities": {"resolution": len(indices) / communities.COMMUNITY}}
    )
    began = time.perf_counter()
    graph = communities.neighbor_graph(indices, distances, config)
    built = time.perf_counter() - began
    labels = communities.leiden(graph, config.communities.resolution, 0)
    groups = np.load(work / "planted.npy")
    table = pd.DataFrame({"group": groups, "label": labels})[groups >= 0]
    together = table.groupby("group")["label"].agg(lambda own: own.value_counts().iloc[0] / len(own)).mean()
    return {
        "graph, seconds": round(built, 1), "edges": int(graph.nnz // 2),
        "Leiden, seconds": round(time.perf_counter() - began - built, 1), "communities": int(labels.max()) + 1,
        "of a planted group in one community": round(float(together), 4),
        "peak of this process, GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
