from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gpuclust import schema
from gpuclust.results.run import open_run
from gpuclust.show import main
from gpuclust.storage import reading


def test_the_run_a_cluster_and_a_feature(small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(small_run)]) == 0
    assert "clusters" in capsys.readouterr().out
    assert main([str(small_run), "--cluster", "1", "--feature", "2", "--feature", "3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("cluster 1")
    assert [f"\nfeature {n}" in said for n in (1, 2, 3)] == [False, True, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--cluster", "999"], "has no cluster 999"), (["--feature", "-3"], "has no feature -3")],
)
def test_what_is_not_there_is_one_message(
    small_run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main([str(small_run), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in " ".join(said.split())
    assert said.count("error:") == 1


def test_other_folders_and_unfinished_runs(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "is no gpuclust run" in " ".join(capsys.readouterr().err.split())
    shutil.copy(small_run / schema.CONFIG, tmp_path / schema.CONFIG)
    (tmp_path / schema.RECORD).write_text('{"stages": {"prompts": {}}}')
    assert main([str(tmp_path)]) == 2
    assert "its stage analyse is not done" in " ".join(capsys.readouterr().err.split())


def test_names_of_clusters_are_in_the_summary(small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = pd.read_parquet(small_run / schema.CLUSTERS).nlargest(12, "size")["name"].dropna()
    main([str(small_run)])
    said = "".join(capsys.readouterr().out.split())
    assert len(names)
    assert "<img" in said


def test_verdicts_are_in_the_summary_where_they_were_measured(
    small_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    clusters = pd.read_parquet(small_run / schema.CLUSTERS)
    largest = clusters[clusters["cluster"] != schema.NOISE].nlargest(3, "size")
    assert largest["verdict"].notna().all()
    words = largest["evidence"].where(largest["evidence"].notna(), largest["verdict"])
    main([str(small_run)])
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if line.split()[:3] == ["cluster", "size", "stability"])
    at = head.index("evidence")
    for cluster, word in zip(largest["cluster"], words, strict=True):
        row = next(line for line in lines[lines.index(head) :] if line.split()[:1] == [str(cluster)])
        assert row[at:].startswith(f"{word} ")
    monkeypatch.setattr(reading.Files, "table", _without_verdicts(reading.Files.table))
    main([str(small_run)])
    said = capsys.readouterr().out
    assert "verdict " not in said
    assert "evidence " not in said


def test_all_clusters_are_listed_the_doubtful_last(
    small_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    clusters = pd.read_parquet(small_run / schema.CLUSTERS)
    assert main([str(small_run), "--clusters"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["cluster", "size", "stability"]
    assert sorted(int(line.split()[0]) for line in lines) == sorted(set(clusters["cluster"]) - {schema.NOISE})
    assert all(len(line) <= 80 for line in lines)


def test_all_themes_are_listed(
    small_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pd.DataFrame({"theme": [0, 1], "words": [["a", "b"], ["c"]], "size": [30, 20], "clusters": [[3, 1], [0]]})
    monkeypatch.setattr(reading.Files, "table", lambda self, name, *given: made)
    assert main([str(small_run), "--themes"]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said == [
        ["theme", "features", "words", "clusters"],
        ["0", "30", "a", "·", "b", "3,", "1"],
        ["1", "20", "c", "0"],
    ]


def test_the_summary_says_the_resolution_and_the_themes(
    small_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(reading.Files, "table", _with_themes(reading.Files.table))
    main([str(small_run)])
    said = capsys.readouterr().out
    resolution = open_run(small_run).record["stages"]["cluster"]["resolution"]
    assert f"noise; resolution {resolution:.3g}" in said
    assert "themes, clusters that rise and fall together: a0 · b0; a1 · b1; " in said
    assert "a5 · b5; and 2 more" in said


def _with_themes(table: Any) -> Any:
    def read(self: reading.Files, name: str, *given: Any) -> pd.DataFrame:
        made = pd.DataFrame({"theme": range(8), "words": [[f"a{n}", f"b{n}", "c"] for n in range(8)]})
        return made if name == schema.THEMES else table(self, name, *given)

    return read


def _without_verdicts(table: Any) -> Any:
    def read(self: reading.Files, name: str, *given: Any) -> pd.DataFrame:
        found = table(self, name, *given)
        return found.assign(verdict=None, evidence=None) if name == schema.CLUSTERS else found

    return read
