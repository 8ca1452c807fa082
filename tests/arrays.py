"""Hypothesis strategies: arrays of every dtype, shape, layout and library, with what they have to be taken as."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

Array = np.ndarray[Any, Any]
HUGE = (10**8, 10**8)
TENSORS = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
DIMENSIONS = ("prompt", "feature", "dim_0", "dim_1", "latent", "", 3)


class Case(NamedTuple):
    """What is given, and the array (prompt, feature) that it is where it is taken; None where it has to be refused."""

    given: Any
    meant: Array | None


def dtypes() -> st.SearchStrategy[np.dtype[Any]]:
    return st.one_of(
        st.sampled_from(["f2", "f4", "f8", "f4", "f8", ">f4", "g", "?", "O", "S3", "U2", "F", "D", "M8[s]", "m8[ns]"]),
        hnp.integer_dtypes(),
        hnp.unsigned_integer_dtypes(),
        hnp.array_dtypes(max_size=2),
    ).map(np.dtype)


@st.composite
def plain(draw: st.DrawFn) -> Array:
    """A NumPy array of any kind in any layout."""
    dtype = draw(dtypes())
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)) | hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
    elements = None
    if dtype.kind == "O":
        odd = st.sampled_from([None, pd.NA, "a", True, 1j, 10**400, {"a": 1}, [1], np.float32(2), 10**25])
        elements = st.one_of(st.integers(-9, 9), st.floats(-9, 9), st.floats(-9, 9), odd)
    elif dtype.kind == "f" and draw(st.booleans()):
        elements = st.floats(-8, 8, width=16)
    values = draw(hnp.arrays(dtype, shape, elements=elements, fill=st.nothing() if dtype.kind == "O" else None))
    for change in draw(
        st.lists(st.sampled_from(["turn", "flip", "second", "fortran", "repeat", "matrix", "read"]), max_size=2)
    ):
        if change == "turn":
            values = values.T
        elif change == "flip" and values.ndim:
            values = values[::-1]
        elif change == "second" and values.ndim:
            values = values[..., ::2]
        elif change == "fortran" and values.ndim:
            values = np.asfortranarray(values)
        elif change == "repeat" and values.ndim == 2 and len(values):
            values = np.broadcast_to(values[:1], (3, values.shape[1]))
        elif change == "matrix" and values.ndim == 2 and values.dtype.kind in "fiu":
            with warnings.catch_warnings(action="ignore"):
                values = np.asmatrix(values)
        elif change == "read":
            values = values.view()
            values.flags.writeable = False
    return values


def meant(values: Array) -> Array | None:
    """What an array is to be taken as."""
    values = np.asarray(values)
    if values.ndim != 2 or not values.size:
        return None
    if values.dtype.kind == "O":
        kept = all(isinstance(one, int | float | np.floating) and not isinstance(one, bool) for one in values.flat)
        if not kept or any(isinstance(one, int) and one > 10**300 for one in values.flat):
            return None
    elif values.dtype.kind not in "fiu":
        return None
    with np.errstate(over="ignore"):
        found = values.astype(np.float64)
    return found if np.isfinite(found).all() else None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """An array in some library's hands."""
    values = draw(plain())
    right = meant(values)
    kind = draw(
        st.sampled_from(["numpy", "list", "mask", "frame", "named", "torch", "sparse", "dask", "huge", "several"])
    )
    if kind == "list" and values.dtype.kind in "fiu?cMSU":
        return Case(values.tolist(), right)
    if kind == "mask":
        hidden = draw(hnp.arrays(bool, values.shape)) if draw(st.booleans()) else np.zeros(values.shape, bool)
        with np.errstate(all="ignore"):
            given = np.ma.MaskedArray(np.asarray(values), hidden)
        rows = list(given) if given.ndim == 2 and draw(st.booleans()) else given
        return Case(rows, None if hidden.any() else right)
    if kind == "frame" and values.ndim == 2:
        names = draw(st.tuples(st.sampled_from([None, *DIMENSIONS]), st.sampled_from([None, *DIMENSIONS])))
        kept = np.asarray(values, values.dtype.newbyteorder("=")) if values.dtype.kind in "fiuO" else None
        frame = pd.DataFrame(
            np.full(values.shape, "a") if kept is None else kept, dtype=None if kept is None else kept.dtype
        )
        given = frame.rename_axis(index=names[0], columns=names[1])
        right = right if values.dtype.kind in "fiuO" else None
        return Case(given, named(right, names[0], names[1], free=True))
    if kind == "named" and values.dtype.kind in "fiu?cM":
        names = draw(st.lists(st.sampled_from(DIMENSIONS), min_size=values.ndim, max_size=values.ndim, unique=True))
        given = xr.DataArray(np.asarray(values), dims=names)
        return Case(given, named(right, *names, free=False) if len(names) == 2 else None)
    if kind == "torch":
        return draw(tensors())
    if kind == "sparse" and values.ndim == 2 and values.dtype.kind in "fiu" and values.dtype.itemsize > 2:
        name = draw(st.sampled_from(["csr_array", "csc_matrix", "coo_array", "dok_array", "lil_array", "dia_array"]))
        return Case(getattr(sparse, name)(np.asarray(values, values.dtype.newbyteorder("="))), right)
    if kind == "dask" and values.dtype.kind in "fiu?c":
        import dask.array as da

        return Case(da.from_array(np.asarray(values), chunks=2), right)
    if kind == "huge":
        return Case(draw(st.sampled_from([
            np.broadcast_to(np.float32(1), HUGE), sparse.coo_array(([1.0], ([0], [0])), shape=HUGE),
            torch.ones(1, 1).expand(HUGE), np.broadcast_to(1j, HUGE),
        ])), None)  # fmt: skip
    if kind == "several" and right is not None:
        return Case(draw(st.sampled_from([
            xr.Dataset({"a": (("prompt", "feature"), right)}), {"a": right}, [right, right], (one for one in right),
            "acts.npy", b"abc", None, object(), pd.Series(right[0]), right.dtype, {1, 2},
        ])), None)  # fmt: skip
    return Case(values, right)


