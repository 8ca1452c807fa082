"""What fires on every token: extracted beside the prompts' activations, read again as tokens and windows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml
from scipy.sparse import csr_array

import gpuclust
from gpuclust import run, schema
from gpuclust.compute import windows
from gpuclust.configfile import load, validate, without_effect
from gpuclust.engine import token_rows
from gpuclust.errors import ConfigError, InputError, ParameterError, StoreError
from gpuclust.extraction import encoders, extract_shard
from gpuclust.extraction.gathered_tokens import GatheredTokens
from gpuclust.hardware import token_budget
from gpuclust.storage import store, token_store, verifying
from tests import tiny


def made(folder: Path, rows: str, **changed: Any) -> Path:
    settings = tiny.build(folder) | {"store": {"shard_prompts": 25, "chunk_prompts": 25, "chunk_features": 40}}
    settings["extract"] = settings.get("extract", {}) | {"rows": rows, "window": 5} | changed
    settings["hdbscan"] = {"min_cluster_size": 2, "min_samples": 1}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert run.main(["--config", str(config), "--out", str(folder / "out"), "--scheduler", "threads", "--quiet"]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("tokens"), "token")


def opened(out: Path) -> xr.Dataset:
    whole = xr.open_zarr(out / schema.TOKENS)
    return whole.isel(row=np.flatnonzero(whole["prompt"].values >= 0)).load()


def test_prompts_are_what_their_tokens_add_up_to(tokens: Path) -> None:
    """To the last bit: both are of one forward pass."""
    found, stored = opened(tokens), store.open_array(tokens / schema.ACTIVATIONS)[:]
    values, prompt = found["activations"].values, found["prompt"].values
    best = np.zeros_like(stored)
    for row, of in zip(values, prompt, strict=True):
        larger = np.abs(row) > np.abs(best[of])
        best[of][larger] = row[larger]
    np.testing.assert_array_equal(best, stored)


def test_a_run_has_its_tokens(tokens: Path, small_run: Path) -> None:
    own, found = gpuclust.open_run(tokens).tokens, opened(tokens)
    assert own["activations"].dtype == np.float32
    np.testing.assert_array_equal(own["activations"].values.astype(np.float16), found["activations"].values)
    np.testing.assert_array_equal(own["prompt"].values, found["prompt"].values)
    with pytest.raises(StoreError, match=r"tokens\.zarr"):
        _ = gpuclust.open_run(small_run).tokens


def test_blocks_of_sparse_rows_are_larger(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, rows = np.arange(96), token_rows.Rows(None, "max")
    cut = [block.shape[0] for block in token_rows.blocks(tokens, kept, rows, 7)]
    assert max(cut) == 7
    whole = list(token_rows.blocks(tokens, kept, rows, 7, sparse_below=1.0))
    assert len(whole) == 3  # shards
    monkeypatch.setattr(token_budget, "ENTRIES", 200)
    several = list(token_rows.blocks(tokens, kept, rows, 7, sparse_below=1.0))
    assert len(whole) < len(several) < len(cut)
    assert max(block.nnz for block in several) < 2 * 200
    assert [block.shape[0] for block in token_rows.blocks(tokens, kept, rows, 7, sparse_below=1e-9)] == cut
    for got in (whole, several):
        assert sum(block.shape[0] for block in got) == sum(cut)


def test_a_window_that_is_none_is_named() -> None:
    config = load(overrides=["extract.window=8"])
    assert without_effect(config) == "extract.window has no effect with extract.rows=prompt: it is of window"
    assert without_effect(load(overrides=["extract.window=8", "extract.rows=window"])) is None


def test_rows_are_the_tokens_of_the_prompts_in_order(tokens: Path) -> None:
    found, prompts = opened(tokens), pd.read_parquet(tokens / schema.PROMPTS)
    expected = [(p, at, token) for p, own in enumerate(prompts["tokens"]) for at, token in enumerate(own)]
    got = list(zip(*(found[name].values.tolist() for name in token_store.COORDINATES), strict=True))
    assert got == expected
    assert json.loads((tokens / schema.RECORD).read_text())["stages"]["extract"]["token_rows"] == len(expected)


@pytest.mark.parametrize(("window", "how"), [(None, "max"), (5, "max"), (5, "mean"), (10**6, "max")])
def test_rows_are_read_shard_by_shard(tokens: Path, window: int | None, how: str) -> None:
    rows = token_rows.Rows(window, how)
    found = opened(tokens)
    values, prompt = found["activations"].values.astype(np.float64), found["prompt"].values
    kept = np.arange(0, values.shape[1], 3)
    blocks = list(token_rows.blocks(tokens, kept, rows, 7))
    assert max(block.shape[0] for block in blocks) <= 7
    got = np.concatenate([block.toarray() for block in blocks])
    of = token_rows.prompts_of(tokens, rows)
    assert len(of) == len(got)
    expected, numbers = [], []
    for p in np.unique(prompt):
        own = values[prompt == p][:, kept]
        step = window or 1
        for part in (own[at : at + step] for at in range(0, len(own), step)):
            peak = part[np.abs(part).argmax(axis=0), np.arange(len(kept))]
            expected.append(peak if how == "max" else part.mean(axis=0))
            numbers.append(p)
    np.testing.assert_array_equal(of, numbers)
    np.testing.assert_allclose(got, np.array(expected), rtol=1e-6)
    squares, times = token_rows.norms(tokens, kept, rows, 7)
    np.testing.assert_allclose(squares, np.linalg.norm(got, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(times, (got != 0).sum(axis=0))
    if window == 10**6:  # whole prompts
        stored = store.open_array(tokens / schema.ACTIVATIONS)[:]
        np.testing.assert_array_equal(got.astype(np.float16), stored[:, kept])


def test_neighbours_are_over_tokens_and_halves_by_prompt(tokens: Path) -> None:
    from gpuclust.compute.halves import half_of
    from gpuclust.engine.views import read_errors, read_neighbors, view_path

    found = opened(tokens)
    config = validate(yaml.safe_load((tokens / schema.CONFIG).read_text()))
    assert config.metric == "correlation"
    half = half_of(store.open_array(tokens / schema.ACTIVATIONS).shape[0], config.seed)[found["prompt"].values]
    for view, own in ((schema.WHOLE, half >= 0), ("half0", half == 0), ("half1", half == 1)):
        kept, indices, distances = read_neighbors(view_path(tokens, view, schema.NEIGHBORS))
        values = found["activations"].values[own][:, kept].astype(np.float64)
        correlation = np.corrcoef(values.T)
        expected = np.sort(1 - correlation, axis=1)[:, : indices.shape[1]]
        np.testing.assert_allclose(distances, np.maximum(expected, 0), atol=2e-6)
        observed = json.loads((tokens / schema.RECORD).read_text())["stages"]["neighbors"]["observed"]
        assert observed[view] == own.sum()
        r = 1 - distances.astype(np.float64)
        n_prompts = len(np.unique(found["prompt"].values[own]))
        expected = (1 - r**2) * np.sqrt(1 / own.sum() + 10 * np.maximum(r, 0) / n_prompts)
        np.testing.assert_allclose(read_errors(view_path(tokens, view, schema.NEIGHBORS)), expected, rtol=1e-5)


def test_the_summary_says_what_features_are_compared_over(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gpuclust import show

    n = json.loads((tokens / schema.RECORD).read_text())["stages"]["extract"]["token_rows"]
    assert show.main([str(tokens)]) == 0
    assert f"compared over {n:,} tokens" in capsys.readouterr().out


def test_a_damaged_shard_of_tokens_is_found_and_made_anew(tokens: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(tokens, out)
    file = out / schema.TOKENS / "activations" / "c" / "1" / "0"
    before = file.read_bytes()
    file.write_bytes(before[:100] + bytes([before[100] ^ 1]) + before[101:])
    damage = verifying.damages(out)
    assert [one.stage for one in damage] == ["extract"]
    assert "tokens" in damage[0].what
    verifying.forget(out, "extract")
    assert run.main(["--config", str(out / schema.CONFIG), "--out", str(out), "--scheduler", "threads", "--quiet"]) == 0
    assert file.read_bytes() == before
    entry = json.loads((out / schema.RECORD).read_text())["stages"]["extract"]
    assert (entry["shards"], entry["shards_computed"]) == (3, 1)
    assert verifying.damages(out) == []


def test_another_run_takes_windows_and_prompts_from_a_store_of_tokens(tokens: Path, tmp_path: Path) -> None:
    for rows, of in (("window", "window"), ("prompt", "prompt")):
        out = tmp_path / rows
        given = ["--reuse", str(tokens), "--out", str(out), "--set", f"extract.rows={rows}", "--scheduler", "threads"]
        assert run.main([*given, "--quiet", "--no-report"]) == 0, of
        record = json.loads((out / schema.RECORD).read_text())
        n_prompts = record["stages"]["prompts"]["rows"]
        observed = record["stages"]["neighbors"]["observed"][schema.WHOLE]
        assert (observed == n_prompts) == (rows == "prompt")
        assert record["stages"]["neighbors"]["metric"] == ("partial_correlation" if rows == "prompt" else "correlation")


def test_tokens_are_not_taken_from_a_run_without(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--reuse", str(small_run), "--out", str(tmp_path / "out"), "--set", "extract.rows=token"]
    assert run.main([*given, "--scheduler", "threads", "--quiet"]) == 2
    assert "has no tokens: it was extracted with extract.rows=prompt" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_what_a_retried_batch_put_before_is_replaced() -> None:
    import torch

    config = validate({"extract": {"rows": "token"}})
    kept = GatheredTokens(config, 7)
    acts = torch.tensor([[0.0, 1.5], [0.0, 0.0], [2.0, -3.0]])
    for attempt in range(2):
        kept.begin(1, np.arange(3), np.array([11, 12, 13]))
        kept.put(1, acts[: 1 if attempt == 0 else 2], 0)
        if attempt:
            kept.put(1, acts[2:], 2)
    kept.begin(0, np.array([-1]), np.array([2]))
    kept.put(0, torch.zeros(1, 2), 0)
    found = kept.gather(2)
    assert found.indptr.tolist() == [0, 0, 1, 1, 3]
    assert found.indices.tolist() == [1, 0, 1]
    assert found.values.tolist() == [1.5, 2.0, -3.0]
    assert found.prompt.tolist() == [7, 8, 8, 8]
    assert found.position.tolist() == [-1, 0, 1, 2]
    assert found.token.tolist() == [2, 11, 12, 13]


def test_memory_that_runs_out_changes_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = validate(tiny.build(tmp_path) | {"extract": {"rows": "token"}})
    encoder = encoders.load_encoder(config)
    tokens = [np.arange(3, 3 + n) for n in (5, 2, 9, 4)]
    whole, halved = GatheredTokens(config, 0), GatheredTokens(config, 0)
    extract_shard.aggregate_prompts(encoder, tokens, config, kept=whole)
    real, failed = extract_shard._run_batch, []

    def out_of_memory(encoder: Any, tokens: list[Any], *rest: Any) -> Any:
        found = real(encoder, tokens, *rest)  # what was put there stays behind
        if len(tokens) > 1 and not failed:
            failed.append(len(tokens))
            raise MemoryError
        return found

    monkeypatch.setattr(extract_shard, "_run_batch", out_of_memory)
    extract_shard.aggregate_prompts(encoder, tokens, config, kept=halved)
    assert failed
    for name in ("indptr", "indices", "prompt", "position", "token"):
        np.testing.assert_array_equal(getattr(halved.gather(4), name), getattr(whole.gather(4), name))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"store": {"codec": "zstd"}}, "needs store.codec=bitmap"),
        ({"neighbors": {"method": "sketch"}}, "neighbors.method=sketch is of prompts"),
        ({"neighbors": {"metric": "partial_correlation"}}, "set neighbors.metric=correlation"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(settings | {"extract": {"rows": "token"}})


def test_more_tokens_than_rows_are_refused(tokens: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.zarr"
    config = validate({}).store
    token_store.create(path, [4, 3], 6, config, {})
    n = np.zeros(5, np.int32)
    many = token_store.Tokens(np.zeros(6, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float16), n, n, n)
    with pytest.raises(StoreError, match="has 4 rows a shard"):
        token_store.write_shard(path, 0, many)
    with pytest.raises(StoreError, match="exists already"):
        token_store.create(path, [4], 6, config, {})


def labels(out: Path) -> list[int]:
    return pd.read_parquet(out / schema.FEATURES)["label"].fillna(-9).tolist()


def again(source: Path, out: Path, *settings: str) -> Path:
    given = ["--reuse", str(source), "--out", str(out), "--scheduler", "threads", "--quiet", "--no-report"]
    assert run.main([*given, "--set", "quality.null=false", *settings]) == 0
    return out


def test_windows_of_one_token_are_tokens_and_of_all_are_prompts(tokens: Path, tmp_path: Path) -> None:
    one = again(tokens, tmp_path / "one", "extract.rows=window", "extract.window=1")
    assert labels(one) == labels(tokens)
    metric = "neighbors.metric=correlation"
    whole = again(tokens, tmp_path / "whole", "extract.rows=window", "extract.window=100000", metric)
    prompts = again(tokens, tmp_path / "prompts", "extract.rows=prompt", metric)
    assert labels(whole) == labels(prompts)
    assert len(set(labels(prompts))) > 2


@pytest.mark.parametrize("shares", [[(0, None)], [(0, 25), (25, 50), (50, None)]])
def test_permuted_rows_do_not_depend_on_shards_or_workers(
    tokens: Path, shares: list[tuple[int, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpuclust.hardware import budget

    monkeypatch.setattr(budget, "PERMUTED_ROWS", 26)  # blocks of 26 and 34 prompts, in shards of 25, 25 and 10
    found, kept = opened(tokens), np.arange(96)
    values, prompt = found["activations"].values.astype(np.float32), found["prompt"].values
    expected = []
    for begin, end in ((0, 26), (26, 60)):
        own = (prompt >= begin) & (prompt < end)
        part = csr_array(values[own][:, kept])
        expected.append(windows.permuted(part, prompt[own], [5, begin]).toarray())
    rows = token_rows.Rows(None, "max")
    got = [
        block.toarray()
        for first, stop in shares
        for block in token_rows.blocks(tokens, kept, rows, 50, permute=5, first=first, stop=stop)
    ]
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate(expected))


def test_a_run_whose_tokens_are_gone_is_not_reused(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tokens, source)
    shutil.rmtree(source / schema.TOKENS)
    for more in (["--out", str(tmp_path / "out")], ["--plan"]):
        assert run.main(["--reuse", str(source), *more, "--set", "extract.rows=window"]) == 2
        assert "activations are not whole (tokens.zarr is missing)" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_reused_run_that_moved_is_named(tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gpuclust import verify

    source = tmp_path / "source"
    shutil.copytree(tokens, source)
    out = again(source, tmp_path / "out", "extract.rows=window")
    source.rename(tmp_path / "elsewhere")
    assert verify.main([str(out)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"takes its activations from {source}, which is not there any more" in said


def test_other_activations_have_no_rows_of_tokens(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "cache.pt"
    torch.save({"acts": torch.rand(6, 4), "prompts": list("abcdef")}, path)
    settings = {"extract": {"rows": "token"}}
    with pytest.raises(InputError, match="has prompts, not tokens"):
        gpuclust.import_cache(path, config=settings, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ParameterError, match="rows are what the array has"):
        gpuclust.cluster_features(np.ones((6, 4)), settings)
