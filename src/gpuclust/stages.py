"""The tasks of a run: each reads files of the run's folder, calls one stage's function, and writes its files.

They run on a worker and return only small facts; what they compute is in the modules they call.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust import gram, memory, neighbors, schema, store, transfer
from gpuclust.backend import on_host, resolve, to_host
from gpuclust.config import Config, SelectConfig
from gpuclust.device import guarded
from gpuclust.errors import ModelError, StoreError
from gpuclust.reductions import EXAMPLES, MOMENTS, State

log = logging.getLogger("gpuclust")

Array = np.ndarray[Any, Any]
METHODS = {"cpu": "umap-learn", "cuda": "cuml"}


def prompts_task(config: Config, out: Path, device: str) -> tuple[dict[str, Any], list[str]]:
    """Load model and SAE, which checks that they belong together, and fix the prompts.

    Returns
    -------
    dict
        What later stages need to know of model and prompts.
    list of str
        Warnings.
    """
    from gpuclust import extract, models, prompts

    encoder = models.load_encoder(config, device)
    n_bos = extract.bos_tokens(encoder.tokenizer, config)
    longest = encoder.n_ctx - n_bos
    warnings = []
    if config.max_tokens > longest:
        if config.min_tokens > longest:
            raise ModelError(
                f"min_tokens is {config.min_tokens}, but {config.model.name} reads at most {longest}: lower it"
            )
        warnings.append(
            f"max_tokens is {config.max_tokens}, but {config.model.name} reads at most {longest}; it is used"
        )
        log.warning(warnings[-1])
        config = config.model_copy(update={"max_tokens": longest})
    table, more = prompts.build(config, encoder.tokenizer)
    store.write_table(out / schema.PROMPTS, table)
    attributes = {
        "model": config.model.name,
        "loader": encoder.loader,
        "sae": config.sae.path or f"{config.sae.release} / {config.sae.sae_id}",
        "hook_name": encoder.hook_name,
        "prepend_bos": bool(n_bos),
        "prompts_sha256": prompts.digest(table),
        "neuronpedia_id": encoder.sae_metadata.get("neuronpedia_id"),
    }
    return {
        "rows": len(table),
        "tokens": int(table["n_tokens"].sum()),
        "d_sae": encoder.d_sae,
        "d_in": encoder.d_in,
        "model_bytes": encoder.model_bytes,
        "sae_bytes": encoder.sae_bytes,
        "attributes": attributes,
    }, warnings + more


def reduce_task(out: Path, threshold: float, rows: int, k: int, device: str = "cpu") -> dict[str, Any]:
    """Merge the shards' moments and examples; recompute from the store what is missing or had another threshold."""
    path, shards = out / schema.ACTIVATIONS, out / schema.SHARDS
    backend = resolve(device)
    xp = backend.xp
    ranges = store.shard_ranges(path)
    moments: State | None = None
    examples: State | None = None
    read_again = 0
    for index, (first, stop) in enumerate(ranges):
        states = store.read_states(shards, index)
        if states is None or float(states["threshold"]) != threshold:
            read_again += 1
            fresh, unknown = [], []
            for start, block in transfer.rows(path, rows, backend, first, stop):
                fresh.append(on_host(MOMENTS.chunk(block, threshold, xp)))
                if states is None:  # where in a prompt a feature peaks cannot be known any more
                    nowhere = xp.full(block.shape, -1, xp.int16)
                    unknown.append(on_host(EXAMPLES.chunk(block, nowhere, start, k, xp)))
            moment = MOMENTS.merge(fresh)
        else:
            moment = {name: states[f"moments.{name}"] for name in MOMENTS.fields}
        if states is None:
            example = EXAMPLES.merge(unknown)
        else:
            example = {name: states[f"examples.{name}"] for name in EXAMPLES.fields}
        moments = moment if moments is None else MOMENTS.combine(moments, moment)
        examples = example if examples is None else EXAMPLES.combine(examples, example)
    if moments is None or examples is None:
        raise StoreError(f"{path} holds no prompts; delete the folder and run again")
    if read_again:
        log.info("reduce: moments of %d of %d shards recomputed from the store: no states for threshold %g",
                 read_again, len(ranges), threshold)  # fmt: skip
    (out / schema.MOMENTS).parent.mkdir(exist_ok=True)
    np.savez(out / schema.MOMENTS, allow_pickle=False, **moments)
    store.write_table(out / schema.EXAMPLES, pd.DataFrame(EXAMPLES.finalize(examples)))
    density = float(moments["n_nonzero"].sum() / max(int(moments["n"]) * len(moments["sum"]), 1))
    dead = int((moments["n_nonzero"] == 0).sum())
    return {"rows": len(moments["sum"]), "density": density, "dead_features": dead, "shards_recomputed": read_again}


