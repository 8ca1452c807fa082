"""Verdicts in words: what decides, what is said of it, and what a run says first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuclust import schema
from gpuclust.compute import verdicts
from gpuclust.storage.run_folder import Folder

TABLE = {
    "stability": np.array([0.9, 0.3, 0.9, 0.9, 0.1, np.nan, np.nan]),
    "chance_stability": np.array([0.2, 0.2, 0.2, 0.2, 0.2, np.nan, np.nan]),
    "permutation_z": np.array([50.0, 50, 15, 50, 50, 50, 15]),
    "permutation_z_null": np.full(7, 8.0),
    "random_z": np.array([9.0, 9, 9, 2, 9, 9, 9]),
}


def test_nulls_are_weighed_before_stability() -> None:
    found, why = verdicts.judge(TABLE, 0.5)
    assert found.tolist() == [
        "stable", "fragile", "no better than random", "no better than random", "not found again", None,
        "no better than random",
    ]  # fmt: skip
    assert why.tolist() == [
        "halves of the prompts find it with a Jaccard index of 0.90",
        "halves of the prompts find it with a Jaccard index of 0.30; 0.50 is asked for",
        "its cohesion is 15.0 standard deviations above permuted activations; more than 16.0 is asked for",
        "its cohesion is 2.0 standard deviations above random features that fire as often; 3.0 are asked for",
        "halves of the prompts find it with a Jaccard index of 0.10, random labels with up to 0.20",
        None,
        "its cohesion is 15.0 standard deviations above permuted activations; more than 16.0 is asked for",
    ]
    assert set(verdicts.explained(0.5)) == set(verdicts.VERDICTS)


@pytest.mark.parametrize(
    ("found", "clusters", "said"),
    [
        (0, 0, None),
        (2, 10, None),
        (1, 10, "1 of 10 clusters is found again in two halves of the 60 prompts, clustered apart: the others cannot"),
        (0, 44, "0 of 44 clusters are found again in two halves of the 60 prompts, clustered apart: nothing here can"),
    ],
)
def test_a_warning_where_fewer_than_a_fifth_hold(found: int, clusters: int, said: str | None) -> None:
    text = verdicts.doubt(found, clusters, 60)
    assert text is None if said is None else text is not None and text.startswith(said) and "more prompts" in text


def test_the_headline_counts_what_is_found_again() -> None:
    counts = dict(zip(verdicts.VERDICTS, (0, 0, 30, 14), strict=True))
    assert verdicts.headline(counts, 44) == "0 of 44 clusters are found again in halves of the prompts"
    counts = dict(zip(verdicts.VERDICTS, (0, 0, 0, 3), strict=True))
    assert verdicts.headline(counts, 18, measured=False) == (
        "18 clusters, 3 of them no better than random; whether halves of the prompts find them again was not measured"
    )
    assert verdicts.headline({"stable": 1}, 7) == "1 of 7 clusters is found again in halves of the prompts"
    assert verdicts.headline({"stable": 1}, 1) == "1 of 1 cluster is found again in halves of the prompts"


def test_a_reason_does_not_contradict_itself_by_rounding() -> None:
    table = {
        "stability": np.array([0.499, 0.1, 0.9, 0.9]),
        "chance_stability": np.array([0.1, 0.104, 0.1, 0.1]),
        "permutation_z": np.array([50.0, 50, 50, 10.04]),
        "permutation_z_null": np.array([1.0, 1, 1, 5.024]),
        "random_z": np.array([9.0, 9, 2.98, 9]),
    }
    assert [why.rpartition(" of ")[2] for why in verdicts.judge(table, 0.5)[1][:2]] == [
        "0.499; 0.500 is asked for", "0.100, random labels with up to 0.104",
    ]  # fmt: skip
    assert "is 2.98 standard deviations" in verdicts.judge(table, 0.5)[1][2]
    assert "is 10.04 standard deviations" in verdicts.judge(table, 0.5)[1][3]


def test_what_a_run_is_worth_stands_first_in_its_record_while_it_is_known(tmp_path: Path) -> None:
    from gpuclust.config import Config

    folder = Folder(tmp_path / "run", Config())
    folder.complete("quality", "key", [], headline="3 of 4 clusters")
    written: dict[str, Any] = json.loads((tmp_path / "run" / schema.RECORD).read_text())
    assert list(written).index("headline") <= 1  # behind its checksum
    assert written["headline"] == "3 of 4 clusters"
    folder.begin("cluster")
    assert "headline" not in json.loads((tmp_path / "run" / schema.RECORD).read_text())


@pytest.mark.parametrize(("share", "warned"), [(0.0, True), (0.049, True), (0.05, False), (None, False)])
def test_a_warning_where_few_features_lie_in_clusters_found_again(share: float | None, warned: bool) -> None:
    text = verdicts.doubt(1, 4, 200, share)
    assert (text is not None) == warned
    if text is not None:
        assert f"{share:.0%} of the features lie in clusters that both halves have" in text


def test_tokens_are_no_way_out_where_there_are_none() -> None:
    text = verdicts.doubt(0, 4, 60, over_tokens=False)
    assert text is not None
    assert "token" not in text


def test_of_few_clusters_fewer_are_no_way_out() -> None:
    few, more = verdicts.doubt(0, 4, 60), verdicts.doubt(0, 5, 60)
    assert few is not None
    assert more is not None
    assert "extract.rows=token" in few
    assert "fewer" not in few
    assert "fewer, larger clusters" in more
