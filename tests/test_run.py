"""Whole runs on a tiny model: the contract of the folder, resuming, bad input, the same numbers however cut."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml
from filelock import FileLock

import gpuclust
from gpuclust import notebook_cache, schema, stage_table, terminal
from gpuclust import run as command
from gpuclust.config_sections import SaeConfig
from gpuclust.export import main as export
from gpuclust.extraction import encoders
from gpuclust.extraction import weights as loading
from gpuclust.show import main as show
from gpuclust.storage import keys, markers, store
from gpuclust.storage.record import write_record
from gpuclust.storage.run_folder import claim
from tests import tiny


def go(folder: Path, settings: dict[str, Any], *arguments: str, name: str = "out", scheduler: str = "threads") -> Path:
    code = attempt(folder, settings, *arguments, name=name, scheduler=scheduler)
    assert code == 0
    return folder / name


def attempt(
    folder: Path, settings: dict[str, Any], *arguments: str, name: str = "out", scheduler: str = "threads"
) -> int:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    out = folder / name
    return command.main(["--config", str(file), "--out", str(out), "--scheduler", scheduler, "--quiet", *arguments])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def finished(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(tmp_path_factory.mktemp("finished"), settings)


def results(out: Path) -> dict[str, Any]:
    features = pd.read_parquet(out / schema.FEATURES)
    neighbors = xr.open_zarr(out / schema.NEIGHBORS)
    return {
        "activations": xr.open_zarr(out / schema.ACTIVATIONS)["activations"].values,
        "features": features,
        "labels": features["label"].to_numpy(dtype=float, na_value=np.nan),
        "indices": neighbors["indices"].values,
        "distances": neighbors["distances"].values,
        "clusters": pd.read_parquet(out / schema.CLUSTERS),
    }


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    for name in ("indices", "distances", "labels"):
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for name in ("n_active", "kept", "quadrant"):
        assert a["features"][name].equals(b["features"][name]), name
    for name in ("entropy", "varentropy", "sparsity", "mean", "std", "max"):
        np.testing.assert_allclose(a["features"][name], b["features"][name], rtol=1e-6, err_msg=name)


def test_every_file_of_the_contract_is_there(finished: Path) -> None:
    for name in (
        "config.yaml", "run.json", "activations.zarr", "prompts.parquet", "features.parquet", "neighbors.zarr",
        "embedding.zarr", "clusters.parquet", "cluster_activations.zarr", "cluster_similarity.parquet", "report.html",
    ):  # fmt: skip
        assert (finished / name).exists(), name
    stored = xr.open_zarr(finished / "activations.zarr")
    assert stored["activations"].dims == ("prompt", "feature")
    assert stored["activations"].shape == (tiny.N_PROMPTS, tiny.D_SAE)
    assert stored["activations"].dtype == np.float16
    assert stored.attrs["hook_name"] == tiny.HOOK
    assert {"model", "sae", "aggregate", "prompts_sha256"} <= set(stored.attrs)


@pytest.mark.parametrize(
    ("file", "columns"),
    [
        (schema.PROMPTS, schema.PROMPT_COLUMNS), (schema.FEATURES, schema.FEATURE_COLUMNS),
        (schema.EXAMPLES, schema.EXAMPLE_COLUMNS), (schema.CLUSTERS, schema.CLUSTER_COLUMNS),
        (schema.CLUSTER_SIMILARITY, schema.SIMILARITY_COLUMNS), (schema.THEMES, schema.THEME_COLUMNS),
        (schema.EXAMPLE_SPANS, schema.SPAN_COLUMNS),
    ],
)  # fmt: skip
def test_tables_have_their_columns(finished: Path, file: str, columns: dict[str, Any]) -> None:
    table = pd.read_parquet(finished / file)
    assert list(columns) == [name for name in table.columns if name in columns]
    for name, (dtype, _) in columns.items():
        if "<" not in dtype:
            expected = "str" if dtype == "string" else dtype
            assert str(table[name].dtype) in (expected, "object" if dtype == "string" else expected), name


def test_features_and_clusters_agree(finished: Path) -> None:
    run = gpuclust.open_run(finished)
    features, clusters = run.features, run.clusters
    assert len(features) == tiny.D_SAE
    kept = features[features["kept"]]
    assert kept["label"].notna().all()
    assert features.loc[~features["kept"], ["label", "x", "quadrant"]].isna().all().all()
    for row in clusters.to_dict("records"):
        members = kept.loc[kept["label"] == row["cluster"], "feature"]
        assert sorted(row["features"]) == members.tolist()
        assert row["ratio"] == pytest.approx(len(members) / len(kept))
        if row["cluster"] == schema.NOISE:
            assert row["top_prompts"] is None
            continue
        block = np.abs(run.activations.values[:, members].astype(np.float64))
        assert row["mean_activation"] == pytest.approx(block.mean(), rel=1e-6)
        assert row["std_activation"] == pytest.approx(block.std(), rel=1e-6)
        assert row["max_activation"] == pytest.approx(block.max())
        per_prompt = block.mean(axis=1)
        np.testing.assert_allclose(run.cluster_activations.sel(cluster=row["cluster"]), per_prompt, rtol=1e-9)
        top = [prompt["prompt"] for prompt in row["top_prompts"]]
        assert top == np.lexsort((np.arange(len(per_prompt)), -per_prompt))[: len(top)].tolist()
    assert clusters["size"].sum() == len(kept)


def test_neighbors_are_in_the_saes_numbers(finished: Path) -> None:
    run = gpuclust.open_run(finished)
    kept = run.features.loc[run.features["kept"], "feature"].to_numpy()
    np.testing.assert_array_equal(run.neighbors["feature"], kept)
    np.testing.assert_array_equal(run.neighbors["indices"][:, 0], kept)
    assert np.isin(run.neighbors["indices"], kept).all()


def test_examples_point_at_the_peak_token(finished: Path, settings: dict[str, Any]) -> None:
    import torch

    from gpuclust.configfile import validate
    from gpuclust.extraction import encoders

    run = gpuclust.open_run(finished)
    encoder = encoders.load_encoder(validate(settings))
    for row in run.examples[run.examples["rank"] == 0].head(20).to_dict("records"):
        tokens = run.prompts["tokens"][row["prompt"]]
        ids = torch.tensor([[encoder.tokenizer.bos_token_id, *tokens]])
        acts = encoder.encode(ids, torch.ones_like(ids))[0, 1:, row["feature"]]
        assert row["position"] == int(acts.argmax())
        assert row["value"] == pytest.approx(float(acts.max()), rel=1e-3)


def test_same_command_again_computes_nothing(finished: Path, settings: dict[str, Any]) -> None:
    before = (finished / schema.RECORD).read_text()
    assert attempt(finished.parent, settings) == 0
    assert (finished / schema.RECORD).read_text() == before


def test_two_runs_are_equal(finished: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    again = results(go(tmp_path, settings))
    assert_same(results(finished), again)
    np.testing.assert_array_equal(results(finished)["activations"], again["activations"])


def test_a_killed_extraction_goes_on_where_it_was(finished: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    half_extracted(out)
    go(tmp_path, settings)
    after = json.loads((out / schema.RECORD).read_text())["stages"]["extract"]
    assert (after["shards"], after["shards_computed"]) == (4, 1)
    assert_same(results(finished), results(out))


def test_missing_or_other_states_are_recomputed(finished: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / schema.SHARDS / "00002.npz").unlink()
    states = dict(np.load(out / schema.SHARDS / "00000.npz"))
    states["threshold"] = np.float64(99)
    np.savez(out / schema.SHARDS / "00000.npz", **states)
    record = json.loads((out / schema.RECORD).read_text())
    for name in stage_table.NAMES[2:]:
        record["stages"].pop(name, None)
    write_record(out / schema.RECORD, record)
    go(tmp_path, settings)
    assert json.loads((out / schema.RECORD).read_text())["stages"]["reduce"]["shards_recomputed"] == 2
    assert_same(results(finished), results(out))


@pytest.mark.parametrize("memory", ["3.4GB", "40GB"])
@pytest.mark.parametrize("chunks", [{"chunk_prompts": 5, "chunk_features": 7, "shard_prompts": 10}, {"codec": "zstd"}])
def test_chunks_and_memory_change_no_number(
    finished: Path, settings: dict[str, Any], tmp_path: Path, memory: str, chunks: dict[str, Any]
) -> None:
    changed = settings | {"store": settings["store"] | chunks, "device": {"memory": memory}}
    assert_same(results(finished), results(go(tmp_path, changed)))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_number(
    finished: Path, settings: dict[str, Any], tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuclust.hardware.budget.TILE", 32)
    changed = settings | {"scheduler": {"n_workers": workers}}
    out = go(tmp_path, changed, scheduler="local")
    assert_same(results(finished), results(out))
    record = json.loads((out / schema.RECORD).read_text())
    assert record["scheduler"]["name"] == "local"
    assert record["stages"]["neighbors"]["tiles"] > 1
    assert len(record["stages"]["extract"]["peak_bytes"]) == workers + 1


def test_batches_and_shards_move_activations_by_rounding_at_most(
    finished: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    other = settings | {
        "extract": {"batch_tokens": 50},
        "store": settings["store"] | {"shard_prompts": 60, "chunk_prompts": 60},
    }
    a, b = results(finished)["activations"], results(go(tmp_path, other))["activations"]
    np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=2**-10, atol=2e-3)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_without_umap_hdbscan_is_exact(settings: dict[str, Any], tmp_path: Path, metric: str) -> None:
    import hdbscan
    from sklearn.metrics import adjusted_rand_score

    changed = settings | {
        "cluster": {"method": "distances"},
        "hdbscan": {"min_cluster_size": 2, "min_samples": 1, "metric": metric},
    }
    out = go(tmp_path, changed)
    got = results(out)
    kept = got["features"]["kept"].to_numpy()
    columns = got["activations"][:, kept].astype(np.float64)
    unit = columns / np.linalg.norm(columns, axis=0)
    distances = np.clip(1 - unit.T @ unit, 0, None)
    np.fill_diagonal(distances, 0)
    same = {"min_cluster_size": 2, "min_samples": 1, "cluster_selection_epsilon": 0.01}
    if metric == "cosine":
        expected = hdbscan.HDBSCAN(**same, metric="precomputed").fit_predict(distances)
    else:
        expected = hdbscan.HDBSCAN(**same, algorithm="prims_kdtree").fit_predict(unit.T)
    assert adjusted_rand_score(expected, got["labels"][kept]) == 1
    assert expected.max() >= 1
    assert got["features"].loc[kept, ["x", "y"]].notna().all().all()


def test_sketched_neighbors_keep_the_contract(finished: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    sketched = settings | {"neighbors": {"method": "sketch", "sketch_size": 512}}
    out = go(tmp_path, sketched, "--no-report")
    exact, got = results(finished), results(out)
    assert json.loads((out / schema.RECORD).read_text())["stages"]["neighbors"]["method"] == "sketch"
    assert got["indices"].shape == exact["indices"].shape
    np.testing.assert_array_equal(got["indices"][:, 0], exact["indices"][:, 0])
    assert (np.diff(got["distances"][:, 1:], axis=1) >= 0).all()
    shared = [len(set(a[1:]) & set(b[1:])) / 5 for a, b in zip(got["indices"], exact["indices"], strict=True)]
    assert np.mean(shared) > 0.3  # chance is 5/95


def test_what_the_stored_dtype_loses_and_what_may_cancel_is_said(settings: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(Path(settings["sae"]["path"]) / "sae_weights.safetensors")
    sae = tmp_path / "sae"
    shutil.copytree(settings["sae"]["path"], sae)
    scale = np.float32(3e-8)
    save_file(weights | {n: weights[n] * scale for n in ("W_enc", "b_enc")}, sae / "sae_weights.safetensors")
    out = go(tmp_path, settings | {"sae": {"path": str(sae)}}, "--no-report")
    record = json.loads((out / schema.RECORD).read_text())
    assert record["stages"]["reduce"]["underflowed"] > 0
    assert any("too small for store.dtype=float16" in text for text in record["warnings"])


@pytest.mark.parametrize("how", ["mean", "sum", "last"])
def test_aggregates(settings: dict[str, Any], tmp_path: Path, how: str) -> None:
    import torch

    from gpuclust.configfile import validate
    from gpuclust.extraction import encoders, extract_shard

    config = validate(settings | {"extract": {"aggregate": how}})
    encoder = encoders.load_encoder(config)
    tokens = [np.array([5, 9, 30, 7]), np.array([8])]
    got, _ = extract_shard.aggregate_prompts(encoder, tokens, config)
    for row, part in zip(got, tokens, strict=True):
        ids = torch.tensor([[encoder.tokenizer.bos_token_id, *part.tolist()]])
        acts = encoder.encode(ids, torch.ones_like(ids))[0, 1:].double()
        expected = {"mean": acts.mean(0), "sum": acts.sum(0), "last": acts[-1]}[how]
        np.testing.assert_allclose(row, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_special_tokens_are_left_out_unless_asked(settings: dict[str, Any]) -> None:
    import torch

    from gpuclust.configfile import validate
    from gpuclust.extraction import encoders, extract_shard

    config = validate(settings | {"extract": {"exclude_special_tokens": False}})
    encoder = encoders.load_encoder(config)
    bos = encoder.tokenizer.bos_token_id
    tokens = [np.array([5, bos, 30, 7])]
    ids = torch.tensor([[bos, *tokens[0].tolist()]])
    acts = encoder.encode(ids, torch.ones_like(ids))[0]
    everything, _ = extract_shard.aggregate_prompts(encoder, tokens, config)
    np.testing.assert_allclose(everything[0], acts.max(0).values, rtol=1e-5, atol=1e-5)
    without, _ = extract_shard.aggregate_prompts(encoder, tokens, validate(settings))
    np.testing.assert_allclose(without[0], acts[[1, 3, 4]].max(0).values, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- bad input


def broken(settings: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    section, _, key = where.partition(".")
    changed = value if not key else {**settings.get(section, {}), key: value}
    return settings | {section: changed}


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        ("umap.n_component", 3, ["unknown key umap.n_component", "did you mean umap.n_components?"]),
        ("sae.hook_name", "blocks.1.hook_nothing", ["blocks.1.hook_nothing"]),
        ("sae.path", "/nowhere", ["/nowhere"]),
        ("model.name", "/nowhere/model", ["/nowhere/model"]),
        ("prompts", [{"path": "/nowhere.txt"}], ["there is no prompt file /nowhere.txt"]),
        (
            "select.entropy_low",
            14.0,
            ["keeps 0 of 96 features", "need at least 7", "entropy > 14 removes 96"],
        ),
        ("analyse.labeller", "no.module:f", ["analyse.labeller is no.module:f, which cannot be imported"]),
        ("device.memory", "1GB", ["stage extract needs", "device.memory allows 1.00 GB", "Raise device.memory"]),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    where: str,
    value: Any,
    words: list[str],
) -> None:
    assert attempt(tmp_path, broken(settings, where, value)) == 2
    said = " ".join(capsys.readouterr().err.split())
    for word in words:
        assert word in said
    assert said.count("error:") == 1
    assert "Traceback" not in said


def test_out_that_holds_another_run_is_left_alone(
    finished: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / schema.CONFIG).read_text()
    assert attempt(finished.parent, settings | {"seed": 9}) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "holds another run: seed is 0 there and 9 now" in said
    assert (finished / schema.CONFIG).read_text() == before


def test_settings_that_an_older_version_did_not_know_had_their_defaults(
    finished: Path, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    file = tmp_path / "out" / schema.RECORD
    record = json.loads(file.read_text())
    del record["config"]["validation"], record["config"]["analyse"]["top_contexts"], record["stages"]["validate"]
    write_record(file, record)
    assert attempt(tmp_path, settings | {"validation": {"draws": 3}}) == 2
    assert "validation.draws is 8 there and 3 now" in " ".join(capsys.readouterr().err.split())
    assert attempt(tmp_path, settings) == 0
    assert "validate" in json.loads(file.read_text())["stages"]


def test_settings_of_stages_to_come_may_change(settings: dict[str, Any], tmp_path: Path) -> None:
    assert attempt(tmp_path, broken(settings, "sae.path", "/nowhere")) == 2  # a typing error spoils nothing
    assert attempt(tmp_path, broken(settings, "select.entropy_low", 14.0)) == 2
    before = json.loads((tmp_path / "out" / schema.RECORD).read_text())["stages"]["extract"]
    out = go(tmp_path, settings)
    assert json.loads((out / schema.RECORD).read_text())["stages"]["extract"] == before


def half_extracted(out: Path) -> None:
    """Make a finished run look as if its extraction had been killed."""
    (out / schema.SHARDS / "00001.json").unlink()
    record = json.loads((out / schema.RECORD).read_text())
    record["stages"] = {"prompts": record["stages"]["prompts"]}
    write_record(out / schema.RECORD, record)


@pytest.mark.parametrize("how", ["setting", "weights"])
def test_shards_of_another_extraction_are_neither_mixed_nor_lost(
    settings: dict[str, Any], tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = tmp_path / "sae"
    shutil.copytree(settings["sae"]["path"], sae)
    mine = settings | {"sae": {"path": str(sae)}}
    out = go(tmp_path, mine)
    half_extracted(out)
    if how == "setting":
        mine = mine | {"store": settings["store"] | {"dtype": "float32"}}
    else:
        weights = sae / "sae_weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert attempt(tmp_path, mine) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "holds 3 shards that were computed with other settings, prompts or weights" in said
    assert markers.shards_done(out / schema.SHARDS) == 3


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_finished_run_outlives_its_prompt_file(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    prompts = tmp_path / "mine.jsonl"
    shutil.copy(settings["prompts"][0]["path"], prompts)
    mine = settings | {"prompts": [settings["prompts"][0] | {"path": str(prompts)}]}
    out = go(tmp_path, mine)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.suffix in (".json", ".parquet")}
    if how == "gone":
        prompts.rename(tmp_path / "away.jsonl")
    else:
        prompts.write_text(prompts.read_text() + '{"text": "one more", "source": "me"}\n')
    assert attempt(tmp_path, mine) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert ("there is no prompt file" if how == "gone" else "mine.jsonl has changed") in said
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_tables_are_said(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    table = out / schema.CLUSTERS
    if damage == "cut":
        table.write_bytes(table.read_bytes()[:1000])
    else:
        table.unlink()
    assert show([str(out)]) == (1 if damage == "cut" else 2)
    said = " ".join(capsys.readouterr().err.split())
    assert "The run's own command makes" in said
    assert "Traceback" not in said


def test_a_run_that_is_being_computed_is_not_called_damaged(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    record = json.loads((out / schema.RECORD).read_text())
    del record["stages"]["analyse"]
    write_record(out / schema.RECORD, record)
    for there in (True, False):
        with FileLock(out / schema.LOCK):  # as another process holds it
            for asked in ([], ["--clusters"], ["--cluster", "0"]):
                assert show([str(out), *asked]) == 2
                said = " ".join(capsys.readouterr().err.split())
                assert "a process is computing in that folder" in said
                assert "own command" not in said
        assert show([str(out)]) == 2
        assert "own command makes" in " ".join(capsys.readouterr().err.split())
        if there:
            (out / schema.CLUSTERS).unlink()


def test_places_that_cannot_be_written_are_refused(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert command.main(["--config", str(config), "--out", str(tmp_path / "file" / "sub")]) == 2
    assert "nothing can be written to --out" in " ".join(capsys.readouterr().err.split())


def test_a_full_disk_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/runs/x")

    assert terminal.exit_code(full) == 1
    assert "cannot write /runs/x: No space left on device. What is computed stays" in capsys.readouterr().err

    def large() -> None:
        raise OSError(errno.EFBIG, "File too large", "/runs/x")

    assert terminal.exit_code(large) == 1
    assert "cannot write /runs/x: File too large" in capsys.readouterr().err

    def many() -> None:
        raise OSError(errno.EMFILE, "Too many open files", "/runs/x")

    assert terminal.exit_code(many) == 1
    assert "too many open files, at /runs/x. Raise the limit (ulimit -n" in " ".join(capsys.readouterr().err.split())

    def broken() -> None:
        raise OSError("something else")

    with pytest.raises(OSError, match="something else"):
        terminal.exit_code(broken)


def test_more_features_asked_for_than_the_sae_has(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = settings | {"hdbscan": settings["hdbscan"] | {"min_cluster_size": 5000}}
    assert attempt(tmp_path, large) == 2
    assert "need at least 5001 features, but the SAE has 96: lower them" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / schema.ACTIVATIONS).exists()


def test_the_key_of_hub_weights_is_not_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keys.weights_state("sae", None) is None
    assert keys.weights_state("model", "EleutherAI/pythia-70m-deduped") is None
    assert list(keys.weights_state("sae", SaeConfig(path="~").path)) == ["notes.txt"]


def test_a_hub_that_moved_on_is_not_mixed_in(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = go(tmp_path, settings)
    half_extracted(out)
    attributes = json.loads((out / schema.ACTIVATIONS / "zarr.json").read_text())
    assert attributes["attributes"]["model_commit"] is None  # a local folder
    attributes["attributes"]["model_commit"] = "a" * 40
    (out / schema.ACTIVATIONS / "zarr.json").write_text(json.dumps(attributes))
    record = json.loads((out / schema.RECORD).read_text())
    record["stages"]["prompts"]["attributes"]["model_commit"] = "a" * 40
    write_record(out / schema.RECORD, record)
    monkeypatch.setattr(loading, "commits", lambda model, sae: {"model_commit": "b" * 40, "sae_commit": None})
    encoders.release()
    assert attempt(tmp_path, settings) == 2
    encoders.release()
    said = " ".join(capsys.readouterr().err.split())
    assert f"at commit {'b' * 40} of the hub" in said
    assert f"began with {'a' * 40}" in said
    assert markers.shards_done(out / schema.SHARDS) == 3


def test_a_stage_made_anew_takes_the_later_ones_with_it(settings: dict[str, Any], tmp_path: Path) -> None:
    out = go(tmp_path, settings)
    record = json.loads((out / schema.RECORD).read_text())
    record["stages"]["select"]["key"] = "old"
    write_record(out / schema.RECORD, record)
    shutil.rmtree(out / schema.NEIGHBORS)
    go(tmp_path, settings)
    after = json.loads((out / schema.RECORD).read_text())["stages"]
    assert list(after) == list(stage_table.NAMES)
    assert after["extract"] == record["stages"]["extract"]


def test_out_is_for_one_process_at_a_time(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with claim(tmp_path / "out"):
        assert attempt(tmp_path, settings) == 2
    assert "another process is computing in" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [schema.LOCK]


def test_out_that_holds_something_else_is_left_alone(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("mine: 1")
    assert attempt(tmp_path, settings) == 2
    assert "is not empty and holds no run (it has config.yaml)" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "out" / "config.yaml").read_text() == "mine: 1"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.yaml"]


def test_more_prompts_than_data_warns(settings: dict[str, Any], tmp_path: Path) -> None:
    out = go(tmp_path, settings | {"n_prompts": 500}, "--no-report")
    record = json.loads((out / schema.RECORD).read_text())
    assert any("n_prompts is 500, but the data has 60 usable prompts" in text for text in record["warnings"])
    assert not (out / schema.REPORT).exists()


def test_only_noise_is_a_result(settings: dict[str, Any], tmp_path: Path) -> None:
    out = go(tmp_path, settings | {"hdbscan": {"min_cluster_size": 60, "min_samples": 60}})
    run = gpuclust.open_run(out)
    assert run.clusters["cluster"].tolist() == [schema.NOISE]
    assert (run.features["label"].dropna() == schema.NOISE).all()
    assert run.record["warnings"]
    assert (out / schema.REPORT).exists()


def test_nan_from_a_model_is_refused(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(settings["model"]["name"], model)
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.mlp.dense_4h_to_h.bias"))
    weights[name][:] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert attempt(tmp_path, settings | {"model": {"name": str(model)}}) == 2
    assert "gives NaN or infinity" in " ".join(capsys.readouterr().err.split())


def test_a_token_that_the_model_does_not_know_is_refused_before_extraction(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import PreTrainedTokenizerFast

    model = tmp_path / "model"
    shutil.copytree(settings["model"]["name"], model)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.add_tokens([*(f"unused{i}" for i in range(600 - len(tokenizer))), "brandnew"])
    tokenizer.save_pretrained(model)
    changed = settings | {"model": {"name": str(model)}}
    texts = tmp_path / "texts.jsonl"
    rows = Path(settings["prompts"][0]["path"]).read_text().splitlines()
    texts.write_text("\n".join([*rows[:-1], json.dumps({"text": "a brandnew word", "source": "a"})]))
    prompts = [settings["prompts"][0] | {"path": str(texts)}]
    assert attempt(tmp_path, changed | {"prompts": prompts}, name="used") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the token 'brandnew' with the id 600, but the model's embedding has 600 rows" in said
    assert not (tmp_path / "used" / schema.ACTIVATIONS).exists()


@pytest.mark.parametrize(("token", "prepend", "code"), [("bos", True, 2), ("bos", False, 0), ("pad", True, 0)])
def test_special_tokens_that_the_model_does_not_know_are_refused_where_they_are_read(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], token: str, prepend: bool, code: int
) -> None:
    from transformers import PreTrainedTokenizerFast

    model = tmp_path / "model"
    shutil.copytree(settings["model"]["name"], model)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.add_tokens([f"unused{i}" for i in range(600 - len(tokenizer))])
    tokenizer.add_special_tokens({f"{token}_token": "<new>"})
    assert tokenizer.convert_tokens_to_ids("<new>") == 600
    tokenizer.save_pretrained(model)
    changed = settings | {"model": {"name": str(model)}, "extract": {"prepend_bos": prepend}}
    assert attempt(tmp_path, changed | {"quality": {"null": False, "decoder": False, "halves": False}}) == code
    said = " ".join(capsys.readouterr().err.split())
    refused = "the BOS token '<new>' with the id 600, but the model's embedding has 600 rows"
    assert (refused in said) is (code == 2)


# ---------------------------------------------------------------- Python, export, cache


def test_open_run_is_lazy_and_refuses_other_folders(finished: Path, tmp_path: Path) -> None:
    run = gpuclust.open_run(finished)
    assert run.activations.chunks is not None
    clusters = int((run.clusters["cluster"] != schema.NOISE).sum())
    kept = int(run.features["kept"].sum())
    counts = f"{tiny.N_PROMPTS} prompts, {tiny.D_SAE} features, {kept} kept, {clusters} clusters"
    assert repr(run) == f"Run('{finished}', {counts})"
    (tmp_path / "half").mkdir()
    shutil.copy(finished / "config.yaml", tmp_path / "half")
    assert repr(gpuclust.open_run(tmp_path / "half")).startswith(f"Run('{tmp_path / 'half'}', ")
    record = json.loads((finished / "run.json").read_text())
    record["stages"] = {name: record["stages"][name] for name in ("prompts", "extract")}
    write_record(tmp_path / "half" / "run.json", record)
    half = gpuclust.open_run(tmp_path / "half")
    assert repr(half) == f"Run('{tmp_path / 'half'}', {tiny.N_PROMPTS} prompts, to be done: reduce)"
    assert list(run.quality) == list(schema.QUALITY_COLUMNS)
    assert run.quality["cluster"].tolist() == list(range(clusters))
    assert run.config.umap.n_components == 3
    with pytest.raises(gpuclust.GpuclustError, match="is no gpuclust run"):
        gpuclust.open_run(tmp_path)


@pytest.mark.parametrize("method", ["communities", "umap", "distances"])
def test_cluster_features_equals_the_run(finished: Path, settings: dict[str, Any], method: str) -> None:
    run = gpuclust.open_run(finished)
    part = {name: settings[name] for name in ("select", "umap", "hdbscan", "consensus")}
    part["cluster"] = {"method": method}
    got = gpuclust.cluster_features(run.activations, part, lengths=run.prompts["n_tokens"])
    kept = run.features["kept"]
    if method == "communities":
        np.testing.assert_array_equal(got.labels, run.features.loc[kept, "label"])
        assert got.features["noise_reason"].equals(run.features["noise_reason"])
    if method != "distances":  # there the metric is cosine
        np.testing.assert_array_equal(got.features["hdbscan_label"], run.features["hdbscan_label"])
        np.testing.assert_array_equal(got.embedding, run.embedding)
    assert list(got.features.columns) == list(run.features.columns)


def test_cluster_features_refuses_what_is_no_matrix() -> None:
    with pytest.raises(gpuclust.GpuclustError, match=r"have shape \(3,\)"):
        gpuclust.cluster_features(np.zeros(3))
    with pytest.raises(gpuclust.GpuclustError, match=r"have shape \(0, 3\)"):
        gpuclust.cluster_features(np.zeros((0, 3)))
    with pytest.raises(gpuclust.GpuclustError, match="NaN or infinity"):
        gpuclust.cluster_features(np.full((3, 3), np.nan))


def test_export_opens_with_the_same_values(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.zarr"
    assert export([str(finished), str(target)]) == 0
    codec = json.loads((target / "activations" / "zarr.json").read_text())["codecs"]
    assert "gpuclust" not in json.dumps(codec)
    a, b = (xr.open_zarr(p)["activations"] for p in (finished / schema.ACTIVATIONS, target))
    np.testing.assert_array_equal(a, b)
    assert export([str(finished), str(target)]) == 2


def test_import_cache(finished: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    import torch

    run = gpuclust.open_run(finished)
    file = tmp_path / "processed_data.pt"
    torch.save({"acts": torch.from_numpy(run.activations.values), "prompts": run.prompts["text"].tolist()}, file)
    part = {name: settings[name] for name in ("select", "umap", "hdbscan", "store", "consensus", "quality")}
    imported = gpuclust.import_cache(file, tmp_path / "out", part)
    # Of imported prompts the lengths are not known
    plain = go(tmp_path, settings | {"neighbors": {"metric": "correlation"}}, name="plain")
    assert_same(results(plain), results(imported.path))
    assert (imported.prompts["n_tokens"] == -1).all()
    assert (imported.path / schema.REPORT).exists()


@pytest.mark.parametrize("cut", [1, 50, 300, 900])
def test_a_cache_that_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    import torch

    torch.save({"acts": torch.zeros(9, 20), "prompts": list("abcdefghi")}, tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:-cut])
    with pytest.raises(gpuclust.GpuclustError, match="cannot be loaded safely"):
        notebook_cache.read_cache(tmp_path / "c.pt")


def test_caches_of_any_layout_are_read(tmp_path: Path) -> None:
    import torch

    values = torch.tensor([[0.0, 2.0], [0.0, 0.0], [-1.5, 0.0]])
    for number, acts in enumerate((values.to_sparse(), values.clone().requires_grad_(), values.bfloat16())):
        torch.save({"acts": acts, "prompts": ("a", "b", "c")}, tmp_path / f"{number}.pt")
        found, texts = notebook_cache.read_cache(tmp_path / f"{number}.pt")
        np.testing.assert_array_equal(found, values)
        assert (found.dtype, texts) == (np.float32, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("dtype", "small", "fix"),
    [("float16", 1e-9, "Set store.dtype=float32"), ("float32", 1e-60, "Multiply the activations by a power of two")],
)
def test_a_cache_whose_small_values_are_lost_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: str, small: float, fix: str
) -> None:
    import torch

    acts = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).relu().double()
    acts[0, :3], nonzero = small, int((acts[1:] > 0).sum() + (acts[0, 3:] > 0).sum())
    torch.save({"acts": acts, "prompts": [f"prompt {i}" for i in range(40)]}, tmp_path / "c.pt")
    config = {"select": {"sparsity_max": 1.0}, "store": {"dtype": dtype}, "quality": {"null": False}}
    run = gpuclust.import_cache(tmp_path / "c.pt", tmp_path / "out", config | {"consensus": {"members": 1}})
    record = json.loads((run.path / schema.RECORD).read_text())
    assert record["stages"]["extract"]["underflowed"] == 3
    said = (
        f"3 activations that are not zero ({3 / (nonzero + 3):.2%}) are too small for store.dtype={dtype} and are "
        "stored as 0"
    )
    for text in (record["warnings"][0], caplog.text):
        assert said in text
        assert fix in text


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("this ran",))


def test_a_cache_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    torch.save({"acts": torch.zeros(2, 2), "prompts": Evil()}, tmp_path / "bad.pt")
    with pytest.raises(gpuclust.GpuclustError, match="objects or code beside tensors and text, which are not run"):
        gpuclust.import_cache(tmp_path / "bad.pt", tmp_path / "out")
    assert "this ran" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"acts": 1}, "holds acts; a dict with 'acts' and 'prompts' is expected"),
        ({"acts": [1], "prompts": []}, "a floating tensor"),
        ((3, ["a", "b"]), "has 3 rows but 'prompts' has 2"),
        ((3, 3), "'prompts' is of type int; a list of str is expected"),
        ((3, None), "'prompts' is of type NoneType"),
        ((3, ["a", "b", 3]), "prompt 2 is of type int"),
        ((3, ["a", "\ud800b", "c"]), "c.pt, prompt 1 has half of a surrogate pair at character 0"),
        ((0, []), r"'acts' has the shape \(0, 2\); it holds no activations"),
        (b"hello", r"cannot be loaded safely \(\w+\)"),
        (b"", r"cannot be loaded safely \(\w+\)"),
    ],
)
def test_other_caches_are_refused(tmp_path: Path, data: Any, message: str) -> None:
    import torch

    if isinstance(data, tuple):
        data = {"acts": torch.zeros(data[0], 2), "prompts": data[1]}
    if isinstance(data, bytes):
        (tmp_path / "c.pt").write_bytes(data)
    else:
        torch.save(data, tmp_path / "c.pt")
    with pytest.raises(gpuclust.GpuclustError, match=message):
        gpuclust.import_cache(tmp_path / "c.pt", tmp_path / "out")


def test_plan_runs_nothing(settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(settings))
    assert command.main(["--config", str(file), "--out", str(tmp_path / "out"), "--plan"]) == 0
    said = capsys.readouterr().out
    assert all(stage in said for stage in ("extract", "neighbors", "embed", "cluster", "passes", "peak"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_prints_the_folder_and_warns_on_stderr(
    finished: Path, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, quiet: bool,
) -> None:  # fmt: skip
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / schema.CLUSTERS).write_bytes(b"x")
    monkeypatch.setattr(logging.root, "handlers", [])  # as without pytest
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    given = ["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out"), "--scheduler", "threads"]
    assert command.main([*given, "--no-report", *["--quiet"] * quiet]) == 0
    out, err = capsys.readouterr()
    warned = "is not what the stage wrote, so it is made anew"
    if quiet:
        assert out == f"{tmp_path / 'out'}\n"
        assert warned in " ".join(err.split())
        assert "analyse: cluster tables" not in err  # what the log says of every stage
        assert "clustering tasks" not in err
    else:
        assert err == ""
        assert warned in " ".join(out.split())
        assert "computing in this process (threads)" in out


def test_unknown_scheduler_and_missing_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from gpuclust.hardware.backend import cuda_status

    assert command.main(["--scheduler", "slurm", "--out", str(tmp_path / "o")]) == 2
    assert "must be one of auto, local-cuda, local, threads" in " ".join(capsys.readouterr().err.split())
    if not cuda_status().usable:
        assert command.main(["--scheduler", "local-cuda", "--out", str(tmp_path / "o")]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "--scheduler local-cuda cannot start here" in said
        assert "gpuclust[cuda13]" in said
    assert not (tmp_path / "o").exists()


def test_store_is_read_once_per_pass(
    finished: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    reads: list[int] = []
    original = store.read_rows

    def counting(path: Path, rows: int, first: int = 0, stop: int | None = None) -> Any:
        for start, block in original(path, rows, first, stop):
            reads.append(len(block))
            yield start, block

    monkeypatch.setattr(store, "read_rows", counting)
    go(tmp_path, settings, "--no-report")
    # The Gram pass, the cohesion of clusters, twice for held-out prediction (what words say of features, then how far
    # mates tell), the clusters' activations; moments came from the shards.
    assert sum(reads) == 5 * tiny.N_PROMPTS
