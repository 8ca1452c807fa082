"""A run's folder over time: files that go missing, other versions that made it or are asked to go on in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import xarray as xr
import yaml

import gpuclust
from gpuclust import compare, configfile, schema, stage_table
from gpuclust import run as command
from gpuclust.report import main as make_report
from gpuclust.results import report
from gpuclust.show import main as show
from gpuclust.stage_table import NAMES, STAGES
from gpuclust.storage import run_folder, store
from gpuclust.storage.record import write_record
from tests import tiny
from tests.planted import planted

TABLES = (
    schema.PROMPTS, schema.EXAMPLES, schema.SELECTED, schema.FEATURES, schema.CONDENSED_TREE, schema.QUALITY,
    schema.CLUSTERS, schema.CLUSTER_SIMILARITY, schema.THEMES, schema.EXAMPLE_SPANS,
)  # fmt: skip


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = tiny.build(tmp_path_factory.mktemp("tiny"))
    return found | {"quality": {"null": True, "decoder": False, "random_sets": 5}}


def go(where: Path, settings: dict[str, Any], *arguments: str, code: int = 0) -> Path:
    file, out = where / "config.yaml", where / "out"
    file.write_text(yaml.safe_dump(settings))
    given = ["--config", str(file), "--out", str(out), "--scheduler", "threads", "--quiet", *arguments]
    assert command.main(given) == code
    return out


@pytest.fixture(scope="module")
def original(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(tmp_path_factory.mktemp("finished"), settings)


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "out")
    return tmp_path / "out"


def entries(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / schema.RECORD).read_text())["stages"]
    return found


def tables(out: Path) -> dict[str, Any]:
    """Everything that the tables and stores of a run hold."""
    found: dict[str, Any] = {name: pd.read_parquet(out / name) for name in TABLES}
    for path in sorted(out.rglob("*.zarr")):
        found[str(path.relative_to(out))] = xr.open_zarr(path).load()
    return found


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert list(a) == list(b)
    for name, value in a.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, b[name], obj=name)
        else:
            xr.testing.assert_equal(value, b[name])


def contents(out: Path) -> dict[str, bytes]:
    """The bytes of all files but the lock."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name != schema.LOCK)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


# ---------------------------------------------------------------- files


@pytest.mark.slow
@pytest.mark.parametrize("umap", [True, False])
def test_whatever_is_deleted_is_made_again(settings: dict[str, Any], tmp_path: Path, umap: bool) -> None:
    settings = settings | {"cluster": {"method": "umap" if umap else "distances"}}
    config = configfile.validate(settings)
    out = go(tmp_path, settings)
    expected, before = tables(out), entries(out)
    written = {schema.CONFIG, schema.RECORD, schema.LOCK}
    opened = run_folder.Folder(out, config)
    for stage in STAGES:
        names = stage.writes(config)
        written |= set(names)
        assert list(before[stage.name]["files"]) == list(names)
        for name in names:  # each file is missed, and by its stage alone
            (out / name).rename(tmp_path / "away")
            undone = [s.name for s in STAGES if not opened.done(s.name, before[s.name]["key"], s.writes(config))]
            assert undone == [stage.name], name
            (tmp_path / "away").rename(out / name)
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    unknown = {path for path in there if not any(f"{path}/".startswith(f"{name}/") for name in written)}
    assert unknown == set(), "files that the stage table does not know"

    remove(out / schema.REPORT)
    go(tmp_path, settings)
    assert [name for name in NAMES if entries(out)[name] != before[name]] == ["report"]
    before.pop("report")
    for stage in STAGES[:-1]:  # what is missing comes out as it was, and from that stage on only
        for names in [[name] for name in stage.writes(config)] if stage.name == "extract" else [stage.writes(config)]:
            for name in names:
                remove(out / name)
            go(tmp_path, settings, "--no-report")
            after = entries(out)
            again = [name for name in NAMES[:-1] if after[name] != before[name]]
            assert again == list(stage_table.after(stage.name))[:-1], names
            assert_same(expected, tables(out))
            before = after


def test_a_file_that_is_missing_in_a_folder_is_missed(settings: dict[str, Any], finished: Path) -> None:
    expected = tables(finished)
    chunk = next(path for path in (finished / schema.NEIGHBORS / "indices" / "c").rglob("*") if path.is_file())
    chunk.unlink()  # zarr would read zeros
    go(finished.parent, settings, "--no-report")
    assert_same(expected, tables(finished))
    shard = finished / schema.ACTIVATIONS / "activations" / "c" / "1" / "0"
    shard.unlink()
    go(finished.parent, settings, "--no-report")
    assert entries(finished)["extract"]["shards_computed"] == 1
    assert_same(expected, tables(finished))