def select_task(out: Path, config: SelectConfig, needed: int) -> dict[str, Any]:
    """Filter the features."""
    from gpuclust.select import select

    with np.load(out / schema.MOMENTS) as file:
        table, removed = select(MOMENTS.finalize(dict(file)), config, needed)
    store.write_table(out / schema.SELECTED, table)
    kept = removed.pop("kept")
    return {"rows": len(table), "kept": kept, "removed": removed}


# ---------------------------------------------------------------- neighbours


def gram_task(
    out: Path, kept: Array, first: int, stop: int, tiles: list[gram.Tile], plan: memory.Plan, device: str = "cpu"
) -> gram.Gram:
    """Accumulate the tiles of one pass over a range of prompts."""
    backend = resolve(device)
    blocks = transfer.rows(out / schema.ACTIVATIONS, plan.rows, backend, first, stop, kept)
    return gram.accumulate((block for _, block in blocks), len(kept), tiles, plan.tile, backend.xp)


def gram_sums(part: gram.Gram) -> gram.Gram:
    """A Gram without its tiles: the column sums, in host memory, small enough to travel."""
    sums, squares = to_host(part.sums), to_host(part.squares)
    return gram.Gram(part.n_features, part.tile, {}, sums, squares, part.n_prompts, part.routes)


def gram_tile(part: gram.Gram, tile: gram.Tile, travels: bool = False) -> Array:
    """One tile, where the Gram is; in host memory if it `travels` to another worker."""
    held: Array = part.tiles[tile]
    return to_host(held) if travels else held


def tile_task(
    totals: gram.Gram, tile: gram.Tile, metric: str, k: int, dense: bool, device: str, *parts: Array
) -> tuple[dict[int, Array], Array | None]:
    """Add up one tile over the workers; return its nearest candidates and, if `dense`, its distances."""
    xp = resolve(device).xp
    whole = gram_sums(totals)
    whole.sums, whole.squares = xp.asarray(whole.sums), xp.asarray(whole.squares)
    summed = parts[0] if len(parts) == 1 else np.sum(parts, axis=0, dtype=np.float64).astype(parts[0].dtype)
    whole.tiles[tile] = xp.asarray(summed)
    largest = float(totals.squares.max())
    distance = to_host(neighbors.tile_distances(whole, *tile, metric, largest, xp)) if dense else None
    return on_host(neighbors.candidates(whole, *tile, metric, k, largest, xp)), distance


def tree_task(out: Path, n: int, tile: int, min_samples: int, keys: list[gram.Tile], parts: list[Array]) -> None:
    """Build the spanning tree of mutual reachability from all tiles of distances."""
    from gpuclust.spanning import mutual_reachability_tree

    matrix = np.empty((n, n), dtype=np.float32)
    for (i, j), part in zip(keys, parts, strict=True):
        rows, columns = slice(i * tile, i * tile + part.shape[0]), slice(j * tile, j * tile + part.shape[1])
        matrix[rows, columns] = part
        matrix[columns, rows] = part.T
    np.fill_diagonal(matrix, 0)
    (out / schema.SPANNING_TREE).parent.mkdir(exist_ok=True)
    np.save(out / schema.SPANNING_TREE, mutual_reachability_tree(matrix, min_samples))


