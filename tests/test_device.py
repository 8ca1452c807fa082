"""The memory of GPU workers on a stand-in: one pool, its cap, its counters; and every way in which memory runs out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gpuclust.compute.reductions import MOMENTS
from gpuclust.config_sections import SchedulerConfig
from gpuclust.configfile import validate
from gpuclust.engine import scheduler
from gpuclust.errors import DeviceError, GpuclustError, MemoryBudgetError, SchedulerError
from gpuclust.extraction import extract_shard
from gpuclust.hardware import backend, device
from tests import cuda_stub
from tests.strategies import sae_like

GB = 10**9
CUDA = backend.Backend("cuda", "a stand-in")


class OutOfMemoryError(MemoryError):
    """Named and derived as cupy.cuda.memory.OutOfMemoryError is."""


class CUDARuntimeError(RuntimeError):
    """Named and derived as cupy_backends.cuda.api.runtime.CUDARuntimeError is."""


FAILURES = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    OutOfMemoryError("Out of memory allocating 2,147,483,648 bytes"),
    MemoryError("std::bad_alloc: out_of_memory: RMM failure at: pool_memory_resource.hpp: Maximum pool size exceeded"),
    RuntimeError("std::bad_alloc: out_of_memory: CUDA error at: cuda_memory_resource.hpp"),
    CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"),
    RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("limit", [None, 6 * GB, 20 * GB])
def test_one_pool_is_capped_below_the_budget(limit: int | None, caplog: pytest.LogCaptureFixture) -> None:
    with cuda_stub.installed() as calls:
        budget = device.install(limit)
        assert budget == (6 * GB if limit == 6 * GB else 8 * GB)  # 8 GB are free
        made = {name: kwargs for name, _, kwargs in calls}
        cap = made["rmm.mr.LimitingResourceAdaptor"]["allocation_limit"]
        assert budget - device.RESERVE - 256 < cap <= budget - device.RESERVE
        assert made["rmm.mr.PoolMemoryResource"] == {"initial_pool_size": cap, "maximum_pool_size": cap}
        names = [name for name, _, _ in calls]
        chain = [f"rmm.mr.{n}" for n in ("PoolMemoryResource", "LimitingResourceAdaptor", "StatisticsResourceAdaptor")]
        order = [*chain, "rmm.mr.set_current_device_resource", "cupy.cuda.set_allocator"]
        assert [name for name in names if name in order] == order
        assert names[-1] == "torch.cuda.memory.change_current_allocator"
        assert device.install(limit) == budget  # a second run on the same worker
        with pytest.raises(SchedulerError, match=r"device.memory is 2.00 GB, but this worker took .*restart the GPU"):
            device.install(2 * GB)
    assert ("only 8.00 of 24.00 GB are free" in caplog.text) == (limit == 20 * GB)


def test_too_little_to_begin_with_is_refused() -> None:
    with cuda_stub.installed(), pytest.raises(MemoryBudgetError, match=r"may use 0.80 GB .* raise device.memory, or"):
        device.install(800_000_000)


def test_peaks_are_the_pools_and_the_process() -> None:
    assert device.peaks() is None
    device.reset_peak()  # nothing to count, nothing happens
    with cuda_stub.installed() as calls:
        device.install(None)
        for _ in range(2):
            device.reset_peak()
        assert device.peaks() == {"pool": 1000 + 5000, "process": 3 * GB}
        names = [name.rpartition(".")[2] for name, _, _ in calls if name.endswith("_counters")]
        assert names == ["push_counters", "pop_counters", "push_counters"]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
def test_every_kind_of_failure_becomes_an_error_that_says_what_to_set(failure: Exception) -> None:
    assert device.is_out_of_memory(failure)

    def task() -> None:
        raise failure

    with pytest.raises(DeviceError, match=r"stage extract ran out of memory .*lower extract.batch_tokens or") as caught:
        device.guarded("extract", task)
    assert caught.value.__cause__ is None  # the driver may lack the library to read it
    with pytest.raises(DeviceError, match=r"stage neighbors ran out"):
        device.halving("neighbors", 3, lambda size: device.guarded("neighbors", task))


def test_memory_may_run_out_before_the_first_stage() -> None:
    def task() -> None:
        raise MemoryError("std::bad_alloc: out_of_memory")

    with pytest.raises(DeviceError, match=r"^start of the workers ran out of memory .*end what else runs"):
        device.guarded("start of the workers", task)


def test_other_failures_are_told_apart() -> None:
    def fail(error: Exception) -> Any:
        def task() -> None:
            raise error

        return task

    with pytest.raises(DeviceError, match=r"stage embed: the GPU failed \(CUDARuntimeError: cudaErrorIllegalAddress"):
        device.guarded("embed", fail(CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access")))
    with pytest.raises(ZeroDivisionError):
        device.guarded("embed", fail(ZeroDivisionError()))
    with pytest.raises(GpuclustError, match="no pool"):
        device.guarded("embed", fail(MemoryBudgetError("no pool")))
    with pytest.raises(RuntimeError, match="shape"):
        device.halving("extract", 4, lambda size: fail(RuntimeError("shape mismatch"))())


class Encoder:
    """Features of a token are its id's row in a table; refuses more tokens at a time than there is memory for."""

    d_sae, device = 12, "cpu"
    tokenizer = SimpleNamespace(pad_token_id=0, all_special_ids=[0], bos_token_id=None)

    def __init__(self, failure: Exception, residual_tokens: int, feature_tokens: int) -> None:
        self.failure, self.limits = failure, (residual_tokens, feature_tokens)
        self.table = torch.linspace(-1, 3, 50 * 12).reshape(50, 12).roll(5, 1)

    def residual(self, ids: Any, mask: Any) -> Any:
        if ids.numel() > self.limits[0]:
            raise self.failure
        return self.table[ids]

    def features(self, residual: Any) -> Any:
        if len(residual) > self.limits[1]:
            raise self.failure
        return residual.relu()


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
def test_a_shard_goes_on_with_half_the_batch(failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, 50, n) for n in (5, 9, 3, 20, 7, 4)]
    config = validate({"extract": {"batch_tokens": 64, "aggregate": "mean"}})
    expected = extract_shard.aggregate_prompts(Encoder(failure, 1000, 1000), tokens, config)
    assert caplog.text == ""
    got = extract_shard.aggregate_prompts(Encoder(failure, 25, 6), tokens, config, "shard 3")
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert "shard 3: out of memory with a batch of 6 prompts" in caplog.text or "batch of 5 prompts" in caplog.text
    assert "tokens at a time in the SAE" in caplog.text
    with pytest.raises(DeviceError, match=r"stage extract ran out of memory .*To go on from here, lower extract.batch"):
        extract_shard.aggregate_prompts(Encoder(failure, 1000, 0), tokens, config)
    with pytest.raises(RuntimeError, match="shape"):
        extract_shard.aggregate_prompts(Encoder(RuntimeError("shape"), 0, 0), tokens, config)


