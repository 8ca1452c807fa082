"""Activations in a caller's hands, of whatever library, as one array (prompt, feature) of floats, or refused."""

from __future__ import annotations

import math
import numbers
from decimal import Decimal
from typing import Any

import numpy as np

from gpuclust.errors import ActivationError, MemoryBudgetError
from gpuclust.formatting import gigabytes, shown
from gpuclust.hardware import process
from gpuclust.types import Array

ROWS, COLUMNS = "prompt", "feature"
UNNAMED = {"dim_0", "dim_1", None}
SMALLEST, LARGEST = 1e-70, 1e70  # of a feature's largest abs(a): products of two of its squares are float64
FIX = "give an array (prompt, feature) of floats"
SEVERAL = {"xarray.Dataset", "xarray.DataTree"}


def as_activations(given: Any) -> Array:
    """Return what a caller has as an array in host memory.

    Parameters
    ----------
    given : array, or what holds one
        NumPy's (also masked, with nothing masked), nested lists, PyTorch's (of any dtype, on any device, with a
        gradient or none), CuPy's, SciPy's sparse ones, a DataFrame of pandas, Polars or cuDF, a xarray.DataArray, what
        NumPy can turn into an array, such as Dask's. Where its axes have names, names go before order: (feature,
        prompt) is turned round. Whole numbers become float32 or float64, objects that are numbers float64.

    Returns
    -------
    array, (prompt, feature), float16, float32 or float64

    Raises
    ------
    ActivationError
        If it is no such array, has names that say something else, is not two-dimensional, is empty, holds NaN or
        infinity, or values whose products float64 cannot hold.
    MemoryBudgetError
        If it is larger than the memory of this machine, as sparse and repeated arrays may be once they are written out.
    """
    kinds = _kinds(given)
    if "anndata.AnnData" in kinds:
        raise ActivationError(
            "activations are an AnnData, whose observations may be features or prompts: give adata.X if they are "
            "prompts, adata.X.T if they are features (as in Run.to_anndata())"
        )
    if found := SEVERAL & kinds:
        names = ", ".join(shown(name).strip("'") for name in list(given)[:20])
        raise ActivationError(f"activations are a {found.pop()} of {names or 'nothing'}: give one of them")
    turned, given = _named(kinds, given)
    try:
        data = _dense(given)
    except MemoryError as error:
        raise MemoryBudgetError(f"activations do not fit the memory of this machine: {error}. Give fewer") from error
    data = _floats(data.T if turned else data)
    _check_values(data)
    return data


def as_lengths(given: Any, n_prompts: int) -> Array:
    """Return lengths of prompts as an array.

    Parameters
    ----------
    given : array-like, (prompt,), numbers
    n_prompts : int

    Returns
    -------
    array, (prompt,), float64

    Raises
    ------
    ActivationError
        If it is not one finite number a prompt, or their squares are beyond float64.
    """
    try:
        held = dense(given) if "torch.Tensor" in _kinds(given) else given
        if np.ma.is_masked(held):
            raise ValueError(f"{int(np.ma.getmaskarray(held).sum()):,} are masked")
        held = np.asarray(held)
        if held.dtype.kind in "cmM":
            raise ValueError(f"they are {held.dtype}")
        lengths = held.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ActivationError(f"lengths are {shown(given)}: one number a prompt is expected ({error})") from error
    if lengths.shape != (n_prompts,):
        raise ActivationError(f"lengths have the shape {lengths.shape}; ({n_prompts},) is expected, one a prompt")
    bad = np.flatnonzero(~np.isfinite(lengths))
    if len(bad):
        raise ActivationError(f"lengths hold {lengths[bad[0]]} for prompt {bad[0]}: finite numbers are expected")
    largest = float(np.abs(lengths).max())
    if largest and not SMALLEST <= largest <= LARGEST:
        raise ActivationError(
            f"the largest abs(length) is {largest:g}, outside {SMALLEST:g} to {LARGEST:g}: float64 cannot hold its "
            "square. Multiply the lengths by a power of two first; partial correlations stay as they are"
        )
    return lengths


