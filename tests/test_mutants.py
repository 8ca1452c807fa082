"""The list of mutants fits the code, and the script tells killed, survived and broken apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import scripts

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script() -> Any:
    return scripts.load("mutants")


def test_every_mutant_fits_the_code_and_its_tests_are_there(script: Any) -> None:
    assert script.check(script.MUTANTS) == []
    for mutant in script.MUTANTS:
        for test in mutant.tests.split():
            assert (ROOT / "tests" / test.partition("::")[0]).is_file(), f"{mutant.name}: {test}"


def test_texts_that_are_not_there_once_are_said(script: Any) -> None:
    mutant = script.MUTANTS[0]
    (gone,) = script.check([replace(mutant, old="no such text")])
    assert "holds its text 0 times, not once" in gone
    assert any("several" not in line and "2 times" in line for line in script.check([mutant, mutant]))


def test_verdicts(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "repository"
    (source / "src/gpuclust").mkdir(parents=True)
    (source / "src/gpuclust/one.py").write_text("ONE = 1\nTWO = 2\n")
    (source / "tests").mkdir()
    (source / "tests/test_one.py").write_text("from gpuclust.one import ONE\n\ndef test_one():\n    assert ONE == 1\n")
    (source / "pyproject.toml").write_text("")
    monkeypatch.setattr(script, "ROOT", source)
    monkeypatch.setattr(script, "COPIED", ("src", "tests", "pyproject.toml"))
    copy = script.Copy(tmp_path / "copy")
    (tmp_path / "copy/src/gpuclust/__init__.py").write_text("")
    verdicts = {
        new: copy.judge(script.Mutant("name", "one.py", old, new, "test_one.py", "why"))[0]
        for old, new in [("ONE = 1", "ONE = 3"), ("TWO = 2", "TWO = 3"), ("ONE = 1", "NONE = 1")]
    }
    assert verdicts == {"ONE = 3": script.KILLED, "TWO = 3": script.SURVIVED, "NONE = 1": script.BROKEN}
    assert (tmp_path / "copy/src/gpuclust/one.py").read_text() == "ONE = 1\nTWO = 2\n"
    assert copy.run(["test_one.py"])[0] == 0
