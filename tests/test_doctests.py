from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "gpuclust"
MODULES = sorted(path.stem for path in SOURCE.glob("*.py") if ">>> " in path.read_text(encoding="utf8"))


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module("gpuclust" if name == "__init__" else f"gpuclust.{name}")
    assert doctest.testmod(module).failed == 0