def is_turned(given: Any) -> bool:
    """Whether it has names of axes that say (feature, prompt)."""
    return _named(_kinds(given), given)[0]


def _kinds(given: Any) -> set[str]:
    """What it is, and what that inherits from: library and class, such as ``torch.Tensor``."""
    return {f"{each.__module__.split('.')[0]}.{each.__name__}" for each in type(given).__mro__}


def _named(kinds: set[str], given: Any) -> tuple[bool, Any]:
    """Whether the axes have to change places by their names, and what is inside."""
    labelled = not {"xarray.DataArray", "xarray.Variable"}.isdisjoint(kinds)
    if "pandas.DataFrame" in kinds:
        names, inside = (given.index.name, given.columns.name), given
    elif labelled:
        names, inside = given.dims, given.data
    else:
        return False, given
    if len(names) != 2:
        return False, inside
    turned = names[0] == COLUMNS or names[1] == ROWS
    right = names[0] == ROWS or names[1] == COLUMNS
    if (turned and right) or (not turned and not right and labelled and not set(names) <= UNNAMED):
        raise ActivationError(
            f"activations have the dimensions {names[0]!r} and {names[1]!r}; (prompt, feature) is expected. Rename "
            f"them: .rename({{{names[0]!r}: 'prompt', {names[1]!r}: 'feature'}}), or give .values in that order"
        )
    return turned, inside


def dense(tensor: Any) -> Array:
    """Return the values of a PyTorch tensor of any layout in host memory; bfloat16 as float32.

    Raises
    ------
    ActivationError
        If it has no such values: of the device ``meta``, or a dtype that NumPy lacks, or with masked entries.
    MemoryBudgetError
        If it is larger than the memory of this machine.
    """
    import torch

    what = f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
    if "torch.MaskedTensor" in _kinds(tensor):
        raise ActivationError("activations are a MaskedTensor: fill it, activations.to_tensor(0) for instance")
    try:
        refuse_larger_than_memory(tuple(tensor.shape), tensor.element_size())
        given = tensor.detach().cpu()
        given = given.to_dense() if given.layout != torch.strided else given
        given = given.resolve_conj().resolve_neg()
        found: Array = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    except MemoryBudgetError:
        raise
    except Exception as error:  # tensors of ragged rows, of other devices and of dtypes without values raise anything
        raise ActivationError(
            f"activations are a tensor of {what}, which has no values for NumPy: {FIX}, such as tensor.float()"
        ) from error
    return found


def _dense(given: Any) -> Array:
    """The values in host memory."""
    kinds = _kinds(given)
    kind = f"{type(given).__module__.split('.')[0]}.{type(given).__name__}"
    if "torch.Tensor" in kinds:
        return dense(given)
    if isinstance(given, np.ma.MaskedArray):
        return _of_objects(_unmasked(given), kind)
    if "scipy" in kind and given.dtype.kind in "iu":  # before it is written out, which takes one copy less
        given = given.astype(_float_for(given.dtype))
    if not isinstance(given, np.memmap):
        refuse_larger_than_memory(getattr(given, "shape", ()), getattr(getattr(given, "dtype", None), "itemsize", 8))
    try:
        if isinstance(given, list | tuple) and given:
            if any("torch.Tensor" in _kinds(row) for row in given):
                given = [dense(row) if "torch.Tensor" in _kinds(row) else row for row in given]
            if any(isinstance(row, np.ma.MaskedArray) for row in given):
                given = _unmasked(np.ma.stack(given))
        if hasattr(given, "get") and kind.split(".")[0] in ("cupy", "cupyx"):
            given = given.get()
        elif hasattr(given, "copy_to_host"):  # numba's, on a GPU
            given = given.copy_to_host()
        elif kind.split(".")[0] in ("polars", "cudf", "pyarrow") and hasattr(given, "to_pandas"):
            given = given.to_pandas()
        for name in ("toarray", "todense"):  # SciPy's and pydata's sparse ones
            if hasattr(given, name):
                given = getattr(given, name)()
                break
        data = np.asarray(given)
    except (ActivationError, MemoryError):
        raise
    except Exception as error:  # what somebody else's __array__ raises is anything
        text = " ".join(str(error).split())[:200].removesuffix(".")
        raise ActivationError(f"activations ({kind}) are no array: {text}. {FIX.capitalize()}") from error
    if data.dtype.type.__module__.startswith("ml_dtypes"):  # bfloat16 of JAX
        data = data.astype(np.float32)
    return _of_objects(data, kind)


