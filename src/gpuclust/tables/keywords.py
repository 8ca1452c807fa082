"""Keywords: words of the prompts that mark a cluster, and words at which its features peak."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.tables import prompt_text, words
from gpuclust.types import Array

EVERYWHERE, FEW = 0.9, 3  # share of every cluster's prompts: a word in more of them marks none, of so many clusters


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
    Words are cut as `words.terms` says, in any script; those that differ in case or composition only are one, in its
    most frequent spelling. Words in more than EVERYWHERE of the prompts of each of FEW or more clusters mark none.

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
    spellings: dict[str, Counter[str]] = defaultdict(Counter)

    def keys(text: str) -> list[str]:
        found = []
        for word in words.terms(text):
            found.append(words.folded(word))
            spellings[found[-1]][word] += 1
        return found

    try:
        vectorizer = CountVectorizer(analyzer=keys)
        counts = vectorizer.fit_transform(texts.iloc[used])
    except ValueError:  # scikit-learn's "empty vocabulary": only stop words, digits or signs
        return [[] for _ in range(n_clusters)]
    holds = csr_array((np.ones(top.size), (np.indices(top.shape)[1].ravel(), place.ravel())))
    fewest = (holds @ (counts > 0)).min(axis=0).toarray().ravel()  # prompts of any one cluster that have the word
    some = np.flatnonzero((fewest <= EVERYWHERE * top.shape[0]) | (n_clusters < FEW))
    names = [spellings[key].most_common(1)[0][0] for key in vectorizer.get_feature_names_out()[some]]
    counts = counts[:, some]
    return best_words(class_tf_idf(holds @ counts), names, n)


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
    features: pd.DataFrame,
    examples: pd.DataFrame,
    prompts: pd.DataFrame,
    tokenizer: Any,
    n: int = 8,
    spans: pd.DataFrame | None = None,
) -> dict[int, list[str]]:
    """Name the words at which the features of each cluster peak, in their strongest prompts.

    A word is cut from the prompt's text: the whole word that holds the peak token, so that a token which is a part of a
    character is never shown as such; all words, where a token spans several. It counts once per feature, by the share
    of the feature's examples that peak there, so that one loud feature does not speak for its cluster; the counts are
    weighed by `class_tf_idf`, so that words at which features of all clusters peak come last.

    Parameters
    ----------
    features, examples, prompts : DataFrame
        Columns of ``schema.FEATURE_COLUMNS``, ``EXAMPLE_COLUMNS`` and ``PROMPT_COLUMNS``.
    tokenizer : Hugging Face tokenizer
    n : int
        Words of a cluster, at most.
    spans : DataFrame, optional
        What `prompt_text.peak_spans` found for the examples; found here where it is not given.

    Returns
    -------
    dict of int to list of str
        Cluster to words, best first.

    Notes
    -----
    Where the token's place in the text is not known (a tokenizer without offsets, or one that reads the text otherwise
    than stored), the word is cut from what the tokens around it decode to. What stays broken there, such as a character
    of which the model read a part only, is left out.
    """
    from scipy.sparse import csr_array

    label = features.loc[features["kept"]].set_index("feature")["label"]
    if spans is None:
        spans = prompt_text.peak_spans(examples, prompts, tokenizer)
    own = examples["feature"].map(label[label >= 0])
    at = np.flatnonzero((examples["position"] >= 0).to_numpy() & own.notna().to_numpy())
    prompt = examples["prompt"].to_numpy()
    at = at[np.argsort(prompt[at], kind="stable")]
    places = (examples["position"].to_numpy()[at], spans["start"].to_numpy()[at], spans["stop"].to_numpy()[at])
    found_words = _peak_words(prompt[at], *places, prompts, tokenizer)
    rows = pd.DataFrame({"feature": examples["feature"].to_numpy()[at], "label": own.to_numpy()[at]})
    rows = rows.assign(word=found_words, share=1 / rows.groupby("feature")["label"].transform("size"))
    rows = rows[rows["word"] != ""]
    if rows.empty:
        return {}
    word, vocabulary = pd.factorize(rows["word"], sort=True)
    cluster, clusters = pd.factorize(rows["label"].astype("int64"), sort=True)
    counts = csr_array((rows["share"].to_numpy(), (cluster, word)), shape=(len(clusters), len(vocabulary)))
    found = best_words(class_tf_idf(counts), vocabulary.tolist(), n)
    return dict(zip(clusters.tolist(), found, strict=True))


def _peak_words(
    prompt: Array, position: Array, start: Array, stop: Array, prompts: pd.DataFrame, tokenizer: Any
) -> list[str]:
    """The word at each peak, or nothing; peaks of a prompt stand together."""
    texts, tokens = prompts["text"].to_numpy(), prompts["tokens"].to_numpy()
    found: list[str] = []
    of, cut = -1, words.segments("")  # a prompt, and its segments
    known: dict[int | tuple[int, int], str] = {}  # the words in it that were asked for
    for p, *place in zip(prompt, position, start, stop, strict=True):
        if p != of:
            of, cut, known = p, words.segments(texts[p]), {}
        at, a, b = map(int, place)
        key = (a, b) if a >= 0 else at
        if key not in known:
            known[key] = words.word_at(texts[p], a, b, cut) if a >= 0 else _decoded_word(tokens[p], at, tokenizer)
        found.append(known[key])
    return found


def _decoded_word(ids: Any, position: int, tokenizer: Any) -> str:
    text, start, stop = prompt_text.decoded_around(ids, position, tokenizer)
    word = words.word_at(text, start, stop, words.segments(text))
    return "" if "\ufffd" in word else word
