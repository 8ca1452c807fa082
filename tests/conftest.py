"""Settings shared by all tests."""

from __future__ import annotations

import os

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
