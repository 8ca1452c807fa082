"""Sweeps over what a row is: prompts, windows and tokens of one extraction, as separate runs have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import gpuclust
from gpuclust import schema
from gpuclust.compute import agreement
from gpuclust.sweep import grid
from tests import tiny
from tests.test_sweep import compare_numbers, computed, counted, go, single


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = tiny.build(tmp_path_factory.mktemp("tiny"))
    return found | {"extract": {"window": 5}, "hdbscan": {"min_cluster_size": 2, "min_samples": 1}}


def over(base: dict[str, Any], rows: str) -> dict[str, Any]:
    return base | {"extract": base["extract"] | {"rows": rows}}


@pytest.fixture(scope="module")
def kept(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps tokens."""
    return single(tmp_path_factory.mktemp("kept"), over(base, "token"))


@pytest.fixture(scope="module")
def swept(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that extracts by itself."""
    folder = tmp_path_factory.mktemp("swept")
    questions = {
        "rows": {"vary": {"extract.rows": ["prompt", "window", "token"]}},
        "fewer": {"vary": {"extract.rows": ["prompt", "token"], "n_prompts": [30]}},
        "sources": {"vary": {"extract.rows": ["token"], "source": ["a", "b"]}},
    }
    table = go(folder, {"base": base, "questions": questions, "seeds": 1})
    assert table["error"].isna().all()
    return folder


def labels(out: Path) -> Any:
    features = pd.read_parquet(out / schema.FEATURES)
    return features["label"].fillna(agreement.ABSENT).to_numpy(dtype=np.int64)


def test_one_extraction_and_a_pass_for_each_kind_of_rows(swept: Path) -> None:
    assert computed(swept)["extractions"] == 1
    assert computed(swept)["store_reads"] == 1 + 3  # for the moments; over prompts, windows and tokens
    (folder,) = (swept / "out" / "extractions").iterdir()
    assert (folder / schema.TOKENS).exists()


@pytest.mark.parametrize(("rows", "n"), [("prompt", 60), ("window", 60), ("token", 60), ("token", 30)])
def test_settings_equal_separate_runs(base: dict[str, Any], swept: Path, tmp_path: Path, rows: str, n: int) -> None:
    table = pd.read_parquet(swept / "out" / "sweep.parquet")
    mine = table[(table["extract.rows"] == rows) & (table["n_prompts"] == n) & table["source"].isna()]
    row = mine.iloc[0]
    found = gpuclust.open_sweep(swept / "out").labels.values[list(table.index).index(mine.index[0])]
    out = single(tmp_path, over(base, rows) | {"n_prompts": n})
    np.testing.assert_array_equal(found[0], labels(out))
    assert len(set(labels(out))) > 3
    compare_numbers(row.drop("extract.rows"), gpuclust.open_run(out), found)


def test_settings_open_as_runs_but_not_of_some_prompts(swept: Path) -> None:
    table = pd.read_parquet(swept / "out" / "sweep.parquet")
    sweep = gpuclust.open_sweep(swept / "out")
    whole = table[(table["n_prompts"] == 60) & table["source"].isna()].set_index("extract.rows")["setting"]
    for rows in ("prompt", "token"):
        at = table.index[table["setting"] == whole[rows]][0]
        opened = sweep.run(int(whole[rows]))
        np.testing.assert_array_equal(labels(opened.path), sweep.labels.values[at][0])
        assert (opened.path / schema.CONTEXTS).exists() == (rows == "token")
    part = table[(table["n_prompts"] == 30) & (table["extract.rows"] == "token")]["setting"].iloc[0]
    with pytest.raises(gpuclust.GpuclustError, match="is over tokens of 30 prompts, of 60, and tokens of some"):
        sweep.run(int(part))


def test_neighbours_of_a_source_are_over_its_tokens(swept: Path) -> None:
    """Every neighbour file of a half of a source against NumPy, over the tokens of just those prompts."""
    from gpuclust.compute.halves import half_of
    from gpuclust.engine.views import read_neighbors
    from tests.test_token_store import opened

    (folder,) = (swept / "out" / "extractions").iterdir()
    whole, prompts = opened(folder), pd.read_parquet(folder / schema.PROMPTS)
    own = np.flatnonzero(prompts["source"] == "b")
    n = min(len(own), int((prompts["source"] == "a").sum()))
    own = own[:n]
    inside = np.isin(whole["prompt"].values, own[half_of(n, 0) == 1])
    values = whole["activations"].values[inside].astype(np.float64)
    matches = 0
    for path in (swept / "out" / "cache").glob("neighbors-*-half1.zarr"):
        features, _, distances = read_neighbors(path)
        with np.errstate(invalid="ignore", divide="ignore"):
            expected = np.sort(1 - np.nan_to_num(np.corrcoef(values[:, features].T)), axis=1)[:, : distances.shape[1]]
        matches += np.allclose(distances[:, 1:], np.maximum(expected, 0)[:, 1:], atol=3e-6)
    assert matches == 1


def test_a_trial_knows_how_much_its_rows_leave_by_chance(
    base: dict[str, Any], kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpuclust.compute import row_errors
    from gpuclust.compute.halves import half_of
    from gpuclust.sweep import trials
    from tests.test_token_store import opened

    calls = counted(monkeypatch, trials.methods, "of_communities")
    data = {"base": over(base, "token"), "vary": {"extract.rows": ["token"], "source": ["b"]}, "seeds": 1}
    go(tmp_path, data, kept)
    rows = np.bincount(opened(kept)["prompt"].values, minlength=60)
    expected = []
    for own in (np.arange(60), np.flatnonzero(pd.read_parquet(kept / schema.PROMPTS)["source"] == "b")):
        half = half_of(len(own), 0)
        parts = (own, own[half == 0], own[half == 1])
        expected += [row_errors.effective(int(rows[part].sum()), len(part), None) for part in parts]
    assert sorted(call[2] for call in calls) == sorted(expected)


def test_what_does_not_go_together_is_a_row_with_its_error(tmp_path: Path) -> None:
    def errors(fixed: dict[str, Any]) -> list[str | None]:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"fixed": fixed, "vary": {"extract.rows": ["prompt", "window", "token"]}}))
        return [setting.error for setting in grid.expand(*grid.load(path))]

    assert errors({}) == [None, None, None]
    for fixed, words in (
        ({"neighbors.metric": "partial_correlation"}, "partial_correlation takes out the length of prompts"),
        ({"neighbors.method": "sketch"}, "neighbors.method=sketch is of prompts"),
        ({"store.codec": "zstd"}, "needs store.codec=bitmap"),
    ):
        prompt, *others = errors(fixed)
        assert prompt is None
        assert all(error is not None and words in error for error in others)


def test_a_run_that_keeps_tokens_serves_all_rows_and_one_without_refuses(
    base: dict[str, Any], kept: Path, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = {"base": base, "vary": {"extract.rows": ["prompt", "token"]}, "seeds": 1}
    prompts = {"base": base, "vary": {"hdbscan.min_cluster_size": [2]}, "seeds": 1}
    for data in (prompts, several, prompts):  # of prompts alone, too; and a folder that has tokens goes on with them
        table = go(tmp_path, data, kept)
        assert table["error"].isna().all()
        assert computed(tmp_path)["extractions"] == 0
    assert len(list((tmp_path / "out" / "extractions").iterdir())) == 1
    assert gpuclust.open_sweep(tmp_path / "out").run(0).config.extract.rows == "prompt"
    settings = json.loads((small_run / schema.RECORD).read_text())["config"]
    go(tmp_path, {"base": settings, "vary": {"extract.rows": ["token"]}}, small_run, code=2)
    assert "has no tokens: it was extracted with extract.rows=prompt" in " ".join(capsys.readouterr().err.split())


def test_an_explicit_metric_of_prompts_extracts_tokens_all_the_same(base: dict[str, Any], tmp_path: Path) -> None:
    data = {"base": base | {"neighbors": {"metric": "partial_correlation"}}, "seeds": 1, "questions": {"rows": [
        {"vary": {"extract.rows": ["token"], "neighbors.metric": ["correlation"]}}, {"vary": {"n_prompts": [60, 30]}},
    ]}}  # fmt: skip
    table = go(tmp_path, data)
    assert table["error"].isna().all()
    assert computed(tmp_path)["extractions"] == 1
    again = go(tmp_path, data)
    pd.testing.assert_frame_equal(again, table)
    assert computed(tmp_path)["extractions"] == 0
