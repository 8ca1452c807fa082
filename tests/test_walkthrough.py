"""The notebook in examples/ runs from its first cell to its last, and holds what it showed on the demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gpuclust

NOTEBOOK = Path(__file__).parent.parent / "examples" / "walkthrough.ipynb"


def test_the_walkthrough_was_executed() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert sum("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs) == 3


@pytest.mark.slow
def test_the_walkthrough_runs(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("GPUCLUST_RUN", str(small_run))
    monkeypatch.setenv("PYTHONPATH", str(Path(gpuclust.__file__).parent.parent))  # the kernel imports what is tested
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kernel = {"metadata": {"path": str(small_run.parent)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=kernel).execute()
    shown = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    assert "features are kept" in shown
    assert "agreement on them" in shown
