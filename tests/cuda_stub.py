"""Stand-ins for cupy, rmm, cuml, dask_cuda and pynvml on a machine without a GPU. They compute with NumPy, and record.

Two uses. Tests run gpuclust's GPU route on them, so that its logic, its layouts and its kernel are checked: arrays are
strict as CuPy's are (no mixing with host arrays), `gemmEx` counts columns first as cuBLAS does, and kernels are
compiled by the C++ compiler and run a thread after another. And the contract test binds every call that was recorded
here to the signature of the installed library (tests/test_cuda_contract.py). Nothing here says anything about a GPU.

Use ``with installed() as calls:``; `calls` is a list of (dotted name, arguments, keyword arguments).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]
CALLS: Calls = []
READ: tuple[Any, ...] = ("an attribute that was read",)
GB = 10**9
STATE: dict[str, Any] = {"free": 8 * GB, "fail_after": None, "workers": 1}


def record(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    CALLS.append((name, args, kwargs))


def read(name: str, value: Any) -> Any:
    """Record an attribute that was read, not called."""
    CALLS.append((name, READ, {}))
    return value


class Array(np.ndarray):
    """A NumPy array that refuses host arrays, as cupy.ndarray does."""

    data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))

    def get(self, *args: Any, **kwargs: Any) -> np.ndarray:
        record("cupy.ndarray.get", (self, *args), kwargs)
        return np.array(self.view(np.ndarray))

    def set(self, *args: Any, **kwargs: Any) -> None:
        record("cupy.ndarray.set", (self, *args), kwargs)
        (host,) = args
        assert isinstance(host, np.ndarray)
        assert not isinstance(host, Array)
        assert host.flags.c_contiguous
        self.view(np.ndarray)[...] = host

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        refuse_host(inputs)
        targets = None if out is None else tuple(bare(array) for array in out)
        result = getattr(ufunc, method)(*map(bare, inputs), **({"out": targets} if targets else {}), **kwargs)
        return out[0] if targets else wrap(result)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called with a device array")


def _method(name: str) -> Callable[..., Any]:
    plain = getattr(np.ndarray, name)

    def method(self: Array, *args: Any, **kwargs: Any) -> Any:
        record(f"cupy.ndarray.{name}", (self, *args), kwargs)
        if name == "view" and args and args[0] is np.ndarray:
            return plain(self, *args)
        return wrap(plain(plain(self, np.ndarray) if name == "view" and not args else bare(self), *args, **kwargs))

    return method


def bare(array: Any) -> Any:
    return np.ndarray.view(array, np.ndarray) if isinstance(array, Array) else array


def wrap(result: Any) -> Any:
    return np.ndarray.view(result, Array) if isinstance(result, np.ndarray) else result


def refuse_host(arrays: Any) -> None:
    for array in arrays:
        if isinstance(array, np.ndarray) and not isinstance(array, Array) and array.ndim:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>: a host array among device arrays")


for _name in ("astype", "sum", "max", "reshape"):
    setattr(Array, _name, _method(_name))


def _view(self: Array, *args: Any, **kwargs: Any) -> Any:
    if args and args[0] in (np.ndarray, Array):
        return np.ndarray.view(self, *args)
    record("cupy.ndarray.view", (self, *args), kwargs)
    return wrap(np.ndarray.view(bare(self), *args, **kwargs))


Array.view = _view  # type: ignore[method-assign]


class Namespace(ModuleType):
    """A module whose functions are NumPy's, recorded."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(np, name)
        if not callable(found) or isinstance(found, type):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            record(f"{self.__name__}.{name}", args, kwargs)
            flat = [part for arg in args for part in (arg if isinstance(arg, list | tuple) else [arg])]
            if name not in ("asarray", "array"):
                refuse_host(flat)
            if STATE["fail_after"] is not None:
                STATE["fail_after"] -= 1
                if STATE["fail_after"] < 0:
                    STATE["fail_after"] = None
                    raise MemoryError("std::bad_alloc: out_of_memory: injected")
            strip = [[bare(part) for part in arg] if isinstance(arg, list | tuple) else bare(arg) for arg in args]
            result = getattr(np, name)(*strip, **{key: bare(value) for key, value in kwargs.items()})
            return wrap(np.array(result) if name == "asarray" else np.asarray(result))

        return call


