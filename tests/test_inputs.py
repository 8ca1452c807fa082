"""What callers have in hand is taken as it is meant, or refused with the fix."""

from __future__ import annotations

import warnings
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import xarray as xr
from scipy import sparse

import gpuclust
from gpuclust.errors import ActivationError, MemoryBudgetError
from gpuclust.hardware import process
from gpuclust.results.inputs import as_activations

VALUES = np.array([[1, 0, 2], [0, 3, -4]], np.float32)
TAKEN: dict[str, tuple[Any, str]] = {
    "numpy": (VALUES, "float32"),
    "float16": (VALUES.astype(np.float16), "float16"),
    "long double": (VALUES.astype(np.longdouble), "float64"),
    "lists": (VALUES.tolist(), "float64"),
    "small integers": (VALUES.astype(np.int8), "float32"),
    "integers": (VALUES.astype(np.int64), "float64"),
    "fortran": (np.asfortranarray(VALUES), "float32"),
    "masked, nothing": (np.ma.masked_less(VALUES, -100), "float32"),
    "torch": (torch.tensor(VALUES), "float32"),
    "torch with a gradient": (torch.tensor(VALUES, requires_grad=True), "float32"),
    "torch bfloat16": (torch.tensor(VALUES, dtype=torch.bfloat16), "float32"),
    "torch sparse": (torch.tensor(VALUES).to_sparse(), "float32"),
    "scipy csr": (sparse.csr_array(VALUES), "float32"),
    "scipy csc of small integers": (sparse.csc_array(VALUES.astype(np.int16)), "float32"),
    "scipy csr of integers": (sparse.csr_matrix(VALUES.astype(np.int64)), "float64"),
    "scipy coo": (sparse.coo_matrix(VALUES), "float32"),
    "frame": (pd.DataFrame(VALUES), "float32"),
    "frame of features": (pd.DataFrame(VALUES.T, index=pd.Index(range(3), name="feature")), "float32"),
    "frame of prompts": (pd.DataFrame(VALUES, index=pd.Index(range(2), name="prompt")), "float32"),
    "named": (xr.DataArray(VALUES, dims=("prompt", "feature")), "float32"),
    "named, turned": (xr.DataArray(VALUES.T, dims=("feature", "prompt")), "float32"),
    "one name": (xr.DataArray(VALUES, dims=("prompt", "latent")), "float32"),
    "one name, turned": (xr.DataArray(VALUES.T, dims=("latent", "prompt")), "float32"),
    "the other name, turned": (xr.DataArray(VALUES.T, dims=("feature", "text")), "float32"),
    "no names": (xr.DataArray(VALUES), "float32"),
}
TAKEN |= {
    "objects that are numbers": (VALUES.astype(object), "float64"),
    "decimals": ([[Decimal(int(value)) for value in row] for row in VALUES], "float64"),
    "big endian": (VALUES.astype(">f4"), "float32"),
    "masked objects, nothing": (np.ma.array(VALUES.astype(object)), "float64"),
    "rows of tensors": (list(torch.tensor(VALUES, dtype=torch.bfloat16, requires_grad=True)), "float32"),
    "rows of masked arrays, nothing": (list(np.ma.array(VALUES)), "float32"),
    "parameter": (torch.nn.Parameter(torch.tensor(VALUES)), "float32"),
    "torch sparse with a gradient": (torch.tensor(VALUES, requires_grad=True).to_sparse(), "float32"),
    "a frame of nullable columns": (pd.DataFrame(VALUES).convert_dtypes(), "float64"),
    "a frame of sparse columns": (pd.DataFrame(VALUES).astype(pd.SparseDtype("float32")), "float32"),
    "variable, turned": (xr.Variable(("feature", "prompt"), VALUES.T), "float32"),
    "named tensor": (xr.DataArray(torch.tensor(VALUES).numpy(), dims=("prompt", "feature")).chunk(1), "float32"),
    "a frame's heir": (
        type("Heir", (pd.DataFrame,), {})(VALUES.T, index=pd.Index(range(3), name="feature")),
        "float32",
    ),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "other names": (xr.DataArray(VALUES, dims=("latent", "text")), r"dimensions 'latent' and 'text'.*\.rename\(\{'lat"),
    "names at odds": (pd.DataFrame(VALUES).rename_axis("feature").rename_axis("feature", axis=1), "'feature' and 'fea"),
    "a dataset": (xr.Dataset({"acts": xr.DataArray(VALUES)}), "Dataset of acts: give one of them"),
    "ragged": ([[1.0, 2.0], [3.0]], "are no array"),
    "masked": (np.ma.masked_less(VALUES, 0), r"1 masked entries: fill them"),
    "texts": ([["a", "b"]], "dtype <U1"),
    "objects": (np.array([[1.0, None]], dtype=object), "hold NoneType, not numbers, first for prompt 0 and feature 1"),
    "missing": (pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), "not numbers|NaN"),
    "torch on meta": (torch.ones(2, 3, device="meta"), "a tensor of float32 on meta, which has no values"),
    "torch float8": (torch.tensor(VALUES).to(torch.float8_e4m3fn), "a tensor of float8_e4m3fn on cpu"),
    "complex": (VALUES.astype(complex), "dtype complex128.*Complex data not supported: give abs"),
    "a tree": (xr.DataTree(), "a xarray.DataTree of nothing: give one of them"),
    "structured mask": (np.ma.zeros((2, 2), dtype=[("a", "f4"), ("b", "?")]), r"dtype \[\('a'"),
    "rows of masked arrays": (list(np.ma.masked_less(VALUES, 0)), "1 masked entries: fill them"),
    "ragged tensors": (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "no values"),
    "a dict in it": (np.array([[1.0, {"a": 1}]], dtype=object), r"hold dict, .* feature 1: \{'a': 1\}"),
    "a bool in it": (np.array([[1.0, True]], dtype=object), "hold bool, not numbers, first for prompt 0 and feature 1"),
    "a number too large": ([[10**400]], "hold numbers that are no float64"),
    "missing in a frame": (pd.DataFrame({"a": [1, pd.NA]}), "hold NAType, not numbers, first for prompt 1"),
    "bools": (VALUES > 0, "dtype bool"),
    "one axis": (VALUES[0], r"shape \(3,\)"),
    "three axes": (VALUES[None], r"shape \(1, 2, 3\)"),
    "nothing": (np.zeros((0, 3)), r"shape \(0, 3\)"),
    "a number": (3.0, r"shape \(\)"),
    "a text": ("activations.npy", r"shape \(\) and dtype <U15"),
    "none": (None, "hold NoneType, not numbers"),
    "nan": (np.where(VALUES == 3, np.nan, VALUES), "first for prompt 1 and feature 1"),
    "infinity": (np.where(VALUES == -4, -np.inf, VALUES), "first for prompt 1 and feature 2"),
    "tiny": (VALUES.astype(np.float64) * 1e-200, r"of feature 0 is 1e-200, and 3 features .*power of two"),
    "huge": (VALUES.astype(np.float64) * 1e200, r"of feature 0 is 1e\+200"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name: str) -> None:
    given, dtype = TAKEN[name]
    got = as_activations(given)
    assert type(got) is np.ndarray
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, VALUES)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    given, words = REFUSED[name]
    with pytest.raises(ActivationError, match=words):
        as_activations(given)


