"""What tells a cluster's effect from chance: features like its own, its change turned elsewhere, and the test."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclust.types import Array

NEAR = 20  # features most like one, of which a control is drawn
FLOOR = 1e-6  # nats: a smaller divergence counts as this, which rounding reaches
WIDTH = 0.1  # of the neighbourhood of like features, in ranks from 0 to 1
RANK = 1e-4  # of a change's largest part: what is smaller is rounding
LEAST_SPREAD = 0.1  # of the logarithm of excesses: what lies closer together is not told apart


def alike(own: Array, others: Array, times: Array, norm: Array, random: np.random.Generator) -> Array:
    """Draw for each feature one that fires about as often and writes about as much; each once, if there are so many.

    Of the NEAR others nearest in (rank by how often they fire, rank by the norm they write), one is drawn.

    Parameters
    ----------
    own, others : array, (feature,), int
        Places in `times` and `norm`.
    times, norm : array, (all features,), numeric
        On how many prompts each fires, and the norm of what it writes where it does.
    random : numpy Generator

    Returns
    -------
    array, (own feature,), int
        Of `others`.
    """
    place = np.stack([_rank(times), _rank(norm)])
    found = np.empty(len(own), np.int64)
    free = np.ones(len(others), bool)
    for i in random.permutation(len(own)):
        if not free.any():
            free[:] = True
        left = others[free]
        far = ((place[:, left] - place[:, own[i], None]) ** 2).sum(axis=0)
        near = np.argsort(far, kind="stable")[:NEAR]
        found[i] = left[random.choice(near)]
        free[others == found[i]] = False
    return found


def _rank(values: Array) -> Array:
    """Places in order from 0 to 1; equal values have equal ones."""
    ordered = np.sort(values)
    found: Array = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
    return found / max(len(values), 1)


def priorities(own: Array, times: Array, norm: Array, random: np.random.Generator) -> Array:
    """Draw an order of all features in which those that fire and write about as own ones do tend to come first.

    A feature's weight is the mean over own ones of exp(-d² / 2 WIDTH²), d as in `alike`; its priority is
    -ln(u) / weight, u uniform: taking the smallest first draws without replacement by the weights (Efraimidis and
    Spirakis, Information Processing Letters 97, 2006).

    Parameters
    ----------
    own : array, (own feature,), int
    times, norm, random
        As of `alike`.

    Returns
    -------
    array, (feature,), float64
    """
    place = np.stack([_rank(times), _rank(norm)])
    weight = np.full(len(times), np.finfo(np.float32).tiny, np.float64)
    for one in own:
        weight += np.exp(-((place - place[:, one, None]) ** 2).sum(axis=0) / (2 * WIDTH**2)) / len(own)
    found: Array = -np.log1p(-random.random(len(times))) / weight
    return found


def first(fired: Any, count: Array, priority: Array) -> Any:
    """Keep of every row the entries of smallest priority.

    Parameters
    ----------
    fired : scipy.sparse.csr_array, (row, feature), float
    count : array, (row,), int
        Entries that are kept, of as many as the row has.
    priority : array, (feature,), float

    Returns
    -------
    scipy.sparse.csr_array, (row, feature)
    """
    from scipy.sparse import csr_array

    row = np.repeat(np.arange(fired.shape[0]), np.diff(fired.indptr))
    order = np.lexsort([priority[fired.indices], row])  # rows stay where they are
    taken = order[np.arange(len(row)) - fired.indptr[row] < count[row]]
    return csr_array((fired.data[taken], (row[taken], fired.indices[taken])), shape=fired.shape)


def as_long(rows: Array, like: Array) -> Array:
    """Scale rows to the norms of others, (row, d), float32; rows of zeros stay so."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    found: Array = rows * (np.linalg.norm(like, axis=1, keepdims=True) / np.where(norm > 0, norm, 1))
    return found.astype(np.float32)


def parts(change: Array) -> Array:
    """Split a change C = U S Vᵀ into its principal parts, strongest first: return U S, (row, part), float64.

    A part has the sign by which the change lies along it on the whole. Parts below RANK of the strongest are rounding
    and left out. From the eigenvectors of C Cᵀ or CᵀC, whichever is smaller.

    Parameters
    ----------
    change : array, (row, d), float
    """
    c = np.asarray(change, np.float64)
    wide = c.shape[0] < c.shape[1]
    values, vectors = np.linalg.eigh(c @ c.T if wide else c.T @ c)
    size, vectors = np.sqrt(np.maximum(values[::-1], 0)), vectors[:, ::-1]
    kept = size > RANK * size[0]
    found: Array = vectors[:, kept] * size[kept] if wide else c @ vectors[:, kept]
    return found * np.where(found.sum(axis=0) < 0, -1, 1)


def turned(own: Array, directions: Array) -> Array:
    """Turn a change so that it points along other directions, its norms and the angles between its rows kept.

    With the change C = U S Vᵀ, the rows of Vᵀ are replaced by Q, the given directions made orthonormal one after the
    other (QR), the first for the strongest part: (U S Q)(U S Q)ᵀ = C Cᵀ.

    Parameters
    ----------
    own : array, (row, part), float
        Of `parts`.
    directions : array, (direction, d), float
        Those to spare count for nothing; with fewer than parts, the weakest parts are left out.

    Returns
    -------
    array, (row, d), float32
    """
    rank = min(len(directions), own.shape[1])
    q, r = np.linalg.qr(np.asarray(directions[:rank], np.float64).T)
    found: Array = (own[:, :rank] @ (q * np.where(np.diag(r) < 0, -1, 1)).T).astype(np.float32)
    return found


def log_mean(kl: Array) -> Array:
    """Return the mean over prompts of ln KL, what is below FLOOR counted as FLOOR; (prompt, …) to (…), float64."""
    found: Array = np.log(np.maximum(kl, FLOOR)).mean(axis=0)
    return found


def chance(own: Array, null: Array) -> Array:
    """Return the chance that another random set lies as high, one-sided, by Student's t over random sets.

    t = (x - mean) / (s √(1 + 1/n)), n - 1 degrees of freedom; s, the standard deviation of the null, is LEAST_SPREAD
    at least. A share of n sets could not be smaller than 1 / (n + 1), of which no false discovery rate of 5% is had.

    Parameters
    ----------
    own : array, (cluster,), float
        Logarithm of the excess of each.
    null : array, (set,), float
        Of random sets; two at least.

    Returns
    -------
    array, (cluster,), float64
        NaN where `own` is.
    """
    from scipy import stats

    n = len(null)
    spread = max(float(np.std(null, ddof=1)), LEAST_SPREAD)
    found: Array = stats.t.sf((own - null.mean()) / (spread * np.sqrt(1 + 1 / n)), n - 1)
    return found


def same_direction(shift: Array) -> float:
    """Return the mean cosine over pairs of rows, (row, vocabulary); rows of zeros are left out, NaN without a pair.

    Notes
    -----
    Of n unit rows u: (‖Σ u‖² - n) / (n (n - 1)).
    """
    norm = np.linalg.norm(shift, axis=1)
    unit = shift[norm > 0] / norm[norm > 0, None]
    n = len(unit)
    return float(((unit.sum(axis=0) ** 2).sum() - n) / (n * (n - 1))) if n > 1 else float("nan")
