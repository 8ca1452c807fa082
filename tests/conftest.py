"""Settings shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from gpuclust.backend import cuda_status

settings.register_profile("gpuclust", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("gpuclust")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where there is no usable GPU, unless GPUCLUST_REQUIRE_GPU=1."""
    status = cuda_status()
    if status.usable or os.environ.get("GPUCLUST_REQUIRE_GPU") == "1":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=status.reason))


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
