"""A Dask client by name: auto, local-cuda, local, threads, or the address of a running scheduler."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuclust import schema
from gpuclust.config import Config, SchedulerConfig
from gpuclust.errors import SchedulerError
from gpuclust.hardware import device as gpu
from gpuclust.hardware import process
from gpuclust.hardware.backend import cuda_status

log = logging.getLogger("gpuclust")

# Dask's own default is every interface, for pages that show logs, tasks and call stacks without a password
LOOPBACK: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}


@dataclass(frozen=True)
class Scheduler:
    """A connected client and what is known of its workers.

    Attributes
    ----------
    client : distributed.Client
    name, reason : str
        What was chosen and why.
    device : {"cpu", "cuda"}
        torch device of the workers: all have a GPU, or none.
    memory : int or None
        Bytes of GPU memory that each worker may use, CUDA context included; None on CPU workers.
    """

    client: Any
    name: str
    reason: str
    device: str
    memory: int | None = None
    timeout: float = 60.0

    @property
    def workers(self) -> list[str]:
        """Addresses of the workers, sorted; where there is none for a moment, one is waited for.

        Raises
        ------
        SchedulerError
            If none comes within `timeout` seconds.
        """
        found = self.client.scheduler_info(n_workers=-1)["workers"]
        if not found:
            log.warning("the scheduler has no workers just now; waiting %g s for one", self.timeout)
            try:
                self.client.wait_for_workers(1, timeout=self.timeout)
            except TimeoutError as error:
                raise SchedulerError(
                    f"the scheduler {self.name} has lost all its workers, and none came back within scheduler.timeout="
                    f"{self.timeout:g} s. Start workers, or raise scheduler.timeout, and run the same command again"
                ) from error
            found = self.client.scheduler_info(n_workers=-1)["workers"]
        return sorted(found)


def choose(name: str) -> tuple[str, str]:
    """Resolve `auto` and check that the name can be had.

    Returns
    -------
    (name, reason)

    Raises
    ------
    SchedulerError
        For an unknown name, or `local-cuda` on a machine that lacks something for it.
    """
    if name == "auto":
        status = cuda_status()
        if status.usable:
            return "local-cuda", status.reason
        return "local", status.reason
    if name == "local-cuda":
        status = cuda_status()
        if not status.usable:
            raise SchedulerError(
                f"--scheduler local-cuda cannot start here: {status.reason}. To get it, {status.fix}; or use "
                "--scheduler local (or auto) to run on the CPU"
            )
        return name, status.reason
    if name in schema.SCHEDULERS or "://" in name:
        return name, "as asked"
    raise SchedulerError(
        f"--scheduler is {name!r}; it must be one of {', '.join(schema.SCHEDULERS)}, or an address (tcp://host:port)"
    )


@contextmanager
def start(name: str, config: SchedulerConfig, memory: int | None = None) -> Iterator[Scheduler]:
    """Start or join a scheduler, and close what was started.

    - local: worker processes on this machine, one per four cores unless ``scheduler.n_workers`` says otherwise
    - threads: one worker inside this process
    - local-cuda: one worker process per visible GPU (dask-cuda; CUDA_VISIBLE_DEVICES is respected)
    - an address: the workers of a running Dask cluster; they must see the same files and do one task at a time. All
      have a usable GPU, or none

    Parameters
    ----------
    name : str
    config : SchedulerConfig
    memory : int, optional
        ``device.memory`` in bytes: on GPU workers the most that each may take of its GPU. Their memory pools are made
        here, before any task runs.

    Raises
    ------
    SchedulerError
        If it cannot be started or reached, has no workers in time, a worker does several tasks at a time, or only some
        of its workers have a GPU.
    MemoryBudgetError
        If a GPU has too little memory to begin with.
    """
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.WARNING)
    logging.getLogger("distributed.nanny").setLevel(logging.ERROR)  # a worker that is slow to close is no news
    name, reason = choose(name)
    log.info("scheduler: %s (%s)", name, reason)
    cores = process.cores()
    cluster: Any = None
    try:
        if name == "local":
            n_workers = config.n_workers or max(1, cores // 4)
            with _threads(cores // n_workers):
                cluster = LocalCluster(
                    n_workers=n_workers,
                    threads_per_worker=1,
                    memory_limit=0,
                    processes=True,
                    host="127.0.0.1",
                    **LOOPBACK,
                )
        elif name == "threads":
            cluster = LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, processes=False, **LOOPBACK)
        elif name == "local-cuda":
            from dask_cuda import LocalCUDACluster

            # Dask's own spilling and limits are off: memory.py plans, and the pool caps.
            try:
                with _threads(cores // max(1, cuda_status().n_devices)):
                    cluster = LocalCUDACluster(
                        threads_per_worker=1, protocol="tcp", device_memory_limit=0, memory_limit=0,
                        host="127.0.0.1", **LOOPBACK,
                    )  # fmt: skip
            except (OSError, RuntimeError, ValueError) as error:
                raise SchedulerError(
                    f"dask-cuda cannot start a worker per GPU: {gpu.first_line(error)}. Look at nvidia-smi and "
                    "CUDA_VISIBLE_DEVICES, or use --scheduler local to run on the CPU"
                ) from error
        try:
            client = Client(name if cluster is None else cluster, timeout=config.timeout)
        except (OSError, TimeoutError, ValueError) as error:
            raise SchedulerError(
                f"no Dask scheduler answers at {name} within scheduler.timeout={config.timeout:g} s: {error}. Start "
                "one with `dask scheduler`, its workers with `dask worker ADDRESS --nthreads 1`, or use --scheduler "
                "local"
            ) from error
        with client:
            try:
                client.wait_for_workers(1, timeout=config.timeout)
            except TimeoutError as error:
                raise SchedulerError(
                    f"the scheduler at {name} has no workers after scheduler.timeout={config.timeout:g} s; start them "
                    "with `dask worker ADDRESS --nthreads 1`"
                ) from error
            _check_threads(client, name)
            client.run(_quiet_worker, log.getEffectiveLevel(), cluster is not None and name != "threads")
            if name != "threads":  # there the worker's log is this process's
                client.forward_logging("gpuclust", level=log.getEffectiveLevel())
            device, allowed = ("cpu", None) if name in ("local", "threads") else _gpus(client, name, memory)
            yield Scheduler(client, name, reason, device, allowed, config.timeout)
    finally:
        if cluster is not None:
            cluster.close()


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Give worker processes started within so many threads for BLAS and the like; Dask's own default is one."""
    import dask

    limits = {f"{lib}_NUM_THREADS": str(max(1, n)) for lib in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    with dask.config.set({"distributed.nanny.pre-spawn-environ": limits}):
        yield


def check_places(started: Scheduler, config: Config, out: Path) -> None:
    """Refuse workers of an address that see other files than this process.

    Parameters
    ----------
    started : Scheduler
    config : Config
    out : Path
        Folder of the run, absolute.

    Raises
    ------
    SchedulerError
        If a worker lacks the folder, or would look for a relative path of the configuration somewhere else.
    """
    if started.name in schema.SCHEDULERS:
        return
    paths = {"model.name": config.model.name, "sae.path": config.sae.path}
    paths |= {f"prompts.{i}.path": source.path for i, source in enumerate(config.prompts)}
    relative = {
        key: path for key, path in paths.items()
        if path is not None and path != "demo" and not Path(path).is_absolute() and Path(path).exists()
    }  # fmt: skip
    for address, (place, there) in sorted(started.client.run(_look, out).items()):
        if not there:
            raise SchedulerError(
                f"worker {address} does not see the run's folder {out}: give an --out that all machines share"
            )
        if relative and place != Path.cwd():
            key, path = next(iter(relative.items()))
            raise SchedulerError(
                f"{key} is {path}, a path relative to {Path.cwd()}, but worker {address} runs in {place}: give the "
                f"absolute path, {Path(path).absolute()}"
            )


def _look(out: Path) -> tuple[Path, bool]:
    return Path.cwd(), out.is_dir()


def _check_threads(client: Any, name: str) -> None:
    """Refuse workers that do several tasks at a time: memory is planned for one."""
    threads = {
        address: worker["nthreads"] for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()
    }
    address, most = max(threads.items(), key=lambda item: int(item[1]))
    if most > 1:
        raise SchedulerError(
            f"worker {address} of {name} does {most} tasks at a time, and memory is planned for one: start workers "
            "with `dask worker ADDRESS --nthreads 1`, several of them on a large machine"
        )


def _gpus(client: Any, name: str, memory: int | None) -> tuple[str, int | None]:
    """See whether the workers have GPUs, and make their memory pools: before any task, and in workers still to come."""
    found = client.run(cuda_status)
    without = {address: status for address, status in found.items() if not status.usable}
    if len(without) == len(found) and name != "local-cuda":
        log.info(
            "scheduler: the workers at %s compute on their CPUs, because %s", name, next(iter(without.values())).reason
        )
        return "cpu", None
    if without:
        address, status = min(without.items())
        more = f", and {len(without) - 1} more like it" if len(without) > 1 else ""
        raise SchedulerError(
            f"worker {address}{more} cannot compute on a GPU: {status.reason}. {len(found) - len(without)} of "
            f"{len(found)} workers at {name} can, and a run takes one kind: stop the others, or {status.fix}"
        )
    budgets = client.run(gpu.guarded, "start of the workers", gpu.install, memory)
    client.register_plugin(gpu.plugin(memory))
    return "cuda", min(budgets.values())


def _quiet_worker(level: int, ours: bool) -> None:
    """Leave errors of tasks to the driver, where they arrive whole: a worker would print each a second time.

    Ctrl-C is the driver's too, which then stops the workers that are its own (`ours`).
    """
    if ours and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("gpuclust").setLevel(level)
    for name in ("distributed.worker", "distributed.worker.state_machine"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
