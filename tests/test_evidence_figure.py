"""The figure of what was tried on each cluster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gpuclust import show
from gpuclust.errors import InputError
from gpuclust.results import evidence_figure


def clusters(**columns: list[float]) -> pd.DataFrame:
    """Noise and three clusters."""
    found = {"cluster": [-1, 0, 1, 2], "stability": [np.nan, 0.2, 0.9, 0.6]}
    words = [None, "not found again", "real", "topic only"]
    return pd.DataFrame(found | {"evidence": words} | {name: [np.nan, *values] for name, values in columns.items()})


def test_tests_that_were_made_are_shown_and_no_others(tmp_path: Path) -> None:
    nothing = [np.nan] * 3
    given = [0.6, 0.7, 0.5]
    table = clusters(
        prediction_given_words=given, prediction_given_words_random=nothing, prediction_low=nothing,
        prediction_high=nothing, token_excess=nothing, cause_kl=[0.1, np.nan, 0.2], cause_kl_random=nothing,
    )  # fmt: skip
    shown = evidence_figure.write(table, tmp_path / "a.svg")
    assert shown == ["stability", "prediction_given_words", "cause_kl"]
    text = (tmp_path / "a.svg").read_text()
    assert "mathdefault" not in text
    evidence_figure.write(table, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text() == text
    evidence_figure.write(table, tmp_path / "c.svg", dark=True)
    assert (tmp_path / "c.svg").read_text() != text


def test_nothing_tried_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        evidence_figure.write(clusters().assign(stability=np.nan), tmp_path / "a.svg")
    assert not (tmp_path / "a.svg").exists()


def test_of_a_run_by_its_command(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.main([str(small_run), "--evidence", str(tmp_path / "a.png")]) == 0
    assert "what was tried on" in capsys.readouterr().out
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert show.main([str(small_run), "--evidence", str(tmp_path / "a.txt")]) == 2
