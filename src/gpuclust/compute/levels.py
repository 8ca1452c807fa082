"""Levels: do the features of a cluster fire on the same token, near one another, or only in the same prompt?

Pairs of features that fire together are counted on tokens, in windows of SPAN tokens and in prompts, for clusters and
for controls: the same clusters of features that fire about as often. A state holds sums and adds up in any order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gpuclust.compute.windows import windows
from gpuclust.schema import NOISE
from gpuclust.types import Array

State = dict[str, Array]

SPAN = 16  # tokens of a window: features that fire within one are near
GROUPS = 16  # of prompts, each left out once for the standard error
LEAST = 1.5  # times as often as controls: what a level takes
CONFIDENCE = 0.95  # of the intervals
LEVELS = {"token": "token", "near": "near", "prompt": "topic"}  # finest first, and the word of each
ENTRIES = 1 << 20  # of a piece of a block, whole prompts


def nothing(sets: Array) -> State:
    """Return the state of no prompts at all: `merge` with it changes nothing.

    Parameters
    ----------
    sets : array, (set, feature), int
        As of `chunk`.
    """
    n_sets, n_features = sets.shape
    shape = (n_sets, GROUPS, int(sets.max(initial=NOISE)) + 1)
    return {
        "token": np.zeros(shape, np.int64),
        "token_expected": np.zeros(shape),
        "near": np.zeros(shape, np.int64),
        "near_expected": np.zeros(shape),
        "prompt": np.zeros(shape, np.int64),
        "fires": np.zeros((GROUPS, n_features), np.int64),
        "prompts": np.zeros(GROUPS, np.int64),
    }


def chunk(fired: Any, prompt: Array, sets: Array) -> State:
    """Count the pairs of features of each cluster that fire together in a block of whole prompts.

    Of the features of a cluster k fire on a token, m in a window (`windows.windows` of SPAN tokens; a prompt's last may
    be shorter) and q in a prompt. A feature f fires on n_f of the L tokens of a window, in w_f of the n_w windows of a
    prompt, and in Q_f of all N prompts. Pairs observed, and expected if firings lay anywhere in what is next larger:

    - token: Σ_tokens k (k - 1) / 2; tokens anywhere in their window: Σ_windows [(Σ_f n_f)² - Σ_f n_f²] / 2L
    - near: Σ_windows m (m - 1) / 2; windows anywhere in their prompt: Σ_prompts [(Σ_f w_f)² - Σ_f w_f²] / 2n_w
    - prompt: Σ_prompts q (q - 1) / 2; independent features: [(Σ_f Q_f)² - Σ_f Q_f²] / 2N, which `finish` computes

    Parameters
    ----------
    fired : scipy.sparse.csr_array, (token, feature)
        A feature fires on a token where its entry is not 0; each entry is there once.
    prompt : array, (token,), int
        Number of each token's prompt, from 0, ascending. No other block has tokens of these prompts.
    sets : array, (set, feature), int
        Row 0 are the labels of the clustering, -1 is noise; each other row is a control (`controls.exchanged`).

    Returns
    -------
    dict of arrays
        ``token``, ``near``, ``prompt``: pairs observed, (set, group, cluster), int64; ``token_expected``,
        ``near_expected``: (set, group, cluster), float64; ``fires``: Q_f, (group, feature), int64; ``prompts``: N,
        (group,), int64. A prompt is of the group of its number modulo GROUPS.

    Notes
    -----
    Nothing dense has a row a token. A block is worked on in pieces of whole prompts with up to ENTRIES entries, or of
    one prompt with more; beside the block that takes some 100 bytes an entry of a piece, and twice the state.
    """
    state = nothing(sets)
    starts = np.flatnonzero(np.diff(prompt, prepend=-1))
    members = [_indicator(labels, state["token"].shape[2]) for labels in sets]
    for begin, end in _pieces(fired.indptr[[*starts, len(prompt)]]):
        own = slice(starts[begin], starts[end] if end < len(starts) else len(prompt))
        _count(state, fired[own], prompt[own], members)
    return state


def merge(states: Iterable[State]) -> State:
    """Add up states of the same sets, at least one, in whatever order they come.

    Parameters
    ----------
    states : iterable of dict
        Of `chunk`, `nothing` or `merge`.
    """
    return functools.reduce(lambda a, b: {name: a[name] + b[name] for name in a}, states)


def finish(state: State, sets: Array) -> dict[str, Array]:
    """Say on which level the features of each cluster fire together, more than controls do.

    The ratio of a level is the pairs observed over those expected (`chunk`); its excess is the ratio of the cluster
    over the mean ratio of its controls, the clusters of the same number in the other sets, of those that have one. The
    interval is of log(excess), which is computed again with each group of prompts left out (the jackknife; Efron and
    Tibshirani 1993, chapter 11): of G groups that have prompts, l_g being log(excess) without group g, the standard
    error is √((G - 1) / G · Σ_g (l_g - mean)²), and the interval has Student's t with G - 1 degrees of freedom.

    Parameters
    ----------
    state : dict of arrays
        Of `chunk` or `merge`.
    sets : array, (set, feature), int
        As of `chunk`; without a control there is nothing to compare with, and all is NaN.

    Returns
    -------
    dict of arrays, (cluster,)
        ``token_excess``, ``token_low``, ``token_high`` and the same of near and prompt, float64: the excess and its
        95% interval. NaN where no pairs were expected, or none observed of controls. The interval is NaN, too, where
        that is so with some group left out, or the excess is 0: the pairs of one group of prompts make no interval.
        ``level``, object: ``token`` where its excess is at least LEAST and the interval above 1; else ``near`` or
        ``topic`` where that is so of near or prompt; else ``none``. None where all that was found is NaN.

    Notes
    -----
    The word is the finest level on which the features have more in common than matched features do. Coarser levels
    follow from it: what fires on the same token fires in the same window and prompt. A finer level does not follow from
    a coarser one, since what it expects is given what the coarser has: features of a topic have no excess on tokens.
    A prompt of up to SPAN tokens is one window, which says nothing of near. The interval is over prompts: how far
    controls differ from one another is not in it, so LEAST is needed beside it.
    """
    used = state["prompts"] > 0
    parts = np.concatenate([np.ones((1, GROUPS)), 1 - np.eye(GROUPS)[used]])  # all groups, and all but each
    found: dict[str, Array] = {}
    for name in LEVELS:
        excess = _excess(parts @ state[name], _expected(state, sets, name, parts))
        half = _half(np.log(np.where(excess > 0, excess, np.nan))[1:])
        found[f"{name}_excess"] = excess[0]
        found[f"{name}_low"], found[f"{name}_high"] = excess[0] * np.exp(-half), excess[0] * np.exp(half)
    return found | {"level": words(found)}


def words(found: dict[str, Array]) -> Array:
    """Return the word of each cluster, as `finish` does, from its excesses and the lower ends of their intervals.

    Parameters
    ----------
    found : dict of arrays, (cluster,), float64
        ``token_excess``, ``token_low``, and the same of near and prompt.

    Returns
    -------
    array, (cluster,), object
    """
    level = np.full(found["token_excess"].shape, "none", object)
    known = np.zeros(level.shape, bool)
    for name, word in reversed(LEVELS.items()):
        excess, low = found[f"{name}_excess"], found[f"{name}_low"]
        level[(excess >= LEAST) & (low > 1)] = word
        known |= ~np.isnan(excess)
    level[~known] = None
    return level


def _half(log: Array) -> Array:
    """Half the interval of logarithms, each with one group left out: (group, cluster) to (cluster,)."""
    from scipy.special import stdtrit

    n = len(log)
    if n < 2:
        return np.full(log.shape[1], np.nan)
    error = np.sqrt((n - 1) / n * ((log - log.mean(axis=0)) ** 2).sum(axis=0))
    half: Array = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * error
    return half


def _expected(state: State, sets: Array, name: str, parts: Array) -> Array:
    """Pairs expected of the groups of each part, (set, part, cluster)."""
    if name != "prompt":
        return parts @ state[f"{name}_expected"]
    fires, n_prompts = parts @ state["fires"], parts @ state["prompts"]
    members = [_indicator(labels, state[name].shape[2]) for labels in sets]
    pairs = np.array([((fires @ own) ** 2 - fires**2 @ own) / 2 for own in members])
    expected: Array = pairs / np.maximum(n_prompts, 1)[:, None]
    return expected


def _excess(observed: Array, expected: Array) -> Array:
    """Ratio of set 0 over the mean ratio of the others, from (set, part, cluster): (part, cluster)."""
    ratio = np.divide(observed, expected, out=np.full(expected.shape, np.nan), where=expected > 0)
    counts = np.count_nonzero(~np.isnan(ratio[1:]), axis=0)
    controls = np.nansum(ratio[1:], axis=0) / np.maximum(counts, 1)
    excess: Array = np.divide(ratio[0], controls, out=np.full(controls.shape, np.nan), where=controls > 0)
    return excess


def _pieces(edges: Array) -> Iterator[tuple[int, int]]:
    """Ranges of prompts with up to ENTRIES entries, at least one prompt; `edges` are where each begins, and the end."""
    begin = 0
    while begin < len(edges) - 1:
        end = max(int(np.searchsorted(edges, edges[begin] + ENTRIES, "right")) - 1, begin + 1)
        yield begin, end
        begin = end


def _count(state: State, fired: Any, prompt: Array, members: list[Any]) -> None:
    """Add the pairs of whole prompts to a state."""
    window = windows(prompt, SPAN)
    first = np.flatnonzero(np.diff(window, prepend=-1))
    _, number, n_windows = np.unique(prompt[first], return_inverse=True, return_counts=True)
    tokens = _fires(fired)
    in_window = _together(window) @ tokens  # n_f
    windows_fired = _fires(in_window)
    in_prompt = _together(number) @ windows_fired  # w_f
    prompts_fired = _fires(in_prompt)
    group = prompt % GROUPS
    of_window, of_prompt = group[first], group[first][np.flatnonzero(np.diff(number, prepend=-1))]
    for s, own in enumerate(members):
        _add(state["token"][s], tokens, own, group)
        _add(state["token_expected"][s], in_window, own, of_window, np.bincount(window))
        _add(state["near"][s], windows_fired, own, of_window)
        _add(state["near_expected"][s], in_prompt, own, of_prompt, n_windows)
        _add(state["prompt"][s], prompts_fired, own, of_prompt)
    state["fires"] += (_indicator(of_prompt, GROUPS).T @ prompts_fired).toarray()
    state["prompts"] += np.bincount(of_prompt, minlength=GROUPS)


def _add(total: Array, times: Any, member: Any, group: Array, size: Array | None = None) -> None:
    """Add [(Σ_f x_f)² - Σ_f x_f²] / 2 of each row and cluster, over the row's size, to (group, cluster).

    Without sizes all x_f are 1.
    """
    both = times @ member
    squares = both if size is None else _of(times, times.data**2) @ member  # entries are in the same order
    pairs = (both.data**2 - squares.data) // 2
    some = np.flatnonzero(pairs)
    row = np.repeat(np.arange(both.shape[0]), np.diff(both.indptr))[some]
    place = group[row] * total.shape[1] + both.indices[some]
    weights = pairs[some] if size is None else pairs[some] / size[row]
    total += np.bincount(place, weights, minlength=total.size).reshape(total.shape).astype(total.dtype)


def _fires(times: Any) -> Any:
    """1 where an entry is not 0: sparse, int64."""
    return _of(times, (times.data != 0).astype(np.int64))


def _of(rows: Any, data: Array) -> Any:
    """Sparse rows with other values."""
    from scipy.sparse import csr_array

    return csr_array((data, rows.indices, rows.indptr), shape=rows.shape)


def _together(group: Array) -> Any:
    """(group, row): 1 where a row is of a group; groups ascend from 0, none left out."""
    return _indicator(group, int(group[-1]) + 1).T.tocsr()


def _indicator(group: Array, n: int) -> Any:
    """(row, group): 1 where a row is of a group, which is -1 where it is of none; sparse, int64."""
    from scipy.sparse import csr_array

    some = group >= 0
    starts = np.concatenate([[0], np.cumsum(some)])
    return csr_array((np.ones(starts[-1], np.int64), group[some], starts), shape=(len(group), n))
