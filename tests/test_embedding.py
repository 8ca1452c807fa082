"""UMAP of given neighbours, and the layout it starts from."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from gpuclust.compute.clustering import cluster_embedding
from gpuclust.compute.embedding import embed, initial_layout
from gpuclust.config_sections import HdbscanConfig, UmapConfig
from gpuclust.errors import ConfigError, InputError, SelectionError

QUICK = UmapConfig(n_components=3, n_neighbors=8, min_dist=0.1, n_epochs=60)


def neighbours(points, k):
    """Exact neighbours, ties by number, the row itself first."""
    points = np.asarray(points, np.float64)
    distances = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
    np.fill_diagonal(distances, -1)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    found = np.maximum(np.take_along_axis(distances, indices, axis=1), 0)
    return indices.astype(np.int32), found.astype(np.float32)


def planted(seed, sizes, dims=6, distance=10.0):
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    centres = distance * random.normal(size=(len(sizes), dims))
    order = random.permutation(len(truth))
    return (centres[truth] + random.normal(size=(len(truth), dims)))[order], truth[order]


def test_two_calls_agree_in_every_bit():
    graph = neighbours(planted(0, [60, 60])[0], 8)
    (one, notes), (two, _) = embed(*graph, QUICK), embed(*graph, QUICK)
    assert one.shape == (120, 3)
    assert one.dtype == np.float32
    assert np.isfinite(one).all()
    assert one.tobytes() == two.tobytes()
    assert isinstance(notes, tuple)
    other, _ = embed(*graph, QUICK.model_copy(update={"random_state": 1}))
    assert other.tobytes() != one.tobytes()


def test_side_by_side_is_what_it_is_one_by_one():
    """Threads of BLAS and of numba are not each call's own; those of BLAS are as many afterwards as before."""
    graph = neighbours(planted(0, [300, 300])[0], 8)
    several = [QUICK.model_copy(update={"random_state": seed}) for seed in range(6)]
    before = [one["num_threads"] for one in threadpoolctl.threadpool_info()]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda one: embed(*graph, one)[0].tobytes(), several))
    assert together == [embed(*graph, one)[0].tobytes() for one in several]
    assert before == [one["num_threads"] for one in threadpoolctl.threadpool_info()]


def test_threads_change_nothing():
    import numba

    graph = neighbours(planted(0, [60, 60])[0], 8)
    expected, _ = embed(*graph, QUICK)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        found, _ = embed(*graph, QUICK)
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)
    assert found.tobytes() == expected.tobytes()


def test_keeps_planted_clusters_apart():
    points, truth = planted(1, [50, 70, 40, 60])
    embedding, notes = embed(*neighbours(points, 8), QUICK)
    found = cluster_embedding(embedding, HdbscanConfig(min_cluster_size=20, min_samples=5, cluster_selection_epsilon=1))
    assert adjusted_rand_score(found.labels, truth) > 0.99
    (note,) = notes
    for part in ("4 unconnected parts", "largest has 70 of 220", "umap.n_neighbors (8)"):
        assert part in note


def test_more_neighbours_than_asked_for_change_nothing():
    """umap.UMAP itself does not trim them below 4,096 rows."""
    points, _ = planted(2, [100])
    exact, notes = embed(*neighbours(points, 8), QUICK)
    surplus, _ = embed(*neighbours(points, 20), QUICK)
    assert notes == ()
    assert exact.tobytes() == surplus.tobytes()


