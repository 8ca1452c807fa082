"""Settings shared by all tests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from gpuclust.hardware.backend import cuda_status
from tests.browser import chromium, features, opened, page, reported  # noqa: F401  fixtures

settings.register_profile("gpuclust", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("gpuclust")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their number: what is packed holds the time, and each process would name its tests otherwise."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where there is no usable GPU, unless GPUCLUST_REQUIRE_GPU=1."""
    status = cuda_status()
    if status.usable or os.environ.get("GPUCLUST_REQUIRE_GPU") == "1":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=status.reason))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the tiny model, with clusters, whose prompts, sources and names hold HTML and scripts.

    It is made once, also where tests run in several processes: treat it as read-only.
    """
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small"
    with FileLock(f"{folder}.lock"):
        if not (folder / "out" / "report.html").exists():
            _make_small_run(folder)
    return folder / "out"


def _make_small_run(folder: Path) -> None:
    import yaml

    from gpuclust import run
    from tests import tiny

    folder.mkdir(exist_ok=True)
    settings = tiny.build(folder)
    source = Path(settings["prompts"][0]["path"])
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    hurt = [{"text": f"{row['text']} {tiny.HOSTILE}", "source": f"<i>{row['source']}</i>"} for row in rows]
    source.write_text("".join(json.dumps(row) + "\n" for row in hurt))
    settings |= {"hdbscan": {"min_cluster_size": 2, "min_samples": 1}, "analyse": {"labeller": "tests.tiny:label"}}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    arguments = ["--config", str(config), "--out", str(folder / "out"), "--scheduler", "threads", "--quiet"]
    assert run.main(arguments) == 0


# Array modules that every array step is run on: NumPy, a strict stand-in for CuPy, and CuPy where there is a GPU.
ARRAYS = ["numpy", "stub", pytest.param("cupy", marks=pytest.mark.gpu)]


@pytest.fixture(params=ARRAYS)
def xp(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An array module: the capability table of the tests."""
    if request.param == "numpy":
        yield np
    elif request.param == "stub":
        from tests import cuda_stub

        with cuda_stub.installed():
            import cupy

            yield cupy
    else:
        import cupy

        yield cupy
