"""Association of features by when they are active: similarities from counts, and their standard errors.

Over n prompts feature i is active on n_i, feature j on n_j, and both are on n_ij: with p = count / n the similarities
are those of `similarity`. Counts add up over blocks of prompts: they are the Gram matrix of the 0/1 activity, whose
diagonal and column sums are the n_i. On the host its sums are float64, exact up to 2^53 prompts; on a GPU each product
of a block is float32, exact up to 2^24 rows, and is added to int32, exact up to `MOST_PROMPTS`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclust.config import CORRECTED
from gpuclust.types import AnyArray, Array

MOST_PROMPTS = 2**31 - 1  # that int32 counts
SLAB, DEVICE_SLAB = 1 << 18, 1 << 22  # elements whose sizes are in float64 at a time


def activity(chunk: AnyArray, threshold: float, xp: Any = np) -> AnyArray:
    """Say where features are active, ``|a| > threshold`` in float64, as ``n_active`` counts them: 0 or 1.

    Parameters
    ----------
    chunk : array, (prompt, feature), float16 or float32
    threshold : float
        As ``extract.activation_threshold``.
    xp : module
        numpy, or cupy for device arrays.

    Returns
    -------
    array, (prompt, feature), C-contiguous: float64 on the host, float16 on a GPU
    """
    active = xp.empty(chunk.shape, xp.float64 if xp is np else xp.float16)
    rows = max(1, (SLAB if xp is np else DEVICE_SLAB) // max(chunk.shape[1], 1))
    for start in range(0, len(chunk), rows):
        active[start : start + rows] = xp.abs(chunk[start : start + rows]).astype(xp.float64) > threshold
    return active


def similarity(metric: str, both: AnyArray, a: AnyArray, b: AnyArray, n: float, xp: Any = np) -> AnyArray:
    """Return how far features are active together, at most 1; from -1 on.

    With x = n_ij / n, u = n_i / n, v = n_j / n, and e = u v, which x is on average where features are independent:

    - jaccard: x / (u + v - x) (Jaccard 1901)
    - dice: 2 x / (u + v) (Dice 1945)
    - overlap: x / min(u, v) (Szymkiewicz 1934, Simpson 1943)
    - corrected_jaccard, corrected_dice, corrected_overlap: (S - S_e) / (1 - S_e), S_e being S at x = e: 0 is chance, 1
      the most, as Cohen (1960) and Hubert and Arabie (1985) correct. Of Dice that is Cohen's kappa, of overlap
      Loevinger's (1947) H. What is below -1 is -1.
    - phi: (x - e) / sqrt(u (1 - u) v (1 - v)), Pearson's correlation of the activities
    - npmi: ln(x / e) / -ln x (Bouma 2009); never together is -1, its limit
    - lift: x / e is the lift (Brin et al. 1997), from 0 to 1 / max(u, v), 1 being chance; the similarity is
      (lift - 1) / (lift + 1), which orders pairs as lift does and lies between -1 and 1

    A feature that is never active, or for those that know chance (all but the first three) always, says nothing of
    others: its similarities are 0, chance.

    Parameters
    ----------
    metric : str
        One of these.
    both : array, float64
        Prompts on which both are active.
    a, b : array, float64
        Prompts on which each is active, broadcast against `both`.
    n : float
        Prompts.
    xp : module
        As in `activity`.

    Returns
    -------
    array, float64
    """
    if metric == "phi":
        return _ratio(both - a * b / n, xp.sqrt(a * (1 - a / n)) * xp.sqrt(b * (1 - b / n)), xp)
    if metric == "lift":
        return _ratio(both * n - a * b, both * n + a * b, xp)
    if metric == "npmi":
        share = xp.maximum(both, 1) / n
        found = _ratio(xp.log(xp.maximum(both, 1) * n / xp.maximum(a * b, 1)), -xp.log(share), xp)
        found = xp.where((a == n) | (b == n), 0, found)  # chance, but for rounding
        return xp.where(both > 0, found, xp.where(a * b > 0, -1.0, 0.0))
    plain = metric.removeprefix(CORRECTED)
    found = _plain(plain, both, a, b, xp)
    if plain == metric:
        return found
    chance = _plain(plain, a * b / n, a, b, xp)
    return xp.maximum(_ratio(found - chance, 1 - chance, xp), -1)


def _plain(metric: str, both: AnyArray, a: AnyArray, b: AnyArray, xp: Any) -> AnyArray:
    if metric == "jaccard":
        return _ratio(both, a + b - both, xp)
    if metric == "dice":
        return _ratio(2 * both, a + b, xp)
    return _ratio(both, xp.minimum(a, b), xp)


def _ratio(over: AnyArray, under: AnyArray, xp: Any) -> AnyArray:
    """Divide; 0 where there is nothing to divide by."""
    return xp.where(under > 0, over / xp.where(under > 0, under, 1), 0.0)


def together(metric: str, found: Array, a: Array, b: Array, n: float) -> Array:
    """Return the prompts on which both features are active: the inverse of `similarity`, to the nearest whole number.

    Parameters
    ----------
    metric : str
    found : array, float
        Similarities above -1.
    a, b, n
        As of `similarity`.

    Returns
    -------
    array, float64
    """
    least, by_chance = np.minimum(a, b), a * b / n
    if metric == "phi":
        both = by_chance + found * np.sqrt(a * (1 - a / n) * b * (1 - b / n))
    elif metric == "lift":
        both = by_chance * (1 + found) / np.maximum(1 - found, 1e-12)
    elif metric == "npmi":
        inside = np.maximum(1 + found, 1e-12)
        both = n * np.exp((np.log(np.maximum(a * b, 1) / n**2)) / inside)
    else:
        plain = metric.removeprefix(CORRECTED)
        if plain != metric:
            chance = _plain(plain, by_chance, a, b, np)
            found = chance + found * (1 - chance)
        both = found * {"jaccard": (a + b) / (1 + found), "dice": (a + b) / 2, "overlap": least}[plain]
    whole: Array = np.clip(np.rint(both), 0, least)
    return whole


def standard_errors(metric: str, found: Array, a: Array, b: Array, n: float) -> Array:
    """Return the standard errors of similarities over a sample of n prompts, by the delta method.

    With f = f(x, u, v) the similarity, as of `similarity`, a prompt adds g = f_x + f_u + f_v where both features are
    active, f_u or f_v where one is, and 0 elsewhere: the error is the standard deviation of that over prompts, by √n.

    Parameters
    ----------
    metric, a, b, n
        As of `similarity`.
    found : array, float
        Similarities above -1.

    Returns
    -------
    array, float64
        0 where a feature is never active or always, and where two are always active together.
    """
    a, b, found = np.broadcast_arrays(*(np.asarray(values, np.float64) for values in (a, b, found)))
    known = (np.minimum(a, b) > 0) & (np.maximum(a, b) < n)
    a, b = np.where(known, a, 1), np.where(known, b, 1)
    x, u, v = together(metric, found, a, b, n) / n, a / n, b / n
    known &= x > 0
    x = np.where(known, x, np.minimum(u, v) / 2)
    by_x, by_u, by_v = _slopes(metric, x, u, v)
    whole = by_x + by_u + by_v
    first, second = np.maximum(u - x, 0), np.maximum(v - x, 0)
    mean = x * whole + first * by_u + second * by_v
    variance = x * whole**2 + first * by_u**2 + second * by_v**2 - mean**2
    errors: Array = np.where(known, np.sqrt(np.maximum(variance, 0) / n), 0)
    return errors


def _slopes(metric: str, x: Array, u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Derivatives of a similarity by x, u and v."""
    if metric == "phi":
        scale = np.sqrt(u * (1 - u) * v * (1 - v))
        phi = (x - u * v) / scale
        by_u, by_v = (
            -other / scale - phi * (1 - 2 * own) / (2 * own * (1 - own)) for own, other in ((u, v), (v, u))
        )  # fmt: skip
        return 1 / scale, by_u, by_v
    if metric == "lift":
        under = (x + u * v) ** 2
        return 2 * u * v / under, -2 * x * v / under, -2 * x * u / under
    if metric == "npmi":
        surprise = -np.log(np.minimum(x, 1 - 1e-12))
        npmi = np.log(x / (u * v)) / surprise
        return (1 + npmi) / (x * surprise), -1 / (u * surprise), -1 / (v * surprise)
    plain = metric.removeprefix(CORRECTED)
    by_x, by_u, by_v = _plain_slopes(plain, x, u, v)
    if plain == metric:
        return by_x, by_u, by_v
    chance = _plain(plain, u * v, u, v, np)
    left = np.maximum(1 - chance, 1e-12)
    part = 1 - (_plain(plain, x, u, v, np) - chance) / left
    e_x, e_u, e_v = _plain_slopes(plain, u * v, u, v)  # of S_e: x is u v there
    return by_x / left, (by_u - part * (e_u + e_x * v)) / left, (by_v - part * (e_v + e_x * u)) / left


def _plain_slopes(metric: str, x: Array, u: Array, v: Array) -> tuple[Array, Array, Array]:
    if metric == "jaccard":
        union = u + v - x
        return (u + v) / union**2, -x / union**2, -x / union**2
    if metric == "dice":
        return 2 / (u + v), -2 * x / (u + v) ** 2, -2 * x / (u + v) ** 2
    least = np.minimum(u, v)
    return 1 / least, np.where(u <= v, -x / least**2, 0), np.where(u <= v, 0, -x / least**2)
