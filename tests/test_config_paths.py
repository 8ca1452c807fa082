"""Relative paths of configurations: next to the file first, then in the working directory; records hold none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import gpuclust
from gpuclust import cli, config_paths, configfile, schema
from gpuclust.errors import ConfigError
from gpuclust.sweep import grid
from tests import tiny


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder of the file, and the working directory."""
    beside, working = tmp_path / "beside", tmp_path / "working"
    for folder in (beside, working):
        folder.mkdir()
    monkeypatch.chdir(working)
    return beside, working


def model(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")


def load(folder: Path, data: dict[str, Any], *overrides: str) -> gpuclust.Config:
    (folder / "mine.yaml").write_text(yaml.safe_dump(data))
    return configfile.load(folder / "mine.yaml", overrides)


@pytest.mark.parametrize("key", ["sae", "prompts"])
def test_next_to_the_file_first_then_the_working_directory(folders: tuple[Path, Path], key: str) -> None:
    beside, working = folders

    def found(*overrides: str) -> str | None:
        config = load(
            beside, {"sae": {"path": "x.csv"}} if key == "sae" else {"prompts": [{"path": "x.csv"}]}, *overrides
        )
        return config.sae.path if key == "sae" else config.prompts[0].path

    assert found() == str(beside / "x.csv")  # nothing is there: the error says where it should be
    (working / "x.csv").touch()
    assert found() == str(working / "x.csv")
    (beside / "x.csv").touch()
    assert found() == str(beside / "x.csv")
    assert found("sae.path=x.csv" if key == "sae" else "prompts.0.path=x.csv") == str(working / "x.csv")
    (beside / schema.RECORD).touch()  # of a run: relative paths there were relative to the working directory
    assert found() == str(working / "x.csv")


def test_a_model_is_a_folder_where_there_is_one_else_of_the_hub(folders: tuple[Path, Path]) -> None:
    beside, working = folders
    data = {"model": {"name": "gpt2"}}
    (beside / "gpt2").mkdir()  # no model
    assert load(beside, data).model.name == "gpt2"
    model(working / "gpt2")
    assert load(beside, data).model.name == str(working / "gpt2")
    model(beside / "gpt2" / "deeper")
    shutil.copy(beside / "gpt2/deeper/config.json", beside / "gpt2")
    assert load(beside, data).model.name == str(beside / "gpt2")
    assert load(beside, data, "model.name=gpt2").model.name == str(working / "gpt2")
    assert load(beside, {"model": {"name": "./none"}}).model.name == str(beside / "none")
    assert load(beside, {"model": {"name": "demo"}}).model.name == "demo"
    assert load(beside, {"model": {"name": "../beside/gpt2"}}).model.name == str(beside / "gpt2")


@pytest.mark.parametrize("bad", ["s3://bucket/x", "", 3, None, ["x"]])
def test_what_is_no_path_is_refused_as_before(folders: tuple[Path, Path], bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"prompts"):
        load(folders[0], {"prompts": [{"path": bad}]})
    for odd in ({"prompts": "x"}, {"prompts": ["x"]}, {"sae": ["x"]}, {"model": "x"}):
        with pytest.raises(ConfigError):
            load(folders[0], odd)


def test_a_sweep_has_paths_next_to_its_file(folders: tuple[Path, Path]) -> None:
    beside, working = folders
    (beside / "mine.yaml").write_text(yaml.safe_dump({"prompts": [{"path": "a.txt"}], "umap": {"min_dist": 0.3}}))
    (beside / "b.txt").touch()
    (working / "a.txt").touch()
    vary = {"prompts.0.path": ["a.txt", "b.txt"], "prompts": [[{"path": "b.txt"}]], "umap.n_neighbors": [5]}
    (beside / "sweep.yaml").write_text(
        yaml.safe_dump({"base": "mine.yaml", "fixed": {"sae.path": "b.txt"}, "vary": vary})
    )
    sweep, base = grid.load(beside / "sweep.yaml", ["model.name=./m"])
    assert base["umap"]["min_dist"] == 0.3
    assert base["prompts"][0]["path"] == str(working / "a.txt")
    assert base["sae"]["path"] == str(beside / "b.txt")
    assert base["model"]["name"] == str(working / "m")
    (asked,) = sweep.questions["sweep"]
    assert asked.vary["prompts.0.path"] == [str(working / "a.txt"), str(beside / "b.txt")]
    assert asked.vary["prompts"] == [[{"path": str(beside / "b.txt")}]]
    (beside / "sweep.yaml").write_text(yaml.safe_dump({"base": {"sae": {"path": "b.txt"}}, "vary": vary}))
    assert grid.load(beside / "sweep.yaml")[1]["sae"]["path"] == str(beside / "b.txt")
    (beside / "sweep.yaml").write_text(yaml.safe_dump({"base": "none.yaml", "vary": vary}))
    with pytest.raises(ConfigError, match=f"cannot read the configuration {beside / 'none.yaml'}"):
        grid.load(beside / "sweep.yaml")


def stages(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / schema.RECORD).read_text())
    return {name: entry["finished"] for name, entry in found["stages"].items()}


