"""Clusters in another SAE: planted ones are found, shuffled ones are not, and what cannot be compared is named."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gpuclust import compare, configfile, schema
from gpuclust.compute import replication, topk
from gpuclust.config_sections import DEMO, StoreConfig
from gpuclust.configfile import validate
from gpuclust.engine import replicating, validating
from gpuclust.errors import MemoryBudgetError, ModelError, StoreError
from gpuclust.extraction import directions, weights
from gpuclust.results import replicated
from gpuclust.results.run import Run
from gpuclust.storage import keys, markers, store

Array = np.ndarray[Any, Any]
N, TOPICS, SIZE, LONELY, D = 500, 8, 10, 80, 96


def topics(seed: int, n: int = N) -> Array:
    rng = np.random.default_rng([seed, 1])
    return rng.random((n, TOPICS)) < rng.uniform(0.06, 0.15, TOPICS)


def sae(on: Array, seed: int, long: Array | None = None) -> tuple[Array, Array, Array]:
    """Activations, labels and decoder of an SAE with SIZE features a topic, in a drawn order, and others."""
    rng = np.random.default_rng([seed, 2])
    label = np.concatenate([np.repeat(np.arange(TOPICS), SIZE), np.full(LONELY, -1)])
    length = np.ones(len(on)) if long is None else long / long.mean()
    fires = rng.random((len(on), len(label))) < rng.uniform(0.02, 0.12, len(label)) * length[:, None]
    fires[:, label >= 0] |= on[:, label[label >= 0]] & (rng.random((len(on), TOPICS * SIZE)) < 0.7)
    values = fires * rng.lognormal(0, 0.4, fires.shape) * rng.uniform(0.5, 4, len(label))
    shared = np.random.default_rng(99).normal(size=(TOPICS, 3, D))  # each topic's directions, for any SAE
    rows = rng.normal(size=(len(label), D)) * 0.5
    rows[label >= 0] += np.einsum("fk,fkd->fd", rng.normal(size=(TOPICS * SIZE, 3)), shared[label[label >= 0]])
    order = rng.permutation(len(label))
    number = rng.permutation(TOPICS)  # clusters have numbers of their own
    label = np.where(label >= 0, number[label], -1)
    return values[:, order].astype(np.float32), label[order], rows[order].astype(np.float32)


def folder(path: Path, made: tuple[Array, Array, Array], prompts: pd.DataFrame, attributes: Any = None) -> Run:
    """A folder with what is read of a finished run."""
    values, label, _ = made
    path.mkdir()
    (path / schema.CONFIG).write_text(yaml.safe_dump(validate({"sae": {"path": f"/sae/{path.name}"}}).resolved()))
    stages: dict[str, Any] = {name: {} for name in ("prompts", "cluster", "quality", "validate", "analyse")}
    (path / schema.RECORD).write_text(json.dumps({"stages": stages}))
    checked = pd.DataFrame({"cluster": range(label.max() + 1), "verdict": "stable", "verdict_reason": "as measured"})
    checked.to_parquet(path / schema.QUALITY)
    kept = np.ones(len(label), bool)
    table = pd.DataFrame({"feature": np.arange(len(label)), "kept": kept, "label": pd.array(label, dtype="Int64")})
    table["n_active"], table["std"] = (values > 0).sum(axis=0), values.std(axis=0)
    table.to_parquet(path / schema.FEATURES)
    prompts.to_parquet(path / schema.PROMPTS)
    store.create(path / schema.ACTIVATIONS, *values.shape, StoreConfig(), attributes or {"model": "demo"})
    for index, (first, stop) in enumerate(store.shard_ranges(path / schema.ACTIVATIONS)):
        markers.write_shard(path / schema.ACTIVATIONS, path / schema.SHARDS, index, first,
                            values[first:stop].astype(np.float16), {}, "key")  # fmt: skip
    return Run(path)


def texts(n: int = N, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng([seed, 3])
    tokens = [rng.integers(0, 99, k).tolist() for k in rng.integers(10, 60, n)]
    text = [f"text {seed} {i}" for i in range(n)]
    return pd.DataFrame({"prompt": range(n), "text": text, "n_tokens": list(map(len, tokens)), "tokens": tokens})


def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a: Any, b: Any, prompts: Any = None) -> tuple[Run, Run]:
    made = {"/sae/a": a[2], "/sae/b": b[2]}
    monkeypatch.setattr(replicating.directions, "load_decoder", lambda c: (made[c.path], "blocks.2.hook_resid_post"))
    first, second = prompts or (texts(), texts())
    return folder(tmp_path / "a", a, first), folder(tmp_path / "b", b, second)


def test_the_same_topics_replicate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = topics(0)
    run, other = two(tmp_path, monkeypatch, sae(on, 1), sae(on, 2))
    columns, facts = replicating.replicate(run, other, 8)
    assert columns["replicated"].tolist() == ["replicated"] * TOPICS
    assert sorted(columns["replicate_cluster"]) == list(range(TOPICS))
    assert columns["replicate_r"].min() > 0.7 > columns["replicate_r_random"].max() + 0.1
    assert columns["replicate_angles"].min() > columns["replicate_angles_random"].max()
    assert columns["replicate_prompts"].mean() > 1.5 * columns["replicate_prompts_random"].mean()
    assert facts["shares"] == {"replicated": 1.0, "partly": 0.0, "not": 0.0}
    assert facts["random"] <= 0.05
    assert facts["prompts"] == N
    assert facts["no_angles"] is None


def test_matches_are_the_clusters_of_the_same_topic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = topics(3)
    a, b = sae(on, 1), sae(on, 2)
    columns, _ = replicating.replicate(*two(tmp_path, monkeypatch, a, b), 4)

    def topic_of(made: Any, cluster: int) -> int:
        active = (made[0][:, made[1] == cluster] > 0).mean(axis=1)
        return int(np.argmax([np.corrcoef(active, on[:, t])[0, 1] for t in range(TOPICS)]))

    for cluster, match in enumerate(columns["replicate_cluster"]):
        assert topic_of(a, cluster) == topic_of(b, match)


def test_shuffled_prompts_and_independent_runs_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    p: list[float] = []
    for seed in range(6):
        (tmp_path / str(seed)).mkdir()
        a, b = sae(topics(seed), seed), sae(topics(50 + seed), 50 + seed)
        if seed % 2:  # the same topics, the prompts of one shuffled
            values, label, rows = sae(topics(seed), 80 + seed)
            b = (np.random.default_rng(seed).permutation(values), label, rows)
        columns, facts = replicating.replicate(*two(tmp_path / str(seed), monkeypatch, a, b), 8)
        said += columns["replicated"].tolist()
        p += columns["replicate_p"].tolist()
        assert facts["random"] <= 0.05
    assert "replicated" not in said
    assert said.count("partly") <= 1  # of 48, 5% falsely where something is found at all
    below = int((np.array(p) <= 0.05).sum())
    assert stats.binom.sf(below - 1, len(p), 0.05) > 0.001


def test_p_is_uniform_where_a_cluster_is_one_more_random_set() -> None:
    """The largest of 30 correlations is skewed; there are as many small p as there should be, and not more."""
    rng = np.random.default_rng(0)
    r = 0.4 + rng.uniform(0.02, 0.1, 5_000)[:, None] * rng.normal(size=(33, 5_000, 30))
    p = replication.above(r.max(axis=2)[0], [r.max(axis=2)[1:]])
    for level in (0.5, 0.1, 0.05, 0.01):
        assert (p <= level).mean() == pytest.approx(level, rel=0.3)
    assert (p <= 0.001).sum() <= 12  # of 5 expected


def test_of_two_kinds_of_controls_the_larger_p_counts() -> None:
    value = np.array([1.0])
    low, high = np.array([[0.0], [0.1], [0.15], [0.3]]), np.array([[0.8], [1.0], [1.1], [1.3]])
    assert replication.above(value, [low, high]) == replication.above(value, [high, low])
    assert replication.above(value, [low]).tolist() == [1 / 5]

    def far(x: float, others: list[float]) -> float:
        return float((x - np.mean(others)) / (np.std(others, ddof=1) * np.sqrt(1 + 1 / len(others))))

    column = high[:, 0].tolist()
    others = [far(x, [y for y in column if y != x]) for x in column]
    expected = (1 + sum(x >= far(1.0, column) for x in others)) / 5
    assert replication.above(value, [high])[0] == replication.above(value, [low, high])[0] == expected
    assert np.isnan(replication.above(value, [low, np.ones((4, 1))]))  # controls that do not differ
    pooled = replication.above(np.ones(2), [np.hstack([low, high])])  # among the controls of both
    assert pooled[0] == 1 / 9


def scores(seed: int, n: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    own, other = rng.random((3, n, 4)), rng.random((3, n, 5))
    own[0, :, 0] = 0
    return own.astype(np.float32), other.astype(np.float32), rng.integers(5, 50, n)


@given(st.integers(0, 99), st.lists(st.integers(1, 39), max_size=3, unique=True))
def test_states_add_up_in_any_order(seed: int, cuts: list[int]) -> None:
    own, other, length = scores(seed, 40)
    edges = [0, *sorted(cuts), 40]
    parts = [slice(*edge) for edge in pairwise(edges)]
    states = [replication.chunk(own[:, s], other[:, s], length[s]) for s in parts]
    whole = replication.chunk(own, other, length)
    merged = replication.merge([replication.nothing(3, 4, 5), *states[::-1]])
    assert set(merged) == set(whole)
    for name in whole:
        np.testing.assert_allclose(merged[name], whole[name], rtol=1e-9)
    slope = replication.slopes(whole, "own")
    number = np.arange(40)
    listed = replication.strongest(own, slope, length, number, 6)
    pieces = [replication.strongest(own[:, s], slope, length[s], number[s], 6) for s in parts[::-1]]
    assert (topk.smallest(np.concatenate(pieces, axis=1), 6) == listed).all()


def test_correlations_are_those_of_what_least_squares_leave() -> None:
    own, other, length = scores(1, 60)
    state = replication.chunk(own, other, length)
    design = np.column_stack([np.ones(60), length])

    def left(x: Array) -> Array:
        return x - design @ np.linalg.lstsq(design, x, rcond=None)[0]

    mine, theirs = replication.correlations(state)
    for at in range(3):
        for i in range(1, 4):
            for j in range(5):
                expected = np.corrcoef(left(own[at, :, i]), left(other[0, :, j]))[0, 1]
                assert mine[at, i, j] == pytest.approx(expected, abs=1e-6)
                expected = np.corrcoef(left(own[0, :, i]), left(other[at, :, j]))[0, 1]
                assert theirs[at, i, j] == pytest.approx(expected, abs=1e-6)
    assert (mine[0, 0] == -1).all()  # a score that never changes
    order = np.argsort(-left(own[1, :, 2].astype(np.float64)))
    keys = replication.strongest(own, replication.slopes(state, "own"), length, np.arange(60), 7)
    assert topk.unpack(keys.reshape(3, 4, 7)[1, 2])[1].tolist() == order[:7].tolist()
    assert (keys.reshape(3, 4, 7)[0, 0] == topk.NOTHING).all()
    equal = replication.chunk(own, other, np.full(60, 9))
    assert replication.correlations(equal)[0][1, 2, 3] == pytest.approx(np.corrcoef(own[1, :, 2], other[0, :, 3])[0, 1])


def test_the_overlap_is_of_principal_angles() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 20)), rng.normal(size=(3, 20))
    b[0] = a[0] + a[1]
    angles = scipy.linalg.subspace_angles(a.T, b.T)
    found = replication.overlap(replication.subspace(a, 1), replication.subspace(b, 1))
    assert found == pytest.approx(np.mean(np.cos(angles) ** 2))
    whole = replication.subspace(a, 1)
    assert replication.overlap(whole, replication.subspace(a[:2] * 7, 1)) == pytest.approx(1)
    assert np.isnan(replication.overlap(replication.subspace(a), replication.subspace(np.zeros((3, 20)))))
    flat = np.diag([4.0, 3, 2, 1])  # 16, 9, 4 and 1 of 30
    assert [len(replication.subspace(flat, held)) for held in (0.5, 25 / 30, 0.9, 1)] == [1, 2, 3, 4]


def test_the_word_needs_all() -> None:
    r, q = np.array([0.9, 0.9, 0.5, 0.9, 0.9, 0.9]), np.array([0.01, 0.01, 0.01, 0.2, np.nan, 0.01])
    mutual = np.array([True, False, True, True, True, True])
    angles = np.array([0.01, 0.01, 0.01, 0.01, 0.01, 0.5])
    words = ["replicated", "partly", "partly", "not", None]
    assert replication.words(r, q, mutual, angles).tolist() == [*words, "partly"]
    assert replication.words(r, q, mutual, None).tolist() == [*words, "replicated"]


def test_other_order_and_subsets_are_joined_by_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = topics(0)
    a, b = sae(on, 1), sae(on, 2)
    whole, _ = replicating.replicate(*two(tmp_path, monkeypatch, a, b), 3)
    order = np.random.default_rng(4).permutation(N)
    mixed = texts().iloc[order].assign(prompt=range(N)).reset_index(drop=True)
    (tmp_path / "m").mkdir()
    runs = two(tmp_path / "m", monkeypatch, a, (b[0][order], *b[1:]), (texts(), mixed))
    for step in (replicating.APART, 0):  # through a block, and each prompt by itself
        monkeypatch.setattr(replicating, "APART", step)
        monkeypatch.setattr(replicating, "CELLS", 64 * 800)
        again, _ = replicating.replicate(*runs, 3)
        for name in ("replicate_r", "replicate_angles", "replicate_prompts", "replicate_p"):
            np.testing.assert_allclose(again[name], whole[name], rtol=1e-4)
    (tmp_path / "s").mkdir()
    some = texts().iloc[200:].assign(prompt=range(N - 200)).reset_index(drop=True)
    _, facts = replicating.replicate(*two(tmp_path / "s", monkeypatch, a, (b[0][200:], *b[1:]), (texts(), some)), 3)
    assert facts["prompts"] == N - 200
    assert facts["prompts_of"] == [N, N - 200]


def test_prompts_that_are_not_the_same_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = topics(0)
    a, b = sae(on, 1), sae(on, 2)
    other_words = texts().assign(tokens=[[t + 100 for t in row] for row in texts()["tokens"]])
    shorter = texts().assign(tokens=[row[:5] for row in texts()["tokens"]])
    cases = {
        "other tokenizers": other_words,
        "cut at other lengths": shorter,
        "in common": texts(seed=9),
        "no texts": texts().assign(text=""),
    }
    for words, table in cases.items():
        place = tmp_path / words.replace(" ", "-")
        place.mkdir()
        with pytest.raises(StoreError, match=words):
            replicating.replicate(*two(place, monkeypatch, a, b, (texts(), table)), 3)
    same = folder(tmp_path / "x", a, texts())
    with pytest.raises(StoreError, match="of one SAE"):
        replicating.replicate(same, Run(same.path), 3)


def test_angles_are_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = topics(0)
    a, b = sae(on, 1), sae(on, 2)
    runs = two(tmp_path, monkeypatch, a, b)

    def gone(config: Any) -> Any:
        raise ModelError("no SAE there")

    def elsewhere(config: Any) -> Any:
        return (a[2], "blocks.2.hook_resid_post") if config.path == "/sae/a" else (b[2], "blocks.3.hook_resid_post")

    cases = {"no SAE there": gone, "one space": elsewhere, "features now": lambda c: (a[2][:5], "hook")}
    for words, load in cases.items():
        monkeypatch.setattr(replicating.directions, "load_decoder", load)
        columns, facts = replicating.replicate(*runs, 4)
        assert words in facts["no_angles"]
        assert np.isnan(columns["replicate_angles"]).all()
        assert np.isnan(columns["replicate_angles_random"]).all()
        assert columns["replicated"].tolist() == ["replicated"] * TOPICS  # by correlation alone
    two_again = {"/sae/a": a[2], "/sae/i": b[2]}
    monkeypatch.setattr(replicating.directions, "load_decoder", lambda c: (two_again[c.path], "hook"))
    imported = folder(tmp_path / "i", b, texts().drop(columns="tokens"), {"model": schema.IMPORTED})
    _, facts = replicating.replicate(runs[0], imported, 4)
    assert "imported" in facts["no_angles"]


def test_the_length_of_prompts_is_no_replication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent topics; all features of both fire more on long prompts, clusters' above all."""
    prompts = texts()
    long = prompts["n_tokens"].to_numpy() ** 1.0
    a, b = sae(topics(0), 1, long), sae(topics(1), 2, long)
    columns, _ = replicating.replicate(*two(tmp_path, monkeypatch, a, b), 8)
    assert columns["replicate_r"].max() < 0.4
    assert "replicated" not in columns["replicated"].tolist()


