"""Top contexts: the tokens and windows on which most features of a cluster fire at once, in the run and as shown."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

import gpuclust
from gpuclust import run, schema, show
from gpuclust.compute import top_rows, windows
from gpuclust.configfile import load, validate
from gpuclust.errors import CorruptDataError, StoreError
from gpuclust.results import report
from gpuclust.stage_table import get
from gpuclust.storage import verifying
from gpuclust.tables import context_table
from tests import tiny
from tests.browser import card, until
from tests.strategies import activations
from tests.test_prompt_text import tokenizers
from tests.test_token_store import made, opened

Found = list[tuple[int, int, int, int, float, list[int]]]


def slowly(values: Any, prompt: Any, label: Any, threshold: float, n: int) -> Found:
    """(cluster, row, prompt, features, score, which), by the definition."""
    largest = [float(np.abs(values[:, j]).max()) for j in range(values.shape[1])]
    found: Found = []
    for cluster in range(max(label, default=-1) + 1):
        rows = []
        for r, row in enumerate(values):
            fires = [j for j, a in enumerate(row) if label[j] == cluster and abs(a) > threshold]
            if fires:
                shares = [abs(float(row[j])) / largest[j] for j in fires]
                which = [j for _, j in sorted(zip([-s for s in shares], fires, strict=True))]
                rows.append((cluster, r, int(prompt[r]), len(fires), sum(shares), which))
        seen: set[int] = set()
        for one in sorted(rows, key=lambda own: (-own[3], -own[4], own[1])):
            if one[2] not in seen and len(seen) < n:
                seen.add(one[2])
                found.append(one)
    return found


def listed(found: top_rows.TopRows) -> Found:
    names = ("cluster", "row", "prompt", "n_features", "score")
    columns = [own.tolist() for own in found.columns]
    return list(zip(*(getattr(found, name).tolist() for name in names), columns, strict=True))


@given(st.data(), activations(signed=True), st.integers(1, 4), st.sampled_from([0.0, 1.0]))
def test_top_rows_are_those_of_the_definition_however_rows_are_cut(
    data: st.DataObject, values: Any, n: int, threshold: float
) -> None:
    values = values.astype(np.float32)
    n_rows, n_columns = values.shape
    prompt = np.sort(data.draw(st.lists(st.integers(0, 6), min_size=n_rows, max_size=n_rows)))
    label = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n_columns, max_size=n_columns)))
    largest = np.abs(values).max(axis=0)
    edges = [0, *sorted(data.draw(st.sets(st.integers(1, max(n_rows - 1, 1)), max_size=3))), n_rows]
    parts = [
        top_rows.top(csr_array(values[a:b]), prompt[a:b], a, label, largest, threshold, n)
        for a, b in itertools.pairwise(edges)
        if a < b
    ]
    expected = slowly(values, prompt, label.tolist(), threshold, n)
    assert listed(top_rows.merge([top_rows.nothing(), *data.draw(st.permutations(parts))], n)) == expected


def test_no_loud_feature_rules() -> None:
    rows = np.array([[100, 0.1, 0], [50, 0, 1.0]], np.float32)
    found = top_rows.top(csr_array(rows), np.array([0, 1]), 0, np.zeros(3, int), rows.max(axis=0), 0.0, 1)
    assert listed(found) == [(0, 0, 0, 2, 2.0, [0, 1])]
    louder = np.array([[100, 0.1, 0.1], [51, 0.1, 0.2]], np.float32)
    found = top_rows.top(csr_array(louder), np.array([0, 1]), 0, np.zeros(3, int), np.array([100, 0.1, 0.2]), 0.0, 1)
    assert found.row.tolist() == [1]  # by 0.51 + 1 + 1 against 1 + 1 + 0.5


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("tokens"), "token")


@pytest.fixture(scope="module")
def of_windows(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("windows") / "out"
    given = ["--reuse", str(tokens), "--out", str(out), "--scheduler", "threads", "--quiet"]
    assert run.main([*given, "--set", "extract.rows=window", "quality.null=false"]) == 0
    return out


@pytest.mark.parametrize("kind", ["tokens", "of_windows"])
def test_a_run_has_the_contexts_of_the_definition(kind: str, request: pytest.FixtureRequest) -> None:
    out = request.getfixturevalue(kind)
    whole, found = opened(out), gpuclust.open_run(out)
    features = found.features[found.features["label"] >= 0]
    values, prompt = whole["activations"].values.astype(np.float32), whole["prompt"].values
    begin = np.arange(len(prompt))
    if kind == "of_windows":
        group = windows.windows(prompt, 5)
        begin = np.flatnonzero(np.diff(group, prepend=-1))
        parts = np.split(values, begin[1:])
        values = np.array([part[np.abs(part).argmax(axis=0), np.arange(part.shape[1])] for part in parts])
    columns = features["feature"].to_numpy()
    expected = slowly(values[:, columns], prompt[begin], features["label"].tolist(), 0.0, 5)
    table = found.contexts
    assert list(table) == list(schema.CONTEXT_COLUMNS)
    assert [(*row[:5],) for row in zip(*(table[name] for name in (
        "cluster", "prompt", "n_features", "score", "rank")), strict=True)] == [
        (c, p, n, score, sum(other[0] == c for other in expected[:i])) for i, (c, _, p, n, score, _) in
        enumerate(expected)]  # fmt: skip
    assert [own.tolist() for own in table["features"]] == [columns[which].tolist() for *_, which in expected]
    ends = [*begin[1:], len(prompt)]
    for row, (_, r, *_) in zip(table.to_dict("records"), expected, strict=True):
        assert row["position"] == whole["position"].values[begin[r]]
        assert row["tokens"].tolist() == whole["token"].values[begin[r] : ends[r]].tolist()
    assert len(table) > 5
    assert table["n_features"].max() > 1


def test_the_marked_text_is_what_the_tokens_spell(tokens: Path, of_windows: Path) -> None:
    from gpuclust.extraction import encoders

    for out in (tokens, of_windows):
        opened_run = gpuclust.open_run(out)
        tokenizer = encoders.load_tokenizer(opened_run.config)
        marked = 0
        for row in opened_run.contexts.to_dict("records"):
            spelled = " ".join(tokenizer.decode(row["tokens"].tolist()).split())
            text = " ".join(opened_run.prompts["text"].iat[row["prompt"]].split())
            if row["start"] >= 0 and "\ufffd" not in spelled:
                marked += 1
                assert row["text"][row["start"] : row["stop"]] in (spelled, "⏎", "␣")
            assert row["text"].removeprefix("… ").removesuffix(" …") in text
            assert row["text"].startswith("… ") == (not text.startswith(row["text"][:20]))
        assert marked > len(opened_run.contexts) // 2


def test_contexts_do_not_depend_on_how_prompts_are_cut(tokens: Path, tmp_path: Path) -> None:
    from gpuclust.engine import token_contexts, token_rows
    from gpuclust.extraction import encoders

    config = yaml.safe_load((tokens / schema.CONFIG).read_text())
    config["store"]["shard_prompts"] = config["store"]["chunk_prompts"] = 7
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "out"
    given = ["--config", str(tmp_path / "config.yaml"), "--out", str(out), "--scheduler", "threads", "--quiet"]
    assert run.main([*given, "--set", "scheduler.n_workers=2", "quality.null=false"]) == 0
    assert len(token_rows._shards(out, 0, None)) > 5
    cut = gpuclust.open_run(out)
    features = gpuclust.open_run(tokens).features.query("kept")  # the same clusters, whatever rounding does to them
    numbers, label, peak = (
        features["feature"].to_numpy(),
        features["label"].to_numpy(np.int64),
        features["max"].to_numpy(),
    )
    tokenizer = encoders.load_tokenizer(cut.config)
    # Of means over prompts the largest of tokens are not known, and looked for
    means = cut.config.model_copy(update={"extract": cut.config.extract.model_copy(update={"aggregate": "mean"})})
    for asked, known in ((cut.config, peak), (means, np.full(len(peak), 1e-3))):
        found = token_contexts.contexts(out, asked, numbers, label, known, cut.prompts, tokenizer)
        table = gpuclust.open_run(tokens).contexts
        for name in ("tokens", "features"):
            found[name], table[name] = found[name].map(list), table[name].map(list)
        pd.testing.assert_frame_equal(found, table)


def test_rows_of_prompts_and_none_asked_for_have_no_file(small_run: Path, tokens: Path, tmp_path: Path) -> None:
    assert not (small_run / schema.CONTEXTS).exists()
    with pytest.raises(StoreError, match=r"contexts\.parquet"):
        _ = gpuclust.open_run(small_run).contexts
    assert "fire at once" not in repr([name for name, _ in gpuclust.open_run(small_run).cluster(0).prompts])
    for settings, there in (
        ([], False), (["extract.rows=token"], True), (["extract.rows=window"], True),
        (["extract.rows=token", "analyse.top_contexts=0"], False),
    ):  # fmt: skip
        assert (schema.CONTEXTS in get("analyse").writes(load(overrides=settings))) == there
    out = tmp_path / "out"
    given = ["--reuse", str(tokens), "--out", str(out), "--scheduler", "threads", "--quiet"]
    assert run.main([*given, "--set", "analyse.top_contexts=0", "quality.null=false"]) == 0
    assert not (out / schema.CONTEXTS).exists()
    assert show.main([str(out), "--cluster", "0"]) == 0


def test_damage_is_found(tokens: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(tokens, out)
    data = bytearray((out / schema.CONTEXTS).read_bytes())
    data[len(data) // 2] ^= 1
    (out / schema.CONTEXTS).write_bytes(data)
    assert [one.stage for one in verifying.damages(out)] == ["analyse"]
    with pytest.raises(CorruptDataError, match=r"contexts\.parquet"):
        gpuclust.open_run(out).cluster(0)


def test_the_terminal_shows_them(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = gpuclust.open_run(tokens)
    first = found.contexts.iloc[0]
    assert show.main([str(tokens), "--cluster", "0"]) == 0
    said = capsys.readouterr().out
    size = int(found.clusters.set_index("cluster").loc[0, "size"])
    assert "tokens on which most of its features fire at once" in said
    assert f"{first['n_features']} of {size} features: {first['features'][0]}" in said
    if first["start"] >= 0:
        assert f"«{first['text'][first['start'] : first['stop']]}»" in said


@pytest.mark.browser
def test_the_report_shows_them(chromium: Any, tokens: Path) -> None:
    report.write(tokens)
    found = gpuclust.open_run(tokens)
    own = found.contexts[found.contexts["cluster"] == 1]
    chromium.get(f"{(tokens / schema.REPORT).as_uri()}#c1")
    until(chromium, "document.documentElement.dataset.ready === 'true'")
    text = card(chromium)
    size = int(found.clusters.set_index("cluster").loc[1, "size"])
    assert "Its features fire together" in text
    shown = chromium.execute_script(
        """const top = [...document.querySelectorAll('h3')].find(e => e.textContent === 'Its features fire together');
        const found = [];
        for (let e = top.nextElementSibling.nextElementSibling; e?.className === 'prompt'; e = e.nextElementSibling)
          found.push([e.firstChild.textContent, e.querySelector('mark')?.textContent ?? '',
            e.querySelector('.about').textContent]);
        return found"""
    )
    assert len(shown) == len(own)
    for (words, mark, about), row in zip(shown, own.to_dict("records"), strict=True):
        assert words == row["text"]
        assert mark == (row["text"][row["start"] : row["stop"]] if row["start"] >= 0 else "")
        assert about.startswith(f"{row['n_features']} of {size} features{row['features'][0]}")


def test_the_report_of_rows_of_prompts_has_none(small_run: Path) -> None:
    from gpuclust.results.report import content
    from gpuclust.storage import reading

    files = reading.Files(small_run)
    data, _ = content.collect(files, files.record())
    assert [row["contexts"] for row in data["clusters"]] == [[] for _ in data["clusters"]]


def found_at(first: int, last: int) -> pd.DataFrame:
    """One row of tokens `first` to `last` of the only prompt."""
    one = {"cluster": 0, "prompt": 0, "position": first, "tokens": [0] * (last - first + 1), "n_features": 1}
    return pd.DataFrame([one | {"score": 1.0, "features": [5]}])


def cut(text: str, first: int, last: int, kind: str = "byte-level") -> str:
    """The text of a context of tokens `first` to `last`, marked."""
    tokenizer = tokenizers()[kind]
    ids = np.asarray(tokenizer([text], add_special_tokens=False)["input_ids"][0], np.int32)
    prompts = pd.DataFrame({"text": [text], "tokens": [ids]})
    row = context_table.context_table(found_at(first, last), prompts, tokenizer).iloc[0]
    if row["start"] < 0:
        return str(row["text"])
    return f"{row['text'][: row['start']]}«{row['text'][row['start'] : row['stop']]}»{row['text'][row['stop'] :]}"


def test_texts_are_cut_outside_of_words_and_characters() -> None:
    # a token is a byte
    long = "one seventeen twenty\nthree fourteen eighteen"
    assert cut(long, 0, 0) == "«o»ne seventeen …"
    assert cut(long, 21, 21) == "… seventeen twenty «t»hree fourteen …"
    assert cut(long, 8, 8) == "one seve«n»teen twenty …"
    assert cut(long, 20, 20) == "… seventeen twenty «⏎» three fourteen …"
    assert cut(long, 13, 13) == "… seventeen «␣» twenty three …"
    assert cut(long, 36, 42) == "… fourteen «eightee»n"
    assert cut(long, 3, 6) == "one «sev»enteen twenty …"
    assert cut("世界海山川", 6, 6) == "世界«海»山川"
    assert cut("x" * 90, 45, 45) == f"… {'x' * 10}«x»{'x' * 10} …"
    assert cut(f"seven teen{' ' * 20}", 14, 14) == "seven teen «␣» …"
    assert cut(long, -1, -1) == "one seventeen …"
    assert cut(long, -1, 2) == "«one» seventeen …"


def test_texts_of_tokenizers_without_offsets_are_decoded(caplog: pytest.LogCaptureFixture) -> None:
    class Slow:
        is_fast = False

        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    text = "one seventeen twenty"
    prompts = pd.DataFrame({"text": ["of another kind"], "tokens": [np.array([ord(c) for c in text], np.int32)]})
    row = context_table.context_table(found_at(14, 14), prompts, Slow()).iloc[0]
    assert row["text"] == "… seventeen twenty"
    assert row["text"][row["start"] : row["stop"]] == "t"
    assert "1 contexts are decoded from their tokens" in caplog.text


def test_a_bos_that_counts_is_a_row(tmp_path: Path) -> None:
    settings = tiny.build(tmp_path) | {"extract": {"rows": "token", "exclude_special_tokens": False}}
    settings["hdbscan"] = {"min_cluster_size": 2, "min_samples": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    given = ["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out"), "--scheduler", "threads"]
    assert run.main([*given, "--quiet"]) == 0
    found = gpuclust.open_run(tmp_path / "out")
    bos = found.contexts[found.contexts["position"] == -1]
    assert len(bos)
    assert (bos["start"] == -1).all()
    assert {len(own) for own in bos["tokens"]} == {1}
    assert validate(settings).n_contexts == 5
