from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gpuclust.config import Config
from gpuclust.config_sections import SchedulerConfig
from gpuclust.configfile import validate
from gpuclust.engine import scheduler
from gpuclust.errors import SchedulerError, WorkerError
from gpuclust.hardware import backend, process

NO_GPU = backend.CudaStatus(False, "no CUDA device is visible", "get one")
GPU = backend.CudaStatus(True, "1 CUDA device(s) and RAPIDS are there")


def test_auto_says_what_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "cuda_status", lambda: NO_GPU)
    assert scheduler.choose("auto") == ("local", "no CUDA device is visible")
    monkeypatch.setattr(scheduler, "cuda_status", lambda: GPU)
    assert scheduler.choose("auto")[0] == "local-cuda"


def test_local_cuda_without_a_gpu_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "cuda_status", lambda: NO_GPU)
    with pytest.raises(SchedulerError, match=r"no CUDA device is visible. To get it, get one; or use --sch"):
        scheduler.choose("local-cuda")


def test_an_address_without_a_scheduler_is_refused() -> None:
    with (
        pytest.raises(SchedulerError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 within .*=0.5 s"),
        scheduler.start("tcp://127.0.0.1:9", SchedulerConfig(timeout=0.5)),
    ):
        pass


def test_an_address_is_joined_and_left_running() -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", processes=False, protocol="tcp"
    ) as cluster:
        with scheduler.start(cluster.scheduler_address, SchedulerConfig()) as joined:
            assert joined.client.submit(lambda: 6 * 7).result() == 42
            assert joined.device == "cpu"
            assert len(joined.workers) == 1
        assert cluster.status.name == "running"


def test_scheduler_without_workers_is_refused() -> None:
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=0, dashboard_address=":0", processes=False, protocol="tcp") as cluster,
        pytest.raises(SchedulerError, match=r"has no workers after scheduler.timeout=1 s"),
        scheduler.start(cluster.scheduler_address, SchedulerConfig(timeout=1)),
    ):
        pass


def test_workers_with_several_threads_are_refused() -> None:
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=3, dashboard_address=":0", processes=False, protocol="tcp"
        ) as cluster,
        pytest.raises(SchedulerError, match=r"does 3 tasks at a time, .* --nthreads 1"),
        scheduler.start(cluster.scheduler_address, SchedulerConfig()),
    ):
        pass


def test_workers_elsewhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def run(self, function: Any, out: Path, on_error: str) -> dict[str, Any]:
            return {"tcp://1": (tmp_path / "elsewhere", out == tmp_path)}

    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a")
    config = validate({"prompts": [{"path": "p.txt"}]})
    joined = scheduler.Scheduler(Client(), "tcp://0", "as asked", "cpu")
    with pytest.raises(SchedulerError, match=rf"prompts.0.path is p.txt, .* runs in .*elsewhere: .*{tmp_path}/p.txt"):
        scheduler.check_places(joined, config, tmp_path)
    with pytest.raises(SchedulerError, match=r"does not see the run's folder .*none"):
        scheduler.check_places(joined, Config(), tmp_path / "none")
    scheduler.check_places(joined, validate({"prompts": [{"path": str(tmp_path / "p.txt")}]}), tmp_path)
    scheduler.check_places(scheduler.Scheduler(None, "local", "", "cpu"), config, tmp_path)


@pytest.mark.parametrize(
    ("name", "reason", "device", "said"),
    [
        ("local", f"{backend.NOTHING}: no CUDA device is visible and cupy is not installed", "cpu",
         "computing on this machine's CPUs (local; no GPU and RAPIDS found)"),
        ("local", "1 CUDA device(s), but cuml is not installed", "cpu",
         "computing on this machine's CPUs (local; 1 CUDA device(s), but cuml is not installed)"),
        ("threads", scheduler.AS_ASKED, "cpu", "computing in this process (threads)"),
        ("local-cuda", "1 CUDA device(s) and RAPIDS are there", "cuda",
         "computing on this machine's GPUs (local-cuda; 1 CUDA device(s) and RAPIDS are there)"),
        ("tcp://a:1", scheduler.AS_ASKED, "cuda", "computing on the GPUs of the workers (tcp://a:1)"),
    ],
)  # fmt: skip
def test_where_it_computes_is_no_fault(name: str, reason: str, device: str, said: str) -> None:
    assert scheduler.Scheduler(None, name, reason, device).where == said


def test_cuda_status_has_a_reason_and_a_fix() -> None:
    status = backend.cuda_status()
    assert status.reason
    assert status.usable or status.fix


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's record of peaks")
def test_peak_is_measured_and_reset() -> None:
    import numpy as np

    block = np.ones(40_000_000)
    high = process.peak_bytes()
    del block
    process.reset_peak()
    assert high - process.peak_bytes() > 200_000_000


@pytest.mark.parametrize("name", ["threads", "local"])
def test_nothing_listens_beyond_this_machine(name: str) -> None:
    """Dask's pages show logs, tasks and call stacks without a password."""
    import psutil

    def listening() -> set[tuple[str, int]]:
        me = psutil.Process()
        sockets = [c for p in (me, *me.children(recursive=True)) for c in p.net_connections("inet")]
        return {tuple(c.laddr) for c in sockets if c.status == psutil.CONN_LISTEN}

    before = listening()
    with scheduler.start(name, SchedulerConfig(n_workers=1)) as started:
        found = listening() - before
        assert started.client.submit(lambda: 1).result() == 1
    assert found
    assert {host for host, _ in found} == {"127.0.0.1"}


def test_workers_that_are_gone_for_a_moment_are_waited_for() -> None:
    import threading

    from distributed import Client, LocalCluster

    options = {"processes": False, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=0, **options) as cluster, Client(cluster) as client:
        started = scheduler.Scheduler(client, "tcp://here", "as asked", "cpu", timeout=0.3)
        with pytest.raises(
            WorkerError, match=r"tcp://here has lost all its workers, and none came back within .*0.3 s"
        ):
            _ = started.workers
        patient = scheduler.Scheduler(client, "tcp://here", "as asked", "cpu", timeout=30)
        timer = threading.Timer(0.5, lambda: cluster.scale(1))
        timer.start()
        assert len(patient.workers) == 1
        timer.join()
