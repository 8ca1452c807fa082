from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from gpuclust import analyse
from gpuclust.config import AnalyseConfig
from gpuclust.schema import CLUSTER_COLUMNS
from tests.strategies import sae_like


def prompts(texts: list[str]) -> pd.DataFrame:
    n = len(texts)
    return pd.DataFrame({"prompt": range(n), "text": texts, "n_tokens": [7] * n, "source": ["s"] * n})


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_prompt_activations_are_means_whatever_the_blocks(rows: int) -> None:
    data = -sae_like(50, 10)
    columns, labels = np.array([0, 2, 3, 7, 9]), np.array([1, 0, 1, -1, 1])
    got = analyse.prompt_activations([data[i : i + rows] for i in range(0, 50, rows)], columns, labels)
    expected = np.abs(data.astype(np.float64))
    np.testing.assert_allclose(got[:, 0], expected[:, 2], rtol=1e-12)
    np.testing.assert_allclose(got[:, 1], expected[:, [0, 3, 9]].mean(axis=1), rtol=1e-12)


def test_no_clusters_have_no_activations() -> None:
    got = analyse.prompt_activations([sae_like(5, 3)], np.arange(3), np.full(3, -1))
    assert got.shape == (5, 0)
    assert analyse.similarity(got).empty


def test_similarity_is_pearsons() -> None:
    activations = np.random.default_rng(0).random((40, 4))
    activations[:, 3] = 1.0
    table = analyse.similarity(activations)
    assert len(table) == 6
    expected = np.corrcoef(activations[:, :3].T)
    for a, b, r in table.itertuples(index=False, name=None):
        assert a < b
        if b == 3:
            assert np.isnan(r)
        else:
            assert r == pytest.approx(expected[a, b])


def test_top_prompts_are_sorted_and_silent_ones_left_out() -> None:
    rows = analyse.top_prompts(prompts(["a", "bb", "ccc", "d"]), np.array([1.0, 3.0, 3.0, 0.0]), 5)
    assert [row["prompt"] for row in rows] == [1, 2, 0]
    assert rows[1]["n_chars"] == 3
    assert rows[0]["activation"] == 3.0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        (" = Robert Boulter = ", "[SECTION] Robert Boulter"),
        (" = A = \n = = B = = \n", "[SECTION] A > B"),
        (" = A = \n words here \n = = B = = \n more", "[SECTION] A | words here | [SECTION] B | more"),
        ("x = y and y = z", "x = y and y = z"),
        ("= not closed", "= not closed"),
        ("  spaces \n\n everywhere ", "spaces everywhere"),
        ("", ""),
    ],
)
def test_format_text(text: str, shown: str) -> None:
    assert analyse.format_text(text) == shown


def test_keywords_mark_their_cluster() -> None:
    rng = np.random.default_rng(0)
    topics = rng.integers(0, 3, 200)
    names = [["ship", "harbor", "sail"], ["wheat", "plough", "harvest"], ["court", "judge", "verdict"]]
    filler = ["people", "country", "year", "house", "street"]
    texts = [" ".join([*rng.choice(names[t], 3), *rng.choice(filler, 6)]) for t in topics]
    activations = np.stack([(topics == t) + 0.1 * rng.random(200) for t in range(3)], axis=1)
    for found, expected in zip(analyse.keywords(texts, activations, 3), names, strict=True):
        assert sorted(found) == sorted(expected)


def test_keywords_of_prompts_without_words() -> None:
    assert analyse.keywords(["1 2", "the", "3"], np.ones((3, 2)), 4) == [[], []]
    assert analyse.keywords(["ship"], np.ones((1, 2)), 0) == [[], []]


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
    assert analyse.peak_tokens(features, examples, table, tokenizer) == {0: ["eleven", "ten"]}


def test_cluster_table_of_noise_only() -> None:
    features = pd.DataFrame(
        {
            "feature": [4, 5],
            "kept": True,
            "label": pd.array([-1, -1], dtype="Int64"),
            "mean": 1.0,
            "std": 0.0,
            "max": 1.0,
        }
    )
    table = analyse.cluster_table(features, prompts(["a"]), np.zeros((1, 0)), np.zeros(0), AnalyseConfig())
    assert list(table.columns) == list(CLUSTER_COLUMNS)
    assert table[["cluster", "size", "ratio", "features"]].to_dict("records") == [
        {"cluster": -1, "size": 2, "ratio": 1.0, "features": [4, 5]}
    ]
    assert table.drop(columns=["cluster", "size", "ratio", "features"]).isna().all().all()
