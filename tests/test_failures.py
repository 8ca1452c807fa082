"""Workers and schedulers that die, told in one line; interrupts; closing. Real processes, of a cheap task."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import distributed  # noqa: F401 - before dask.config.set, which at its end would take away all that it did not find
import pytest

from gpuclust import terminal
from gpuclust.config_sections import SchedulerConfig
from gpuclust.engine import failures, scheduler
from gpuclust.errors import ConfigError, GpuclustError, TaskError, WorkerError
from gpuclust.hardware import device
from gpuclust.tables import labeller

TCP = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "protocol": "tcp", "host": "127.0.0.1"}


@pytest.fixture(scope="module")
def started() -> Iterator[scheduler.Scheduler]:
    """One worker process, which Dask starts again; two deaths of it are too many, for the test's time."""
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        scheduler.start("local", SchedulerConfig(n_workers=1, timeout=60)) as one,
    ):
        yield one


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_once(mark: Path) -> int:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 42


def _raise(kind: type[BaseException]) -> None:
    raise kind(3)


def test_what_a_dead_worker_did_is_done_again(started: scheduler.Scheduler, tmp_path: Path) -> None:
    assert failures.submit(started.client, "reduce", _die_once, tmp_path / "mark").result(60) == 42
    assert started.deaths == ["killed by signal 9"]
    assert failures.submit(started.client, "reduce", _ignores_interrupts).result(60)  # of the new worker


def _ignores_interrupts() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_worker_that_dies_for_good_is_one_error(started: scheduler.Scheduler) -> None:
    future = failures.submit(started.client, "extract", _die, 0, label="shard 7")
    with (
        pytest.raises(WorkerError) as raised,
        failures.told("local", 60, started.deaths),
    ):
        future.result(60)
    text = str(raised.value)
    assert text.startswith("stage extract, shard 7: 2 workers died while they computed it (killed by signal 9)")
    assert "memory" in text
    assert "lower extract.batch_tokens" in text
    assert text.endswith("the same command goes on from there")
    assert (raised.value.exit_code, "\n" in text) == (1, False)
    assert started.said(future.exception()) == text
    assert started.said(ValueError("no")) == "ValueError: no"


def test_passes_are_not_tied_to_workers() -> None:
    """Dask never runs a task again that is tied to a dead worker, allowed elsewhere or not, where all had died."""
    import inspect

    from gpuclust.engine import gram_pass, inverted_pass
    from gpuclust.sweep import computation

    for module in (gram_pass, inverted_pass, computation):
        assert "allow_other_workers" not in inspect.getsource(module)
        assert "workers=[" not in inspect.getsource(module)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_task_cannot_end_its_worker(kind: type[BaseException]) -> None:
    with pytest.raises(TaskError, match=rf"stage analyse: _raise raised {kind.__name__}\(3\)"):
        device.guarded("analyse", _raise, kind)


