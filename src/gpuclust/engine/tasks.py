"""The tasks of a run: each reads files of the run's folder, calls one stage's function, and writes its files.

They run on a worker and return only small facts; what they compute is in the modules they call.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.compute import dbscan, duplicates, neighbors
from gpuclust.compute.clustering import Clustering
from gpuclust.compute.reductions import EXAMPLES, MOMENTS, State
from gpuclust.config import Config
from gpuclust.config_sections import SelectConfig
from gpuclust.engine.views import read_errors, read_neighbors, view_path, write_neighbors
from gpuclust.errors import GpuclustError, ModelError, StoreError
from gpuclust.hardware import budget
from gpuclust.hardware.backend import on_host, resolve
from gpuclust.storage import atomic, markers, row_blocks, store, token_store
from gpuclust.tables import feature_table
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

METHODS = {"cpu": "umap-learn", "cuda": "cuml"}


def prompts_task(config: Config, out: Path, device: str, compare: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Load model and SAE, which checks that they belong together, and fix the prompts.

    Parameters
    ----------
    config, out, device : Config, Path of the run's folder, {"cpu", "cuda"}
    compare : bool
        Refuse other prompts than those that the folder's shards were computed with.

    Returns
    -------
    dict
        What later stages need to know of model and prompts.
    list of str
        Warnings.
    """
    from gpuclust.compute import feature_filter
    from gpuclust.extraction import encoders, extract_shard, prompts

    encoder = encoders.load_encoder(config, device)
    feature_filter.check_size(encoder.d_sae, config.fewest_features)
    n_bos = extract_shard.bos_tokens(encoder.tokenizer, config)
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
    prompts.refuse_unknown_ids(table, encoder.n_ids, encoder.tokenizer, config.model.name)
    if compare:
        _refuse_other_prompts(out, prompts.digest(table))
    atomic.write_table(out / schema.PROMPTS, table)
    attributes = {
        "model": config.model.name,
        "loader": encoder.loader,
        "sae": config.sae.label,
        "hook_name": encoder.hook_name,
        "prepend_bos": bool(n_bos),
        "prompts_sha256": prompts.digest(table),
        "neuronpedia_id": encoder.sae_metadata.get("neuronpedia_id"),
        **encoder.commits,
    }
    return {
        "rows": len(table),
        "tokens": int(table["n_tokens"].sum()),
        "d_sae": encoder.d_sae,
        "d_in": encoder.d_in,
        "model_bytes": encoder.model_bytes,
        "sae_bytes": encoder.sae_bytes,
        "whole_bytes": encoder.whole_bytes,
        "attributes": attributes,
    }, warnings + more


def _refuse_other_prompts(out: Path, digest: str) -> None:
    """Leave shards alone that were computed with other prompts; a table that cannot be read says nothing."""
    from gpuclust.extraction import prompts

    shards = markers.shards_done(out / schema.SHARDS)
    if not shards or not (out / schema.PROMPTS).exists():
        return
    try:
        there = prompts.digest(store.read_table(out / schema.PROMPTS))
    except (GpuclustError, KeyError, TypeError, AttributeError) as error:
        log.warning("prompts: %s cannot be compared (%s)", schema.PROMPTS, error)
        return
    if there != digest:
        raise StoreError(
            f"{out} holds {shards} shards that were computed with other prompts, and its {schema.RECORD} is lost: "
            "restore the prompts, give another --out, or delete that folder; its prompts and shards were not changed"
        )


def coordinates_task(out: Path) -> dict[str, Any]:
    """Write which token each row of the store of tokens is; its rows, entries and bytes.

    Parameters
    ----------
    out : as in `prompts_task`
    """
    path = out / schema.TOKENS
    n = token_store.write_coordinates(path, out / schema.SHARDS)
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"token_rows": n, "token_bytes": stored}


