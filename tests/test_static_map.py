"""The map as a picture: what is drawn, which names find room, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gpuclust
from gpuclust.errors import InputError
from gpuclust.results import pictures, static_map
from gpuclust.show import main


def tables(places: list[tuple[float, float]], verdicts: list[str], n: int = 6) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clusters of n features around places, with the words word0 …, and two features of noise."""
    rng = np.random.default_rng(0)
    xy = np.concatenate([np.array(place) + 0.01 * rng.standard_normal((n, 2)) for place in places] + [np.zeros((2, 2))])
    label = [c for c in range(len(places)) for _ in range(n)] + [-1, -1]
    features = pd.DataFrame({"feature": range(len(xy)), "x": xy[:, 0], "y": xy[:, 1], "label": label, "kept": True})
    numbers = [*range(len(places)), -1]
    clusters = pd.DataFrame({
        "cluster": numbers, "size": [*[n] * len(places), 2], "verdict": [*verdicts, None],
        "tokens": [*([f"word{c}", "$x_{"] for c in range(len(places))), None],
    })  # fmt: skip
    return features, clusters


def test_names_stand_where_there_is_room_and_the_sure_come_first(tmp_path: Path) -> None:
    features, clusters = tables(
        [(0, 0), (0, 0.01), (5, 5), (-5, 5)], ["fragile", "stable", "stable", "not found again"]
    )
    named = static_map.write(features, clusters, tmp_path / "map.svg")
    assert named == [1, 2]  # 0 lies under 1, which other prompts find again; 3 is doubtful


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, "word0 · $x_{"),
        ("", "word0 · $x_{"),
        ("Money\nand war", "Money and war"),
        ("\x00a\x1b[31m" + 50 * "b", "a[31m" + 22 * "b" + "…"),
    ],
)
def test_a_name_is_one_line_that_can_be_drawn(tmp_path: Path, given: str | None, shown: str) -> None:
    features, clusters = tables([(0, 0)], ["stable"])
    clusters = clusters.assign(name=[given, None])
    assert static_map._title(clusters.to_dict("records")[0]) == shown
    assert static_map.write(features, clusters, tmp_path / "map.svg") == [0]  # a prompt's dollar begins no formula


def test_a_name_keeps_whole_words() -> None:
    assert static_map._joined(["neutrality", "neutral", "proclamation", "d"]) == "neutrality · neutral"
    assert static_map._joined(["a" * 40]) == "a" * 27 + "…"
    assert static_map._joined(["a", "b", "c", "d"]) == "a · b · c"


def test_themes_come_before_clusters_and_a_caption_says_of_what(tmp_path: Path) -> None:
    features, clusters = tables([(0, 0), (5, 5), (-5, 5)], ["stable", "stable", "not found again"])
    themes = pd.DataFrame(
        {"words": [["above", "all"], ["nothing"]], "clusters": [[0], [2]], "doubtful": [0, 1], "theme": [0, 1]}
    )
    named = static_map.write(features, clusters, tmp_path / "a.svg", themes=themes, caption="a <model>")
    assert named == [1]  # the theme stands where cluster 0 would
    text = static_map._caption("a <model>", clusters, bold=True)
    assert text.startswith("a <model>\nA point is a feature; ")
    assert "faded" in text
    assert "bold: themes" in text
    assert "italic" not in text
    assert "faded" not in static_map._caption("", clusters[clusters["verdict"] == "stable"], bold=False)


def test_names_go_by_the_features_that_are_found_again(tmp_path: Path) -> None:
    features, clusters = tables([(0, 0), (0, 0.01), (5, 5)], ["stable", "stable", "fragile"])
    clusters = clusters.assign(stability=[0.5, 0.9, 0.3, None])
    assert static_map.write(features, clusters, tmp_path / "a.svg") == [1, 2]
    assert "italic and pale" in static_map._caption("", clusters, bold=False)


@pytest.mark.parametrize("suffix", pictures.SUFFIXES)
def test_the_same_run_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    features, clusters = tables([(0, 0), (5, 5)], ["stable", "stable"])
    for name in ("a", "b"):
        static_map.write(features, clusters, tmp_path / f"{name}{suffix}", dark=True)
    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert len(first) > 1000


def test_nobodys_matplotlibrc_makes_another_picture(tmp_path: Path) -> None:
    import matplotlib as mpl

    features, clusters = tables([(0, 0), (5, 5)], ["stable", "stable"])
    static_map.write(features, clusters, tmp_path / "a.png")
    with mpl.rc_context({"text.usetex": True, "savefig.dpi": 20, "savefig.bbox": "tight", "axes.grid": True}):
        static_map.write(features, clusters, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_the_font_has_not_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    features, clusters = tables([(0, 0), (5, 5)], ["stable", "stable"])
    static_map.write(features, clusters.assign(name=["中国", "日本", None]), tmp_path / "map.png")
    assert [record.message for record in caplog.records if "lacks characters" in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_folder_is_no_figure(tmp_path: Path) -> None:
    (tmp_path / "map.svg").mkdir()
    with pytest.raises(InputError, match=r"map\.svg is a folder"):
        pictures.check(tmp_path / "map.svg")


def test_nothing_but_noise_is_drawn_without_names(tmp_path: Path) -> None:
    features, clusters = tables([], [])
    assert static_map.write(features, clusters, tmp_path / "map.png") == []


def test_another_kind_of_file_is_refused(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.jpeg: a figure is written as \.svg, \.pdf, \.png"):
        gpuclust.open_run(small_run).write_map(tmp_path / "map.jpeg")


def test_the_command_writes_it(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a[red]b.svg"
    assert main([str(small_run), "--figure", str(target), "--dark"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{target}: ")  # a path is no markup
    assert "clusters are named" in said
    assert static_map.GROUND[True] in target.read_text()
