"""Planted clusters: activations with groups of features that truly fire together, and features that do not."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def planted(
    n_prompts: int = 1500, n_clusters: int = 12, size: int = 20, n_noise: int = 120, seed: int = 0,
    long: bool = True,
) -> tuple[Array, Array]:  # fmt: skip
    """Activations (prompt, feature) in float16, and the true labels, -1 for features of no group.

    A group is a topic on 4 to 10% of the prompts. Each of its features fires on 70% of them, with a strength of its
    own, and besides, as features of no group do, on prompts drawn for it alone: 2 to 25% of them, with `long` on long
    prompts more often, so that all features go together a little.
    """
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(n_clusters), size), np.full(n_noise, -1)])
    length = rng.gamma(4.0, 0.25, (n_prompts, 1)) if long else 1.0
    own = np.exp(rng.uniform(np.log(0.02), np.log(0.25), len(labels)))
    chance = np.minimum(own * np.where(labels >= 0, 0.3, 1.0) * length, 0.9)
    topics = rng.random((n_prompts, n_clusters)) < rng.uniform(0.04, 0.10, n_clusters)
    on = np.zeros((n_prompts, len(labels)), bool)
    members = labels >= 0
    on[:, members] = topics[:, labels[members]]
    fires = (rng.random(on.shape) < chance) | (on & (rng.random(on.shape) < 0.7))
    strength = rng.gamma(2.0, 1.0, on.shape) * rng.uniform(0.5, 4.0, len(labels)) + 0.05
    return np.where(fires, strength, 0).astype(np.float16), labels
