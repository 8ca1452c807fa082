"""Every call that gpuclust makes of cupy, rmm, cuml, dask_cuda and pynvml fits what is installed.

`make test-cuda-contract` runs it in an environment with RAPIDS. The calls are not listed here: gpuclust's own functions
run on recording stand-ins (tests/cuda_stub.py), and what they called is bound to the signatures of the installed
libraries, which import without a GPU. Nothing is computed on one.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import os
import re
from typing import Any

import numpy as np
import pytest

from gpuclust.compute import dbscan, gram, neighbors, reductions
from gpuclust.compute.clustering import cluster_embedding
from gpuclust.compute.embedding import embed
from gpuclust.config import Config
from gpuclust.config_sections import (
    ClusterConfig,
    DbscanConfig,
    HdbscanConfig,
    SchedulerConfig,
    StoreConfig,
    UmapConfig,
)
from gpuclust.engine import scheduler
from gpuclust.hardware import backend, device
from gpuclust.storage import codec_cuda, row_blocks
from tests import cuda_stub
from tests.strategies import sae_like
from tests.test_store import make

MISSING = [name for name in backend.CUDA_PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(
        bool(MISSING) and os.environ.get("GPUCLUST_REQUIRE_CUDA13") != "1",
        reason=f"{', '.join(MISSING)} not installed: make test-cuda-contract has them in an environment of its own",
    ),
    # of the CUDA libraries themselves, where they are imported without a GPU
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
EXPECTED = {  # at least these must be among the calls, or the recording has a hole
    "cupy.cuda.cublas.gemmEx", "cupy.RawKernel.__call__", "cupyx.empty_pinned", "cuml.manifold.UMAP.fit_transform",
    "cuml.cluster.HDBSCAN.fit", "cuml.cluster.DBSCAN.fit",
    "rmm.mr.LimitingResourceAdaptor", "rmm.mr.StatisticsResourceAdaptor.push_counters",
    "dask_cuda.LocalCUDACluster", "pynvml.nvmlDeviceGetComputeRunningProcesses", "cupy.ndarray.set",
    "torch.cuda.memory.change_current_allocator",
}  # fmt: skip


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> cuda_stub.Calls:
    """What gpuclust calls: its GPU route, function by function, on the stand-ins."""
    folder = tmp_path_factory.mktemp("contract")
    values = sae_like(60, 50)
    config = StoreConfig(shard_prompts=20, chunk_prompts=10, chunk_features=16)
    packed = make(folder / "packed", values, config)
    plain = make(
        folder / "plain", values.astype(np.float32), config.model_copy(update={"codec": "zstd", "dtype": "float32"})
    )
    with cuda_stub.installed() as recorded:
        import cupy

        with scheduler.start("local-cuda", SchedulerConfig(), 6 * 10**9):
            pass
        device.reset_peak()
        device.reset_peak()
        device.peaks()
        cuda = backend.resolve("cuda")
        for path in (packed, plain):
            for _, block in row_blocks.rows(path, 20, cuda, columns=np.arange(48)):
                state = reductions.MOMENTS.chunk(block, 0.0, cuda.xp)
                reductions.MOMENTS.finalize(state)
                nowhere = cuda.xp.full(block.shape, -1, cuda.xp.int32)
                backend.on_host(reductions.EXAMPLES.chunk(block, nowhere, 0, 3, cuda.xp))
                (tiles,) = gram.plan_passes(48, 48, 1 << 40)
                part = gram.accumulate([block], 48, tiles, 48, cuda.xp)
                for metric in ("cosine", "correlation", "euclidean", "dot"):
                    indices, distances = neighbors.exact(part, 8, metric, cupy)
        near, far = backend.to_host(indices), np.abs(backend.to_host(distances))
        far[:, 0] = 0
        embedding, _ = embed(near, np.sort(far, axis=1), UmapConfig(n_neighbors=6, n_epochs=5), 3, backend="cuda")
        cluster_embedding(embedding, HdbscanConfig(min_cluster_size=4, min_samples=2), backend="cuda")
        settings = Config(cluster=ClusterConfig(method="dbscan"), dbscan=DbscanConfig(on="embedding", min_samples=3))
        dbscan.of_embedding(embedding, settings, "cuda")
        return list(recorded)


def test_the_recording_has_no_hole(calls: cuda_stub.Calls) -> None:
    assert {name for name, _, _ in calls} >= EXPECTED


def test_every_call_fits_the_installed_signature(calls: cuda_stub.Calls) -> None:
    seen, wrong = set(), []
    for name, args, kwargs in calls:
        kind = (name, args is cuda_stub.READ or len(args), tuple(kwargs))
        if kind in seen:
            continue
        seen.add(kind)
        try:
            _fits(name, args, kwargs)
        except (AttributeError, ImportError, TypeError) as error:
            wrong.append(f"{name}({len(args)} positional, {', '.join(kwargs)}): {error}")
    assert len(seen) > 40
    assert wrong == []


def test_constants_are_the_installed_ones() -> None:
    from cupy.cuda import cublas, runtime

    for name, value in cuda_stub.CUBLAS.items():
        assert getattr(cublas, name) == value, name
    assert (runtime.CUDA_R_16F, runtime.CUDA_R_32F) == (gram.CUDA_R_16F, gram.CUDA_R_32F)


def test_errors_are_named_as_we_know_them() -> None:
    """`device` tells failures apart by the names of their classes, which the driver may be unable to import."""
    from cupy.cuda import memory, runtime

    assert issubclass(memory.OutOfMemoryError, MemoryError)
    assert runtime.CUDARuntimeError.__name__ in device.DEVICE_ERRORS
    assert importlib.import_module("cupy.cuda.compiler").CompileException.__name__ in device.DEVICE_ERRORS
    assert importlib.import_module("rmm").RMMError.__name__ in device.DEVICE_ERRORS


def test_processes_of_nvml_have_the_fields_that_are_read() -> None:
    import pynvml

    fields = {name for name, *_ in pynvml.c_nvmlProcessInfo_v2_t._fields_}
    assert {"pid", "usedGpuMemory"} <= fields
    assert issubclass(pynvml.NVMLError, Exception)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_the_kernel_compiles(itemsize: int, arch: str) -> None:
    """NVRTC compiles without a GPU."""
    from cuda.core import Program, ProgramOptions

    source = codec_cuda.SOURCE.replace("VALUE", codec_cuda.VALUES[itemsize])
    code = Program(source, "c++", ProgramOptions(arch=arch)).compile("cubin")
    assert len(bytes(code.code)) > 500


def test_documented_signatures_are_read() -> None:
    found = _documented("gemm(intptr_t handle, int m, size_t alpha=0, *, x=(1, 2), **kwargs) -> int\n\nText")
    assert str(found) == "(handle, m, alpha=None, *, x=None, **kwargs)"
    assert str(_documented("log(x, /, out=None, \\*, dtype=None)")) == "(x, /, out=None, *, dtype=None)"
    with pytest.raises(TypeError, match="no signature"):
        _documented("Some text.")


def _fits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Bind one call; raise where the library has no such name, or no such parameter."""
    target = _find(name)
    if args is cuda_stub.READ:
        return
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        signature = _documented(target.__doc__ or "")
    if isinstance(target, type):
        own = inspect.signature(target.__init__) if "__init__" in vars(target) else signature
        signature = own if "self" not in own.parameters else _without_self(own)
        if str(signature) in ("(*args, **kwargs)", "(/, *args, **kwargs)"):
            signature = _documented(target.__doc__ or target.__init__.__doc__ or "")
    signature.bind(*args, **kwargs)
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):  # it would swallow anything
        known = set(signature.parameters)
        if name == "dask_cuda.LocalCUDACluster":  # it hands them on
            known |= set(inspect.signature(importlib.import_module("distributed").LocalCluster.__init__).parameters)
        if unknown := set(kwargs) - known:
            raise TypeError(f"not a named parameter: {sorted(unknown)}")


