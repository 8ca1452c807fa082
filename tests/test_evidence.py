"""One word a cluster for all that was tried on it."""

from __future__ import annotations

import numpy as np
import pytest

from gpuclust import schema
from gpuclust.compute import evidence, verdicts


def judged(verdict: str | None = "stable", **values: object) -> tuple[str | None, str | None]:
    table = {
        name: np.array([np.nan if value is None else value], float if isinstance(value, float) else object)
        for name, value in values.items()
    }
    words, sentences = evidence.judge(table, np.array([verdict], object), np.array(["as it was measured"], object))
    return words[0], sentences[0]


@pytest.mark.parametrize(
    ("verdict", "values", "word"),
    [
        ("stable", {"prediction_q": 0.05}, "supported"),
        ("stable", {"prediction_q": 0.051}, "fragile"),
        ("stable", {"prediction_q": 0.01, "level": "near"}, "supported"),
        ("stable", {"prediction_q": 0.01, "level": "topic"}, "topic only"),
        ("stable", {"prediction_q": 0.9, "level": "topic"}, "topic only"),
        ("stable", {"prediction_q": 0.01, "level": "none"}, "topic only"),
        ("stable", {"prediction_q": 0.9, "level": "token"}, "supported"),
        ("stable", {"prediction_q": 0.9, "level": "none"}, "topic only"),
        ("stable", {"prediction_q": 0.01, "cause_q": 0.2}, "supported"),
        ("stable", {"prediction_q": 0.01, "cause_q": 0.05}, "supported"),
        ("stable", {"prediction_q": 0.2, "cause_q": 0.05}, "supported"),
        ("stable", {"prediction_q": 0.01, "level": "near", "cause_q": float("nan")}, "supported"),
        ("stable", {"replicated": "replicated"}, "supported"),
        ("stable", {"level": "token", "replicated": "replicated"}, "real"),
        ("stable", {"level": "near", "prediction_q": 0.01, "cause_q": 0.05}, "real"),
        ("stable", {"level": "near", "cause_q": 0.06}, "supported"),
        ("stable", {"level": "topic", "cause_q": 0.01, "prediction_q": 0.01}, "supported"),
        ("stable", {"level": "none", "replicated": "partly"}, "topic only"),
        (None, {"level": "token", "replicated": "replicated"}, None),
        ("stable", {"prediction_q": 0.01, "replicated": "partly"}, "supported"),
        ("stable", {"level": "token", "replicated": "replicated", "cause_q": 0.001}, "real"),
        ("stable", {"prediction_q": float("nan"), "level": None}, None),
        ("stable", {}, None),
        (None, {"prediction_q": 0.01}, None),
        (None, {}, None),
        ("fragile", {"prediction_q": 0.01, "level": "token"}, "fragile"),
        ("not found again", {"prediction_q": 0.01, "level": "token"}, "not found again"),
        ("no better than random", {"level": "topic"}, "no better than random"),
    ],
)
def test_words(verdict: str | None, values: dict[str, object], word: str | None) -> None:
    assert judged(verdict, **values)[0] == word


def test_the_sentence_says_what_passed_and_what_did_not() -> None:
    _, sentence = judged("stable", prediction_q=0.01, level="topic", cause_q=0.001)
    assert sentence is not None
    assert sentence.startswith("as it was measured; its features tell of one another")
    assert "; taking them out changes what the model says" in sentence
    assert sentence.endswith("; but they do not fire near one another")
    assert judged("fragile", prediction_q=0.01)[1] == "as it was measured"


def test_every_test_reads_a_column_and_every_word_is_explained() -> None:
    assert set(evidence.MEANS) == set(evidence.WORDS)
    assert set(verdicts.VERDICTS) - {"stable"} <= set(evidence.WORDS)
    assert {test.column for test in evidence.TESTS} <= set(schema.VALIDATION_COLUMNS)


def test_words_are_counted_in_their_order() -> None:
    words = np.array(["fragile", "real", None, "fragile"], object)
    assert list(evidence.counted(words).items()) == [("real", 1), ("fragile", 2)]