def test_is_what_the_umap_class_does():
    import umap

    indices, distances = neighbours(planted(3, [150])[0], 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = umap.UMAP(
            n_neighbors=8,
            n_components=3,
            n_epochs=60,
            min_dist=0.1,
            init=initial_layout(indices, distances, 3, 42),
            random_state=42,
            n_jobs=1,
            precomputed_knn=(indices, distances),
        ).fit_transform(np.zeros((150, 1), np.float32))
    ours, _ = embed(indices, distances, QUICK)
    np.testing.assert_array_equal(ours, theirs)


def test_takes_another_number_of_components():
    graph = neighbours(planted(0, [60, 60])[0], 8)
    assert embed(*graph, QUICK, n_components=2)[0].shape == (120, 2)
    many, _ = embed(*graph, QUICK, n_components=130)  # more than there are features
    assert many.shape == (120, 130)
    assert np.isfinite(many).all()


def test_exact_duplicates_are_embedded():
    points, _ = planted(4, [40])
    points[:20] = points[0]
    embedding, _ = embed(*neighbours(points, 8), QUICK)
    assert np.isfinite(embedding).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    n_components=st.integers(1, 12),
)
def test_any_graph_has_a_layout(seed, sizes, n_components):
    points, _ = planted(seed, sizes, dims=2, distance=1000.0)
    k = min(5, len(points))
    if k < 2:
        return
    graph = neighbours(points, k)
    layout = initial_layout(*graph, n_components, seed)
    assert layout.shape == (len(points), n_components)
    assert layout.dtype == np.float32
    assert 9.9 < np.abs(layout).max() < 10.1
    assert (np.ptp(layout, axis=0) > 0).all()  # UMAP divides by this
    assert layout.tobytes() == initial_layout(*graph, n_components, seed).tobytes()


@pytest.mark.parametrize("size", [20, 200])  # dense eigenvectors, subspace iteration
def test_a_ring_is_laid_out_as_a_ring(size):
    turn = 2 * np.pi * np.arange(size) / size
    layout = initial_layout(*neighbours(np.c_[np.cos(turn), np.sin(turn)], 5), 2, 0)
    radius = np.linalg.norm(layout - layout.mean(axis=0), axis=1)
    assert np.ptp(radius) < 0.25 * radius.mean()
    angle = np.unwrap(np.arctan2(*(layout - layout.mean(axis=0)).T))
    assert abs(abs(angle[-1] - angle[0]) - 2 * np.pi * (size - 1) / size) < 0.1


def test_unconnected_parts_start_apart():
    points, truth = planted(5, [80] * 6, distance=1000.0)
    layout = initial_layout(*neighbours(points, 8), 2, 0)
    centres = np.array([layout[truth == part].mean(axis=0) for part in range(6)])
    spread = [np.linalg.norm(layout[truth == part] - centres[part], axis=1).max() for part in range(6)]
    gaps = np.linalg.norm(centres[:, None] - centres, axis=2) + 1e9 * np.eye(6)
    assert (np.array(spread) < gaps.min(axis=1)).all()
    assert min(spread) > 0.01


def test_refuses_too_few_neighbours_and_features():
    graph = neighbours(planted(0, [30])[0], 6)
    with pytest.raises(ConfigError, match=r"umap\.n_neighbors is 8, but only 6 .* neighbors\.n_neighbors to 8"):
        embed(*graph, QUICK)
    with pytest.raises(SelectionError, match=r"8 features are too few for umap\.n_neighbors=8"):
        embed(*neighbours(planted(0, [8])[0], 8), QUICK)
    with pytest.raises(ConfigError, match=r"umap\.min_dist is 1\.5"):
        embed(*neighbours(planted(0, [30])[0], 8), QUICK.model_copy(update={"min_dist": 1.5}))


def test_refuses_broken_neighbours():
    indices, distances = neighbours(planted(0, [30])[0], 8)

    def broken(row, column, index=None, distance=None):
        new = indices.copy(), distances.copy()
        if index is not None:
            new[0][row, column] = index
        if distance is not None:
            new[1][row, column] = distance
        return new

    for graph, message in [
        ((indices, distances[:, :7]), r"\(30, 8\) and distances \(30, 7\)"),
        ((indices[0], distances[0]), "feature, k"),
        (broken(3, 2, distance=np.nan), "NaN"),
        (broken(3, 2, index=30), "0 to 29 is expected"),
        (broken(3, 2, index=-1), "run from -1"),
        (broken(3, 0, index=4), "column 0"),
        (broken(3, 0, distance=0.1), "column 0"),
        (broken(3, 2, distance=100.0), "sorted"),
    ]:
        with pytest.raises(InputError, match=message):
            embed(*graph, QUICK)
