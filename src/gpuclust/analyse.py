"""Analyse: the tables about clusters: statistics, prompts, keywords, and how clusters go together over prompts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.config import AnalyseConfig
from gpuclust.schema import CLUSTER_COLUMNS, NOISE

KEYWORD_PROMPTS = 30  # strongest prompts whose words describe a cluster
WORD_STARTS = ("Ġ", "▁")  # how byte-level BPE and SentencePiece mark a token that begins a word
HEADING = re.compile(r"\s*((?:=\s+)+)(\S.*?)\s+((?:=\s*)+)\s*")


def prompt_activations(
    chunks: Iterable[np.ndarray[Any, Any]], columns: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Average abs(a) over the features of every cluster, for every prompt.

    Parameters
    ----------
    chunks : iterable of array, (prompt, feature)
        All features of the store.
    columns, labels : int arrays, (kept,)
        Feature numbers, and their clusters; noise is left out.

    Returns
    -------
    array, (prompt, cluster), float64
    """
    n_clusters = int(labels.max(initial=NOISE)) + 1
    clustered = labels >= 0
    weight = np.zeros((int(clustered.sum()), n_clusters))
    weight[np.arange(len(weight)), labels[clustered]] = 1
    weight /= np.maximum(weight.sum(axis=0), 1)
    wanted = columns[clustered]
    parts = [np.abs(chunk[:, wanted]).astype(np.float64) @ weight for chunk in chunks]
    return np.concatenate(parts) if parts else np.zeros((0, n_clusters))


def cluster_table(
    features: pd.DataFrame,
    prompts: pd.DataFrame,
    activations: np.ndarray[Any, Any],
    persistence: np.ndarray[Any, Any],
    config: AnalyseConfig,
    peak_tokens: dict[int, list[str]] | None = None,
) -> pd.DataFrame:
    """Describe every cluster, and noise by its size and features.

    Mean and std are of abs(a) over all features of the cluster and all prompts, pooled from the features' own:
    mean = avg(mean_f), std² = avg(std_f²) + var(mean_f).

    Parameters
    ----------
    features : DataFrame
        Of all features, with ``kept`` and ``label``.
    prompts : DataFrame
    activations : array, (prompt, cluster)
    persistence : array, (cluster,)
    config : AnalyseConfig
    peak_tokens : dict of int to list of str, optional
        See `peak_tokens`.

    Returns
    -------
    DataFrame
        Columns of ``schema.CLUSTER_COLUMNS``, noise first.
    """
    kept = features[features["kept"]]
    words = keywords(prompts["text"].tolist(), activations, config.keywords)
    rows = []
    for cluster in [NOISE, *range(activations.shape[1])]:
        members = kept[kept["label"] == cluster]
        row: dict[str, Any] = dict.fromkeys(CLUSTER_COLUMNS) | {
            "cluster": cluster,
            "size": len(members),
            "ratio": len(members) / len(kept) if len(kept) else 0.0,
            "features": members["feature"].tolist(),
        }
        if cluster != NOISE:
            mean = members["mean"].to_numpy()
            row |= {
                "persistence": float(persistence[cluster]),
                "mean_activation": float(mean.mean()),
                "max_activation": float(members["max"].max()),
                "std_activation": float(np.sqrt((members["std"] ** 2).mean() + mean.var())),
                "sparsity": float(members["sparsity"].mean()),
                "top_prompts": top_prompts(prompts, activations[:, cluster], config.top_prompts),
                "keywords": words[cluster],
                "tokens": (peak_tokens or {}).get(cluster, []),
            }
        rows.append(row)
    table = pd.DataFrame(rows)
    numbers = [name for name, (dtype, _) in CLUSTER_COLUMNS.items() if dtype == "float64"]
    return table.astype(dict.fromkeys(numbers, "float64"))


def top_prompts(prompts: pd.DataFrame, activation: np.ndarray[Any, Any], n: int) -> list[dict[str, Any]]:
    """Return the n prompts where a cluster is strongest, ties by prompt number, without those where it is silent."""
    order = np.lexsort((np.arange(len(activation)), -activation))[:n]
    found = prompts.iloc[[i for i in order if activation[i] > 0]]
    return [
        {
            "prompt": int(prompt),
            "activation": float(activation[prompt]),
            "n_chars": len(text),
            "n_tokens": int(n_tokens),
            "source": source,
            "text": format_text(text),
        }
        for prompt, text, n_tokens, source in zip(
            found["prompt"], found["text"], found["n_tokens"], found["source"], strict=True
        )
    ]


