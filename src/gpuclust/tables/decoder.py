"""Decoder: what the SAE's decoder says about clusters, next to how their features fire over prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpuclust.types import Array

N_SETS = 200  # random sets of each size
BLOCK = 1 << 24  # values gathered at a time


def unit_rows(decoder: Array) -> Array:
    """Scale the decoder's rows to length 1; a row of zeros stays one. (feature, d), float32."""
    norm = np.linalg.norm(decoder, axis=1, keepdims=True)
    scaled: Array = (decoder / np.where(norm > 0, norm, 1)).astype(np.float32)
    return scaled


def cohesion(unit: Array, clusters: Sequence[Array], pool: Array, seed: int = 0) -> dict[str, Array]:
    """Compare the decoder cosine inside each cluster with random sets of as many features.

    The cosine of a set of n unit rows u is the mean over its pairs, (‖Σ u‖² - n) / (n (n - 1)).

    Parameters
    ----------
    unit : array, (feature, d), float32
        As from `unit_rows`.
    clusters : sequence of int arrays
        Rows of each cluster, two at least.
    pool : int array
        Rows that random sets are drawn from, without replacement: the kept features.
    seed : int
        Of the drawing; sets of one size are drawn once, for all clusters of that size.

    Returns
    -------
    dict of arrays, (cluster,), float64
        ``decoder_cosine``; ``decoder_cosine_random``, the mean over N_SETS random sets; ``decoder_cosine_p``, the share
        of sets, the cluster itself among them, whose cosine is at least the cluster's: (1 + k) / (1 + N_SETS).
    """
    rng = np.random.default_rng(seed)
    drawn: dict[int, Array] = {}
    own, expected, p = (np.empty(len(clusters)) for _ in range(3))
    for c, rows in enumerate(clusters):
        size = len(rows)
        if size not in drawn:
            drawn[size] = np.array([_cosine(unit, rng.choice(pool, size, replace=False)) for _ in range(N_SETS)])
        own[c] = _cosine(unit, rows)
        expected[c] = drawn[size].mean()
        p[c] = (1 + (drawn[size] >= own[c]).sum()) / (1 + N_SETS)
    return {"decoder_cosine": own, "decoder_cosine_random": expected, "decoder_cosine_p": p}


def _cosine(unit: Array, rows: Array) -> float:
    """Mean cosine over the pairs of a set of rows; rows of zeros count as orthogonal to all."""
    step = max(1, BLOCK // unit.shape[1])
    total = np.zeros(unit.shape[1])
    squares = 0.0
    for start in range(0, len(rows), step):
        part = unit[rows[start : start + step]]
        total += part.sum(axis=0, dtype=np.float64)
        squares += float(np.einsum("ij,ij->", part, part))
    return float((total @ total - squares) / (len(rows) * (len(rows) - 1)))


def promoted(unit: Array, clusters: Sequence[Array], unembedding: Array, n: int) -> Array:
    """Find the output tokens that each cluster's mean decoder direction promotes most.

    The logits are d W_U, with d the mean of the cluster's unit decoder rows: the direct path from the SAE's hook to the
    output, without the layers between and without the final normalisation.

    Parameters
    ----------
    unit : array, (feature, d), float32
    clusters : sequence of int arrays
        Rows of each cluster.
    unembedding : array, (d, vocabulary), float32
        W_U.
    n : int
        Tokens a cluster, at least 1.

    Returns
    -------
    int array, (cluster, n)
        Token ids, strongest first.
    """
    n = min(n, unembedding.shape[1])
    found = np.empty((len(clusters), n), dtype=np.int64)
    step = max(1, BLOCK // unembedding.shape[1])
    for start in range(0, len(clusters), step):
        directions = np.stack([unit[rows].mean(axis=0) for rows in clusters[start : start + step]])
        for c, logits in enumerate(directions @ unembedding, start):
            best = np.argpartition(-logits, n - 1)[:n]
            found[c] = best[np.lexsort((best, -logits[best]))]
    return found
