"""Spanning trees against SciPy's and hdbscan's own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from gpuclust.compute.spanning_tree import chord_edges, core_distances, mutual_reachability_tree, sort_edges
from gpuclust.errors import InputError, SelectionError


def euclidean(points):
    return np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))


def mutual(distances, min_samples):
    core = np.sort(distances, axis=1)[:, min_samples]
    return np.maximum(distances, np.maximum.outer(core, core))


@st.composite
def cases(draw, kind="any"):
    size = draw(st.integers(2, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tied = kind == "tied" or draw(st.booleans())
    points = random.integers(0, 4, (size, 2)).astype(float) if tied else random.normal(size=(size, 3))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return euclidean(points).astype(dtype), draw(st.integers(1, size - 1))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_weighs_what_scipy_finds(case):
    distances, min_samples = case
    edges = mutual_reachability_tree(distances, min_samples)
    # SciPy takes a zero for a missing edge, so every weight is raised by one.
    expected = minimum_spanning_tree(mutual(distances, min_samples).astype(float) + 1).sum() - (len(distances) - 1)
    np.testing.assert_allclose(edges[:, 2].sum(), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_is_a_sorted_tree_of_mutual_reachabilities(case):
    distances, min_samples = case
    edges = mutual_reachability_tree(distances, min_samples)
    size = len(distances)
    a, b = edges[:, :2].astype(int).T
    assert edges.shape == (size - 1, 3)
    assert (np.diff(edges[:, 2]) >= 0).all()
    np.testing.assert_array_equal(edges[:, 2], mutual(distances, min_samples)[a, b])
    graph = np.zeros((size, size))
    graph[a, b] = 1
    assert connected_components(graph, directed=False)[0] == 1


@settings(max_examples=100, deadline=None)
@given(cases(kind="tied"))
def test_equals_hdbscan_in_every_bit_where_distances_tie(case):
    from hdbscan._hdbscan_linkage import mst_linkage_core
    from hdbscan._hdbscan_reachability import mutual_reachability

    distances, min_samples = case
    theirs = mst_linkage_core(mutual_reachability(distances.astype(np.float64), min_samples))
    np.testing.assert_array_equal(mutual_reachability_tree(distances, min_samples), theirs[np.argsort(theirs.T[2]), :])


@settings(max_examples=50, deadline=None)
@given(cases())
def test_core_distance_does_not_count_the_feature_itself(case):
    distances, min_samples = case
    core = core_distances(distances, min_samples)
    assert core.dtype == distances.dtype
    np.testing.assert_array_equal(core, np.partition(distances, min_samples, axis=0)[min_samples])


def test_reads_any_layout_and_leaves_it_alone():
    random = np.random.default_rng(0)
    distances = euclidean(random.normal(size=(30, 2)))
    kept = distances.copy()
    distances.setflags(write=False)
    expected = mutual_reachability_tree(distances, 3)
    np.testing.assert_array_equal(distances, kept)
    np.testing.assert_array_equal(mutual_reachability_tree(np.asfortranarray(kept), 3), expected)
    np.testing.assert_array_equal(mutual_reachability_tree(np.repeat(kept, 2, axis=1)[:, ::2], 3), expected)


def test_chord_weights_are_distances_between_normalised_vectors():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(40, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = 1 - vectors @ vectors.T
    np.fill_diagonal(cosine, 0)
    chords = chord_edges(mutual_reachability_tree(cosine, 4))
    np.testing.assert_allclose(chords, mutual_reachability_tree(euclidean(vectors), 4), rtol=1e-9)
    assert chord_edges(np.array([[0, 1, -1e-9]]))[0, 2] == 0


def test_sorts_by_weight():
    edges = np.array([[0, 1, 3.0], [1, 2, 1.0], [2, 3, 2.0]])
    np.testing.assert_array_equal(sort_edges(edges)[:, 2], [1, 2, 3])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(value):
    distances = euclidean(np.random.default_rng(0).normal(size=(20, 2)))
    distances[7, 3] = distances[3, 7] = value
    with pytest.raises(InputError, match="row 3 hold NaN or infinity"):
        mutual_reachability_tree(distances, 2)


def test_refuses_too_few_features():
    with pytest.raises(SelectionError, match=r"5 features are too few for hdbscan\.min_samples=5"):
        mutual_reachability_tree(np.zeros((5, 5)), 5)


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (np.zeros((3, 4)), "square"),
        (np.zeros(3), "square"),
        (np.zeros((3, 3), np.int64), "int64"),
        (np.zeros((3, 3), np.float16), "float16"),
    ],
)
def test_refuses_other_arrays(distances, message):
    with pytest.raises(InputError, match=message):
        core_distances(distances, 1)
    with pytest.raises(InputError, match="min_samples is 0"):
        core_distances(np.zeros((3, 3)), 0)


def test_importing_is_quick():
    code = (
        "import sys; import gpuclust.compute.clustering, gpuclust.compute.spanning_tree, gpuclust.compute.embedding\n"
        "print([name for name in ('numba', 'hdbscan', 'sklearn', 'umap', 'scipy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