def test_an_anndata_says_which_way_round_it_may_be() -> None:
    anndata = pytest.importorskip("anndata")
    with pytest.raises(ActivationError, match=r"adata\.X\.T if they are features"):
        as_activations(anndata.AnnData(VALUES))


def test_a_turned_array_has_the_clusters_of_the_array() -> None:
    values = np.random.default_rng(0).random((80, 40)).astype(np.float32)
    config = {"cluster": {"method": "distances"}, "hdbscan": {"min_cluster_size": 3, "min_samples": 2}}
    config |= {"select": {"sparsity_max": 2.0}, "consensus": {"members": 1}}
    plain = gpuclust.cluster_features(values, config)
    turned = gpuclust.cluster_features(xr.DataArray(values.T, dims=("feature", "prompt")), config)
    assert len(turned.features) == 40
    pd.testing.assert_frame_equal(plain.features, turned.features)


def test_what_is_near_the_bounds_has_finite_statistics() -> None:
    values = np.random.default_rng(0).random((60, 30)) + 0.01
    config = {"cluster": {"method": "distances"}, "hdbscan": {"min_cluster_size": 3, "min_samples": 2}}
    config |= {"select": {"sparsity_max": 2.0, "entropy_high": 99.0}, "consensus": {"members": 1}}
    expected = gpuclust.cluster_features(values, config).features
    for scale in (2.0**-230, 2.0**230):
        got = gpuclust.cluster_features(values * scale, config | {"extract": {"activation_threshold": 0.0}}).features
        np.testing.assert_allclose(got["entropy"], expected["entropy"], rtol=1e-9)
        np.testing.assert_allclose(got["varentropy"], expected["varentropy"], rtol=1e-6, atol=1e-12)
        assert got["label"].tolist() == expected["label"].tolist()


