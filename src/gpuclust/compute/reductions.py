"""Reductions over prompts as data: `chunk` makes a state, `combine` merges two, `finalize` reads the result.

States are small, add up in any order, and do not know how the prompts were cut. Sums are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuclust.compute import topk
from gpuclust.types import AnyArray

State = dict[str, AnyArray]

SLAB = 1 << 20  # elements of |a| that are in float64 at a time
DEVICE_SLAB = 1 << 22  # the same on a GPU, where few large kernels beat many small ones


@dataclass(frozen=True)
class Reduction:
    """A mergeable reduction over the prompt axis.

    Attributes
    ----------
    name : str
    fields : mapping of str to str
        Fields of a state and their dtypes.
    chunk, combine, finalize : callable
        ``chunk(activations, ...) -> state``, ``combine(state, state) -> state``, ``finalize(state) -> results``.
    """

    name: str
    fields: Mapping[str, str]
    chunk: Callable[..., State]
    combine: Callable[[State, State], State]
    finalize: Callable[..., dict[str, AnyArray]]

    def merge(self, states: Iterable[State]) -> State:
        """Combine any number of states (at least one)."""
        merged: State | None = None
        for state in states:
            merged = state if merged is None else self.combine(merged, state)
        if merged is None:
            raise ValueError(f"{self.name}: no states to merge")
        return merged


# ---------------------------------------------------------------- moments

ADDITIVE = ("n", "n_active", "n_nonzero", "sum", "sum_log", "u0", "u1", "u2")


def moments_chunk(activations: AnyArray, threshold: float = 0.0, xp: Any = np) -> State:
    """Reduce a chunk of prompts to the moments of every feature.

    With m = abs(a): sum = S = Σ m, sum_log = T = Σ m ln m, u_j = Σ m² lnʲ m, m2 = Σ (m - mean)².

    Parameters
    ----------
    activations : array, (prompt, feature), float16 or float32, host or device
    threshold : float
        A prompt counts as active where abs(a) exceeds it.
    xp : module
        numpy, or cupy for a device array.

    Returns
    -------
    dict of arrays, (feature,)
        The fields of `MOMENTS`; `n` is a scalar array.

    Notes
    -----
    Peak memory beside the input: about 4 x 8 MiB of float64 slabs; on a GPU 6 x 32 MiB.
    """
    n_prompts, n_features = activations.shape
    state = moments_empty(n_features, xp)
    rows = max(1, (SLAB if xp is np else DEVICE_SLAB) // max(n_features, 1))
    for start in range(0, n_prompts, rows):
        magnitude = xp.abs(activations[start : start + rows]).astype(xp.float64)
        n = magnitude.shape[0]
        log = xp.log(xp.where(magnitude > 0, magnitude, 1.0))
        square = magnitude * magnitude
        total = magnitude.sum(axis=0)
        slab = {
            "n": xp.asarray(n, dtype=xp.int64),
            "n_active": (magnitude > threshold).sum(axis=0).astype(xp.int64),
            "n_nonzero": (magnitude > 0).sum(axis=0).astype(xp.int64),
            "sum": total,
            "sum_log": (magnitude * log).sum(axis=0),
            "u0": square.sum(axis=0),
            "max": magnitude.max(axis=0),
        }
        square *= log
        slab["u1"] = square.sum(axis=0)
        square *= log
        slab["u2"] = square.sum(axis=0)
        magnitude -= total / n
        slab["m2"] = (magnitude * magnitude).sum(axis=0)
        state = moments_combine(state, slab)
    return state


def moments_empty(n_features: int, xp: Any = np) -> State:
    """Return the state of no prompts at all, the neutral element of `moments_combine`."""
    state = {name: xp.zeros(n_features, dtype=dtype) for name, dtype in MOMENT_FIELDS.items()}
    state["n"] = xp.zeros((), dtype=xp.int64)
    return state


def moments_combine(a: State, b: State) -> State:
    """Merge two states; m2 by the pairwise update of Chan, Golub and LeVeque (1979)."""
    merged = {name: a[name] + b[name] for name in ADDITIVE}
    merged["max"] = _module(a["max"]).maximum(a["max"], b["max"])
    n_a, n_b = int(a["n"]), int(b["n"])
    merged["m2"] = a["m2"] + b["m2"]
    if n_a and n_b:
        delta = b["sum"] / n_b - a["sum"] / n_a
        merged["m2"] = merged["m2"] + delta * delta * (n_a * n_b / (n_a + n_b))
    return merged


def moments_finalize(state: State) -> dict[str, AnyArray]:
    """Turn a state into statistics of every feature.

    With S, T, u_j as in `moments_chunk`, p = m/S, e = -p ln p, over n prompts:

    - entropy (nats) H = Σ e = ln S - T/S; 0 for a feature that never fires,
    - varentropy (nats²) V = mean(e²) - mean(e)², Σ e² = (u2 - 2 ln S u1 + ln² S u0)/S², mean(e) = H/n,
    - sparsity = n_active / n: the share of prompts where the feature is active,
    - mean, std (divided by n), max of m.

    Returns
    -------
    dict of arrays, (feature,), float64; `n_active` int64
    """
    xp = _module(state["sum"])
    n = max(int(state["n"]), 1)
    total = state["sum"]
    alive = total > 0
    safe = xp.where(alive, total, 1.0)
    log_total = xp.log(safe)
    entropy = xp.where(alive, xp.maximum(log_total - state["sum_log"] / safe, 0.0), 0.0)
    squares = (state["u2"] - 2 * log_total * state["u1"] + log_total**2 * state["u0"]) / (safe * safe)
    varentropy = xp.where(alive, xp.maximum(squares / n - (entropy / n) ** 2, 0.0), 0.0)
    return {
        "entropy": entropy,
        "varentropy": varentropy,
        "sparsity": state["n_active"] / n,
        "n_active": state["n_active"],
        "mean": total / n,
        "std": xp.sqrt(xp.maximum(state["m2"], 0.0) / n),
        "max": state["max"],
    }


def _module(array: AnyArray) -> Any:
    """numpy for host arrays, cupy for device arrays."""
    if not hasattr(array, "get"):
        return np
    import cupy

    return cupy.get_array_module(array)


MOMENT_FIELDS = {
    "n": "int64",
    "n_active": "int64",
    "n_nonzero": "int64",
    "sum": "float64",
    "sum_log": "float64",
    "u0": "float64",
    "u1": "float64",
    "u2": "float64",
    "m2": "float64",
    "max": "float64",
}
MOMENTS = Reduction("moments", MOMENT_FIELDS, moments_chunk, moments_combine, moments_finalize)


# ---------------------------------------------------------------- top examples


def examples_chunk(activations: AnyArray, positions: AnyArray, first_prompt: int, k: int, xp: Any = np) -> State:
    """Keep, for every feature, its k strongest prompts.

    Parameters
    ----------
    activations : array, (prompt, feature), the stored values
    positions : array, (prompt, feature), int32, token with the largest abs(a); -1 is a special token
    first_prompt : int
        Number of the first row.
    k : int
    xp : module
        numpy, or cupy for device arrays.

    Returns
    -------
    dict of arrays, (feature, k)
        `value` float32, `prompt` int64 (-1 where the feature has fewer active prompts), `position` int32; sorted by
        falling abs(value), then by prompt.
    """
    n_features = activations.shape[1]
    state = {name: xp.empty((n_features, k), dtype) for name, dtype in EXAMPLE_FIELDS.items()}
    width = max(1, (SLAB if xp is np else DEVICE_SLAB) // max(len(activations), 1))
    for start in range(0, n_features, width):
        block = slice(start, min(start + width, n_features))
        magnitude = xp.ascontiguousarray(xp.abs(activations[:, block].T), dtype=xp.float32)
        # The bits of floats >= 0 sort like the floats, so their complement sorts the strongest first.
        descending = (~magnitude.view(xp.uint32)).astype(xp.uint64) << xp.uint64(32)
        keys = xp.where(magnitude > 0, descending | xp.arange(len(activations), dtype=xp.uint64), topk.NOTHING)
        chosen = topk.smallest(keys, k, xp)
        empty = chosen == topk.NOTHING
        row = xp.where(empty, 0, chosen & xp.uint64(0xFFFFFFFF)).astype(xp.int64)
        feature = xp.arange(block.start, block.stop)[:, None]
        state["value"][block] = xp.where(empty, 0, activations[row, feature])
        state["prompt"][block] = xp.where(empty, -1, row + first_prompt)
        state["position"][block] = xp.where(empty, -1, positions[row, feature])
    return state


def examples_combine(a: State, b: State) -> State:
    """Merge two states of the same k."""
    k = a["value"].shape[1]
    both = {name: np.concatenate([a[name], b[name]], axis=1) for name in EXAMPLE_FIELDS}
    prompt = np.where(both["prompt"] < 0, np.iinfo(np.int64).max, both["prompt"])
    order = np.lexsort((prompt, -np.abs(both["value"])), axis=1)[:, :k]
    return {name: np.take_along_axis(array, order, axis=1) for name, array in both.items()}


def examples_finalize(state: State) -> dict[str, AnyArray]:
    """Return the examples as a long table: `feature, rank, prompt, value, position`, empty places left out."""
    feature, rank = np.nonzero(state["prompt"] >= 0)
    return {
        "feature": feature.astype(np.int64),
        "rank": rank.astype(np.int64),
        "prompt": state["prompt"][feature, rank],
        "value": state["value"][feature, rank].astype(np.float64),
        "position": state["position"][feature, rank].astype(np.int64),
    }


EXAMPLE_FIELDS = {"value": "float32", "prompt": "int64", "position": "int32"}
EXAMPLES = Reduction("examples", EXAMPLE_FIELDS, examples_chunk, examples_combine, examples_finalize)
