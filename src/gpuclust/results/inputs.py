"""Activations in a caller's hands, of whatever library, as one array (prompt, feature) of floats, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclust.errors import ActivationError
from gpuclust.types import Array

ROWS, COLUMNS = "prompt", "feature"
UNNAMED = {"dim_0", "dim_1", None}
SMALLEST, LARGEST = 1e-70, 1e70  # of a feature's largest abs(a): products of two of its squares are float64
FIX = "give an array (prompt, feature) of floats"


def as_activations(given: Any) -> Array:
    """Return what a caller has as an array in host memory.

    Parameters
    ----------
    given : array, or what holds one
        NumPy's (also masked, with nothing masked), nested lists, PyTorch's (of any dtype, on any device, with a
        gradient or none), CuPy's, SciPy's sparse ones, a pandas.DataFrame, a xarray.DataArray. Where its axes have
        names, names go before order: (feature, prompt) is turned round. Whole numbers become float32 or float64.

    Returns
    -------
    array, (prompt, feature), float16, float32 or float64

    Raises
    ------
    ActivationError
        If it is no such array, has names that say something else, is not two-dimensional, is empty, holds NaN or
        infinity, or values whose products float64 cannot hold.
    """
    kind = f"{type(given).__module__.split('.')[0]}.{type(given).__name__}"
    if kind == "anndata.AnnData":
        raise ActivationError(
            "activations are an AnnData, whose observations may be features or prompts: give adata.X if they are "
            "prompts, adata.X.T if they are features (as in Run.to_anndata())"
        )
    if kind == "xarray.Dataset":
        raise ActivationError(f"activations are a xarray.Dataset of {', '.join(map(str, given))}: give one of them")
    turned, given = _named(kind, given)
    data = _dense(kind, given)
    data = data.T if turned else data
    if data.dtype.kind in "iu" and data.ndim == 2:
        data = data.astype(np.float32 if data.dtype.itemsize <= 2 else np.float64)
    if data.dtype.kind == "f" and data.dtype.itemsize > 8:
        data = data.astype(np.float64)
    if data.ndim != 2 or data.dtype.kind != "f" or not data.size:
        raise ActivationError(
            f"activations have shape {data.shape} and dtype {data.dtype}; (prompt, feature) floats are expected, at "
            "least one of each"
        )
    _check_values(data)
    return data


def _named(kind: str, given: Any) -> tuple[bool, Any]:
    """Whether the axes have to change places by their names, and what is inside."""
    if kind == "pandas.DataFrame":
        names = (given.index.name, given.columns.name)
    elif kind == "xarray.DataArray":
        names = given.dims
    else:
        return False, given
    if len(names) != 2:
        return False, given
    turned = names[0] == COLUMNS or names[1] == ROWS
    right = names[0] == ROWS or names[1] == COLUMNS
    if (turned and right) or (not turned and not right and not set(names) <= UNNAMED and kind == "xarray.DataArray"):
        raise ActivationError(
            f"activations have the dimensions {names[0]!r} and {names[1]!r}; (prompt, feature) is expected. Rename "
            f"them: .rename({{{names[0]!r}: 'prompt', {names[1]!r}: 'feature'}}), or give .values in that order"
        )
    return turned, given


def dense(tensor: Any) -> Array:
    """Return the values of a PyTorch tensor of any layout in host memory; bfloat16 as float32.

    Raises
    ------
    ActivationError
        If it has no such values: of the device ``meta``, or a dtype that NumPy lacks.
    """
    import torch

    try:
        given = tensor.detach().cpu()
        given = given.to_dense() if given.layout != torch.strided else given
        found: Array = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    except (TypeError, RuntimeError) as error:  # a NotImplementedError is a RuntimeError
        what = f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
        raise ActivationError(f"activations are a tensor of {what}, which has no values for NumPy: {FIX}") from error
    return found


def _dense(kind: str, given: Any) -> Array:
    """The values in host memory."""
    if kind.startswith("torch."):
        return dense(given)
    if kind.startswith("cupy."):
        return np.asarray(given.get())
    if kind.startswith("scipy.") and hasattr(given, "toarray"):
        return np.asarray(given.toarray())
    if isinstance(given, np.ma.MaskedArray):
        if np.ma.is_masked(given):
            raise ActivationError(
                f"activations have {int(np.ma.getmaskarray(given).sum()):,} masked entries: fill them, "
                "activations.filled(0) for instance"
            )
        given = given.data
    try:
        data = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise ActivationError(f"activations ({kind}) are no array: {error}. {FIX.capitalize()}") from error
    if data.dtype.name == "bfloat16":  # of ml_dtypes
        data = data.astype(np.float32)
    if data.dtype == object:
        raise ActivationError(f"activations ({kind}) hold {type(data.flat[0]).__name__ if data.size else 'nothing'}, "
                              f"not numbers: {FIX}")  # fmt: skip
    return data


def _check_values(data: Array) -> None:
    largest = np.zeros(data.shape[1])
    for start in range(0, len(data), 2048):
        block = np.abs(data[start : start + 2048])
        top = block.max(axis=0)
        if not np.isfinite(top).all():
            row, feature = np.argwhere(~np.isfinite(block))[0]
            raise ActivationError(
                f"activations hold NaN or infinity, first for prompt {start + row} and feature {feature}; "
                "clean them first"
            )
        largest = np.maximum(largest, top)
    odd = np.flatnonzero((largest > LARGEST) | ((largest > 0) & (largest < SMALLEST)))
    if len(odd):
        raise ActivationError(
            f"the largest abs(activation) of feature {odd[0]} is {largest[odd[0]]:g}, and {len(odd):,} features are "
            f"outside {SMALLEST:g} to {LARGEST:g}: float64 cannot hold what is made of them. Multiply the "
            "activations by a power of two first; cosine distances and entropies stay as they are"
        )
