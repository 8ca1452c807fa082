"""The table of features: which take part in the clustering, and what it found for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.types import Array


def is_point(table: pd.DataFrame) -> Array:
    """Return which features of the table take part in the clustering, (feature,), bool: kept and no copy."""
    kept: Array = table["kept"].to_numpy(dtype=bool)
    if "duplicate_of" not in table:  # of a run by an earlier version
        return kept
    return kept & table["duplicate_of"].isna().to_numpy()


def point_rows(table: pd.DataFrame) -> Array:
    """Return the place among the points of every kept feature's point, (kept,), int64.

    ``values[point_rows(table)]`` are the values of all kept features, from those of the points.
    """
    numbers = table["feature"].to_numpy()
    own = table["duplicate_of"].fillna(table["feature"]) if "duplicate_of" in table else table["feature"]
    place: Array = np.searchsorted(numbers[is_point(table)], own[table["kept"]].to_numpy(dtype=np.int64))
    return place


def with_clusters(
    features: pd.DataFrame, result: Any, flat: Array, *, hdbscan_label: Array, noise_reason: Array
) -> pd.DataFrame:
    """Add labels, probability, outlier score, why it is noise, and map of the kept features; null for the others.

    A copy gets what its point has (``compute.duplicates``).

    Parameters
    ----------
    features : DataFrame
        Of all features, with ``feature``, ``kept`` and ``duplicate_of``.
    result : Clustering
        Of the points that were clustered.
    flat : array, (point, 2), float32
        Their map.
    hdbscan_label, noise_reason : array, (point,), int and object
        Label by one UMAP and HDBSCAN, and why each is noise or None.
    """
    table = features.copy()
    mask, place = table["kept"].to_numpy(), point_rows(features)
    empty = pd.array([pd.NA] * len(table), dtype="Int64")

    def spread(name: str, values: Array, null: Any) -> None:
        table[name] = null
        table.loc[mask, name] = values[place]

    spread("label", result.labels, empty)
    spread("probability", result.probabilities, np.nan)
    spread("outlier_score", result.outlier_scores, np.nan)
    spread("hdbscan_label", hdbscan_label, empty)
    spread("noise_reason", noise_reason, None)
    table["noise_reason"] = pd.Series(table["noise_reason"], dtype=schema.text_dtype())
    spread("x", flat[:, 0], np.nan)
    spread("y", flat[:, 1], np.nan)
    return table
