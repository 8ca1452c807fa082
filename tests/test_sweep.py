"""Sweeps on a tiny model: what is shared, resumed, refused; groups equal separate runs; the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
import zarr

import gpuclust
from gpuclust import Run, cli, cluster_features, run, schema
from gpuclust.compute import agreement, communities, consensus, measures, validity
from gpuclust.compute.halves import half_of
from gpuclust.configfile import validate
from gpuclust.engine import exact_pass
from gpuclust.hardware import budget
from gpuclust.storage import store
from gpuclust.sweep import __main__ as command
from gpuclust.sweep import trials
from gpuclust.sweep.sharing import PARTS
from tests import tiny
from tests.test_damage import spoil

N_NEIGHBORS = {"umap.n_neighbors": [4, 6]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def finished(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose activations the sweeps use."""
    folder = tmp_path_factory.mktemp("run")
    return single(folder, base)


def single(folder: Path, settings: dict[str, Any], name: str = "run") -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(settings))
    code = run.main(
        ["--config", str(file), "--out", str(folder / name), "--scheduler", "threads", "--quiet", "--no-report"]
    )
    assert code == 0
    return folder / name


def go(folder: Path, data: dict[str, Any], finished: Path | None = None, code: int = 0) -> pd.DataFrame:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(data))
    reuse = [] if finished is None else ["--reuse", str(finished)]
    out = folder / "out"
    assert command.main([str(file), "--out", str(out), "--scheduler", "threads", "--quiet", *reuse]) == code
    return pd.read_parquet(out / "sweep.parquet") if code == 0 else pd.DataFrame()


def computed(folder: Path) -> dict[str, int]:
    record: dict[str, int] = json.loads((folder / "out" / "sweep.json").read_text())["computed"]
    return record


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """Count the calls of a function; tasks of `threads` run in this process."""
    calls: list[Any] = []
    original = getattr(module, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, counting)
    return calls


