"""Levels of clusters, against loops over pairs of features of dense rows, and where they are planted."""

from __future__ import annotations

import tracemalloc
from itertools import combinations
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse, stats

from gpuclust.compute import controls, levels
from gpuclust.compute.controls import FEWEST
from gpuclust.types import Array
from tests import strategies

PARTS = ("token", "token_expected", "near", "near_expected", "prompt")
LENGTHS = st.lists(st.integers(1, 40), max_size=7)
DENSITIES = st.sampled_from([0.0, 0.05, 0.4, 1.0])


def made(lengths: list[int], n_features: int, density: float, seed: int) -> tuple[Array, Array, Array]:
    """What fires, dense, on the tokens of prompts whose numbers have gaps; the prompts; and three sets of labels."""
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.cumsum(rng.integers(1, 9, len(lengths))) - 1, lengths)
    fired = rng.standard_normal((len(prompt), n_features)) * (rng.random((len(prompt), n_features)) < density)
    return fired, prompt, rng.integers(-1, 2, (3, n_features))


def windows_of(rows: Array) -> list[Array]:
    return [rows[start : start + 16] for start in range(0, len(rows), 16)]


def slowly(fired: Array, prompt: Array, labels: Array, cluster: int, numbers: set[int]) -> dict[str, float]:
    """Pairs of a cluster over the prompts of some numbers, pair by pair."""
    found = dict.fromkeys((*PARTS, "prompt_expected"), 0.0)
    prompts = [(fired[prompt == number] != 0).astype(int) for number in sorted(numbers)]
    for i, j in combinations(np.flatnonzero(labels == cluster), 2):
        for rows in prompts:
            windows = windows_of(rows)
            found["token"] += (rows[:, i] & rows[:, j]).sum()
            found["token_expected"] += sum(part[:, i].sum() * part[:, j].sum() / len(part) for part in windows)
            held = np.array([part.any(axis=0) for part in windows]).astype(int)
            found["near"] += (held[:, i] & held[:, j]).sum()
            found["near_expected"] += held[:, i].sum() * held[:, j].sum() / len(held)
            found["prompt"] += rows[:, i].any() and rows[:, j].any()
        shares = [sum(rows[:, f].any() for rows in prompts) for f in (i, j)]
        found["prompt_expected"] += shares[0] * shares[1] / max(len(prompts), 1)
    return found


@given(LENGTHS, st.integers(1, 6), DENSITIES, st.integers(0, 99), st.sampled_from([1, 20, 10**6]))
def test_pairs_are_those_of_loops(lengths: list[int], n_features: int, density: float, seed: int, most: int) -> None:
    fired, prompt, sets = made(lengths, n_features, density, seed)
    with mock.patch.object(levels, "ENTRIES", most):
        state = levels.chunk(sparse.csr_array(fired), prompt, sets)
    for group in range(levels.GROUPS):
        numbers = {number for number in prompt.tolist() if number % levels.GROUPS == group}
        assert state["prompts"][group] == len(numbers)
        for feature in range(n_features):
            active = {number for number in numbers if fired[prompt == number, feature].any()}
            assert state["fires"][group, feature] == len(active)
        for s, labels in enumerate(sets):
            for cluster in range(state["token"].shape[2]):
                expected = slowly(fired, prompt, labels, cluster, numbers)
                for name in PARTS:
                    assert state[name][s, group, cluster] == pytest.approx(expected[name], rel=1e-12, abs=0), name


@given(LENGTHS, st.integers(1, 6), DENSITIES, st.integers(0, 99), st.data())
def test_any_cut_at_prompts_and_any_order_give_the_same(
    lengths: list[int], n_features: int, density: float, seed: int, data: st.DataObject
) -> None:
    fired, prompt, sets = made(lengths, n_features, density, seed)
    edges = np.cumsum([0, *lengths])
    states = [levels.nothing(sets)]
    for cut in data.draw(strategies.cuts(len(lengths))) if lengths else []:
        own = slice(edges[cut.start], edges[cut.stop])
        states.append(levels.chunk(sparse.csr_array(fired[own]), prompt[own], sets))
    whole, merged = levels.chunk(sparse.csr_array(fired), prompt, sets), levels.merge(states)
    assert merged.keys() == whole.keys()
    for name, values in whole.items():
        assert merged[name].dtype == values.dtype
        np.testing.assert_allclose(merged[name], values, rtol=1e-13 if values.dtype.kind == "f" else 0)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.sampled_from([0.1, 0.4]), st.integers(0, 99))
