"""Content: what the report shows, from the tables of a run, as plain data and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.compute import evidence, verdicts
from gpuclust.results import noise, palette, tried
from gpuclust.results.report import contexts, tree
from gpuclust.schema import NOISE
from gpuclust.storage import reading
from gpuclust.tables import feature_table, words
from gpuclust.types import Array

NEIGHBORS = 10  # a feature card
HEAT_CLUSTERS = 400  # the largest, in the heat map
PAIRS_LISTED = 200  # of correlated clusters listed
PROMPT_CHARACTERS = 6_000_000  # of the clusters' prompts, in all
FLOATS = ("entropy", "varentropy", "sparsity", "mean", "std", "max", "probability", "outlier_score", "x", "y")
SHOWN_SOURCES = 8
COLOURED_SOURCES = 8  # of the map
SHOWN_CONTEXT = ("text", "start", "stop", "prompt", "position", "n_features", "features")
TRIED = [name for name in schema.VALIDATION_COLUMNS if name not in ("cluster", "size", "evidence")]  # told in words
# Columns of the cluster table that the page has a place for; other numbers and words are listed in the cluster's card.
PLACED = {
    "cluster", "size", "ratio", "persistence", "mean_activation", "max_activation", "std_activation", "sparsity",
    "top_prompts", "distinctive_prompts", "keywords", "tokens", "sources", "promoted_tokens", "decoder_cosine",
    "decoder_cosine_random", "decoder_cosine_p", "tree_node", "similarity_rank", "theme", "name",
    *TRIED,
}  # fmt: skip


def collect(run: reading.Files, record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read a run's tables and choose what the report holds, beside its record.

    Returns
    -------
    dict
        Plain data: facts of the run, clusters, pairs, texts.
    dict of arrays
        A value per feature, neighbour, context, node or pair of clusters; see `pack`.
    """
    settings = run.settings()
    features = run.table(schema.FEATURES).sort_values("feature", ignore_index=True)
    clusters = run.table(schema.CLUSTERS)
    prompts = run.table(schema.PROMPTS, ["prompt", "text", "source"])
    similarity, arrays = _similarity(run, clusters, settings["analyse"]["similarity_threshold"])
    pieces: list[str] = []
    if schema.EXAMPLE_SPANS in run:
        examples, spans = run.table(schema.EXAMPLES), run.table(schema.EXAMPLE_SPANS)
        pieces, found = contexts.collect(examples, spans, prompts, len(features))
        arrays |= found
    arrays |= _features(features) | _neighbors(run, features) | _tree(run, clusters)
    sources = pd.Categorical(prompts["source"])
    arrays["prompt_source"] = sources.codes.astype(np.int32)
    coloured, shares = _sources(run, arrays["prompt_source"], len(features))
    arrays |= shares
    attributes = record["stages"]["prompts"].get("attributes", {})
    data = {
        **{name: str(attributes.get(name) or "unknown") for name in ("model", "hook_name", "sae", "loader")},
        "neuronpedia_id": attributes.get("neuronpedia_id"),
        "record": record | {"stages": {name: _told(entry) for name, entry in record["stages"].items()}},
        "settings": settings,
        "n_prompts": len(prompts),
        "n_sources": len(sources.categories),
        "sources": [str(name) for name in sources.categories],
        "coloured_sources": coloured,
        "medians": _medians(features),
        "clusters": _clusters(clusters, _contexts(run), run.facts(schema.VALIDATION_FACTS)),
        "themes": _themes(run),
        "themes_agree": record["stages"]["analyse"].get("themes_ari_halves"),
        "pieces": pieces,
        **similarity,
        "hues": {"light": palette.HUES, "dark": palette.HUES_DARK},
        "marks": palette.MARKS,
        "quadrants": palette.QUADRANTS,
        "headline": record["stages"].get("quality", {}).get("headline"),
        "doubts": record["stages"].get("quality", {}).get("warnings", []),
        "verdicts": verdicts.explained(settings.get("quality", {}).get("stable", 0.5)),
        "doubtful": list(verdicts.DOUBTFUL),
        "evidence": evidence.MEANS,
        "evidence_hues": {word: palette.EVIDENCE.get(word, -1) for word in evidence.WORDS},
        "noise_reasons": [
            noise.explained(settings["hdbscan"]["min_cluster_size"])[name] for name in schema.NOISE_REASONS
        ],
    }
    return _plain(data), arrays


