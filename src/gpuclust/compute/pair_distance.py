"""The distance of one pair of features, compiled by numba: `neighbors.distances` operation by operation.

Both give the same bits but for logarithms, which numpy takes several at a time (of npmi).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from gpuclust.compute import neighbors
from gpuclust.compute.gram import Gram, length_share
from gpuclust.config import CORRECTED, CORRELATIONS
from gpuclust.hardware import jit
from gpuclust.types import Array

jit.keep_kernels()
_compile: Any = numba.njit(nogil=True, cache=True, error_model="numpy")

KINDS = {
    name: number
    for number, name in enumerate(
        ("cosine", "correlation", "partial_correlation", "phi", "dot", "lift", "npmi", "jaccard", "dice", "overlap",
         *(CORRECTED + plain for plain in ("jaccard", "dice", "overlap")))
    )
}  # fmt: skip
LINEAR, PHI, DOT, LIFT, NPMI, JACCARD, OVERLAP = 4, 3, 4, 5, 6, 7, 9
PLAIN = 3  # from a corrected metric's number to that of its plain one
ZERO = neighbors.ZERO["d"]


@dataclass(frozen=True, eq=False)
class Sides:
    """What a distance needs of each feature besides the products of a pair, (feature,), float64.

    Attributes
    ----------
    kind : int
        Of KINDS.
    n : float
        Rows.
    sums, shares : array
        Σ a, and what a product of the two takes off for chance: Σ a / n; 0 where the metric takes nothing off.
    lengths : array
        `gram.length_share`; 0 where the metric takes nothing off.
    left : array
        Squares that are left; counts of the metrics of the activity.
    scale : array
        1 / √ of what is left, 0 where nothing is: what linear metrics multiply by.
    largest : float
        The largest Σ a².
    """

    kind: int
    n: float
    sums: Array
    shares: Array
    lengths: Array
    left: Array
    scale: Array
    largest: float


def sides(view: Gram, metric: str, largest: float) -> Sides:
    """Return what distances need of each feature.

    Parameters
    ----------
    view : Gram
        Of the view's rows; its tiles are not read.
    metric : str
        One of KINDS.
    largest : float

    Raises
    ------
    ActivationError
        As `neighbors.distances`.
    """
    each = {"squares": view.squares, "sums": view.sums}
    neighbors.refuse_beyond_float32(metric, "d", each, each, largest, np)
    n, zero = view.n_prompts, np.zeros(len(view.sums))
    sums, shares, lengths, left = zero, zero, zero, view.squares
    if metric in CORRELATIONS:
        sums, shares = view.sums, view.sums / n
        left = np.maximum(view.squares - view.sums**2 / n, 0)
    if metric == "partial_correlation":
        lengths = length_share(view)
        left = neighbors.left_of(left, lengths, ZERO)
    spread = view.squares * (1 - view.squares / n) if metric == "phi" else left
    scale = np.divide(1, np.sqrt(spread), out=np.zeros(len(left)), where=spread > 0)
    return Sides(KINDS[metric], n, sums, shares, lengths, view.squares if metric == "phi" else left, scale, largest)


@_compile
def distance(
    kind: int, both: float, n: float, sum_a: float, share_b: float, length_a: float, length_b: float, a: float,
    b: float, largest: float,
) -> Any:  # fmt: skip
    """Return the distance of two features, float32: `neighbors.distances`.

    Parameters
    ----------
    kind : int
    both : float
        Entry of G.
    n : float
    sum_a, share_b, length_a, length_b : float
        Of `Sides`.
    a, b : float
        What is left of both.
    largest : float
    """
    if kind == DOT:
        found = largest - both
    elif kind < PHI:
        scale = math.sqrt(a * b)
        found = 1 - (both - sum_a * share_b - length_a * length_b) / scale if scale > 0 else 1.0
    else:
        found = 1 - _similarity(kind, both, a, b, n)
    if found < ZERO and kind != DOT:
        found = 0.0
    return np.float32(max(found, 0.0) + 0.0)


@_compile
def _similarity(kind: int, both: float, a: float, b: float, n: float) -> Any:
    """`association.similarity` of one pair."""
    if kind == PHI:
        return _ratio(both - a * b / n, math.sqrt(a * (1 - a / n)) * math.sqrt(b * (1 - b / n)))
    if kind == LIFT:
        return _ratio(both * n - a * b, both * n + a * b)
    if kind == NPMI:
        if both <= 0:
            return -1.0 if a * b > 0 else 0.0
        if n in (a, b):
            return 0.0
        return _ratio(math.log(max(both, 1.0) * n / max(a * b, 1.0)), -math.log(max(both, 1.0) / n))
    if kind <= OVERLAP:
        return _plain(kind, both, a, b)
    chance = _plain(kind - PLAIN, a * b / n, a, b)
    return max(_ratio(_plain(kind - PLAIN, both, a, b) - chance, 1 - chance), -1.0)


@_compile
def _plain(kind: int, both: float, a: float, b: float) -> Any:
    if kind == JACCARD:
        return _ratio(both, a + b - both)
    if kind == OVERLAP:
        return _ratio(both, min(a, b))
    return _ratio(2 * both, a + b)


@_compile
def _ratio(over: float, under: float) -> float:
    return over / under if under > 0 else 0.0
