"""Activations that others wrote become runs: every format gives what a dense array gives, and bad input is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from safetensors.numpy import save_file
from scipy.sparse import csc_array, csr_array, save_npz

import gpuclust
from gpuclust import cli, schema
from gpuclust.config_sections import DEMO
from gpuclust.configfile import validate
from gpuclust.engine import imported
from gpuclust.errors import ActivationError, GpuclustError, InputError, PromptsError, StoreError
from gpuclust.extraction import activation_files, encoders, row_readers
from gpuclust.storage import markers, store, verifying
from tests.planted import planted

N_PROMPTS, LENGTH = 90, 6
SETTINGS: dict[str, Any] = {
    "select": {"sparsity_max": 2.0, "sparsity_min": 0.0}, "hdbscan": {"min_cluster_size": 4, "min_samples": 3},
    "quality": {"null": False, "random_sets": 2}, "consensus": {"members": 2}, "umap": {"n_neighbors": 10},
    "store": {"shard_prompts": 40, "chunk_prompts": 20, "chunk_features": 32}, "model": {"name": schema.IMPORTED},
}  # fmt: skip
VALUES = planted(n_prompts=N_PROMPTS, n_clusters=4, size=10, n_noise=20)[0].astype(np.float32)
Array = np.ndarray[Any, Any]


def tokens() -> tuple[Array, Array]:
    """What fires on tokens, (prompt, position, feature), of which the largest are `VALUES`, and token ids."""
    rng = np.random.default_rng(3)
    found = np.zeros((N_PROMPTS, LENGTH, VALUES.shape[1]), np.float32)
    at = rng.integers(LENGTH, size=VALUES.shape)
    np.put_along_axis(found, at[:, None], VALUES[:, None], axis=1)
    also = rng.random(found.shape) < 0.05
    found = np.where(also & (found == 0), found.max(axis=1, keepdims=True) / 2, found)
    return found.astype(np.float16).astype(np.float32), rng.integers(5, 900, (N_PROMPTS, LENGTH))


TOKENS, IDS = tokens()


def latents(folder: Path, cuts: tuple[int, ...] = (0, 25, 60), ids: Array | None = IDS, absolute: bool = False) -> Path:
    """The files that delphi's `LatentCache.save_splits` leaves: features from each file's first one on."""
    folder.mkdir(parents=True)
    where = np.ascontiguousarray(np.argwhere(TOKENS))  # safetensors writes arrays as they lie
    for first, stop in itertools.pairwise(cuts):
        own = where[(where[:, 2] >= first) & (where[:, 2] < stop)]
        locations = own - [0, 0, 0 if absolute else first]
        data = {"locations": locations.astype(np.uint16), "activations": TOKENS[tuple(own.T)].astype(np.float16)}
        save_file(data if ids is None else {**data, "tokens": ids}, folder / f"{first}_{stop - 1}.safetensors")
    return folder


def annotated(x: Any, obs: pd.DataFrame | None = None) -> Any:
    import anndata

    rows, columns = (pd.Index([str(n) for n in range(size)], dtype=object) for size in x.shape)
    obs = pd.DataFrame(index=rows) if obs is None else obs.set_axis(rows)
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=columns))


def npy(folder: Path) -> Path:
    np.save(folder / "a.npy", VALUES)
    return folder / "a.npy"


def npy_turned(folder: Path) -> Path:
    np.save(folder / "a.npy", np.asfortranarray(VALUES.astype(np.float16)))
    return folder / "a.npy"


def npz(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", VALUES)
    return folder / "a.npz"


def npz_turned(folder: Path) -> Path:
    np.savez(folder / "a.npz", activations=np.asfortranarray(VALUES), other=np.zeros(3))
    return folder / "a.npz"


def sparse(kind: str) -> Any:
    def write(folder: Path) -> Path:
        save_npz(folder / "a.npz", csr_array(VALUES).asformat(kind))
        return folder / "a.npz"

    return write


def unsorted(folder: Path) -> Path:
    """Compressed sparse rows whose columns descend, with a zero that is written out."""
    x = csr_array(VALUES)
    for row in range(len(VALUES)):
        own = slice(x.indptr[row], x.indptr[row + 1])
        x.indices[own], x.data[own] = x.indices[own][::-1].copy(), x.data[own][::-1].copy()
    silent = int(np.flatnonzero(VALUES[0] == 0)[0])
    data, indices = np.concatenate([[0], x.data]), np.concatenate([[silent], x.indices])
    indptr = np.concatenate([[0], x.indptr[1:] + 1])
    np.savez(folder / "a.npz", format=b"csr", shape=VALUES.shape, data=data, indices=indices, indptr=indptr)
    return folder / "a.npz"


def h5ad(make: Any) -> Any:
    def write(folder: Path) -> Path:
        annotated(make(VALUES)).write_h5ad(folder / "a.h5ad")
        return folder / "a.h5ad"

    return write


def ann_zarr(make: Any) -> Any:
    def write(folder: Path) -> Path:
        annotated(make(VALUES)).write_zarr(folder / "a.zarr")
        return folder / "a.zarr"

    return write


def zarr_array(version: Any) -> Any:
    def write(folder: Path) -> Path:
        zarr.create_array(folder / "a.zarr", data=VALUES, chunks=(7, 30), zarr_format=version)
        return folder / "a.zarr"

    return write


def xarray_group(folder: Path) -> Path:
    import xarray as xr

    xr.Dataset({"activations": (("prompt", "feature"), VALUES)}).to_zarr(folder / "a.zarr", consolidated=False)
    return folder / "a.zarr"


def xarray_group2(folder: Path) -> Path:
    import xarray as xr

    data = xr.Dataset({"activations": (("prompt", "feature"), VALUES)})
    data.to_zarr(folder / "a.zarr", consolidated=False, zarr_format=2)
    return folder / "a.zarr"


def own_store(codec: str) -> Any:
    def write(folder: Path) -> Path:
        config = validate({"store": {"shard_prompts": 33, "codec": codec}}).store
        path = folder / "activations.zarr"
        store.create(path, *VALUES.shape, config, {})
        for index, (first, stop) in enumerate(store.shard_ranges(path)):
            store.write_rows(path, index, first, VALUES[first:stop].astype(np.float16))
        return path

    return write


def notebook(folder: Path) -> Path:
    import torch

    torch.save({"acts": torch.from_numpy(VALUES), "prompts": [""] * N_PROMPTS}, folder / "a.pt")
    return folder / "a.pt"


FORMATS: dict[str, Any] = {
    "npy": npy, "npy-turned": npy_turned, "npz": npz, "npz-turned": npz_turned, "csr": sparse("csr"),
    "csc": sparse("csc"), "coo": sparse("coo"), "unsorted": unsorted, "h5ad": h5ad(np.asarray),
    "h5ad-csr": h5ad(csr_array), "h5ad-csc": h5ad(csc_array), "ann-zarr": ann_zarr(csr_array),
    "ann-zarr-csc": ann_zarr(csc_array), "ann-zarr-dense": ann_zarr(np.asarray), "zarr2": zarr_array(2),
    "zarr3": zarr_array(3), "xarray": xarray_group, "xarray2": xarray_group2,
    "own": own_store("bitmap"), "own-zstd": own_store("zstd"),
    "pt": notebook,
}  # fmt: skip


def go(path: Path, out: Path, **more: Any) -> gpuclust.Run:
    settings = {**SETTINGS, **more.pop("settings", {})}
    return gpuclust.import_activations(path, out, settings, **more)


def stage(run: gpuclust.Run, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / schema.RECORD).read_text())["stages"][name]
    return found


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> gpuclust.Run:
    folder = tmp_path_factory.mktemp("dense")
    return go(npy(folder), folder / "out")


def test_a_dense_array_becomes_a_run(dense: gpuclust.Run) -> None:
    np.testing.assert_array_equal(dense.activations.values, VALUES)
    assert len(set(dense.features["label"].dropna())) > 2
    assert (dense.prompts["n_tokens"] == -1).all()
    assert (dense.path / schema.REPORT).exists()
    assert list(stage(dense, "extract")["files"]) == [schema.ACTIVATIONS, schema.SHARDS]
    best = dense.examples[dense.examples["rank"] == 0]
    np.testing.assert_array_equal(best["value"], VALUES.max(axis=0)[best["feature"]])
    assert (dense.examples["position"] == -1).all()
    assert verifying.damages(dense.path) == []


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("held", [1 << 23, 300])
def test_every_format_is_read_as_the_dense_array(
    kind: str, held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels follow from the key: equal keys are equal activations, texts and settings."""
    for name, value in (("HELD", held), ("SLICE", held), ("SLAB", held)):
        monkeypatch.setattr(row_readers, name, value)
    monkeypatch.setattr(row_readers.iterate, "__defaults__", (held,))
    path = FORMATS[kind](tmp_path)
    config = validate(SETTINGS)
    expected = imported.look(
        activation_files.Activations(row_readers.DenseRows(path, VALUES)), [""] * N_PROMPTS, config
    )
    from gpuclust import notebook_cache

    with (notebook_cache if kind == "pt" else activation_files).opened(path) as found:
        assert found.rows.shape == VALUES.shape
        got = imported.look(found, [""] * N_PROMPTS, config)
        for first, stop in ((0, N_PROMPTS), (17, 18), (3, 3), (60, 90), (5, 40)):
            block = found.rows.read(first, stop)
            np.testing.assert_array_equal(block.toarray(), VALUES[first:stop])
            assert block.nnz == np.count_nonzero(VALUES[first:stop])
    assert got.key == expected.key


