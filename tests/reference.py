"""Slow, plain formulas that the tests hold the engine against; the notebook's own among them."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
GUARD = 1e-10


def notebook_statistics(activations: Array, threshold: float) -> dict[str, Array]:
    """Entropy, varentropy and sparsity as the notebook wrote them: one feature at a time, with its 1e-10 guards."""
    n_prompts, n_features = activations.shape
    result = {name: np.zeros(n_features) for name in ("entropy", "varentropy", "sparsity", "mean", "std", "max")}
    result["n_active"] = np.zeros(n_features, dtype=np.int64)
    for feature in range(n_features):
        a = np.abs(activations[:, feature].astype(np.float64))
        p = a / (a.sum() + GUARD)
        surprise = -p * np.log(p + GUARD)
        result["entropy"][feature] = surprise.sum()
        result["varentropy"][feature] = np.mean((surprise - surprise.mean()) ** 2)
        result["n_active"][feature] = np.sum(a > threshold)
        result["sparsity"][feature] = np.sum(a > threshold) / n_prompts
        result["mean"][feature], result["std"][feature], result["max"][feature] = a.mean(), a.std(), a.max()
    return result


def notebook_filter(s: dict[str, Array], low: float, high: float, sparse: float, dense: float, active: int) -> Array:
    """The notebook's filter: strict bounds."""
    inside = (s["entropy"] > low) & (s["entropy"] < high) & (s["sparsity"] > sparse) & (s["sparsity"] < dense)
    return inside & (s["n_active"] >= active)


def notebook_quadrants(entropy: Array, varentropy: Array) -> list[str]:
    """Quadrants of features that are all kept."""
    h, v = np.median(entropy), np.median(varentropy)
    names = []
    for e, w in zip(entropy, varentropy, strict=True):
        if e <= h:
            names.append("Flowing" if w <= v else "Exploring")
        else:
            names.append("Careful" if w <= v else "Resampling")
    return names


def distances(activations: Array, metric: str) -> Array:
    """All distances between columns, from the vectors themselves: (feature, feature), float64."""
    columns = activations.astype(np.float64).T
    if metric == "correlation":
        columns = columns - columns.mean(axis=1, keepdims=True)
    if metric in ("cosine", "correlation"):
        norm = np.linalg.norm(columns, axis=1, keepdims=True)
        unit = np.divide(columns, norm, out=np.zeros_like(columns), where=norm > 0)
        return 1 - unit @ unit.T
    products = columns @ columns.T
    if metric == "dot":
        return np.diag(products).max() - products
    return np.sqrt(((columns[:, None] - columns[None]) ** 2).sum(axis=2))
