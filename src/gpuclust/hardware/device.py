"""The memory of a GPU worker: one pool for PyTorch, CuPy and cuML, capped and counted; and what to do when it runs out.

`install` runs once in each GPU worker, before anything is allocated there. The three libraries then draw from
``StatisticsResourceAdaptor(LimitingResourceAdaptor(PoolMemoryResource))`` of RMM, so one number bounds them all and
one counter has their peak. The CUDA context, loaded kernels and libraries' workspaces lie outside the pool: `RESERVE`
is kept for them. The pool is taken as a whole at the start, so nobody else can take it while a run goes on.
"""

from __future__ import annotations

import logging
import os
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpuclust import stage_table
from gpuclust.errors import DeviceError, GpuclustError, MemoryBudgetError, SchedulerError, TaskError
from gpuclust.formatting import gigabytes

log = logging.getLogger("gpuclust")

# Bytes outside the pool: context, kernels, cuBLAS and cuML workspaces. An H200 took 0.55 GB for the context alone and
# 0.7125 GB at most in a run; other cards are not measured.
RESERVE = 800_000_000
SMALLEST = 256 << 20  # a pool below this helps nobody
FRAMES = 200  # of an error's traceback and those that it came from; Python pickles some 400
NO_MEMORY = (
    "out of memory", "out_of_memory", "bad_alloc", "Maximum pool size exceeded", "ALLOC_FAILED", "MemoryAllocation",
)  # fmt: skip
DEVICE_ERRORS = ("CUDARuntimeError", "CUDADriverError", "CUBLASError", "NVRTCError", "CompileException",
                 "AcceleratorError", "RMMError")  # fmt: skip
# What cuML's own failures say; they arrive as plain RuntimeErrors
DEVICE_TEXTS = (
    "CUDA error",
    "cudaError",
    "RAFT failure",
    "found by MST is invalid",
    "CUBLAS_STATUS",
    "CUSOLVER_STATUS",
)


@dataclass
class Pool:
    """What `install` made: the counting resource, its cap, and the bytes this process may use in all."""

    statistics: Any
    cap: int
    budget: int
    before: int = 0
    counting: bool = False


_pool: Pool | None = None


def install(limit: int | None) -> int:
    """Give PyTorch, CuPy and cuML one pool, and return the device memory that this process may use.

    Parameters
    ----------
    limit : int or None
        ``device.memory`` in bytes, `RESERVE` included; None takes what is free.

    Returns
    -------
    int
        Bytes: the smaller of `limit` and what is free. The pool has `RESERVE` less.

    Raises
    ------
    MemoryBudgetError
        If no useful pool is left.
    SchedulerError
        If a pool of a larger size is there already (a worker that outlives a run), or PyTorch has allocated before.
    """
    global _pool
    if _pool is not None:
        if limit is not None and limit < _pool.budget:
            raise SchedulerError(
                f"device.memory is {gigabytes(limit)}, but this worker took {gigabytes(_pool.budget)} for an "
                "earlier run and cannot give it back: restart the GPU workers, or raise device.memory"
            )
        return _pool.budget
    import cupy
    import rmm
    import torch
    from rmm.allocators.cupy import rmm_cupy_allocator
    from rmm.allocators.torch import rmm_torch_allocator

    free, total = cupy.cuda.runtime.memGetInfo()
    budget = free if limit is None else min(limit, free)
    if limit is not None and limit > free:
        log.warning("device.memory is %.2f GB, but only %.2f of %.2f GB are free: that is used",
                    limit / 1e9, free / 1e9, total / 1e9)  # fmt: skip
    cap = (budget - RESERVE) // 256 * 256
    if cap < SMALLEST:
        raise MemoryBudgetError(
            f"a GPU worker may use {gigabytes(budget)} ({gigabytes(free)} are free), of which "
            f"{gigabytes(RESERVE)} go to the CUDA context and libraries: raise device.memory, or end what else runs "
            "on the GPU"
        )
    upstream = rmm.mr.get_current_device_resource()
    if isinstance(upstream, rmm.mr.CudaMemoryResource):
        upstream = rmm.mr.PoolMemoryResource(upstream, initial_pool_size=cap, maximum_pool_size=cap)
    else:  # the worker was started with one, such as `dask cuda worker --rmm-pool-size`
        log.info("device: the worker's own %s is kept below the cap", type(upstream).__name__)
    statistics = rmm.mr.StatisticsResourceAdaptor(rmm.mr.LimitingResourceAdaptor(upstream, allocation_limit=cap))
    rmm.mr.set_current_device_resource(statistics)
    cupy.cuda.set_allocator(rmm_cupy_allocator)
    try:
        torch.cuda.memory.change_current_allocator(rmm_torch_allocator)
    except (RuntimeError, AttributeError) as error:
        raise SchedulerError(
            f"PyTorch cannot share the GPU's memory pool ({error}): restart the GPU workers; nothing else may use "
            "PyTorch on them before a run"
        ) from error
    _pool = Pool(statistics, cap, budget)
    log.info("device: a pool of %.2f of %.2f GB free for PyTorch, CuPy and cuML", cap / 1e9, free / 1e9)
    return int(budget)


def free_bytes() -> int:
    """Return the free memory of this process's GPU; a CUDA context is made for the question."""
    import cupy

    return int(cupy.cuda.runtime.memGetInfo()[0])


def reset_peak() -> None:
    """Begin to count the pool's peak anew; nothing where there is no pool."""
    if _pool is None:
        return
    if _pool.counting:
        _pool.statistics.pop_counters()
    _pool.before = int(_pool.statistics.allocation_counts.current_bytes)
    _pool.statistics.push_counters()  # these count from 0
    _pool.counting = True