@pytest.mark.parametrize("kind", ["csr", "h5ad-csc", "ann-zarr", "pt"])
def test_runs_of_other_formats_are_the_same(kind: str, dense: gpuclust.Run, tmp_path: Path) -> None:
    run = go(FORMATS[kind](tmp_path), tmp_path / "out")
    pd.testing.assert_frame_equal(run.features, dense.features)
    pd.testing.assert_frame_equal(run.examples, dense.examples)
    assert stage(run, "extract")["key"] == stage(dense, "extract")["key"]


# ---------------------------------------------------------------- tokens


TOKEN_SETTINGS = {"extract": {"rows": "token", "window": 3}}


def check_tokens(run: gpuclust.Run, ids: Array | None = IDS) -> None:
    found = run.tokens.load()
    np.testing.assert_array_equal(found["activations"].values, TOKENS.reshape(-1, TOKENS.shape[2]))
    np.testing.assert_array_equal(found["prompt"], np.repeat(np.arange(N_PROMPTS), LENGTH))
    np.testing.assert_array_equal(found["position"], np.tile(np.arange(LENGTH), N_PROMPTS))
    np.testing.assert_array_equal(found["token"], -1 if ids is None else ids.ravel())
    np.testing.assert_array_equal(run.activations.values, TOKENS.max(axis=1))
    assert stage(run, "extract")["token_rows"] == N_PROMPTS * LENGTH
    assert verifying.damages(run.path) == []


