"""The command on small folders that look like finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from gpuclust import compare, schema
from gpuclust.configfile import validate
from gpuclust.results import comparison


def finished(path: Path, labels: list[int | None], settings: dict[str, Any], word: str = "word") -> Path:
    """A folder with what the command reads: configuration, features with labels, clusters with tokens."""
    path.mkdir()
    (path / schema.CONFIG).write_text(yaml.safe_dump(validate(settings).resolved()))
    (path / schema.RECORD).write_text('{"stages": {"prompts": {}, "cluster": {}, "analyse": {}}}')
    label = pd.array(labels, dtype="Int64")
    table = pd.DataFrame({"feature": np.arange(len(labels)), "kept": [x is not None for x in labels], "label": label})
    table.to_parquet(path / schema.FEATURES)
    names = sorted({x for x in labels if x is not None})
    pd.DataFrame({"cluster": names, "tokens": [[word] if x >= 0 else None for x in names]}).to_parquet(
        path / schema.CLUSTERS
    )
    return path


def test_tables_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # the folders' names are long here
    first = [0] * 10 + [1] * 10 + [-1] * 5
    second: list[int | None] = [1] * 10 + [0] * 9 + [None] + [-1] * 5
    a = finished(tmp_path / "a", list(first), {"sae": {"path": "here"}}, "<b>&")
    b = finished(tmp_path / "b", second, {"sae": {"path": "here"}, "umap": {"n_neighbors": 9}})
    c = finished(tmp_path / "c", list(first), {"sae": {"path": "here"}})
    out = tmp_path / "out"
    assert compare.main([str(a), str(b), str(c), "--out", str(out)]) == 0
    pairs = pd.read_parquet(out / "pairs.parquet")
    assert pairs[["run_a", "run_b"]].to_numpy().tolist() == [[str(a), str(b)], [str(a), str(c)], [str(b), str(c)]]
    assert pairs["ari"].tolist() == [1, 1, 1]
    assert pairs["same"].tolist() == [2, 2, 2]
    assert pairs["settings"].tolist() == ["umap.n_neighbors", "", "umap.n_neighbors"]
    clusters = pd.read_parquet(out / "clusters.parquet")
    assert set(clusters["run_b"]) == {str(b), str(c)}
    assert clusters.loc[0, "match"] == 1
    moved = pd.read_parquet(out / "features.parquet")
    assert moved[["feature", "move"]].to_numpy().tolist() == [[19, "no longer kept"]]
    page = (out / comparison.PAGE).read_text()
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page
    assert "http" not in page
    assert "2 same" in capsys.readouterr().out


def test_the_terminal_lists_what_is_not_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = finished(tmp_path / "a", [0] * 20 + [1] * 10, {}, "[red]")
    b = finished(tmp_path / "b", [0] * 10 + [1] * 10 + [-1] * 10, {})
    assert compare.main([str(a), str(b)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "split (0, 1): cluster 0 of" in said
    assert "vanished: cluster 1 of" in said
    assert "[red]" in said  # words are data, not markup


def test_csv(tmp_path: Path) -> None:
    a = finished(tmp_path / "a", [0, 0, 1], {})
    b = finished(tmp_path / "b", [0, 1, 1], {})
    assert compare.main([str(a), str(b), "--out", str(tmp_path / "out"), "--csv"]) == 0
    assert len(pd.read_csv(tmp_path / "out" / "pairs.csv")) == 1
    assert (tmp_path / "out" / "features.csv").exists()


def test_other_saes_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = finished(tmp_path / "a", [0, 0, 1], {"sae": {"release": "one", "sae_id": "x"}})
    b = finished(tmp_path / "b", [0, 0, 1], {"sae": {"release": "two", "sae_id": "y"}})
    assert compare.main([str(a), str(b)]) == 2
    said = capsys.readouterr().err
    assert "one / x" in said
    assert "two / y" in said
    c = finished(tmp_path / "c", [0, 0, 1, 1], {"sae": {"release": "one", "sae_id": "x"}})
    assert compare.main([str(a), str(c)]) == 2
    assert "4 features" in capsys.readouterr().err


def test_a_moved_folder_of_the_same_sae_is_the_same(tmp_path: Path) -> None:
    paths = []
    for name in "ab":
        (tmp_path / f"sae-{name}").mkdir()
        (tmp_path / f"sae-{name}" / "cfg.json").write_text("{}")
        paths.append(finished(tmp_path / name, [0, 0, 1], {"sae": {"path": str(tmp_path / f"sae-{name}")}}))
    assert compare.main([str(path) for path in paths]) == 0
    (tmp_path / "sae-b" / "cfg.json").write_text("{ }")
    assert compare.main([str(path) for path in paths]) == 2


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = finished(tmp_path / "a", [0, 0, 1], {})
    assert compare.main([str(a)]) == 2
    assert compare.main([str(a), str(a)]) == 2
    assert compare.main([str(a), str(tmp_path / "none")]) == 2
    b = finished(tmp_path / "b", [0, 0, 1], {})
    assert compare.main([str(a), str(b), "--out", str(a)]) == 2
    assert "folder of a run" in capsys.readouterr().err
    pd.read_parquet(b / schema.FEATURES).drop(columns="label").to_parquet(b / schema.FEATURES)
    assert compare.main([str(a), str(b)]) == 2
    assert "finish the run" in capsys.readouterr().err