# ---------------------------------------------------------------- versions


def aged(out: Path, version: int = 1) -> None:
    """Rewrite the record as version 1 had it: other keys, and neither versions nor files of a stage."""
    record = json.loads((out / schema.RECORD).read_text())
    record["record_version"] = version
    for name, entry in record["stages"].items():
        for key in ("version", "versions", "files"):
            entry.pop(key)
        entry["key"] = f"old-{name}"
    write_record(out / schema.RECORD, record)


def test_a_folder_of_an_older_version_opens_and_is_reported(finished: Path, tmp_path: Path) -> None:
    aged(finished)
    run = gpuclust.open_run(finished)
    assert run.config.umap.n_components == 3
    assert repr(run).startswith(f"Run('{finished}', {tiny.N_PROMPTS} prompts, {tiny.D_SAE} features, ")
    assert len(run.clusters) == len(pd.read_parquet(finished / schema.CLUSTERS))
    assert show([str(finished)]) == 0
    (finished / schema.REPORT).unlink()
    assert make_report([str(finished)]) == 0
    assert (finished / schema.REPORT).exists()
    shutil.copytree(finished, tmp_path / "other")
    assert compare.main([str(finished), str(tmp_path / "other"), "--out", str(tmp_path / "compared")]) == 0


@pytest.mark.parametrize("done", [NAMES, NAMES[:4]])
def test_a_folder_of_an_older_version_is_not_gone_on_in(
    settings: dict[str, Any], finished: Path, done: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    aged(finished)
    record = json.loads((finished / schema.RECORD).read_text())
    record["stages"] = {name: record["stages"][name] for name in done}
    write_record(finished / schema.RECORD, record)
    before = contents(finished)
    go(finished.parent, settings, code=2)
    said = " ".join(capsys.readouterr().err.split())
    assert f"--out {finished} holds a run made by gpuclust" in said
    assert f"with record version 1, and this version (gpuclust {gpuclust.__version__}) goes on only with 2" in said
    assert "give another --out" in said
    assert contents(finished) == before


def test_a_record_of_a_newer_version_is_refused(
    settings: dict[str, Any], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((finished / schema.RECORD).read_text())
    write_record(finished / schema.RECORD, record | {"record_version": 7})
    before = contents(finished)
    words = "has record version 7, but this version of gpuclust reads up to 2"
    with pytest.raises(gpuclust.GpuclustError, match=words):
        _ = gpuclust.open_run(finished).record
    with pytest.raises(gpuclust.GpuclustError, match=words):
        report.write(finished)
    go(finished.parent, settings, code=2)
    assert words in " ".join(capsys.readouterr().err.split())
    assert contents(finished) == before


def test_every_stage_keeps_the_versions_that_made_it(
    settings: dict[str, Any], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_folder.versions()
    assert all(
        entry["versions"] == first and entry["version"] == stage_table.get(name).version
        for name, entry in entries(finished).items()
    )
    later = first | {"numpy": "99"}
    monkeypatch.setattr(run_folder, "versions", lambda: later)
    go(finished.parent, settings)  # computes nothing
    record = json.loads((finished / schema.RECORD).read_text())
    assert record["versions"] == later
    assert all(entry["versions"] == first for entry in record["stages"].values())
    (finished / schema.QUALITY).unlink()
    go(finished.parent, settings)
    made = {name: entry["versions"] for name, entry in entries(finished).items()}
    assert [name for name in NAMES if made[name] == later] == ["quality", "validate", "analyse", "report"]
    assert [name for name in NAMES if made[name] == first] == list(NAMES[:7])


def test_a_stage_of_an_older_algorithm_is_made_anew(
    settings: dict[str, Any], finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = entries(finished)
    cluster = stage_table.get("cluster")
    with monkeypatch.context() as patch:
        patch.setitem(stage_table._BY_NAME, "cluster", replace(cluster, version=cluster.version + 1))
        go(finished.parent, settings)
        after = entries(finished)
        assert [name for name in NAMES if after[name] != before[name]] == list(stage_table.after("cluster"))
        assert after["cluster"]["version"] == cluster.version + 1
    prompts = stage_table.get("prompts")
    monkeypatch.setitem(stage_table._BY_NAME, "prompts", replace(prompts, version=2))
    kept = contents(finished)
    go(finished.parent, settings, code=2)
    assert "the stage prompts was of version 1 there and is 2 now" in " ".join(capsys.readouterr().err.split())
    assert contents(finished) == kept


def test_another_sae_before_the_extraction_is_another_size(
    settings: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((finished / schema.RECORD).read_text())
    record["stages"] = {"prompts": record["stages"]["prompts"] | {"d_sae": 5}}  # as if it were another's
    write_record(finished / schema.RECORD, record)
    other = tmp_path / "sae"
    shutil.copytree(settings["sae"]["path"], other)
    changed = settings | {"sae": {"path": str(other)}}
    go(tmp_path, changed, code=2)  # there are shards of the first
    assert f"the SAE was {settings['sae']['path']} there and is {other} now" in " ".join(
        capsys.readouterr().err.split()
    )
    shutil.rmtree(finished / schema.ACTIVATIONS)
    shutil.rmtree(finished / schema.SHARDS)
    go(tmp_path, changed, "--no-report")
    assert store.open_array(finished / schema.ACTIVATIONS).shape[1] == tiny.D_SAE


@pytest.mark.parametrize("after", range(3))
def test_a_run_that_is_stopped_at_once_is_gone_on_with(
    after: int, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before or in the middle of the first files that it writes, whichever; also what was half written."""

    class Killed(BaseException):
        pass

    replace, calls = Path.replace, []

    def killed(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == after + 1:
            left = self.with_name(self.name.replace(str(os.getpid()), "1"))  # of another process
            left.write_bytes(self.read_bytes()[:-1])
            raise Killed
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with contextlib.suppress(Killed):
        go(tmp_path, settings)
    monkeypatch.undo()
    assert len(calls) > after
    go(tmp_path, settings)
    assert [path.name for path in (tmp_path / "out").rglob("*.tmp")] == []
    assert gpuclust.open_run(tmp_path / "out").record["stages"].keys() == set(NAMES)


def test_a_configuration_alone_is_not_taken_for_a_run(
    tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("# mine")
    go(tmp_path, settings, code=2)
    assert "holds no run (it has config.yaml)" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "out" / "config.yaml").read_text() == "# mine"


def test_a_run_without_its_configuration_says_so(
    finished: Path, tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "config.yaml").unlink()
    go(tmp_path, settings)  # the record has it too
    assert (tmp_path / "out" / "config.yaml").exists()
    record = json.loads((tmp_path / "out" / schema.RECORD).read_text())
    del record["config"]  # as older versions wrote it
    write_record(tmp_path / "out" / schema.RECORD, record)
    (tmp_path / "out" / "config.yaml").unlink()
    go(tmp_path, settings, code=2)
    assert "holds a run without its config.yaml" in " ".join(capsys.readouterr().err.split())


# ---------------------------------------------------------------- another setting without another extraction


def test_another_setting_takes_the_activations_of_a_finished_run(finished: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    again = ["--reuse", str(finished), "--out", str(tmp_path / "new" / "finer"), "--scheduler", "threads", "--quiet"]
    for _ in range(2):  # and resumes
        assert command.main([*again, "--set", "communities.resolution=7", "hdbscan.min_cluster_size=3"]) == 0
    made = tmp_path / "new" / "finer"
    assert {path: path.read_bytes() for path in before} == before
    old, new = (json.loads((folder / schema.RECORD).read_text())["stages"] for folder in (finished, made))
    assert new["extract"] == old["extract"]
    assert new["cluster"]["key"] != old["cluster"]["key"]
    settings = yaml.safe_load((made / schema.CONFIG).read_text())
    assert settings["communities"]["resolution"] == 7  # all else is the other's
    assert settings["prompts"] == yaml.safe_load((finished / schema.CONFIG).read_text())["prompts"]
    assert len(gpuclust.open_run(made).activations) == len(gpuclust.open_run(finished).activations)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "n_prompts=5"], "has other activations than are needed: n_prompts is"),
        (["--set", "extract.aggregate=mean"], "extract.aggregate is 'max' there and 'mean' here"),
        ([], "--reuse needs --out"),
    ],
)
def test_what_cannot_be_reused_is_refused_before_anything_is_written(
    finished: Path, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "new")] if more else []
    assert command.main(["--reuse", str(finished), *out, "--scheduler", "threads", *more]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["", "inner", "shards/inner"])
def test_what_is_reused_is_only_read(
    finished: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(finished.rglob("*"))
    assert command.main(["--reuse", str(finished), "--out", str(finished / place), "--scheduler", "threads"]) == 2
    assert "which is only read: give a folder beside it" in " ".join(capsys.readouterr().err.split())
    assert sorted(finished.rglob("*")) == before


def test_what_another_run_is_writing_is_left_alone(finished: Path, tmp_path: Path) -> None:
    """The folders of activations are links: leftovers there are not this run's."""
    writing = [finished / schema.SHARDS / "0.99999.tmp", finished / schema.ACTIVATIONS / "activations/c/9.99999.tmp"]
    (tmp_path / "new").mkdir()  # an empty folder is as good as none
    for _ in range(2):
        for path in writing:
            path.touch()
        assert command.main(["--reuse", str(finished), "--out", str(tmp_path / "new"), "--scheduler", "threads"]) == 0
        assert all(path.exists() for path in writing)


@pytest.mark.parametrize("damage", ["a shard", "all", "record"])
def test_activations_that_are_not_whole_are_not_reused(
    finished: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage == "a shard":
        next(path for path in (finished / schema.ACTIVATIONS / "activations/c").rglob("*") if path.is_file()).unlink()
    elif damage == "all":
        shutil.rmtree(finished / schema.ACTIVATIONS)
    else:
        (finished / schema.RECORD).unlink()
    for plan in ([], ["--plan"]):
        given = ["--reuse", str(finished), "--out", str(tmp_path / "new"), "--scheduler", "threads", *plan]
        assert command.main(given) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert ("there is no run" if damage == "record" else "its activations are not whole") in said
        assert not (tmp_path / "new").exists()


def test_a_plan_on_another_runs_activations_leaves_the_extraction_out(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for reused in (False, True):
        source = ["--reuse", str(finished)] if reused else ["--config", str(finished / schema.CONFIG)]
        assert command.main([*source, "--scheduler", "threads", "--plan"]) == 0
        said = capsys.readouterr().out
        assert ("extract " not in said, "disk:" not in said) == (reused, reused)
        assert "cluster " in said
    assert command.main(["--reuse", str(finished), "--scheduler", "threads", "--plan", "--set", "n_prompts=3"]) == 2


def test_texts_that_are_gone_are_not_needed_for_activations_that_are_there(
    finished: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    source = Path(settings["prompts"][0]["path"])
    moved = source.rename(tmp_path / "elsewhere")
    try:
        given = ["--reuse", str(finished), "--out", str(tmp_path / "new"), "--scheduler", "threads", "--quiet"]
        assert command.main(given) == 0
    finally:
        moved.rename(source)


def test_imported_activations_are_reused(tmp_path: Path) -> None:
    values, _ = planted(n_prompts=120, n_clusters=4, n_noise=20)
    cache = {"acts": torch.from_numpy(values), "prompts": [f"prompt {number}" for number in range(120)]}
    torch.save(cache, tmp_path / "cache.pt")
    settings = {"select": {"sparsity_max": 1.0}, "quality": {"null": False}}
    gpuclust.import_cache(tmp_path / "cache.pt", tmp_path / "imported", settings)
    given = ["--reuse", str(tmp_path / "imported"), "--out", str(tmp_path / "new"), "--scheduler", "threads"]
    assert command.main([*given, "--set", "hdbscan.min_cluster_size=8"]) == 0
    assert gpuclust.open_run(tmp_path / "new").config.hdbscan.min_cluster_size == 8


def test_a_folder_with_activations_of_its_own_is_left_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(finished, tmp_path / "own")
    assert command.main(["--reuse", str(finished), "--out", str(other), "--scheduler", "threads"]) == 2
    assert "not on the activations of --reuse" in " ".join(capsys.readouterr().err.split())


def test_of_two_sources_of_prompts_only_what_differs_is_named() -> None:
    here = {"prompts": [{"path": "a", "column": "text"}, {"path": "b", "column": "text"}], "seed": 0}
    there = {"prompts": ({"path": "a", "column": "text"}, {"path": "c", "column": "text"}), "seed": 0}
    assert run_folder.differences(here, there) == [("prompts.1.path", "b", "c")]
    one = {"prompts": here["prompts"][:1], "seed": 0}
    assert run_folder.differences(here, one) == [("prompts", here["prompts"], one["prompts"])]
