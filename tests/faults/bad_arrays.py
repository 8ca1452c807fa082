"""Arrays that are no activations, or hardly: by name, and drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

SMALL: dict[str, Any] = {
    "select": {"sparsity_max": 2.0}, "hdbscan": {"min_cluster_size": 2, "min_samples": 1},
    "umap": {"n_components": 2, "n_neighbors": 3, "n_epochs": 5}, "consensus": {"members": 1},
}  # fmt: skip
PLAIN = {**SMALL, "cluster": {"method": "distances"}}
DRAWN = "drawn by Hypothesis"
CONFIGS: dict[str, Any] = {
    "small": SMALL, "no UMAP": PLAIN, "defaults": {},
    "consensus": {**SMALL, "consensus": {"members": 3, "n_epochs": 5}},
    "euclidean": {**SMALL, "umap": {**SMALL["umap"], "metric": "euclidean"}},
    "correlation": {**SMALL, "umap": {**SMALL["umap"], "metric": "correlation"}},
    "dot": {**SMALL, "umap": {**SMALL["umap"], "metric": "dot"}},
}  # fmt: skip


def _random(prompts: int = 40, features: int = 24) -> Any:
    return np.random.default_rng(0).random((prompts, features))


def _with(value: float, dtype: str = "float64") -> Callable[[], Any]:
    def make() -> Any:
        values = _random().astype(dtype)
        values[3, 5] = value
        return values

    return make


def _frame(**more: Any) -> Callable[[], Any]:
    def make() -> Any:
        return pd.DataFrame(_random(), **more)

    return make


def _objects() -> Any:
    return pd.DataFrame({"a": ["x", "y"], "b": [1, 2]})


def _nullable() -> Any:
    return pd.DataFrame({str(i): pd.array([1.0, None, 2.0, 3.0], dtype="Float64") for i in range(9)})


def _dask() -> Any:
    import dask.array as da

    return da.from_array(_random(), chunks=10)


def _sparse(kind: str) -> Callable[[], Any]:
    def make() -> Any:
        from scipy import sparse

        return getattr(sparse, kind)(np.where(_random() > 0.7, _random(), 0))

    return make


def _torch(**more: Any) -> Callable[[], Any]:
    def make() -> Any:
        return torch.ones((40, 24), **more)

    return make


def _named_twice() -> Any:
    return pd.DataFrame(_random(), index=pd.RangeIndex(40, name="feature"), columns=pd.RangeIndex(24, name="feature"))


def _quantized() -> Any:
    return torch.quantize_per_tensor(torch.rand(40, 24), 0.1, 0, torch.quint8)


# Name: how to make it, and the configuration
TABLE: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (_random, SMALL), "None": (lambda: None, SMALL), "a number": (lambda: 3.0, SMALL),
    "text": (lambda: "abc", SMALL), "a dict": (lambda: {"a": 1}, SMALL), "a set": (lambda: {1, 2}, SMALL),
    "a generator": (lambda: (i for i in range(3)), SMALL), "an empty list": (lambda: [], SMALL),
    "ragged lists": (lambda: [[1.0, 2.0], [3.0]], SMALL), "lists of text": (lambda: [["a", "b"]], SMALL),
    "one axis": (lambda: np.ones(5), SMALL), "three axes": (lambda: np.ones((3, 3, 3)), SMALL),
    "no rows": (lambda: np.ones((0, 5)), SMALL), "no features": (lambda: np.ones((5, 0)), SMALL),
    "one row": (lambda: _random(1), SMALL), "one feature": (lambda: _random(40, 1), SMALL),
    "one of each": (lambda: np.ones((1, 1)), SMALL), "two features": (lambda: _random(40, 2), SMALL),
    "three features": (lambda: _random(40, 3), PLAIN), "zeros": (lambda: np.zeros((40, 24)), SMALL),
    "ones": (lambda: np.ones((40, 24)), SMALL), "identity": (lambda: np.eye(24), SMALL),
    "orthogonal, no UMAP": (lambda: np.eye(24), PLAIN), "negative": (lambda: -_random(), SMALL),
    "NaN": (_with(np.nan), SMALL), "infinite": (_with(np.inf), SMALL), "minus infinite": (_with(-np.inf), SMALL),
    "1e300": (_with(1e300), SMALL), "1e-300": (_with(1e-300), SMALL), "subnormal": (lambda: _random() * 5e-324, SMALL),
    "all tiny": (lambda: _random() * 1e-69, SMALL), "all huge": (lambda: _random() * 1e69, SMALL),
    "float16 at its most": (_with(65504, "float16"), SMALL), "strings": (lambda: _random().astype(str), SMALL),
    "objects": (lambda: _random().astype(object), SMALL), "booleans": (lambda: _random() > 0.5, SMALL),
    "complex": (lambda: _random() + 1j, SMALL), "dates": (lambda: np.zeros((4, 4), "datetime64[s]"), SMALL),
    "records": (lambda: np.zeros((4, 4), [("a", "f4")]), SMALL), "big endian": (lambda: _random().astype(">f4"), SMALL),
    "unsigned": (lambda: (_random() * 255).astype("u1"), SMALL),
    "large integers": (lambda: np.full((9, 9), 2**63 - 1), SMALL),
    "read only": (lambda: np.broadcast_to(np.arange(24.0) + 1, (40, 24)), SMALL),
    "every second": (lambda: _random(80, 48)[::2, ::-2], SMALL),
    "a matrix": (lambda: np.asmatrix(_random()), SMALL), "masked": (lambda: np.ma.masked_less(_random(), 0.5), SMALL),
    "a frame": (_frame(), SMALL), "a frame of objects": (_objects, SMALL), "a frame with nulls": (_nullable, SMALL),
    "an odd index": (_frame(index=[0] * 40), SMALL), "both named the same": (_named_twice, SMALL),
    "Dask": (_dask, SMALL), "csr": (_sparse("csr_array"), SMALL), "dok": (_sparse("dok_matrix"), SMALL),
    "bsr": (_sparse("bsr_array"), SMALL), "dia": (_sparse("dia_array"), SMALL), "torch": (_torch(), SMALL),
    "torch integers": (lambda: _torch(dtype=torch.int32)(), SMALL),
    "torch meta": (_torch(device="meta"), SMALL),
    "torch complex": (lambda: _torch(dtype=torch.complex64)(), SMALL),
    "torch float8": (lambda: torch.ones(40, 24).to(torch.float8_e4m3fn), SMALL),
    "torch quantized": (_quantized, SMALL),
    "torch ragged": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), SMALL),
    "torch expanded": (lambda: torch.ones(1, 1).expand(10**8, 10**8), SMALL),
    "rows of tensors": (lambda: list(torch.rand(40, 24, requires_grad=True)), SMALL),
    "rows of masked arrays": (lambda: list(np.ma.masked_less(_random(), 0.5)), SMALL),
    "structured mask": (lambda: np.ma.zeros((4, 4), dtype=[("a", "f4"), ("b", "?")]), SMALL),
    "repeated without end": (lambda: np.broadcast_to(1.0, (10**8, 10**8)), SMALL),
    "objects with a dict": (lambda: np.array([[1.0, {"a": 1}]] * 9, dtype=object), SMALL),
    "config: a list": (_random, []), "config: text": (_random, "umap"), "config: unknown": (_random, {"umapp": {}}),
    "config: a section": (_random, {"umap": 3}), "config: None for a section": (_random, {"umap": None}),
    "config: sketch": (_random, {**SMALL, "neighbors": {"method": "sketch"}}),
    "config: too many neighbours": (_random, {**SMALL, "umap": {"n_neighbors": 500}}),
    "config: components": (_random, {**SMALL, "umap": {**SMALL["umap"], "n_components": 100}}),
    "config: large clusters": (_random, {**SMALL, "hdbscan": {"min_cluster_size": 500, "min_samples": 1}}),
    "config: large samples": (_random, {**SMALL, "hdbscan": {"min_cluster_size": 2, "min_samples": 500}}),
    "config: large samples, no UMAP": (_random, {**PLAIN, "hdbscan": {"min_cluster_size": 2, "min_samples": 500}}),
}  # fmt: skip


def arrays_drawn(count: int) -> list[tuple[str, Any, dict[str, Any]]]:
    """Arrays with copies, zeros and extremes, and a configuration each: always the same ones."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hnp

    found: list[tuple[str, Any, dict[str, Any]]] = []
    usual = st.one_of(st.just(0.0), st.sampled_from([1.0, -1.0, 1e-8, 1000.0]), st.floats(0, 8, width=16))
    extreme = st.one_of(usual, st.sampled_from([1e-60, 1e60, 65504.0, -8.0]), st.floats(-8, 8, width=32))

    @settings(max_examples=count, derandomize=True, database=None, phases=[Phase.generate], deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        shape = (data.draw(st.integers(2, 30)), data.draw(st.integers(1, 40)))
        name = data.draw(st.sampled_from(sorted(CONFIGS)))
        numbers = data.draw(st.sampled_from([usual, usual, usual, extreme]))
        values = data.draw(
            hnp.arrays(np.float64, shape, elements=numbers, fill=data.draw(st.sampled_from([numbers, st.just(0.0)])))
        )
        dtype = data.draw(st.sampled_from(["float64", "float32", "float16"]))
        with np.errstate(over="ignore"):
            values = values.astype(dtype)
        found.append(
            (f"{dtype} {shape}, {name}: {values.tolist() if values.size < 40 else '…'}", values, CONFIGS[name])
        )

    collect()
    return found
