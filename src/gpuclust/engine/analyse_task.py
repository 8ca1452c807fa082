"""The task of the analyse stage: what each cluster does, says and shares, from the store, the texts and the decoder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.compute import halves, themes, verdicts
from gpuclust.config import Config
from gpuclust.engine import token_contexts
from gpuclust.hardware import budget
from gpuclust.storage import atomic, store
from gpuclust.tables import feature_table
from gpuclust.types import Array

if TYPE_CHECKING:
    from gpuclust.tables.profiles import ByCluster, Profile

log = logging.getLogger("gpuclust")


def analyse_task(out: Path, config: Config, rows: int) -> dict[str, Any]:
    """Make the cluster tables; one pass over the store for the clusters' activations, two over those.

    Parameters
    ----------
    out, config, rows : as in `prompts_task` and `reduce_task`
    """
    from gpuclust.extraction import encoders
    from gpuclust.tables import cluster_table, keywords, labeller, profiles, prompt_text, theme_table

    features = pd.read_parquet(out / schema.FEATURES)
    prompts = pd.read_parquet(out / schema.PROMPTS)
    examples = pd.read_parquet(out / schema.EXAMPLES)
    kept = features[features["kept"]]
    label = kept["label"].to_numpy(dtype=np.int64)
    profile = cluster_profile(out, profiles.by_cluster(kept["feature"].to_numpy(), label), rows, config, prompts)
    checked = pd.read_parquet(out / schema.QUALITY)
    more: dict[str, Any] = {
        name: checked[name].tolist()
        for name in ("verdict", "verdict_reason", "stability", "hdbscan_match", "silhouette")
    }
    clustered = features.loc[feature_table.is_point(features), "label"].to_numpy(dtype=np.int64)
    more |= {"tree_node": cluster_table.tree_nodes(pd.read_parquet(out / schema.CONDENSED_TREE), clustered)}
    notes: list[str] = []
    spans = pd.DataFrame(dict.fromkeys(schema.SPAN_COLUMNS, -1), index=examples.index)
    spans[["feature", "rank"]] = examples[["feature", "rank"]]
    tokenizer = None
    if "tokens" in prompts:  # of imported activations only where a tokenizer was given
        tokenizer = encoders.load_tokenizer(config)
        spans = prompt_text.peak_spans(examples, prompts, tokenizer)
        tokens = keywords.peak_tokens(features, examples, prompts, tokenizer, spans=spans)
        more["tokens"] = [tokens.get(c, []) for c in range(len(profile.correlation))]
        if not store.imported(out / schema.ACTIVATIONS):
            columns, notes = decoder_columns(config, kept["feature"].to_numpy(), label, tokenizer)
            more |= columns
    if config.n_contexts:
        numbers = kept["feature"].to_numpy(dtype=np.int64)
        peak = kept["max"].to_numpy()
        found = token_contexts.contexts(out, config, numbers, label, peak, prompts, tokenizer)
        atomic.write_table(out / schema.CONTEXTS, found)
    atomic.write_table(out / schema.EXAMPLE_SPANS, spans)
    marks = cluster_table.peak_marks(features, examples, spans)
    clusters = cluster_table.cluster_table(
        features, prompts, profile, np.load(out / schema.PERSISTENCE), config.analyse, marks, more
    )
    atomic.write_table(out / schema.CLUSTER_SIMILARITY, cluster_table.similarity(profile.correlation))
    real = clusters["cluster"] != schema.NOISE
    if config.analyse.labeller is not None:
        clusters.loc[real, "name"] = labeller.apply(config.analyse.labeller, clusters[real].reset_index(drop=True))
    sizes = clusters.loc[real, "size"].to_numpy(np.int64)
    theme = themes.find(profile.correlation, sizes)
    doubtful = clusters.loc[real, "verdict"].isin(verdicts.DOUBTFUL).to_numpy(bool)
    found = theme_table.theme_table(theme, clusters[real].reset_index(drop=True), profile.correlation, doubtful)
    clusters.loc[real, "theme"] = theme if len(found) else pd.NA
    atomic.write_table(out / schema.THEMES, found)
    clusters = cluster_table.with_evidence(clusters, store.read_table(out / schema.VALIDATION))
    atomic.write_table(out / schema.CLUSTERS, clusters)
    facts = {"themes": len(found), "themes_ari_halves": themes.agreement(profile.half_correlations, sizes)}
    return {"rows": len(profile.correlation), "notes": notes, **facts}


def cluster_profile(out: Path, clusters: ByCluster, rows: int, config: Config, prompts: pd.DataFrame) -> Profile:
    """Write the clusters' activations on every prompt, and reduce them.

    Parameters
    ----------
    out, config, rows : as in `analyse_task`
    clusters, prompts : ByCluster and DataFrame
    """
    import zarr

    from gpuclust.tables import profiles

    n_clusters = len(clusters.sizes)
    blocks = store.read_rows(out / schema.ACTIVATIONS, rows)
    activation = store.Stream(
        (len(prompts), n_clusters), (profiles.average(block, clusters) for _, block in blocks), budget.PROFILE_ROWS
    )
    variables = {
        "activation": (("prompt", "cluster"), activation),
        "prompt": (("prompt",), prompts["prompt"].to_numpy()),
        "cluster": (("cluster",), np.arange(n_clusters)),
    }
    store.write_dataset(out / schema.CLUSTER_ACTIVATIONS, variables, {"unit": "mean |a| of the cluster's features"})
    stored: Any = zarr.open_array(out / schema.CLUSTER_ACTIVATIONS / "activation", mode="r")

    def again() -> Iterator[Array]:  # blocks of one size, whatever the memory: equal results to the last bit
        yield from (stored[first : first + activation.rows] for first in range(0, len(prompts), activation.rows))

    n_marking = max(profiles.N_MARKING, config.analyse.top_prompts)
    half = halves.half_of(len(prompts), config.seed)
    return profiles.profile(again, n_clusters, config.analyse.top_prompts, n_marking, half)


def decoder_columns(
    config: Config, kept: Array, label: Array, tokenizer: Any
) -> tuple[dict[str, list[Any]], list[str]]:
    """Compute what the decoder says about each cluster, and why something could not be had.

    Parameters
    ----------
    config, tokenizer : Config and Hugging Face tokenizer
    kept, label : array, (kept,), int64: the SAE's numbers of the features, and their clusters
    """
    from gpuclust.extraction import directions
    from gpuclust.tables import decoder, prompt_text

    clusters = [kept[label == c] for c in range(int(label.max(initial=schema.NOISE)) + 1)]
    if not clusters:
        return {}, []
    weights, unembedding, why = directions.load_directions(config, config.analyse.promoted_tokens > 0)
    unit = decoder.unit_rows(weights)
    columns: dict[str, list[Any]] = {
        name: values.tolist() for name, values in decoder.cohesion(unit, clusters, kept, config.seed).items()
    }
    if unembedding is None:
        log.info("analyse: no promoted tokens: %s", why)
        return columns, [f"no promoted tokens: {why}"]
    ids = decoder.promoted(unit, clusters, unembedding, config.analyse.promoted_tokens)
    columns["promoted_tokens"] = [[prompt_text.spelled(i, tokenizer) for i in row] for row in ids.tolist()]
    return columns, []
