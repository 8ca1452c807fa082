"""A sample of the faults of `tests.faults`, in a process of its own: none is silently wrong, raises, or loses a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import forking, outcomes, planted

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and /proc")]


@pytest.fixture(scope="module")
def tries(tmp_path_factory: pytest.TempPathFactory) -> list[outcomes.Try]:
    folder = tmp_path_factory.mktemp("faults")
    file = folder / "tries.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--sample", "--tries", str(file)], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, **forking.ONE_THREAD}, timeout=900,
    )  # fmt: skip
    assert file.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    assert "tries," in done.stdout.splitlines()[-1], done.stdout[-3000:] + done.stderr[-3000:]
    return outcomes.load(file)


def test_no_fault_is_silently_wrong_raises_or_loses_a_run(tries: list[outcomes.Try]) -> None:
    own = [one for one in tries if one.fault != planted.FAULT]
    assert len({(one.fault, one.how, one.place) for one in own}) > 25
    assert [str(one) for one in outcomes.bad(own)] == []


def test_planted_faults_are_called_what_they_are(tries: list[outcomes.Try]) -> None:
    found = [one for one in tries if one.fault == planted.FAULT]
    assert [one.outcome for one in found] == [one.place for one in found] == list(planted.EXPECTED.values())


def test_every_kind_of_fault_is_tried(tries: list[outcomes.Try]) -> None:
    kinds = {one.fault.partition(":")[0] for one in tries}
    assert {"killed", "damaged", "full disk", "RLIMIT_FSIZE", "bad prompts", "odd array", "odd configuration"} <= kinds