def test_the_second_demo_sae_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = configfile.load(None, ["sae.path=demo-2"])
    assert config.sae.path == "demo-2"
    assert weights.sae_folder(config.sae) == DEMO / "sae-2"
    states = [keys.weights_state("sae", name) for name in ("demo", "demo-2")]
    assert set(states[0]) == set(states[1]) == {"cfg.json", "sae_weights.safetensors"}
    assert states[0]["sae_weights.safetensors"] != states[1]["sae_weights.safetensors"]
    decoder, hook = directions.load_decoder(config.sae)
    assert decoder.shape == (2048, 192)
    assert hook == "blocks.2.hook_resid_post"


def test_a_large_state_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = topics(0)
    runs = two(tmp_path, monkeypatch, sae(on, 1), sae(on, 2))
    monkeypatch.setattr(replicating.budget, "budget", lambda config: 1000)
    with pytest.raises(MemoryBudgetError, match="--draws"):
        replicating.replicate(*runs, 3)


def test_files_and_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    on = topics(0)
    run, other = two(tmp_path, monkeypatch, sae(on, 1), sae(on, 2))
    facts = validating.validate(run.path, ["replicate"], validating.Asked(4, other.path))
    table = Run(run.path).validation
    assert table.columns.tolist() == list(schema.VALIDATION_COLUMNS)
    assert table["replicate_cluster"].dtype == "Int64"
    assert table["replicated"].tolist() == ["replicated"] * TOPICS
    assert table["evidence"].tolist() == ["supported"] * TOPICS  # without levels nothing is real
    assert facts["evidence"] == {"supported": TOPICS}
    ((name, told),) = replicated.on_card(table.iloc[0], facts)
    assert name == "in b, of another SAE"
    assert told.startswith(f"replicated: cluster {table['replicate_cluster'][0]}, each the other's best match")
    assert compare.main([str(run.path), str(other.path), "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{TOPICS} replicated, 0 partly, 0 not" in said
    listed = pd.read_parquet(tmp_path / "out" / "replication.parquet")
    assert listed["run_b"].unique().tolist() == [str(other.path)]
    assert listed["replicated"].tolist() == ["replicated"] * TOPICS
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "Replicated: more than random sets" in page
    assert compare.main([str(run.path), str(other.path), "--out", str(run.path)]) == 2


def test_a_later_part_keeps_the_earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = topics(0)
    run, other = two(tmp_path, monkeypatch, sae(on, 1), sae(on, 2))
    asked = validating.Asked(4, other.path)
    validating.validate(run.path, ["replicate"], asked)
    first = Run(run.path).validation
    monkeypatch.setattr(validating, "_lacking", lambda part, run: "")
    levels = {"token_excess": np.full(TOPICS, 2.0), "level": np.full(TOPICS, "token", object)}
    monkeypatch.setitem(validating.WORK, "levels", lambda *given: (levels, {"tokens": 1}))
    facts = validating.validate(run.path, ["levels"], asked)
    table = Run(run.path).validation
    assert table["level"].tolist() == ["token"] * TOPICS
    names = [name for name in table if name.startswith("replicate")]
    pd.testing.assert_frame_equal(table[names], first[names])
    assert set(facts) >= {"levels", "replicate"}