def test_a_sparse_matrix_is_refused_with_the_bytes_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it will be in memory: whole numbers as floats."""
    ones = np.ones(1, np.int64), ([0], [0])
    monkeypatch.setattr(process, "total", lambda: 3 * 10**9)
    for dtype, size in ((np.int32, "8.00"), (np.float64, "8.00"), (np.int8, "4.00"), (np.float32, "4.00")):
        given = sparse.coo_array(ones, shape=(10**5, 10**4)).astype(dtype).tocsr()
        with pytest.raises(MemoryBudgetError, match=rf"\(100000, 10000\) are {size} GB written out; .* has 3.00 GB"):
            gpuclust.cluster_features(given)


def test_a_sparse_matrix_of_integers_has_the_clusters_of_its_floats() -> None:
    values = np.random.default_rng(0).integers(0, 4, (80, 40))
    config = {"cluster": {"method": "distances"}, "hdbscan": {"min_cluster_size": 3, "min_samples": 2}}
    config |= {"select": {"sparsity_max": 2.0}, "consensus": {"members": 1}}
    plain = gpuclust.cluster_features(values.astype(np.float64), config)
    pd.testing.assert_frame_equal(plain.features, gpuclust.cluster_features(sparse.csr_array(values), config).features)


@pytest.mark.parametrize(
    "given",
    [
        np.broadcast_to(np.float32(1), (10**8, 10**8)),
        sparse.coo_array(([1.0], ([0], [0])), shape=(10**8, 10**8)),
        torch.ones(1, 1).expand(10**8, 10**8),
    ],
    ids=["repeated", "sparse", "expanded"],
)
def test_what_is_larger_than_memory_is_refused(given: Any) -> None:
    with pytest.raises(
        MemoryBudgetError,
        match=r"\(100000000, 100000000\) are \d+.* GB written out; this machine, or its",
    ):
        as_activations(given)


def test_a_gram_matrix_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=20_000, available=20_000))
    values = np.random.default_rng(0).random((80, 40)).astype(np.float32)
    config = {"cluster": {"method": "distances"}, "hdbscan": {"min_cluster_size": 3, "min_samples": 2}}
    with pytest.raises(MemoryBudgetError, match=r"cosines of the kept features of shape \(40, 40\).*Keep fewer"):
        gpuclust.cluster_features(values, config | {"select": {"sparsity_max": 2.0}})


def test_a_masked_tensor_is_refused() -> None:
    with warnings.catch_warnings(action="ignore"):  # a prototype
        given = torch.masked.masked_tensor(torch.tensor(VALUES), torch.tensor(VALUES) > 0)
    with pytest.raises(ActivationError, match=r"a MaskedTensor: fill it, activations.to_tensor\(0\)"):
        as_activations(given)
