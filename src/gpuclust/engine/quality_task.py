"""The task of the quality stage: every measure of `quality` on a run's files, and what had to be left out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.compute import agreement, consensus, controls, measures, methods, neighbors, validity, verdicts
from gpuclust.config import Config
from gpuclust.engine import prompt_rows, token_rows
from gpuclust.engine.views import read_neighbors
from gpuclust.extraction import directions
from gpuclust.hardware import budget
from gpuclust.storage import atomic, store
from gpuclust.tables import feature_table
from gpuclust.types import Array

log = logging.getLogger("gpuclust")


HDBSCAN = "hdbscan "  # before the name of a half: clustered once by UMAP and HDBSCAN, to compare with
CHANCE_DRAWS = 200  # random relabellings of the halves


def quality_task(
    out: Path, config: Config, plan: budget.Plan, members: dict[str, list[Array]], skipped: list[str]
) -> dict[str, Any]:
    """Measure the clustering: against others of the same features, its nulls, the input space and the decoder.

    Exact duplicates count once, as in the clustering. Two passes over the store at most. Of permuted activations there
    is one clustering, no consensus: that would only drop clusters, and the most cohesive is wanted.

    Parameters
    ----------
    out : Path
        Folder of the run.
    config : Config
    plan : budget.Plan
    members : dict of str to list of array, (point,), int32
        Labels of each further clustering's members, by its name.
    skipped : list of str
        What is left out already, and why.
    """
    from sklearn.metrics import adjusted_rand_score

    features = pd.read_parquet(out / schema.FEATURES)
    copied = features["label"].to_numpy(np.float64, na_value=np.nan)[features["duplicate_of"].notna()]
    features = features[feature_table.is_point(features)]
    kept, labels = features["feature"].to_numpy(), features["label"].to_numpy(np.int64)
    q, skipped = config.quality, list(skipped)
    embedded, once = features["hdbscan_label"].to_numpy(np.int64), _once(config, members)
    members = {name: found for name, found in members.items() if not name.startswith(HDBSCAN)}
    others = {name: consensus.of_labels(found, config, plan.budget).astype(np.int64) for name, found in members.items()}
    size = np.bincount(labels[labels >= 0])
    copies = np.bincount(copied[copied >= 0].astype(np.int64), minlength=len(size))
    nothing = np.full(len(size), np.nan)
    table: dict[str, Any] = {name: nothing for name, (dtype, _) in schema.QUALITY_COLUMNS.items() if dtype == "float64"}
    facts: dict[str, Any] = {"rows": len(size), "clustering": _known(_measured(out, config, labels, features))}
    if halves := [others[half] for half in schema.HALVES if half in others]:
        atomic.write_array(out / schema.HALF_LABELS, np.stack(halves))
        facts["halves"] = _known(measures.of_halves(*halves))
        table["stability"] = np.mean([validity.best_match(labels, half) for half in halves], axis=0)
        table["chance_stability"] = validity.chance_match(labels, halves, CHANCE_DRAWS, config.seed)
    table["hdbscan_match"] = validity.best_match(labels, embedded)
    facts["hdbscan"] = _known(measures.shape_of(embedded) | agreement.agreement(labels, embedded))
    if once:
        facts["hdbscan"]["halves"] = _known(measures.of_halves(*once))
    if seeds := [agreement.agreement(labels, other) for name, other in others.items() if name.startswith("seed")]:
        facts["seeds"] = _known({name: float(np.mean([seed[name] for seed in seeds])) for name in seeds[0]})
    if (out / schema.MEMBERS).exists() and config.n_members > 1:
        unmoved, *rest = np.load(out / schema.MEMBERS)
        facts["members"] = float(np.mean([adjusted_rand_score(unmoved, other) for other in rest]))
    n_prompts = len(pd.read_parquet(out / schema.PROMPTS, columns=["prompt"]))
    rows = token_rows.rows_of(config, out)
    if rows is None:  # n (std² + mean²) = Σ a²
        norms = np.sqrt(n_prompts * (features["std"].to_numpy() ** 2 + features["mean"].to_numpy() ** 2))
        degree = features["n_active"].to_numpy()
    else:
        norms, degree = token_rows.norms(out, kept, rows, plan.rows)

    def read(permute: int | None = None) -> Iterator[Any]:
        if rows is not None:
            return token_rows.blocks(out, kept, rows, plan.rows, permute)
        return prompt_rows.read_blocks(out, kept, plan, permute=permute)

    sets = controls.matched_sets(labels, degree, q.random_sets, config.seed)
    found = validity.sums(read(), norms, labels, sets)
    table |= {
        "silhouette": validity.silhouette(found, labels),
        "cohesion": validity.cohesion(found, labels),
        "permutation_z": validity.permutation_z(found, labels),
    }
    if q.random_sets > 1:
        table["random_z"] = validity.matched_z(found, labels, q.random_sets)
    del found
    if schema.NULL in others:
        null = others[schema.NULL]
        reached = validity.permutation_z(validity.sums_within(read(config.seed), norms, null), null)
        facts["null"] = {"clusters": int(null.max(initial=schema.NOISE)) + 1, "noise_share": float((null < 0).mean())}
        table["permutation_z_null"] = np.full(len(size), float(max(reached, default=0)))
    clustered = size / max(size.sum(), 1)
    for name in ("silhouette", "stability"):
        facts[name] = None if np.isnan(table[name]).any() or not len(size) else float(clustered @ table[name])
    table["verdict"], table["verdict_reason"] = verdicts.judge(table, q.stable)
    facts["verdicts"] = {name: int((table["verdict"] == name).sum()) for name in verdicts.VERDICTS}
    measured = not np.isnan(table["stability"]).any()
    facts["headline"] = verdicts.headline(facts["verdicts"], len(size), measured)
    facts["warnings"] = []
    share = facts.get("halves", {}).get("found_again")
    tokens = rows is None and not store.imported(out / schema.ACTIVATIONS)
    doubt = (
        verdicts.doubt(facts["verdicts"][verdicts.STABLE], len(size), n_prompts, share, tokens) if measured else None
    )
    if doubt is not None:
        log.warning("quality: %s", doubt)
        facts["warnings"].append(doubt)
    facts["dbcv"], why = _dbcv(out, labels, q.dbcv_features)
    skipped += [why] if why else []
    if q.decoder:
        facts["decoder"], why = _decoder_agreement(out, config, labels)
        skipped += [why] if why else []
    atomic.write_table(
        out / schema.QUALITY,
        pd.DataFrame({"cluster": np.arange(len(size)), "size": size + copies} | table)[list(schema.QUALITY_COLUMNS)]
        .astype({"verdict": "string", "verdict_reason": "string"}),
    )  # fmt: skip
    for reason in skipped:
        log.info("quality: left out: %s", reason)
    return facts | {"skipped": skipped}


def _once(config: Config, members: dict[str, list[Array]]) -> list[Array]:
    """One UMAP and HDBSCAN of each half of the prompts, where they were computed."""
    if config.cluster.method == "umap":  # they are the first members there
        return [members[half][0].astype(np.int64) for half in schema.HALVES if half in members]
    return [members[HDBSCAN + half][0].astype(np.int64) for half in schema.HALVES if HDBSCAN + half in members]


def _measured(out: Path, config: Config, labels: Array, features: pd.DataFrame) -> dict[str, float]:
    """Measures of the clustering as a whole, those of a sweep's row."""
    _, indices, _ = read_neighbors(out / schema.NEIGHBORS)
    statistics = {name: features[name].to_numpy() for name in measures.SHARED}
    persistence = np.load(out / schema.PERSISTENCE)
    return measures.of_clustering(labels, persistence, indices[:, : config.n_neighbors], statistics)


