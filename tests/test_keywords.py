from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from gpuclust.tables import keywords
from tests.test_cluster_table import prompts


def test_keywords_mark_their_cluster() -> None:
    rng = np.random.default_rng(0)
    topics = rng.integers(0, 3, 200)
    names = [["ship", "harbor", "sail"], ["wheat", "plough", "harvest"], ["court", "judge", "verdict"]]
    filler = ["people", "country", "year", "house", "street"]
    texts = [" ".join([*rng.choice(names[t], 3), *rng.choice(filler, 6)]) for t in topics]
    top = np.stack([np.flatnonzero(topics == t)[:30] for t in range(3)], axis=1)
    for found, expected in zip(keywords.keywords(pd.Series(texts), top, 3), names, strict=True):
        assert sorted(found) == sorted(expected)


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


def test_class_tf_idf_is_the_formula() -> None:
    counts = np.array([[4.0, 1.0, 0.0, 0.0], [4.0, 0.0, 3.0, 0.0]])
    weight = keywords.class_tf_idf(csr_array(counts)).toarray()
    average = (5 + 7) / 2
    assert weight[0].tolist() == pytest.approx([4 / 5 * np.log(1 + average / 8), 1 / 5 * np.log(1 + average / 1), 0, 0])
    assert weight[1].tolist() == pytest.approx([4 / 7 * np.log(1 + average / 8), 0, 3 / 7 * np.log(1 + average / 3), 0])
    assert keywords.class_tf_idf(csr_array(np.zeros((2, 3)))).toarray().tolist() == np.zeros((2, 3)).tolist()
