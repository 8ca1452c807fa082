"""Compare ways to weigh the words of clusters, on a finished run.

    python -m benchmarks.keywords runs/demo

Words are chosen from every second of a cluster's 60 most distinctive prompts. Printed are: how well the number of
chosen words in a prompt tells the other 30 from all prompts outside the 60 (area under the ROC curve, mean and median
over clusters); how many of all chosen words are distinct; and the share of words that the other 30 choose as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.metrics import roc_auc_score

from gpuclust import open_run
from gpuclust.tables import profiles
from gpuclust.tables.keywords import class_tf_idf

Array = np.ndarray[Any, Any]
N_WORDS, N_PROMPTS = 8, 60


def ways(counts: Any) -> dict[str, Callable[[Any], Array]]:
    """Weights of words by name; each takes the counts of the clusters' documents."""
    overall = np.asarray(counts.sum(axis=0)).ravel() / counts.sum()

    def kullback_leibler(documents: Any) -> Array:
        share = documents.toarray() / documents.sum(axis=1)[:, None]
        return share * np.log(np.where(share > 0, share, 1) / overall)

    def tfidf(fitted_on: Any = None, **options: Any) -> Callable[[Any], Array]:
        def weigh(documents: Any) -> Array:
            model = TfidfTransformer(**options).fit(documents if fitted_on is None else fitted_on)
            return model.transform(documents).toarray()

        return weigh

    return {
        "Kullback-Leibler": kullback_leibler,
        "c-TF-IDF": lambda documents: class_tf_idf(documents).toarray(),
        "TfidfTransformer on clusters": tfidf(),
        "the same, sublinear": tfidf(sublinear_tf=True),
        "TfidfTransformer on prompts": tfidf(counts),
        "the same, sublinear ": tfidf(counts, sublinear_tf=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = open_run(parser.parse_args().run)
    activations = run.cluster_activations.values
    n_clusters = activations.shape[1]
    order = profiles.profile(lambda: [activations], n_clusters, 1, N_PROMPTS).marking
    counts = CountVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b").fit_transform(
        run.prompts["text"]
    )
    present = (counts > 0).astype(float)
    first, second = order[::2], order[1::2]

    def choose(prompts: Array, weigh: Callable[[Any], Array]) -> Array:
        from scipy.sparse import csr_array

        clusters = np.indices(prompts.shape)[1].ravel()
        holds = csr_array((np.ones(prompts.size), (clusters, prompts.ravel())), shape=(n_clusters, counts.shape[0]))
        return np.argsort(-weigh(holds @ counts), axis=1, kind="stable")[:, :N_WORDS]

    for name, weigh in ways(counts).items():
        words, again = choose(first, weigh), choose(second, weigh)
        areas = []
        for c in range(n_clusters):
            score = np.asarray(present[:, words[c]].sum(axis=1)).ravel()
            others = np.setdiff1d(np.arange(len(score)), order[:, c])
            truth = np.r_[np.ones(len(second)), np.zeros(len(others))]
            areas.append(roc_auc_score(truth, np.r_[score[second[:, c]], score[others]]))
        same = np.mean([len(set(a) & set(b)) / N_WORDS for a, b in zip(words, again, strict=True)])
        print(
            f"{name:30s} area {np.mean(areas):.3f}, median {np.median(areas):.3f}; "
            f"distinct {len(np.unique(words)) / words.size:.2f}; the same words from the other half {same:.2f}"
        )


if __name__ == "__main__":
    main()
