from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from gpuclust.tables import keywords
from tests.test_cluster_table import prompts
from tests.test_prompt_text import TEXTS, tokenizers


def test_keywords_mark_their_cluster() -> None:
    rng = np.random.default_rng(0)
    topics = rng.integers(0, 3, 200)
    names = [["ship", "harbor", "sail"], ["wheat", "plough", "harvest"], ["court", "judge", "verdict"]]
    filler = ["people", "country", "year", "house", "street"]
    texts = [" ".join([*rng.choice(names[t], 3), *rng.choice(filler, 6)]) for t in topics]
    top = np.stack([np.flatnonzero(topics == t)[:30] for t in range(3)], axis=1)
    for found, expected in zip(keywords.keywords(pd.Series(texts), top, 3), names, strict=True):
        assert sorted(found) == sorted(expected)


def test_a_word_of_all_prompts_marks_no_cluster() -> None:
    names = ("wheat", "canal", "navy")
    texts = pd.Series([f"row {word}" for word in names] * 10)
    top = np.array([np.flatnonzero(texts == f"row {word}") for word in names]).T
    assert keywords.keywords(texts, top, 3) == [["wheat"], ["canal"], ["navy"]]
    assert keywords.keywords(texts, top[:, :1], 3) == [["row", "wheat"]]  # of one cluster's prompts it is known


def test_keywords_of_prompts_without_words() -> None:
    assert keywords.keywords(pd.Series(["1 2", "the", "3"]), np.array([[0, 1], [1, 2]]), 4) == [[], []]
    assert keywords.keywords(pd.Series(["ship"]), np.zeros((1, 2), int), 0) == [[], []]


def test_peak_tokens_count_once_a_feature() -> None:
    features = pd.DataFrame({"feature": [0, 1, 2], "kept": True, "label": pd.array([0, 0, -1], dtype="Int64")})
    table = prompts(["x", "y"])
    table["tokens"] = [[10, 11, 13, 14], [12]]
    examples = pd.DataFrame(
        {
            "feature": [0, 0, 0, 1, 2],
            "rank": [0, 1, 2, 0, 0],
            "prompt": [0, 0, 1, 0, 1],
            "position": [0, 2, -1, 1, 0],
        }
    )

    class Tokenizer:
        spelled: ClassVar[dict[int, str]] = {10: "Ġten", 11: "Ġelev", 12: "Ġtwelve", 13: "en", 14: "."}

        def decode(self, ids: list[int]) -> str:
            return "".join(self.spelled[i] for i in ids).replace("Ġ", " ")

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [self.spelled[i] for i in ids]

    tokenizer: Any = Tokenizer()
    assert keywords.peak_tokens(features, examples, table, tokenizer) == {0: ["eleven", "ten"]}
    silent = examples.assign(position=-1)
    assert keywords.peak_tokens(features, silent, table, tokenizer) == {}


TOPICS = {
    "Chinese": (["船长驾船出港口", "港口停着船只"], ["法院作出判决", "法官在法院"], {"港口"}, {"法院"}),
    "Hindi": (["जहाज़ बंदरगाह में है", "जहाज़ का बंदरगाह"], ["अदालत का फैसला", "अदालत में फैसला"],
              {"जहाज़", "बंदरगाह"}, {"अदालत", "फैसला"}),
    "Thai": (["เรือออกจากท่าเรือ", "เรือจอดท่าเรือ"], ["ศาลพิพากษาคดี", "คดีในศาล"], {"เรือ", "ท่าเรือ"}, {"ศาล", "คดี"}),
    "two forms": (["cafe\u0301 CAFÉ", "café"], ["river", "river"], {"café"}, {"river"}),
}  # fmt: skip


@pytest.mark.parametrize("script", TOPICS)
def test_keywords_of_other_scripts_are_words(script: str) -> None:
    first, second, *expected = TOPICS[script]
    found = keywords.keywords(pd.Series([*first, *second]), np.array([[0, 2], [1, 3]]), len(expected[0]))
    assert [set(words) for words in found] == expected


def test_a_keyword_is_listed_in_its_most_frequent_spelling() -> None:
    assert keywords.keywords(pd.Series(["STRASSE Straße Straße"]), np.zeros((1, 1), int), 4) == [["straße"]]


@pytest.mark.parametrize("kind", tokenizers())
def test_peak_words_are_whole_words_of_the_text(kind: str) -> None:
    tokenizer = tokenizers()[kind]
    lines = list(TEXTS)
    ids = [np.asarray(i, np.int32) for i in tokenizer(lines, add_special_tokens=False)["input_ids"]]
    table = prompts(lines)
    table["tokens"] = ids
    rows = [(p, i) for p in range(len(lines)) for i in range(len(ids[p]))]
    for p, expected in enumerate(TEXTS.values()):
        mine = pd.DataFrame([row for row in rows if row[0] == p], columns=["prompt", "position"])
        mine = mine.assign(feature=0, rank=range(len(mine)), value=1.0)
        features = pd.DataFrame({"feature": [0], "kept": True, "label": pd.array([0], dtype="Int64")})
        found = keywords.peak_tokens(features, mine, table, tokenizer, 99)[0]
        assert set(found) == set(expected), (kind, lines[p])


def test_peak_words_without_offsets_are_decoded() -> None:
    fast = tokenizers()["byte-level"]

    class Slow:
        is_fast = False

        def decode(self, ids: list[int]) -> str:
            return str(fast.decode(ids))

    lines = ["我们在 世界 naïve", "世"]
    table = prompts(lines)
    ids = fast(lines, add_special_tokens=False)["input_ids"]
    table["tokens"] = [np.asarray(ids[0], np.int32), np.asarray(ids[1][:2], np.int32)]  # the model read part of 世
    features = pd.DataFrame({"feature": [0], "kept": True, "label": pd.array([0], dtype="Int64")})
    rows = [(0, i) for i in range(len(ids[0]))] + [(1, 0), (1, 1)]
    examples = pd.DataFrame(rows, columns=["prompt", "position"]).assign(feature=0, rank=range(len(rows)))
    assert set(keywords.peak_tokens(features, examples, table, Slow(), 99)[0]) == {"我们", "在", "世界", "naïve"}
    assert set(keywords.peak_tokens(features, examples, table, fast, 99)[0]) == {"我们", "在", "世界", "世", "naïve"}


def test_class_tf_idf_is_the_formula() -> None:
    counts = np.array([[4.0, 1.0, 0.0, 0.0], [4.0, 0.0, 3.0, 0.0]])
    weight = keywords.class_tf_idf(csr_array(counts)).toarray()
    average = (5 + 7) / 2
    assert weight[0].tolist() == pytest.approx([4 / 5 * np.log(1 + average / 8), 1 / 5 * np.log(1 + average / 1), 0, 0])
    assert weight[1].tolist() == pytest.approx([4 / 7 * np.log(1 + average / 8), 0, 3 / 7 * np.log(1 + average / 3), 0])
    assert keywords.class_tf_idf(csr_array(np.zeros((2, 3)))).toarray().tolist() == np.zeros((2, 3)).tolist()
