"""Clusterer: `cluster_features` in the manner of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from gpuclust import schema
from gpuclust.compute import validity
from gpuclust.config import Config
from gpuclust.errors import ActivationError, ParameterError, SelectionError
from gpuclust.hardware import budget
from gpuclust.results.inputs import as_activations, is_turned
from gpuclust.results.parameters import merged
from gpuclust.results.run import cluster_features
from gpuclust.types import Array


class FeatureClusterer(ClusterMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Cluster the features of activations in hand, in the manner of scikit-learn.

    scikit-learn's clusterers label the rows of X. This one labels its *columns*, the features, because rows are the
    prompts that features are measured on. So ``labels_`` and what ``fit_predict`` returns have ``n_features_in_``
    entries, and splits of the rows, as in `GridSearchCV`, are splits of the prompts. There is no ``predict``: a feature
    that was not there has no activations.

    X is (prompt, feature). `cluster_features` turns what is (feature, prompt) by its names; here that is refused, for
    scikit-learn splits the first axis whatever it is called.

    Parameters
    ----------
    method : {"communities", "umap", "distances", "dbscan"}, optional
        As ``cluster.method``; default communities.
    resolution : float, optional
        Of communities: larger finds more and smaller clusters; default where they are found again most.
    n_neighbors : int, optional
        Of a feature, itself included: in the graph of communities, and in UMAP's.
    n_components, min_dist, metric, random_state : optional
        Of UMAP, and of its map by every method; `metric` and `random_state` are communities', too.
    min_cluster_size, min_samples, cluster_selection_epsilon : optional
        Of HDBSCAN; `min_cluster_size` is every method's.
    check_halves : bool, optional
        As of `cluster_features`.
    config : Config or mapping, optional
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
    stability_ : array, (cluster,), float64, or None
    found_again_ : float or None
        As of `FeatureClusters`, where halves of the prompts were clustered apart.
    result_ : FeatureClusters
    n_features_in_ : int
    feature_names_in_ : array, (feature,)
        Names of the columns, where X is a DataFrame whose names are all text.

    Examples
    --------
    >>> FeatureClusterer(n_components=5).get_params()["n_components"]
    5

    Which settings give clusters that hold on other prompts? Rows are split, columns are clustered on one part, and
    `score` looks at them on the other:

    >>> from sklearn.model_selection import GridSearchCV, ShuffleSplit
    >>> halves = ShuffleSplit(n_splits=2, test_size=0.5, random_state=0)
    >>> search = GridSearchCV(FeatureClusterer(), {"min_cluster_size": [5, 10, 20]}, cv=halves)
    >>> search.fit(activations).best_params_  # doctest: +SKIP
    {'min_cluster_size': 10}
    >>> search.best_estimator_.labels_  # of all prompts  # doctest: +SKIP
    """

    _sections: ClassVar = {
        "cluster": ("method",),
        "communities": ("resolution",),
        "umap": ("n_components", "min_dist", "metric", "random_state"),
        "hdbscan": ("min_cluster_size", "min_samples", "cluster_selection_epsilon"),
    }

    def __init__(
        self, *, n_components: int | None = None, n_neighbors: int | None = None, min_dist: float | None = None,
        metric: str | None = None, random_state: int | None = None, min_cluster_size: int | None = None,
        min_samples: int | None = None, cluster_selection_epsilon: float | None = None, method: str | None = None,
        resolution: float | None = None, check_halves: bool | None = None,
        config: Config | Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.min_dist = min_dist
        self.metric = metric
        self.random_state = random_state
        self.min_cluster_size = min_cluster_size
        self.min_samples = min_samples
        self.cluster_selection_epsilon = cluster_selection_epsilon
        self.method = method
        self.resolution = resolution
        self.check_halves = check_halves
        self.config = config

    def set_params(self, **params: Any) -> FeatureClusterer:
        """Set parameters by name.

        Raises
        ------
        ParameterError
            If there is no such parameter.
        """
        known = [*signature(type(self)).parameters]
        for name in params:
            if name not in known:
                raise ParameterError(f"FeatureClusterer has no parameter {name!r}; it has {', '.join(known)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def fit(self, X: Any, y: Any = None) -> FeatureClusterer:
        """Filter, embed and cluster the columns of X.

        Parameters
        ----------
        X : array, (prompt, feature)
            As `cluster_features` takes it: also sparse, a tensor, or a DataFrame; but not (feature, prompt) by names.
        y : ignored

        Raises
        ------
        ActivationError, SelectionError, ConfigError
            As `cluster_features`; what was fitted before stays as it is.
        """
        sections = {name: {key: getattr(self, key) for key in keys} for name, keys in self._sections.items()}
        settings = merged(self.config, self.n_neighbors, sections)
        fresh = FeatureClusterer()  # takes the names and the number of features until they have clusters
        data = fresh._checked(X, reset=True)
        try:
            result = cluster_features(data, settings, check_halves=self.check_halves)
        except SelectionError as error:
            shape = f"n_samples={data.shape[0]} prompts and n_features={data.shape[1]} features"
            raise SelectionError(f"{error} (X has {shape})") from error
        table = result.features
        embedding = None
        kept = table["kept"].to_numpy()
        if result.embedding is not None:
            embedding = np.full((len(table), result.embedding.shape[1]), np.nan, np.float32)
            embedding[kept] = result.embedding
        self.__dict__.pop("feature_names_in_", None)
        self.__dict__.update({name: value for name, value in fresh.__dict__.items() if name.endswith("_in_")})
        self.kept_ = kept
        self.labels_ = table["label"].fillna(schema.NOISE).to_numpy(dtype=np.int32)
        self.probabilities_ = table["probability"].fillna(0.0).to_numpy()
        self.embedding_ = embedding
        self.stability_ = result.stability
        self.found_again_ = result.found_again
        self.result_ = result
        return self

    def fit_predict(self, X: Any, y: Any = None) -> Array:
        """Fit, and return `labels_`: an entry per column of X.

        Parameters
        ----------
        X, y
            As in `fit`.
        """
        return self.fit(X).labels_

    def score(self, X: Any, y: Any = None) -> float:
        """Return how well the clusters hold on some prompts: their mean cosine silhouette, noise counted as 0.

        Between -1 and 1, and 0 where there are fewer than two clusters. On the prompts of `fit` it is an optimist's;
        give others.

        Parameters
        ----------
        X : array, (prompt, feature)
            With the features of `fit`, on any prompts.
        y : ignored

        Returns
        -------
        float
            Silhouettes (Rousseeuw 1987) of the clustered features, summed, over the number of kept features.

        Raises
        ------
        ActivationError
            If X has other features, or is (feature, prompt) by names.
        NotFittedError
            Of scikit-learn.
        """
        check_is_fitted(self)
        data = self._checked(X, reset=False)
        clustered = np.flatnonzero(self.labels_ >= 0)
        labels = self.labels_[clustered]
        sizes = np.bincount(labels)
        if len(sizes) < 2:
            return 0.0
        starts = range(0, len(data), budget.MAX_ROWS)
        blocks = [data[start : start + budget.MAX_ROWS, clustered] for start in starts]
        norms = np.sqrt(sum((block.astype(np.float64) ** 2).sum(axis=0) for block in blocks))
        means = validity.silhouette(validity.sums(blocks, norms, labels), labels)
        return float((means * sizes).sum() / self.kept_.sum())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _checked(self, X: Any, reset: bool) -> Array:
        """X as an array, its features counted and named, or compared with those of `fit`."""
        if is_turned(X):
            way = f"X.transpose({', '.join(map(repr, X.dims[::-1]))})" if hasattr(X, "dims") else "X.T"
            raise ActivationError(
                "X is (feature, prompt) by the names of its axes, and scikit-learn splits the first one: its folds "
                f"would be of features. Transpose it: {way}"
            )
        data = as_activations(X)
        try:
            validate_data(self, X if hasattr(X, "columns") else data, skip_check_array=True, reset=reset)
        except (ValueError, TypeError) as error:
            raise ActivationError(f"features of X: {error}") from error
        return data
