"""A Dask client by name: auto, local-cuda, local, threads, or the address of a running scheduler."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuclust import schema
from gpuclust.config import Config
from gpuclust.config_sections import DEMO_SAES, SchedulerConfig
from gpuclust.engine import failures, security
from gpuclust.engine.failures import everywhere
from gpuclust.engine.spawned import guarded_script, refuse_in_child
from gpuclust.errors import SchedulerError, WorkerError
from gpuclust.hardware import device as gpu
from gpuclust.hardware import process
from gpuclust.hardware.backend import NOTHING, cuda_status

log = logging.getLogger("gpuclust")

AS_ASKED = "as asked"
LOOPBACK_WAIT = 5.0  # seconds for a connection to this machine itself
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
    timeout : float
        Seconds that a lost worker is waited for.
    deaths : list of str
        How worker processes of this machine died, as they do.
    """

    client: Any
    name: str
    reason: str
    device: str
    memory: int | None = None
    timeout: float = 60.0
    deaths: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """Where it computes and why, in a line for a person; `reason` may say more."""
        places = {
            "threads": "in this process",
            "local": "on this machine's CPUs",
            "local-cuda": "on this machine's GPUs",
        }
        kind = "GPUs" if self.device == "cuda" else "CPUs"
        why = NOTHING if self.reason.startswith(NOTHING) else self.reason
        because = self.name if why == AS_ASKED else f"{self.name}; {why}"
        return f"computing {places.get(self.name, f'on the {kind} of the workers')} ({because})"

    def said(self, error: BaseException) -> str:
        """Write an error of a task in a line, Dask's own among them."""
        found = failures.explained(error, self.name, self.timeout, self.deaths)
        return f"{type(error).__name__}: {error}" if found is None else str(found)

    @property
    def workers(self) -> list[str]:
        """Addresses of the workers, sorted; where there is none for a moment, one is waited for.

        Raises
        ------
        WorkerError
            If none comes within `timeout` seconds.
        """
        return sorted(_workers(self.client, self.name, self.timeout))


