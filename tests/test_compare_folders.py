"""The script that compares two folders of results notices every kind of difference, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpuclust.storage import store
from tests import scripts

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script() -> Any:
    return scripts.load("compare_folders")


def table(last: float = np.nan, word: str = "b") -> pd.DataFrame:
    return pd.DataFrame(
        {"value": [1.0, last], "prompts": [[{"prompt": 1, "text": "a"}], [{"prompt": 2, "text": word}]]}
    )


def near(folder: Path, last: float, n: int) -> None:
    store.write_dataset(folder / "near.zarr", {"distances": (("feature",), np.array([0.5, last]))}, {"n": n})


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    a, b = tmp_path / "a", tmp_path / "b"
    (a / "state").mkdir(parents=True)
    table().to_parquet(a / "clusters.parquet")
    np.save(a / "state" / "map.npy", np.array([1.0, np.nan]))
    near(a, 0.25, 1)
    (a / "run.json").write_text(json.dumps({"stages": {"embed": {"seconds": 1, "rows": 2}}}))
    (a / "page.html").write_text("page")
    shutil.copytree(a, b)
    return a, b


def test_what_is_the_same_is_the_same(script: Any, folders: tuple[Path, Path], capsys: Any) -> None:
    a, b = folders
    (b / "run.json").write_text(json.dumps({"stages": {"embed": {"seconds": 9, "rows": 2}}}))
    assert script.main([str(a), str(b)]) == 0
    assert capsys.readouterr().out == "the same: 5 files\n"


def test_every_difference_is_told(script: Any, folders: tuple[Path, Path], capsys: Any) -> None:
    a, b = folders
    table(2.0).to_parquet(b / "clusters.parquet")
    np.save(b / "state" / "map.npy", np.array([1.5, np.nan]))
    near(b, 0.75, 2)
    (b / "run.json").write_text(json.dumps({"stages": {"embed": {"seconds": 1, "rows": 3}}}))
    (b / "page.html").write_text("other")
    (a / "gone.txt").write_text("")
    assert script.main([str(a), str(b)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split(" ")[0] for line in told] == [
        "clusters.parquet", "gone.txt", "near.zarr", "near.zarr/distances[0", "page.html", "run.json.stages.embed.rows",
        "state/map.npy",
    ]  # fmt: skip
    assert told[-1] == "state/map.npy: 1 of 2 values differ, by 0.5 at most"
    table(word="c").to_parquet(b / "clusters.parquet")
    assert "text: 'b' became 'c'" in next(iter(script.differences(a, b)))
