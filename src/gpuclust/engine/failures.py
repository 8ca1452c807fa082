"""What is said when workers or a scheduler die: Dask computes again what they held, and gives up in its own words.

`told` turns those words into one `WorkerError`. Dask's own log goes through `dask_logs`: its tracebacks are for whoever
sets the level DEBUG.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from gpuclust import schema, stage_table
from gpuclust.errors import GpuclustError, WorkerError
from gpuclust.hardware import device

log = logging.getLogger("gpuclust")

KEPT = "What is done is kept; the same command goes on from there"
NO_WORKERS = "no workers"  # why futures are cancelled
CLOSES = 30.0  # seconds that closing may take
LOOKS = 2.0  # seconds between two looks at the workers


def submit(client: Any, stage: str, function: Callable[..., Any], *args: Any, label: str = "", **options: Any) -> Any:
    """Submit a task whose key says what it does, so that whatever becomes of it can be told; return its future.

    Parameters
    ----------
    client : distributed.Client
    stage : str
        As `device.guarded` takes it.
    function : callable
    *args
        What it is called with.
    label : str
        What of the stage, such as ``shard 3``; default the function's name.
    **options
        Of ``Client.submit``.
    """
    key = (f"{stage}-{uuid.uuid4().hex}", label or function.__name__)
    return client.submit(device.guarded, stage, function, *args, key=key, pure=False, **options)


def everywhere(client: Any, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Call a function in every worker there is; a worker that dies meanwhile is left out.

    Parameters
    ----------
    client : distributed.Client
    function : callable
    *args
        What it is called with.

    Returns
    -------
    dict
        Results by the workers' addresses; empty where there is no worker for a moment.
    """
    results: dict[str, Any] = {}
    for address, result in client.run(function, *args, on_error="return").items():
        if isinstance(result, OSError):  # of the connection: none of the functions opens files
            log.info("worker %s is gone: %s", address, device.first_line(result))
        elif isinstance(result, BaseException):
            raise result
        else:
            results[address] = result
    return results


# ---------------------------------------------------------------- Dask's words


@contextmanager
def told(name: str, timeout: float, deaths: list[str]) -> Iterator[None]:
    """Turn what Dask raises of dead workers and schedulers into a `WorkerError`; anything else passes.

    Parameters
    ----------
    name : str
        The scheduler's name or address.
    timeout : float
        ``scheduler.timeout``.
    deaths : list of str
        How worker processes died, as `dask_logs` gathers it.

    Raises
    ------
    WorkerError
    """
    try:
        yield
    except GpuclustError:
        raise
    except Exception as error:
        found = explained(error, name, timeout, deaths)
        if found is None:
            raise
        log.debug("what Dask raised", exc_info=True)
        raise found from error


def explained(error: BaseException, name: str, timeout: float, deaths: list[str]) -> WorkerError | None:
    """Return what is to be said of an error of Dask's about workers and schedulers; None for any other.

    Parameters
    ----------
    error : BaseException
    name, timeout, deaths : as in `told`
    """
    from distributed import CancelledError, scheduler
    from distributed.client import ClosedClientError
    from distributed.comm import CommClosedError

    if isinstance(error, scheduler.KilledWorker):
        stage, what = _of_key(error.task)
        how = f" ({deaths[-1]})" if deaths else ""
        advice = stage_table.get(stage).advice if stage in stage_table.NAMES else "compute fewer settings at a time"
        return WorkerError(
            f"{what}: {error.allowed_failures + 1} workers died while they computed it{how}, and Dask tries no more. "
            "Most likely the system ended them for want of memory (look at `dmesg`, or the job's log): end what else "
            f"runs there, {advice}, or take fewer workers (scheduler.n_workers). {KEPT}"
        )
    if isinstance(error, scheduler.NoWorkerError | scheduler.NoValidWorkerError):
        return WorkerError(f"{_of_key(error.task)[1]}: {no_workers(name, timeout)}")
    if isinstance(error, CancelledError):
        reason = str(getattr(error, "reason", ""))
        key = getattr(error, "key", None)
        doing = f"{_of_key(key)[1]}: " if key is not None else ""
        if reason == NO_WORKERS:
            return WorkerError(f"{doing}{no_workers(name, timeout)}")
        if reason == "scheduler-connection-lost":
            return _lost(name, doing)
        return WorkerError(f"{doing}the scheduler {name} has dropped the task ({reason or 'no reason given'}). {KEPT}")
    if isinstance(error, CommClosedError | ClosedClientError):
        return _lost(name, "", device.first_line(error))
    return None


def no_workers(name: str, timeout: float) -> str:
    """Say that all workers are lost, and for how long they were waited for."""
    return (
        f"the scheduler {name} has lost all its workers, and none came back within scheduler.timeout={timeout:g} s. "
        f"Start workers, or raise scheduler.timeout, and run the same command again. {KEPT}"
    )


def _lost(name: str, doing: str, why: str = "") -> WorkerError:
    whose = "Start it again" if name not in schema.SCHEDULERS else "Look at what ended it (`dmesg`)"
    return WorkerError(
        f"{doing}the connection to the scheduler {name} is lost{f' ({why})' if why else ''}: it has ended, or the "
        f"network has failed. {whose}, and run the same command again. {KEPT}"
    )