@pytest.fixture
def written(folders: tuple[Path, Path]) -> tuple[Path, Path]:
    """A configuration of a tiny run with relative paths, and a place for the run."""
    beside, working = folders
    data = tiny.build(beside) | {"quality": {"halves": False, "null": False, "decoder": False, "random_sets": 0}}
    data |= {"model": {"name": "model"}, "sae": {"path": "sae"}, "cluster": {"method": "umap"}}
    data["prompts"][0]["path"] = "prompts.jsonl"
    (beside / "mine.yaml").write_text(yaml.safe_dump(data))
    return beside / "mine.yaml", working / "out"


def go(file: Path | None, out: Path, *more: str) -> int:
    config = [] if file is None else ["--config", os.path.relpath(file)]
    return cli.main(["run", *config, "--out", str(out), "--scheduler", "threads", "--quiet", "--no-report", *more])


def test_a_run_goes_on_from_any_directory(
    written: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written
    assert go(file, out) == 0
    recorded = yaml.safe_load((out / schema.CONFIG).read_text())
    assert recorded["prompts"][0]["path"] == str(file.parent / "prompts.jsonl")
    assert (recorded["model"]["name"], recorded["sae"]["path"]) == (
        str(file.parent / "model"),
        str(file.parent / "sae"),
    )
    before = stages(out)
    monkeypatch.chdir(tmp_path)
    shutil.copy(out / schema.CONFIG, tmp_path / "recorded.yaml")
    for config in (file, tmp_path / "recorded.yaml", out / schema.CONFIG):
        assert go(config, out) == 0
        assert stages(out) == before
    assert go(None, tmp_path / "new", "--reuse", str(out), "--set", "umap.n_neighbors=5") == 0
    file.write_text(file.read_text().replace("prompts.jsonl", "gone.jsonl"))
    capsys.readouterr()
    assert go(file, tmp_path / "other") == 2
    assert f"there is no prompt file {file.parent / 'gone.jsonl'}" in " ".join(capsys.readouterr().err.split())


def test_a_run_of_an_earlier_version_goes_on_where_it_was_begun(
    written: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written
    monkeypatch.chdir(file.parent)
    with monkeypatch.context() as earlier:
        earlier.setattr(config_paths, "lead", lambda key, value, folder=None: value)
        assert go(file, out) == 0
    before = stages(out)
    assert yaml.safe_load((out / schema.CONFIG).read_text())["sae"]["path"] == "sae"
    assert go(file, out) == 0
    assert stages(out) == before
    assert go(file, tmp_path / "new", "--reuse", str(out), "--set", "umap.n_neighbors=5") == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert go(file, out) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"model.name is 'model' there and '{file.parent / 'model'}' now" in said


def test_a_sweep_of_an_earlier_version_goes_on(
    written: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written
    monkeypatch.chdir(file.parent)
    sweep = file.parent / "sweep.yaml"
    asked = {"base": "mine.yaml", "seeds": 1, "vary": {"hdbscan.min_samples": [2, 3]}}
    sweep.write_text(yaml.safe_dump(asked))
    given = ["sweep", str(sweep), "--out", str(out), "--scheduler", "threads", "--quiet"]
    with monkeypatch.context() as earlier:
        earlier.setattr(config_paths, "lead", lambda key, value, folder=None: value)
        assert cli.main(given) == 0
    before = sorted(path.name for path in (out / "extractions").iterdir())
    capsys.readouterr()
    assert cli.main(given) == 0
    assert capsys.readouterr().out == f"{out}\n"  # what --quiet leaves
    assert sorted(path.name for path in (out / "extractions").iterdir()) == before
    record = json.loads((out / "sweep.json").read_text())
    assert record["computed"]["trials"] == 0
    assert record["base"]["umap.n_neighbors"] == 6  # where the base is no default of gpuclust
    assert not {"model.name", "sae.path", "prompts", "n_prompts"} & set(record["base"])


def test_a_runs_own_model_is_what_it_was(folders: tuple[Path, Path]) -> None:
    """An id of the hub in a record becomes no folder that happens to be here."""
    beside, working = folders
    (working / "gpt2").mkdir()
    (working / "gpt2/config.json").touch()
    (beside / schema.RECORD).touch()
    (beside / "config.yaml").write_text("model: {name: gpt2}")
    assert configfile.load(beside / "config.yaml").model.name == "gpt2"
    assert configfile.load(beside / "config.yaml", ["seed=3"]).model.name == "gpt2"
    assert configfile.load(beside / "config.yaml", ["model.name=./gpt2"]).model.name == str(working / "gpt2")
    (working / "sweep.yaml").write_text(f"base: {beside / 'config.yaml'}\nvary: {{seed: [1, 2]}}\n")
    assert grid.load(working / "sweep.yaml")[1]["model"]["name"] == "gpt2"


def test_another_spelling_of_the_same_place_is_the_same_run(folders: tuple[Path, Path]) -> None:
    beside, _ = folders
    (beside / "sae").mkdir()
    (beside.parent / "link").symlink_to(beside)
    known = {"sae": {"path": str(beside / "sae")}}
    here = {"sae": {"path": str(beside.parent / "link" / "sae")}}
    assert config_paths.as_recorded(here, known) == known
    assert config_paths.as_recorded({"sae": {"path": str(beside / "other")}}, known) != known