@pytest.fixture(scope="module")
def token_run(tmp_path_factory: pytest.TempPathFactory) -> gpuclust.Run:
    folder = tmp_path_factory.mktemp("latents")
    return go(latents(folder / "layers.5"), folder / "out", settings=TOKEN_SETTINGS)


def test_the_cache_of_delphi_becomes_a_run_of_tokens(token_run: gpuclust.Run) -> None:
    check_tokens(token_run)
    assert (token_run.prompts["n_tokens"] == LENGTH).all()
    assert (token_run.prompts["text"] == "").all()
    examples = token_run.examples
    assert len(examples) > 100
    found = TOKENS[examples["prompt"], examples["position"], examples["feature"]]
    np.testing.assert_array_equal(found, examples["value"])
    observed = stage(token_run, "neighbors")["observed"]
    assert observed[schema.WHOLE] == N_PROMPTS * LENGTH


@pytest.mark.parametrize("rows", ["prompt", "window"])
def test_other_rows_are_taken_from_imported_tokens(rows: str, token_run: gpuclust.Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["--reuse", str(token_run.path), "--out", str(out), "--scheduler", "threads", "--quiet"]
    assert cli.main(["run", *given, "--set", f"extract.rows={rows}"]) == 0
    observed = stage(gpuclust.open_run(out), "neighbors")["observed"][schema.WHOLE]
    assert observed == {"prompt": N_PROMPTS, "window": N_PROMPTS * LENGTH // 3}[rows]


def test_tokens_are_kept_where_prompts_are_clustered(token_run: gpuclust.Run, tmp_path: Path) -> None:
    run = go(latents(tmp_path / "layers.5"), tmp_path / "prompts")
    check_tokens(run)
    assert stage(run, "neighbors")["observed"][schema.WHOLE] == N_PROMPTS
    given = ["--reuse", str(run.path), "--out", str(tmp_path / "tokens"), "--scheduler", "threads", "--quiet"]
    assert cli.main(["run", *given, "--set", "extract.rows=token", "extract.window=3"]) == 0
    again = gpuclust.open_run(tmp_path / "tokens")
    pd.testing.assert_frame_equal(again.features, token_run.features)


def group(folder: Path, name: str = "tokens.zarr") -> Path:
    """A Zarr group as gpuclust's tokens.zarr, with rows that are no tokens."""
    values = TOKENS.reshape(-1, TOKENS.shape[2])
    made = zarr.create_group(folder / name)
    pad = np.full(5, -1)
    prompt, position = np.repeat(np.arange(N_PROMPTS), LENGTH), np.tile(np.arange(LENGTH), N_PROMPTS)
    for key, data in (
        ("activations", np.insert(values, 100, np.ones((5, 1)), axis=0)), ("prompt", np.insert(prompt, 100, pad)),
        ("position", np.insert(position, 100, pad)), ("token", np.insert(IDS.ravel(), 100, pad)),
    ):  # fmt: skip
        made.create_array(key, data=data)
    return folder / name


def test_rows_of_tokens_in_other_formats_are_the_same_run(token_run: gpuclust.Run, tmp_path: Path) -> None:
    values = TOKENS.reshape(-1, TOKENS.shape[2])
    places = {"prompt": np.repeat(np.arange(N_PROMPTS), LENGTH), "token": IDS.ravel()}
    x = csr_array(values)
    np.savez(tmp_path / "a.npz", data=x.data, indices=x.indices, indptr=x.indptr, shape=x.shape, **places)
    np.savez(tmp_path / "b.npz", activations=values, **places, position=np.tile(np.arange(LENGTH), N_PROMPTS))
    obs = pd.DataFrame({name: found for name, found in places.items()})
    annotated(csr_array(values), obs).write_h5ad(tmp_path / "a.h5ad")
    annotated(csr_array(values), obs.astype({"prompt": "category", "token": "Int64"})).write_h5ad(tmp_path / "b.h5ad")
    paths = [tmp_path / name for name in ("a.npz", "b.npz", "a.h5ad", "b.h5ad")]
    paths += [group(tmp_path), latents(tmp_path / "old", absolute=True), token_run.path / schema.TOKENS]
    key = stage(token_run, "extract")["key"]
    for path in paths:
        with activation_files.opened(path) as found:
            assert imported.look(found, [""] * N_PROMPTS, validate({**SETTINGS, **TOKEN_SETTINGS})).key == key, (
                path.name
            )


@pytest.mark.parametrize("how", ["max", "mean", "sum", "last"])
def test_prompts_are_aggregated_from_their_tokens(how: str, tmp_path: Path) -> None:
    settings = {"extract": {"aggregate": how}, "select": {"sparsity_max": 2.0, "sparsity_min": -1.0, "entropy_low": -1}}
    run = go(latents(tmp_path / "layers.5", ids=None), tmp_path / "out", settings=settings)
    check = {"max": TOKENS.max(1), "mean": TOKENS.mean(1), "sum": TOKENS.sum(1), "last": TOKENS[:, -1]}[how]
    np.testing.assert_allclose(run.activations.values, check.astype(np.float16), rtol=1e-3)


def test_a_cache_without_tokens_has_as_many_as_fire(tmp_path: Path) -> None:
    check_tokens(go(latents(tmp_path / "layers.5", ids=None), tmp_path / "out"), ids=None)


def test_one_file_of_a_cache_has_the_numbers_of_the_sae(tmp_path: Path) -> None:
    where = np.ascontiguousarray(np.argwhere(TOKENS))  # safetensors writes arrays as they lie
    save_file({"locations": where, "activations": TOKENS[tuple(where.T)], "tokens": IDS}, tmp_path / "l.5.safetensors")
    with activation_files.opened(tmp_path / "l.5.safetensors", 77) as found:
        assert found.rows.shape == (N_PROMPTS * LENGTH, 77)
        np.testing.assert_array_equal(found.rows.read(0, 20).toarray()[:, :60], TOKENS.reshape(-1, 60)[:20])


@pytest.mark.parametrize("shuffled", [False, True])
def test_entries_in_any_order_are_read(shuffled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_readers, "HELD", 200 if shuffled else 1)
    monkeypatch.setattr(row_readers.iterate, "__defaults__", (31,))
    where = np.ascontiguousarray(np.argwhere(TOKENS))
    where = np.random.default_rng(0).permutation(where) if shuffled else where
    save_file({"locations": where, "activations": TOKENS[tuple(where.T)], "tokens": IDS}, tmp_path / "a.safetensors")
    with activation_files.opened(tmp_path / "a.safetensors") as found:
        for first, stop in ((0, 9), (9, 200), (500, 540), *((row, row + 1) for row in range(60))):
            np.testing.assert_array_equal(found.rows.read(first, stop).toarray(), TOKENS.reshape(-1, 60)[first:stop])


# ---------------------------------------------------------------- going on


def killed_after(path: Path, out: Path, shards: int, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """An import that ends as so many shards are written."""
    real, written = markers.write_shard, []

    def write(*given: Any) -> None:
        if len(written) == shards:
            raise KeyboardInterrupt
        written.append(given[2])
        real(*given)

    monkeypatch.setattr(markers, "write_shard", write)
    with pytest.raises(KeyboardInterrupt):
        go(path, out, **more)
    monkeypatch.setattr(markers, "write_shard", real)
    assert written == list(range(shards))


def test_a_killed_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_run: gpuclust.Run) -> None:
    path, out = latents(tmp_path / "layers.5"), tmp_path / "out"
    killed_after(path, out, 2, monkeypatch, settings=TOKEN_SETTINGS)
    run = go(path, out, settings=TOKEN_SETTINGS)
    assert (stage(run, "extract")["shards"], stage(run, "extract")["shards_computed"]) == (3, 1)
    check_tokens(run)
    pd.testing.assert_frame_equal(run.features, token_run.features)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    go(path, out, settings=TOKEN_SETTINGS)
    changed = {file.name for file in out.rglob("*") if file.is_file() and before.get(file) != file.stat().st_mtime_ns}
    assert changed <= {schema.CONFIG, schema.LOCK}


@pytest.mark.parametrize("shards", [None, 1])
@pytest.mark.parametrize("lost", [False, True])
def test_another_file_is_not_imported_into_the_same_folder(
    shards: int | None, lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = npy(tmp_path), tmp_path / "out"
    if shards is None:
        go(path, out)
    else:
        killed_after(path, out, shards, monkeypatch)
    if lost:
        (out / schema.RECORD).unlink()
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file() and file.name != schema.RECORD}
    other = VALUES.copy()
    other[3, 3] += 1
    np.save(path, other)
    np.save(tmp_path / "b.npy", VALUES)
    for file, settings, words in (
        (path, {}, "holds another cache's run"), (tmp_path / "b.npy", {}, "holds another run: sae.path is"),
        (path, {"store": {**SETTINGS["store"], "dtype": "float32"}}, "holds another"),
    ):  # fmt: skip
        if shards is None or file == path:  # as long as nothing is done, equal activations may have another name
            with pytest.raises(StoreError, match=words):
                go(file, out, settings=settings)
    assert {file: file.read_bytes() for file in before if file.exists()} == before
    np.save(path, VALUES)
    np.testing.assert_array_equal(go(path, out).activations.values, VALUES)


def test_damaged_shards_are_imported_again(token_run: gpuclust.Run, tmp_path: Path) -> None:
    from gpuclust import verify

    path, out = latents(tmp_path / "layers.5"), tmp_path / "out"
    shutil.copytree(token_run.path, out)
    file = out / schema.TOKENS / "activations" / "c" / "1" / "0"
    before = file.read_bytes()
    file.write_bytes(before[:50] + bytes([before[50] ^ 1]) + before[51:])
    assert verify.main([str(out)]) == 1
    run = go(path, out, settings=TOKEN_SETTINGS)
    assert file.read_bytes() == before
    assert stage(run, "extract")["shards_computed"] == 1
    assert verify.main([str(out)]) == 0


def test_a_run_or_a_folder_with_other_things_is_left_alone(dense: gpuclust.Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not empty and holds no run"):
        go(npy(tmp_path), tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["notes.txt"]
    with pytest.raises(StoreError, match="is a run of gpuclust: gpuclust run --reuse"):
        go(dense.path, tmp_path / "two")


# ---------------------------------------------------------------- texts, the command, precision


def texts_file(folder: Path, kind: str, texts: list[str]) -> Path:
    path = folder / f"texts.{kind}"
    table = pd.DataFrame({"words": texts, "text": "wrong"})
    if kind == "txt":
        path.write_text("".join(f"{text}\n" for text in texts))
    elif kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    elif kind == "csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_texts_of_a_file_are_those_of_the_prompts(kind: str, tmp_path: Path) -> None:
    from gpuclust.extraction.prompts import read_texts

    texts = [f"text, number {n}" for n in range(5)] + ["", "last\u2028one"]
    assert read_texts(texts_file(tmp_path, kind, texts), "words") == texts


def test_the_command(tmp_path: Path, dense: gpuclust.Run, capsys: pytest.CaptureFixture[str]) -> None:
    texts = texts_file(tmp_path, "txt", [f"red word{n % 7}" for n in range(N_PROMPTS)])
    out = tmp_path / "out"
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps(SETTINGS))
    given = ["import", str(npy(tmp_path)), "--out", str(out), "--config", str(config), "--prompts", str(texts)]
    assert cli.main([*given, "--scheduler", "threads", "--quiet", "--set", "seed=0"]) == 0
    assert capsys.readouterr().out.split() == [str(out)]
    run = gpuclust.open_run(out)
    assert run.prompts["text"].tolist()[:2] == ["red word0", "red word1"]
    pd.testing.assert_frame_equal(run.features, dense.features)
    assert cli.main([*given, "--scheduler", "threads"]) == 0
    assert "done before" in capsys.readouterr().out
    assert cli.main(["import", str(tmp_path / "none.npy")]) == 2
    assert "there is no" in capsys.readouterr().err


def test_texts_of_observations_are_taken(tmp_path: Path) -> None:
    obs = pd.DataFrame({"text": pd.Series([f"text {n}" for n in range(N_PROMPTS)], dtype=object)})
    annotated(csr_array(VALUES), obs).write_h5ad(tmp_path / "a.h5ad")
    with activation_files.opened(tmp_path / "a.h5ad") as found:
        assert found.texts == obs["text"].tolist()


def test_runs_without_texts_show_numbers(dense: gpuclust.Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert (dense.prompts["text"] == "").all()
    best = dense.clusters.query("cluster == 0")["top_prompts"].iloc[0][0]
    assert best["text"] == ""
    assert cli.main(["show", str(dense.path), "--cluster", "0"]) == 0
    assert f"prompt {best['prompt']}" in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "factor"), [("float16", 1e-9), ("float32", 1e-45)])
def test_what_is_too_small_is_counted(
    dtype: str, factor: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = VALUES.astype(np.float64)
    places = np.argwhere(values)[::50]
    values[tuple(places.T)] *= factor * 1e-10
    np.save(tmp_path / "a.npy", values)
    run = go(tmp_path / "a.npy", tmp_path / "out", settings={"store": {**SETTINGS["store"], "dtype": dtype}})
    assert stage(run, "extract")["underflowed"] == len(places)
    assert f"{len(places)} activations that are not zero" in caplog.text
    assert np.count_nonzero(run.activations.values) == np.count_nonzero(VALUES) - len(places)
    warnings = json.loads((run.path / schema.RECORD).read_text())["warnings"]
    assert [line for line in warnings if "are stored as 0" in line] == warnings[:1]


def test_nothing_large_is_made_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No block of rows is larger than a shard, and no read of a dense array than a slab."""
    rows: list[int] = []
    real = row_readers.Rows.sparse

    def seen(self: Any, first: int, indptr: Any, *rest: Any) -> Any:
        rows.append(len(indptr) - 1)
        return real(self, first, indptr, *rest)

    monkeypatch.setattr(row_readers.Rows, "sparse", seen)
    with activation_files.opened(h5ad(csr_array)(tmp_path)) as found:
        imported.look(found, [""] * N_PROMPTS, validate(SETTINGS))
    assert rows == [40, 40, 10]


def test_rows_without_activations_are_prompts_too(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[[0, 50, 89]] = 0
    np.save(tmp_path / "a.npy", values)
    run = go(tmp_path / "a.npy", tmp_path / "out")
    assert len(run.prompts) == N_PROMPTS
    np.testing.assert_array_equal(run.activations.values, values)


# ---------------------------------------------------------------- what is refused


def saved(**arrays: Any) -> Any:
    def write(folder: Path) -> Path:
        np.savez(folder / "a.npz", **arrays)
        return folder / "a.npz"

    return write


def array(values: Any) -> Any:
    def write(folder: Path) -> Path:
        np.save(folder / "a.npy", values)
        return folder / "a.npy"

    return write


def changed(place: tuple[int, int], value: float, dtype: Any = np.float32) -> Any:
    values = VALUES.astype(dtype)
    values[place] = value
    return array(values)


def rows_of(**changes: Any) -> Any:
    """Compressed sparse rows, of which something is otherwise."""
    x = csr_array(np.array([[0, 1, 2], [0, 0, 0], [3, 0, 4]], np.float32))
    return saved(**{"data": x.data, "indices": x.indices, "indptr": x.indptr, "shape": x.shape} | changes)


def cache(name: str = "0_2", **changes: Any) -> Any:
    """A cache of delphi of one file, of which something is otherwise."""
    where = np.array([[0, 0, 1], [0, 1, 2], [1, 0, 0]])
    data = {"locations": where, "activations": np.array([1, 2, 3], np.float16), "tokens": np.ones((2, 2), np.int64)}

    def write(folder: Path) -> Path:
        (folder / "l").mkdir()
        kept = {key: value for key, value in (data | changes).items() if value is not None}
        save_file(kept, folder / "l" / f"{name}.safetensors")
        return folder / "l"

    return write


def placed(prompt: Any, **more: Any) -> Any:
    return saved(activations=np.ones((4, 3), np.float32), prompt=np.array(prompt), **more)


def plain(name: str, data: bytes) -> Any:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def turned_round(folder: Path) -> Path:
    import anndata

    names = [pd.Index([str(n) for n in range(size)], dtype=object) for size in (4, 3)]
    obs, var = pd.DataFrame({"feature": range(4)}, names[0]), pd.DataFrame({"prompt": range(3)}, names[1])
    anndata.AnnData(np.ones((4, 3), np.float32), obs=obs, var=var).write_h5ad(folder / "a.h5ad")
    return folder / "a.h5ad"


def named_dimensions(folder: Path) -> Path:
    group = zarr.create_group(folder / "a.zarr")
    group.create_array("activations", data=VALUES.T.copy(), dimension_names=("feature", "prompt"))
    return folder / "a.zarr"


def no_group(folder: Path) -> Path:
    zarr.create_group(folder / "a.zarr").create_array("weights", data=VALUES)
    return folder / "a.zarr"


def parent(folder: Path) -> Path:
    latents(folder / "latents" / "layers.5")
    return folder / "latents"


def two_files(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str] = ("0_2", "3_5")) -> Any:
    def write(folder: Path) -> Path:
        (folder / "l").mkdir()
        for name, more in zip(names, (first, second), strict=True):
            cache(name, **more)(folder / name if (folder / name).mkdir() is None else folder)
            shutil.copy(folder / name / "l" / f"{name}.safetensors", folder / "l")
        return folder / "l"

    return write


def npy_as_npz(folder: Path) -> Path:
    return npy(folder).rename(folder / "a.npz")


W = np.array([[0, 0, 1], [0, 1, 2], [1, 0, 0]])
BAD: dict[str, tuple[Any, type[GpuclustError], str]] = {
    "missing": (lambda folder: folder / "none.npz", StoreError, "there is no .*none.npz: give a file or folder"),
    "extension": (plain("a.mat", b"x"), StoreError, r"a.mat: files of type .mat are not read; give .npy, .npz"),
    "no extension": (plain("a", b"x"), StoreError, r"files of type \(none\) are not read"),
    "npy damaged": (plain("a.npy", b"\x93NUMPY nonsense"), StoreError, "a.npy cannot be read"),
    "npz damaged": (plain("a.npz", b"PK nonsense"), StoreError, "a.npz cannot be read"),
    "npz that is no archive": (npy_as_npz, ActivationError, r"a.npz holds one array, as a .npy file .* name it .npy"),
    "h5ad damaged": (plain("a.h5ad", b"nonsense"), StoreError, r"a.h5ad cannot be read \(OSError"),
    "safetensors damaged": (plain("a.safetensors", b"nonsense"), StoreError, "cannot be read as safetensors"),
    "objects": (array(np.array([[None, 1.0]])), StoreError, "holds objects, which are not loaded"),
    "objects npz": (saved(activations=np.array([[None, 1.0]])), StoreError, "holds objects, which are not loaded"),
    "objects csr": (rows_of(data=np.array([None] * 4)), StoreError, "holds objects, which are not loaded"),
    "empty": (array(np.zeros((0, 5))), ActivationError, r"has the shape \(0, 5\); it holds no activations"),
    "zeros": (array(np.zeros((7, 5))), ActivationError, "holds no activations: all of 7 rows × 5 features are zero"),
    "dimensions": (array(np.ones((2, 3, 4))), ActivationError, r"an array of shape \(2, 3, 4\); \(row, feature\)"),
    "complex": (array(np.ones((2, 3), complex)), ActivationError, "activations are complex128; real numbers"),
    "nan": (changed((5, 7), np.nan), ActivationError, "feature 7 in row 5 is nan.*Clean them first"),
    "inf": (changed((5, 7), -np.inf), ActivationError, "feature 7 in row 5 is -inf"),
    "beyond float16": (changed((5, 7), 1e5), ActivationError, "100000, does not fit float16.*store.dtype=float32"),
    "beyond float32": (changed((5, 7), 1e50, np.float64), ActivationError, r"1e\+50, which float32 cannot hold"),
    "several arrays": (saved(a=VALUES, b=VALUES), ActivationError, "holds a, b; a sparse matrix"),
    "format": (saved(format=b"dia", data=VALUES, shape=VALUES.shape), ActivationError, "of format dia; csr, csc"),
    "no indices": (saved(format=b"csr", data=VALUES, shape=VALUES.shape), ActivationError, "has no indices, indptr"),
    "twice": (rows_of(indices=[1, 1, 0, 2]), ActivationError, "feature 1 is there twice in row 0, with 1 and 2"),
    "beyond": (rows_of(indices=[1, 2, 0, 3]), ActivationError, "feature 3 of row 2 is none of 3 features.*n-features"),
    "negative": (rows_of(indices=[1, -2, 0, 2]), ActivationError, "feature -2 of row 0 is none of 3 features"),
    "fractions": (rows_of(indices=[1.0, 2.0, 0.0, 2.0]), ActivationError, "are float64; whole numbers"),
    "lengths": (rows_of(data=np.ones(5)), ActivationError, "indptr has 4 entries, indices 4 and data 5"),
    "indptr": (rows_of(indptr=[0, 3, 2, 4]), ActivationError, "indptr falls from 3 to 2 at 2"),
    "rows": (rows_of(shape=(4, 3)), ActivationError, "indptr has 4 entries.*of 4 sparse rows or columns indptr has 5"),
    "no shape": (rows_of(shape=(3,)), ActivationError, r"has the shape \(3,\); \(row, feature\)"),
    "coo lengths": (saved(format=b"coo", row=[0], col=[0, 1], data=[1.0, 1.0], shape=(2, 2)), ActivationError,
                    "row has 1 entries, col 2 and data 2"),
    "coo row": (saved(format=b"coo", row=[0, 9], col=[0, 1], data=[1.0, 1.0], shape=(2, 2)), ActivationError,
                r"row 9 of the entry \(row 9, feature 1\) is none of 2 rows"),
    "not grouped": (placed([0, 1, 0, 1]), ActivationError, "row 2 is of prompt 0 and follows a row of prompt 1.*sort"),
    "left out": (placed([0, 0, 2, 2]), ActivationError, "row 2 is of prompt 2 and follows a row of prompt 0"),
    "from one": (placed([1, 1, 2, 2]), ActivationError, "row 0 is of prompt 1 and is the first"),
    "no token": (placed([-1] * 4), ActivationError, "`prompt` is -1 for all 4 rows"),
    "prompt length": (placed([0, 0, 1]), ActivationError, r"`prompt` has the shape \(3,\), and there are 4 rows"),
    "prompt text": (placed(list("aabb")), ActivationError, "`prompt` is <U1; whole numbers are expected"),
    "prompt negative": (placed([0, 0, -3, 1]), ActivationError, "`prompt` of row 2 is -3"),
    "position large": (placed([0, 0, 1, 1], position=[0, 2**31, 0, 1]), ActivationError,
                       "`position` of row 1 is 2147483648; 0 to 2,147,483,647"),
    "position order": (placed([0, 0, 1, 1], position=[0, 1, 4, 4]), ActivationError,
                       "row 3 has position 4 of prompt 1, and the row before it 4"),
    "position alone": (saved(activations=VALUES, position=np.zeros(90, int)), ActivationError, "but not `prompt`"),
    "token length": (placed([0, 0, 1, 1], token=[3]), ActivationError, r"`token` has the shape \(1,\)"),
    "turned round": (turned_round, ActivationError, "features as observations and prompts as"),
    "dimension names": (named_dimensions, ActivationError, r"dimensions \('feature', 'prompt'\)"),
    "no activations": (no_group, ActivationError, "holds weights; `X` .* or `activations`"),
    "folder": (lambda folder: folder, StoreError, "neither a Zarr folder nor has it files FIRST_LAST.safetensors"),
    "parent": (parent, StoreError, "give one of its folders, each of one SAE: layers.5"),
    "cache name": (cache("layers"), StoreError, "is not named FIRST_LAST.safetensors"),
    "cache range": (cache("5_2"), StoreError, "features 5 to 2: the first is beyond the last"),
    "cache tensors": (cache(locations=None), ActivationError, "holds activations, tokens, and no locations"),
    "cache lengths": (cache(activations=np.ones(2)), ActivationError, r"\(3, 3\) and activations \(2,\)"),
    "cache beyond": (cache("0_1"), ActivationError, "has feature 2, and its name says 0 to 1"),
    "cache prompts": (cache(locations=np.add(W, [3, 0, 0])), ActivationError, "of prompt 4, but `tokens` have 2"),
    "cache positions": (cache(locations=np.add(W, [0, 3, 0])), ActivationError, "of position 4, but `tokens` have 2"),
    "cache negative": (cache(locations=W - [0, 1, 0]), ActivationError, "an entry is of position -1"),
    "cache twice": (cache(locations=W * 0), ActivationError, "feature 0 is there twice in row 0, with 1 and 2"),
    "cache nan": (cache(activations=np.array([1, np.nan, 2])), ActivationError, "feature 2 in row 1 is nan"),
    "cache tokens": (cache(tokens=np.ones(4)), ActivationError, r"tokens are float64 of shape \(4,\)"),
    "other tokens": (two_files({}, {"tokens": np.zeros((2, 2), np.int64)}), ActivationError, "not of one cache"),
    "overlap": (two_files({}, {}, ("0_2", "2_4")), ActivationError, "both have feature 2: take one away"),
    "neither": (two_files({"locations": np.add(W, [0, 0, 9])}, {}), ActivationError, "neither its place in the file"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said_before_anything_is_written(what: str, tmp_path: Path) -> None:
    make, kind, words = BAD[what]
    path = make(tmp_path)
    with pytest.raises(kind, match=words) as refused:
        go(path, tmp_path / "out")
    assert str(path.name) in str(refused.value) or path == tmp_path
    assert refused.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ({"n_features": 61}, ActivationError, r"has 60 features, and --n-features \(n_features\) is 61"),
        ({"settings": {"extract": {"rows": "token"}}}, InputError, "has prompts, not tokens"),
        ({"settings": {"extract": {"rows": "window"}}}, InputError, "has prompts, not tokens"),
        ({"prompts": "few.txt"}, PromptsError, "few.txt has 2 texts, and .*a.npy 90 prompts"),
        ({"prompts": "none.txt"}, PromptsError, "there is no prompt file"),
        ({"prompts": "few.docx"}, PromptsError, "files of type .docx are not read"),
        ({"scheduler": "nowhere"}, GpuclustError, "nowhere"),
    ],
)
def test_what_does_not_fit_the_file_is_said(more: dict[str, Any], kind: Any, words: str, tmp_path: Path) -> None:
    for name in ("few.txt", "few.docx"):
        (tmp_path / name).write_text("one\ntwo\n")
    if "prompts" in more:
        more = more | {"prompts": tmp_path / more["prompts"]}
    with pytest.raises(kind, match=words):
        go(npy(tmp_path), tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_a_number_of_features_below_the_largest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ActivationError, match=r"has feature 2, and --n-features \(n_features\) is 2"):
        go(cache()(tmp_path), tmp_path / "out", n_features=2)


def test_without_h5py_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"pip install 'gpuclust\[h5ad\]'"):
        go(plain("a.h5ad", b"")(tmp_path), tmp_path / "out")


def test_a_missing_file_of_a_cache_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = latents(tmp_path / "l")
    (path / "25_59.safetensors").rename(path / "30_64.safetensors")
    with activation_files.opened(path) as found:
        assert found.rows.shape[1] == 65
    assert "no file has features 25 to 29, which never fire here" in caplog.text


def test_bfloat16_is_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_tensors

    data = {"locations": torch.tensor([[0, 0, 1], [1, 1, 2]]), "activations": torch.tensor([1.5, 2.5])}
    for name, kind in (("a", torch.bfloat16), ("b", torch.float8_e4m3fn)):
        save_tensors(data | {"activations": data["activations"].to(kind)}, tmp_path / f"{name}.safetensors")
    with activation_files.opened(tmp_path / "a.safetensors", 4) as found:
        assert found.rows.read(0, 4).toarray().tolist() == [[0, 1.5, 0, 0], [0] * 4, [0] * 4, [0, 0, 2.5, 0]]
    with pytest.raises(ActivationError, match="activations are of dtype F8_E4M3"):
        go(tmp_path / "b.safetensors", tmp_path / "out")


# ---------------------------------------------------------------- words of a tokenizer


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> gpuclust.Run:
    """Tokens of which a tokenizer says what they are."""
    folder = tmp_path_factory.mktemp("words")
    lines = (Path(gpuclust.__file__).parent / "demo/prompts.jsonl").read_text().splitlines()[:N_PROMPTS]
    tokenizer = encoders.load_tokenizer(validate({}))
    ids = np.array([tokenizer(json.loads(line)["text"])["input_ids"][:LENGTH] for line in lines])
    (folder / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / "model" / name, folder / "tokenizer")
    return go(latents(folder / "l", ids=ids), folder / "out", tokenizer=folder / "tokenizer")


def test_a_tokenizer_gives_words_and_texts(spoken: gpuclust.Run) -> None:
    prompts = spoken.prompts
    tokenizer = encoders.load_tokenizer(validate({}))
    assert prompts["text"].tolist() == [tokenizer.decode(ids) for ids in prompts["tokens"]]
    assert {len(ids) for ids in prompts["tokens"]} == {LENGTH}
    real = spoken.clusters.query("cluster >= 0")
    assert len(real) > 0
    assert all(len(words) for words in real["tokens"])
    assert real["promoted_tokens"].isna().all()
    examples = spoken.examples.assign(start=spoken.example_spans["start"], stop=spoken.example_spans["stop"])
    shown = examples[examples["start"] >= 0]
    assert len(shown) > len(examples) / 2
    for row in shown.to_dict("records")[:200]:
        ids, text = (prompts[name].iloc[row["prompt"]] for name in ("tokens", "text"))
        assert tokenizer.decode([ids[row["position"]]]).strip() in text[row["start"] : row["stop"]]
    skipped = stage(spoken, "quality")["skipped"]
    assert "decoder: the activations were imported, there is no SAE" in skipped


def test_a_tokenizer_needs_ids(tmp_path: Path) -> None:
    model = str(DEMO / "model")
    with pytest.raises(InputError, match="has prompts, not tokens, so that there is nothing for a tokenizer"):
        go(npy(tmp_path), tmp_path / "out", tokenizer=model)
    with pytest.raises(ActivationError, match="has no token id for row 0 and 539 others"):
        go(latents(tmp_path / "l", ids=None), tmp_path / "out", tokenizer=model)
    values = np.ones((4, 3), np.float32)
    np.savez(tmp_path / "a.npz", activations=values, prompt=[0, 0, 1, 1], position=[-1, 0, 0, 2], token=[1, 2, 3, 4])
    with pytest.raises(ActivationError, match="prompt 1 has 2 tokens at positions 0 to 2"):
        go(tmp_path / "a.npz", tmp_path / "out", tokenizer=model)
    with pytest.raises(GpuclustError, match=r"--tokenizer .* cannot be had"):
        go(latents(tmp_path / "m"), tmp_path / "out", tokenizer=str(tmp_path))
    assert not (tmp_path / "out").exists()
