from __future__ import annotations

import numpy as np
import pytest

import gpuclust
from gpuclust import schema
from gpuclust.errors import ActivationError, InputError
from tests.strategies import sae_like

SETTINGS = {"select": {"sparsity_max": 1.01}, "umap": {"n_epochs": 20}}


def test_feature_clusterer_is_cluster_features_in_scikit_learns_manner() -> None:
    from sklearn.base import clone

    data = sae_like(80, 60)
    data[:, 7] = 0  # dies in the filter
    model = gpuclust.FeatureClusterer(
        n_components=3, n_neighbors=6, min_cluster_size=3, min_samples=2, random_state=1, config=SETTINGS
    )
    assert clone(model).get_params() == model.get_params()
    assert model.fit(data) is model
    same = {
        "select": SETTINGS["select"], "hdbscan": {"min_cluster_size": 3, "min_samples": 2},
        "umap": {"n_epochs": 20, "n_components": 3, "n_neighbors": 6, "random_state": 1},
    }  # fmt: skip
    expected = gpuclust.cluster_features(data, same)
    assert model.labels_.shape == (60,)
    assert not model.kept_[7]
    np.testing.assert_array_equal(model.labels_[model.kept_], expected.labels)
    np.testing.assert_array_equal(model.embedding_[model.kept_], expected.embedding)
    np.testing.assert_array_equal(model.probabilities_[model.kept_], expected.probabilities)
    assert (model.labels_[~model.kept_] == schema.NOISE).all()
    assert (model.probabilities_[model.labels_ == schema.NOISE] == 0).all()
    assert np.isnan(model.embedding_[~model.kept_]).all()


def test_feature_clusterer_refuses_what_it_does_not_know() -> None:
    model = gpuclust.FeatureClusterer()
    assert model.set_params(min_samples=3).min_samples == 3
    with pytest.raises(InputError, match="has no parameter 'min_sample'; it has n_components"):
        model.set_params(min_sample=3)
    with pytest.raises(ActivationError):
        model.fit(np.zeros(3))