def test_48_settings_share_what_they_can(
    base: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = counted(monkeypatch, store, "read_rows")
    written = counted(monkeypatch, exact_pass, "write_neighbors")
    layouts = counted(monkeypatch, consensus, "embed")
    vary = {
        **N_NEIGHBORS, "hdbscan.min_cluster_size": [3, 4, 5, 6], "hdbscan.min_samples": [2, 3, 4],
        "hdbscan.cluster_selection_method": ["eom", "leaf"],
    }  # fmt: skip
    base = base | {"consensus": {"members": 1}, "cluster": {"method": "umap"}}
    table = go(tmp_path, {"base": base, "vary": vary, "seeds": 1}, finished)
    assert len(table) == 48
    assert table["error"].isna().all()
    assert len(reads) == 2  # for the moments, and for the Gram matrices
    assert len(written) == 3  # all prompts and both halves; fewer neighbours are the first of more
    assert len(layouts) == 2 * 3
    assert computed(tmp_path) == {
        "extractions": 0, "store_reads": 2, "neighbors": 1, "embeddings": 6, "trees": 18, "trials": 48,
    }  # fmt: skip
    assert ((table["noise"] >= 0) & (table["ari_halves"].isna() | (table["ari_halves"] <= 1))).all()
    assert table.loc[table["setting"] == 0, "ari_default"].tolist() == [1]

    for name in ("trials", "cache"):  # a killed sweep: some files are missing
        kept = sorted((tmp_path / "out" / name).glob("embedding-*" if name == "cache" else "*"))
        kept[0].unlink()
    del reads[:], layouts[:]
    again = go(tmp_path, {"base": base, "vary": vary, "seeds": 1}, finished)
    pd.testing.assert_frame_equal(again, table)
    assert len(reads) == 0
    assert computed(tmp_path)["trials"] == 1
    assert len(layouts) <= 1


def test_settings_equal_separate_runs(base: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    questions = {
        "prompts": [{"vary": {"n_prompts": [30, 60]}}, {"vary": {"length": [[20, 40], [40, 40]]}}],
        "dataset": {"vary": {"source": ["a", "b"]}}, "filters": {"vary": {"select.sparsity_max": [0.9, 1.01]}},
        "umap": {"vary": {"cluster.method": ["umap", "distances"], "hdbscan.min_samples": [2, 3]}},
        "consensus": {"vary": {"consensus.members": [1, 2]}},
    }  # fmt: skip
    assert base["consensus"]["members"] == 2
    base = base | {"consensus": base["consensus"] | {"members": 1}}
    table = go(tmp_path, {"base": base, "questions": questions, "seeds": 2}, finished)
    assert table["error"].isna().all()
    assert computed(tmp_path)["store_reads"] == 2  # for the moments, and for the Gram matrices
    group: Any = zarr.open_group(tmp_path / "out" / "labels.zarr", mode="r")
    numbers = list(zip(group["setting"][:].tolist(), group["seed"][:].tolist(), strict=True))
    stored = dict(zip(numbers, group["labels"][:], strict=True))
    prompts = pd.read_parquet(finished / schema.PROMPTS)
    activations = store.open_array(finished / schema.ACTIVATIONS)[:]
    everything = np.arange(len(prompts))
    size = int((prompts["n_tokens"] == 40).sum())  # the smaller of the two groups
    longer = np.flatnonzero(prompts["n_tokens"] >= 20)[:size]
    assert set(table.loc[table["length"].notna(), "prompts"]) == {size}
    cases: list[tuple[str, Any, np.ndarray[Any, Any], dict[str, Any], int]] = [
        ("setting", 0, everything, {}, 42),
        ("setting", 0, everything, {"umap": base["umap"] | {"random_state": 43}}, 43),
        ("n_prompts", 30, everything[:30], {}, 42),
        ("source", "a", np.flatnonzero(prompts["source"] == "a"), {}, 42),
        ("length", "[20, 40]", longer, {}, 42),
        ("select.sparsity_max", 0.9, everything, {"select": {"sparsity_max": 0.9}}, 42),
        ("cluster.method", "distances", everything, {"cluster": {"method": "distances"}}, 42),
    ]
    features = pd.read_parquet(finished / schema.FEATURES)  # of a consensus, as by default
    several = int(table.loc[table["consensus.members"] == 2, "setting"].iloc[0])
    labels = features["label"].fillna(agreement.ABSENT).to_numpy(dtype=np.int64)
    np.testing.assert_array_equal(stored[several, 42][0], labels)
    for column, value, rows, changed, seed in cases:
        setting = int(table.loc[table[column] == value, "setting"].max())
        own = table[table["setting"] == setting].iloc[0]
        settings = {key: base[key] for key in ("select", "umap", "hdbscan", "consensus")} | changed
        settings["hdbscan"] = settings["hdbscan"] | {"min_samples": int(own["hdbscan.min_samples"])}
        lengths = prompts["n_tokens"].to_numpy()[rows]
        expected = cluster_features(activations[rows], settings, lengths=lengths)
        labels = expected.features["label"].fillna(agreement.ABSENT).to_numpy(dtype=np.int64)
        np.testing.assert_array_equal(stored[setting, seed][0], labels, err_msg=f"{column}={value}")
        assert own["n_kept"] == len(expected.labels)
        if column == "n_prompts":  # halves: the same features, from the prompts of one half
            first = rows[half_of(len(rows), base.get("seed", 0)) == 0]
            among = lengths[half_of(len(rows), base.get("seed", 0)) == 0]
            near = (expected.indices, expected.distances, len(rows))
            resolution, _ = communities.choose_resolution(*near, validate(settings))  # halves have the whole's
            half = cluster_features(
                activations[first], settings | {"select": {"sparsity_max": 1.01}}, lengths=among, resolution=resolution
            )
            pd.testing.assert_series_equal(half.features["kept"], expected.features["kept"])
            np.testing.assert_array_equal(stored[setting, seed][1][half.features["kept"]], half.labels)
    sweep = gpuclust.open_sweep(tmp_path / "out")
    opened = [(several, 42)] + [(int(table.loc[table[c] == v, "setting"].max()), seed) for c, v, *_, seed in cases[1:]]
    for setting, seed in opened:
        row = table[(table["setting"] == setting) & (table["seed"] == seed)].iloc[0]
        compare_numbers(row, sweep.run(setting, seed, scheduler="threads"), stored[setting, seed])


def compare_numbers(row: pd.Series[Any], opened: Run, labels: np.ndarray[Any, Any]) -> None:
    """Every number of a row, and the labels of all prompts, against those of the setting computed as a run."""
    features, stages = opened.features, opened.record["stages"]
    np.testing.assert_array_equal(labels[0], features["label"].fillna(agreement.ABSENT).to_numpy(dtype=np.int64))
    assert (features["kept"].to_numpy() == (labels[0] != agreement.ABSENT)).all()
    assert stages["cluster"]["members"] == opened.config.n_members
    quality = stages["quality"]
    expected = {**quality["clustering"], **{f"{name}_halves": value for name, value in quality["halves"].items()}}
    expected |= {"n_kept": features["kept"].sum(), "duplicates": stages["cluster"]["duplicates"]}
    expected |= {"prompts": len(opened.prompts)}
    for name, value in expected.items():
        assert row[name] == pytest.approx(np.nan if value is None else value, rel=1e-12, nan_ok=True), (name, row)
    between = {
        "ari_seeds",
        "ari_default",
        "ami_default",
        "ari_clustered_default",
        "common_default",
    }  # with other trials
    asked = {name for name in row.index if "." in name} | {"n_prompts", "source", "length"}
    assert set(row.index) - set(expected) - between - asked == {"questions", "setting", "seed", "error"}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"cluster.method": "distances", "hdbscan.min_cluster_size": 3, "hdbscan.min_samples": 1},
        {"consensus.members": 1},
    ],
)
def test_a_setting_has_the_halves_and_the_stability_of_the_run_with_its_configuration(
    base: dict[str, Any], tmp_path: Path, changed: dict[str, Any]
) -> None:
    settings = base | {"seed": 5, "n_prompts": 57}  # an odd number: the halves differ in size
    for key, value in changed.items():
        section, name = key.split(".")
        settings[section] = settings.get(section, {}) | {name: value}
    out = single(tmp_path, settings)
    row = go(tmp_path, {"base": settings, "vary": N_NEIGHBORS, "seeds": 1}, out).iloc[0]
    assert row["setting"] == 0
    facts = json.loads((out / schema.RECORD).read_text())["stages"]["quality"]["halves"]
    compared = 0
    for name in ("ari", "ami", "ari_clustered", "ami_clustered", "clustered_both"):
        if facts[name] is not None:
            assert row[f"{name}_halves"] == facts[name], name
            compared += 1
    assert compared >= 3
    group: Any = zarr.open_group(tmp_path / "out" / "labels.zarr", mode="r")
    whole, *halves = (part[part != agreement.ABSENT].astype(np.int64) for part in group["labels"][0])
    table = pd.read_parquet(out / schema.QUALITY)
    assert len(table)
    stability = np.mean([validity.best_match(whole, half) for half in halves], axis=0)
    np.testing.assert_array_equal(stability, table["stability"])


