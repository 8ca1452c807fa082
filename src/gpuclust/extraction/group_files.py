"""Activations in groups of arrays: AnnData in HDF5 (``.h5ad``) and Zarr, and Zarr as gpuclust and xarray write it.

AnnData's layout on disk (anndata.readthedocs.io, "On-disk format"): `X` is an array, or a group of `data`, `indices`
and `indptr` whose attributes are ``encoding-type`` (csr_matrix or csc_matrix) and ``shape``; `obs` is a group with an
array a column, categorical ones as `codes` and `categories`. Observations are rows here, variables features.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust.errors import ActivationError, InputError
from gpuclust.extraction.row_places import Activations, with_places
from gpuclust.extraction.row_readers import DenseRows, Rows, SparseRows, as_shape, by_columns
from gpuclust.extraction.texts import storable
from gpuclust.storage import shards, sparse_rows
from gpuclust.storage.token_store import COORDINATES

H5PY = "reading .h5ad files needs h5py, which is not installed: pip install 'gpuclust[h5ad]', or pip install h5py"


class StoredRows(Rows):
    """Rows of a store of gpuclust's own codec, which are sparse as they lie."""

    def __init__(self, path: Path, shape: tuple[int, int], group: Path) -> None:
        super().__init__(path, shape)
        self._group = group

    def read(self, first: int, stop: int) -> Any:
        """Return a range of rows; see `Rows.read`."""
        for _, block in sparse_rows.read_rows(self._group, max(stop - first, 1), first, stop):
            return self.sparse(first, block.indptr, block.indices, block.data)
        return self.sparse(first, np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group, of version 2 or 3."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def of_zarr(path: Path) -> Activations:
    """Open a Zarr folder: an array (row, feature), a group with `activations`, or AnnData's.

    Raises
    ------
    ActivationError
        If it holds no activations.
    """
    import zarr

    found: Any = zarr.open(path, mode="r")
    if hasattr(found, "shape"):
        return Activations(_array(path, found))
    if "activations" in found:
        array = found["activations"]
        if hasattr(array, "shape") and isinstance(shards.of(array, path / "activations"), shards.Shards):
            rows: Rows = StoredRows(path, array.shape, path)
        else:
            rows = _array(path, array)
        own = rows.shape[0]
        given = {name: found[name][...] for name in COORDINATES if name in found and _is_of_rows(found[name], array)}
        if given.keys() == {"prompt"} and np.array_equal(given["prompt"], np.arange(own)):
            given = {}  # numbers of prompts, as of activations.zarr
        return with_places(rows, given)
    return _annotated(path, found)


def of_h5ad(path: Path, stack: ExitStack) -> Activations:
    """Open an AnnData file.

    Parameters
    ----------
    path : Path
    stack : ExitStack
        Closes it.

    Raises
    ------
    InputError
        If h5py is not installed.
    ActivationError
        If it holds no activations.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError(H5PY) from error
    return _annotated(path, stack.enter_context(h5py.File(path, "r")))


def _annotated(path: Path, group: Any) -> Activations:
    """What AnnData's group holds."""
    if "X" not in group:
        raise ActivationError(
            f"{path} holds {_listed(group)}; `X` (AnnData) or `activations` (row, feature) is expected"
        )
    rows, obs = _matrix(path, group["X"]), group.get("obs", {})
    columns = set(obs) if not hasattr(obs, "dtype") else set()  # before 0.7 one array of records
    if "feature" in columns and "prompt" in set(group.get("var", {})):
        raise ActivationError(
            f"{path} has features as observations and prompts as variables (Run.to_anndata() writes it so); rows are "
            "observations here: write it turned round, adata.T.copy().write_h5ad(…)"
        )
    given = {name: _column(path, name, obs[name]) for name in COORDINATES if name in columns}
    texts = None
    if "prompt" not in columns and "text" in columns:
        texts = [
            storable(text, f"{path}, obs text {row}") for row, text in enumerate(_column(path, "text", obs["text"]))
        ]
    return with_places(rows, given, texts)


def _matrix(path: Path, x: Any) -> Rows:
    """The rows of an array, or of a group of sparse ones."""
    if hasattr(x, "shape"):
        return _array(path, x)
    kind = str(_text(x.attrs.get("encoding-type", x.attrs.get("h5sparse_format", "")))).removesuffix("_matrix")
    if kind not in ("csr", "csc") or not {"data", "indices", "indptr"} <= set(x):
        raise ActivationError(
            f"{path}: X is a group of {_listed(x)}, of encoding-type {kind or 'none'}; csr_matrix, csc_matrix or an "
            "array is expected"
        )
    shape = as_shape(path, x.attrs.get("shape", x.attrs.get("h5sparse_shape", ())))
    rows = SparseRows if kind == "csr" else by_columns
    return rows(path, shape, x["indptr"], x["indices"], x["data"])


def _array(path: Path, array: Any) -> Rows:
    """The rows of a dense array; its dimensions may have names."""
    if not hasattr(array, "shape") or len(array.shape) != 2:
        shape = f"an array of shape {tuple(array.shape)}" if hasattr(array, "shape") else "a group"
        raise ActivationError(f"{path}: the activations are {shape}; an array (row, feature) is expected")
    names = getattr(getattr(array, "metadata", None), "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    if names is not None and (names[0] == "feature" or names[1] in ("prompt", "row", "token")):
        raise ActivationError(
            f"{path}: the activations have the dimensions {tuple(names)}; (prompt, feature) or (row, feature) is "
            "expected. Write them turned round (.T)"
        )
    return DenseRows(path, array)


def _is_of_rows(coordinate: Any, array: Any) -> bool:
    return hasattr(coordinate, "shape") and tuple(coordinate.shape) == tuple(array.shape[:1])


def _column(path: Path, name: str, found: Any) -> Any:
    """A column of a table: an array, categories by code, or whole numbers that may be missing."""
    if hasattr(found, "shape"):
        return _plain(found)
    if {"codes", "categories"} <= set(found):
        codes, categories = found["codes"][...], np.asarray(_plain(found["categories"]))
        if (codes < 0).any() and name != "text":
            raise ActivationError(
                f"{path}: obs column {name} is missing in row {np.flatnonzero(codes < 0)[0]}: fill it"
            )
        return [None if code < 0 else categories[code] for code in codes] if name == "text" else categories[codes]
    if {"values", "mask"} <= set(found):
        missing = np.flatnonzero(found["mask"][...])
        if len(missing) and name != "text":
            raise ActivationError(f"{path}: obs column {name} is missing in row {missing[0]}: fill it")
        values = _plain(found["values"])
        if len(missing):
            values = values.astype(object)
            values[missing] = None
        return values
    raise ActivationError(f"{path}: obs column {name} is a group of {_listed(found)}, which is not read")


def _plain(array: Any) -> Any:
    """An array's values; text as str."""
    values = array[...]
    return np.array([_text(value) for value in values], object) if values.dtype.kind in "OS" else values


def _text(value: Any) -> Any:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def _listed(group: Iterable[str]) -> str:
    names = sorted(group)
    return (", ".join(names[:8]) + (" …" if len(names) > 8 else "")) or "nothing"
