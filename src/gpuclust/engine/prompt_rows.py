"""What a pass reads of the prompts: blocks of the kept features, permuted where that is asked, and their lengths."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from gpuclust import schema
from gpuclust.hardware import budget
from gpuclust.storage import store
from gpuclust.types import Array

log = logging.getLogger("gpuclust")


def permuted(block: Array, first: int, seed: int) -> Array:
    """Permute each feature's activations over the prompts of a block; the same for the same first prompt and seed.

    Whatever each feature does by itself stays as it is, and what features do together goes.

    Parameters
    ----------
    block : array, (prompt, feature)
    first : int
        Number of its first prompt.
    seed : int
    """
    return np.random.default_rng([seed, first]).permuted(block, axis=0)


def read_blocks(
    out: Path, kept: Array, plan: budget.Plan, permute: int | None = None, first: int = 0, stop: int | None = None
) -> Iterator[Array]:
    """Yield blocks of the kept features of some prompts, at most ``plan.rows`` of them at a time.

    With `permute`, features are permuted within blocks of `budget.PERMUTED_ROWS` prompts counted from the very first,
    so that neither memory nor the share of a worker changes what comes out.

    Parameters
    ----------
    out, kept, plan, first, stop
        As in `gram_task`; by default all prompts.
    permute : int, optional
        Seed.
    """
    path, size = out / schema.ACTIVATIONS, budget.PERMUTED_ROWS
    if permute is None:
        yield from (block[:, kept] for _, block in store.read_rows(path, plan.rows, first, stop))
        return
    n_prompts = store.open_array(path).shape[0]
    stop = n_prompts if stop is None else stop
    for start, block in store.read_rows(path, size, first - first % size, min(n_prompts, -(-stop // size) * size)):
        mixed = permuted(block[:, kept], start, permute)[max(first - start, 0) : stop - start]
        yield from (mixed[at : at + plan.rows] for at in range(0, len(mixed), plan.rows))


def prompt_lengths(out: Path, metrics: Collection[str]) -> Array | None:
    """Return the lengths of all prompts, in tokens, where one of the metrics takes them out; else None.

    Parameters
    ----------
    out : Path
        Folder with the table of prompts.
    metrics : collection of str

    Returns
    -------
    array, (prompt,), int64, or None
    """
    if "partial_correlation" not in metrics:
        return None
    lengths = store.read_table(out / schema.PROMPTS, ["n_tokens"])["n_tokens"].to_numpy()
    if len(np.unique(lengths)) == 1:
        log.info("neighbors: all prompts are equally long, or their length is not known: partial correlations given "
                 "the length are correlations")  # fmt: skip
    return lengths
