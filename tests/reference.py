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


def association(activations: Array, threshold: float, metric: str) -> Array:
    """Similarities of when columns are active, from sets of rows and one pair at a time: (feature, feature)."""
    n = len(activations)
    rows = [set(np.flatnonzero(abs(column.astype(np.float64)) > threshold)) for column in activations.T]
    found = np.empty((len(rows), len(rows)))
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            found[i, j] = _associated(metric, len(one & other), len(one), len(other), n)
    return found


def _associated(metric: str, both: float, a: int, b: int, n: int) -> float:
    if a == 0 or b == 0:
        return 0.0
    if metric == "jaccard":
        return both / (a + b - both)
    if metric == "dice":
        return 2 * both / (a + b)
    if metric == "overlap":
        return both / min(a, b)
    if a == n or b == n:
        return 0.0
    if metric == "phi":
        n01, n10, n00 = b - both, a - both, n - a - b + both
        return (both * n00 - n01 * n10) / float(np.sqrt(float(a * (n - a)) * float(b * (n - b))))
    lift = (both / n) / ((a / n) * (b / n))
    if metric == "lift":
        return (lift - 1) / (lift + 1)
    if metric == "npmi":
        return float(np.log(lift) / -np.log(both / n)) if both else -1.0
    plain = metric.removeprefix("corrected_")
    chance = _associated(plain, a * b / n, a, b, n)
    return max((_associated(plain, both, a, b, n) - chance) / (1 - chance), -1.0)
