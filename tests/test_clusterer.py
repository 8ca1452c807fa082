from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone, is_clusterer
from sklearn.exceptions import NotFittedError
from sklearn.metrics import silhouette_samples
from sklearn.model_selection import GridSearchCV, ShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted

import gpuclust
from gpuclust import schema
from gpuclust.config import Config
from gpuclust.errors import ActivationError, ConfigError, GpuclustError, InputError, SelectionError
from tests import arrays
from tests.fuzzing import fuzz, one_error
from tests.strategies import JUNK, activations, sae_like

SETTINGS = {"select": {"sparsity_max": 1.01}, "umap": {"n_epochs": 20}}


def test_feature_clusterer_is_cluster_features_in_scikit_learns_manner() -> None:
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
        "communities": {"n_neighbors": 6},
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
    with pytest.raises(InputError, match="has no parameter 'min_sample'; it has n_components, n_neighbors"):
        model.set_params(min_sample=3)
    with pytest.raises(ActivationError):
        model.fit(np.zeros(3))


PLAIN = {"select": {"sparsity_max": 2.0, "entropy_high": 99.0}, "cluster": {"method": "distances"}}


def small(**more: Any) -> gpuclust.FeatureClusterer:
    """Settings with which three columns can be clustered."""
    return gpuclust.FeatureClusterer(
        **{"n_neighbors": 2, "min_cluster_size": 2, "min_samples": 1, "config": PLAIN, **more}
    )


BLOBS = (
    "check_estimators_overwrite_params", "check_estimators_fit_returns_self", "check_readonly_memmap_input",
    "check_fit_idempotent", "check_fit_check_is_fitted", "check_n_features_in",
)  # fmt: skip
ROWS = "asks for a label per row, of rows in three groups: labels_ has one per column, and there are two columns"
TWO = "has two columns, and clusters of columns need three; `test_checks_of_scikit_learn_with_six_columns` gives six"
EXPECTED = {"check_clustering": ROWS, **dict.fromkeys(BLOBS, TWO)}


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """scikit-learn's checks; those of 1.6.0 can be imported only so where array_api_compat is installed."""
    with monkeypatch.context() as during:
        during.setenv("SCIPY_ARRAY_API", "1")
        from sklearn.utils import estimator_checks
    return estimator_checks


def test_checks_of_scikit_learn(checks: Any) -> None:
    found = checks.check_estimator(small(), expected_failed_checks=EXPECTED, on_fail=None, on_skip=None)
    bad = [f"{one['check_name']}: {one['exception']!r}" for one in found if one["status"] == "failed"]
    assert bad == []
    assert {one["check_name"] for one in found if one["status"] == "xfail"} == set(EXPECTED)
    assert sum(one["status"] == "passed" for one in found) > 30


@pytest.mark.parametrize("name", BLOBS)
def test_checks_of_scikit_learn_with_six_columns(name: str, checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "make_blobs", partial(checks.make_blobs, n_features=6))
    rows = np.random.RandomState.normal

    def wider(self: np.random.RandomState, loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
        return rows(self, loc, scale, (size[0], 6) if isinstance(size, tuple) else size)

    generator = type("Wider", (np.random.RandomState,), {"normal": wider})
    monkeypatch.setattr(checks.np.random, "RandomState", generator)
    getattr(checks, name)("FeatureClusterer", small())


def test_it_is_a_clusterer_of_columns() -> None:
    data = sae_like(80, 60)
    model = small()
    assert is_clusterer(model)
    with pytest.raises(NotFittedError):
        check_is_fitted(model)
    assert not hasattr(model, "predict")
    labels = model.fit_predict(data)
    check_is_fitted(model)
    assert labels.shape == model.labels_.shape == (60,) == (model.n_features_in_,)
    assert not hasattr(model, "feature_names_in_")
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.labels_, model.labels_)
    assert "FeatureClusterer" in model._repr_html_inner()
    assert "min_cluster_size=2" in repr(model)
    np.testing.assert_array_equal(make_pipeline(small()).fit_predict(data), labels)
    assert (labels == small(config=Config.model_validate(PLAIN)).fit_predict(data)).all()
    for other in (
        sparse.csr_array(data.astype(np.float32)),
        torch.tensor(data),
        data.tolist(),
        np.asfortranarray(data),
    ):
        np.testing.assert_array_equal(small().fit_predict(other), labels)


def test_columns_have_names() -> None:
    data = sae_like(80, 60)
    frame = pd.DataFrame(data.astype(np.float32), columns=[f"f{i}" for i in range(60)])
    model = small().fit(frame)
    assert model.feature_names_in_.tolist() == list(frame.columns)
    with pytest.raises(ActivationError, match="feature names should match"):
        model.score(frame.rename(columns={"f3": "g3"}))
    with pytest.raises(ActivationError, match="X has 59 features, but FeatureClusterer is expecting 60"):
        small().fit(data).score(data[:, 1:])
    with pytest.raises(ActivationError, match="Feature names are only supported if all"):
        small().fit(frame.rename(columns={"f3": 3}))