def test_moments_of_a_shard_halve_their_slice(caplog: pytest.LogCaptureFixture) -> None:
    data = sae_like(40, 9)
    positions = np.zeros(data.shape, np.int32)
    expected = MOMENTS.finalize(MOMENTS.chunk(data))
    with cuda_stub.installed():
        cuda_stub.STATE["fail_after"] = 5
        states = extract_shard.shard_states(data, positions, 100, validate({}), CUDA)
    found = MOMENTS.finalize({name: states[f"moments.{name}"] for name in MOMENTS.fields})
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)
    assert "out of memory (MemoryError: std::bad_alloc" in caplog.text
    assert states["examples.prompt"].max() >= 100


def test_results_come_back_one_batch_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Stream:
        def wait_stream(self, other: object) -> None:
            said.append("wait")

        def __enter__(self) -> None: ...
        def __exit__(self, *exception: object) -> None: ...

    class Event:
        def record(self, stream: object) -> None:
            said.append("record")

        def synchronize(self) -> None:
            said.append("synchronize")

    plain = torch.empty
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory, **kwargs: plain(*args, **kwargs))
    values, positions = np.zeros((4, 3), np.float32), np.zeros((4, 3), np.int32)
    back = extract_shard._Back(values, positions, overlap=True)
    for batch in ([2, 0], [3, 1]):
        rows = torch.tensor(batch, dtype=torch.float32)[:, None].expand(2, 3)
        back.put(batch, rows, rows.to(torch.int32))
        said.append("put")
    assert said == ["wait", "record", "put", "synchronize", "wait", "record", "put"]
    assert not values[[1, 3]].any()
    back.drain()
    np.testing.assert_array_equal(values, np.arange(4)[:, None].repeat(3, 1))
    np.testing.assert_array_equal(positions, values)


# ---------------------------------------------------------------- workers


def test_local_cuda_makes_the_pools_before_any_task() -> None:
    with cuda_stub.installed() as calls, scheduler.start("local-cuda", SchedulerConfig(), 6 * GB) as started:
        assert (started.device, started.memory) == ("cuda", 6 * GB)
        made = next(kwargs for name, _, kwargs in calls if name == "dask_cuda.LocalCUDACluster")
        assert made["threads_per_worker"] == 1
        assert "rmm.mr.set_current_device_resource" in [name for name, _, _ in calls]
        assert started.client.submit(lambda: 6 * 7).result() == 42


class Client:
    """Answers `run` for workers of which some have a GPU."""

    def __init__(self, statuses: dict[str, backend.CudaStatus]) -> None:
        self.statuses = statuses

    def run(self, function: Any, *args: Any, on_error: str) -> Any:
        return self.statuses if function is scheduler.cuda_status else dict.fromkeys(self.statuses, 5 * GB)

    def register_plugin(self, plugin: Any) -> None:
        assert plugin.name == "gpuclust-device-memory"


def test_a_worker_without_a_gpu_is_refused_by_name() -> None:
    good, bad = backend.CudaStatus(True, "a GPU"), backend.CudaStatus(False, "no CUDA device is visible", "get one")
    address = "tcp://10.0.0.1:8786"
    with pytest.raises(SchedulerError, match=r"worker tcp://b:1 cannot compute on a GPU: no CUDA .*1 of 2 .*get one"):
        scheduler._gpus(Client({"tcp://a:1": good, "tcp://b:1": bad}), address, None)
    assert scheduler._gpus(Client({"tcp://a:1": good, "tcp://c:1": good}), address, None) == ("cuda", 5 * GB)
    assert scheduler._gpus(Client({"tcp://b:1": bad}), address, None) == ("cpu", None)


def test_the_plugin_installs_in_workers_that_come_later(tmp_path: Path) -> None:
    with cuda_stub.installed() as calls:
        device.plugin(3 * GB).setup(worker=None)
        assert any(name == "rmm.mr.PoolMemoryResource" for name, _, _ in calls)
