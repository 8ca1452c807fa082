"""What `cluster_features` takes by name and returns, and what two halves of the prompts say of it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

import gpuclust
from gpuclust.compute import measures, validity
from gpuclust.compute.halves import half_of
from gpuclust.config import Config
from gpuclust.errors import ConfigError, ParameterError
from gpuclust.results import feature_clusters
from tests.planted import planted
from tests.strategies import sae_like

OPEN: dict[str, Any] = {"select": {"sparsity_max": 1.0, "sparsity_min": 0.0, "entropy_high": 99.0}}
OPEN |= {"umap": {"n_epochs": 11, "n_components": 2}, "consensus": {"members": 3, "n_epochs": 11}}


@pytest.fixture(scope="module")
def data() -> Any:
    return planted(n_prompts=800, n_clusters=5, size=14, n_noise=20)[0]


def same(a: gpuclust.FeatureClusters, b: gpuclust.FeatureClusters) -> bool:
    return np.array_equal(a.labels, b.labels) and np.array_equal(a.probabilities, b.probabilities)


@pytest.mark.parametrize(
    ("named", "sections"),
    [
        ({"method": "umap"}, {"cluster": {"method": "umap"}}),
        ({"method": "distances"}, {"cluster": {"method": "distances"}}),
        ({"resolution": 9.0}, {"communities": {"resolution": 9.0}}),
        ({"n_neighbors": 9}, {"communities": {"n_neighbors": 9}, "umap": {**OPEN["umap"], "n_neighbors": 9}}),
        (
            {"method": "umap", "n_neighbors": 9},
            {"cluster": {"method": "umap"}, "umap": {**OPEN["umap"], "n_neighbors": 9}},
        ),
    ],
)
def test_settings_by_name_are_those_of_the_configuration(data: Any, named: Any, sections: Any) -> None:
    expected = gpuclust.cluster_features(data, {**OPEN, **sections}, check_halves=False)
    by_name = gpuclust.cluster_features(data, OPEN, **named, check_halves=False)
    assert same(by_name, expected)
    assert by_name.method == expected.method == named.get("method", "communities")
    model = clone(gpuclust.FeatureClusterer(config=OPEN, check_halves=False)).set_params(**named)
    assert {name: model.get_params()[name] for name in named} == named
    np.testing.assert_array_equal(clone(model).fit(data).labels_, expected.features["label"])


def test_names_go_before_the_configuration(data: Any) -> None:
    config = Config.model_validate({**OPEN, "cluster": {"method": "umap"}, "communities": {"resolution": 2.0}})
    found = gpuclust.cluster_features(data, config, method="communities", resolution=9, check_halves=False)
    assert same(found, gpuclust.cluster_features(data, {**OPEN, "communities": {"resolution": 9}}, check_halves=False))
    assert same(
        gpuclust.cluster_features(data, config, check_halves=False),
        gpuclust.cluster_features(data, OPEN, method="umap", check_halves=False),
    )


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"method": "kmeans"}, "config: cluster.method is 'kmeans': Input should be 'communities'"),
        ({"resolution": -1}, "config: communities.resolution is -1: Input should be greater than 0"),
        ({"n_neighbors": 2}, "config: communities.n_neighbors is 2: Input should be greater than or equal to 3"),
        ({"method": ["umap"]}, r"config: cluster.method"),
    ],
)
def test_what_is_wrong_is_said_as_of_the_configuration(data: Any, named: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}"):
        gpuclust.cluster_features(data, OPEN, **named)
    with pytest.raises(ConfigError, match=f"^{words}"):
        gpuclust.FeatureClusterer(config=OPEN, **named).fit(data)


def test_what_is_returned_is_shown_in_one_line(data: Any) -> None:
    data = data.copy()
    data[:, 3] = 0  # dies in the filter
    found = gpuclust.cluster_features(data, OPEN, method="distances")
    noise, n = (found.labels < 0).mean(), found.labels.max() + 1
    text = f"FeatureClusters(89 of 90 features kept, {n} clusters, {noise:.0%} noise, by distances)"
    assert repr(found) == str(found) == text
    found = gpuclust.cluster_features(data, OPEN, resolution=5)
    assert repr(found).endswith(f"by communities, {found.found_again:.0%} found again in halves of the prompts)")


@pytest.mark.parametrize("method", ["communities", "umap", "distances"])
def test_halves_are_clustered_as_the_whole_is(data: Any, method: str) -> None:
    resolution = 4.0 if method == "communities" else None
    # Of fewer epochs a UMAP of a half is chance
    settings = OPEN | {"umap": {"n_components": 2}, "consensus": {"members": 3}}
    found = gpuclust.cluster_features(data, settings, method=method, resolution=resolution, check_halves=True)
    assert len(found.labels) == data.shape[1]
    side = half_of(len(data), Config().seed)
    halves = [
        gpuclust.cluster_features(
            data[side == each], settings, method=method, resolution=resolution, check_halves=False
        )
        for each in (0, 1)
    ]
    assert all(half.stability is half.found_again is None for half in halves)
    first, second = (half.labels.astype(np.int64) for half in halves)
    expected = np.mean([validity.best_match(found.labels.astype(np.int64), half) for half in (first, second)], axis=0)
    np.testing.assert_allclose(found.stability, expected)
    assert found.found_again == measures.of_halves(first, second)["found_again"]
    assert found.stability.shape == found.persistence.shape
    assert found.found_again > (0.1 if method == "distances" else 0.5)
    assert not any("chance" in note for note in found.notes)


def test_halves_have_the_resolution_of_the_whole(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuclust.compute import communities

    asked = []
    choose = communities.choose_resolution

    def spy(indices: Any, distances: Any, n_prompts: int, config: Config, errors: Any) -> Any:
        asked.append(n_prompts)
        return choose(indices, distances, n_prompts, config, errors)

    monkeypatch.setattr(communities, "choose_resolution", spy)
    model = gpuclust.FeatureClusterer(config=OPEN).fit(data)
    assert asked == [len(data)]
    assert model.stability_.max() > 0.5
    assert model.found_again_ == model.result_.found_again


def test_clusters_of_chance_are_said(caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    values = np.where(random.random((60, 150)) < 0.1, random.gamma(2.0, 1.0, (60, 150)), 0)
    with caplog.at_level(logging.WARNING, "gpuclust"):
        assert not len(gpuclust.cluster_features(values, OPEN, resolution=3).persistence)
        assert not caplog.records
        # What chance leaves is not known of cosines
        found = gpuclust.cluster_features(values, OPEN | {"neighbors": {"metric": "cosine"}}, resolution=3)
    assert len(found.persistence)
    assert (found.stability >= 0.5).mean() < 0.2
    (note,) = [note for note in found.notes if "chance" in note]
    assert note.startswith(f"0 of {len(found.stability)} clusters are found again in two halves of the 60 prompts")
    assert "of the features lie in clusters that both halves have: nothing here can be told from chance" in note
    assert "Take more prompts" in note
    assert [record.getMessage() for record in caplog.records if "chance" in record.getMessage()] == [
        f"cluster_features: {note}"
    ]


def test_check_halves_is_a_switch() -> None:
    with pytest.raises(ParameterError, match="check_halves is 'yes': True, False, or None"):
        gpuclust.cluster_features(sae_like(60, 40), OPEN, check_halves="yes")  # type: ignore[arg-type]


def test_halves_are_looked_at_where_they_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    values = sae_like(60, 40)
    looked: list[int] = []
    monkeypatch.setattr(
        "gpuclust.results.run.compare_halves",
        lambda *given: looked.append(1) or feature_clusters.Halves(None, None, ()),
    )

    def looks(check_halves: bool | None = None, **sections: Any) -> bool:
        looked.clear()
        settings = {**OPEN, **sections, "hdbscan": {"min_cluster_size": 3, "min_samples": 2}}
        gpuclust.cluster_features(values, settings, check_halves=check_halves)
        return bool(looked)

    assert looks()
    assert not looks(quality={"halves": False})
    assert looks(True, quality={"halves": False})
    assert not looks(False)
    assert not looks(cluster={"method": "distances"})
    assert looks(True, cluster={"method": "distances"})


def test_few_prompts_are_not_halved() -> None:
    values = sae_like(7, 40)
    settings = {**OPEN, "select": {**OPEN["select"], "min_active_prompts": 0}}
    settings["hdbscan"] = {"min_cluster_size": 3, "min_samples": 2}
    found = gpuclust.cluster_features(values, settings)
    assert found.stability is found.found_again is None
    assert any(note.startswith("no halves: 7 prompts are fewer than the 8") for note in found.notes)