def recorded(name: str, compute: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        record(name, args, kwargs)
        return compute(*args, **kwargs)

    return call


class Recorder:
    """An object whose construction and methods are recorded; methods do nothing unless a subclass has them."""

    path = ""
    methods: dict[str, Callable[..., Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        record(self.path, args, kwargs)
        self.args, self.kwargs = args, kwargs

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: record(f"{self.path}.{name}", (self, *args), kwargs)


class Stream(Recorder):
    path = "cupy.cuda.Stream"

    def record(self, *args: Any, **kwargs: Any) -> Any:
        record(f"{self.path}.record", (self, *args), kwargs)
        return Event(disable_timing=True)

    def wait_event(self, *args: Any, **kwargs: Any) -> None:
        record(f"{self.path}.wait_event", (self, *args), kwargs)
        assert isinstance(args[0], Event)


class Event(Recorder):
    path = "cupy.cuda.Event"


class Device(Recorder):
    path = "cupy.cuda.Device"
    pci_bus_id = property(lambda self: read("cupy.cuda.Device.pci_bus_id", "0000:01:00.0"))

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


COMPILER = shutil.which("g++") or shutil.which("c++")


class RawKernel:
    """Compiles CUDA C++ as C++ and runs it a thread after another; without a compiler, calls the kernel's twin."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        record("cupy.RawKernel", args, kwargs)
        self.source, self.name = args

    def __call__(self, grid: Any, block: Any, arguments: Any) -> Any:
        record("cupy.RawKernel.__call__", (self, grid, block, arguments), {})
        refuse_host(arguments)
        if COMPILER is None:
            from gpuclust.storage.codec_cuda import expand_host

            words, _, packed, _, columns, _, _, out = arguments
            return expand_host(bare(words), bare(packed), int(columns), bare(out))
        values = [a.ctypes.data if isinstance(a, Array) else int(a) for a in arguments]
        return launch(self.source, self.name, len(values))(
            grid[0], block[0], (ctypes.c_longlong * len(values))(*values)
        )


SHIM = """
#define __global__
struct Place {{ long long x; }};
static thread_local Place blockIdx, blockDim, threadIdx;
static int __popcll(unsigned long long word) {{ return __builtin_popcountll(word); }}
{source}
template <typename... A> struct Caller {{
    template <size_t... I> static void call(void (*f)(A...), long long* v, Sequence<I...>) {{ f((A)v[I]...); }}
}};
template <typename... A> void call(void (*f)(A...), long long* v) {{
    Caller<A...>::call(f, v, typename Make<sizeof...(A)>::type());
}}
extern "C" void launch(long long blocks, long long threads, long long* v) {{
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) call({name}, v);
}}
"""
SEQUENCE = """
#include <cstddef>
template <size_t...> struct Sequence {};
template <size_t N, size_t... I> struct Make : Make<N - 1, N - 1, I...> {};
template <size_t... I> struct Make<0, I...> { typedef Sequence<I...> type; };
"""


@cache
def launch(source: str, name: str, n_arguments: int) -> Any:
    """Compile a kernel once a machine; the compiler is needed only where this is called."""
    text = SEQUENCE + SHIM.format(source=source, name=name)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"gpuclust-stub-{os.getuid()}-{digest}.so"
    if not library.exists():
        code = library.with_suffix(f".{os.getpid()}.cpp")
        code.write_text(text)
        built = library.with_suffix(f".{os.getpid()}.so")
        subprocess.run([str(COMPILER), "-O2", "-shared", "-fPIC", "-w", "-o", str(built), str(code)], check=True)
        built.replace(library)
        code.unlink()
    function = ctypes.CDLL(str(library)).launch
    function.restype = None
    function.argtypes = [ctypes.c_longlong, ctypes.c_longlong, ctypes.POINTER(ctypes.c_longlong)]
    return function


CUBLAS = {
    "CUBLAS_OP_N": 0, "CUBLAS_OP_T": 1, "CUBLAS_COMPUTE_32F": 68, "CUBLAS_COMPUTE_32F_PEDANTIC": 69,
    "CUBLAS_GEMM_DEFAULT": -1,
}  # fmt: skip
TYPES = {2: np.float16, 0: np.float32}


def gemm(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, Atype: int, lda: int, B: int,
    Btype: int, ldb: int, beta: int, C: int, Ctype: int, ldc: int, computeType: int, algo: int,
) -> None:  # fmt: skip
    """C = alpha op(A) op(B) + beta C on column-major matrices, accumulated in float32."""
    assert Ctype == 0
    assert computeType == (68 if Atype == 2 else 69)

    def matrix(pointer: int, kind: int, shape: tuple[int, int], ld: int) -> np.ndarray:
        assert ld >= shape[0]
        item = np.dtype(TYPES[kind])
        size = ((shape[1] - 1) * ld + shape[0]) * item.itemsize
        flat = np.frombuffer((ctypes.c_char * size).from_address(pointer), item)
        return np.lib.stride_tricks.as_strided(flat, shape, (item.itemsize, ld * item.itemsize))

    left = matrix(A, Atype, (k, m) if transa else (m, k), lda).astype(np.float32)
    right = matrix(B, Btype, (n, k) if transb else (k, n), ldb).astype(np.float32)
    one, more = (np.frombuffer((ctypes.c_char * 4).from_address(p), np.float32)[0] for p in (alpha, beta))
    target = matrix(C, Ctype, (m, n), ldc)
    target[...] = one * ((left.T if transa else left) @ (right.T if transb else right)) + more * target


class UMAP(Recorder):
    path = "cuml.manifold.UMAP"

    def fit_transform(self, *args: Any, **kwargs: Any) -> np.ndarray:
        record(f"{self.path}.fit_transform", (self, *args), kwargs)
        from gpuclust.compute import embedding
        from gpuclust.config_sections import UmapConfig

        indices, distances = kwargs["knn_graph"]
        assert (indices[:, 0] == np.arange(len(indices))).all()
        names = ("n_neighbors", "n_epochs", "min_dist", "random_state")
        config = UmapConfig(**{name: self.kwargs[name] for name in names})
        return embedding._umap_learn(indices.astype(np.int32), distances, self.kwargs["init"], config)


class HDBSCAN(Recorder):
    path = "cuml.cluster.HDBSCAN"

    def fit(self, *args: Any, **kwargs: Any) -> HDBSCAN:
        record(f"{self.path}.fit", (self, *args), kwargs)
        from gpuclust.compute.spanning_tree import mutual_reachability_tree

        (x,) = args
        assert x.dtype == np.float32
        squares = (x * x).sum(axis=1)
        gaps = np.sqrt(np.maximum(squares[:, None] + squares - 2 * (x @ x.T), 0)).astype(np.float64)  # as cuVS has it
        edges = mutual_reachability_tree(gaps, self.kwargs["min_samples"])
        self.tree = SimpleNamespace(to_numpy=lambda: edges)
        return self

    minimum_spanning_tree_ = property(lambda self: read(f"{self.path}.minimum_spanning_tree_", self.tree))


class DBSCAN(Recorder):
    path = "cuml.cluster.DBSCAN"

    def fit(self, *args: Any, **kwargs: Any) -> DBSCAN:
        record(f"{self.path}.fit", (self, *args), kwargs)
        from sklearn import cluster

        (x,) = args
        assert x.dtype == np.float32
        assert self.kwargs["metric"] == "euclidean"
        squares = (x * x).sum(axis=1)
        gaps = np.sqrt(np.maximum(squares[:, None] + squares - 2 * (x @ x.T), 0))
        found = cluster.DBSCAN(
            eps=self.kwargs["eps"], min_samples=self.kwargs["min_samples"], metric="precomputed"
        ).fit(gaps)
        self.labels_ = found.labels_
        padded = np.full(len(x), -1)  # as libcuml has it
        padded[: len(found.core_sample_indices_)] = found.core_sample_indices_
        self.core_sample_indices_ = padded
        return self


class Counts:
    current_bytes = property(lambda self: read("rmm.statistics.Statistics.current_bytes", 1000))
    peak_bytes = property(lambda self: read("rmm.statistics.Statistics.peak_bytes", 5000))


class Statistics(Recorder):
    path = "rmm.mr.StatisticsResourceAdaptor"
    allocation_counts = property(lambda self: read(f"{self.path}.allocation_counts", Counts()))


def _resource(name: str) -> type:
    return type(name, (Recorder,), {"path": f"rmm.mr.{name}"})


def _cluster(*args: Any, **kwargs: Any) -> Any:
    record("dask_cuda.LocalCUDACluster", args, kwargs)
    from distributed import LocalCluster

    known = ("threads_per_worker", "dashboard_address", "memory_limit")
    return LocalCluster(n_workers=STATE["workers"], processes=False, **{name: kwargs[name] for name in known})


def modules() -> dict[str, ModuleType]:
    """Build the stand-ins, by the names under which they are imported."""
    cupy = Namespace("cupy")
    cuda = Namespace("cupy.cuda")
    cublas = ModuleType("cupy.cuda.cublas")
    cublas.__dict__.update(CUBLAS, gemmEx=recorded("cupy.cuda.cublas.gemmEx", gemm))
    device = ModuleType("cupy.cuda.device")
    device.__dict__.update(get_cublas_handle=recorded("cupy.cuda.device.get_cublas_handle", lambda: 1))
    runtime = ModuleType("cupy.cuda.runtime")
    runtime.__dict__.update(memGetInfo=recorded("cupy.cuda.runtime.memGetInfo", lambda: (STATE["free"], 24 * GB)))
    cuda.__dict__.update(
        Stream=Stream, Event=Event, Device=Device, cublas=cublas, device=device, runtime=runtime,
        get_current_stream=recorded("cupy.cuda.get_current_stream", Stream),
        set_allocator=recorded("cupy.cuda.set_allocator", lambda allocator: None),
    )  # fmt: skip
    cupy.__dict__.update(
        cuda=cuda, ndarray=Array, RawKernel=RawKernel,
        get_default_pinned_memory_pool=recorded(
            "cupy.get_default_pinned_memory_pool", lambda: SimpleNamespace(free_all_blocks=lambda: None)
        ),
        get_array_module=recorded("cupy.get_array_module", lambda *a: cupy if isinstance(a[0], Array) else np),
    )  # fmt: skip
    cupyx = ModuleType("cupyx")
    cupyx.__dict__.update(empty_pinned=recorded("cupyx.empty_pinned", np.empty))
    rmm, mr, allocators = ModuleType("rmm"), ModuleType("rmm.mr"), ModuleType("rmm.allocators")
    names = ("CudaMemoryResource", "PoolMemoryResource", "LimitingResourceAdaptor")
    mr.__dict__.update({name: _resource(name) for name in names}, StatisticsResourceAdaptor=Statistics)
    mr.__dict__.update(
        get_current_device_resource=recorded("rmm.mr.get_current_device_resource", lambda: mr.CudaMemoryResource()),
        set_current_device_resource=recorded("rmm.mr.set_current_device_resource", lambda resource: None),
    )
    rmm.__dict__.update(mr=mr, allocators=allocators)
    for_cupy, for_torch = ModuleType("rmm.allocators.cupy"), ModuleType("rmm.allocators.torch")
    for_cupy.__dict__.update(rmm_cupy_allocator=object())
    for_torch.__dict__.update(rmm_torch_allocator=object())
    cuml, manifold, cluster = ModuleType("cuml"), ModuleType("cuml.manifold"), ModuleType("cuml.cluster")
    manifold.__dict__.update(UMAP=UMAP)
    cluster.__dict__.update(HDBSCAN=HDBSCAN, DBSCAN=DBSCAN)
    dask_cuda = ModuleType("dask_cuda")
    dask_cuda.__dict__.update(LocalCUDACluster=_cluster)
    pynvml = ModuleType("pynvml")
    mine = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=3 * GB)]
    pynvml.__dict__.update(
        NVMLError=type("NVMLError", (Exception,), {}),
        nvmlInit=recorded("pynvml.nvmlInit", lambda: None),
        nvmlDeviceGetHandleByPciBusId=recorded("pynvml.nvmlDeviceGetHandleByPciBusId", lambda bus: 1),
        nvmlDeviceGetComputeRunningProcesses=recorded("pynvml.nvmlDeviceGetComputeRunningProcesses", lambda h: mine),
    )
    return {
        "cupy": cupy, "cupy.cuda": cuda, "cupyx": cupyx, "rmm": rmm, "rmm.mr": mr, "rmm.allocators": allocators,
        "rmm.allocators.cupy": for_cupy, "rmm.allocators.torch": for_torch, "cuml": cuml, "cuml.manifold": manifold,
        "cuml.cluster": cluster, "dask_cuda": dask_cuda, "pynvml": pynvml,
    }  # fmt: skip


@contextmanager
def installed() -> Iterator[Calls]:
    """Put the stand-ins in place of the libraries, whether those are installed or not; take them away again."""
    import dask
    import distributed
    import distributed.diagnostics.nvml  # it imports pynvml: the real one, if any
    import torch

    from gpuclust.engine import scheduler
    from gpuclust.hardware import backend, device
    from gpuclust.storage import codec_cuda

    ours = modules()
    before = {name: sys.modules.get(name) for name in ours}
    status, plain = backend.cuda_status, torch.cuda.memory.change_current_allocator
    CALLS.clear()
    STATE.update(free=8 * GB, fail_after=None, workers=1)
    sys.modules.update(ours)
    usable = backend.CudaStatus(True, "a stand-in for a GPU")
    backend.cuda_status = scheduler.cuda_status = lambda: usable
    torch.cuda.memory.change_current_allocator = recorded(
        "torch.cuda.memory.change_current_allocator", lambda allocator: None
    )
    forward = distributed.Client.forward_logging
    distributed.Client.forward_logging = lambda *args, **kwargs: None  # the worker is in this process: it would echo
    _forget(backend, device, codec_cuda)
    try:
        with dask.config.set({"distributed.diagnostics.nvml": False}):
            yield CALLS
    finally:
        distributed.Client.forward_logging = forward
        backend.cuda_status = scheduler.cuda_status = status
        torch.cuda.memory.change_current_allocator = plain
        _forget(backend, device, codec_cuda)
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _forget(backend: Any, device: Any, expand: Any) -> None:
    backend.resolve.cache_clear()
    expand.kernel.cache_clear()
    device._pool = None
