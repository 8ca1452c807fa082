"""Which hardware a process computes on: decided once, with the reason."""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass

CUDA_PACKAGES = ("cupy", "cuml", "dask_cuda")
INSTALL = 'pip install "gpuclust[cuda13]" (CUDA 13: a Turing card or newer)'


@dataclass(frozen=True)
class CudaStatus:
    """Whether local CUDA workers can be started, and why or why not."""

    usable: bool
    reason: str
    fix: str = ""


def cuda_status() -> CudaStatus:
    """Look for a CUDA device and for RAPIDS, without importing either."""
    missing = [name for name in CUDA_PACKAGES if importlib.util.find_spec(name) is None]
    count = _device_count()
    if count == 0 and missing:
        return CudaStatus(
            False,
            f"no CUDA device is visible and {', '.join(missing)} are not installed",
            f"on a machine with an NVIDIA GPU and driver: {INSTALL}",
        )
    if missing:
        return CudaStatus(False, f"{count} CUDA device(s), but {', '.join(missing)} are not installed", INSTALL)
    if count == 0:
        return CudaStatus(
            False, "RAPIDS is installed, but no CUDA device is visible", "check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    return CudaStatus(True, f"{count} CUDA device(s) and RAPIDS are there")


def _device_count() -> int:
    """Count the devices that the CUDA driver shows; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
