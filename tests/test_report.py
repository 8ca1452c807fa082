"""What the report is made of; how it looks and behaves is in test_browser."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuclust import schema
from gpuclust.errors import StoreError
from gpuclust.report import main
from gpuclust.results import report
from gpuclust.results.report import content, contexts, pack, tree
from gpuclust.storage import reading
from gpuclust.storage.record import write_record
from tests import tiny


def unpack(packed: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """As the page does it."""
    raw = gzip.decompress(packed)
    length = int.from_bytes(raw[:4], "little")
    header = json.loads(raw[4 : 4 + length])
    arrays = {}
    for name, place in header["arrays"].items():
        start = 4 + length + place["offset"]
        dtype = np.dtype(place["dtype"]).newbyteorder("<")
        assert start % 8 == 0
        n = int(np.prod(place["shape"]))
        arrays[name] = np.frombuffer(raw, dtype, n, start).reshape(place["shape"])
    return header["data"], arrays


def test_packed_data_come_back() -> None:
    data = {"text": "</script>\u2028 \U0001f600", "list": [1, None, "x"]}
    arrays = {
        "a": np.arange(5, dtype=np.uint8), "b": np.array([[-1, 2], [3, 4]], np.int32),
        "c": np.array([np.nan, 1.5], np.float32), "empty": np.zeros((0, 3), np.int8),
    }  # fmt: skip
    got, back = unpack(pack.pack(data, arrays))
    assert got == data
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    with pytest.raises(ValueError, match="x is float64; one of uint8"):
        pack.pack({}, {"x": np.zeros(1)})


@settings(max_examples=25)
@given(st.data())
def test_contexts_hold_every_peak_and_store_texts_once(data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.text(alphabet="abc de\U0001f600", min_size=1, max_size=80), min_size=1, max_size=4))
    rows = []
    for feature in range(3):
        for rank in range(data.draw(st.integers(0, 3))):
            prompt = data.draw(st.integers(0, len(texts) - 1))
            words = [m.span() for m in re.finditer(r"\S+", texts[prompt])]
            start, stop = data.draw(st.sampled_from([(-1, -1), *words]))
            rows.append((feature, rank, prompt, float(rank), start, stop))
    table = pd.DataFrame(rows, columns=["feature", "rank", "prompt", "value", "start", "stop"])
    table = table.astype(dict.fromkeys(set(table.columns) - {"value"}, "int64"))
    prompts = pd.DataFrame({"text": texts})
    steps = data.draw(st.sampled_from([((5, None),), ((5, 3),), ((2, 0),)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts, "STEPS", steps)
        pieces, arrays = contexts.collect(table, table, prompts, 3)
    shown = table[table["rank"] < steps[0][0]]
    assert arrays["ctx_first"].tolist() == [0, *np.cumsum([(shown["feature"] == f).sum() for f in range(3)])]
    for i, row in enumerate(shown.itertuples()):
        piece, start, stop = (int(arrays[f"ctx_{name}"][i]) for name in ("piece", "start", "stop"))
        assert arrays["ctx_prompt"][i] == row.prompt
        if row.start >= 0:
            assert pieces[piece][start:stop] == texts[row.prompt][row.start : row.stop]
        else:
            assert (start, stop) == (-1, -1)
        if steps[0][1] is None:
            assert pieces[piece] == " ".join(texts[row.prompt].split())
            assert arrays["piece_cut"][piece] == 0
    assert len(pieces) == len(set(arrays["ctx_piece"].tolist()))


def test_contexts_shrink_until_they_fit(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    table = pd.DataFrame({"feature": range(5), "rank": 0, "prompt": range(5), "value": 1.0, "start": 500, "stop": 504})
    prompts = pd.DataFrame({"text": ["word " * 200] * 5})
    assert len("".join(contexts.collect(table, table, prompts, 5)[0])) == 5 * 999
    monkeypatch.setattr(contexts, "BUDGET", 2000)
    caplog.set_level("INFO", "gpuclust")
    pieces, arrays = contexts.collect(table, table, prompts, 5)
    assert 500 < len("".join(pieces)) <= 2000
    assert set(arrays["piece_cut"].tolist()) == {3}
    assert "5 prompts each, 150 characters around the peak" in caplog.text


def test_nothing_is_cut_through_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    family = "👩\u200d👩\u200d👧\u200d👦"
    text = f"{family * 3}x{family * 3}"
    table = pd.DataFrame({"feature": [0], "rank": 0, "prompt": 0, "value": 1.0, "start": 21, "stop": 22})
    monkeypatch.setattr(contexts, "STEPS", ((5, 9),))
    pieces, arrays = contexts.collect(table, table, pd.DataFrame({"text": [text]}), 1)
    assert pieces == [f"{family * 2}x{family}"]
    assert (arrays["ctx_start"].tolist(), arrays["piece_cut"].tolist()) == ([14], [3])
    marks = [{"start": 0, "stop": 7}, {"start": 7, "stop": 14}]
    cut = content._cut({"text": family * 3, "marks": marks}, 12)
    assert cut == {"text": f"{family} …", "marks": marks[:1]}


def test_layout_of_the_tree() -> None:
    import hdbscan

    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(centre, 0.3, (20, 2)) for centre in (0, 3, 6)])
    points[1] = points[0]
    model = hdbscan.HDBSCAN(min_cluster_size=5, min_samples=1).fit(points)
    condensed = model.condensed_tree_.to_pandas()
    branches = condensed[condensed["child_size"] > 1]
    placed = tree.layout(condensed, {int(branches["child"].iloc[0]): 4})
    assert len(placed["tree_left"]) == len(branches) + 1
    assert placed["tree_size"][0] == len(points)
    assert (placed["tree_far"] >= placed["tree_near"]).all()
    assert np.isfinite(placed["tree_near"]).all()
    assert placed["tree_cluster"].tolist().count(4) == 1
    right = placed["tree_left"] + placed["tree_size"]
    at = {node: i for i, node in enumerate([int(condensed["parent"].min()), *sorted(branches["child"])])}
    for parent, child in zip(branches["parent"], branches["child"], strict=True):  # a child lies within its parent
        assert placed["tree_left"][at[parent]] <= placed["tree_left"][at[child]]
        assert right[at[child]] <= right[at[parent]]
        assert placed["tree_far"][at[child]] == pytest.approx(placed["tree_near"][at[parent]], rel=0.5)
    siblings = branches.groupby("parent")["child"].agg(list)
    for first, second in siblings:
        assert right[at[first]] == placed["tree_left"][at[second]]


def test_content_is_the_tables(small_run: Path) -> None:
    data, arrays = content.collect(reading.Files(small_run), json.loads((small_run / schema.RECORD).read_text()))
    features = pd.read_parquet(small_run / schema.FEATURES)
    kept = features["kept"].to_numpy()
    np.testing.assert_array_equal(arrays["label"][kept], features.loc[kept, "label"].astype(int))
    np.testing.assert_allclose(arrays["entropy"], features["entropy"], rtol=1e-6)
    assert len(data["clusters"]) == len(pd.read_parquet(small_run / schema.CLUSTERS))
    assert arrays["heat"].shape == (data["n_clusters"], data["n_clusters"])
    similarity = pd.read_parquet(small_run / schema.CLUSTER_SIMILARITY)
    place = {cluster: i for i, cluster in enumerate(data["heat_clusters"])}
    for a, b, r in similarity.dropna().itertuples(index=False):
        assert arrays["heat"][place[a], place[b]] / 127 == pytest.approx(r, abs=0.005)
    assert data["n_pairs"] == (similarity["correlation"].abs() > 0.5).sum()
    json.dumps(data, allow_nan=False)


def test_why_a_feature_is_noise_is_in_the_page(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, reasons = reading.Files(small_run), [*schema.NOISE_REASONS, None]
    features = files.table(schema.FEATURES)
    features["noise_reason"] = [reasons[i % len(reasons)] for i in range(len(features))]
    table = reading.Files.table
    read = {schema.FEATURES: features}
    monkeypatch.setattr(
        reading.Files, "table", lambda self, name, *of: read[name] if name in read else table(self, name, *of)
    )
    data, arrays = content.collect(files, json.loads((small_run / schema.RECORD).read_text()))
    for number, reason in zip(arrays["noise_reason"], features["noise_reason"], strict=True):
        assert number == 255 if pd.isna(reason) else data["noise_reasons"][number].startswith(f"{reason}: ")


def without_checksums(out: Path) -> None:
    """As a run of an older version, whose record has none."""
    record = json.loads((out / schema.RECORD).read_text())
    for entry in record["stages"].values():
        del entry["checksums"], entry["files"]
    write_record(out / schema.RECORD, record)


def test_verdicts_of_other_checks_are_carried_along(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(small_run, out)
    clusters = pd.read_parquet(out / schema.CLUSTERS)
    clusters["stability"], clusters["verdict"] = np.linspace(0, 1, len(clusters)), "holds"
    clusters.to_parquet(out / schema.CLUSTERS)
    without_checksums(out)
    data, _ = content.collect(reading.Files(out), json.loads((out / schema.RECORD).read_text()))
    assert data["clusters"][-1]["more"].items() >= {"stability": 1.0, "verdict": "holds"}.items()


def test_older_runs_lack_what_the_report_can_do_without(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(small_run, out)
    (out / schema.EXAMPLE_SPANS).unlink()
    shutil.rmtree(out / schema.NEIGHBORS)
    clusters = pd.read_parquet(out / schema.CLUSTERS)
    later = [
        "distinctive_prompts",
        "sources",
        "promoted_tokens",
        "decoder_cosine",
        "tree_node",
        "similarity_rank",
        "theme",
        "name",
    ]
    (out / schema.THEMES).unlink()
    clusters.drop(columns=later).to_parquet(out / schema.CLUSTERS)
    pd.read_parquet(out / schema.FEATURES).drop(columns="noise_reason").to_parquet(out / schema.FEATURES)
    without_checksums(out)
    assert main([str(out)]) == 0


def test_the_page_holds_prompts_as_data_only(small_run: Path) -> None:
    page = (small_run / schema.REPORT).read_text(encoding="utf8")
    assert "window.hurt" not in page
    packed = re.search(r'id="data">([A-Za-z0-9+/=]*)</script>', page)
    assert packed is not None
    data, _ = unpack(base64.b64decode(packed[1]))
    assert any(tiny.HOSTILE.split("\u2028")[0] in piece for piece in data["pieces"])
    for address in re.findall(r'(?:src|href)="([^"]*)"', page.split("<script>")[0]):
        assert address.startswith(("#", "data:")), address


def test_the_command(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    shutil.copytree(small_run, out)
    (out / schema.REPORT).unlink()
    assert main([str(out)]) == 0
    assert "wrote" in capsys.readouterr().out
    first = (out / schema.REPORT).read_bytes()
    assert main([str(out)]) == 0
    assert (out / schema.REPORT).read_bytes() == first  # nothing of the clock or of chance
    capsys.readouterr()
    assert main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "cannot be reported: it has no config.yaml, run.json" in said
    record = json.loads((out / schema.RECORD).read_text())
    del record["stages"]["analyse"]
    write_record(out / schema.RECORD, record)
    with pytest.raises(StoreError, match="its stage analyse is not done"):
        report.write(out)
