"""How far similarities over windows and tokens can be trusted: rows of a prompt are no independent observations.

Measured by leaving out sixteenths of the prompts, one at a time (3,072 paragraphs of a real model, 2,000 features; the
table is in docs/decisions.md). What few rows hold together, a similarity of two features that rarely fire, depends on
the prompts that have them, and the more the larger it is: beside Fisher's error over rows there is one over prompts.
"""

from __future__ import annotations

import numpy as np

from gpuclust.types import Array

PER_PROMPT = 10.0  # times r / prompts, in the variance of r
# Times φ(z) / share / √rows, what the nearest of independent features have (`communities.above_chance`), permuted
# prompts leave: most rows hold neither of two features, so that chance has long tails
CHANCE = {"window": 2.4, "token": 2.0}


def standard_errors(distances: Array, n_rows: int, n_prompts: int) -> Array:
    """Return the standard errors of similarities over windows or tokens.

    (1 - r²) √(1/n + 10 r / p), over n rows of p prompts; r below 0 counts as 0 in the second term.

    Parameters
    ----------
    distances : array, (feature, k), float32
        1 - r, of a cosine or correlation.
    n_rows, n_prompts : int

    Returns
    -------
    array, (feature, k), float32
    """
    r = 1 - distances.astype(np.float64)
    shared = PER_PROMPT * np.maximum(r, 0) / max(n_prompts, 1)
    found: Array = ((1 - r**2) * np.sqrt(1 / max(n_rows, 1) + shared)).astype(np.float32)
    return found


def effective(n_rows: int, n_prompts: int, window: int | None) -> int:
    """Return how many independent prompts leave as much by chance as so many rows.

    Parameters
    ----------
    n_rows, n_prompts : int
        Where there are as many rows as prompts, each row is a prompt.
    window : int, optional
        Tokens of a row; None and 1 where each is one.
    """
    if n_rows <= n_prompts:
        return n_rows
    return max(int(n_rows / CHANCE["token" if window in (None, 1) else "window"] ** 2), 1)