def test_what_is_turned_by_its_names_is_refused() -> None:
    data = sae_like(80, 60)
    model = small().fit(xr.DataArray(data, dims=("prompt", "feature")))
    np.testing.assert_array_equal(model.labels_, small().fit(data).labels_)
    ways = {
        r"X\.transpose\('prompt', 'feature'\)$": xr.DataArray(data.T, dims=("feature", "prompt")),
        r"X\.transpose\('prompt', 'latent'\)$": xr.DataArray(data.T, dims=("latent", "prompt")),
        r"X\.T$": pd.DataFrame(data.T).rename_axis("feature"),
    }
    for way, turned in ways.items():
        for take in (small().fit, model.score):
            with pytest.raises(ActivationError, match=rf"scikit-learn splits the first one.*Transpose it: {way}"):
                take(turned)
        with pytest.raises(ValueError, match=r"All the 2 fits failed(.|\n)*Transpose it"):
            GridSearchCV(small(), {"min_samples": [1]}, cv=2).fit(turned)


def test_a_fit_that_fails_leaves_the_one_before() -> None:
    frame = pd.DataFrame(sae_like(80, 40), columns=[f"f{i}" for i in range(40)])
    model = small().fit(frame)
    before = dict(vars(model))
    for bad in (frame.iloc[:, :20] * 0, frame.iloc[:, :20] * np.nan, frame.rename(columns={"f3": 3})):
        with pytest.raises((SelectionError, ActivationError)):
            model.fit(bad)
        assert vars(model) == before
        assert model.score(frame) == small().fit(frame).score(frame)
    assert model.fit(frame.to_numpy()[:, :30]).n_features_in_ == 30
    assert not hasattr(model, "feature_names_in_")


def test_the_score_is_the_silhouette_on_other_prompts() -> None:
    data = sae_like(120, 40)
    model = small().fit(data[:80])
    clustered = model.labels_ >= 0
    assert 0 < clustered.sum() < 40
    columns = data[80:, clustered].T.astype(np.float64)
    expected = silhouette_samples(columns, model.labels_[clustered], metric="cosine").sum() / model.kept_.sum()
    assert model.score(data[80:]) == pytest.approx(expected, abs=1e-12)
    model.labels_ = np.where(model.labels_ == 0, 0, -1)
    assert model.score(data[80:]) == 0


def test_a_grid_search_splits_prompts() -> None:
    data = sae_like(160, 60)
    halves = ShuffleSplit(n_splits=2, test_size=0.5, random_state=0)
    search = GridSearchCV(small(), {"min_cluster_size": [2, 4], "min_samples": np.array([1, 3])}, cv=halves).fit(data)
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    np.testing.assert_array_equal(search.best_estimator_.labels_, small(**search.best_params_).fit(data).labels_)
    train, test = next(halves.split(data))
    assert cross_val_score(small(), data, cv=[(train, test)])[0] == small().fit(data[train]).score(data[test])
    every = np.arange(160)
    whole = GridSearchCV(small(), {"n_neighbors": [2, 3]}, cv=[(every, every)], scoring=lambda m, X: m.labels_.max())
    assert whole.fit(data).best_score_ >= 1


@pytest.mark.parametrize("config", [[1], "umap", 3, {"umap": 3}, {"umap": None}, {"hdbscan": [1]}, {3: 4}])
def test_settings_that_are_none_are_refused(config: Any) -> None:
    with pytest.raises(ConfigError):
        small(config=config).fit(sae_like(30, 20))


def test_errors_are_those_that_other_libraries_raise() -> None:
    with pytest.raises(ValueError, match="n_samples=30 prompts and n_features=2 features") as few:
        small().fit(sae_like(30, 2))
    assert isinstance(few.value, SelectionError)
    for other in (ValueError, TypeError):
        with pytest.raises(other, match="hold dict, not numbers, first for prompt 0 and feature 1") as odd:
            small().fit(np.array([[1.0, {"a": 1}]], dtype=object))
        assert isinstance(odd.value, ActivationError)
    with pytest.raises(ValueError, match="has no parameter 'x'") as parameter:
        small().set_params(min_samples=2, x=3)
    assert isinstance(parameter.value, GpuclustError)


@fuzz(30)
@given(arrays.cases() | activations(30, 30, signed=True).map(lambda values: arrays.Case(values, values)), st.data())
def test_arrays_are_clustered_or_refused(case: arrays.Case, data: st.DataObject) -> None:
    parameters = st.dictionaries(st.sampled_from(["min_cluster_size", "n_neighbors", "metric", "config", "x"]), JUNK)
    model = small()
    with one_error():
        if not data.draw(st.integers(0, 3)):
            model.set_params(**data.draw(parameters))
        labels = model.fit_predict(case.given)
        assert labels.shape == (case.meant.shape[1],)
        assert np.isfinite(model.score(case.given))