def test_excesses_and_intervals_are_those_of_loops(lengths: list[int], density: float, seed: int) -> None:
    fired, prompt, sets = made(lengths, 5, density, seed)
    sets[0, :3] = 0
    found = levels.finish(levels.chunk(sparse.csr_array(fired), prompt, sets), sets)
    numbers = set(prompt.tolist())
    used = sorted({number % levels.GROUPS for number in numbers})
    parts = [numbers, *({n for n in numbers if n % levels.GROUPS != group} for group in used)]
    for cluster in range(int(sets.max()) + 1):
        for name in levels.LEVELS:
            excess = []
            for part in parts:
                ratios = []
                for labels in sets:
                    pairs = slowly(fired, prompt, labels, cluster, part)
                    expected = pairs[f"{name}_expected"]
                    ratios.append(pairs[name] / expected if expected > 0 else np.nan)
                controls = [ratio for ratio in ratios[1:] if not np.isnan(ratio)]
                excess.append(ratios[0] / np.mean(controls) if sum(controls) > 0 else np.nan)
            got = [found[f"{name}_{which}"][cluster] for which in ("excess", "low", "high")]
            interval = [np.nan, np.nan]
            if len(used) > 1 and min(excess) > 0:  # not NaN
                log, n = np.log(excess[1:]), len(used)
                half = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((log - log.mean()) ** 2).sum())
                interval = [excess[0] * np.exp(-half), excess[0] * np.exp(half)]
            if np.isnan(excess).any() or 0 in excess:
                interval = [np.nan, np.nan]
            np.testing.assert_allclose(got, [excess[0], *interval], rtol=1e-9)


def test_the_word_is_the_finest_level_that_is_shown() -> None:
    def word(*given: tuple[float, float]) -> str | None:
        """Of excesses and the lower ends of their intervals, finest first."""
        found = {}
        for name, (excess, low) in zip(levels.LEVELS, given, strict=True):
            found |= {f"{name}_excess": np.array([excess]), f"{name}_low": np.array([low])}
        (answer,) = levels.words(found)
        return answer  # type: ignore[no-any-return]

    high, low, unsure, less, unknown = (2, 1.1), (1, 0.9), (2, 1.0), (1.49, 1.4), (np.nan, np.nan)
    assert word(high, high, high) == "token"
    assert word(less, high, high) == "near"
    assert word(unsure, high, low) == "near"
    assert word((9, np.nan), unsure, high) == "topic"
    assert word(unknown, less, high) == "topic"
    assert word(less, unsure, less) == "none"
    assert word(unknown, unknown, low) == "none"
    assert word(unknown, unknown, unknown) is None
    assert word((1.5, 1.1), low, low) == "token"


# ---------------------------------------------------------------- planted

SIZE, LENGTH, OTHERS = 12, 80, 240  # features of a cluster, tokens of a prompt, independent features that are noise