def _known(values: dict[str, float]) -> dict[str, float | None]:
    """The same, with null for NaN, which JSON has not."""
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def _dbcv(out: Path, labels: Array, limit: int) -> tuple[float | None, str]:
    import zarr

    if not (out / schema.EMBEDDING).exists():
        return None, "dbcv: there is no embedding"
    if len(labels) > limit:
        return None, f"dbcv: {len(labels)} features are more than quality.dbcv_features ({limit})"
    group: Any = zarr.open_group(out / schema.EMBEDDING, mode="r")
    score, why = validity.dbcv(group["embedding"][:], labels)
    return score, f"dbcv: {why}" if why else ""


def _decoder_agreement(out: Path, config: Config, labels: Array) -> tuple[dict[str, float] | None, str]:
    """Neighbours and clusters of the decoder's directions against those of the activations."""
    kept, indices, _ = read_neighbors(out / schema.NEIGHBORS)
    if store.imported(out / schema.ACTIVATIONS):
        return None, "decoder: the activations were imported, there is no SAE"
    weights = directions.load_directions(config, unembedding=False)[0][kept]
    k = min(config.umap.n_neighbors, indices.shape[1])
    near = neighbors.of_vectors(weights, indices.shape[1], "cosine", min(budget.TILE, len(kept)))
    facts = {
        "overlap": validity.neighbor_overlap(near[0][:, :k], indices[:, :k]),
        "overlap_by_chance": (k - 1) / max(len(kept) - 1, 1),
    }
    if config.tree_samples is None:
        member = methods.member(*near, n_prompts=0, config=config, number=0)
        facts["ami"] = agreement.agreement(labels, consensus.of_labels([member], config))["ami"]
    return facts, ""
