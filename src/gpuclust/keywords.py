"""Keywords: words of the prompts that mark a cluster, and words at which its features peak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

N_PROMPTS = 30  # most distinctive prompts, whose words and sources describe a cluster
WORD_STARTS = ("Ġ", "▁")  # how byte-level BPE and SentencePiece mark a token that begins a word


def relative_strength(activations: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Take each cluster's activation relative to the other clusters, so that long prompts do not win everywhere.

    The z-score over prompts, less its mean over clusters; with one cluster, the z-score. (prompt, cluster), float64.
    """
    spread = activations.std(axis=0)
    z = (activations - activations.mean(axis=0)) / np.where(spread > 0, spread, 1)
    relative: np.ndarray[Any, Any] = z - z.mean(axis=1, keepdims=True) if z.shape[1] > 1 else z
    return relative


def distinctive(activations: np.ndarray[Any, Any], n: int = N_PROMPTS) -> np.ndarray[Any, Any]:
    """Return the rows of the n most distinctive prompts of each cluster, best first: int array, (n, cluster)."""
    return np.argsort(-relative_strength(activations), axis=0, kind="stable")[:n]


def keywords(texts: Sequence[str], activations: np.ndarray[Any, Any], n: int) -> list[list[str]]:
    """Find the words that mark the prompts of each cluster.

    A cluster's document is its most distinctive prompts (see `distinctive`).
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

    vectorizer = CountVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b")
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:  # scikit-learn's "empty vocabulary": only stop words, digits or signs
        return [[] for _ in range(n_clusters)]
    names = vectorizer.get_feature_names_out()
    top = distinctive(activations)
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
