"""What is written has its name only when it is whole; errors leave what was there, and nothing besides."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gpuclust import schema
from gpuclust.config_sections import StoreConfig
from gpuclust.storage import atomic, store
from gpuclust.storage.export import export

SOURCE = Path(__file__).parent.parent / "src" / "gpuclust"
WRITERS: dict[str, Callable[[Path], None]] = {
    "a.txt": lambda path: atomic.write_text(path, "ü"),
    "a.json": lambda path: atomic.write_json(path, {"a": 1}),
    "a.parquet": lambda path: atomic.write_table(path, pd.DataFrame({"a": [1]})),
    "a.npy": lambda path: atomic.write_array(path, np.arange(3)),
    "a.npz": lambda path: atomic.write_arrays(path, {"a": np.arange(3)}),
    "a.zarr": lambda path: store.write_dataset(path, {"a": (("x",), np.arange(3))}, {}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_writers_replace_what_is_there_and_leave_nothing_besides(name: str, tmp_path: Path) -> None:
    for _ in range(2):  # a new file, then over it; the folder is made
        WRITERS[name](tmp_path / "deep" / name)
        assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_leaves_what_was_there(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")

    def write() -> None:
        with atomic.replacing(target) as partial:
            if kind == "file":
                partial.write_text("new")
            else:
                (partial / "in it").mkdir(parents=True)
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert target.read_text() == "old"


def test_an_interrupted_export_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StoreConfig(shard_prompts=4, chunk_prompts=4)
    store.create(tmp_path / "run" / schema.ACTIVATIONS, 8, 3, config, {})
    for index in range(2):
        store.write_rows(tmp_path / "run" / schema.ACTIVATIONS, index, 4 * index, np.ones((4, 3), np.float16))
    written = store.write_rows

    def stopped(path: Path, index: int, first: int, data: np.ndarray) -> None:
        if index:
            raise KeyboardInterrupt
        written(path, index, first, data)

    monkeypatch.setattr(store, "write_rows", stopped)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "run", tmp_path / "out.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    monkeypatch.setattr(store, "write_rows", written)
    export(tmp_path / "run", tmp_path / "out.zarr")
    assert store.open_array(tmp_path / "out.zarr")[:].sum() == 24


def test_nothing_is_written_otherwise() -> None:
    """Calls that write to a path stand in `atomic`, or on a path that it gave."""
    writing = {"write_text", "write_bytes", "to_parquet", "to_csv", "savez", "savez_compressed", "save"}
    found = []
    for path in SOURCE.rglob("*.py"):
        if path.name == "atomic.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in writing:
                of = ast.unparse(node.func.value)
                found.append(f"{path.relative_to(SOURCE)}: {of}.{node.func.attr}")
    known = [
        "hardware/process.py: clear.write_text",  # the kernel's
        "results/comparison.py: table.to_csv",  # to a text
        "results/replicated.py: found.to_csv",  # to a text
        "storage/shards.py: partial.write_bytes",
    ]
    assert sorted(one for one in found if "atomic.write" not in one and "self.save" not in one) == known
