"""What is changed at the hook to try a set of features, what it is held against, and what becomes of the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpuclust.compute import causal
from gpuclust.engine.cause_rows import PROMPTS, Row, Subject
from gpuclust.extraction import patched
from gpuclust.types import Array

SINGLES = 3  # features of a cluster that are changed one by one
KINDS = {"own": "", "random": "_random", "flipped": "_flipped"}  # of changes, and the ends of their columns
DRAWS = 4  # of the random features that are active on a set's tokens


def passes(features: Array, n_prompts: int) -> Array:
    """Return how many forward passes clusters of so many features take at most, (cluster,), int64."""
    singles = np.minimum(SINGLES, features)
    found: Array = min(PROMPTS, n_prompts) * (2 + 1 + DRAWS + 2 + np.where(singles > 1, 2 * singles, 0))
    return found


def null_passes(n_prompts: int) -> int:
    """Return how many a random set takes, which is tried alone."""
    return min(PROMPTS, n_prompts) * (2 + 1 + DRAWS)


@dataclass(frozen=True, eq=False)
class Changes:
    """What is added at the hook, by prompt.

    Attributes
    ----------
    names : list of str
        ``own``, ``random`` (each draw), ``flipped``, ``noise``; of single features ``single`` and ``single random``.
    values : list of list of arrays
        Of each change, (active, d_out) of each row.
    where : list of list of arrays or None
        Of single features, the positions where each is active.
    """

    names: list[str]
    values: list[list[Array]]
    where: list[list[Array | None]]


def changes(
    x: Subject, own: Array, found: Sequence[Row], factor: float, random: np.random.Generator, alone: bool = False
) -> Changes:
    """Say what is tried on a set's rows.

    ``random`` are as many others as of the set are active on each token, of those that are, drawn in one order for all
    rows in which features come first that fire and write about as the set's; what they write there is scaled to the
    norm of what the set writes.

    Parameters
    ----------
    x : Subject
    own : array, (feature,), int
        Places among the kept features.
    found : sequence of Row
        One at least.
    factor : float
        The features' activations times this are added: -1 takes them out.
    random : numpy Generator
    alone : bool
        Whether ``own`` and ``random`` are all that is wanted.
    """
    from scipy.sparse import csr_array, vstack

    whole = factor * np.concatenate([row.written for row in found])
    count = np.concatenate([(row.acts != 0).sum(axis=1) for row in found])
    fired = vstack([row.others for row in found], format="csr")
    there, column = np.unique(fired.indices, return_inverse=True)
    fired = csr_array((fired.data, column, fired.indptr), shape=(fired.shape[0], len(there)))
    decoder = x.model.directions(x.feature[there])
    named = [("own", whole)]
    for _ in range(DRAWS):
        order = causal.priorities(own, x.times, x.norm, random)[there]
        there_too = np.sign(factor) * (causal.first(fired, count, order) @ decoder)
        named.append(("random", causal.as_long(there_too, whole)))
    where: list[list[Array | None]] = [[None] * len(found) for _ in named]
    if not alone:
        noise = random.standard_normal((len(own), whole.shape[1]))
        named += [("flipped", -whole), ("noise", causal.turned(causal.parts(whole), noise))]
        where += [[None] * len(found)] * 2
        more, at = _singles(x, own, found, factor, random)
        named, where = named + more, where + at
    edges = np.cumsum([len(row.at) for row in found])[:-1]
    return Changes([name for name, _ in named], [np.split(value, edges) for _, value in named], where)


def _singles(
    x: Subject, own: Array, found: Sequence[Row], factor: float, random: np.random.Generator
) -> tuple[list[tuple[str, Array]], list[list[Array | None]]]:
    """The features that write most, each by itself, and the same along the direction of another."""
    others = np.setdiff1d(np.arange(len(x.feature)), own)
    length = np.linalg.norm(x.model.directions(x.feature[own]), axis=1)
    written = sum(np.abs(row.acts).sum(axis=0) for row in found) * length
    strongest = np.argsort(-written, kind="stable")[:SINGLES]
    strongest = strongest[written[strongest] > 0]
    named: list[tuple[str, Array]] = []
    where: list[list[Array | None]] = []
    if len(strongest) < 2:
        return named, where
    instead = causal.alike(own[strongest], others, x.times, x.norm, random)
    for i, other in zip(strongest.tolist(), instead.tolist(), strict=True):
        single = factor * np.concatenate([x.model.written(row.residual, x.feature[own[[i]]]) for row in found])
        turned = causal.turned(causal.parts(single), x.model.directions(x.feature[[other]]))
        named += [("single", single), ("single random", turned)]
        where += 2 * [[row.at[row.acts[:, i] != 0] for row in found]]
    return named, where


def measured(x: Subject, found: Sequence[Row], tried: Changes, meter: patched.Meter) -> dict[str, float]:
    """Try changes on a set's rows, and say what became of the output.

    Parameters
    ----------
    x : Subject
    found : sequence of Row
    tried : Changes
        Of `changes`.
    meter : Meter

    Returns
    -------
    dict of str to float
        Columns of ``schema.VALIDATION_COLUMNS``; NaN for what was not tried.

    Raises
    ------
    OverspentError

    Notes
    -----
    KL and log-probability of a change on a prompt are sums over all of its positions, since what is written on one may
    act on later ones, over the number of active positions; then means over prompts.
    """
    kl, logprob, shift = [], [], np.zeros(1)
    for i, row in enumerate(found):
        own = row.placed([value[i] for value in tried.values])
        outcome = patched.outcome(x.model, row.ids, own, [where[i] for where in tried.where], meter)
        kl.append(outcome.kl.sum(axis=1) / len(row.at))
        logprob.append(outcome.logprob.sum(axis=1) / len(row.at))
        shift = shift + outcome.shift
    name = np.array(tried.names)
    mean, told, height = (
        {key: value[name == key].mean() if (name == key).any() else np.nan for key in (*KINDS, "noise")}
        for value in (np.mean(kl, axis=0), np.mean(logprob, axis=0), causal.log_mean(np.array(kl)))
    )
    return {
        **{f"cause_kl{end}": mean[key] for key, end in KINDS.items()},
        "cause_kl_noise": mean["noise"],
        "cause_excess": np.exp(height["own"] - height["random"]),
        **{f"cause_logprob{end}": told[key] for key, end in KINDS.items()},
        "cause_same_direction": causal.same_direction(shift[name == "single"]),
        "cause_same_direction_random": causal.same_direction(shift[name == "single random"]),
        "cause_prompts": len(found),
    }
