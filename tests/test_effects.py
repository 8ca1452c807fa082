"""Planted effects: found with their size and interval, and nothing found where nothing is."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpuclust import formatting
from gpuclust.sweep import effects
from gpuclust.sweep.effects import Estimate


def table(outcome: Any, seeds: int = 3, noise: float = 0.01, **levels: list[Any]) -> pd.DataFrame:
    """A complete grid: `outcome` of the levels, a shift by seed, and noise."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        for number, values in enumerate(product(*levels.values())):
            own = dict(zip(levels, values, strict=True))
            value = outcome(**own) + 0.05 * seed + noise * rng.standard_normal()
            facts = {"found_again_halves": value, "clusters": 10.0, "noise": 0.4, "largest": 0.05}
            rows.append({"setting": number, "seed": seed, **own, **facts})
    return pd.DataFrame(rows)


def test_a_planted_effect_is_clear_and_its_interval_holds_it() -> None:
    rows = table(lambda a, b: 0.1 * a, a=[1, 2, 3], b=[True, False])
    found = effects.effect(rows, "a")
    assert found is not None
    assert (found.best, found.worst) == ("3", "1")
    assert found.difference.clear
    assert found.difference.low < 0.2 < found.difference.high
    assert found.levels["level"].tolist() == ["1", "2", "3"]
    assert (found.levels["low"] < found.levels["mean"]).all()
    none = effects.effect(rows, "b")
    assert none is not None
    assert not none.difference.clear
    assert none.levels["level"].tolist() == ["true", "false"]


def test_intervals_cover_what_they_promise() -> None:
    rng = np.random.default_rng(1)
    clear = 0
    for _ in range(120):
        rows = table(lambda a: 0.0, noise=0, a=[1, 2, 3])
        rows["found_again_halves"] += 0.1 * rng.standard_normal(len(rows))
        found = effects.effect(rows, "a")
        assert found is not None
        clear += found.difference.low > 0
    assert clear / 120 < 0.08  # 5%, corrected for the choice of the pair


def test_one_seed_has_no_interval_and_nothing_is_clear() -> None:
    found = effects.effect(table(lambda a: float(a), seeds=1, a=[0, 1]), "a")
    assert found is not None
    assert not found.difference.clear
    assert np.isnan(found.difference.low)
    assert "no interval" in str(found.difference)


def test_levels_are_compared_with_all_else_equal() -> None:
    """`a` does nothing; where b is 1 all is better, and one setting there has failed."""
    rows = table(lambda a, b: 0.4 * b, noise=0.001, a=[0, 1, 2], b=[0, 1])
    for lost in (rows.drop(rows.index[(rows["a"] == 2) & (rows["b"] == 1)]), rows.copy()):
        lost.loc[(lost["a"] == 2) & (lost["b"] == 1), "found_again_halves"] = np.nan
        alone = effects.effect(lost, "a")
        assert alone is not None
        assert alone.difference.value > 0.15  # were b not looked at
        found = effects.effect(lost, "a", others=["b"])
        assert found is not None
        assert not found.difference.clear
        assert abs(found.difference.value) < 0.01
        assert found.levels["level"].tolist() == ["0", "1"]  # four cells rather than three
        assert found.left_out == lost["setting"].nunique() - 4
    complete = effects.effect(rows, "a", others=["b"])
    assert complete is not None
    assert complete.left_out == 0


def test_levels_without_an_outcome_drop() -> None:
    rows = table(lambda a: float(a), a=[0, 1, 2])
    rows.loc[rows["a"] == 2, "found_again_halves"] = np.nan
    found = effects.effect(rows, "a")
    assert found is not None
    assert found.levels["level"].tolist() == ["0", "1"]
    assert effects.effect(rows[rows["a"] > 0], "a") is None


def test_interactions() -> None:
    crossed = table(lambda a, b: 0.2 * (a == b), a=[0, 1], b=[0, 1])
    (row,) = effects.interactions(crossed, ["a", "b"]).to_dict("records")
    assert row["share"] > 0.9
    assert row["matters"]
    plain = effects.interactions(table(lambda a, b: 0.2 * a + 0.1 * b, a=[0, 1], b=[0, 1]), ["a", "b"])
    assert not plain["matters"].any()
    assert effects.interactions(crossed[crossed["setting"] != 3], ["a", "b"]).empty  # not a whole grid