def test_copies_are_one_point_in_a_sweep_as_in_a_run(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    settings = tiny.build(tmp_path / "tiny") | {"consensus": {"members": 1}}
    weights = tmp_path / "tiny" / "sae" / "sae_weights.safetensors"
    tensors = load_file(weights)
    for name in ("W_enc", "b_enc"):
        tensors[name][..., 32:48] = tensors[name][..., 64:65]
    save_file(tensors, weights)
    out = single(tmp_path, settings)
    features = pd.read_parquet(out / schema.FEATURES)
    copies = features["duplicate_of"].notna()
    assert copies[33:48].all()
    row = go(tmp_path, {"base": settings, "vary": N_NEIGHBORS, "seeds": 1}, out).iloc[0]
    assert (row["duplicates"], row["n_kept"]) == (copies.sum(), features["kept"].sum())
    group: Any = zarr.open_group(tmp_path / "out" / "labels.zarr", mode="r")
    labels = features["label"].fillna(agreement.ABSENT).to_numpy(dtype=np.int64)
    np.testing.assert_array_equal(group["labels"][0][0], labels)
    assert all(len(set(part[32:48])) == 1 for part in group["labels"][0])
    facts = json.loads((out / schema.RECORD).read_text())["stages"]["quality"]["halves"]
    assert row["ari_halves"] == facts["ari"]


def test_what_fails_is_a_row_and_the_rest_goes_on(base: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    vary = {"hdbscan.min_samples": [3, 500], "umap.min_dist": [0.0, 1.5]}
    table = go(tmp_path, {"base": base, "fixed": {"cluster.method": "umap"}, "vary": vary, "seeds": 1}, finished)
    error = table.set_index(["hdbscan.min_samples", "umap.min_dist"])["error"]
    assert pd.isna(error[3, 0.0])
    assert "at least 501" in error[500, 0.0]
    assert "ConfigError: umap.min_dist is 1.5" in error[3, 1.5]
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["failed"] == 3
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert "Settings that failed" in page
    assert "umap.min_dist is 1.5" in page


def test_a_sweep_whose_settings_all_fail_says_so_and_keeps_what_is_there(
    base: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = go(tmp_path, {"base": base, "vary": N_NEIGHBORS, "seeds": 1}, finished)
    hopeless = base | {"hdbscan": base["hdbscan"] | {"min_samples": 90}, "select": {"sparsity_max": 0.3}}
    go(tmp_path, {"base": hopeless, "vary": N_NEIGHBORS, "seeds": 1}, finished, code=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "all of the sweep failed, 2 settings; the first: SelectionError: " in said
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "sweep.parquet"), table)


def test_a_group_that_is_not_there_is_a_row_with_what_is(base: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    table = go(tmp_path, {"base": base, "vary": {"source": ["a", "nobody"]}, "seeds": 1}, finished)
    error = table.set_index("source")["error"]
    assert pd.isna(error["a"])
    assert "source_pattern finds a (30), b (30)" in error["nobody"]


def test_extraction_fields_extract_again_and_other_activations_are_not_reused(
    base: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(tmp_path, {"base": base | {"max_tokens": 30}, "vary": N_NEIGHBORS}, finished, code=2)
    assert "max_tokens is 40 there and 30 here" in capsys.readouterr().err
    table = go(tmp_path, {"base": base, "vary": {"max_tokens": [20, 40]}, "seeds": 1}, finished)
    assert table["error"].isna().all()
    assert computed(tmp_path)["extractions"] == 1
    assert computed(tmp_path)["store_reads"] == 4
    assert table["ari_default"].nunique() == 2


def test_what_a_sweep_reuses_is_whole_and_only_read(
    base: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = shutil.copytree(finished, tmp_path / "whole")
    before = sorted(path for path in whole.rglob("*"))
    (tmp_path / "out").symlink_to(whole / "inner")
    go(tmp_path, {"base": base, "vary": N_NEIGHBORS}, whole, code=2)
    assert sorted(path for path in whole.rglob("*")) == before
    assert "which is only read: give a folder beside it" in " ".join(capsys.readouterr().err.split())
    broken = shutil.copytree(finished, tmp_path / "broken")
    next(path for path in (broken / schema.ACTIVATIONS / "activations/c").rglob("*") if path.is_file()).unlink()
    go(tmp_path, {"base": base, "vary": N_NEIGHBORS}, broken, code=2)
    assert "its activations are not whole" in " ".join(capsys.readouterr().err.split())


def test_a_folder_of_something_else_is_refused(base: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    go(tmp_path, {"base": base, "vary": N_NEIGHBORS}, finished, code=2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_memory_decides_how_often_the_store_is_read(
    base: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    questions = {"prompts": {"vary": {"n_prompts": [30, 60]}}, "dataset": {"vary": {"source": ["a", "b"]}}}
    data = {"base": base | {"cluster": {"method": "distances"}}, "questions": questions, "seeds": 1}
    table = go(tmp_path, data, finished)
    assert computed(tmp_path)["store_reads"] == 2
    monkeypatch.setattr(budget, "TILE", 32)
    room = 1_300_000 + 96 * 96 * (4 + 2 * 12)
    monkeypatch.setattr(budget, "budget", lambda config, n_workers=1, device="cpu": budget.PROCESS + room)
    (tmp_path / "second").mkdir()
    again = go(tmp_path / "second", data, finished)
    assert computed(tmp_path / "second")["store_reads"] > 2
    pd.testing.assert_frame_equal(again, table)
    room = 500_000
    (tmp_path / "third").mkdir()
    go(tmp_path / "third", data, finished, code=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "stage neighbors needs" in said
    assert "but device.memory allows" in said


KINDS = {
    "sweep.json": "record", "sweep.yaml": "", "sweep.parquet": "table", "pairs.parquet": "pairs",
    "labels.zarr/labels/c/0/0/0": "labels", "trials/*.npz": "", "cache/moments-*.npz": "", "cache/embedding-*.npz": "",
    "cache/neighbors-*-all.zarr/indices/c/0/0": "", "cache/neighbors-*-half0.zarr/distances/zarr.json": "",
    "cache/neighbors-*-tree-*.npy": "", "cache/neighbors-*-all.zarr.crc": "",
}  # fmt: skip


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_damage_in_a_sweep_is_found_and_made_anew(
    how: str, base: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    data = {"base": base, "vary": {"cluster.method": ["umap", "distances"], "n_prompts": [30, 60]}, "seeds": 1}
    table = go(tmp_path, data, finished)
    labels = gpuclust.open_sweep(tmp_path / "out").labels.to_numpy()
    for pattern, reader in KINDS.items():
        file = sorted((tmp_path / "out").glob(pattern))[0]
        assert cli.main(["verify", str(tmp_path / "out")]) == 0, pattern
        spoil(file, how)
        if pattern != "sweep.yaml":  # it has no checksum, and is written anew by each command
            assert cli.main(["verify", str(tmp_path / "out")]) == 1, pattern
        if pattern.startswith("cache/neighbors"):  # what was made of them has to be made anew to need them
            for made in [*(tmp_path / "out" / "trials").iterdir(), *(tmp_path / "out" / "cache").glob("embedding*")]:
                made.unlink()
        if reader and (pattern != "sweep.json" or how != "flipped"):
            with pytest.raises(gpuclust.GpuclustError, match="sweep's own command makes it anew"):
                _ = getattr(gpuclust.open_sweep(tmp_path / "out"), reader)
        pd.testing.assert_frame_equal(go(tmp_path, data, finished), table, obj=pattern)
        np.testing.assert_array_equal(gpuclust.open_sweep(tmp_path / "out").labels.to_numpy(), labels, err_msg=pattern)


def test_verify_of_a_sweep_says_what_it_cannot_check(
    base: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    go(tmp_path, {"base": base, "vary": {"cluster.method": ["umap", "distances"]}, "seeds": 1}, finished)
    opened = gpuclust.open_sweep(out).run(0, scheduler="threads")
    (out / "extractions" / "x.999999.tmp").mkdir(parents=True)  # of a killed process
    assert cli.main(["verify", str(out)]) == 0
    (opened.path / schema.CLUSTERS).write_bytes(b"x")
    (out / "sweep.json").rename(tmp_path / "sweep.json")
    capsys.readouterr()
    monkeypatch.setattr("os.access", lambda *_: False)  # as on a disk that is read only
    assert cli.main(["verify", str(out)]) == 1
    said = " ".join("".join(capsys.readouterr()).split())
    assert "sweep.json is missing" in said
    assert f"runs/{opened.path.name}/clusters.parquet" in said
    monkeypatch.undo()
    (opened.path / schema.RECORD).unlink()
    assert cli.main(["verify", str(out)]) == 1
    assert "cannot be checked" in " ".join("".join(capsys.readouterr()).split())


def test_any_setting_opens_as_a_run(base: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    questions = {
        "prompts": {"vary": {"n_prompts": [30, 60]}}, "dataset": {"vary": {"source": ["a", "b"]}},
        "umap": {"vary": {"cluster.method": ["umap", "distances"]}}, "members": {"vary": {"consensus.members": [1, 2]}},
    }  # fmt: skip
    table = go(tmp_path, {"base": base, "questions": questions, "seeds": 2}, finished)
    sweep = gpuclust.open_sweep(tmp_path / "out")
    pd.testing.assert_frame_equal(sweep.table, table)
    assert sweep.labels["setting"].values.tolist() == table["setting"].tolist()
    assert sweep.labels["seed"].values.tolist() == table["seed"].tolist()
    assert sweep.labels.sel(part="half1").shape == (len(table), 96)
    assert repr(sweep).endswith(f"{table['setting'].nunique()} settings, 2 seeds)")
    labels = dict(zip(zip(table["setting"], table["seed"], strict=True), sweep.labels.to_numpy(), strict=True))
    prompts = pd.read_parquet(finished / schema.PROMPTS)
    seed = int(table["seed"].max())
    chosen = [
        ({"n_prompts": 60, "cluster.method": "umap"}, prompts["text"]), ({"n_prompts": 30}, prompts["text"][:30]),
        ({"source": "b"}, prompts.loc[prompts["source"] == "b", "text"]),
        ({"cluster.method": "distances"}, prompts["text"]),
        ({"consensus.members": 1}, prompts["text"]),
    ]  # fmt: skip
    for levels, texts in chosen:
        rows = table[np.logical_and.reduce([table[name] == value for name, value in levels.items()])]
        row = rows[rows["seed"] == seed].iloc[0]
        run = sweep.run(int(row["setting"]), seed, "threads")
        assert run.prompts["text"].tolist() == texts.tolist()
        kept = run.features["label"].fillna(agreement.ABSENT).to_numpy(dtype=np.int64)
        np.testing.assert_array_equal(kept, labels[row["setting"], seed][0], err_msg=str(levels))
        assert int(run.features["kept"].sum()) == row["n_kept"]
        assert len(run.clusters) - 1 == row["clusters"]
        halves = run.record["stages"]["quality"]["halves"]
        assert halves["ari"] == pytest.approx(row["ari_halves"], nan_ok=True) or np.isnan(row["ari_halves"])
        assert len(run.map().data) > 0
    times = (run.path / schema.RECORD).stat().st_mtime_ns
    assert sweep.run(int(row["setting"]), seed, "threads").path == run.path
    assert (run.path / schema.RECORD).stat().st_mtime_ns == times  # opened, not computed
    with pytest.raises(gpuclust.GpuclustError, match=r"setting 99 is not in .*: it has 0 to"):
        sweep.run(99)
    with pytest.raises(gpuclust.GpuclustError, match=r"seed 7 is not in"):
        sweep.run(0, 7)
    with pytest.raises(gpuclust.GpuclustError, match=r"is no finished gpuclust sweep: it has no sweep.yaml"):
        gpuclust.open_sweep(finished)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, -1], [-1, -1, -1, -1, -1]])
def test_measures_of_a_clustering(labels: list[int]) -> None:
    own = np.array(labels)
    indices = np.array([[0, 1, 2], [1, 0, 4], [2, 3, 1], [3, 2, 1], [4, 0, 1]])
    found = measures.shape_of(own) | measures.of_halves(own, own)
    if own.max() < 0:
        assert (found["clusters"], found["noise"], found["largest"]) == (0, 1, 0)
        assert np.isnan(found["ari"])  # nothing that could be stable
        assert np.isnan(measures.purity(own, indices))
        return
    assert (found["clusters"], found["noise"], found["median_size"]) == (2, 0.2, 2)
    assert (found["ari"], found["recovered"]) == (1, 1)
    assert measures.purity(own, indices) == pytest.approx(4 / 8)
    halves = measures.of_halves(np.repeat([0, 1], [8, 4]), np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, -1]))
    assert (halves["recovered"], halves["clusters"]) == (2 / 7, 3.5)  # the second of two, and the last of five
    assert halves["noise"] == pytest.approx(1 / 24)


def test_what_clusters_share_is_nothing_by_chance() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 10)
    by_chance = [measures.shared(labels, rng.random(200)) for _ in range(200)]
    assert np.mean(by_chance) == pytest.approx(0, abs=0.02)
    assert measures.shared(labels, labels * 1.0) == pytest.approx(1)
    assert np.isnan(measures.shared(np.zeros(9, dtype=int), rng.random(9)))


def test_what_two_groups_find_again_is_asked_of_features_that_both_keep(tmp_path: Path) -> None:
    labels = {"a": [0, 0, 0, 0, 1, 1, 2, 2], "b": [1, 1, 0, 0]}
    kept = {"a": range(8), "b": [0, 1, 4, 5]}
    for name, own in labels.items():
        packed = dict.fromkeys(PARTS, np.asarray(own, dtype=np.int32))
        facts = np.array(json.dumps({}))
        trials.write_arrays(tmp_path / f"{name}.npz", kept=np.asarray(list(kept[name])), facts=facts, **packed)
    found = trials.between_task(tmp_path / "a.npz", tmp_path / "b.npz", 9)
    assert found == {"found_again": 1, "ari": 1, "ami": 1, "common": 4}  # the third cluster has nobody there