def named(values: Array | None, first: Any, second: Any, free: bool) -> Array | None:
    """Turned round where names say so; None where they contradict each other, or (unless `free`) say something else."""
    if values is None:
        return None
    turned, right = first == "feature" or second == "prompt", first == "prompt" or second == "feature"
    if (turned and right) or not (turned or right or free or {first, second} <= {"dim_0", "dim_1"}):
        return None
    return values.T if turned else values


@st.composite
def tensors(draw: st.DrawFn) -> Case:
    """A tensor of any dtype and layout."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)) | hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
    dtype = draw(st.sampled_from(TENSORS))
    numbers = draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([0, 0, 1, 2.5, 300])))
    tensor = torch.tensor(numbers).to(dtype)
    right = meant(tensor.double().numpy()) if not dtype.is_complex and dtype != torch.bool else None
    for change in draw(
        st.lists(st.sampled_from(["sparse", "csr", "grad", "parameter", "rows", "conj", "meta"]), max_size=2)
    ):
        if change == "sparse" and tensor.layout == torch.strided:
            tensor = tensor.to_sparse()
        elif change == "csr" and tensor.layout == torch.strided and tensor.ndim == 2:
            with warnings.catch_warnings(action="ignore"):
                tensor = tensor.to_sparse_csr()
        elif change == "grad" and dtype.is_floating_point and tensor.is_leaf:
            tensor = tensor.requires_grad_() if draw(st.booleans()) else tensor.requires_grad_() * 1
        elif change == "parameter" and dtype.is_floating_point and tensor.layout == torch.strided:
            tensor = torch.nn.Parameter(tensor.detach())
        elif change == "conj" and tensor.layout == torch.strided:
            tensor = tensor.conj()
        elif change == "meta" and tensor.layout == torch.strided:
            return Case(torch.empty(shape, device="meta"), None)
        elif change == "rows" and tensor.ndim == 2 and tensor.layout == torch.strided:
            return Case(list(tensor), right)
    return Case(tensor, right)