def test_cliffs_are_steps_of_one_number() -> None:
    rows = table(lambda a, b: 0.0, a=[5, 10, 20], b=["x", "y"])
    rows["clusters"] = np.where((rows["a"] == 20) & (rows["b"] == "y"), 3.0, 30.0)
    (cliff,) = effects.cliffs(rows, ["a", "b"]).to_dict("records")
    assert (cliff["field"], cliff["at"], cliff["from"], cliff["to"]) == ("a", "b=y", "10", "20")
    assert (cliff["clusters_from"], cliff["clusters_to"]) == (30, 3)
    assert effects.unsteady(rows).empty
    rows.loc[0, "clusters"] = 2.0
    assert effects.unsteady(rows)[["setting", "fewest", "most"]].to_numpy().tolist() == [[0, 2, 30]]


def test_one_large_cluster_is_not_better() -> None:
    """Level 2 is found again most, and holds half of the features in one cluster."""
    rows = table(lambda a: 0.1 * a, a=[0, 1, 2])
    plain = effects.effect(rows, "a")
    assert plain is not None
    assert (plain.best, plain.worst, plain.large, plain.aside) == ("2", "0", False, ())
    assert plain.clear
    rows.loc[rows["a"] == 2, "largest"] = 0.5
    found = effects.effect(rows, "a")
    assert found is not None
    assert (found.best, found.worst, found.large, found.aside) == ("1", "0", False, ("2",))
    assert found.clear
    assert found.difference.low < 0.1 < found.difference.high
    for others in (rows[rows["a"] != 1], rows.assign(largest=0.2)):  # none other is better than the worst
        bought = effects.effect(others, "a")
        assert bought is not None
        assert (bought.best, bought.large, bought.aside) == ("2", True, ())
        assert bought.difference.clear
        assert not bought.clear
    rows["found_again_halves"] *= -1  # a large cluster may be worse
    worse = effects.effect(rows, "a")
    assert worse is not None
    assert (worse.best, worse.worst, worse.clear) == ("0", "2", True)
    at_most = effects.effect(rows.assign(largest=0.99 * effects.LARGEST), "a")
    assert at_most is not None
    assert at_most.clear


def test_a_difference_in_share_below_the_least_is_not_clear() -> None:
    for size, clear in ((0.015, False), (0.025, True)):
        found = effects.effect(table(lambda a, size=size: size * a, noise=1e-5, a=[0, 1]), "a")
        assert found is not None
        assert found.difference.low > 0
        assert found.clear == clear
    assert str(Estimate(0.1234, -0.01, 0.2)) == "+12.3 points [-1.0, +20.0]"


def test_the_recommended_setting_must_cluster_as_finely_and_without_a_large_cluster() -> None:
    rows = table(lambda a: 0.1 * a, a=[0, 1, 2, 3])
    rows.loc[rows["a"] == 3, "clusters"] = 2.0  # few large clusters are easily found again
    rows.loc[rows["a"] == 2, "largest"] = 0.3  # so is one
    rows.loc[rows["a"] == 1, "noise"] = 0.9  # noise is not
    default = rows[rows["setting"] == 0]
    found = effects.recommend(rows, default)
    assert found is not None
    number, gain = found
    assert number == 1
    assert gain.low < 0.1 < gain.high
    rows["found_again_halves"] *= -1
    assert effects.recommend(rows, rows[rows["setting"] == 0]) == (0, Estimate(0, 0, 0))
    empty = default.assign(found_again_halves=np.nan)
    assert effects.recommend(rows, empty) is None
    giant = rows.assign(largest=0.3)
    assert effects.recommend(giant, giant[giant["setting"] == 0]) is None
    giant.loc[giant["a"] == 1, "largest"] = 0.09
    found = effects.recommend(giant, giant[giant["setting"] == 0])
    assert found is not None
    assert found[0] == 1  # less is found again than by the default, whose large cluster is
    rows.loc[rows["setting"] == 0, "clusters"] = 0.0  # half to twice as many would be none
    rows["found_again_halves"] *= -1
    found = effects.recommend(rows, rows[rows["setting"] == 0])
    assert found is not None
    assert found[0] == 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, "true"), (np.False_, "false"), (15.0, "15"), (0.05, "0.05"), ("eom", "eom"), (3, "3")],
)
def test_levels_read_as_in_yaml(value: Any, expected: str) -> None:
    assert formatting.written(value) == expected
