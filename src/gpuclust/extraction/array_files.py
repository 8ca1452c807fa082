"""Activations in files of NumPy and SciPy: ``.npy`` and ``.npz``, dense or sparse. No pickles are read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust.errors import ActivationError, StoreError
from gpuclust.extraction.row_places import Activations, with_places
from gpuclust.extraction.row_readers import (
    DenseRows,
    Entries,
    Rows,
    ScatteredRows,
    SparseRows,
    as_places,
    as_shape,
    by_columns,
    iterate,
)
from gpuclust.storage.token_store import COORDINATES

CODED = 4096  # bytes of a header of an array, at most


def of_npy(path: Path) -> Activations:
    """Open a ``.npy``, a dense array (row, feature), which stays on the disk."""
    return Activations(dense(path, np.load(path, mmap_mode="r", allow_pickle=False)))


def of_npz(path: Path, stack: ExitStack) -> Activations:
    """Open a ``.npz``: a sparse matrix of SciPy, or a dense array, with the coordinates of rows or without.

    Parameters
    ----------
    path : Path
    stack : ExitStack
        Closes it.

    Raises
    ------
    ActivationError
    """
    held = np.load(path, allow_pickle=False)
    if not isinstance(held, np.lib.npyio.NpzFile):
        raise ActivationError(f"{path} holds one array, as a .npy file does, and no archive of arrays: name it .npy")
    stack.enter_context(held)
    names = set(held.files)
    given = {name: held[name] for name in COORDINATES if name in names}
    if "format" in names or {"indptr", "indices", "data"} <= names:
        return with_places(_sparse(path, held, names), given)
    others = sorted(names - set(COORDINATES))
    name = "activations" if "activations" in names else others[0] if len(others) == 1 else None
    if name is None:
        raise ActivationError(
            f"{path} holds {', '.join(sorted(names)) or 'nothing'}; a sparse matrix (scipy.sparse.save_npz), or one "
            "array (row, feature) named activations, is expected"
        )
    return with_places(dense(path, Member(path, f"{name}.npy", stack)), given)


def _sparse(path: Path, held: Mapping[str, Any], names: set[str]) -> Rows:
    """The rows of a matrix that SciPy wrote, whose arrays are loaded."""
    kind = held["format"].item() if "format" in names else "csr"
    kind = kind.decode(errors="replace") if isinstance(kind, bytes) else str(kind)
    wanted = {"csr": ("indptr", "indices"), "csc": ("indptr", "indices"), "coo": ("row", "col")}.get(kind)
    if wanted is None:
        raise ActivationError(f"{path} is a sparse matrix of format {kind}; csr, csc or coo is expected: .tocsr()")
    if lost := sorted({*wanted, "data", "shape"} - names):
        raise ActivationError(f"{path}: a sparse matrix of format {kind} has no {', '.join(lost)}: save it again")
    shape = as_shape(path, held["shape"])
    first, second, data = (held[name] for name in (*wanted, "data"))
    if kind == "csr":
        return SparseRows(path, shape, first, second, data)
    if kind == "csc":
        return by_columns(path, shape, first, second, data)
    if not len(first) == len(second) == len(data):
        raise ActivationError(
            f"{path}: row has {len(first):,} entries, col {len(second):,} and data {len(data):,}: they must be as many"
        )
    row, column = as_places(first, path), as_places(second, path)

    def part(own: slice) -> Callable[[], Entries]:
        return lambda: (row[own], column[own], data[own])

    return ScatteredRows(path, shape, [part(own) for own in iterate(len(data))])


def dense(path: Path, array: Any) -> Rows:
    """Rows of a dense array, refused where it has other dimensions."""
    if len(array.shape) != 2:
        raise ActivationError(f"{path} holds an array of shape {tuple(array.shape)}; (row, feature) is expected")
    return DenseRows(path, array)


class Member:
    """An array in a ``.npz`` whose rows are read in order, without the rest of it.

    Parameters
    ----------
    path : Path
    name : str
    stack : ExitStack
        Closes it.
    """

    def __init__(self, path: Path, name: str, stack: ExitStack) -> None:
        archive = stack.enter_context(zipfile.ZipFile(path))
        self._file = stack.enter_context(archive.open(name))
        version = np.lib.format.read_magic(self._file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, turned, self.dtype = header(self._file, max_header_size=CODED)
        self._begin, self._whole = self._file.tell(), None
        if self.dtype.hasobject:
            raise ValueError("it holds Python objects")
        if turned:  # columns first: rows are not together
            self._whole = np.load(path, allow_pickle=False)[name.removesuffix(".npy")]

    def __getitem__(self, own: slice) -> Any:
        """Return some rows."""
        if self._whole is not None:
            return self._whole[own]
        width = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        self._file.seek(self._begin + own.start * width)
        raw = self._file.read((own.stop - own.start) * width)
        if len(raw) != (own.stop - own.start) * width:
            raise StoreError(f"{self._file.name} ends within its rows: it is cut off")
        return np.frombuffer(raw, self.dtype).reshape(-1, *self.shape[1:])