def _unmasked(given: Any) -> Array:
    if given.dtype.names is None and np.ma.is_masked(given):
        raise ActivationError(
            f"activations have {int(np.ma.getmaskarray(given).sum()):,} masked entries: fill them, "
            "activations.filled(0) for instance"
        )
    return np.asarray(given.data)


def _of_objects(data: Array, kind: str) -> Array:
    """Objects that are numbers as float64; arrays of other dtypes as they are."""
    if data.dtype != object:
        return data
    for place, value in enumerate(data.flat):
        if not isinstance(value, numbers.Real | Decimal) or isinstance(value, bool):
            row, feature = divmod(place, data.shape[1] if data.ndim == 2 else 1)
            where = f", first for prompt {row} and feature {feature}: {shown(value)}" if data.ndim == 2 else ""
            said = f"the argument must be a string or a real number, not {type(value).__name__!r}"
            raise ActivationError(
                f"activations ({kind}) hold {type(value).__name__}, not numbers{where} ({said}): {FIX}"
            )
    try:
        return data.astype(np.float64) if data.size else data
    except (TypeError, ValueError, ArithmeticError) as error:  # an OverflowError is an ArithmeticError
        raise ActivationError(f"activations ({kind}) hold numbers that are no float64 ({error}): {FIX}") from error


def refuse_larger_than_memory(
    shape: Any, itemsize: int, what: str = "activations", fix: str = "Give fewer prompts or features"
) -> None:
    """Refuse what cannot be written out: sparse, repeated and lazy arrays may have any shape.

    Parameters
    ----------
    shape : tuple of int
        Of what would be written out; where it is not known, nothing is refused.
    itemsize : int
        Bytes of an entry.
    what, fix : str
        For the message.

    Raises
    ------
    MemoryBudgetError
    """
    try:
        size = math.prod(int(length) for length in shape) * max(int(itemsize), 4)
    except (TypeError, ValueError):  # some of Dask's are nan
        return
    if size > (total := process.total()):
        raise MemoryBudgetError(
            f"{what} of shape {tuple(shape)} are {gigabytes(size)} written out; this machine, or its container, has "
            f"{gigabytes(total)} of memory. {fix}"
        )


def _float_for(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """Return what holds whole numbers of a dtype."""
    return np.float32 if dtype.itemsize <= 2 else np.float64


def _floats(data: Array) -> Array:
    """Two axes of floats as the machine has them."""
    if data.dtype.kind in "iu" and data.ndim == 2:
        data = data.astype(_float_for(data.dtype))
    if data.dtype.kind == "f":
        with np.errstate(over="ignore"):
            data = data.astype(np.float64 if data.dtype.itemsize > 8 else data.dtype.newbyteorder("="), copy=False)
    if data.ndim != 2 or data.dtype.kind != "f" or not data.size:
        more = ""
        if data.dtype.kind == "c":
            more = ". Complex data not supported: give abs(activations), or .real"
        elif data.dtype.kind == "b":
            more = ": give activations.astype(float), or .float() of a tensor"
        elif data.ndim == 2 and not data.size:
            names = ("prompt(s)", "feature(s)")
            axis = int(data.shape[1] == 0)
            more = f". There are 0 {names[axis]} (shape={data.shape}) while a minimum of 1 is required."
        raise ActivationError(
            f"activations have shape {data.shape} and dtype {data.dtype}; (prompt, feature) floats are expected, at "
            f"least one of each{more}"
        )
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