def reduce_task(
    out: Path, threshold: float, rows: int, k: int, device: str = "cpu", aggregate: str = "max"
) -> dict[str, Any]:
    """Merge the shards' moments and examples; recompute from the store what is missing or had another threshold.

    Parameters
    ----------
    out, device : as in `prompts_task`
    threshold, rows, k, aggregate : float, int, int, str
        Of activation; prompts read at a time; examples of a feature; ``extract.aggregate``.
    """
    path, shards = out / schema.ACTIVATIONS, out / schema.SHARDS
    backend = resolve(device)
    xp = backend.xp
    ranges = store.shard_ranges(path)
    moments: State | None = None
    examples: State | None = None
    read_again = 0
    counted = {"negative": 0, "underflowed": 0}
    for index, (first, stop) in enumerate(ranges):
        states = markers.read_states(shards, index)
        counted = {name: n + int((states or {}).get(name, 0)) for name, n in counted.items()}
        if states is None or float(states["threshold"]) != threshold:
            read_again += 1
            fresh, unknown = [], []
            for start, block in row_blocks.rows(path, rows, backend, first, stop):
                fresh.append(on_host(MOMENTS.chunk(block, threshold, xp)))
                if states is None:  # where in a prompt a feature peaks cannot be known any more
                    nowhere = xp.full(block.shape, -1, xp.int32)
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
    atomic.write_arrays(out / schema.MOMENTS, moments)
    atomic.write_table(out / schema.EXAMPLES, pd.DataFrame(EXAMPLES.finalize(examples)))
    nonzero = int(moments["n_nonzero"].sum())
    density = float(nonzero / max(int(moments["n"]) * len(moments["sum"]), 1))
    dead = int((moments["n_nonzero"] == 0).sum())
    facts = {"rows": len(moments["sum"]), "density": density, "dead_features": dead, "shards_recomputed": read_again}
    return facts | counted | {"warnings": _doubts(nonzero, aggregate, **counted)}


def _doubts(nonzero: int, aggregate: str, negative: int, underflowed: int) -> list[str]:
    """What is to be said of activations that are negative, or that the stored dtype could not hold."""
    found = []
    if negative and aggregate in ("mean", "sum"):
        found.append(
            f"{negative:,} of {nonzero:,} activations are negative: this SAE has signed features, whose "
            f"extract.aggregate={aggregate} over tokens may cancel; max keeps the value at the largest abs(activation)"
        )
    found += store.underflow(underflowed, nonzero, "float16")
    for text in found:
        log.warning("reduce: %s", text)
    return found


def select_task(out: Path, config: SelectConfig, needed: int, copies_by: str | None, rows: int) -> dict[str, Any]:
    """Filter the features, and find those that are copies of another (`duplicates`).

    Parameters
    ----------
    out, rows : as in `reduce_task`
    config, needed, copies_by : SelectConfig, int, {"direction", "column"} or None
    """
    from gpuclust.compute.feature_filter import select

    path = out / schema.ACTIVATIONS
    with np.load(out / schema.MOMENTS) as file:
        moments = dict(file)
    table, removed = select(MOMENTS.finalize(moments), config, needed, store.open_array(path).shape[0])
    features = table.loc[table["kept"], "feature"].to_numpy()
    point = duplicates.find(store.read_rows(path, rows), moments, features, copies_by)
    table, n_copies = duplicates.mark(table, point, needed)
    atomic.write_table(out / schema.SELECTED, table)
    kept = removed.pop("kept")
    return {"rows": len(table), "kept": kept, "removed": removed, "duplicates": n_copies}


# ---------------------------------------------------------------- neighbours


def sketch_task(out: Path, kept: Array, config: Config, plan: budget.Plan) -> dict[str, Any]:
    """Neighbours from a random projection of the prompts.

    Parameters
    ----------
    out, kept, config, plan : as in `views.read`, and Config
    """
    size, k = config.neighbors.sketch_size, min(config.n_neighbors, len(kept))
    blocks = store.read_rows(out / schema.ACTIVATIONS, plan.rows)
    projected = neighbors.sketch(((first, block[:, kept]) for first, block in blocks), len(kept), size, config.seed)
    indices, distances = neighbors.of_vectors(projected, k, config.metric, plan.tile)
    write_neighbors(out / schema.NEIGHBORS, kept, indices, distances, config.metric)
    return {"rows": len(kept), "passes": 1, "sketch_size": size}


