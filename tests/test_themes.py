"""Themes: clusters that go together with the same clusters."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gpuclust import schema
from gpuclust.compute import themes
from gpuclust.tables import theme_table
from gpuclust.types import Array


def correlated(groups: list[int], noise: float = 0.1, shared: float = 0.5, n: int = 400, seed: int = 0) -> Array:
    """Correlations of clusters of which each follows its group's signal, and all of them the length of the prompt."""
    rng = np.random.default_rng(seed)
    signals = rng.standard_normal((n, max(groups) + 1))
    activity = signals[:, groups] + noise * rng.standard_normal((n, len(groups)))
    activity += shared * rng.standard_normal((n, 1)) * np.linspace(1, 2, len(groups))
    return np.corrcoef(activity.T)


ANIMALS = ["ant", "bear", "camel", "deer", "eagle", "fox", "goat", "horse", "ibis", "jackal", "koala", "lion", "mole",
           "newt"]  # fmt: skip


def described(n: int) -> pd.DataFrame:
    tokens = [["the", animal, "others"] for animal in ANIMALS[:n]]
    return pd.DataFrame({"size": [10] * n, "tokens": tokens, "keywords": None, "name": None})


def table_of(themes: Array, clusters: pd.DataFrame, correlation: Array, doubtful: int | None = None) -> pd.DataFrame:
    return theme_table.theme_table(themes, clusters, correlation, np.arange(len(clusters)) == doubtful)


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_planted_themes_are_found_whatever_all_share(shared: float) -> None:
    groups = [0] * 5 + [1] * 4 + [2] * 4 + [3] * 3
    found = themes.find(correlated(groups, shared=shared), np.full(16, 10))
    assert found.tolist() == groups  # numbered by size, and there are as many as the square root


def test_how_much_a_cluster_has_in_common_with_all_makes_no_theme() -> None:
    groups = np.array([0] * 5 + [1] * 4 + [2] * 4 + [3] * 3)
    level = np.where(np.arange(16) % 2, 0.3, 0.9)
    correlation = 0.4 * np.add.outer(level, level) + 0.2 * (groups[:, None] == groups)
    np.fill_diagonal(correlation, 1)
    assert themes.find(correlation, np.full(16, 10)).tolist() == groups.tolist()


def test_numbers_go_by_features_and_not_by_clusters() -> None:
    groups = [0] * 5 + [1] * 4 + [2] * 4 + [3] * 3
    sizes = np.where(np.array(groups) == 3, 100, 10)
    found = themes.find(correlated(groups), sizes)
    assert set(found[13:]) == {0}


def test_few_clusters_have_no_themes() -> None:
    found = themes.find(np.eye(themes.FEWEST - 1), np.ones(themes.FEWEST - 1))
    assert set(found) == {schema.NOISE}
    table = table_of(found, described(themes.FEWEST - 1), np.eye(themes.FEWEST - 1))
    assert len(table) == 0
    assert list(table) == list(schema.THEME_COLUMNS)
    assert themes.agreement([np.eye(3), np.eye(3)], np.ones(3)) is None
    assert themes.agreement([], np.ones(20)) is None
    assert set(themes.find(np.zeros((0, 0)), np.zeros(0))) == set()


def test_a_cluster_that_does_not_vary_is_in_some_theme() -> None:
    correlation = correlated([0] * 6 + [1] * 6 + [2] * 4)
    correlation[3] = correlation[:, 3] = np.nan
    found = themes.find(correlation, np.full(16, 10))
    assert (found >= 0).all()


def test_halves_that_agree_and_halves_that_do_not() -> None:
    groups = [0] * 5 + [1] * 4 + [2] * 4 + [3] * 3
    sizes = np.full(16, 10)
    assert themes.agreement([correlated(groups, seed=1), correlated(groups, seed=2)], sizes) == 1
    by_chance = themes.agreement([correlated(list(range(16)), seed=1), correlated(list(range(16)), seed=2)], sizes)
    assert by_chance is not None
    assert abs(by_chance) < 0.3


def test_words_are_of_the_clusters_that_go_with_the_others_and_are_found_again() -> None:
    groups = [0] * 6 + [1] * 4 + [2] * 4
    correlation = correlated(groups)
    correlation[0, 1:6] = correlation[1:6, 0] = 0.2  # of its theme, but least
    table = table_of(np.array(groups), described(14), correlation, doubtful=5)
    assert table["clusters"][0][-2:] == [0, 5]
    assert sorted(table["words"][0]) == ["bear", "camel", "deer", "eagle"]  # and no stop words
    assert table["doubtful"].tolist() == [1, 0, 0]
    assert table["size"].tolist() == [60, 40, 40]


def test_no_word_stands_twice_and_a_given_name_goes_before_words() -> None:
    clusters = described(12).assign(tokens=[["Word"], ["word", "second"], ["the"], *[["1848"]] * 9])
    clusters["name"] = [None] * 3 + ["a name"] + [None] * 8
    table = table_of(np.zeros(12, int), clusters, np.full((12, 12), 0.5))
    assert table["words"][0] == ["Word", "second", "a name", "the"]


def test_imported_activations_have_keywords_for_words() -> None:
    clusters = described(12).assign(tokens=None, keywords=[[f"key{c}"] for c in range(12)])
    assert table_of(np.zeros(12, int), clusters, np.eye(12))["words"][0][0].startswith("key")
