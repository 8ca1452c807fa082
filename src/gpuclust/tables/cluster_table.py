"""Analyse: the tables about clusters: statistics, prompts, keywords, and how clusters go together over prompts."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.config_sections import AnalyseConfig
from gpuclust.schema import CLUSTER_COLUMNS, NOISE, text_dtype
from gpuclust.tables.keywords import keywords
from gpuclust.tables.profiles import Profile
from gpuclust.tables.prompt_text import show
from gpuclust.types import Array

# Peak tokens in prompts: (cluster, prompt) -> (start, stop) in the prompt's text -> features that peak there
Marks = dict[tuple[int, int], dict[tuple[int, int], int]]


def cluster_table(
    features: pd.DataFrame,
    prompts: pd.DataFrame,
    profile: Profile,
    persistence: Array,
    config: AnalyseConfig,
    marks: Marks | None = None,
    more: Mapping[str, Sequence[Any]] | None = None,
) -> pd.DataFrame:
    """Describe every cluster, and noise by its size and features.

    Mean and std are of abs(a) over all features of the cluster and all prompts, pooled from the features' own:
    mean = avg(mean_f), std² = avg(std_f²) + var(mean_f).

    Parameters
    ----------
    features : DataFrame
        Of all features, with ``kept`` and ``label``.
    prompts : DataFrame
    profile : Profile
        At least ``top_prompts`` of both kinds of prompts.
    persistence : array, (cluster,)
    config : AnalyseConfig
    marks : dict, optional
        See `peak_marks`.
    more : mapping of str to sequence, optional
        Further columns, a value per cluster.

    Returns
    -------
    DataFrame
        Columns of ``schema.CLUSTER_COLUMNS``, noise first; null where `more` does not fill them.
    """
    kept = features[features["kept"]]
    n_clusters = len(profile.correlation)
    words = keywords(prompts["text"], profile.marking, config.keywords)
    order = similarity_order(profile.correlation)
    overall = prompts["source"].value_counts(normalize=True)
    rows = []
    for cluster in [NOISE, *range(n_clusters)]:
        own = kept[kept["label"] == cluster]
        row: dict[str, Any] = dict.fromkeys(CLUSTER_COLUMNS) | {
            "cluster": cluster,
            "size": len(own),
            "ratio": len(own) / len(kept) if len(kept) else 0.0,
            "features": own["feature"].tolist(),
        }
        if cluster != NOISE:
            mean = own["mean"].to_numpy()
            top, marked = (
                describe_prompts(
                    prompts, chosen[: config.top_prompts, cluster], strength[:, cluster], cluster, marks or {}
                )
                for chosen, strength in (
                    (profile.top, profile.top_strength),
                    (profile.marking, profile.marking_strength),
                )
            )
            row |= {
                "persistence": float(persistence[cluster]),
                "mean_activation": float(mean.mean()),
                "max_activation": float(own["max"].max()),
                "std_activation": float(np.sqrt((own["std"] ** 2).mean() + mean.var())),
                "sparsity": float(own["sparsity"].mean()),
                "top_prompts": top,
                "distinctive_prompts": marked,
                "keywords": words[cluster],
                "sources": source_shares(prompts["source"].iloc[profile.marking[:, cluster]], overall),
                "similarity_rank": int(order[cluster]),
                **{name: values[cluster] for name, values in (more or {}).items()},
            }
        rows.append(row)
    table = pd.DataFrame(rows)
    types = {name: dtype for name, (dtype, _) in CLUSTER_COLUMNS.items() if dtype in ("float64", "Int64")}
    return table.astype({**types, "name": text_dtype()})


def with_evidence(clusters: pd.DataFrame, validation: pd.DataFrame) -> pd.DataFrame:
    """Put what was found of each cluster by validation into the cluster table.

    Parameters
    ----------
    clusters : DataFrame
        Columns of ``schema.CLUSTER_COLUMNS``.
    validation : DataFrame
        Columns of ``schema.VALIDATION_COLUMNS``, a row per cluster, without noise.

    Returns
    -------
    DataFrame
        As `clusters`; null for noise.
    """
    own = validation.drop(columns=["size"]).set_index("cluster")
    found = own.reindex(clusters["cluster"]).reset_index(drop=True)
    columns = {str(name): values.set_axis(clusters.index) for name, values in found.items()}
    return clusters.assign(**columns).astype({str(name): dtype for name, dtype in own.dtypes.items()})


def describe_prompts(
    prompts: pd.DataFrame, chosen: Array, activation: Array, cluster: int, marks: Marks
) -> list[dict[str, Any]]:
    """Return the chosen prompts as they are shown, without those where the cluster is silent.

    Parameters
    ----------
    prompts : DataFrame
        With ``prompt``, ``text``, ``n_tokens`` and ``source``.
    chosen : array, (rank,), int
        Positions in `prompts`.
    activation : array, float64, at least as long
        The cluster's on each of the chosen.
    cluster : int
    marks : dict
        See `peak_marks`.
    """
    active = [(i, float(value)) for i, value in zip(chosen, activation, strict=False) if value > 0]
    found = prompts.iloc[[i for i, _ in active]]
    rows = []
    columns = (found[name] for name in ("prompt", "text", "n_tokens", "source"))
    for (_, value), prompt, text, n_tokens, source in zip(active, *columns, strict=True):
        shown = show(text)
        places = [(*shown.span(*span), count) for span, count in sorted(marks.get((cluster, int(prompt)), {}).items())]
        rows.append(
            {
                "prompt": int(prompt),
                "activation": value,
                "n_chars": len(text),
                "n_tokens": int(n_tokens),
                "source": source,
                "text": shown.text,
                "marks": [dict(zip(("start", "stop", "features"), place, strict=True)) for place in places],
            }
        )
    return rows


def peak_marks(features: pd.DataFrame, examples: pd.DataFrame, spans: pd.DataFrame) -> Marks:
    """Count, for each cluster and prompt, the features that peak at each token, among the stored examples.

    Parameters
    ----------
    features, examples, spans : DataFrame
        Columns of ``schema.FEATURE_COLUMNS``, ``EXAMPLE_COLUMNS`` and ``SPAN_COLUMNS``; a span per example, in order.

    Returns
    -------
    dict of (cluster, prompt) to dict of (start, stop) to int
    """
    known = (spans["start"] >= 0).to_numpy()
    clustered = features.loc[features["kept"], ["feature", "label"]]
    clustered = clustered[clustered["label"] >= 0]
    rows = examples.loc[known, ["feature", "prompt"]].assign(
        start=spans["start"].to_numpy()[known], stop=spans["stop"].to_numpy()[known]
    )
    keys = ["label", "prompt", "start", "stop"]
    counts = rows.merge(clustered, on="feature")[keys].astype("int64").value_counts().reset_index()
    found: Marks = {}
    for cluster, prompt, start, stop, count in counts[[*keys, "count"]].to_numpy().tolist():
        found.setdefault((cluster, prompt), {})[start, stop] = count
    return found


def source_shares(sources: pd.Series[str], overall: pd.Series[float]) -> list[dict[str, Any]]:
    """Return the share of each source among a cluster's most distinctive prompts, largest first, and among all."""
    shares = sources.value_counts(normalize=True)
    ordered = sorted(((float(share), str(name)) for name, share in shares.items()), key=lambda x: (-x[0], x[1]))
    return [{"source": name, "share": share, "overall": float(overall[name])} for share, name in ordered]


