"""The two halves of the prompts: one definition, for runs and for every subset of prompts of a sweep.

Prompts are taken in pairs, in order, and a coin for each pair, from the seed, says which of the two goes into which
half. Only the place of a prompt in its set and the seed decide. So a prefix of a set has the first part of its halves,
any set has halves of equal size, but for a last prompt without a partner, and whatever alternates from prompt to prompt
(two kinds of prompts in turn, as in imported activations) is in both halves alike, as is whatever changes slowly.
"""

from __future__ import annotations

import numpy as np

from gpuclust.types import Array

RULE = "pairs"  # named in the keys of what depends on it: another definition must not find old files


def half_of(n_prompts: int, seed: int) -> Array:
    """Return the half, 0 or 1, of every prompt of a set.

    Parameters
    ----------
    n_prompts : int
    seed : int
        ``Config.seed``.

    Returns
    -------
    array, (prompt,), int64
        The first `n` are those of ``half_of(n, seed)``.

    Examples
    --------
    >>> half_of(7, seed=0).tolist()
    [0, 1, 1, 0, 1, 0, 1]
    >>> half_of(3, seed=0).tolist()
    [0, 1, 1]
    """
    coins = np.random.default_rng(seed).random(-(-n_prompts // 2)) < 0.5
    place = np.arange(n_prompts)
    halves: Array = (place + coins[place // 2]) % 2
    return halves
