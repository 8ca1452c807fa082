from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "gpuclust"
EXAMPLES = {
    path: found
    for path in sorted(SOURCE.rglob("*.py"))
    if (found := len(re.findall(r"^\s*>>> (?!.*\+SKIP)", path.read_text(), re.M)))
}


def name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_examples_in_docstrings(path: Path) -> None:
    done = doctest.testmod(importlib.import_module(name(path)))
    assert done.failed == 0
    assert done.attempted - getattr(done, "skipped", 0) == EXAMPLES[path]  # Python 3.13 counts the skipped ones too


def test_examples_are_found_in_every_folder() -> None:
    assert sum(EXAMPLES.values()) >= 30
