"""`gpuclust validate`: the command, its files and the cards, on runs whose truth is planted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

import gpuclust
from gpuclust import schema, show
from gpuclust.compute import controls
from gpuclust.compute.halves import half_of
from gpuclust.config import Config
from gpuclust.engine import held_out, validating
from gpuclust.errors import CorruptDataError
from gpuclust.storage import validated, verifying
from gpuclust.storage.record import write_record
from gpuclust.validate import main

N_PROMPTS, LENGTH, SIZE = 400, 24, 12
ON_A_TOKEN, IN_A_PROMPT = range(SIZE), range(SIZE, 2 * SIZE)


def tokens(n_noise: int = 60) -> np.ndarray:
    """(token, feature): a group that fires on the same tokens, one in the same prompts anywhere, and others."""
    rng = np.random.default_rng(0)
    values = np.zeros((N_PROMPTS, LENGTH, 2 * SIZE + n_noise), np.float32)
    own = rng.uniform(0.05, 0.3, values.shape[2])
    own[: 2 * SIZE] = 0.02
    values += (rng.random((N_PROMPTS, 1, len(own))) < own) & (rng.random(values.shape) < 0.1)
    loud = (rng.random((N_PROMPTS, 1)) < 0.2) & (rng.random((N_PROMPTS, LENGTH)) < 0.1)
    values[:, :, ON_A_TOKEN] += loud[:, :, None] & (rng.random((N_PROMPTS, LENGTH, SIZE)) < 0.8)
    topic = (rng.random((N_PROMPTS, 1)) < 0.2) & (rng.random((N_PROMPTS, SIZE)) < 0.8)
    at = rng.integers(0, LENGTH, (N_PROMPTS, SIZE))
    values[np.arange(N_PROMPTS)[:, None], at, np.arange(SIZE, 2 * SIZE)] += topic
    strength = rng.lognormal(0, 0.3, values.shape).astype(np.float32)
    return ((values > 0) * strength).reshape(N_PROMPTS * LENGTH, -1)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    rows = csr_array(tokens())
    np.savez(
        folder / "a.npz", format=b"csr", shape=rows.shape, data=rows.data, indices=rows.indices, indptr=rows.indptr,
        prompt=np.repeat(np.arange(N_PROMPTS), LENGTH),
    )  # fmt: skip
    settings = {"select": {"sparsity_max": 1.01}, "extract": {"rows": "token"}, "consensus": {"members": 4}}
    gpuclust.import_activations(folder / "a.npz", folder / "tokens", settings)
    from gpuclust import run

    out = folder / "out"
    told = ["--reuse", str(folder / "tokens"), "--out", str(out), "--scheduler", "threads", "--quiet"]
    assert run.main([*told, "--set", "extract.rows=prompt"]) == 0
    return out


@pytest.fixture
def out(planted: Path, tmp_path: Path) -> Path:
    shutil.copytree(planted, tmp_path / "out", symlinks=True)
    return tmp_path / "out"


def cluster_of(out: Path, group: range) -> int:
    label = gpuclust.open_run(out).features["label"].to_numpy()[list(group)]
    number, times = np.unique(label, return_counts=True)
    assert times.max() >= SIZE - 3
    return int(number[times.argmax()])


def test_what_is_planted_is_found(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(out)]) == 0
    said = capsys.readouterr().out
    assert "random mates" in said
    assert "on the same token" in said
    table = gpuclust.open_run(out).validation.set_index("cluster")
    assert list(table.reset_index().columns) == list(schema.VALIDATION_COLUMNS)
    assert table["size"].tolist() == np.bincount(
        gpuclust.open_run(out).features["label"].dropna().astype(int).loc[lambda label: label >= 0]
    ).tolist()  # fmt: skip
    for group, level in ((ON_A_TOKEN, "token"), (IN_A_PROMPT, "topic")):
        row = table.loc[cluster_of(out, group)]
        assert row["level"] == level
        assert row["prediction"] > 0.75 > 0.6 > row["prediction_random"]
        assert abs(row["prediction_words"] - 0.5) < 0.1  # equally long, of one source, without words
        assert row["prediction_low"] > 0.1
        assert row["prediction_q"] <= 0.01
    assert table.loc[cluster_of(out, ON_A_TOKEN), "token_low"] > 1.5
    assert table.loc[cluster_of(out, IN_A_PROMPT), "prompt_low"] > 1.5
    assert show.main([str(out), "--cluster", str(cluster_of(out, IN_A_PROMPT))]) == 0
    card = " ".join(capsys.readouterr().out.split())
    assert "told by mates in other prompts AUROC 0." in card
    assert "in the same prompt only" in card


def test_the_same_comes_out_again_and_of_other_slices(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gpuclust.open_run(out).validation
    monkeypatch.setattr(held_out, "CELLS", 7 * 84)
    validating.validate(out)
    validating.put_in_place(out)
    again = gpuclust.open_run(out).validation
    pd.testing.assert_frame_equal(first, again, rtol=1e-6)


def test_a_part_alone_leaves_the_others_as_they_are(out: Path) -> None:
    (out / schema.VALIDATION).unlink()
    facts = validating.validate(out, ["levels"], validating.Asked(3))
    assert facts["levels"]["draws"] == 3
    assert "prediction" not in facts
    table = pd.read_parquet(out / schema.VALIDATION)
    assert table["prediction"].isna().all()
    assert table["level"].notna().all()
    facts = validating.validate(out, ["prediction"], validating.Asked(4))
    assert facts["levels"]["draws"] == 3
    assert facts["prediction"]["draws"] == 4
    both = pd.read_parquet(out / schema.VALIDATION)
    assert both["prediction"].notna().all()
    assert both["level"].tolist() == table["level"].tolist()
    assert both["near_excess"].tolist() == table["near_excess"].tolist()


def test_some_prompts_are_taken_where_there_are_too_many(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(held_out, "MOST_CELLS", N_PROMPTS * 84 / 2)
    with caplog.at_level("INFO", "gpuclust"):
        facts = validating.validate(out, ["prediction"])
    assert abs(facts["prediction"]["prompts"] - N_PROMPTS / 2) <= N_PROMPTS / 10
    assert f"of {N_PROMPTS} prompts" in caplog.text


def test_levels_need_tokens_and_say_so(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    shutil.copytree(small_run, out)
    assert main([str(out), "--quiet"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(out / schema.VALIDATION)
    assert "left out levels" in caplog.text
    assert gpuclust.open_run(out).validation["level"].isna().all()
    assert main([str(out), "--levels"]) == 2
    assert "nothing of what is asked can be computed" in " ".join(capsys.readouterr().err.split())


def test_halves_that_were_not_clustered_are_named(out: Path) -> None:
    (out / schema.HALF_LABELS).unlink()
    facts = validating.validate(out)
    assert "did not keep the halves' clusters" in facts["left_out"]["prediction"]


@pytest.mark.parametrize("what", ["no run", "unfinished", "no clusters", "draws"])
def test_what_cannot_be_validated_is_refused(what: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more, words = [], {
        "no run": "no gpuclust run", "unfinished": "stage quality, which is not done", "no clusters": "has no clusters",
        "draws": "--draws is 1",
    }[what]  # fmt: skip
    if what == "no run":
        (out.parent / "else").mkdir()
        out = out.parent / "else"
    elif what == "draws":
        more = ["--draws", "1"]
    else:
        record = json.loads((out / schema.RECORD).read_text())
        if what == "unfinished":
            for name in ("quality", "validate", "analyse", "report"):
                del record["stages"][name]
        else:
            pd.read_parquet(out / schema.QUALITY)[:0].to_parquet(out / schema.QUALITY)
            record["stages"]["quality"]["checksums"].pop(schema.QUALITY)
        write_record(out / schema.RECORD, record)
    assert main([str(out), *more]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_of_other_clusters_or_damaged_it_counts_for_nothing(out: Path) -> None:
    stages = gpuclust.open_run(out).record["stages"]
    assert validated.kept(out, stages) is not None
    whole = (out / schema.VALIDATION).read_bytes()
    (out / schema.VALIDATION).write_bytes(whole[:-9])
    assert validated.kept(out, stages) is None
    with pytest.raises(CorruptDataError, match="not what the stage validate wrote"):
        _ = gpuclust.open_run(out).validation
    assert [damage.place for damage in verifying.damages(out)] == [schema.VALIDATION]
    (out / schema.VALIDATION).write_bytes(whole)
    assert len(gpuclust.open_run(out).validation)
    stages["cluster"]["key"] = "another"
    assert validated.kept(out, stages) is None


@pytest.mark.parametrize("what", ["table", "facts", "clusters"])
def test_what_only_the_command_makes_is_not_lost_without_a_word(
    what: str, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = gpuclust.open_run(out).record["stages"]
    table, facts = validated.kept(out, stages) or (pd.DataFrame(), {})
    validated.write(out, stages, table, facts | {"cause": {"amplify": 0}})
    assert validated.kept(out, stages) is not None
    assert "Lost with it" not in caplog.text
    if what == "clusters":
        stages["cluster"]["key"] = "another"
    else:
        (out / {"table": schema.VALIDATION, "facts": schema.VALIDATION_FACTS}[what]).write_bytes(b"{")
    assert validated.kept(out, stages) is None
    assert "Lost with it: cause" in caplog.text


def test_it_goes_on_after_it_was_killed(out: Path) -> None:
    """Between the table of what was found and its record."""
    validating.validate(out, ["levels"], validating.Asked(3))
    assert main([str(out), "--prediction", "--draws", "4"]) == 0
    assert verifying.damages(out) == []
    facts = gpuclust.open_run(out).validation_facts
    assert (facts["levels"]["draws"], facts["prediction"]["draws"]) == (3, 4)


def test_the_run_has_it_and_the_command_keeps_the_folder_whole(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = gpuclust.open_run(out)
    own = run.clusters.set_index("cluster").drop(schema.NOISE)
    for name in ("prediction", "near_excess", "level", "evidence", "evidence_reason"):
        assert own[name].tolist() == run.validation[name].tolist()
    assert run.clusters.set_index("cluster").loc[schema.NOISE, ["prediction", "level", "evidence"]].isna().all()
    assert run.record["stages"]["validate"]["evidence"] == run.validation["evidence"].value_counts().to_dict()
    before = (out / schema.CLUSTERS).read_bytes()
    assert main([str(out), "--prediction", "--draws", "3"]) == 0
    assert "all in all: " in capsys.readouterr().out
    assert (out / schema.CLUSTERS).read_bytes() != before
    assert verifying.damages(out) == []
    fresh = gpuclust.open_run(out)
    changed = fresh.clusters.set_index("cluster").drop(schema.NOISE)
    assert changed["prediction_q"].tolist() == fresh.validation["prediction_q"].tolist()
    assert changed["prediction_q"].tolist() != own["prediction_q"].tolist()


def test_rows_are_those_that_the_clusters_were_not_chosen_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six features that go together in one half of the prompts only, where a clustering of that half finds them."""
    rng = np.random.default_rng(0)
    half = half_of(800, 0)
    loud = rng.random((800, 1)) < 0.4
    fires = rng.random((800, 90)) < 0.4
    fires[:, :6] = np.where((half == 0)[:, None], loud & (rng.random((800, 6)) < 0.9), fires[:, :6])
    features = pd.DataFrame({"feature": range(90), "n_active": fires.sum(axis=0), "mean": fires.mean(axis=0)})
    features["label"] = np.where(np.arange(90) < 6, 0, -1)
    prompts = pd.DataFrame({"n_tokens": np.full(800, 9), "source": "one"})
    rows = csr_array(fires.astype(np.float32))
    nothing = np.zeros(0, np.int64)
    monkeypatch.setattr(
        held_out, "_read", lambda run: iter([(np.arange(800), rows, nothing, nothing, np.zeros(800, np.int64))])
    )
    label = features["label"].to_numpy()
    exchanged = controls.exchanged(label, features["n_active"].to_numpy(), 4, 0)
    plan: Any = None
    for found_in, expected in ((0, 0.5), (1, 0.75)):
        halves = np.stack([label if side == found_in else np.full(90, -1) for side in (0, 1)])
        subject = held_out.Subject(Path("none"), Config(), plan, features, prompts, halves, exchanged)
        columns, _ = held_out.predict(subject)
        # found in half 1, they are tried on half 0, where they do go together; noise of the other half counts as 0.5
        assert columns["prediction"][0] == pytest.approx(expected, abs=0.05)
