"""The map as a widget: what a click shows, and what is said where widgets are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gpuclust
from gpuclust.errors import InputError
from gpuclust.results import explorer


def click(trace: Any, place: int) -> None:
    """What Plotly does on a click."""
    trace._dispatch_on_click(SimpleNamespace(point_inds=[place], trace_name=trace.name), None)


def test_a_click_shows_the_cards_of_feature_and_cluster(small_run: Path) -> None:
    run = gpuclust.open_run(small_run)
    box, cards = run.explore().children
    noise, real = box.children[0].data
    assert cards.value == explorer.HINT
    feature = int(real.customdata[2])
    click(real, 2)
    cluster = int(run.features.set_index("feature")["label"][feature])
    assert cards.value == f"{run.feature(feature)._repr_html_()}<hr>{run.cluster(cluster)._repr_html_()}"
    assert "<script" not in cards.value
    click(noise, 0)
    assert cards.value == run.feature(int(noise.customdata[0]))._repr_html_()


def test_without_widgets_the_error_names_the_extra(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(InputError, match=r'pip install "gpuclust\[notebook\]"'):
        gpuclust.open_run(small_run).explore()
