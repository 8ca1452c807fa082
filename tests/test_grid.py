"""Sweep files: grids, random draws, shared settings, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gpuclust.errors import ConfigError
from gpuclust.sweep import grid
from gpuclust.sweep.grid import Grid


def load(tmp_path: Path, data: Any, *overrides: str) -> tuple[grid.SweepConfig, dict[str, Any]]:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(data))
    return grid.load(file, overrides)


def test_a_grid_is_all_combinations_on_top_of_the_base(tmp_path: Path) -> None:
    vary = {"umap.n_neighbors": [5, 15], "hdbscan.min_cluster_size": [5, 10, 20]}
    sweep, base = load(
        tmp_path, {"base": {"umap": {"min_dist": 0.3}}, "fixed": {"umap.min_dist": 0.2}, "vary": vary}, "n_prompts=7"
    )
    settings = grid.expand(sweep, base)
    assert len(settings) == 6  # the default, 15 and 10, is one of them
    assert settings[0].grids == {("sweep", 0)}
    found = {(s.values["umap.n_neighbors"], s.values["hdbscan.min_cluster_size"]) for s in settings}
    assert found == {(k, m) for k in (5, 15) for m in (5, 10, 20)}
    for setting in settings:
        assert setting.config is not None
        assert (setting.config.umap.min_dist, setting.config.n_prompts) == (0.2, 7)
        assert setting.config.umap.n_neighbors == setting.values["umap.n_neighbors"]


def test_random_search_draws_without_replacement() -> None:
    many = Grid(vary={"umap.n_neighbors": list(range(2, 12)), "umap.min_dist": [0.0, 0.1]}, search="random", samples=8)
    drawn = many.combinations(np.random.default_rng(1))
    assert len({tuple(values.items()) for values in drawn}) == 8
    assert drawn == many.combinations(np.random.default_rng(1))
    assert len(many.model_copy(update={"samples": 99}).combinations(np.random.default_rng(1))) == 20


def test_questions_share_their_settings(tmp_path: Path) -> None:
    questions = {"a": {"vary": {"umap.n_neighbors": [5, 15]}}, "b": [{"vary": {"umap.n_neighbors": [5, 30]}}]}
    settings = grid.expand(*load(tmp_path, {"questions": questions}))
    assert [s.values["umap.n_neighbors"] for s in settings] == [15, 5, 30]
    assert [s.grids for s in settings] == [{("a", 0)}, {("a", 0), ("b", 0)}, {("b", 0)}]


def test_contradicting_values_are_a_setting_with_an_error(tmp_path: Path) -> None:
    settings = grid.expand(*load(tmp_path, {"vary": {"umap.n_neighbors": [15, 1], "umap.min_dist": [0.0]}}))
    assert [s.error is None for s in settings] == [True, False]
    assert "umap.n_neighbors is 1" in str(settings[1].error)


def test_groups_of_prompts_and_lists(tmp_path: Path) -> None:
    vary = {"source": [None, "18"], "length": [[1, 5]], "prompts.0.limit": [9]}
    settings = grid.expand(*load(tmp_path, {"vary": vary}))
    assert [(s.source, s.length) for s in settings] == [(None, None), (None, (1, 5)), ("18", (1, 5))]
    assert settings[1].config is not None
    assert settings[1].config.prompts[0].limit == 9


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"vary": {"umap.n_neighbor": [5]}}, "did you mean umap.n_neighbors"),
        ({"vary": {"umap.random_state": [5]}}, "varied by `seeds`"),
        ({"vary": {"scheduler.n_workers": [5]}}, "cannot be varied"),
        ({"vary": {"quality.halves": [True, False]}}, "changes the checks of a run"),
        ({"vary": {"umap.n_neighbors": []}}, "at least one value"),
        ({"vary": {"length": [5]}}, r"such as \[1, 40\]"),
        ({"vary": {"length": [[9, 5]]}}, r"such as \[1, 40\]"),
        ({}, "either vary"),
        ({"vary": {"source": ["a"]}, "source_pattern": "("}, "no regular expression"),
        ({"vary": {"source": ["a"]}, "source_pattern": "a"}, "has no group"),
        ({"vary": {"source": ["a"]}, "seed": -1}, "seed"),
        ({"vary": {"source": ["a"]}, "base": {"umap": {"n_neighbor": 3}}}, "did you mean umap.n_neighbors"),
        ({"vary": {"source": ["a"]}, "base": "nowhere.yaml"}, "cannot read"),
        ({"vary": {"source": ["a"]}, "fixed": {"umap.n_neighbor": 3}}, "did you mean umap.n_neighbors"),
        (["vary"], "no mapping"),
    ],
)
def test_what_is_refused(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, data)