def planted(n_prompts: int, kinds: str, seed: int, share: float = 0.3) -> tuple[Array, Array]:
    """Half the features of a cluster fire in a share of prompts: on one token (a), within twelve, each on its own (b),
    or anywhere in the prompt (c); some fire alone. Features of d, and those after the last cluster, all do."""
    rng = np.random.default_rng(seed)
    n_features = SIZE * len(kinds) + OTHERS
    fired = np.zeros((n_prompts, LENGTH, n_features), bool)
    for at in range(n_prompts):
        alone = np.flatnonzero(rng.random(n_features) < 0.65 * share)
        for cluster, kind in enumerate(kinds):
            mine = alone // SIZE == cluster
            if kind != "d":
                alone = alone[~mine | (rng.random(len(alone)) < 0.15 / 0.65)]  # all fire as often
                if rng.random() < share:
                    chosen = cluster * SIZE + rng.permutation(SIZE)[: SIZE // 2]
                    begin = rng.integers(LENGTH - SIZE)
                    token = {
                        "a": begin, "b": begin + rng.permutation(SIZE)[: len(chosen)],
                        "c": rng.integers(LENGTH, size=len(chosen)),
                    }[kind]  # fmt: skip
                    fired[at, token, chosen] = True
        fired[at, rng.integers(LENGTH, size=len(alone)), alone] = True
    return fired.reshape(-1, n_features), np.repeat(np.arange(n_prompts), LENGTH)


def labels_of(kinds: str) -> Array:
    return np.concatenate([np.repeat(np.arange(len(kinds)), SIZE), np.full(OTHERS, -1)])


def found_of(fired: Array, prompt: Array, labels: Array, draws: int = 4, seed: int = 0) -> dict[str, Array]:
    sets = np.concatenate([labels[None], labels[controls.exchanged(labels, fired.sum(axis=0), draws, seed)]])
    return levels.finish(levels.chunk(sparse.csr_array(fired), prompt, sets), sets)


@pytest.mark.parametrize("seed", range(3))
def test_planted_levels_are_found(seed: int) -> None:
    fired, prompt = planted(600, "abcd", seed)
    found = found_of(fired, prompt, labels_of("abcd"), draws=16, seed=seed)
    assert found["level"].tolist() == ["token", "near", "topic", "none"]
    assert found["token_excess"][1] < 1
    assert (found["prompt_low"][:3] > 1).all()


def independent(seed: int, n_prompts: int) -> dict[str, Array]:
    fired, prompt = planted(n_prompts, "ddddd", seed, share=0.45)
    return found_of(fired, prompt, labels_of("ddddd"), seed=seed)


def test_independent_features_have_no_level() -> None:
    words = np.concatenate([independent(seed, 150)["level"] for seed in range(20)])
    shown = sum(word not in ("none", None) for word in words)
    # 100 clusters; an interval of 95% is above 1 in 2.5%, on one of three levels in at most 7.5%: 15 or fewer in 99.5%
    assert shown <= 15


def test_intervals_cover_what_independent_features_have() -> None:
    covered = []
    for seed in range(20):
        found = independent(seed, 300)
        for name in levels.LEVELS:
            low, high = found[f"{name}_low"], found[f"{name}_high"]
            known = ~np.isnan(low)
            covered += ((low <= 1) & (high >= 1))[known].tolist()
    assert 0.9 <= np.mean(covered) <= 0.99


def test_intervals_cover_what_planted_features_have() -> None:
    labels = labels_of("abc")
    sets = np.concatenate([labels[None], labels[controls.exchanged(labels, np.zeros(len(labels), int), 3, 0)]])
    fired, prompt = planted(6000, "abc", 99)
    truth = levels.finish(levels.chunk(sparse.csr_array(fired), prompt, sets), sets)
    logs, errors, covered = [], [], []
    for seed in range(40):
        fired, prompt = planted(200, "abc", seed)
        found = levels.finish(levels.chunk(sparse.csr_array(fired), prompt, sets), sets)
        for cluster, name in enumerate(levels.LEVELS):
            low, high, true = (found[f"{name}_low"], found[f"{name}_high"], truth[f"{name}_excess"])
            covered.append(low[cluster] <= true[cluster] <= high[cluster])
            logs.append(np.log(found[f"{name}_excess"][cluster]))
            errors.append(np.log(high[cluster] / low[cluster]) / 2 / stats.t.ppf(0.975, levels.GROUPS - 1))
    spread = np.array(logs).reshape(-1, 3).std(axis=0, ddof=1)
    assert np.mean(covered) >= 0.88
    np.testing.assert_allclose(np.array(errors).reshape(-1, 3).mean(axis=0) / spread, 1, atol=0.4)


# ---------------------------------------------------------------- edges


def test_nothing_is_said_of_nothing() -> None:
    labels = np.array([0, 0, 1, -1, 3])  # cluster 1 has one feature, 2 none; 3 never fires
    sets = np.stack([labels, labels])
    state = levels.chunk(sparse.csr_array((0, 5)), np.zeros(0, np.int32), sets)
    for found in (levels.finish(state, sets), levels.finish(levels.nothing(sets), sets)):
        assert found.pop("level").tolist() == [None] * 4
        assert len(found) == 9
        assert all(np.isnan(values).all() and values.shape == (4,) for values in found.values())
    none = np.full((2, 5), -1)
    assert all(len(values) == 0 for values in levels.finish(levels.nothing(none), none).values())
    assert controls.exchanged(np.zeros(0, int), np.zeros(0, int), 3, 0).shape == (3, 0)


def test_one_feature_and_features_that_never_fire_have_no_level() -> None:
    fired = np.zeros((3000, 6))
    fired[::7, 0] = fired[::7, 1] = fired[::5, 2] = 1
    fired[::3, 3] = 1
    labels = np.array([0, 0, 1, -1, 2, 2])
    sets = np.stack([labels, [0, -1, 1, 0, 2, 2]])
    found = levels.finish(levels.chunk(sparse.csr_array(fired), np.repeat(np.arange(60), 50), sets), sets)
    assert found["level"].tolist() == ["token", None, None]
    assert np.isnan(found["prompt_excess"][1:]).all()


def test_what_fires_everywhere_is_as_expected() -> None:
    fired, sets = np.ones((640, 6)), np.stack([[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1]])
    found = levels.finish(levels.chunk(sparse.csr_array(fired), np.repeat(np.arange(20), 32), sets), sets)
    for name in levels.LEVELS:
        for which in ("excess", "low", "high"):
            np.testing.assert_allclose(found[f"{name}_{which}"], 1, rtol=1e-12)
    assert found["level"].tolist() == ["none", "none"]


def test_short_prompts_say_nothing_of_near() -> None:
    fired = np.random.default_rng(0).random((500, 6)) < 0.2
    sets = np.stack([[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1]])
    state = levels.chunk(sparse.csr_array(fired), np.repeat(np.arange(100), 5), sets)
    assert state["near"].any()
    np.testing.assert_array_equal(state["near"], state["near_expected"])
    np.testing.assert_allclose(levels.finish(state, sets)["near_excess"], 1)


def test_one_group_of_prompts_has_no_interval() -> None:
    fired = np.random.default_rng(0).random((90, 4)) < 0.5
    sets = np.zeros((2, 4), int)
    found = levels.finish(levels.chunk(sparse.csr_array(fired), np.repeat([0, 16, 32], 30), sets), sets)
    assert found["token_excess"] == 1
    assert np.isnan([found["token_low"], found["token_high"]]).all()


def test_without_controls_there_is_nothing_to_compare_with() -> None:
    sets = np.zeros((1, 4), int)
    state = levels.chunk(sparse.csr_array(np.ones((90, 4))), np.repeat(np.arange(3), 30), sets)
    assert levels.finish(state, sets)["level"].tolist() == [None]


def test_values_do_not_matter_and_stay() -> None:
    rows, prompt, sets = (
        sparse.csr_array(np.array([[-1.0, np.nan, 0.1], [2, 0, 5]])),
        np.array([4, 4]),
        np.zeros((2, 3), int),
    )
    rows.data[0], rows.data[-1] = 0, -np.inf  # an entry that is 0 is there
    before = rows.copy()
    state = levels.chunk(rows, prompt, sets)
    assert state["token"][0, 4, 0] == 2
    assert state["fires"][4].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(rows.data, before.data)
    np.testing.assert_array_equal(rows.indices, before.indices)


def test_memory_goes_by_entries() -> None:
    n_tokens, n_features, n_clusters = 20_000, 50_000, 4_000
    rng = np.random.default_rng(0)
    rows = sparse.random_array((n_tokens, n_features), density=30 / n_features, format="csr", rng=rng)
    sets = rng.integers(-1, n_clusters, (2, n_features))
    prompt = np.repeat(np.arange(n_tokens // 80), 80)
    tracemalloc.start()
    with mock.patch.object(levels, "ENTRIES", rows.nnz // 4):
        state = levels.chunk(rows, prompt, sets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    held = sum(values.nbytes for values in state.values())
    assert peak < 2 * held + 150 * rows.nnz / 4  # (token, cluster) would be 640 MB


def test_controls_fire_as_often() -> None:
    rng = np.random.default_rng(1)
    degree = rng.permutation(200)
    labels = np.where(degree > 150, 1, rng.integers(-1, 4, 200))
    places = controls.exchanged(labels, degree, 5, 3)
    assert places.shape == (5, 200)
    for own in places:
        assert sorted(own) == list(range(200))
        assert np.abs(degree[own] - degree).max() < FEWEST
        assert (labels[own] != labels)[(labels >= 0) & (degree < 120)].all()  # of the last, all are of one cluster
    assert len(np.unique(places, axis=0)) == 5
    np.testing.assert_array_equal(places, controls.exchanged(labels, degree, 5, 3))
    assert (places != controls.exchanged(labels, degree, 5, 4)).any()
    share = controls.kept_share(labels, places)
    assert share[1] > 0.4
    assert share[[0, 2, 3]].max() < 0.2
    assert share[1] == pytest.approx(np.mean([(labels[own] == 1)[labels == 1].mean() for own in places]))