# ---------------------------------------------------------------- embedding, clusters, tables


def embed_task(out: Path, config: Config, device: str = "cpu") -> dict[str, Any]:
    """Embed the features for clustering, and in two dimensions for the map.

    Parameters
    ----------
    out, config, device : as in `prompts_task`
    """
    from gpuclust.compute.embedding import embed

    backend = resolve(device).name
    kept, indices, distances = read_neighbors(out / schema.NEIGHBORS)
    components = sorted({config.umap.n_components, 2})

    def lay_out(n_components: int) -> tuple[Array, tuple[str, ...]]:
        return embed(indices, distances, config.umap, n_components=n_components, backend=backend)

    found = dict(zip(components, _side_by_side(lay_out, components, backend), strict=True))
    embedding, notes = found[config.umap.n_components]
    flat, more = found[2]
    notes = tuple(dict.fromkeys((*notes, *more)))
    variables = {
        "embedding": (("feature", "component"), embedding),
        "feature": (("feature",), kept),
        "component": (("component",), np.arange(embedding.shape[1])),
    }
    store.write_dataset(out / schema.EMBEDDING, variables, {"method": METHODS[backend]})
    atomic.write_array(out / schema.MAP, flat)
    facts = {"rows": len(kept), "components": config.umap.n_components, "method": METHODS[backend]}
    return facts | {"warnings": list(notes)}


def resolution_task(out: Path, config: Config, n_prompts: int) -> tuple[float, dict[float, float]]:
    """Choose the resolution of communities, on all prompts.

    Parameters
    ----------
    out, config : as in `prompts_task`
    n_prompts : int
    """
    from gpuclust.compute import communities

    _, indices, distances = read_neighbors(out / schema.NEIGHBORS)
    errors = read_errors(out / schema.NEIGHBORS)
    return communities.choose_resolution(indices, distances, n_prompts, config, errors)


def member_task(out: Path, config: Config, view: str, n_prompts: int, number: int, device: str = "cpu") -> Array:
    """Cluster a view of the prompts once: a member of its consensus, or by exact distances its spanning tree.

    Parameters
    ----------
    out, config, device : as in `prompts_task`
    view, n_prompts, number : as in `views.view_path` and `consensus.member_embedding`
    """
    from gpuclust.compute import methods

    if config.used_dbscan and config.tree_samples is not None:
        return _dbscan_tree(out, view, config).clustering.labels
    if config.tree_samples is not None:
        return _cluster_tree(view_path(out, view, schema.SPANNING_TREE), config).labels
    near = view_path(out, view, schema.NEIGHBORS)
    _, indices, distances = read_neighbors(near)
    errors, backend = read_errors(near), resolve(device).name
    return methods.member(indices, distances, n_prompts, config, number, backend=backend, errors=errors)


def members_task(jobs: list[tuple[Path, Config, str, int, int]], device: str = "cpu") -> list[Array]:
    """Cluster several times side by side, a thread each.

    Parameters
    ----------
    jobs : list of tuple
        What `member_task` is called with, without `device`.
    device : as in `prompts_task`

    Returns
    -------
    list of array, (feature,), int32
    """

    def one(job: tuple[Path, Config, str, int, int]) -> Array:
        out, config, view, n_prompts, number = job
        return member_task(out, config, view, n_prompts, number, device)

    on_host = all(config.cluster.method == "communities" for _, config, *_ in jobs)
    return _side_by_side(one, jobs, "cpu" if on_host else resolve(device).name)


def _side_by_side(function: Any, items: Sequence[Any], backend: str) -> list[Any]:
    """Call with each, at once on the host, where each takes one core; one by one on a GPU."""
    if backend != "cpu" or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(function, items))


def numbered(number: int, function: Any, *args: Any) -> tuple[int, Any]:
    """Call a task's function and return its number with the result.

    Parameters
    ----------
    number, function, *args : int, callable, and what it is called with
    """
    return number, function(*args)


