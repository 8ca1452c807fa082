"""Replication: do the clusters of another SAE rise and fall over the same prompts, and write in the same directions?

A cluster's score on a prompt is the mean over its features of |a| / (its standard deviation). Scores of two runs are
correlated over the prompts that they share, given the prompts' lengths; a cluster's match is the other run's cluster
with the largest correlation. Controls go the same way: random sets of this run's features against the other's clusters,
and this run's clusters against random sets of the other's.

A state holds sums over prompts and adds up in any order; it is as large as clusters times clusters, for each control.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np

from gpuclust.compute import topk
from gpuclust.compute.evidence import SURE
from gpuclust.types import Array

State = dict[str, Array]

HELD = 0.75  # share of the squared length of a cluster's decoder rows that its subspace holds
DRAWS = 32  # controls of either kind, at least
LEAST = 0.7  # correlation of a replicated cluster: half of the variance in common
TINY = 1e-10  # share of a variance that rounding leaves of nothing
REPLICATED, PARTLY, NOT = WORDS = ("replicated", "partly", "not")


def nothing(n_sets: int, n_own: int, n_other: int) -> State:
    """Return the state of no prompts at all: `merge` with it changes nothing.

    Parameters
    ----------
    n_sets : int
        The clustering and its controls.
    n_own, n_other : int
        Clusters of either run.
    """
    return {
        "n": np.zeros(()), "length": np.zeros(2),
        "own": np.zeros((3, n_sets, n_own)), "other": np.zeros((3, n_sets, n_other)),
        "own_sets": np.zeros((n_sets, n_own, n_other)), "other_sets": np.zeros((n_sets, n_own, n_other)),
    }  # fmt: skip


def chunk(own: Array, other: Array, length: Array) -> State:
    """Sum over a block of prompts.

    Parameters
    ----------
    own, other : array, (set, prompt, cluster), float32
        Scores (`prediction.scores`) of either run on the same prompts: set 0 of the clusters, the others of controls.
    length : array, (prompt,), numbers
        Of the prompts, in tokens.

    Returns
    -------
    dict of arrays, float64
        ``n``, prompts; ``length``, Σ l and Σ l²; ``own`` and ``other``, Σ x, Σ x² and Σ x l, (3, set, cluster);
        ``own_sets``, Σ x y of this run's sets with the other's clusters, and ``other_sets`` of this run's clusters with
        the other's sets, both (set, own cluster, other cluster).
    """
    x, y, long = own.astype(np.float64), other.astype(np.float64), length.astype(np.float64)
    n_sets, n, n_own = x.shape
    every_x, every_y = (np.ascontiguousarray(np.moveaxis(one, 0, 1)).reshape(n, -1) for one in (x, y))
    return {
        "n": np.array(float(len(long))),
        "length": np.array([long.sum(), long @ long]),
        "own": np.stack([x.sum(axis=1), (x**2).sum(axis=1), long @ x]),
        "other": np.stack([y.sum(axis=1), (y**2).sum(axis=1), long @ y]),
        "own_sets": (every_x.T @ y[0]).reshape(n_sets, n_own, -1),
        "other_sets": np.moveaxis((x[0].T @ every_y).reshape(n_own, n_sets, -1), 1, 0),
    }


def merge(states: Iterable[State]) -> State:
    """Add up states of the same sets, at least one, in whatever order they come."""
    return functools.reduce(lambda a, b: {name: a[name] + b[name] for name in a}, states)


def slopes(state: State, side: str) -> Array:
    """Return by how much scores rise with a token of length, by least squares; 0 where all prompts are equally long.

    Parameters
    ----------
    state : dict of arrays
        Of `chunk` or `merge`.
    side : {"own", "other"}

    Returns
    -------
    array, (set, cluster), float64
    """
    n, (long, squares) = state["n"], state["length"]
    spread = squares - long**2 / n
    if spread <= TINY * squares:
        return np.zeros(state[side].shape[1:])
    found: Array = (state[side][2] - state[side][0] * long / n) / spread
    return found


def correlations(state: State) -> tuple[Array, Array]:
    """Return the correlations of scores given the prompts' lengths (partial correlations; Fisher 1924).

    Parameters
    ----------
    state : dict of arrays
        Of `chunk` or `merge`.

    Returns
    -------
    own_sets, other_sets : array, (set, own cluster, other cluster), float64
        As in `chunk`; equal in set 0. -1 where a score is the same on all prompts, but for their lengths.
    """
    n, long = state["n"], state["length"][0]
    slope = {side: slopes(state, side) for side in ("own", "other")}
    with_length = {side: state[side][2] - state[side][0] * long / n for side in slope}
    scale = {}
    for side in slope:
        total, squares, _ = state[side]
        left = squares - total**2 / n - slope[side] * with_length[side]
        scale[side] = np.sqrt(np.where(left > TINY * squares, left, np.nan))
    found = []
    for name, a, b in (("own_sets", slice(None), slice(1)), ("other_sets", slice(1), slice(None))):
        x, y = state["own"][0][a, :, None], state["other"][0][b, None, :]
        product = state[name] - x * y / n - slope["own"][a, :, None] * with_length["other"][b, None, :]
        r = np.clip(product / (scale["own"][a, :, None] * scale["other"][b, None, :]), -1, 1)
        found.append(np.where(np.isnan(r), -1.0, r))
    return found[0], found[1]


def strongest(scores: Array, slope: Array, length: Array, number: Array, k: int) -> Array:
    """Return the prompts of a block on which every set's score is largest, its length taken out.

    Parameters
    ----------
    scores : array, (set, prompt, cluster), float32
    slope : array, (set, cluster)
        Of `slopes`.
    length, number : array, (prompt,)
        Tokens, and the number of each prompt, below 2³².
    k : int

    Returns
    -------
    array, (set times cluster, k), uint64
        Sorted keys, of which the lower half is a prompt's number; `topk.NOTHING` where fewer have a score above 0.
        Those of two blocks side by side, through `topk.smallest`, are those of both together.
    """
    left = (scores - slope[:, None, :] * length[:, None]).astype(np.float32)
    bits = left.view(np.int32)
    rising = np.where(bits < 0, ~bits, bits ^ np.int32(-(2**31))).view(np.uint32)  # in the order of the values
    keys = (~rising).astype(np.uint64) << np.uint64(32) | number.astype(np.uint64)[:, None]
    keys[scores <= 0] = topk.NOTHING
    found: Array = topk.smallest(keys.transpose(0, 2, 1).reshape(-1, scores.shape[1]), k)
    return found


def jaccard(a: Array, b: Array) -> float:
    """Return the Jaccard index of two lists of `strongest`; 0 where either is empty."""
    first, second = (topk.unpack(one[one != topk.NOTHING])[1] for one in (a, b))
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / max(len(first) + len(second) - both, 1)


def subspace(rows: Array, held: float = HELD) -> Array:
    """Return an orthonormal basis of the directions that rows have most in common, (direction, d), float64.

    The first right singular vectors, as many as hold a share of the rows' squared length: all that rows span would be
    half of the space for as many features as d / 2, whatever they are.

    Parameters
    ----------
    rows : array, (feature, d)
        Decoder rows of length 1; of rows of zeros there is no direction.
    held : float
        In (0, 1].
    """
    _, size, basis = np.linalg.svd(np.asarray(rows, np.float64), full_matrices=False)
    share = np.cumsum(size**2)
    n = int(np.searchsorted(share, held * share[-1] * (1 - 1e-9))) + 1 if share[-1] > 0 else 0
    found: Array = basis[:n]
    return found


def overlap(a: Array, b: Array) -> float:
    """Return the mean squared cosine of the principal angles between two subspaces (Björck and Golub 1973).

    Parameters
    ----------
    a, b : array, (direction, d)
        Orthonormal bases; there are as many angles as the smaller has directions.

    Returns
    -------
    float
        1: one lies in the other; about max(len(a), len(b)) / d for random ones. NaN where one is empty.
    """
    return float(((a @ b.T) ** 2).sum() / min(len(a), len(b))) if len(a) and len(b) else float("nan")


def above(value: Array, kinds: Sequence[Array]) -> Array:
    """Return how rarely a control lies as far above the others as a cluster does, of the kind where that is least rare.

    How far is in standard deviations of the cluster's own controls, of all for it, of all others for a control. What
    lies as far is counted among the controls of all clusters: (1 + k) / (1 + all). Largest correlations are skewed, so
    that Student's t would find too many; by rank among its own controls no cluster would be below 1 / (1 + draws).

    Parameters
    ----------
    value : array, (cluster,)
    kinds : sequence of array, (draw, cluster)
        Three draws at least. Of correlations, give arctanh.

    Returns
    -------
    array, (cluster,), float64
        NaN where a value or its controls of a kind are, and where these do not differ at all.
    """
    found = np.zeros(len(value))
    for controls in kinds:
        draws = len(controls)
        total, squares = controls.sum(axis=0), (controls**2).sum(axis=0)
        mean = (total - controls) / (draws - 1)  # of the others
        spread = np.sqrt(np.maximum((squares - controls**2) / (draws - 1) - mean**2, 0) * (draws - 1) / (draws - 2))
        with np.errstate(invalid="ignore", divide="ignore"):
            others = (controls - mean) / (spread * np.sqrt(draws / (draws - 1)))
            own = (value - controls.mean(axis=0)) / (controls.std(axis=0, ddof=1) * np.sqrt(1 + 1 / draws))
        pool = np.sort(others[np.isfinite(others)])
        p = (1 + len(pool) - np.searchsorted(pool, own)) / (1 + len(pool))
        p[~np.isfinite(own) | (np.ptp(controls, axis=0) < 1e-9)] = np.nan
        found = np.maximum(found, p)  # NaN stays
    return found


def words(r: Array, q: Array, mutual: Array, angles_q: Array | None) -> Array:
    """Return the word of every cluster.

    Parameters
    ----------
    r, q : array, (cluster,), float64
        Correlation with the match, and q of it.
    mutual : array, (cluster,), bool
        Whether each is its match's best match, too.
    angles_q : array, (cluster,), float64, optional
        Of the angles; None where the two runs have no space in common.

    Returns
    -------
    array, (cluster,), object
        ``replicated``: q at most SURE, a correlation of LEAST or more, mutual, and angles_q at most SURE where there
        are angles. ``partly``: q at most SURE, but not all of the rest. ``not``. None where q is not known.
    """
    sure = q <= SURE
    whole = sure & mutual & (r >= LEAST)
    if angles_q is not None:
        whole &= angles_q <= SURE
    found = np.where(whole, REPLICATED, np.where(sure, PARTLY, NOT)).astype(object)
    found[np.isnan(q)] = None
    return found