def peaks() -> dict[str, int | None] | None:
    """Return the device memory of this process since `reset_peak`, in bytes; None where there is no pool.

    Returns
    -------
    dict or None
        ``pool``: the most that was allocated from the pool. ``process``: what NVML says that the whole process holds
        now, pool, context and libraries; None where NVML does not tell (in some containers).
    """
    if _pool is None:
        return None
    peak = _pool.before + max(int(_pool.statistics.allocation_counts.peak_bytes), 0)
    return {"pool": peak, "process": _process_bytes()}


def _process_bytes() -> int | None:
    import cupy
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByPciBusId(cupy.cuda.Device().pci_bus_id)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError as error:
        log.debug("NVML: %s", error)
        return None
    used = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    return int(used[0]) if used and used[0] is not None else None


def plugin(limit: int | None) -> Any:
    """Return the Dask worker plugin that calls `install`, also in workers that come later or are restarted."""
    from distributed import WorkerPlugin

    class DeviceMemory(WorkerPlugin):  # type: ignore[misc]
        name = "gpuclust-device-memory"

        def setup(self, worker: Any) -> None:
            from gpuclust.hardware import device

            device.install(limit)

    return DeviceMemory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the device or on the host.

    torch raises its own OutOfMemoryError, or with RMM's allocator a RuntimeError or MemoryError; CuPy an
    OutOfMemoryError; RMM and cuML a MemoryError or RuntimeError with C++'s text.

    Examples
    --------
    >>> is_out_of_memory(MemoryError("std::bad_alloc: out_of_memory: RMM failure")), is_out_of_memory(ValueError("no"))
    (True, False)
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


def guarded(stage: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a task's function; what the GPU or memory does to it comes out as a DeviceError that says what to set.

    Parameters
    ----------
    stage : str
        A stage of `stage_table`, whose advice the error gives, or what else is done.
    function : callable
    *args, **kwargs
        What it is called with.

    Raises
    ------
    DeviceError
        If memory runs out, or the GPU fails. The libraries' own exceptions stay in the worker's log: the driver may
        not have the libraries to read them.
    TaskError
        For SystemExit, KeyboardInterrupt and the like: Dask lets them end the worker, and tries again with another.
    """
    failure: GpuclustError
    try:
        return function(*args, **kwargs)
    except GpuclustError as error:
        if _can_be_sent(error):
            raise
        log.debug("stage %s failed", stage, exc_info=True)
        failure = type(error)(*error.args)
    except Exception as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        log.debug("stage %s failed", stage, exc_info=True)
        if is_out_of_memory(error):
            failure = out_of_memory(stage, what)
        elif _is_of_the_device(error):
            failure = DeviceError(
                f"{_called(stage)}: the GPU failed ({what}). Look at nvidia-smi and the driver's log (dmesg); the same "
                "command goes on where it was, and --scheduler local does without the GPU"
            )
        else:
            raise
    except BaseException as error:  # nobody interrupts a task: that is the driver's, which cancels it
        log.debug("stage %s failed", stage, exc_info=True)
        failure = TaskError(
            f"{_called(stage)}: {getattr(function, '__name__', 'a task')} raised {type(error).__name__}"
            f"({first_line(error)}), which would have ended the worker. What is done is kept; mend what raises it, and "
            "run the same command again"
        )
    raise failure  # out of the except block: a worker keeps a task's error, and its traceback held the step's arrays


def _can_be_sent(error: BaseException) -> bool:
    """Whether Dask can send an error on with all that it came from; else it makes a bare ``Exception`` of it.

    That pickles the exceptions that it came from, which may be anybody's, and their tracebacks, frame within frame.
    """
    frames = 0
    one: BaseException | None = error
    while one is not None:
        frames += 1 + sum(1 for _ in traceback.walk_tb(one.__traceback__))
        if frames > FRAMES:
            return False
        try:
            pickle.loads(pickle.dumps(one))
        except Exception:  # what somebody else's `__init__` raises as it is called again is anything
            return False
        one = one.__cause__ or one.__context__
    return True


def _is_of_the_device(error: Exception) -> bool:
    if {kind.__name__ for kind in type(error).__mro__} & set(DEVICE_ERRORS):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in DEVICE_TEXTS)


def halving(stage: str, size: int, compute: Callable[[int], Any]) -> Any:
    """Return ``compute(size)``; each time memory runs out, say so and compute with half the size.

    Parameters
    ----------
    stage : str
        As in `guarded`.
    size : int
        The first to be tried.
    compute : callable
        Takes a size.

    Raises
    ------
    DeviceError
        If it runs out with a size of 1.
    """
    while True:
        try:
            return compute(size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            what = f"{type(error).__name__}: {first_line(error)}"
        if size <= 1:  # out of the except block: its traceback held the failed step's arrays
            raise out_of_memory(stage, what)
        size //= 2
        log.warning("%s: out of memory (%s); going on with %d at a time", stage, what, size)


def out_of_memory(stage: str, what: str) -> DeviceError:
    """Return the error that says which stage ran out of memory and what to change."""
    advice = stage_table.get(stage).advice if stage in stage_table.NAMES else "end what else runs on the machine"
    held = "" if _pool is None else f" The pool has {gigabytes(_pool.cap)}: raise device.memory if the card has more."
    return DeviceError(
        f"{_called(stage)} ran out of memory ({what}). "
        f"To go on from here, {advice}, and run the same command again.{held}"
    )


def _called(stage: str) -> str:
    return f"stage {stage}" if stage in stage_table.NAMES else stage


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, at most 200 characters."""
    return next(iter(str(error).splitlines()), "")[:200]
