"""What commands besides the import make of an imported run: plans, sweeps and cards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.sparse import csr_array, save_npz

import gpuclust
from gpuclust import cli, configfile, schema
from gpuclust.engine.planning import show_plan
from gpuclust.engine.reuse import refuse_not_whole
from gpuclust.errors import ModelError, StoreError
from gpuclust.results.run import open_run
from gpuclust.storage.record import read_record
from gpuclust.terminal import console
from tests.planted import planted

LENGTH = 15
SETTINGS: dict[str, Any] = {
    "select": {"sparsity_max": 2.0, "sparsity_min": 0.0}, "hdbscan": {"min_cluster_size": 4, "min_samples": 3},
    "quality": {"null": False, "random_sets": 2}, "consensus": {"members": 1}, "umap": {"n_neighbors": 10},
}  # fmt: skip
VALUES = planted(n_prompts=900, n_clusters=3, size=10, n_noise=15)[0].astype(np.float32)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> gpuclust.Run:
    """A run of windows of three tokens, every second of which was left out; nothing is known of texts."""
    folder = tmp_path_factory.mktemp("windows")
    row, own = np.arange(len(VALUES)), csr_array(VALUES)
    np.savez(
        folder / "a.npz", format="csr", shape=own.shape, indptr=own.indptr, indices=own.indices, data=own.data,
        prompt=row // LENGTH, position=row % LENGTH * 2,
    )  # fmt: skip
    settings = SETTINGS | {"extract": {"rows": "window", "window": 3}}
    return gpuclust.import_activations(folder / "a.npz", folder / "out", settings)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> gpuclust.Run:
    folder = tmp_path_factory.mktemp("prompts")
    save_npz(folder / "a.npz", csr_array(VALUES[:200]))
    return gpuclust.import_activations(folder / "a.npz", folder / "out", SETTINGS)


@pytest.mark.parametrize("what", ["windows", "prompts"])
def test_what_follows_from_imported_activations_is_planned(
    what: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    run: gpuclust.Run = request.getfixturevalue(what)
    assert cli.main(["run", "--reuse", str(run.path), "--plan"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    n = {"windows": 60, "prompts": 200}[what]
    assert f"{n} prompts × {VALUES.shape[1]} features (imported, a.npz)" in said
    assert "extract " not in said
    assert "language model" not in said
    assert "which took as long there" in said
    assert "not estimated" not in said


def test_settings_of_an_import_alone_are_no_run(prompts: gpuclust.Run, capsys: pytest.CaptureFixture[str]) -> None:
    config = prompts.path / schema.CONFIG
    for out in (prompts.path, prompts.path.parent / "new"):
        assert cli.main(["run", "--config", str(config), "--out", str(out)]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "activations that were imported from" in said
        assert "gpuclust run --reuse RUN" in said
    assert not (prompts.path.parent / "new").exists()
    with pytest.raises(ModelError, match="--reuse of that run plans"):
        show_plan(configfile.load(config, []), console(quiet=True), "threads")


@pytest.mark.parametrize("what", ["windows", "prompts"])
def test_a_sweep_takes_imported_activations(what: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: gpuclust.Run = request.getfixturevalue(what)
    vary: dict[str, Any] = {"hdbscan.min_cluster_size": [4, 5]}
    if what == "windows":
        vary = {"extract.rows": ["window", "prompt"]}
    sweep = {"base": str(run.path / schema.CONFIG), "seeds": 1, "vary": vary}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    given = ["sweep", str(tmp_path / "sweep.yaml"), "--reuse", str(run.path), "--out", str(tmp_path / "out")]
    for _ in range(2):  # the second finds all there
        assert cli.main([*given, "--scheduler", "threads", "--quiet"]) == 0
    table = pd.read_parquet(tmp_path / "out/sweep.parquet")
    assert table["error"].isna().all()
    first = table[table["setting"] == 0].iloc[0]
    assert first["clusters"] == (open_run(run.path).clusters["cluster"] >= 0).sum()


def test_a_sweep_of_other_settings_is_told_where_they_are(
    prompts: gpuclust.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"vary": {"hdbscan.min_cluster_size": [4, 5]}}))
    given = [str(tmp_path / "sweep.yaml"), "--reuse", str(prompts.path), "--out", str(tmp_path / "out")]
    assert cli.main(["sweep", *given]) == 2
    assert f"base: {prompts.path / schema.CONFIG}" in "".join(capsys.readouterr().err.split("\n"))


def test_activations_without_their_stage_are_refused(prompts: gpuclust.Run) -> None:
    stages = read_record(prompts.path / schema.RECORD)["stages"]
    refuse_not_whole(prompts.path, stages)
    with pytest.raises(StoreError, match="has no stage extract"):
        refuse_not_whole(prompts.path, {"prompts": stages["prompts"]})


def test_cards_without_texts_have_numbers_and_no_empty_lines(
    windows: gpuclust.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    own = windows.contexts[windows.contexts["cluster"] == 0]
    assert (own["text"] == "").all()
    assert (own["tokens"].map(len) == 3).all()
    best = own.iloc[0]
    told = f"prompt {best['prompt']}, a.npz, 3 tokens from position {best['position']} on"
    assert cli.main(["show", str(windows.path), "--cluster", "0"]) == 0
    said = capsys.readouterr().out
    assert told in " ".join(said.split())
    assert "\n\n\n" not in said
    html = windows.cluster(0)._repr_html_()
    assert told in html
    assert not re.search("<p><br>", html)


def test_missing_texts_of_observations_are_empty(tmp_path: Path) -> None:
    from gpuclust.extraction.group_files import _column

    column = {"values": np.array([b"a", b"", b"c"], object), "mask": np.array([False, True, False])}
    assert list(_column(tmp_path, "text", column)) == ["a", None, "c"]


def test_memory_that_an_extraction_would_take_is_not_asked_for(windows: gpuclust.Run, tmp_path: Path) -> None:
    given = ["--reuse", str(windows.path), "--out", str(tmp_path / "out"), "--scheduler", "threads", "--quiet"]
    more = ["device.memory=2.5GB", "extract.batch_tokens=100000000"]  # of which the extraction alone makes batches
    assert cli.main(["run", *given, "--no-report", "--set", *more]) == 0