def choose(name: str) -> tuple[str, str]:
    """Resolve `auto` and check that the name can be had.

    Returns
    -------
    (name, reason)

    Raises
    ------
    SchedulerError
        For an unknown name, `local-cuda` on a machine that lacks something for it, or a script without a guard that
        something else than gpuclust started in a process of its own.
    """
    if name in ("auto", "local", "local-cuda"):
        refuse_in_child()
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
        return name, AS_ASKED
    raise SchedulerError(
        f"--scheduler is {name!r}; it must be one of {', '.join(schema.SCHEDULERS)}, or an address (tcp://host:port, tls://host:port)"
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
    name, reason = choose(name)
    log.info("scheduler: %s (%s)", name, reason)
    with failures.dask_logs() as logs, failures.told(name, config.timeout, logs.deaths), ExitStack() as stack:
        security.check(name)
        ours = name in schema.SCHEDULERS
        cluster = None
        if ours:
            with failures.interrupts_wait():  # raised behind this, where what was started is closed
                cluster = stack.enter_context(failures.closing("the workers", _cluster(name, config, logs.deaths)))
        client = stack.enter_context(failures.closing("the client", _client(name, cluster, config.timeout)))
        stack.enter_context(logs.worth_telling())
        stack.enter_context(failures.watching(client, name, config.timeout))
        _check_threads(client, name, config.timeout)
        client.register_plugin(_quiet_workers(log.getEffectiveLevel(), ours and name != "threads"))
        if name != "threads":  # there the worker's log is this process's
            client.forward_logging("gpuclust", level=log.getEffectiveLevel())
        device, allowed = ("cpu", None) if name in ("local", "threads") else _gpus(client, name, memory)
        yield Scheduler(client, name, reason, device, allowed, config.timeout, logs.deaths)


def _cluster(name: str, config: SchedulerConfig, deaths: Sequence[str] = ()) -> Any:
    """Start the workers of a name on this machine; how some died meanwhile is in `deaths`."""
    from distributed import LocalCluster, Security

    if name == "threads":
        return LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, processes=False, **LOOPBACK)
    _check_loopback(name)
    cores = process.cores()
    options: dict[str, Any] = {"threads_per_worker": 1, "memory_limit": 0, "host": "127.0.0.1", **LOOPBACK}
    try:
        if name == "local":
            n_workers = config.n_workers or max(1, cores // 4)
            with guarded_script(), _environment(cores // n_workers):
                return LocalCluster(n_workers=n_workers, processes=True, **options)
        from dask_cuda import LocalCUDACluster

        # Dask's own spilling and limits are off: memory.py plans, and the pool caps.
        protocol = "tls" if Security().require_encryption else "tcp"
        with guarded_script(), _environment(cores // max(1, cuda_status().n_devices)):
            return LocalCUDACluster(protocol=protocol, device_memory_limit=0, **options)
    except (OSError, RuntimeError, ValueError) as error:
        fix = "look at nvidia-smi and CUDA_VISIBLE_DEVICES, or use --scheduler local to run on the CPU"
        died = f"; one died as it started ({deaths[-1]})" if deaths else ""
        raise SchedulerError(
            f"{'Dask' if name == 'local' else 'dask-cuda'} cannot start worker processes: "
            f"{gpu.first_line(error).rstrip('.')}{died}. Run the same command again; if that does not help: "
            f"{fix if name == 'local-cuda' else 'take fewer (scheduler.n_workers), or use --scheduler threads'}"
        ) from error


def _check_loopback(name: str) -> None:
    """Refuse at once what Dask would wait a minute for."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=LOOPBACK_WAIT).close()
    except OSError as error:
        raise SchedulerError(
            f"--scheduler {name} reaches its workers at 127.0.0.1, where nothing answers here ({error}): allow "
            "connections on the loopback interface, or use --scheduler threads, which needs none"
        ) from error


def _client(name: str, cluster: Any, timeout: float) -> Any:
    """Connect, and see that there are workers."""
    from distributed import Client

    try:
        client = Client(name if cluster is None else cluster, timeout=timeout)
    except (OSError, RuntimeError, TimeoutError, TypeError, ValueError) as error:
        raise SchedulerError(_unreachable(name, error, timeout)) from error
    try:
        client.wait_for_workers(1, timeout=timeout)
    except TimeoutError as error:
        with failures.closing("the client", client):
            raise SchedulerError(
                f"the scheduler at {name} has no workers after scheduler.timeout={timeout:g} s; start them with "
                "`dask worker ADDRESS --nthreads 1`"
            ) from error
    return client


def _unreachable(name: str, error: Exception, timeout: float) -> str:
    said = f"no Dask scheduler answers at {name} within scheduler.timeout={timeout:g} s: {gpu.first_line(error)}"
    if "certificate" in said.lower():
        return (
            f"the scheduler at {name} and this process do not take each other's certificates "
            f"({gpu.first_line(error)}): both need certificates of the same authority, {security.SECTION}.* in Dask's "
            "configuration; see docs/tls.md"
        )
    if name.startswith("tls://"):
        said += ". It must have been started with TLS (dask scheduler --protocol tls)"
    elif "reset" in said.lower():
        said += f". If it was started with TLS, its address is {name.replace('tcp://', 'tls://')}"
    return (
        f"{said}. Start one with `dask scheduler`, its workers with `dask worker ADDRESS --nthreads 1`, or use "
        "--scheduler local"
    )


@contextmanager
def _environment(n: int) -> Iterator[None]:
    """Give worker processes started within so many threads for BLAS and the like; Dask's own default is one.

    What they would log of Dask's own, from their start on, is left out: whatever matters reaches the driver.
    """
    import dask

    limits = {f"{lib}_NUM_THREADS": str(max(1, n)) for lib in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    if log.getEffectiveLevel() > logging.DEBUG:
        limits |= {f"DASK_LOGGING__{name}": "critical" for name in ("DISTRIBUTED", "TORNADO", "ASYNCIO")}
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
        if path is not None and path not in DEMO_SAES and not Path(path).is_absolute() and Path(path).exists()
    }  # fmt: skip
    for address, (place, there) in sorted(everywhere(started.client, _look, out).items()):
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


def _workers(client: Any, name: str, timeout: float) -> dict[str, Any]:
    """What the scheduler knows of the workers there are, by address; where there is none, one is waited for."""
    found: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    if not found:
        log.info("the scheduler %s has no workers just now; waiting for one", name)
        try:
            client.wait_for_workers(1, timeout=timeout)
        except TimeoutError as error:
            raise WorkerError(failures.no_workers(name, timeout)) from error
        found = client.scheduler_info(n_workers=-1)["workers"]
    return found


def _check_threads(client: Any, name: str, timeout: float) -> None:
    """Refuse workers that do several tasks at a time: memory is planned for one."""
    threads = {address: worker["nthreads"] for address, worker in _workers(client, name, timeout).items()}
    address, most = max(threads.items(), key=lambda item: int(item[1]))
    if most > 1:
        raise SchedulerError(
            f"worker {address} of {name} does {most} tasks at a time, and memory is planned for one: start workers "
            "with `dask worker ADDRESS --nthreads 1`, several of them on a large machine"
        )


def _gpus(client: Any, name: str, memory: int | None) -> tuple[str, int | None]:
    """See whether the workers have GPUs, and make their memory pools: before any task, and in workers still to come."""
    found = everywhere(client, cuda_status)
    if not found:
        raise WorkerError(f"the workers at {name} died as they were looked at. {failures.KEPT}")
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
    budgets = everywhere(client, gpu.guarded, "start of the workers", gpu.install, memory)
    if not budgets:
        raise WorkerError(f"the workers at {name} died as their memory pools were made. {failures.KEPT}")
    client.register_plugin(gpu.plugin(memory))
    return "cuda", min(budgets.values())


def _quiet_workers(level: int, ours: bool) -> Any:
    """The Dask plugin that leaves errors of tasks to the driver, where they arrive whole; of workers to come, too.

    Ctrl-C is the driver's as well, which then stops the workers that are its own (`ours`).
    """
    from distributed import WorkerPlugin

    class Quiet(WorkerPlugin):  # type: ignore[misc]
        name = "gpuclust-quiet"

        def setup(self, worker: Any) -> None:
            if ours and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            logging.getLogger("gpuclust").setLevel(level)
            for name in ("distributed.worker", "distributed.worker.state_machine"):
                logging.getLogger(name).setLevel(logging.CRITICAL)

    return Quiet()
