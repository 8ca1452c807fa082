"""The time of a plan: from what a run has recorded, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import gpuclust
from gpuclust import cli, schema, stage_table
from gpuclust.configfile import validate
from gpuclust.engine.plan_time import UNKNOWN, estimate
from gpuclust.storage.record import read_record, write_record


@pytest.fixture
def earlier(small_run: Path, tmp_path: Path) -> Path:
    """A run of 60 prompts whose extraction did 30 tokens a second, and every other stage took 2 seconds."""
    folder = tmp_path / "earlier"
    folder.mkdir()
    for name in (schema.CONFIG, schema.RECORD):
        shutil.copy(small_run / name, folder / name)
    record = read_record(folder / schema.RECORD)
    for entry in record["stages"].values():
        entry["seconds"] = 2.0
    record["stages"]["extract"] |= {"tokens": 600, "rows": 60, "seconds": 10.0, "computed": {"tokens": 300}}
    write_record(folder / schema.RECORD, record)
    return folder


def settings(run: Path, **changed: Any) -> gpuclust.Config:
    return validate(gpuclust.open_run(run).config.resolved() | changed)


def test_the_same_run_takes_as_long(earlier: Path) -> None:
    said = estimate(settings(earlier), earlier)
    assert "20 s to extract 60 prompts, at 30 tokens a second" in said
    others = ", ".join(name for name in stage_table.NAMES if name != "extract")
    assert f"20 s for {others}, which took as long there" in said
    assert "not estimated" not in said
    said = estimate(settings(earlier), earlier, extracted=True)
    assert "extract" not in said
    assert "18 s for reduce, " in said


def test_more_prompts_take_longer_to_extract_and_the_rest_is_not_guessed(earlier: Path) -> None:
    said = estimate(settings(earlier, n_prompts=60_000), earlier)
    assert "333 min" not in said
    assert "6 h to extract 60,000 prompts, at 30 tokens a second" in said
    assert "what follows is not estimated: it took 18 s there, with 60 prompts" in said
    assert "as long there" not in said


def test_what_is_set_otherwise_is_not_estimated_nor_what_reads_it(earlier: Path) -> None:
    umap = gpuclust.open_run(earlier).config.resolved()["umap"] | {"random_state": 1}
    said = estimate(settings(earlier, umap=umap), earlier)
    assert "8.0 s for prompts, reduce, select, neighbors, which took as long there" in said
    assert said.endswith("set otherwise there or not done: embed, cluster, quality, validate, analyse, report")
    said = estimate(settings(earlier, max_tokens=20), earlier)
    assert "the extraction is not estimated: max_tokens differ there" in said
    assert "as long there" not in said


def test_the_last_few_shards_give_no_rate(earlier: Path) -> None:
    record = read_record(earlier / schema.RECORD)
    record["stages"]["extract"]["computed"] = {"tokens": 12}  # of 600, in seconds that are those of loading
    write_record(earlier / schema.RECORD, record)
    assert "the extraction is not estimated: the last command there did 2% of it" in estimate(
        settings(earlier), earlier
    )


def test_other_workers_give_no_rate(earlier: Path) -> None:
    said = estimate(settings(earlier), earlier, device="cuda")
    assert said == f"{UNKNOWN}{earlier} was computed by workers of cpu, and this would be by those of cuda"


@pytest.mark.parametrize("wrong", [{"seconds": "x"}, {"seconds": None}, {"computed": 3}, {"tokens": None}])
def test_an_edited_record_is_no_estimate(earlier: Path, wrong: dict[str, Any]) -> None:
    record = read_record(earlier / schema.RECORD)
    for name in ("extract", "reduce"):
        record["stages"][name] |= wrong
    write_record(earlier / schema.RECORD, record)
    assert UNKNOWN in estimate(settings(earlier), earlier) or "not estimated" in estimate(settings(earlier), earlier)


def test_no_run_is_no_estimate(earlier: Path, tmp_path: Path) -> None:
    config = settings(earlier)
    assert estimate(config, None).startswith(f"{UNKNOWN}give --out or --reuse")
    assert estimate(config, tmp_path / "none") == f"{UNKNOWN}{tmp_path / 'none'} holds no run to take rates from"
    (earlier / schema.RECORD).write_text("{")
    assert estimate(config, earlier).startswith(UNKNOWN)


def test_a_plan_says_the_time(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "run",
        "--plan",
        "--scheduler",
        "local",
        "--config",
        str(earlier / schema.CONFIG),
        "--set",
        "device.memory=6GB",
    ]
    assert cli.main([*given, "--out", str(earlier)]) == 0
    assert "20 s to extract 60 prompts" in " ".join(capsys.readouterr().out.split())
    assert cli.main(given) == 0
    assert UNKNOWN in " ".join(capsys.readouterr().out.split())


def test_a_plan_on_a_runs_activations_is_of_its_prompts(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not of as many as its configuration asked for."""
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    record = read_record(run / schema.RECORD)
    asked = record["config"] | {"n_prompts": 600}
    write_record(run / schema.RECORD, record | {"config": asked})
    (run / schema.CONFIG).write_text(yaml.safe_dump(asked))
    given = ["run", "--plan", "--scheduler", "local", "--set", "device.memory=6GB"]
    assert cli.main([*given, "--reuse", str(run)]) == 0
    assert "\n60 prompts × " in f"\n{capsys.readouterr().out}"  # whatever other tests have made of the log
    assert cli.main([*given, "--config", str(run / schema.CONFIG)]) == 0
    assert "\n600 prompts × " in f"\n{capsys.readouterr().out}"
