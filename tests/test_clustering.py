"""HDBSCAN by its spanning tree against hdbscan.HDBSCAN."""

from __future__ import annotations

import hdbscan
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from gpuclust.compute.clustering import cluster_distances, cluster_embedding, cluster_tree, embedding_tree
from gpuclust.compute.spanning_tree import mutual_reachability_tree
from gpuclust.config_sections import HdbscanConfig
from gpuclust.errors import InputError, SelectionError


def nested(seed, size=400, dims=70):
    """Unit vectors in clusters of clusters, with features between them: where choosing clusters is hard."""
    random = np.random.default_rng(seed)
    groups = random.normal(size=(5, 5))
    centres = groups[random.integers(0, 5, 30)] + 0.5 * random.normal(size=(30, 5))
    places = centres[random.integers(0, 30, size)] + random.normal(size=(size, 5)) * random.choice([0.1, 0.2, 0.3])
    vectors = np.tanh(places @ random.normal(size=(5, dims)) / 2)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def planted(random, sizes, noise=0, dims=8):
    """Points around far centres, and noise; the truth has -1 for noise."""
    centres = 10 * np.eye(dims)[: len(sizes)]
    truth = np.repeat(np.arange(-1, len(sizes)), [noise, *sizes])
    points = np.where(
        (truth < 0)[:, None],
        random.uniform(-30, 30, (len(truth), dims)),
        centres[truth] + 0.3 * random.normal(size=(len(truth), dims)),
    )
    order = random.permutation(len(truth))
    return points[order].astype(np.float32), truth[order]


def cosine(vectors):
    distances = 1 - vectors @ vectors.T
    distances = (distances + distances.T) / 2
    np.fill_diagonal(distances, 0)
    return distances


def euclidean(points):
    points = points.astype(np.float64)
    return np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))


def library(data, config, **settings):
    return hdbscan.HDBSCAN(
        min_cluster_size=config.min_cluster_size,
        min_samples=config.min_samples,
        cluster_selection_epsilon=config.cluster_selection_epsilon,
        cluster_selection_method=config.cluster_selection_method,
        **settings,
    ).fit(data)


def assert_equals_library(ours, theirs):
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.persistence, theirs.cluster_persistence_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.outlier_scores, theirs.outlier_scores_, rtol=1e-6, atol=1e-9)
    tree = theirs.condensed_tree_.to_numpy()
    assert ours.condensed_tree.dtype == tree.dtype
    np.testing.assert_array_equal(ours.condensed_tree["parent"], tree["parent"])
    np.testing.assert_array_equal(ours.condensed_tree["child_size"], tree["child_size"])


def settings_of(method, epsilon, min_cluster_size=8, min_samples=6):
    return HdbscanConfig(
        min_cluster_size=min_cluster_size,
        min_samples=min_samples,
        cluster_selection_method=method,
        cluster_selection_epsilon=epsilon,
    )


@pytest.mark.parametrize("epsilon", [0.0, 0.02])
@pytest.mark.parametrize("method", ["eom", "leaf"])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), min_samples=st.integers(1, 15), min_cluster_size=st.integers(2, 15))
def test_equals_the_library_on_the_same_distances(method, epsilon, seed, min_samples, min_cluster_size):
    config = settings_of(method, epsilon, min_cluster_size, min_samples)
    distances = cosine(nested(seed, size=200))
    ours = cluster_distances(distances, config)
    theirs = library(distances, config, metric="precomputed")
    assert_equals_library(ours, theirs)
    assert adjusted_rand_score(ours.labels, theirs.labels_) == 1.0


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
@pytest.mark.parametrize("method", ["eom", "leaf"])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_equals_the_library_on_normalised_vectors(method, epsilon, seed):
    config = settings_of(method, epsilon)
    vectors = nested(seed)
    ours = cluster_distances(cosine(vectors), config, chord=True)
    theirs = library(vectors, config)  # of 70 dimensions: the library itself takes Prim's algorithm
    assert adjusted_rand_score(ours.labels, theirs.labels_) == 1.0
    assert_equals_library(ours, theirs)
    single = cluster_distances(cosine(vectors).astype(np.float32), config, chord=True)
    assert adjusted_rand_score(single.labels, theirs.labels_) > 0.98  # distances rounded to 24 bits can tie


def test_cosine_and_euclidean_share_leaves_but_not_always_the_excess_of_mass():
    """One tree, two densities: what is chosen by density may differ, what is chosen by shape may not."""
    differing = 0
    for seed in range(6):
        distances = cosine(nested(seed))
        for method in ("eom", "leaf"):
            config = settings_of(method, 0.0)
            cosines = cluster_distances(distances, config).labels
            chords = cluster_distances(distances, config, chord=True).labels
            if method == "leaf":
                np.testing.assert_array_equal(cosines, chords)
            else:
                differing += adjusted_rand_score(cosines, chords) < 1
    assert differing > 0


@pytest.mark.parametrize("method", ["eom", "leaf"])
def test_the_embedding_and_its_distances_agree(method):
    config = settings_of(method, 0.01)
    points, _ = planted(np.random.default_rng(3), [30, 20, 40, 25], noise=30)
    ours = cluster_embedding(points, config)
    assert_equals_library(ours, library(points, config, algorithm="prims_kdtree"))
    assert adjusted_rand_score(ours.labels, cluster_distances(euclidean(points), config).labels) == 1.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(20, 40), min_size=2, max_size=5))
