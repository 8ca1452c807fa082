"""Planted permutations, splits, mergers, lost and new clusters; the rules at their edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuclust.compute.agreement import ABSENT, agreement, relate

Array = np.ndarray[Any, Any]


def labels(*sizes: tuple[int, int]) -> Array:
    """Runs of (label, count)."""
    return np.concatenate([np.full(count, label) for label, count in sizes])


def fates(a: Array, b: Array, side: str) -> dict[int, str]:
    clusters = relate(a, b).clusters
    chosen = clusters[clusters["side"] == side]
    return dict(zip(chosen["cluster"], chosen["fate"], strict=True))


@given(st.lists(st.integers(-2, 5), min_size=1, max_size=60), st.permutations(range(6)))
def test_renaming_clusters_changes_nothing(values: list[int], names: list[int]) -> None:
    a = np.array(values)
    b = np.where(a >= 0, np.array(names)[np.maximum(a, 0)], a)
    relation = relate(a, b)
    assert set(relation.clusters["fate"]) <= {"same"}
    assert (relation.clusters["jaccard"] == 1).all()
    assert relation.features.empty
    found = agreement(a, b)
    if (a != ABSENT).any():
        assert found["ari"] == 1
        assert found["common"] == (a != ABSENT).sum()


def test_split_and_merger_are_one_event_seen_from_both_sides() -> None:
    a = labels((0, 40), (1, 20))
    b = labels((0, 25), (1, 15), (2, 20))
    assert fates(a, b, "a") == {0: "split", 1: "same"}
    assert fates(a, b, "b") == {0: "split", 1: "split", 2: "same"}
    assert fates(b, a, "a") == {0: "merged", 1: "merged", 2: "same"}
    assert fates(b, a, "b") == {0: "merged", 1: "same"}
    row = relate(a, b).clusters.query("side == 'a' and cluster == 0").iloc[0]
    assert row["others"] == [0, 1]
    assert row["jaccard"] == pytest.approx(25 / 40)
    assert relate(a, b).features.empty  # they follow the split


def test_vanished_and_appeared() -> None:
    a = labels((0, 20), (1, 20), (-1, 20))
    b = labels((3, 20), (-1, 11), (ABSENT, 9), (7, 20))
    assert fates(a, b, "a") == {0: "same", 1: "vanished"}
    assert fates(a, b, "b") == {3: "same", 7: "appeared"}
    moved = relate(a, b).features["move"].value_counts().to_dict()
    assert moved == {"into noise": 11, "no longer kept": 9, "out of noise": 20}


def test_a_feature_that_changes_its_cluster_moved() -> None:
    a = labels((0, 20), (1, 20))
    b = a.copy()
    b[3] = 1
    moved = relate(a, b).features
    assert moved.to_dict("records") == [{"feature": 3, "label_a": 0, "label_b": 1, "move": "to another cluster"}]
    assert fates(a, b, "a") == {0: "same", 1: "same"}


def test_a_tenth_is_the_least_part() -> None:
    a = labels((0, 100))
    assert fates(a, labels((0, 90), (1, 10)), "a") == {0: "split"}
    assert fates(a, labels((0, 91), (1, 9)), "a") == {0: "same"}


def test_shuffled_clusters_changed() -> None:
    a = np.repeat([0, 1, 2, 3], 30)
    b = np.tile([0, 1, 2, 3], 30)
    assert set(fates(a, b, "a").values()) == {"changed"}
    assert agreement(a, b)["ari"] == pytest.approx(0, abs=0.05)


def test_noise_counts_as_one_cluster_or_not_at_all() -> None:
    a = labels((0, 10), (1, 10), (-1, 10))
    b = labels((0, 10), (1, 10), (0, 5), (1, 5))
    found = agreement(a, b)
    assert found["ari_clustered"] == 1
    assert found["clustered_both"] == pytest.approx(2 / 3)
    assert found["ari"] < 0.7


def test_nothing_in_common() -> None:
    a, b = labels((0, 5), (ABSENT, 5)), labels((ABSENT, 5), (0, 5))
    found = agreement(a, b)
    assert found["common"] == 0
    assert np.isnan([found["ari"], found["ami_clustered"], found["clustered_both"]]).all()
    assert fates(a, b, "a") == {0: "vanished"}
    assert relate(np.full(4, -1), np.full(4, -1)).clusters.empty