def _find(name: str) -> Any:
    """The installed object of a dotted name; a dataclass's field stands for itself."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for part in parts[n:]:
            if dataclasses.is_dataclass(found) and part in {f.name for f in dataclasses.fields(found)}:
                return part
            found = getattr(found, part)
        return found
    raise ImportError(f"no module of {name}")


def _without_self(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _documented(text: str) -> inspect.Signature:
    """Read the signature that Cython and CuPy write into the first lines of a docstring."""
    match = re.search(r"^[\w.]+\((.*?)\)(?:\s*->.*)?$", text, re.MULTILINE)
    if match is None:
        raise TypeError("no signature, neither by inspect nor in the docstring")
    inside = re.sub(r"\([^()]*\)", "None", match[1]).replace("\\", "")
    kinds = inspect.Parameter
    kind, parameters = kinds.POSITIONAL_OR_KEYWORD, []
    for part in filter(None, (piece.strip() for piece in inside.split(","))):
        declared, default, _ = part.partition("=")
        word = declared.split(":")[0].split()[-1]
        if word == "/":
            parameters = [p.replace(kind=kinds.POSITIONAL_ONLY) for p in parameters]
        elif word == "*":
            kind = kinds.KEYWORD_ONLY
        elif word.startswith("**"):
            parameters.append(kinds(word[2:], kinds.VAR_KEYWORD))
        elif word.startswith("*"):
            parameters.append(kinds(word[1:], kinds.VAR_POSITIONAL))
            kind = kinds.KEYWORD_ONLY
        else:
            parameters.append(kinds(word, kind, default=None if default else kinds.empty))
    return inspect.Signature(parameters)