def _cluster_tree(path: Path, config: Config) -> Clustering:
    from gpuclust.compute.clustering import cluster_tree, exact_edges

    return cluster_tree(exact_edges(np.load(path), config.hdbscan.metric), config.hdbscan)


def _dbscan_tree(out: Path, view: str, config: Config) -> dbscan.Found:
    _, indices, distances = read_neighbors(view_path(out, view, schema.NEIGHBORS))
    return dbscan.of_tree(np.load(view_path(out, view, schema.SPANNING_TREE)), indices, distances, config)


def _dbscan(
    out: Path, embedding: Array, embedded: Clustering, config: Config, allowed: int | None, backend: str
) -> dbscan.Found:
    """DBSCAN of a run, on the embedding with the condensed tree that HDBSCAN made of it."""
    if config.tree_samples is not None:
        return _dbscan_tree(out, schema.WHOLE, config)
    found = dbscan.of_embedding(embedding, config, backend, allowed)
    return replace(found, clustering=replace(found.clustering, condensed_tree=embedded.condensed_tree))


def cluster_task(
    out: Path, config: Config, members: list[Array], allowed: int | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Cluster by ``cluster.method``, and once by HDBSCAN on the embedding; with several `members`, by consensus.

    The clustering of the embedding is the first member of a consensus of UMAP; `allowed` bytes of host memory may be
    used for it.

    Parameters
    ----------
    out, config, device : as in `prompts_task`
    members, allowed : as in `consensus.combine`; of UMAP without the first member
    """
    import zarr

    from gpuclust.compute import communities, consensus
    from gpuclust.compute.clustering import cluster_embedding

    group: Any = zarr.open_group(out / schema.EMBEDDING, mode="r")
    embedding, backend = group["embedding"][:], resolve(device).name
    chosen: dict[str, Any] = {}
    embedded = cluster_embedding(embedding, config.hdbscan, backend=backend)
    notes = embedded.notes if config.cluster.method == "umap" else ()
    if config.cluster.method == "communities":
        result = consensus.combine(members, config, allowed)
        _, indices, distances = read_neighbors(out / schema.NEIGHBORS)
        reasons = communities.why_noise(result.labels, members[0], indices, distances, config)
    elif config.cluster.method == "dbscan":
        found = _dbscan(out, embedding, embedded, config, allowed, backend)
        result, reasons, chosen = found.clustering, found.reasons, {"eps": found.eps, "on": config.dbscan.on}
        members = [result.labels]
    else:
        first = embedded if config.cluster.method == "umap" else _cluster_tree(out / schema.SPANNING_TREE, config)
        result = consensus.of_members(first, members, config, allowed)
        reasons = consensus.why_noise(result.labels, first.labels)
        members = [first.labels, *members]
    if config.n_members > 1:
        atomic.write_array(out / schema.MEMBERS, np.stack(members))
    features = pd.read_parquet(out / schema.SELECTED)
    features = feature_table.with_clusters(
        features, result, np.load(out / schema.MAP), hdbscan_label=embedded.labels, noise_reason=reasons
    )
    mask = features["kept"].to_numpy()
    atomic.write_table(out / schema.FEATURES, features)
    atomic.write_table(out / schema.CONDENSED_TREE, pd.DataFrame(result.condensed_tree))
    atomic.write_array(out / schema.PERSISTENCE, result.persistence)
    facts: dict[str, Any] = {
        "rows": int(mask.sum()),
        "clusters": len(result.persistence),
        "noise": int((features["label"] == schema.NOISE).sum()),
        "members": len(members),
        "method": config.cluster.method,
        **chosen,
        "noise_reasons": {
            name: int((reasons == name).sum()) for name in schema.NOISE_REASONS if (reasons == name).any()
        },
        "warnings": list(dict.fromkeys((*notes, *result.notes))),
    }
    if config.quality.duplicates:
        facts["duplicates"] = int(features["duplicate_of"].notna().sum())
        facts["single_prompt"] = int((features.loc[mask, "n_active"] <= 1).sum())
    return facts


def report_task(out: Path) -> dict[str, Any]:
    """Write the report."""
    from gpuclust.results.report import write

    return {"bytes": write(out)}
