"""No stage takes more memory than was projected: measured in a process of its own, beside what the process takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuclust.extraction import extract_shard
from gpuclust.hardware import budget
from tests import peaks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's record of peaks"),
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each case took, in the order in which they ran, and what failed."""
    folder = tmp_path_factory.mktemp("peaks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.peaks", str(folder)],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines} | {"stderr": done.stderr[-2000:]}


@pytest.mark.parametrize("name", list(peaks.CASES))
def test_a_stage_takes_no_more_than_projected(name: str, measured: dict[str, Any]) -> None:
    assert name in measured, measured["stderr"]
    facts = measured[name]
    assert facts["grown"] > 50 * peaks.MB, "too small to say anything"
    assert facts["grown"] <= facts["projected"]
    if peaks.CASES[name].stage != "extract":  # whose longest prompts and largest batches do not come together
        assert facts["projected"] < 3 * facts["grown"]


def test_a_process_takes_no_more_than_projected(measured: dict[str, Any]) -> None:
    taken = measured["process"]["bytes"]
    assert taken < budget.PROCESS < 4 * taken  # it holds besides what malloc keeps between stages
    assert extract_shard.ENCODE_BYTES["cpu"] == peaks.SLICE
