"""TLS by Dask's own configuration, with certificates made here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest

from gpuclust.config_sections import SchedulerConfig
from gpuclust.engine import scheduler
from gpuclust.errors import SchedulerError
from gpuclust.hardware import backend

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")
TCP = {
    "n_workers": 1,
    "threads_per_worker": 1,
    "dashboard_address": "127.0.0.1:0",
    "processes": False,
    "host": "127.0.0.1",
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ours", "other"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
             "2", "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
    return folder


def settings(certificates: Path, name: str, **more: Any) -> dict[str, Any]:
    """Dask's configuration with one certificate for all; `more` by key below ``distributed.comm.tls``."""
    tls = {"ca-file": f"{certificates / name}.pem"}
    for role in ("client", "scheduler", "worker"):
        tls |= {f"{role}.cert": f"{certificates / name}.pem", f"{role}.key": f"{certificates / name}.key"}
    tls |= more
    return {
        "distributed.comm.require-encryption": True,
        **{f"distributed.comm.tls.{key}": value for key, value in tls.items()},
    }


@pytest.fixture(scope="module")
def address(certificates: Path) -> Iterator[str]:
    """A scheduler with TLS, and a worker."""
    with dask.config.set(settings(certificates, "ours")):
        cluster = distributed.LocalCluster(**TCP)
    with cluster:
        yield cluster.scheduler_address


def joined(name: str) -> int:
    with scheduler.start(name, SchedulerConfig(timeout=5, n_workers=1)) as started:
        assert all(worker.startswith("tls://") for worker in started.workers)
        return int(started.client.submit(max, 1, 42).result())


@pytest.mark.parametrize("name", ["address", "local", "threads"])
def test_all_speak_tls_as_dask_is_configured(name: str, certificates: Path, address: str) -> None:
    assert address.startswith("tls://")
    with dask.config.set(settings(certificates, "ours")):
        assert joined(address if name == "address" else name) == 42


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, r"needs distributed.comm.tls.ca-file, which is not set"),
        ({"client.cert": None}, r"needs distributed.comm.tls.client.cert, which is not set"),
        (
            {"ca-file": "none.pem"},
            r"distributed.comm.tls.ca-file of Dask's configuration is none.pem, which is no file",
        ),
        ({"client.key": "other.key"}, r"cannot be used \(KEY_VALUES_MISMATCH\).*client.key"),
        ({"ca-file": "ours.key"}, r"cannot be used \(NO_CERTIFICATE_OR_CRL_FOUND\)"),
        ("other", r"do not take each other's certificates .* of the same authority"),
    ],
)
def test_certificates_that_are_wrong_are_one_line(
    given: Any, words: str, certificates: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(certificates)
    if given == "other":
        wrong = settings(certificates, "other")
    elif not given:
        wrong = {}
    else:
        wrong = settings(certificates, "ours", **given)
    with dask.config.set(wrong), pytest.raises(SchedulerError, match=words) as raised:
        joined(address)
    assert "\n" not in str(raised.value)


def test_addresses_without_tls_are_refused_where_it_is_required(certificates: Path) -> None:
    with (
        dask.config.set(settings(certificates, "ours")),
        pytest.raises(SchedulerError, match=r"--scheduler is tcp://127.0.0.1:9, but .*require-encryption is True"),
    ):
        joined("tcp://127.0.0.1:9")


def test_gpu_workers_get_the_protocol(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    asked: list[str] = []

    class Cluster:
        def __init__(self, *, protocol: str, **_: Any) -> None:
            asked.append(protocol)

    monkeypatch.setitem(sys.modules, "dask_cuda", types.SimpleNamespace(LocalCUDACluster=Cluster))
    monkeypatch.setattr(scheduler, "cuda_status", lambda: backend.CudaStatus(True, "as if"))
    for given in ({}, settings(certificates, "ours")):
        with dask.config.set(given):
            scheduler._cluster("local-cuda", SchedulerConfig())
    assert asked == ["tcp", "tls"]
