"""Communities of the mutual neighbour graph: what is found, what is not, and that it comes back the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

import gpuclust
from gpuclust import schema
from gpuclust.compute import communities, consensus, methods, neighbors
from gpuclust.config import Config
from gpuclust.configfile import validate
from gpuclust.errors import ActivationError, ConfigError
from gpuclust.results.inputs import as_lengths
from tests.planted import planted

Array = np.ndarray[Any, Any]
OPEN = {"select": {"sparsity_max": 1.0, "sparsity_min": 0.0, "entropy_high": 99.0}}


def near(vectors: Array, k: int, metric: str = "correlation") -> tuple[Array, Array]:
    """Neighbours of the columns of (prompt, feature)."""
    return neighbors.of_vectors(np.asarray(vectors, np.float64).T, k, metric, vectors.shape[1])


def config(**settings: Any) -> Config:
    return validate(settings)


def test_planted_clusters_are_found() -> None:
    activations, truth = planted()
    found = gpuclust.cluster_features(activations, OPEN)
    assert adjusted_rand_score(truth, found.labels) >= 0.95
    inside = truth >= 0
    assert adjusted_rand_score(truth[inside], found.labels[inside]) == 1
    table = found.features
    assert (table["noise_reason"].notna() == (table["label"] == -1)).all()
    assert set(table["noise_reason"].dropna()) <= set(schema.NOISE_REASONS)
    assert table["hdbscan_label"].notna().all()


def test_what_chance_leaves_is_asked_again_of_those_that_are_left() -> None:
    """Features of no group that fire on long prompts more often are above chance only with one another."""
    activations, truth = planted(n_prompts=2000, size=25, n_noise=240)
    labels = methods.of_communities(*near(activations, 80), 2000, config(consensus={"members": 3}))[0].labels
    assert adjusted_rand_score(truth, labels) >= 0.95


def test_a_method_is_a_setting() -> None:
    activations, truth = planted(n_prompts=600, n_clusters=6, n_noise=40)
    for method in ("umap", "distances"):
        found = gpuclust.cluster_features(
            activations, {**OPEN, "cluster": {"method": method}, "consensus": {"members": 1}}
        )
        assert adjusted_rand_score(truth, found.labels) > 0.5
        if method == "umap":
            assert found.features["label"].equals(found.features["hdbscan_label"])
        assert set(found.features["noise_reason"].dropna()) <= {schema.SPARSE}


def test_hubs_are_put_back() -> None:
    """A feature that is near to all others is not what they are joined by."""
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(300, 2))
    parts = [topics[:, [t]] + 2 * rng.normal(size=(300, 24)) for t in range(2)]
    hub = topics.sum(axis=1, keepdims=True) + 0.1 * rng.normal(size=(300, 1))
    indices, distances = near(np.concatenate([*parts, hub], axis=1), 40, "cosine")
    assert (indices[:48, 1:3] == 48).any(axis=1).mean() > 0.8
    plain, corrected = (communities.mutual_graph(indices, distances, 3, corrected).nnz for corrected in (False, True))
    assert corrected > 1.3 * plain


def test_edges_are_mutual_and_symmetric() -> None:
    activations, _ = planted(n_prompts=300, n_clusters=4, n_noise=20)
    indices, distances = near(activations, 40)
    graph = communities.mutual_graph(indices, distances, 10, corrected=False)
    assert (graph != graph.T).nnz == 0
    assert graph.min() >= 0
    assert np.diff(graph.indptr).max() <= 9
    for a in range(0, len(indices), 17):
        expected = {int(b) for b in indices[a, 1:10] if a in indices[b, 1:10] and distances[a][indices[a] == b][0] < 1}
        assert set(graph[[a]].indices.tolist()) == expected


def test_the_same_again_and_beside_others() -> None:
    """NetworKit's seed and threads are the process's: calls side by side must not disturb each other."""
    activations, _ = planted(n_prompts=400, n_clusters=8, size=12, n_noise=200)
    indices, distances = near(activations, 60)
    graph = communities.mutual_graph(indices, distances, 15)
    alone = [communities.leiden(graph, 20.0, seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        beside = list(pool.map(lambda seed: communities.leiden(graph, 20.0, seed), range(6)))
    for one, other in zip(alone, beside, strict=True):
        assert np.array_equal(one, other)
    assert any(not np.array_equal(alone[0], one) for one in alone[1:])


def test_resolution_follows_from_the_data() -> None:
    few, _ = planted(n_clusters=6, size=60, n_noise=0)
    many, _ = planted(n_clusters=30, size=12, n_noise=0)
    settings = config()
    chosen = []
    for activations, clusters in ((few, 6), (many, 30)):
        indices, distances = near(activations, 80)
        resolution, tried = communities.choose_resolution(indices, distances, len(activations), settings)
        assert resolution in tried
        assert tried[resolution] == max(tried.values()) > 0.9 * np.log2(clusters)
        chosen.append(resolution)
    assert chosen[0] < chosen[1]
    fixed = config(communities={"resolution": 3.5})
    assert communities.choose_resolution(indices, distances, 100, fixed) == (3.5, {})


def test_a_graph_without_an_edge_is_all_noise_with_a_reason() -> None:
    indices, distances = near(np.eye(60)[:, :40], 20, "cosine")
    found, members = methods.of_communities(indices, distances, 60, config(neighbors={"metric": "cosine"}))
    assert (found.labels == -1).all()
    assert any("noise" in note for note in found.notes)
    reasons = communities.why_noise(found.labels, members[0], indices, distances, config())
    assert set(reasons) == {schema.ALONE}


def test_what_has_nothing_in_common_is_not_redrawn() -> None:
    """A cosine of exactly 0 is of features that never fire together: chance makes no neighbours of them."""
    indices = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]])
    distances = np.array([[0, 0.4, 1], [0, 0.4, 1], [0, 1, 1]], np.float32)
    again, redrawn = consensus.perturb(indices, distances, 50, seed=1)
    assert again.tolist() == indices.tolist()
    assert redrawn[2].tolist() == [0, 1, 1]
    assert redrawn[0, 1] == redrawn[1, 1] != distances[0, 1]
    assert redrawn[:2, 2].tolist() == [1, 1]


@pytest.mark.parametrize("metric", ["cosine", "correlation"])
def test_equal_weights_and_exact_copies(metric: str) -> None:
    """One component in which all is alike: no crash, and the same again."""
    column = np.random.default_rng(0).random((50, 1))
    indices, distances = near(np.repeat(column, 30, axis=1), 20, metric)
    first, again = (methods.of_communities(indices, distances, 50, config())[0].labels for _ in range(2))
    assert np.array_equal(first, again)


def test_copies_counted_each_and_a_feature_of_zeros() -> None:
    activations, _ = planted(n_prompts=400, n_clusters=4, n_noise=20)
    doubled = np.concatenate([activations, activations[:, :15], np.zeros((400, 1), np.float16)], axis=1)
    settings = {**OPEN, "select": {**OPEN["select"], "min_active_prompts": 0}, "quality": {"duplicates": False}}
    found = gpuclust.cluster_features(doubled, settings)
    n = activations.shape[1]
    assert (found.labels[:15] == found.labels[n : n + 15]).mean() > 0.9


def test_negative_similarities_are_no_edges() -> None:
    """Correlations below 0 among the nearest: far apart, not joined with a negative weight."""
    rng = np.random.default_rng(1)
    base = rng.normal(size=(200, 1))
    opposed = np.concatenate(
        [base + 0.1 * rng.normal(size=(200, 15)), -base + 0.1 * rng.normal(size=(200, 15))], axis=1
    )
    indices, distances = near(opposed, 29)
    graph = communities.mutual_graph(indices, distances, 29)
    assert graph.data.min() > 0
    labels = methods.of_communities(indices, distances, 200, config())[0].labels
    assert sorted(np.bincount(labels[labels >= 0])) == [15, 15]


def test_small_groups_say_so() -> None:
    activations, truth = planted(n_prompts=800, n_clusters=5, size=20, n_noise=0)
    few = np.concatenate([activations, planted(n_prompts=800, n_clusters=1, size=6, n_noise=0, seed=9)[0]], axis=1)
    table = gpuclust.cluster_features(few, OPEN).features
    assert (table["noise_reason"][len(truth) :] == schema.SMALL).all()


def test_members_that_disagree_say_so() -> None:
    labels, unmoved = np.array([-1, -1, -1, 0]), np.array([0, 0, 0, 0])
    indices = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, 0, 1]])
    distances = np.array([[0, 0.1, 0.1]] * 4, np.float32)
    reasons = communities.why_noise(labels, unmoved, indices, distances, config(hdbscan={"min_cluster_size": 2}))
    assert reasons.tolist() == [schema.DISAGREE] * 3 + [None]


def test_metrics_without_similarities_are_refused() -> None:
    names = "cosine, correlation, partial_correlation, jaccard, dice, overlap, phi, npmi, lift"
    for metric in ("euclidean", "dot"):
        with pytest.raises(ConfigError, match=rf"needs similarities \({names}\)"):
            config(neighbors={"metric": metric})
        assert config(neighbors={"metric": metric}, cluster={"method": "umap"}).metric == metric
    with pytest.raises(ConfigError, match=r"cluster\.method=distances for exact cosine"):
        config(umap={"enabled": False})


def test_defaults_of_the_metric() -> None:
    assert config().metric == "partial_correlation"
    assert config(cluster={"method": "distances"}).metric == "cosine"
    assert config(neighbors={"method": "sketch"}).metric == "cosine"
    assert config(umap={"metric": "cosine"}).metric == "cosine"


@pytest.mark.parametrize(("n_noise", "n_clusters"), [(300, 0), (155, 3), (600, 3)])
def test_features_that_fire_on_their_own_are_in_no_cluster(n_noise: int, n_clusters: int) -> None:
    """Beside groups that hold together more, all of them would be one community, of the same members every time."""
    activations, truth = planted(n_prompts=1000, n_clusters=n_clusters, n_noise=n_noise, long=False)
    found, members = methods.of_communities(*near(activations, 80), 1000, config())
    clustered = found.labels >= 0
    assert clustered[truth < 0].mean() < 0.02
    assert clustered[truth >= 0].all()
    assert adjusted_rand_score(truth, found.labels) >= (0.95 if n_clusters else 0)
    reasons = communities.why_noise(found.labels, members[0], *near(activations, 80), config())
    assert (reasons[truth < 0] == schema.CHANCE).mean() > (0.9 if n_clusters else 0.1)


def test_chance_is_what_as_many_nearest_have() -> None:
    rng = np.random.default_rng(5)
    values = rng.gamma(1, size=(900, 400)) * (rng.random((900, 400)) < 0.1)
    values[:, :30] += 0.4 * rng.gamma(1, size=(900, 1)) * (rng.random((900, 1)) < 0.2)
    indices, distances = near(values, 60)
    labels = np.repeat(np.arange(8), [30, 90, 90, 90, 40, 30, 20, 10])
    above = communities.above_chance(labels, indices, distances, 900)
    assert above[:30].all()
    assert above[30:].mean() < 0.02
    labels[:30] = -1  # in no group
    assert not communities.above_chance(labels, indices, distances, 900)[:30].any()
    labels[:60] = 1  # of no group beside those of one
    above = communities.above_chance(labels, indices, distances, 900)
    assert above[:30].all()
    assert not above[30:60].any()
    taken, groups = np.zeros(400, bool), np.full(400, -1)
    for feature in range(30, 400):  # the worst that chance can do: each with its nearest
        own = [other for other in indices[feature, :12] if not taken[other] and other >= 30]
        if len(own) >= 8:
            taken[own] = True
            groups[own] = groups.max() + 1
    assert groups.max() >= 5
    assert communities.above_chance(groups, indices, distances, 900)[groups >= 0].mean() < 0.1


def test_chance_is_not_known_of_cosines() -> None:
    """Features that never are below zero have something in common by cosine, whatever they do."""
    activations, truth = planted(n_prompts=600, n_clusters=3, n_noise=60, long=False)
    settings = config(umap={"metric": "cosine"})
    labels = methods.of_communities(*near(activations, 60, "cosine"), 600, settings)[0].labels
    assert adjusted_rand_score(truth[truth >= 0], labels[truth >= 0]) == 1


def test_length_does_not_make_a_cluster() -> None:
    """Features that only say how long a prompt is are together, until the length is taken out."""
    activations, truth = planted(n_prompts=1000, n_clusters=3, n_noise=30, long=False)
    rng = np.random.default_rng(7)
    lengths = rng.integers(10, 200, 1000)
    wordy = rng.poisson(0.03 * lengths[:, None], (1000, 25)).astype(np.float32)
    values = np.hstack([activations, wordy])
    together = gpuclust.cluster_features(values, OPEN, check_halves=False)
    assert (together.labels[-25:] >= 0).mean() > 0.9
    apart = gpuclust.cluster_features(values, OPEN, lengths=lengths, check_halves=False)
    assert (apart.labels[-25:] >= 0).mean() < 0.1
    inside = np.flatnonzero(truth >= 0)
    assert adjusted_rand_score(truth[inside], apart.labels[inside]) == 1
    far = gpuclust.cluster_features(values, OPEN, lengths=lengths + 1e9, check_halves=False)
    assert np.array_equal(far.labels, apart.labels)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (np.ones(7), r"shape \(7,\); \(60,\) is expected"),
        (np.full(60, np.nan), "lengths hold nan for prompt 0"),
        (["long"] * 60, "one number a prompt is expected"),
        (np.full(60, 1e300), "largest abs.length. is 1e.300, outside 1e-70 to 1e.70"),
        (np.arange(60) * 1e-200, "outside 1e-70 to 1e.70"),
        ([10**400] * 60, "one number a prompt is expected"),
        (np.arange(60) + 1j, "one number a prompt is expected .they are complex128"),
        (np.ma.masked_equal(np.arange(60), 7), "one number a prompt is expected .1 are masked"),
        (np.full(60, "2026-01-01", "datetime64[D]"), r"they are datetime64\[D\]"),
    ],
)
def test_lengths_that_are_none_are_refused(lengths: Any, message: str) -> None:
    activations, _ = planted(n_prompts=60, n_clusters=2, n_noise=10)
    with pytest.raises(ActivationError, match=message):
        gpuclust.cluster_features(activations, OPEN, lengths=lengths)


def test_lengths_are_taken_from_what_holds_numbers() -> None:
    expected = [3.0, 1.0, 2.0]
    tensor = torch.tensor(expected, requires_grad=True)
    for given in (expected, np.array([3, 1, 2]), tensor, tensor.bfloat16(), np.ma.masked_less(expected, 0)):
        assert as_lengths(given, 3).tolist() == expected


def test_lengths_that_change_nothing_are_named() -> None:
    activations, _ = planted(n_prompts=60, n_clusters=2, n_noise=10)
    settings = {**OPEN, "neighbors": {"metric": "cosine"}}
    found = gpuclust.cluster_features(activations, settings, lengths=np.arange(60), check_halves=False)
    assert any("lengths have no effect with the metric cosine" in note for note in found.notes)
    found = gpuclust.cluster_features(activations, OPEN, lengths=np.arange(60), check_halves=False)
    assert not any("lengths" in note for note in found.notes)


def test_small_first_and_numbered_by_size() -> None:
    assert communities.without_small(np.array([3, 1, 1, 0, 3, 3]), 2).tolist() == [0, 1, 1, -1, 0, 0]


def test_a_pair_is_redrawn_alike_from_both_sides() -> None:
    """Whichever lists the other; standard normal, and another draw for another seed."""
    indices = np.tile(np.arange(300, dtype=np.int32), (300, 1))
    drawn = [consensus._pair_normals(indices, seed) for seed in (4, 5)]
    assert np.array_equal(drawn[0], drawn[0].T)
    upper = [one[np.triu_indices(300, 1)] for one in drawn]
    assert abs(upper[0].mean()) < 0.02
    assert abs(upper[0].std() - 1) < 0.02
    assert abs(np.corrcoef(*upper)[0, 1]) < 0.02


def test_a_feature_takes_no_place_of_its_own_neighbours() -> None:
    """Where fewer lists have anything in common the feature itself stands: it is never rather taken than another."""
    indices = np.array([[0, 1, 2, 0, 0], [1, 0, 2, 3, 1], [2, 1, 0, 3, 2], [3, 1, 2, 3, 3]], np.int32)
    distances = np.array([[0, 0.1, 0.9, 1, 1], [0, 0.1, 0.2, 0.9, 1], [0, 0.2, 0.9, 0.95, 1], [0, 0.9, 0.95, 1, 1]])
    graph = communities.mutual_graph(indices, distances.astype(np.float32), 4)
    assert sorted(zip(*graph.nonzero(), strict=True)) == [
        (a, b) for a in range(4) for b in range(4) if a != b and {a, b} != {0, 3}
    ]


def test_all_draws_decide_on_the_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    activations, _ = planted(n_prompts=300, n_clusters=6, n_noise=20)
    indices, distances = near(activations, 80)
    compared = []
    bits = communities.validity.information_found_again
    monkeypatch.setattr(
        communities.validity, "information_found_again", lambda *pair: compared.append(pair) or bits(*pair)
    )
    _, tried = communities.choose_resolution(indices, distances, len(activations), config())
    assert len(compared) == len(communities.COARSE + communities.FINE) * communities.DRAWS // 2
    assert len(tried) <= len(compared)


def test_members_are_redrawn_with_the_error_that_heavy_tails_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    activations, _ = planted(n_prompts=300, n_clusters=6, n_noise=20)
    indices, distances = near(activations, 80)
    asked: list[tuple[int, float]] = []
    given: list[Array | None] = []
    redraw = communities.perturb

    def spy(indices: Array, distances: Array, n_prompts: int, seed: int, tails: float, errors: Array | None) -> Any:
        asked.append((n_prompts, tails))
        given.append(errors)
        return redraw(indices, distances, n_prompts, seed, tails, errors)

    monkeypatch.setattr(communities, "perturb", spy)
    communities.member(indices, distances, 300, config(), 1, 5.0)
    communities.choose_resolution(indices, distances, 300, config())
    assert asked == [(300, 1.5)] + communities.DRAWS * [(150, 1.5)]
    assert given == [None] * (1 + communities.DRAWS)
    given.clear()
    errors = np.full(distances.shape, 0.03, np.float32)
    communities.member(indices, distances, 300, config(), 1, 5.0, errors)
    communities.choose_resolution(indices, distances, 300, config(), errors)
    for known, factor in zip(given, [1.0] + communities.DRAWS * [2**0.5], strict=True):
        np.testing.assert_allclose(known, 0.03 * factor, rtol=1e-6)  # half the prompts


def test_of_cosines_features_are_compared_themselves() -> None:
    """Features that fire often are in everyone's list by cosine."""
    assert (config().shared_neighbors, config().graph_neighbors) == (20, 30)
    cosine = config(neighbors={"metric": "cosine"})
    assert (cosine.shared_neighbors, cosine.graph_neighbors) == (0, 20)
    assert config(neighbors={"metric": "cosine"}, communities={"shared_neighbors": 10}).shared_neighbors == 10
    assert cosine.n_neighbors == config().n_neighbors == 80
