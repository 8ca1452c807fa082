"""How much is drawn by Hypothesis, and what may come of it: GPUCLUST_FUZZ=100 draws a hundred times as much."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, settings

from gpuclust.errors import GpuclustError

MORE = int(os.environ.get("GPUCLUST_FUZZ", "1"))  # times as many examples
SECONDS = 60.0  # on a busy machine, imports included


def fuzz(examples: int) -> settings:
    suppressed = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
    return settings(
        max_examples=examples * MORE, deadline=None, report_multiple_bugs=False, suppress_health_check=suppressed
    )


@contextmanager
def one_error(kind: type[GpuclustError] | tuple[type[GpuclustError], ...] = GpuclustError) -> Iterator[None]:
    """Nothing is raised but one of ours, whose message can be printed and is not endless, and in time."""
    begun = time.perf_counter()
    try:
        yield
    except kind as error:
        text = str(error)
        assert text.strip()
        assert len(text) < 20_000
        text.encode()
    assert time.perf_counter() - begun < SECONDS
