"""Activations that others wrote become runs: every format gives what a dense array gives, and bad input is refused."""

from __future__ import annotations

import itertools
import json
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
from gpuclust.configfile import validate
from gpuclust.engine import imported
from gpuclust.extraction import activation_files, row_readers
from gpuclust.storage import store, verifying
from tests.planted import planted

N_PROMPTS, LENGTH = 90, 6
SETTINGS: dict[str, Any] = {
    "select": {"sparsity_max": 2.0, "sparsity_min": 0.0}, "hdbscan": {"min_cluster_size": 4, "min_samples": 3},
    "quality": {"null": False, "random_sets": 2}, "consensus": {"members": 2}, "umap": {"n_neighbors": 10},
    "store": {"shard_prompts": 40, "chunk_prompts": 20, "chunk_features": 32},
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
    "zarr3": zarr_array(3), "xarray": xarray_group, "own": own_store("bitmap"), "own-zstd": own_store("zstd"),
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


def test_entries_in_any_order_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_readers, "HELD", 200)
    where = np.random.default_rng(0).permutation(np.argwhere(TOKENS))
    save_file({"locations": where, "activations": TOKENS[tuple(where.T)], "tokens": IDS}, tmp_path / "a.safetensors")
    with activation_files.opened(tmp_path / "a.safetensors") as found:
        for first, stop in ((0, 9), (9, 200), (500, 540), (3, 5)):
            np.testing.assert_array_equal(found.rows.read(first, stop).toarray(), TOKENS.reshape(-1, 60)[first:stop])