def test_recovers_planted_clusters(seed, sizes):
    points, truth = planted(np.random.default_rng(seed), sizes)
    config = HdbscanConfig(min_cluster_size=15, min_samples=5, cluster_selection_epsilon=2.0)
    by_points = cluster_embedding(points, config)
    by_distances = cluster_distances(euclidean(points), config)
    for found in (by_points, by_distances):
        assert found.n_clusters == len(sizes)
        assert adjusted_rand_score(found.labels[found.labels >= 0], truth[found.labels >= 0]) == 1.0
        assert (found.labels < 0).mean() < 0.1


def test_settings_share_the_tree_of_an_embedding():
    random = np.random.default_rng(3)
    points, _ = planted(random, [30, 40, 50, 60], noise=20)
    points[1] = points[0]
    for min_samples in (1, 4):
        tree = embedding_tree(points, min_samples)
        for method, size, epsilon in (("eom", 5, 0.0), ("leaf", 5, 0.0), ("eom", 25, 0.5), ("leaf", 12, 0.01)):
            config = HdbscanConfig(
                min_cluster_size=size, min_samples=min_samples, cluster_selection_method=method,
                cluster_selection_epsilon=epsilon,
            )  # fmt: skip
            shared, whole = cluster_tree(tree, config), cluster_embedding(points, config)
            np.testing.assert_array_equal(shared.labels, whole.labels)
            np.testing.assert_array_equal(shared.persistence, whole.persistence)
    with pytest.raises(SelectionError):
        embedding_tree(points[:4], 4)


def test_two_calls_agree_in_every_bit():
    points, _ = planted(np.random.default_rng(1), [50, 40, 60], noise=40)
    config = HdbscanConfig()
    for function, data in ((cluster_embedding, points), (cluster_distances, euclidean(points))):
        one, two = function(data, config), function(data, config)
        for field in ("labels", "probabilities", "outlier_scores", "persistence", "condensed_tree"):
            assert getattr(one, field).tobytes() == getattr(two, field).tobytes()
        assert one.labels.dtype == np.int32
        assert one.probabilities.dtype == one.outlier_scores.dtype == one.persistence.dtype == np.float64
        assert one.notes == two.notes == ()
        assert len(one.persistence) == one.n_clusters == one.labels.max() + 1


@pytest.mark.parametrize("method", ["eom", "leaf"])
def test_one_group_is_all_noise_with_a_note(method):
    points = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    config = settings_of(method, 0.0, min_cluster_size=30, min_samples=10)
    for found in (cluster_embedding(points, config), cluster_distances(euclidean(points), config)):
        assert (found.labels == -1).all()
        assert found.n_clusters == 0
        assert found.persistence.shape == (0,)
        assert (found.probabilities == 0).all()
        (note,) = found.notes
        for part in ("all 60 features are noise", "hdbscan.min_cluster_size (30)", "hdbscan.min_samples (10)"):
            assert part in note


def test_many_exact_duplicates_are_named():
    points, _ = planted(np.random.default_rng(2), [30, 30, 30])
    points[:25] = points[0]
    for method in ("eom", "leaf"):
        config = settings_of(method, 0.01, min_cluster_size=10, min_samples=10)
        for found in (cluster_embedding(points, config), cluster_distances(euclidean(points), config)):
            assert np.isfinite(found.outlier_scores).all()
            assert ((found.outlier_scores >= 0) & (found.outlier_scores <= 1)).all()
            assert len(set(found.labels[:25])) == 1
            assert found.labels[0] >= 0
            assert any("25 features have more than hdbscan.min_samples (10) exact duplicates" in n for n in found.notes)


@pytest.mark.parametrize(
    ("size", "config", "message"),
    [
        (9, HdbscanConfig(min_cluster_size=10, min_samples=5), r"9 features .* hdbscan\.min_cluster_size=10"),
        (10, HdbscanConfig(min_cluster_size=10, min_samples=10), r"10 features .* hdbscan\.min_samples=10"),
        (0, HdbscanConfig(), "0 features"),
    ],
)
def test_refuses_too_few_features(size, config, message):
    points = np.random.default_rng(0).normal(size=(size, 3)).astype(np.float32)
    with pytest.raises(SelectionError, match=message):
        cluster_embedding(points, config)
    with pytest.raises(SelectionError, match=message):
        cluster_distances(euclidean(points), config)


def test_refuses_nan():
    points = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    points[[4, 9], 1] = np.nan
    with pytest.raises(InputError, match=r"2 of 30 features .* row 4"):
        cluster_embedding(points, HdbscanConfig())
    with pytest.raises(InputError, match="NaN"):
        cluster_distances(euclidean(points), HdbscanConfig())
    with pytest.raises(InputError, match="shape"):
        cluster_embedding(points[:, 0], HdbscanConfig())
    with pytest.raises(InputError, match="square"):
        cluster_distances(points, HdbscanConfig())


def test_refuses_what_is_no_tree():
    """hdbscan's own code reads beyond its arrays on these."""
    config = HdbscanConfig(min_cluster_size=2, min_samples=2)
    edges = mutual_reachability_tree(euclidean(np.random.default_rng(0).normal(size=(20, 3))), 2)
    cluster_tree(edges, config)
    for row, column, value, message in [
        (0, 2, 9.0, "sorted"),
        (18, 2, np.inf, "finite"),
        (3, 0, 20, "outside"),
        (3, 1, 0.5, "outside"),
    ]:
        broken = edges.copy()
        broken[row, column] = value
        with pytest.raises(InputError, match=message):
            cluster_tree(broken, config)
    broken = edges.copy()
    broken[5, :2] = broken[4, :2]
    with pytest.raises(InputError, match="parts"):
        cluster_tree(broken, config)
    with pytest.raises(InputError, match="shape"):
        cluster_tree(edges[:, :2], config)
