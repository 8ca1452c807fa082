from __future__ import annotations

import importlib.metadata
from typing import Any

import pandas as pd
import pytest

from gpuclust.errors import ConfigError
from gpuclust.tables import labeller

CLUSTERS = pd.DataFrame({"cluster": [0, 1], "keywords": [["ship"], ["law"]]})


def by_keyword(clusters: pd.DataFrame) -> dict[int, str]:
    return {row.cluster: f"about {row.keywords[0]}" for row in clusters.itertuples() if row.cluster == 1}


def raising(clusters: pd.DataFrame) -> dict[int, str]:
    raise RuntimeError("no quota")


def of_numbers(clusters: pd.DataFrame) -> Any:
    return {0: 5}


def of_unknown(clusters: pd.DataFrame) -> Any:
    return {9: "nine"}


def test_a_named_function_labels_what_it_likes() -> None:
    assert labeller.apply("tests.test_labeller:by_keyword", CLUSTERS) == [None, "about law"]


def test_an_entry_point_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("mine", "tests.test_labeller:by_keyword", labeller.GROUP)
    found = importlib.metadata.EntryPoints([point])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found.select(group=group))
    assert labeller.find("mine") is by_keyword
    with pytest.raises(ConfigError, match=r"'other': neither module:function nor an entry point .*installed: mine"):
        labeller.find("other")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "none is installed"),
        ("no.such.module:f", "cannot be imported"),
        ("tests.test_labeller:nothing", "cannot be imported"),
        ("tests.test_labeller:CLUSTERS", "a DataFrame; a function is expected"),
    ],
)
def test_what_cannot_be_found_is_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        labeller.find(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raising", "failed .RuntimeError: no quota.. Mend it, or set analyse.labeller=null"),
        ("of_numbers", r"returned \{0: 5\}; a mapping of clusters \(0 to 1\) to str"),
        ("of_unknown", "returned .*nine"),
    ],
)
def test_what_a_labeller_does_wrong_is_said(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        labeller.apply(f"tests.test_labeller:{name}", CLUSTERS)
