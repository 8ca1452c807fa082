"""Evidence: one word a cluster for all that was tried on it, with the sentence that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuclust.compute import verdicts
from gpuclust.types import Array

SURE = 0.05  # false discoveries among the clusters that pass a test, controlled over clusters
REAL, SUPPORTED, TOPIC = "real", "supported", "topic only"
WORDS = REAL, SUPPORTED, TOPIC, verdicts.FRAGILE, verdicts.LOST, verdicts.RANDOM
FAR = ("topic", "none")  # levels
MEANS = {
    REAL: "found again, and passes every test: levels, and one by the model's output or another SAE, are among them",
    SUPPORTED: "found again, and passes tests: not all, or not those that real asks for",
    TOPIC: "found again, but its features do not fire near one another, and neither model nor other SAE speaks for it",
    verdicts.FRAGILE: "found again in part only, or passes no test that was made of it",
    verdicts.LOST: "not found again in halves of the prompts, whatever tests it passes",
    verdicts.RANDOM: "no more cohesive than random sets or permutations, whatever tests it passes",
}


@dataclass(frozen=True)
class Test:
    """A test: the column that decides, and what is said of a cluster that passes or fails.

    `beyond`: it asks of more than the activations that the clusters are made of. The others are passed as often by
    clusters of a model with random weights (docs/evidence.md), so that they alone show nothing that was learned.
    """

    column: str
    passes: str
    fails: str
    beyond: bool = False

    def outcome(self, values: Array) -> Array:
        """Tell who passes: 1 or 0, NaN where the test was not made.

        Parameters
        ----------
        values : array, (cluster,)
            Of `column`: false discovery rates, or words.
        """
        if values.dtype != object:
            return np.where(np.isnan(values), np.nan, values <= SURE)
        passing = {"token", "near", "replicated"}
        return np.array([np.nan if not isinstance(v, str) else float(v in passing) for v in values])


TESTS = (
    Test(
        "prediction_q", "its features tell of one another in prompts they were not chosen from, beyond single words",
        "given the words of a prompt its features tell of one another no better than random ones",
    ),
    Test("level", "they fire on the same token or near it", "they do not fire near one another"),
    Test("cause_q", "taking them out changes what the model says", "taking them out changes no more than controls do",
         True),
    Test("replicated", "another SAE has it", "another SAE does not have it, or in part", True),
)  # fmt: skip


def discoveries(p: Array) -> Array:
    """Return q: p with the false discovery rate controlled over clusters (Benjamini and Hochberg 1995).

    Parameters
    ----------
    p : array, (cluster,), float64
        NaN where the test was not made.

    Returns
    -------
    array, (cluster,), float64
        NaN where `p` is.
    """
    from scipy import stats

    q, known = np.full(len(p), np.nan), ~np.isnan(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known])
    return q


def judge(table: Mapping[str, Array], verdict: Array, reason: Array) -> tuple[Array, Array]:
    """Give every cluster one word for all that was tried on it.

    A cluster that the run's own checks doubt (`verdicts.DOUBTFUL`) or call fragile keeps that word. Of the others one
    is real that passes every test made of it, levels and one beyond the activations among them; topic only where its
    features do not fire near one another and no test beyond the activations is passed; supported where any test is,
    fragile where none is. Without levels nothing is real: a topic may pass all the others.

    Parameters
    ----------
    table : mapping of str to array, (cluster,)
        Columns of ``schema.VALIDATION_COLUMNS``; of TESTS, those that are there and not null count.
    verdict, reason : array, (cluster,), object
        As of `verdicts.judge`.

    Returns
    -------
    words : array, (cluster,), object
        Of WORDS; None where no test was made, or whether halves find it again was not measured.
    sentences : array, (cluster,), object
        What each is based on; None where there is no word.
    """
    made = [(test, test.outcome(np.asarray(table[test.column]))) for test in TESTS if test.column in table]
    words, sentences = np.full(len(verdict), None, object), np.full(len(verdict), None, object)
    for at, known in enumerate(verdict):
        told = [(test, outcome[at]) for test, outcome in made if not np.isnan(outcome[at])]
        good, bad = [test.passes for test, ok in told if ok], [test.fails for test, ok in told if not ok]
        words[at] = _word(known, told, table.get("level", words)[at])
        if words[at] is None:
            continue
        first = str(reason[at])
        doubtful = known in (*verdicts.DOUBTFUL, verdicts.FRAGILE)
        parts = [first] if doubtful else [first, *good, *(f"but {text}" for text in bad)]
        sentences[at] = "; ".join(parts)
    return words, sentences


def _word(known: Any, told: list[tuple[Test, Any]], level: Any) -> str | None:
    if known in (*verdicts.DOUBTFUL, verdicts.FRAGILE):
        return str(known)
    if known is None or not told:
        return None
    passed = sum(bool(ok) for _, ok in told)
    beyond = any(test.beyond and ok for test, ok in told)
    if level in FAR and not beyond:
        return TOPIC
    if not passed:
        return verdicts.FRAGILE
    whole = passed == len(told) and beyond and any(test.column == "level" for test, _ in told)
    return REAL if whole else SUPPORTED


def counted(words: Array) -> dict[str, int]:
    """Clusters by word, those of WORDS that occur, in their order.

    Parameters
    ----------
    words : array, (cluster,), object

    Returns
    -------
    dict of str to int
    """
    found = {word: int(np.count_nonzero(words == word)) for word in WORDS}
    return {word: times for word, times in found.items() if times}