def _features(features: pd.DataFrame) -> dict[str, Array]:
    arrays = {name: features[name].to_numpy(np.float32) for name in FLOATS if name in features}
    arrays["n_active"] = features["n_active"].to_numpy(np.int32)
    arrays["kept"] = features["kept"].to_numpy(np.uint8)
    arrays["label"] = features["label"].fillna(NOISE).to_numpy(np.int32)
    if "hdbscan_label" in features:  # not in an older run
        arrays["hdbscan_label"] = features["hdbscan_label"].fillna(NOISE).to_numpy(np.int32)
    if "noise_reason" in features:
        numbers = {reason: number for number, reason in enumerate(schema.NOISE_REASONS)}
        arrays["noise_reason"] = features["noise_reason"].map(numbers).fillna(255).to_numpy(np.uint8)
    arrays["quadrant"] = features["quadrant"].map(palette.QUADRANTS).fillna(255).to_numpy(np.uint8)
    return arrays


def _sources(run: reading.Files, source: Array, n_features: int) -> tuple[list[int], dict[str, Array]]:
    """Of which sources the examples of each feature are: the sources most often the first, and the shares of those.

    Arrays are ``source_first``, (feature,), int32, the source of most examples, -1 without any, and ``source_shares``,
    (feature, source), float32.
    """
    n_sources = int(source.max(initial=-1)) + 1
    if n_sources < 2 or schema.EXAMPLES not in run:
        return [], {}
    examples = run.table(schema.EXAMPLES, ["feature", "prompt"])
    feature, own = examples["feature"].to_numpy(), source[examples["prompt"].to_numpy()]
    pairs, times = np.unique(feature * n_sources + own, return_counts=True)
    of_feature, of_source = pairs // n_sources, pairs % n_sources
    order = np.lexsort((of_source, -times, of_feature))
    firsts, at = np.unique(of_feature[order], return_index=True)
    first = np.full(n_features, -1, np.int32)
    first[firsts] = of_source[order][at]
    often = np.bincount(first[first >= 0], minlength=n_sources)
    coloured = np.argsort(-often, kind="stable")[:COLOURED_SOURCES]
    place = np.full(n_sources, -1)
    place[coloured] = np.arange(len(coloured))
    shares = np.zeros((n_features, len(coloured)), np.float32)
    there = place[of_source] >= 0
    shares[of_feature[there], place[of_source[there]]] = times[there]
    shares /= np.maximum(np.bincount(feature, minlength=n_features), 1)[:, None]
    return coloured.tolist(), {"source_first": first, "source_shares": shares}


def _medians(features: pd.DataFrame) -> dict[str, float]:
    """Where the quadrants are split, and of sparsity, over the kept features."""
    kept = features[features["kept"]]
    return {name: float(kept[name].median()) for name in ("entropy", "varentropy", "sparsity")}


def _told(entry: dict[str, Any]) -> dict[str, Any]:
    """What of a stage's entry is told; checksums are not, those of the page itself would change it."""
    return {name: value for name, value in entry.items() if name not in ("checksums", "files")}


def _neighbors(run: reading.Files, features: pd.DataFrame) -> dict[str, Array]:
    """The nearest features of the kept features, in their order, the feature itself left out."""
    if schema.NEIGHBORS not in run:  # an older run
        return {}
    group: Any = run.group(schema.NEIGHBORS)
    if not np.array_equal(group["feature"][:], features.loc[feature_table.is_point(features), "feature"].to_numpy()):
        return {}
    columns, place = (
        slice(1, 1 + NEIGHBORS),
        feature_table.point_rows(features),
    )  # a copy has the neighbours of its point
    return {
        "neighbor": group["indices"][:, columns].astype(np.int32)[place],
        "distance": group["distances"][:, columns].astype(np.float32)[place],
    }


def _tree(run: reading.Files, clusters: pd.DataFrame) -> dict[str, Array]:
    if "tree_node" not in clusters or schema.CONDENSED_TREE not in run:
        return {}
    real = clusters.dropna(subset="tree_node")
    nodes = dict(zip(real["tree_node"].astype(int).tolist(), real["cluster"].tolist(), strict=True))
    return tree.layout(run.table(schema.CONDENSED_TREE), nodes)