def _of_key(key: Any) -> tuple[str, str]:
    """The stage, and what of it, of a key as `submit` makes them; of another, Dask's own name."""
    if isinstance(key, tuple) and len(key) == 2:
        stage = str(key[0]).rpartition("-")[0]
        return stage, f"{'stage ' if stage in stage_table.NAMES else ''}{stage}, {key[1]}"
    return "", f"task {key}"


# ---------------------------------------------------------------- workers that stay away


@contextmanager
def watching(client: Any, name: str, timeout: float) -> Iterator[None]:
    """Say when there are no workers; when none comes back in time, cancel what waits for them.

    Dask's ``no-workers-timeout`` is the scheduler's, and off: whoever joins one by its address would wait for ever.

    Parameters
    ----------
    client : distributed.Client
    name : str
    timeout : float
        Seconds.
    """
    from distributed import Future

    over = threading.Event()

    def watch() -> None:
        since: float | None = None
        while not over.wait(min(LOOKS, timeout / 4)):
            try:
                workers = client.scheduler_info(n_workers=-1)["workers"]
            except Exception as error:  # the client notices by itself, and cancels what it waits for
                log.debug("no word from the scheduler %s: %s", name, error)
                continue
            now = time.monotonic()
            if workers:
                if since is not None:
                    log.warning("the scheduler %s has workers again", name)
                since = None
            elif since is None:
                since = now
                log.warning("the scheduler %s has no workers just now; waiting %g s for one", name, timeout)
            elif now - since > timeout:
                futures = [Future(key, client) for key in list(client.futures)]
                with contextlib.suppress(Exception):  # closed in between
                    client.cancel(futures, reason=NO_WORKERS)

    watcher = threading.Thread(target=watch, name="gpuclust-workers", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def closing(what: str, thing: Any) -> Iterator[Any]:
    """Close a client or a cluster at the end; what that runs into is logged, for what was computed is there.

    Parameters
    ----------
    what : str
    thing : distributed.Client or a cluster
    """
    try:
        yield thing
    finally:
        try:
            with interrupts_wait():
                thing.close(timeout=CLOSES)
        except Exception as error:
            log.info("%s did not close in order: %s: %s", what, type(error).__name__, device.first_line(error))
            if hasattr(thing, "shutdown_on_close"):
                thing.shutdown_on_close = False  # Dask would try again, and in vain, as this process ends
            for process in multiprocessing.active_children():
                if process.name.startswith("Dask Worker"):
                    process.kill()


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let a Ctrl-C wait until worker processes are started, or closed, whole; the second one does not wait.

    Threads and processes that begin within do not see any: workers would each print where they were. Outside of the
    main thread there is nothing to do.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    came: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    if before is None:  # set by something else than Python, which nothing here could put back
        yield
        return
    resource_tracker.ensure_running()  # of multiprocessing, which lets interrupts in again as it starts
    signal.signal(signal.SIGINT, note)
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)  # one that waited is noted here
        signal.signal(signal.SIGINT, before)
    if came:
        log.debug("an interrupt waited")
        signal.raise_signal(signal.SIGINT)


# ---------------------------------------------------------------- Dask's log


class _Lines(logging.Handler):
    """Passes records on as single lines, and gathers how worker processes died."""

    def __init__(self) -> None:
        super().__init__()
        self.deaths: list[str] = []
        self.running = False

    @contextmanager
    def worth_telling(self) -> Iterator[None]:
        """Tell of workers that die within; before they are all there, and as they are closed, it is no news."""
        self.running = True
        try:
            yield
        finally:
            self.running = False

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        line = text.partition("\n")[0]
        if record.name == "distributed.nanny" and line.startswith("Worker process"):
            how = line.partition(" was ")[2] or line.partition(" exited with ")[2]
            self.deaths += [how] if how != "status 0" else []
            if self.running and how != "status 0":
                log.warning("a worker process died (%s); Dask starts another, which does again what it did", how)
        elif record.levelno >= logging.WARNING:
            log.info("%s: %s", record.name, line)
        if record.exc_info or line != text:
            log.debug("%s: %s", record.name, text, exc_info=record.exc_info)

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name == "distributed.nanny"


@contextmanager
def dask_logs() -> Iterator[_Lines]:
    """Send what Dask, and the event loop under it, log in this process through gpuclust's log, line by line."""
    import distributed  # noqa: F401 - it sets up its own log as it is imported

    lines = _Lines()
    tops = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio")]
    known = [
        one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger) and one.handlers
    ]
    loggers = tops + [one for one in known if one.name.startswith(tuple(f"{top.name}." for top in tops))]
    before = [(one, list(one.handlers), one.propagate) for one in loggers]
    for one in loggers:
        one.handlers, one.propagate = ([lines], False) if one in tops else ([], True)
    logging.getLogger("distributed").setLevel(logging.WARNING)
    nanny = logging.getLogger("distributed.nanny")
    nanny.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        for one, handlers, propagate in before:
            one.handlers, one.propagate = handlers, propagate
        nanny.setLevel(logging.ERROR)