@pytest.mark.parametrize("kind", ["SystemExit", "GeneratorExit", "BaseException"])
def test_a_labeller_cannot_end_anything(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pandas as pd

    (tmp_path / f"odd_{kind}.py").write_text(f"def label(table):\n    raise {kind}(3)\n")
    (tmp_path / f"worse_{kind}.py").write_text(f"raise {kind}(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=rf"odd_{kind}:label failed \({kind}: 3\)"):
        labeller.apply(f"odd_{kind}:label", pd.DataFrame({"cluster": [0]}))
    with pytest.raises(ConfigError, match=rf"worse_{kind}:label, which cannot be imported \({kind}: 3\). Mend it"):
        labeller.find(f"worse_{kind}:label")


def test_an_interrupt_is_the_labellers_own_but_in_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    def stopped(table: Any) -> dict[int, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(labeller, "find", lambda name: stopped)
    table = pd.DataFrame({"cluster": [0]})
    with pytest.raises(KeyboardInterrupt):
        labeller.apply("any", table)
    found: list[BaseException] = []

    def work() -> None:
        try:
            labeller.apply("any", table)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(found[0], ConfigError)


# ---------------------------------------------------------------- schedulers by address


def test_workers_that_stay_away_end_the_wait(caplog: Any) -> None:
    from distributed import LocalCluster

    def work(cluster: Any) -> None:
        with scheduler.start(cluster.scheduler_address, SchedulerConfig(timeout=1)) as joined:
            waits = failures.submit(joined.client, "reduce", time.sleep, 1)
            cluster.scale(0)
            waits.result(30)

    with (
        LocalCluster(n_workers=1, processes=False, **TCP) as cluster,
        pytest.raises(WorkerError, match=r"stage reduce, sleep: .*lost all its workers, and none came back .*=1 s"),
    ):
        work(cluster)
    assert "has no workers just now; waiting 1 s for one" in caplog.text


def test_a_scheduler_that_ends_is_one_error_and_no_noise(capfd: Any) -> None:
    from distributed import LocalCluster

    cluster = LocalCluster(n_workers=1, processes=False, **TCP)
    address = cluster.scheduler_address

    def work() -> None:
        with scheduler.start(address, SchedulerConfig(timeout=30)) as joined:  # no second of no workers is waited for
            waits = failures.submit(joined.client, "embed", time.sleep, 2)
            threading.Thread(target=cluster.close).start()
            joined.client.gather([waits])

    assert terminal.exit_code(work) == 1
    said = " ".join(capfd.readouterr().err.split())
    assert f"error: stage embed, sleep: the connection to the scheduler {address} is lost" in said
    assert "Traceback" not in said


def test_a_lost_scheduler_ends_a_sweep() -> None:
    """A task that is cancelled has no error, and passed for one that was done."""
    from distributed import Client, LocalCluster

    from gpuclust.sweep import computation

    with LocalCluster(n_workers=0, processes=False, **TCP) as cluster, Client(cluster) as client:
        future = failures.submit(client, "sweep", time.sleep, 0)
        client.cancel([future], reason="scheduler-connection-lost")
        with pytest.raises(WorkerError, match="sweep, sleep: the connection"), failures.told("tcp://x", 1, []):
            computation._error(future)


def test_a_worker_that_is_gone_is_left_out() -> None:
    class Client:
        def run(self, function: Any, on_error: str) -> dict[str, Any]:
            return {"a": 1, "b": OSError("closed"), **({"c": ValueError("no")} if function is max else {})}

    assert failures.everywhere(Client(), min) == {"a": 1}
    with pytest.raises(ValueError, match="no"):
        failures.everywhere(Client(), max)


# ---------------------------------------------------------------- ends and interrupts


def test_what_does_not_close_is_only_logged(caplog: Any) -> None:
    class Slow:
        shutdown_on_close = True

        def close(self, timeout: float) -> None:
            raise TimeoutError(f"not in {timeout:g} s")

    caplog.set_level(logging.INFO, "gpuclust")
    with failures.closing("the workers", Slow()) as slow:
        pass
    assert "the workers did not close in order: TimeoutError: not in 30 s" in caplog.text
    assert slow.shutdown_on_close is False


def test_an_interrupt_waits_and_the_second_does_not() -> None:
    reached = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # other tests of this process may have set another

    def work(times: int) -> None:
        with failures.interrupts_wait():
            for number in range(times):
                signal.raise_signal(signal.SIGINT)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # as in a thread that lets it in
                reached.append(number)

    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            work(times)
    assert reached == [0, 0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    child = [sys.executable, "-c", "import signal; print(signal.SIGINT in signal.pthread_sigmask(0, []))"]
    with failures.interrupts_wait():
        said = subprocess.run(child, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "True"


def test_dasks_log_has_no_tracebacks(capfd: Any, caplog: Any) -> None:

    log = logging.getLogger("distributed.client")
    before = list(log.handlers)
    caplog.set_level(logging.INFO, "gpuclust")
    with failures.dask_logs():
        with suppress(ValueError):
            try:
                raise ValueError("inside")
            except ValueError:
                log.exception("went wrong\nTraceback of a text")
                raise
        log.info("no news")
    assert "Traceback" not in capfd.readouterr().err
    said = [(one.levelname, one.getMessage()) for one in caplog.records]
    assert all("\n" not in message and "Traceback" not in message for _, message in said)
    own = [line for line in said if "distributed.nanny" not in line[1]]  # workers of earlier tests may still be closing
    assert own == [("INFO", "distributed.client: went wrong")]
    assert log.handlers == before


# ---------------------------------------------------------------- scripts


SCRIPT = """
{first}
from gpuclust.config_sections import SchedulerConfig
from gpuclust.engine import scheduler

{guard}
    with scheduler.start("local", SchedulerConfig(n_workers=1)) as started:
        print(started.client.submit(max, 1, 42).result())
"""


def _script(folder: Path, first: str, guard: str, *, how: str = "file") -> subprocess.CompletedProcess[str]:
    text = SCRIPT.format(first=first, guard=guard)
    (folder / "script.py").write_text(text)
    command = {"file": "script.py", "stdin": "-"}[how]
    return subprocess.run(
        [sys.executable, command], cwd=folder, input=text if how == "stdin" else "", capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("first", ["", "import multiprocessing"], ids=["never asks", "asks otherwise"])
def test_a_script_without_a_guard_is_told_so(tmp_path: Path, first: str) -> None:
    began = time.perf_counter()
    done = _script(tmp_path, first, "if True:")
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"gpuclust.errors.SchedulerError: {tmp_path / 'script.py'} starts worker processes")
    assert 'under `if __name__ == "__main__":`' in last
    assert done.stderr.count("errors.SchedulerError:") == 1
    assert len(done.stderr.splitlines()) < 20
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize(("how", "guard"), [("file", 'if __name__ == "__main__":'), ("stdin", "if True:")])
def test_other_scripts_work(tmp_path: Path, how: str, guard: str) -> None:
    done = _script(tmp_path, "", guard, how=how)
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr


def test_a_loopback_that_is_blocked_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def blocked(*_: Any, **__: Any) -> Any:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", blocked)
    with (
        pytest.raises(GpuclustError, match=r"--scheduler local reaches its workers at 127.0.0.1.*unreachable.*threads"),
        scheduler.start("local", SchedulerConfig()),
    ):
        pass
