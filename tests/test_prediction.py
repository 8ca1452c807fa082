from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from gpuclust.compute import controls, prediction, row_words

N_CLUSTERS, SIZE = 3, 6


def drawn(seed: int, n_rows: int = 60, n_features: int = 20) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 40, (n_rows, n_features)) / 8  # whose sums float32 has exactly
    return np.where(rng.random((n_rows, n_features)) < 0.4, values, 0).astype(np.float32)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=2, max_size=40))
def test_auroc_is_that_of_the_bins(pairs: list[tuple[int, int]]) -> None:
    counted = np.zeros((1, 6, 2), int)
    for score, fires in pairs:
        counted[0, score, fires] += 1
    fires = [fires for _, fires in pairs]
    if len(set(fires)) < 2:
        assert np.isnan(prediction.auroc(counted))
    else:
        assert prediction.auroc(counted) == pytest.approx(roc_auc_score(fires, [score for score, _ in pairs]))


def test_only_pairs_of_a_stratum_count() -> None:
    rng = np.random.default_rng(0)
    counted = rng.integers(0, 9, (3, 5, 2))
    right = pairs = 0.0
    for stratum in counted:
        for a, (_, fires) in enumerate(stratum):
            for b, (others, _) in enumerate(stratum):
                right += fires * others * ((a > b) + (a == b) / 2)
                pairs += fires * others
    assert prediction.auroc(counted) == pytest.approx(right / pairs)
    assert prediction.over_all(counted) == pytest.approx(prediction.auroc(counted.sum(axis=0)[None]))
    assert prediction.of_words(counted) == pytest.approx(prediction.auroc(counted.sum(axis=1)[None]))


@given(st.integers(0, 10**6))
def test_rows_are_counted_as_by_hand_a_feature_itself_left_out(seed: int) -> None:
    values = drawn(seed)
    rng = np.random.default_rng(seed)
    label = rng.integers(-1, N_CLUSTERS, values.shape[1])
    sets = np.stack([label, *(rng.permutation(label) for _ in range(2))])
    told = prediction.mates(sets, prediction.scores(csr_array(values), sets))
    said = rng.normal(size=values.shape).astype(np.float32)
    edges = prediction.strata(said)
    got = prediction.histograms(3, values.shape[1])
    for part in np.array_split(np.arange(len(values)), 3):
        prediction.count(got, csr_array(values[part]), told, said[part], edges, threads=2)
    expected = np.zeros_like(got)
    for one, own in enumerate(sets):
        for feature, cluster in enumerate(own):
            mates = (own == cluster) & (cluster >= 0)
            mates[feature] = False
            for row, value in enumerate(values):
                score = value[mates].sum(dtype=np.float64)
                at = 0 if score == 0 else 1 + int((told.quantiles[one, cluster, 1:] <= score).sum())
                stratum = int((said[row, feature] > edges[feature]).sum())
                expected[one, feature, stratum, at, int(value[feature] > 0)] += 1
    np.testing.assert_array_equal(got, expected)
    assert got.sum() == 3 * values.size


def test_attributes_speak_as_naive_bayes_has_it() -> None:
    rng = np.random.default_rng(1)
    known, fires = rng.random((200, 7)) < 0.3, rng.random((200, 4)) < 0.4
    odds = prediction.log_odds(
        (known.T.astype(float) @ fires).astype(np.float32), known.sum(axis=0).astype(float),
        fires.sum(axis=0).astype(float), 200,
    )  # fmt: skip
    for attribute in range(7):
        for feature in range(4):
            has, on = known[:, attribute], fires[:, feature]
            here = ((has & on).sum() + 0.5) / (on.sum() + 1)
            elsewhere = ((has & ~on).sum() + 0.5) / ((~on).sum() + 1)
            assert odds[attribute, feature] == pytest.approx(np.log(here / elsewhere), rel=1e-5)


