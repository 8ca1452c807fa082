"""Which hardware a process computes on: decided once, with the reason."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust.errors import SchedulerError

log = logging.getLogger("gpuclust")

CUDA_PACKAGES = ("cupy", "rmm", "cuml", "dask_cuda")
INSTALL = 'pip install "gpuclust[cuda13]" (CUDA 13: a Turing card or newer, driver 580 or newer)'
NOTHING = "no GPU and RAPIDS found"  # where nobody has tried to have them, details follow for those who want to
OLDEST_DRIVER = 13000  # as cuDriverGetVersion counts: CUDA 13.0
OLDEST_CARD = (7, 5)  # Turing
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class CudaStatus:
    """Whether local CUDA workers can be started, and why or why not."""

    usable: bool
    reason: str
    fix: str = ""
    n_devices: int = 0


@dataclass(frozen=True)
class Backend:
    """What a worker computes its arrays with.

    Attributes
    ----------
    name : {"cpu", "cuda"}
    reason : str
    """

    name: str
    reason: str

    @property
    def xp(self) -> Any:
        """The array module: numpy, or cupy."""
        if self.name == "cpu":
            return np
        import cupy

        return cupy


@cache
def resolve(device: str) -> Backend:
    """Return the backend for a torch device, once per process, and log why.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        What the scheduler found its workers to have.

    Raises
    ------
    SchedulerError
        If `device` is ``cuda`` and this process lacks something for it.
    """
    if device == "cpu":
        return Backend("cpu", "the workers have no GPU")
    status = cuda_status()
    if not status.usable:
        raise SchedulerError(f"this worker cannot compute on a GPU: {status.reason}. To change that, {status.fix}")
    log.info("backend: cuda (%s)", status.reason)
    return Backend("cuda", status.reason)


def to_host(array: Any) -> Any:
    """Return an array in host memory; arrays that are there already are returned as they are."""
    return array.get() if hasattr(array, "get") else array


def on_host(arrays: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a dictionary of arrays with all of them in host memory."""
    return {name: to_host(array) for name, array in arrays.items()}


def cuda_status() -> CudaStatus:
    """Look for CUDA devices, the driver and RAPIDS, without importing a library."""
    missing = [name for name in CUDA_PACKAGES if importlib.util.find_spec(name) is None]
    cards, driver = _cards()
    lacks = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
    if not cards and missing:
        return CudaStatus(
            False,
            f"{NOTHING}: no CUDA device is visible and {lacks}",
            f"on a machine with an NVIDIA GPU and driver: {INSTALL}",
        )
    if missing:
        return CudaStatus(False, f"{len(cards)} CUDA device(s), but {lacks}", INSTALL)
    if not cards:
        return CudaStatus(
            False, "RAPIDS is installed, but no CUDA device is visible", "check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    if driver < OLDEST_DRIVER:
        return CudaStatus(
            False,
            f"the NVIDIA driver knows CUDA up to {driver // 1000}.{driver % 1000 // 10}, RAPIDS here needs 13.0",
            "install driver 580 or newer",
        )
    if old := [card for card in cards if card < OLDEST_CARD]:
        return CudaStatus(
            False,
            f"{len(old)} of {len(cards)} visible GPU(s) are older than Turing (compute capability "
            f"{old[0][0]}.{old[0][1]}, at least 7.5 is needed)",
            "leave them out with CUDA_VISIBLE_DEVICES",
        )
    if not _torch_has_cuda():
        return CudaStatus(
            False,
            f"{len(cards)} CUDA device(s) and RAPIDS are there, but PyTorch is a CPU build",
            "install PyTorch's CUDA build: pip install --force-reinstall torch, without the CPU index",
        )
    return CudaStatus(True, f"{len(cards)} CUDA device(s) and RAPIDS are there", n_devices=len(cards))


def _cards() -> tuple[list[tuple[int, int]], int]:
    """Compute capabilities of the visible devices, and the driver's CUDA version; none and 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return [], 0
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return [], version.value
    cards = []
    for index in range(count.value):
        capability = []
        for attribute in (MAJOR, MINOR):
            value = ctypes.c_int(0)
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, index)
            capability.append(value.value)
        cards.append((capability[0], capability[1]))
    return cards, version.value


def _torch_has_cuda() -> bool:
    """Read from torch's own version file whether it was built with CUDA: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf8")
    return re.search(r"^cuda\b[^=\n]*=\s*['\"]", text, re.MULTILINE) is not None
