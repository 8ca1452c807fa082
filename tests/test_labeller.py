from __future__ import annotations

import importlib.metadata
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed.core import error_message

from gpuclust.errors import ConfigError
from gpuclust.hardware import device
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


def of_a_bool(clusters: pd.DataFrame) -> Any:
    return {True: "one"}


def of_half_a_pair(clusters: pd.DataFrame) -> Any:
    return {0: "a\ud800"}


def of_pairs(clusters: pd.DataFrame) -> Any:
    return {np.int64(1): "\U0001f600\0"}


def endless(clusters: pd.DataFrame) -> Any:
    return endless(clusters)


class NotAgainError(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__("three quotas")


def odd(clusters: pd.DataFrame) -> Any:
    raise NotAgainError(1, 2)


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
        ("of_a_bool", r"returned \{True: 'one'\}; a mapping of clusters"),
        ("of_half_a_pair", r"returned \{0: 'a\\ud800'\}; .* of characters that UTF-8 has"),
        ("endless", "failed .RecursionError: "),
    ],
)
def test_what_a_labeller_does_wrong_is_said(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        labeller.apply(f"tests.test_labeller:{name}", CLUSTERS)


def test_any_text_of_unicode_is_a_name() -> None:
    assert labeller.apply("tests.test_labeller:of_pairs", CLUSTERS) == [None, "\U0001f600\0"]


@pytest.mark.parametrize(("name", "cause"), [("endless", None), ("odd", None), ("raising", RuntimeError)])
def test_what_a_labeller_does_wrong_arrives_from_a_worker(name: str, cause: type[Exception] | None) -> None:
    with pytest.raises(ConfigError, match="failed") as raised:
        device.guarded("analyse", labeller.apply, f"tests.test_labeller:{name}", CLUSTERS)
    sent = error_message(raised.value)["exception"]  # as a worker does
    error = pickle.loads(sent.data if hasattr(sent, "data") else sent)
    assert type(error) is ConfigError
    assert str(error) == str(raised.value)
    assert (error.__cause__ and type(error.__cause__)) is cause
