"""Rows of activations in files that others wrote, read a range at a time, as compressed sparse rows.

Whatever a file's layout is, a reader gives any range of its rows, columns ascending and each once, and refuses what are
no activations with where it stands. Nothing is made dense beyond `SLAB` elements.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust.errors import ActivationError
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

SLAB = 1 << 24  # elements of a dense array that are read at a time
SLICE = 1 << 22  # entries of a list of entries that are read at a time
HELD = 1 << 23  # entries that are put in order of rows at a time; some 30 bytes each meanwhile


class Rows(ABC):
    """Rows of activations.

    Attributes
    ----------
    path : Path
        For messages.
    shape : (int, int)
        Rows and features.
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path, self.shape = path, shape

    @abstractmethod
    def read(self, first: int, stop: int) -> Any:
        """Return a range of rows.

        Returns
        -------
        scipy.sparse.csr_array, (row, feature), float32 or float64
            Entries are not zero, columns ascend, each is there once.

        Raises
        ------
        ActivationError
            If they are no activations: NaN or infinity, a feature twice in a row, or beyond the features.
        """

    def sparse(self, first: int, indptr: Array, indices: Array, values: Array) -> Any:
        """Return compressed sparse rows in order, or refuse them.

        Parameters
        ----------
        first : int
            Number of the first row, for messages.
        indptr : array, (row + 1,), int, from 0
        indices : array, (entry,), int
            Features, in any order within a row.
        values : array, (entry,), of numbers
        """
        from scipy.sparse import csr_array

        n_rows = len(indptr) - 1
        lengths = np.diff(indptr)
        row = np.repeat(np.arange(n_rows), lengths)
        _refuse_outside(self.path, indices, self.shape[1], lambda at: f"row {first + row[at]}", "feature")
        values = as_numbers(values, self.path)
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            at = bad[0]
            raise ActivationError(
                f"{self.path}: the activation of feature {indices[at]} in row {first + row[at]} is {values[at]}, and "
                f"{len(bad):,} in these rows are no finite numbers. Clean them first"
            )
        place = row * self.shape[1] + indices
        step = np.diff(place)
        if (step <= 0).any():
            order = np.argsort(place, kind="stable")
            place, indices, values = place[order], indices[order], values[order]
            if len(twice := np.flatnonzero(np.diff(place) == 0)):
                at = twice[0]
                raise ActivationError(
                    f"{self.path}: feature {indices[at]} is there twice in row {first + place[at] // self.shape[1]}, "
                    f"with {values[at]:g} and {values[at + 1]:g}. Each feature has one activation a row: add them up, "
                    "or take one (sum_duplicates() of a SciPy matrix adds them)"
                )
        if not values.all():
            kept = values != 0
            place, indices, values = place[kept], indices[kept], values[kept]
            indptr = np.concatenate([[0], np.cumsum(np.bincount(place // self.shape[1], minlength=n_rows))])
        return csr_array((values, indices.astype(np.int32), indptr), shape=(n_rows, self.shape[1]))


class DenseRows(Rows):
    """A two-dimensional array (row, feature) that is sliced: of NumPy, HDF5, Zarr, a file's."""

    def __init__(self, path: Path, array: Any) -> None:
        super().__init__(path, tuple(array.shape))
        self._array = array

    def read(self, first: int, stop: int) -> Any:
        """Return a range of rows; see `Rows.read`."""
        step = max(1, SLAB // max(self.shape[1], 1))
        lengths, indices, values = [np.zeros(1, np.int64)], [], []
        for start in range(first, stop, step):
            block = as_numbers(np.asarray(self._array[start : min(start + step, stop)]), self.path)
            fires = block != 0
            lengths.append(fires.sum(axis=1))
            indices.append(np.nonzero(fires)[1])
            values.append(block[fires])
        return self.sparse(first, np.cumsum(np.concatenate(lengths)), _joined(indices, np.int64), _joined(values))


class SparseRows(Rows):
    """Compressed sparse rows: `indptr` in memory, `indices` and `data` are sliced."""

    def __init__(self, path: Path, shape: tuple[int, int], indptr: Array, indices: Any, data: Any) -> None:
        super().__init__(path, shape)
        self._indptr, self._indices, self._data = as_indptr(path, indptr, shape[0], indices, data), indices, data

    def read(self, first: int, stop: int) -> Any:
        """Return a range of rows; see `Rows.read`."""
        bounds = self._indptr[first : stop + 1]
        own = slice(int(bounds[0]), int(bounds[-1]))
        return self.sparse(first, bounds - bounds[0], as_places(self._indices[own], self.path), self._data[own])


Entries = tuple[Array, Array, Array]  # row, feature and value of each


class ScatteredRows(Rows):
    """Entries in any order, as (row, feature, value) or by columns, in slices that are read when needed.

    As many rows as have `HELD` entries are put together at a time. Of a file whose entries are in order of rows each
    slice is read once for it, of another several times.

    Parameters
    ----------
    path : Path
    shape : (int, int)
    slices : sequence of callable
        Each reads some of the entries: row and feature, int64, and value.
    """

    def __init__(self, path: Path, shape: tuple[int, int], slices: Sequence[Callable[[], Entries]]) -> None:
        super().__init__(path, shape)
        self._slices, self._ranges = slices, np.zeros((len(slices), 2), np.int64)  # rows of each slice
        counts = np.zeros(shape[0], np.int64)
        for number, part in enumerate(slices):
            row, feature, _ = part()
            where = _entry_of(row, feature)
            _refuse_outside(path, row, shape[0], where, "row")
            _refuse_outside(path, feature, shape[1], where, "feature")
            if len(row):
                counts += np.bincount(row, minlength=shape[0])
                self._ranges[number] = row.min(), row.max() + 1
        self._ends = np.cumsum(counts)
        self._held: tuple[int, int, Any] = (0, 0, None)

    def read(self, first: int, stop: int) -> Any:
        """Return a range of rows; see `Rows.read`."""
        begin, end, held = self._held
        if not begin <= first <= stop <= end or held is None:
            before = int(self._ends[first - 1]) if first else 0
            end = max(stop, int(np.searchsorted(self._ends, before + HELD, side="right")))
            begin, held = first, self._gather(first, end)
            self._held = begin, end, held
        return held[first - begin : stop - begin]

    def _gather(self, first: int, stop: int) -> Any:
        wanted = np.flatnonzero((self._ranges[:, 0] < stop) & (self._ranges[:, 1] > first))
        log.info("%s: rows %d to %d are in %d of %d slices", self.path, first, stop - 1, len(wanted), len(self._slices))
        rows, features, values = [], [], []
        for number in wanted.tolist():
            row, feature, value = self._slices[number]()
            own = (row >= first) & (row < stop)
            rows.append(row[own] - first)
            features.append(feature[own])
            values.append(value[own])
        row = _joined(rows, np.int64)
        order = np.argsort(row, kind="stable")
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=stop - first))])
        return self.sparse(first, indptr, _joined(features, np.int64)[order], _joined(values)[order])


class ChosenRows(Rows):
    """Some rows of others, in order: those that are tokens."""

    def __init__(self, rows: Rows, chosen: Array) -> None:
        super().__init__(rows.path, (len(chosen), rows.shape[1]))
        self._rows, self._chosen = rows, chosen

    def read(self, first: int, stop: int) -> Any:
        """Return a range of rows; see `Rows.read`."""
        own = self._chosen[first:stop]
        if not len(own):
            return self._rows.read(0, 0)
        begin, end = int(own[0]), int(own[-1]) + 1
        found = self._rows.read(begin, end)
        return found if end - begin == len(own) else found[own - begin]


def by_columns(path: Path, shape: tuple[int, int], indptr: Array, indices: Any, data: Any) -> ScatteredRows:
    """Return the rows of compressed sparse columns.

    Parameters
    ----------
    path : Path
    shape : (int, int)
        Rows and features.
    indptr : array, (feature + 1,), int
    indices, data : sliced, (entry,)
        Rows and values.
    """
    bounds = as_indptr(path, indptr, shape[1], indices, data)

    def part(begin: int) -> Callable[[], Entries]:
        own = slice(begin, min(begin + SLICE, int(bounds[-1])))

        def read() -> Entries:
            feature = np.searchsorted(bounds, np.arange(own.start, own.stop), side="right") - 1
            return as_places(indices[own], path), feature, np.asarray(data[own])

        return read

    return ScatteredRows(path, shape, [part(begin) for begin in range(0, int(bounds[-1]), SLICE)])


def as_indptr(path: Path, indptr: Any, n: int, indices: Any, data: Any) -> Array:
    """Return where rows or columns begin among the entries, (n + 1,), int64.

    Parameters
    ----------
    path : Path
    indptr, indices, data : arrays, or what is sliced like one
        Of compressed sparse rows or columns.
    n : int
        Rows or columns.

    Raises
    ------
    ActivationError
        If they do not fit together.
    """
    entries, values = indices.shape[0], data.shape[0]
    sizes = f"indptr has {indptr.shape[0]:,} entries, indices {entries:,} and data {values:,}"
    found = as_places(indptr[:], path)
    if len(found) != n + 1 or entries != values or found[0] != 0 or found[-1] != values:
        ends = f", from {found[0]} to {found[-1]}" if len(found) else ""
        raise ActivationError(
            f"{path}: {sizes}{ends}; of {n:,} sparse rows or columns indptr has {n + 1:,}, from 0 to as many as there "
            "are of both. It is damaged, or not what it says: write it again"
        )
    if len(down := np.flatnonzero(np.diff(found) < 0)):
        at = down[0]
        raise ActivationError(f"{path}: indptr falls from {found[at]} to {found[at + 1]} at {at + 1}: write it again")
    return found


def as_places(given: Any, path: Path) -> Array:
    """Return numbers of rows, features or the like as int64.

    Raises
    ------
    ActivationError
        If they are no whole numbers, or larger than int64.
    """
    found: Array = np.asarray(given)
    if found.dtype.kind not in "iu":
        raise ActivationError(f"{path}: numbers of rows or features are {found.dtype}; whole numbers are expected")
    if found.dtype == np.uint64 and found.size and int(found.max()) > np.iinfo(np.int64).max:
        raise ActivationError(f"{path}: a number of a row or feature is {found.max()}, which is beyond int64")
    return found.astype(np.int64)


def as_shape(path: Path, given: Any) -> tuple[int, int]:
    """Return rows and features.

    Raises
    ------
    ActivationError
        If it is not two whole numbers.
    """
    found = [int(n) for n in as_places(np.asarray(given).reshape(-1), path)]
    if len(found) != 2 or min(found) < 0:
        raise ActivationError(f"{path} has the shape {tuple(found)}; (row, feature) is expected")
    return found[0], found[1]


def as_numbers(given: Any, path: Path) -> Array:
    """Return activations as float32 or float64, which every value of theirs fits as well as it was.

    Raises
    ------
    ActivationError
        If they are no real numbers.
    """
    found: Array = np.asarray(given)
    if found.dtype.kind not in "fiub":
        raise ActivationError(f"{path}: activations are {found.dtype}; real numbers (float16, float32 …) are expected")
    small = found.dtype.itemsize <= 2 or found.dtype == np.float32
    return found.astype(np.float32 if small else np.float64, copy=False)


def _refuse_outside(path: Path, found: Array, n: int, where: Callable[[Any], str], what: str) -> None:
    if len(bad := np.flatnonzero((found < 0) | (found >= n))):
        at = bad[0]
        fix = ". Give --n-features (n_features) where the SAE has more" if what == "feature" and found[at] > 0 else ""
        raise ActivationError(
            f"{path}: {what} {found[at]} of {where(at)} is none of {n:,} {what}s, which are numbered from 0{fix}"
        )


def _entry_of(row: Array, feature: Array) -> Callable[[Any], str]:
    return lambda at: f"the entry (row {row[at]}, feature {feature[at]})"


def _joined(parts: list[Any], dtype: Any = np.float32) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def iterate(size: int, step: int = SLICE) -> Iterator[slice]:
    """Yield slices of at most `step` that cover `size`."""
    for begin in range(0, size, step):
        yield slice(begin, min(begin + step, size))
