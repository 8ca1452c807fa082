"""Features compared by their neighbours: against the dense product, with ties, with nothing in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from gpuclust.compute import communities, neighbors, shared_neighbors
from gpuclust.configfile import validate
from gpuclust.errors import ConfigError
from tests.planted import planted

Array = np.ndarray[Any, Any]


def dense(indices: Array, distances: Array, n_shared: int) -> Array:
    """Cosines of the lists, from the whole matrix; the diagonal last."""
    lists = np.zeros((len(indices), len(indices)))
    for row, (near, apart) in enumerate(zip(indices[:, :n_shared], distances[:, :n_shared], strict=True)):
        lists[row, near] = np.maximum(1 - apart.astype(np.float64), 0)
    lists /= np.linalg.norm(lists, axis=1, keepdims=True)
    product: Array = lists @ lists.T
    np.fill_diagonal(product, -1)
    return product


@pytest.mark.parametrize("k", [1, 2, 12, 90])
def test_the_most_alike_lists_are_found(k: int) -> None:
    activations, _ = planted(n_prompts=300, n_clusters=4, n_noise=40)
    indices, distances = neighbors.of_vectors(activations.astype(np.float64).T, 40, "correlation", 1024)
    product = dense(indices, distances, 20)
    near, apart = shared_neighbors.nearest(indices, distances, 20, k)
    assert near.dtype == np.int32
    assert apart.dtype == np.float32
    assert near[:, 0].tolist() == list(range(len(indices)))
    assert not apart[:, 0].any()
    expected = -np.sort(-product, axis=1)[:, : k - 1]
    np.testing.assert_allclose(1 - apart[:, 1:], expected, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(product, near[:, 1:], axis=1)[expected > 0], expected[expected > 0])


def test_of_equal_ones_the_first_features_in_order() -> None:
    """Twenty copies of one list: all are as near to one another, and the least numbers win."""
    n = 20
    indices = np.array([[own, *(other for other in range(n) if other != own)] for own in range(n)], np.int32)
    distances = np.tile(np.r_[0, np.full(n - 1, 0.0)].astype(np.float32), (n, 1))
    near, apart = shared_neighbors.nearest(indices, distances, n, 6)
    assert not apart.any()
    for own in range(n):
        assert near[own, 1:].tolist() == [other for other in range(n) if other != own][:5]


def test_what_has_nothing_in_common_is_not_near() -> None:
    """A list of the feature alone, similarities of 0 and below: the feature itself stands there, at distance 1."""
    indices = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, 0, 1]], np.int32)
    distances = np.array([[0, 0.5, 1], [0, 0.5, 1.2], [0, 1, 1], [0, 1, 1.5]], np.float32)
    near, apart = shared_neighbors.nearest(indices, distances, 3, 4)
    assert near.tolist() == [[0, 1, 0, 0], [1, 0, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]
    assert apart[:, 1:].tolist() == [[pytest.approx(1 - 0.8), 1, 1]] * 2 + [[1, 1, 1]] * 2
    graph = communities.mutual_graph(near, apart, 3)
    assert sorted(zip(*graph.nonzero(), strict=True)) == [(0, 1), (1, 0)]


def test_the_numbers_of_features_do_not_matter() -> None:
    activations, _ = planted(n_prompts=200, n_clusters=3, n_noise=30)
    order = np.random.default_rng(0).permutation(activations.shape[1])
    found = []
    for columns in (np.arange(len(order)), order):
        listed = neighbors.of_vectors(activations[:, columns].astype(np.float64).T, 30, "correlation", 1024)
        found.append(shared_neighbors.nearest(*listed, 10, 12)[1])
    np.testing.assert_allclose(found[0][order], found[1], atol=1e-5)


def test_lists_say_more_than_one_similarity() -> None:
    """Weak groups over few prompts: lists tell them where single similarities do not."""
    truth = np.repeat(np.arange(12), 20)
    agreed: dict[int, list[float]] = {20: [], 0: []}
    for seed in range(5):
        random = np.random.default_rng(seed)
        topics = random.normal(size=(60, 12))
        values = topics[:, truth] * 0.6 + random.normal(size=(60, len(truth)))
        listed = neighbors.of_vectors(values.T, 80, "correlation", 1024)
        for shared, several in agreed.items():
            settings = validate({"communities": {"shared_neighbors": shared, "n_neighbors": 20}})
            found = communities.leiden(communities.neighbor_graph(*listed, settings), 6.0, 1)
            several.append(adjusted_rand_score(truth, found))
    assert np.mean(agreed[20]) > np.mean(agreed[0]) + 0.05
    assert np.mean(agreed[20]) > 0.85


@pytest.mark.parametrize("shared", [1, 2])
def test_lists_of_one_or_two_are_refused(shared: int) -> None:
    with pytest.raises(ConfigError, match=r"communities\.shared_neighbors .*3 or more, or 0"):
        validate({"communities": {"shared_neighbors": shared}})