def exact_neighbors(
    client: Any, workers: list[str], out: Path, kept: Array, config: Config, plan: memory.Plan, progress: Any,
    device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Neighbours from Gram tiles, accumulated in place on every worker over its share of the shards.

    Tiles are combined one by one: a worker's Gram never travels as a whole. Without UMAP the tiles' distances also make
    the spanning tree.
    """
    ranges = store.shard_ranges(out / schema.ACTIVATIONS)
    shares = [part for part in np.array_split(np.asarray(ranges), len(workers)) if len(part)]
    passes = gram.plan_passes(len(kept), plan.tile, plan.tiles_per_pass * plan.tile**2 * 8)
    k = config.n_neighbors
    dense = not config.umap.enabled
    found: dict[int, Array] = {}
    dense_parts: dict[gram.Tile, Any] = {}
    routes: dict[str, int] = {}
    with progress.counting("tiles", sum(map(len, passes))) as advance:
        for tiles in passes:
            partial = [
                client.submit(
                    guarded, "neighbors", gram_task, out, kept, int(share[0][0]), int(share[-1][1]), tiles, plan,
                    device, workers=[worker], allow_other_workers=True, pure=False,
                )
                for worker, share in zip(workers, shares, strict=False)
            ]  # fmt: skip
            totals = gram.combine(client.gather([client.submit(gram_sums, part, pure=False) for part in partial]))
            routes |= {name: routes.get(name, 0) + count for name, count in totals.routes.items()}
            for tile in tiles:
                held = [client.submit(gram_tile, part, tile, len(partial) > 1, pure=False) for part in partial]
                done = client.submit(
                    guarded,
                    "neighbors",
                    tile_task,
                    totals,
                    tile,
                    config.metric,
                    k - 1,
                    dense,
                    device,
                    *held,
                    pure=False,
                )
                candidates = client.submit(_first, done, pure=False).result()
                if dense:
                    dense_parts[tile] = client.submit(_second, done, pure=False)
                for block, keys in candidates.items():
                    parts = [found[block], keys] if block in found else [keys]
                    found[block] = neighbors.merge(parts, k - 1)
                advance()
            del partial, held, done  # the workers let go of their tiles before the next pass
    if dense:
        keys = list(dense_parts)
        client.submit(
            guarded, "neighbors", tree_task, out, len(kept), plan.tile, config.hdbscan.min_samples, keys,
            [dense_parts[t] for t in keys], pure=False,
        ).result()  # fmt: skip
    indices, distances = neighbors.finish(np.concatenate([found[block] for block in sorted(found)]), k)
    write_neighbors(out, kept, indices, distances, config.metric)
    return {"rows": len(kept), "passes": len(passes), "tiles": sum(map(len, passes)), "routes": routes}


def _first(pair: tuple[Any, Any]) -> Any:
    return pair[0]


def _second(pair: tuple[Any, Any]) -> Any:
    return pair[1]


def sketch_task(out: Path, kept: Array, config: Config, plan: memory.Plan) -> dict[str, Any]:
    """Neighbours from a random projection of the prompts."""
    size = config.neighbors.sketch_size
    blocks = store.read_rows(out / schema.ACTIVATIONS, plan.rows)
    projected = neighbors.sketch(((first, block[:, kept]) for first, block in blocks), len(kept), size, config.seed)
    blocks_of_features = -(-len(kept) // plan.tile)
    found: dict[int, Array] = {}
    for i in range(blocks_of_features):
        for j in range(i, blocks_of_features):
            part = gram.accumulate([projected.T], len(kept), [(i, j)], plan.tile, sparse=False)
            for block, keys in neighbors.candidates(
                part, i, j, config.metric, config.n_neighbors - 1, float(part.squares.max())
            ).items():
                parts = [found[block], keys] if block in found else [keys]
                found[block] = neighbors.merge(parts, config.n_neighbors - 1)
    keys = np.concatenate([found[block] for block in sorted(found)])
    indices, distances = neighbors.finish(keys, config.n_neighbors)
    write_neighbors(out, kept, indices, distances, config.metric)
    return {"rows": len(kept), "passes": 1, "sketch_size": size}


def write_neighbors(out: Path, kept: Array, indices: Array, distances: Array, metric: str) -> None:
    """Store the neighbours with the SAE's own feature numbers."""
    variables = {
        "indices": (("feature", "k"), kept[indices].astype(np.int64)),
        "distances": (("feature", "k"), distances),
        "feature": (("feature",), kept.astype(np.int64)),
        "k": (("k",), np.arange(indices.shape[1])),
    }
    store.write_dataset(out / schema.NEIGHBORS, variables, {"metric": metric})


def read_neighbors(out: Path) -> tuple[Array, Array, Array]:
    """Return kept feature numbers, indices that count the kept features, and distances."""
    import zarr

    group: Any = zarr.open_group(out / schema.NEIGHBORS, mode="r")
    kept = group["feature"][:]
    return kept, np.searchsorted(kept, group["indices"][:]).astype(np.int32), group["distances"][:]


# ---------------------------------------------------------------- embedding, clusters, tables


def embed_task(out: Path, config: Config, device: str = "cpu") -> dict[str, Any]:
    """Embed the features for clustering, and in two dimensions for the map."""
    from gpuclust.embed import embed

    backend = resolve(device).name
    kept, indices, distances = read_neighbors(out)
    notes: tuple[str, ...] = ()
    flat = None
    if config.umap.enabled:
        embedding, notes = embed(indices, distances, config.umap, backend=backend)
        variables = {
            "embedding": (("feature", "component"), embedding),
            "feature": (("feature",), kept),
            "component": (("component",), np.arange(embedding.shape[1])),
        }
        store.write_dataset(out / schema.EMBEDDING, variables, {"method": METHODS[backend]})
        flat = embedding if embedding.shape[1] == 2 else None
    if flat is None:
        flat, more = embed(indices, distances, config.umap, n_components=2, backend=backend)
        notes = tuple(dict.fromkeys((*notes, *more)))
    (out / schema.MAP).parent.mkdir(exist_ok=True)
    np.save(out / schema.MAP, flat)
    facts = {"rows": len(kept), "components": config.umap.n_components, "method": METHODS[backend]}
    return facts | {"warnings": list(notes)}


def cluster_task(out: Path, config: Config, device: str = "cpu") -> dict[str, Any]:
    """Cluster on the embedding, or without UMAP on the spanning tree of exact cosine distances."""
    import zarr

    from gpuclust.cluster import cluster_embedding, cluster_tree
    from gpuclust.spanning import chord_edges

    kept, _, distances = read_neighbors(out)
    if config.umap.enabled:
        group: Any = zarr.open_group(out / schema.EMBEDDING, mode="r")
        result = cluster_embedding(group["embedding"][:], config.hdbscan, backend=resolve(device).name)
    else:
        edges = np.load(out / schema.SPANNING_TREE)
        result = cluster_tree(chord_edges(edges) if config.hdbscan.metric == "euclidean" else edges, config.hdbscan)
    features = pd.read_parquet(out / schema.SELECTED)
    features = with_clusters(features, result, np.load(out / schema.MAP))
    mask = features["kept"].to_numpy()
    store.write_table(out / schema.FEATURES, features)
    store.write_table(out / schema.CONDENSED_TREE, pd.DataFrame(result.condensed_tree))
    np.save(out / schema.PERSISTENCE, result.persistence)
    facts: dict[str, Any] = {
        "rows": len(kept),
        "clusters": len(result.persistence),
        "noise": int((result.labels == schema.NOISE).sum()),
        "warnings": list(result.notes),
    }
    if config.quality.duplicates:
        facts["duplicates"] = int((distances[:, 1] == 0).sum())
        facts["single_prompt"] = int((features.loc[mask, "n_active"] <= 1).sum())
    return facts


def with_clusters(features: pd.DataFrame, result: Any, flat: Array) -> pd.DataFrame:
    """Add label, probability, outlier score and map of the kept features; null for the others."""
    table = features.copy()
    mask = table["kept"].to_numpy()
    table["label"] = pd.array([pd.NA] * len(table), dtype="Int64")
    table.loc[mask, "label"] = result.labels
    columns = {
        "probability": result.probabilities, "outlier_score": result.outlier_scores, "x": flat[:, 0], "y": flat[:, 1],
    }  # fmt: skip
    for name, values in columns.items():
        table[name] = np.nan
        table.loc[mask, name] = values
    return table


def analyse_task(out: Path, config: Config, rows: int) -> dict[str, Any]:
    """Make the cluster tables; one pass over the store for the clusters' activations."""
    from gpuclust import analyse, models

    features = pd.read_parquet(out / schema.FEATURES)
    prompts = pd.read_parquet(out / schema.PROMPTS)
    kept = features[features["kept"]]
    labels = kept["label"].to_numpy(dtype=np.int64)
    blocks = store.read_rows(out / schema.ACTIVATIONS, rows)
    activations = analyse.prompt_activations((block for _, block in blocks), kept["feature"].to_numpy(), labels)
    tokens: dict[int, list[str]] = {}
    if "tokens" in prompts:
        tokenizer = models.load_tokenizer(config)
        tokens = analyse.peak_tokens(features, pd.read_parquet(out / schema.EXAMPLES), prompts, tokenizer)
    clusters = analyse.cluster_table(
        features, prompts, activations, np.load(out / schema.PERSISTENCE), config.analyse, tokens
    )
    store.write_table(out / schema.CLUSTERS, clusters)
    variables = {
        "activation": (("prompt", "cluster"), activations),
        "prompt": (("prompt",), prompts["prompt"].to_numpy()),
        "cluster": (("cluster",), np.arange(activations.shape[1])),
    }
    store.write_dataset(out / schema.CLUSTER_ACTIVATIONS, variables, {"unit": "mean |a| of the cluster's features"})
    store.write_table(out / schema.CLUSTER_SIMILARITY, analyse.similarity(activations))
    return {"rows": activations.shape[1]}


def report_task(out: Path) -> dict[str, Any]:
    """Write the report."""
    from gpuclust.report import write

    return {"bytes": write(out)}