def planted(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows' words; features of a word (0), of a cause that no word tells (1), and of nothing in common (2)."""
    rng = np.random.default_rng(seed)
    word, cause = rng.random(n) < 0.4, rng.random(n) < 0.4
    chance = np.full((n, 120), 0.39)  # all fire as often
    chance[:, :SIZE] = np.where(word, 0.75, 0.15)[:, None]
    chance[:, SIZE : 2 * SIZE] = np.where(cause, 0.75, 0.15)[:, None]
    values = np.where(rng.random(chance.shape) < chance, 1, 0).astype(np.float32)
    label = np.full(120, -1)
    label[: N_CLUSTERS * SIZE] = np.repeat(np.arange(N_CLUSTERS), SIZE)
    return word, values, label


def test_words_explain_what_follows_from_words_and_no_more() -> None:
    n = 4000
    (word, train, label), (there, test, _) = planted(n, 2), planted(n, 3)
    sets = np.stack([label, *label[controls.exchanged(label, train.sum(axis=0), 16, 0)]])
    known, heard = (np.stack([has, ~has], axis=1).astype(np.float32) for has in (word, there))
    odds = prediction.log_odds(known.T @ train, known.sum(axis=0), train.sum(axis=0), n)
    told = prediction.mates(sets, prediction.scores(csr_array(train), sets))
    counted = prediction.histograms(len(sets), len(label))
    prediction.count(counted, csr_array(test), told, heard @ odds, prediction.strata(heard @ odds))
    measured = prediction.measured(counted)
    plain, given, words = (prediction.of_clusters(sets, [measured[name]]) for name in ("plain", "given", "words"))
    of_word, of_cause, of_nothing = range(3)
    assert plain["mean"][of_word] > 0.75
    assert plain["mean"][of_cause] > 0.75
    assert abs(plain["mean"][of_nothing] - 0.5) < 0.03
    assert words["mean"][of_word] > 0.75
    assert abs(words["mean"][of_cause] - 0.5) < 0.05
    assert abs(given["mean"][of_word] - 0.5) < 0.03  # of rows with the word, or of those without, mates tell nothing
    assert given["mean"][of_cause] > 0.75
    assert given["low"][of_cause] > 0.1
    assert given["p"][of_cause] < 1e-4
    assert given["p"][of_nothing] > 0.01


@pytest.mark.parametrize("size", [3, 12, 40])
def test_p_is_that_of_chance_where_nothing_is(size: int) -> None:
    """Rows of different lengths: features have no more in common than that all fire on long ones."""
    p, apart = [], []
    for seed in range(12):
        rng = np.random.default_rng([size, seed])
        label = np.full(400, -1)
        label[: 6 * size] = np.repeat(np.arange(6), size)
        own, length = rng.uniform(0.05, 0.4, 400), rng.gamma(4, 0.25, (300, 1))
        train, test = (csr_array((rng.random((300, 400)) < own * length).astype(np.float32)) for _ in range(2))
        sets = np.stack([label, *label[controls.exchanged(label, train.sum(axis=0), 8, seed)]])
        told = prediction.mates(sets, prediction.scores(train, sets))
        said = np.zeros((300, 400), np.float32)
        counted = prediction.histograms(9, 400)
        prediction.count(counted, test, told, said, prediction.strata(said))
        found = prediction.of_clusters(sets, [prediction.measured(counted)["plain"]])
        p += found["p"].tolist()
        apart += (found["mean"] - found["control"]).tolist()
    assert 0.4 < np.mean(p) < 0.6
    assert np.mean(np.array(p) < 0.05) <= 0.125  # 72 clusters: 9 or fewer in 99%
    assert abs(np.mean(apart)) < 3 * np.std(apart) / np.sqrt(len(apart))


def test_a_lone_cluster_can_be_told_from_chance() -> None:
    rng = np.random.default_rng(0)
    sets = np.stack([np.repeat([0, -1], [10, 90]), *(rng.permutation(np.repeat([0, -1], [10, 90])) for _ in range(8))])
    value = rng.normal(0.5, 0.02, (9, 100))
    value[0, :10] += 0.3
    found = prediction.of_clusters(sets, [value])
    assert found["p"][0] < 1e-4
    assert 0.2 < found["low"][0] < 0.3 < found["high"][0] < 0.4


def test_what_was_never_measured_is_not_a_number() -> None:
    sets = np.array([[0, 0, 1, 1, -1], [0, 0, 1, 1, -1], [-1, 0, 1, 0, 1]])
    each = np.full((3, 5), 0.6)
    each[:, 2:4] = np.nan
    found = prediction.of_clusters(sets, [each, np.full((3, 5), np.nan)])
    assert found["mean"][0] == pytest.approx(0.6)
    assert np.isnan(found["mean"][1])
    assert np.isnan(found["p"]).all()  # controls that do not differ tell no chance
    nothing: dict[str, Any] = prediction.of_clusters(np.full((3, 5), -1), [each])
    assert all(len(values) == 0 for values in nothing.values())


def test_tokens_and_categories_are_attributes() -> None:
    ids = row_words.vocabulary([np.array([7, 7, 3])] * 6 + [np.array([9])] * 4 + [np.array([3])], most=2)
    assert ids.tolist() == [3, 7]
    words = row_words.RowWords(ids, (2, 3))
    tokens, row = np.array([7, 7, 9, 3]), np.array([0, 0, 1, 2])
    found = words.of(tokens, row, 3, (np.array([1, 0, 1]), np.array([2, 0, 0])))
    assert found.toarray().tolist() == [[0, 1, 0, 1, 0, 0, 1], [0, 0, 1, 0, 1, 0, 0], [1, 0, 0, 1, 1, 0, 0]]
    assert len(words) == 7
    assert row_words.vocabulary([], 5).tolist() == []


def test_lengths_and_sources_are_numbered() -> None:
    assert len(set(row_words.lengths(np.arange(800)).tolist())) == row_words.LENGTHS
    assert set(row_words.lengths(np.full(9, 3)).tolist()) == {0}
    number, n = row_words.sources(["b", "a", "b", "c", "b", "c"])
    assert (number.tolist(), n) == ([0, 2, 0, 1, 0, 1], 3)
    number, n = row_words.sources([str(i) for i in range(100)])
    assert n == row_words.SOURCES + 1 == number.max() + 1
