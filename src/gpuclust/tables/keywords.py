"""Keywords: words of the prompts that mark a cluster, and words at which its features peak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.types import Array

WORD_STARTS = ("Ġ", "▁")  # how byte-level BPE and SentencePiece mark a token that begins a word


def class_tf_idf(counts: Any) -> Any:
    """Weigh words by class-based TF-IDF: what marks a class weighs more than what is frequent in all.

    w = t/T ln(1 + A/f), with t the count of a word in a class of T words, f its count in all classes and A the mean of
    T over classes (Grootendorst, BERTopic, arXiv 2203.05794).

    Parameters
    ----------
    counts : scipy.sparse array, (class, word)

    Returns
    -------
    scipy.sparse array, (class, word), float64
    """
    from scipy.sparse import diags_array

    total, everywhere = counts.sum(axis=1), counts.sum(axis=0)
    rarity = np.log1p(total.mean() / np.where(everywhere > 0, everywhere, np.inf))
    return (diags_array(1 / np.where(total > 0, total, 1)) @ counts @ diags_array(rarity)).tocsr()


def keywords(texts: pd.Series[str], top: Array, n: int) -> list[list[str]]:
    """Find the words that mark the prompts of each cluster.

    A cluster's document is its most distinctive prompts; the words of all documents are weighed by `class_tf_idf`.

    Parameters
    ----------
    texts : Series of str
    top : int array, (rank, cluster)
        Positions in `texts` of each cluster's most distinctive prompts.
    n : int

    Returns
    -------
    list of list of str, one list a cluster, best word first
    """
    n_clusters = top.shape[1]
    if n == 0 or n_clusters == 0:
        return [[] for _ in range(n_clusters)]
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import CountVectorizer

    used, place = np.unique(top, return_inverse=True)
    vectorizer = CountVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b")
    try:
        counts = vectorizer.fit_transform(texts.iloc[used])
    except ValueError:  # scikit-learn's "empty vocabulary": only stop words, digits or signs
        return [[] for _ in range(n_clusters)]
    holds = csr_array((np.ones(top.size), (np.indices(top.shape)[1].ravel(), place.ravel())))
    return best_words(class_tf_idf(holds @ counts), vectorizer.get_feature_names_out(), n)


def best_words(weight: Any, names: Sequence[str], n: int) -> list[list[str]]:
    """Return the n words of largest weight of each class, ties in the words' order.

    Parameters
    ----------
    weight : scipy.sparse array, (class, word), CSR
    names : sequence of str
        The words.
    n : int
    """
    found = []
    for first, stop in zip(weight.indptr[:-1], weight.indptr[1:], strict=True):
        words, values = weight.indices[first:stop], weight.data[first:stop]
        found.append([str(names[w]) for w in words[np.lexsort((words, -values))[:n]]])
    return found


def peak_tokens(
    features: pd.DataFrame, examples: pd.DataFrame, prompts: pd.DataFrame, tokenizer: Any, n: int = 8
) -> dict[int, list[str]]:
    """Name the words at which the features of each cluster peak, in their strongest prompts.

    A word is the peak token with the tokens that continue it on either side. It counts once per feature, by the share
    of the feature's examples that peak there, so that one loud feature does not speak for its cluster; the counts are
    weighed by `class_tf_idf`, so that words at which features of all clusters peak come last.

    Parameters
    ----------
    features, examples, prompts : DataFrame
        Columns of ``schema.FEATURE_COLUMNS``, ``EXAMPLE_COLUMNS`` and ``PROMPT_COLUMNS``.
    tokenizer : Hugging Face tokenizer
    n : int
        Words of a cluster, at most.

    Returns
    -------
    dict of int to list of str
        Cluster to words, best first.
    """
    from scipy.sparse import csr_array

    label = features.loc[features["kept"], ["feature", "label"]]
    label = label[label["label"] >= 0]
    rows = examples[examples["position"] >= 0].merge(label, on="feature")
    tokens = prompts["tokens"].to_numpy()
    words = [_word_at(tokens[p], int(i), tokenizer) for p, i in zip(rows["prompt"], rows["position"], strict=True)]
    rows = rows.assign(word=words, share=1 / rows.groupby("feature")["rank"].transform("count"))
    rows = rows[rows["word"] != ""]
    if rows.empty:
        return {}
    word, vocabulary = pd.factorize(rows["word"], sort=True)
    cluster, clusters = pd.factorize(rows["label"].astype("int64"), sort=True)
    counts = csr_array((rows["share"].to_numpy(), (cluster, word)), shape=(len(clusters), len(vocabulary)))
    found = best_words(class_tf_idf(counts), vocabulary.tolist(), n)
    return dict(zip(clusters.tolist(), found, strict=True))


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