def format_text(text: str) -> str:
    """Show section headings of wiki text as `[SECTION] a > b`, and all else on one line.

    Examples
    --------
    >>> format_text(" = Valkyria Chronicles III = \\n = = Gameplay = = \\n The game is tactical .")
    '[SECTION] Valkyria Chronicles III > Gameplay | The game is tactical .'
    >>> format_text("two\\nlines")
    'two lines'
    """
    parts: list[str] = []
    headings: list[str] = []
    for line in text.splitlines():
        match = HEADING.fullmatch(line)
        if match and match[1].count("=") == match[3].count("="):
            headings.append(match[2].strip())
            continue
        if headings:
            parts.append("[SECTION] " + " > ".join(headings))
            headings = []
        if line.strip():
            parts.append(" ".join(line.split()))
    if headings:
        parts.append("[SECTION] " + " > ".join(headings))
    shown = ""
    for part in parts:
        joint = " | " if shown and (part.startswith("[SECTION]") or shown.startswith("[SECTION]")) else " "
        shown = f"{shown}{joint}{part}" if shown else part
    return shown


def keywords(texts: Sequence[str], activations: np.ndarray[Any, Any], n: int) -> list[list[str]]:
    """Find the words that mark the prompts of each cluster.

    A cluster's document is its KEYWORD_PROMPTS strongest prompts, each prompt's strength taken relative to all
    clusters (z-score over prompts, minus its mean over clusters), so that long prompts do not win everywhere.
    The weight of a word is p ln(p/q), its part of the Kullback-Leibler divergence of the document (share p) from all
    prompts (share q).

    Parameters
    ----------
    texts : sequence of str
    activations : array, (prompt, cluster)
    n : int

    Returns
    -------
    list of list of str, one list a cluster, best word first
    """
    n_clusters = activations.shape[1]
    if n == 0 or n_clusters == 0:
        return [[] for _ in range(n_clusters)]
    from sklearn.feature_extraction.text import CountVectorizer

    spread = activations.std(axis=0)
    z = (activations - activations.mean(axis=0)) / np.where(spread > 0, spread, 1)
    z -= z.mean(axis=1, keepdims=True)
    vectorizer = CountVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b")
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:  # scikit-learn's "empty vocabulary": only stop words, digits or signs
        return [[] for _ in range(n_clusters)]
    names = vectorizer.get_feature_names_out()
    top = np.argsort(-z, axis=0, kind="stable")[:KEYWORD_PROMPTS]
    documents = np.stack([np.asarray(counts[top[:, c]].sum(axis=0)).ravel() for c in range(n_clusters)])
    share = documents / np.maximum(documents.sum(axis=1, keepdims=True), 1)
    overall = np.asarray(counts.sum(axis=0)).ravel()
    weight = share * np.log(np.where(share > 0, share, 1) / (overall / overall.sum()))
    best = np.argsort(-weight, axis=1, kind="stable")[:, :n]
    return [[str(names[w]) for w in best[c] if weight[c, w] > 0] for c in range(n_clusters)]


def peak_tokens(
    features: pd.DataFrame, examples: pd.DataFrame, prompts: pd.DataFrame, tokenizer: Any, n: int = 8
) -> dict[int, list[str]]:
    """Name the words at which the features of each cluster peak, in their strongest prompts.

    A word is the peak token with the tokens that continue it on either side. It counts once per feature, by the share
    of the feature's examples that peak there, so that one loud feature does not speak for its cluster.

    Returns
    -------
    dict of int to list of str
        Cluster to tokens, most frequent first.
    """
    label = features.loc[features["kept"], ["feature", "label"]]
    label = label[label["label"] >= 0]
    rows = examples[examples["position"] >= 0].merge(label, on="feature")
    tokens = prompts["tokens"].to_numpy()
    words = [_word_at(tokens[p], int(i), tokenizer) for p, i in zip(rows["prompt"], rows["position"], strict=True)]
    per_feature = rows.groupby("feature")["rank"].transform("count")
    found: dict[int, dict[str, float]] = {}
    for cluster, word, total in zip(rows["label"], words, per_feature, strict=True):
        if word:
            share = found.setdefault(int(cluster), {})
            share[word] = share.get(word, 0) + 1 / int(total)
    return {cluster: sorted(share, key=lambda token: (-share[token], token))[:n] for cluster, share in found.items()}


def _word_at(ids: Any, position: int, tokenizer: Any) -> str:
    """The word that holds a token: back to a token that begins one, on to the next that does."""
    window = [int(i) for i in ids[max(0, position - 6) : position + 7]]
    at = position - max(0, position - 6)
    pieces = tokenizer.convert_ids_to_tokens(window)

    def continues(i: int) -> bool:
        return 0 < i < len(pieces) and pieces[i].isalpha() and not pieces[i].startswith(WORD_STARTS)

    first, stop = at, at + 1
    while continues(first):
        first -= 1
    while pieces[at].strip("".join(WORD_STARTS)).isalpha() and continues(stop):
        stop += 1
    word: str = tokenizer.decode(window[first:stop])
    return word.strip()


def similarity(activations: np.ndarray[Any, Any]) -> pd.DataFrame:
    """Correlate the clusters' activations over prompts: one row a pair, `cluster_a < cluster_b`."""
    n_clusters = activations.shape[1]
    a, b = np.triu_indices(n_clusters, 1)
    centred = activations - activations.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    scaled = centred / np.where(norm > 0, norm, np.nan)
    correlation = (scaled.T @ scaled)[a, b]
    return pd.DataFrame({"cluster_a": a, "cluster_b": b, "correlation": correlation})