def _similarity(
    run: reading.Files, clusters: pd.DataFrame, threshold: float
) -> tuple[dict[str, Any], dict[str, Array]]:
    """The matrix of correlations of the largest clusters, in 1/127, and the pairs above the threshold."""
    pairs = run.table(schema.CLUSTER_SIMILARITY)
    real = clusters[clusters["cluster"] != NOISE]
    shown = real.nlargest(HEAT_CLUSTERS, "size")
    if "similarity_rank" in shown:
        shown = shown.sort_values("similarity_rank")
    order = shown["cluster"].tolist()
    place = np.full(int(real["cluster"].max()) + 1 if len(real) else 0, -1)
    place[order] = np.arange(len(order))
    matrix = np.zeros((len(order), len(order)), np.int8)
    a, b = (place[pairs[name].to_numpy()] for name in ("cluster_a", "cluster_b"))
    both = (a >= 0) & (b >= 0)
    values = np.rint(127 * pairs["correlation"].fillna(0).to_numpy()).astype(np.int8)
    matrix[a[both], b[both]] = matrix[b[both], a[both]] = values[both]
    np.fill_diagonal(matrix, 127)
    strong = pairs[pairs["correlation"].abs() > threshold]
    listed = strong.sort_values("correlation", key=abs, ascending=False).head(PAIRS_LISTED)
    return {
        "heat_clusters": order,
        "n_clusters": len(real),
        "threshold": threshold,
        "n_pairs": len(strong),
        "pairs": listed[["cluster_a", "cluster_b", "correlation"]].to_numpy().tolist(),
    }, {"heat": matrix}


def _contexts(run: reading.Files) -> dict[int, list[dict[str, Any]]]:
    """Top contexts by cluster; none of a run whose rows are prompts."""
    found: dict[int, list[dict[str, Any]]] = {}
    if schema.CONTEXTS in run:
        for row in run.table(schema.CONTEXTS, ["cluster", "tokens", *SHOWN_CONTEXT]).to_dict("records"):
            shown = {name: row[name] for name in SHOWN_CONTEXT} | {"n_tokens": len(row["tokens"])}
            found.setdefault(row["cluster"], []).append(shown)
    return found


def _clusters(
    clusters: pd.DataFrame, contexts: dict[int, list[dict[str, Any]]], told: dict[str, Any]
) -> list[dict[str, Any]]:
    """The cluster table as rows, with top contexts; long prompts are cut."""
    lists = ("top_prompts", "distinctive_prompts")
    n_prompts = sum(len(_listed(cell)) for name in lists if name in clusters for cell in clusters[name])
    limit = int(np.clip(PROMPT_CHARACTERS / max(n_prompts, 1), 200, 1500))
    rows = []
    for row in clusters.drop(columns="features").to_dict("records"):
        more = {
            name: value
            for name, value in row.items()
            if name not in PLACED and isinstance(value, str | bool | int | float | np.generic)
        }
        for name in lists:
            row[name] = [_cut(dict(prompt), limit) for prompt in _listed(row.get(name))]
        sources = _listed(row.get("sources"))
        row["sources"], row["more_sources"] = sources[:SHOWN_SOURCES], max(len(sources) - SHOWN_SOURCES, 0)
        placed = {name: value for name, value in row.items() if name in PLACED and name not in TRIED}
        placed["tried"] = tried.facts({str(name): value for name, value in row.items()}, told)
        placed["contexts"] = contexts.get(row["cluster"], [])
        rows.append({**placed, "more_sources": row["more_sources"], "more": more})
    return rows


def _themes(run: reading.Files) -> list[dict[str, Any]]:
    """The table of themes as rows; none of a run by an earlier version."""
    rows: list[Any] = run.table(schema.THEMES).to_dict("records") if schema.THEMES in run else []
    return rows


def _cut(prompt: dict[str, Any], limit: int) -> dict[str, Any]:
    if len(prompt["text"]) > limit:
        limit = words.boundary(prompt["text"], limit)
        prompt["text"] = prompt["text"][:limit] + " …"
    prompt["marks"] = [mark for mark in _listed(prompt.get("marks")) if mark["stop"] <= limit]
    return prompt


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | np.ndarray) else []


def _plain(value: Any) -> Any:
    """Python's own types, for JSON; None for what is missing."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not np.isfinite(value)):
        return None
    return value