def tree_nodes(condensed: pd.DataFrame, labels: Array) -> list[int]:
    """Find each cluster's node in the condensed tree: the smallest that holds all its features.

    Parameters
    ----------
    condensed : DataFrame
        Columns ``parent``, ``child``, ``lambda_val``, ``child_size``; a parent's number is below its children's.
    labels : int array, (kept,)

    Returns
    -------
    list of int, one a cluster
    """
    parent = dict(zip(condensed["child"].tolist(), condensed["parent"].tolist(), strict=True))
    nodes = []
    for cluster in range(int(labels.max(initial=NOISE)) + 1):
        open_nodes = {parent[int(point)] for point in np.flatnonzero(labels == cluster)}
        heap = [-node for node in open_nodes]
        heapq.heapify(heap)
        while len(heap) > 1:
            above = parent[-heapq.heappop(heap)]
            if above not in open_nodes:
                open_nodes.add(above)
                heapq.heappush(heap, -above)
        nodes.append(-heap[0])
    return nodes


def similarity_order(correlation: Array) -> Array:
    """Rank the clusters so that correlated ones are neighbours: leaves of average linkage on 1 - r, int (cluster,)."""
    rank = np.arange(len(correlation))
    if len(rank) > 2:
        from scipy.cluster.hierarchy import average, leaves_list

        distance = 1 - np.nan_to_num(correlation[np.triu_indices(len(rank), 1)])
        rank[leaves_list(average(np.clip(distance, 0, None)))] = np.arange(len(rank))
    return rank


def similarity(correlation: Array) -> pd.DataFrame:
    """Write the correlations of the clusters over prompts as a table: one row a pair, `cluster_a < cluster_b`."""
    a, b = np.triu_indices(len(correlation), 1)
    return pd.DataFrame({"cluster_a": a, "cluster_b": b, "correlation": correlation[a, b]})
