"""Duplicates: features that are copies of one another are one point to the clustering.

HDBSCAN needs an order among neighbours, and copies are at distance 0 from each other: ties go by feature number, in all
prompts and in both halves alike, so that any number of copies of one feature makes clusters, and stable ones. So of
every set of copies the first kept feature, its *point*, takes part; the others get its label, its probability and its
place in the map after. ``hdbscan.min_cluster_size`` counts points, and copies of one point alone are no cluster.

Copies have the same direction where the metric is cosine or correlation (one is the other times a positive number), and
the same activations where it is euclidean or dot. They are found by a random projection of the prompts to a few
dimensions (`neighbors.sketch`): of unit columns, projections differ by about half the distance |u - v| each, and those
of copies by rounding. `SAME` is about where the cosine distance, |u - v|² / 2, is 0 to `neighbors` (`neighbors.ZERO`):
float16 activations that differ at all, but for entries below a thousandth of the norm, are farther apart. The
projection adds up over prompts: 32 bytes a feature, however many prompts there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from gpuclust.compute import neighbors
from gpuclust.compute.reductions import State
from gpuclust.errors import SelectionError
from gpuclust.types import Array

SIZE, SEED = 4, 0  # of the sketch: two columns that are no copies agree in all four once in 1e20 pairs
SAME = 1e-6  # in every dimension, of unit columns
ALIKE = 1e-4  # in statistics of copies, from sums that were rounded otherwise
DIRECTION, COLUMN = "direction", "column"


def candidates(moments: State, kept: Array) -> Array:
    """Return the kept features that may be copies of another: those that share all statistics without a scale.

    Parameters
    ----------
    moments : dict of arrays, (feature,)
        A state of ``reductions.MOMENTS``.
    kept : array, (kept,), int

    Returns
    -------
    array, (candidate,), int
        Feature numbers, ascending. Usually there are none, and the prompts need not be read.
    """
    total = np.where(moments["sum"] > 0, moments["sum"], 1)[kept]
    entropy = np.log(total) - moments["sum_log"][kept] / total
    shares = [entropy, moments["max"][kept] / total, np.sqrt(moments["u0"][kept]) / total]
    group = _split(moments["n_nonzero"][kept], shares, ALIKE)
    chosen: Array = kept[np.bincount(group)[group] > 1]
    return chosen


def sketch(blocks: Iterable[tuple[int, Array]], n_features: int) -> Array:
    """Project features at random: (feature, SIZE), float64; adds up over prompts.

    Parameters
    ----------
    blocks : iterable of (int, array (prompt, feature))
        The number of the first prompt, and the activations.
    """
    return neighbors.sketch(blocks, n_features, SIZE, SEED)


def points(sketched: Array, squares: Array, n_nonzero: Array, by: str) -> Array:
    """Find the copies among features.

    Parameters
    ----------
    sketched : array, (feature, SIZE), float64
    squares : array, (feature,), float64
        Σ a² over the prompts.
    n_nonzero : array, (feature,), int
        Prompts on which each fires: the same of copies.
    by : {"direction", "column"}

    Returns
    -------
    array, (feature,), int64
        The first feature that each is a copy of: itself, where it is none.

    Examples
    --------
    >>> values = np.array([[1.0, 0.0, 2.0, 3.0], [2.0, 1.0, 4.0, 6.0]])
    >>> squares, fires = (values**2).sum(axis=0), (values != 0).sum(axis=0)
    >>> points(sketch([(0, values)], 4), squares, fires, "direction").tolist()
    [0, 1, 0, 0]
    >>> points(sketch([(0, values)], 4), squares, fires, "column").tolist()
    [0, 1, 2, 3]
    """
    norm = np.sqrt(squares)
    safe = np.where(norm > 0, norm, 1)
    columns = [*(sketched / safe[:, None]).T, norm > 0]
    if by == COLUMN:
        columns.append(np.log(safe))
    group = _split(n_nonzero, columns, SAME)
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    found: Array = first[inverse.ravel()]
    return found


def _split(group: Array, columns: Sequence[Array], apart: float) -> Array:
    """Split groups wherever a column has a gap of more than `apart`, one column after another: (feature,), int64."""
    group = np.unique(group, return_inverse=True)[1].ravel()
    for column in columns:
        order = np.lexsort((column, group))
        gaps = (np.diff(group[order]) > 0) | (np.diff(column[order].astype(np.float64)) > apart)
        split = np.empty(len(group), np.int64)
        split[order] = np.concatenate([[0], np.cumsum(gaps)])
        group = split
    return group


def find(blocks: Iterable[tuple[int, Array]], moments: State, kept: Array, by: str | None) -> Array:
    """Find the copies among the kept features, reading the prompts only if some may be.

    Parameters
    ----------
    blocks : iterable of (int, array (prompt, SAE feature))
        Of all features; not begun where no two kept features look alike.
    moments : dict of arrays, (SAE feature,)
        A state of ``reductions.MOMENTS``.
    kept : array, (kept,), int
    by : {"direction", "column"}, optional
        None: there are none.

    Returns
    -------
    array, (kept,), int
        The kept feature that each is a copy of, in the SAE's numbers: itself, where it is none.
    """
    found = np.array(kept)
    chosen = candidates(moments, kept) if by is not None else kept[:0]
    if by is not None and len(chosen):
        sketched = sketch(((first, block[:, chosen]) for first, block in blocks), len(chosen))
        squares, fires = moments["u0"][chosen], moments["n_nonzero"][chosen]
        found[np.searchsorted(kept, chosen)] = chosen[points(sketched, squares, fires, by)]
    return found


def mark(table: pd.DataFrame, point: Array, needed: int) -> tuple[pd.DataFrame, int]:
    """Add the column ``duplicate_of`` to the feature table, and count the copies.

    Parameters
    ----------
    table : DataFrame
        With ``feature``, ascending, and ``kept``.
    point : array, (kept,), int
        As from `find`.
    needed : int
        The fewest points that the later stages can work with.

    Raises
    ------
    SelectionError
        If there are fewer.
    """
    kept = table.loc[table["kept"], "feature"].to_numpy()
    copies = point != kept
    refuse_few(len(kept), int((~copies).sum()), needed)
    column = pd.array([pd.NA] * len(table), dtype="Int64")
    column[np.flatnonzero(table["kept"])[copies]] = point[copies]
    return table.assign(duplicate_of=column), int(copies.sum())


def refuse_few(n_kept: int, n_points: int, needed: int) -> None:
    """Refuse kept features that are copies of too few.

    Parameters
    ----------
    n_kept, n_points : int
        Kept features, and those of them that are no copies.
    needed : int
        The fewest points that the later stages can work with.

    Raises
    ------
    SelectionError
    """
    if n_points < needed:
        raise SelectionError(
            f"the filter keeps {n_kept} features, but {n_kept - n_points} of them are exact duplicates of others: "
            f"n_neighbors, min_samples and min_cluster_size need at least {needed} that differ, and there are "
            f"{n_points}. Widen select.*, or lower those three"
        )


def spread_neighbors(indices: Array, distances: Array, place: Array) -> tuple[Array, Array]:
    """Return the neighbours of all kept features, from those of the points.

    Parameters
    ----------
    indices, distances : array, (point, k)
        Counting the points.
    place : array, (kept,), int
        As from ``tables.feature_table.point_rows``.

    Returns
    -------
    indices, distances : array, (kept, k)
        Counting the kept features; those of a copy are its point's, but for itself in column 0.
    """
    first = np.unique(place, return_index=True)[1]  # a point comes before its copies
    spread = first[indices].astype(indices.dtype)[place]
    spread[:, 0] = np.arange(len(place))
    return spread, distances[place]
