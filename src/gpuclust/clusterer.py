"""Clusterer: `cluster_features` in the manner of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.errors import InputError
from gpuclust.results.run import cluster_features
from gpuclust.types import Array


class FeatureClusterer:
    """Cluster the features of activations in hand, in the manner of scikit-learn.

    Parameters
    ----------
    n_components, n_neighbors, min_dist, metric, random_state : optional
        Of UMAP; default as in ``config.py``.
    min_cluster_size, min_samples, cluster_selection_epsilon : optional
        Of HDBSCAN; default as in ``config.py``.
    config : mapping, optional
        Further settings, such as ``{"select": {"sparsity_max": 1.0}}``; the parameters above go before it.

    Attributes
    ----------
    labels_ : int array, (feature,)
        A label per column of X: -1 for noise, and for features that the filter removed (see `kept_`).
    probabilities_ : array, (feature,), float64
        Strength of membership; 0 where `labels_` is -1.
    embedding_ : array, (feature, component), float32, or None without UMAP
        NaN where not kept.
    kept_ : bool array, (feature,)
    result_ : FeatureClusters

    Examples
    --------
    >>> FeatureClusterer(n_components=5).get_params()["n_components"]
    5
    """

    _umap = ("n_components", "n_neighbors", "min_dist", "metric", "random_state")
    _hdbscan = ("min_cluster_size", "min_samples", "cluster_selection_epsilon")

    def __init__(
        self, *, n_components: int | None = None, n_neighbors: int | None = None, min_dist: float | None = None,
        metric: str | None = None, random_state: int | None = None, min_cluster_size: int | None = None,
        min_samples: int | None = None, cluster_selection_epsilon: float | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.min_dist = min_dist
        self.metric = metric
        self.random_state = random_state
        self.min_cluster_size = min_cluster_size
        self.min_samples = min_samples
        self.cluster_selection_epsilon = cluster_selection_epsilon
        self.config = config

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, for scikit-learn's `clone` and searches."""
        return {name: getattr(self, name) for name in (*self._umap, *self._hdbscan, "config")}

    def set_params(self, **params: Any) -> FeatureClusterer:
        """Set parameters by name."""
        for name, value in params.items():
            if name not in self.get_params():
                raise InputError(f"FeatureClusterer has no parameter {name!r}; it has {', '.join(self.get_params())}")
            setattr(self, name, value)
        return self

    def fit(self, X: Any, y: None = None) -> FeatureClusterer:
        """Filter, embed and cluster the columns of X.

        Parameters
        ----------
        X : array, (prompt, feature)
            As `cluster_features` takes it.
        y : ignored

        Raises
        ------
        ActivationError, SelectionError, ConfigError
            As `cluster_features`.
        """
        data = dict(self.config or {})
        for section, names in (("umap", self._umap), ("hdbscan", self._hdbscan)):
            given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
            data[section] = {**data.get(section, {}), **given}
        result = cluster_features(X, data)
        table = result.features
        self.kept_ = table["kept"].to_numpy()
        self.labels_ = table["label"].fillna(schema.NOISE).to_numpy(dtype=np.int32)
        self.probabilities_ = table["probability"].fillna(0.0).to_numpy()
        self.embedding_ = None
        if result.embedding is not None:
            self.embedding_ = np.full((len(table), result.embedding.shape[1]), np.nan, np.float32)
            self.embedding_[self.kept_] = result.embedding
        self.result_ = result
        return self

    def fit_predict(self, X: Any, y: None = None) -> Array:
        """Fit, and return `labels_`."""
        return self.fit(X).labels_
