"""DBSCAN: the same clusters as scikit-learn's, on exact distances and on the embedding, and what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score

import gpuclust
from gpuclust import run as command
from gpuclust import schema
from gpuclust.compute import dbscan, methods, neighbors
from gpuclust.compute.spanning_tree import mutual_reachability_tree
from gpuclust.config import Config
from gpuclust.configfile import validate
from gpuclust.errors import ConfigError, InputError, MemoryBudgetError, SelectionError
from gpuclust.sweep import __main__ as sweep_command
from tests import tiny
from tests.cuda_stub import installed
from tests.planted import planted

Array = np.ndarray[Any, Any]
OPEN = {"select": {"sparsity_max": 1.0, "sparsity_min": 0.0, "entropy_high": 99.0}}


def config(eps: float | None = None, min_samples: int = 4, on: str = "distances", least: int = 2) -> Config:
    return validate(
        {
            "cluster": {"method": "dbscan"},
            "dbscan": {"eps": eps, "min_samples": min_samples, "on": on},
            "hdbscan": {"min_cluster_size": least},
        }
    )


def exactly(vectors: Array, settings: Config, metric: str = "cosine") -> tuple[dbscan.Found, Array]:
    """What DBSCAN finds by distances between columns of (prompt, feature), and the distances of all pairs."""
    size = vectors.shape[1]
    columns = np.asarray(vectors, np.float64).T
    k = min(settings.n_neighbors, size)
    indices, distances = neighbors.of_vectors(columns, k, metric, size)
    more, far = neighbors.of_vectors(columns, size, metric, size)
    dense = np.zeros((size, size), np.float32)
    np.put_along_axis(dense, more.astype(np.int64), far, axis=1)
    assert settings.tree_samples is not None
    tree = mutual_reachability_tree(dense, settings.tree_samples)
    return dbscan.of_tree(tree, indices, distances, settings), dense


def blobs(seed: int = 0, n: int = 60, components: int = 3) -> Array:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, components)) * 3
    near = centres[rng.integers(5, size=n)] + rng.normal(size=(n, components))
    return np.concatenate([near, rng.uniform(-9, 9, (n // 3, components))]).astype(np.float32)


def agrees_with_sklearn(found: dbscan.Found, dense: Array, eps: float, min_samples: int) -> None:
    """Cores are parted as scikit-learn parts them, border features are with their nearest core, the rest is noise."""
    theirs = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(dense.astype(np.float64))
    core = np.zeros(len(dense), bool)
    core[theirs.core_sample_indices_] = True
    labels = found.clustering.labels
    groups = [set(np.flatnonzero(core & (theirs.labels_ == label)).tolist()) for label in np.unique(theirs.labels_)]
    for group in groups:  # min_cluster_size is 2: a core that is its whole cluster is no cluster here
        assert len(set(labels[sorted(group)])) <= 1
    for a, b in [(a, b) for a in groups for b in groups if a is not b and a and b]:
        one, other = labels[min(a)], labels[min(b)]
        assert one != other or one == other == schema.NOISE
    nearest = np.where(core[None, :], dense, np.inf)
    for feature in np.flatnonzero(~core):
        at = int(nearest[feature].argmin())
        reached = nearest[feature, at] <= eps
        assert labels[feature] == (labels[at] if reached else schema.NOISE)
        assert (theirs.labels_[feature] >= 0) == reached
    sizes = np.bincount(theirs.labels_[theirs.labels_ >= 0], minlength=1)
    if sizes.min() > 1:
        kept = core | (theirs.labels_ < 0)
        assert adjusted_rand_score(theirs.labels_[kept], labels[kept]) == 1
        assert found.clustering.n_clusters == (theirs.labels_.max() + 1)


@pytest.mark.parametrize("metric", ["cosine", "correlation"])
@pytest.mark.parametrize("min_samples", [1, 2, 3, 6])
def test_the_same_as_sklearn_on_exact_distances(metric: str, min_samples: int) -> None:
    clusters = set()
    for seed in range(4):
        vectors = np.random.default_rng(seed).random((8, 70)) ** 3
        for eps in (0.02, 0.06, 0.1, 0.15, 0.3, 0.7):
            found, dense = exactly(vectors, config(eps, min_samples), metric)
            agrees_with_sklearn(found, dense, eps, min_samples)
            assert found.eps == eps
            clusters.add(found.clustering.n_clusters)
    assert len(clusters) > 3


@pytest.mark.parametrize("min_samples", [1, 2, 5])
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_the_same_as_sklearn_on_an_embedding(min_samples: int, backend: str) -> None:
    for seed in range(3):
        points = blobs(seed)
        dense = np.linalg.norm(points[:, None].astype(np.float64) - points[None], axis=2)
        for eps in (0.3, 0.8, 1.2, 2.0, 4.0):
            settings = config(eps, min_samples, "embedding")
            with installed():
                found = dbscan.of_embedding(points, settings, backend)
            agrees_with_sklearn(found, dense, eps, min_samples)


def test_a_border_feature_is_with_its_nearest_core() -> None:
    """Between two clusters, and first reached from the farther one: scikit-learn puts it there."""
    points = np.array([[0.0], [0.1], [0.2], [0.3], [1.2], [2.05], [2.3], [2.4], [2.5]])
    settings = config(0.95, 4, "embedding")
    found = dbscan.of_embedding(points.astype(np.float32), settings)
    assert DBSCAN(eps=0.95, min_samples=4).fit(points).labels_.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert found.clustering.labels.tolist() in ([0] * 4 + [1] * 5, [1] * 4 + [0] * 5)
    assert found.clustering.probabilities[4] == 0.75
    assert np.delete(found.clustering.probabilities, 4).tolist() == [1.0] * 8


def test_the_elbow_of_planted_distances() -> None:
    rng = np.random.default_rng(0)
    dense, alone = rng.uniform(0.2, 0.3, 300), rng.uniform(0.6, 0.9, 60)
    for distances in (np.concatenate([dense, alone]), np.concatenate([alone, dense])):
        found = dbscan.elbow(distances)
        assert found is not None
        assert 0.25 < found <= np.nextafter(np.float32(0.3), np.float32(1))
    few = dbscan.elbow(np.concatenate([dense[:60], rng.uniform(0.6, 0.9, 300)]))
    assert few is not None
    assert few < 0.31
    assert dbscan.elbow(np.array([])) is None
    assert dbscan.elbow(np.array([0.5])) == pytest.approx(0.5)
    assert dbscan.elbow(np.full(9, 0.25)) == pytest.approx(0.25)  # nothing bends: all have company
    assert dbscan.elbow(np.sqrt(np.linspace(0, 1, 9))) == pytest.approx(1)
    assert dbscan.elbow(np.zeros(9)) == dbscan.LEAST


@pytest.mark.parametrize("on", ["distances", "embedding"])
def test_planted_clusters_are_found(on: str) -> None:
    activations, truth = planted()
    found = gpuclust.cluster_features(activations, {**OPEN, "cluster": {"method": "dbscan"}, "dbscan": {"on": on}})
    inside = truth >= 0
    assert adjusted_rand_score(truth[inside], found.labels[inside]) > 0.95
    table = found.features
    assert (table["noise_reason"].notna() == (table["label"] == -1)).all()
    assert set(table["noise_reason"].dropna()) <= {schema.SMALL, schema.SPARSE}
    assert ((table["probability"] > 0) == (table["label"] >= 0)).all()
    assert np.bincount(found.labels[found.labels >= 0]).tolist() == sorted(
        np.bincount(found.labels[found.labels >= 0]).tolist(), reverse=True
    )
    if on == "distances":  # those of no group are nearly all noise
        assert (found.labels[~inside] == -1).mean() > 0.9


def test_exact_duplicates() -> None:
    vectors = np.random.default_rng(0).random((50, 3))
    copies = np.repeat(vectors, 8, axis=1)
    found, dense = exactly(copies, config(None, 5))
    assert found.eps is not None
    assert np.bincount(found.clustering.labels).tolist() == [8, 8, 8]
    agrees_with_sklearn(found, dense, found.eps, 5)
    points = np.repeat(blobs(n=6)[:3], 8, axis=0)
    assert np.bincount(dbscan.of_embedding(points, config(None, 5, "embedding")).clustering.labels).tolist() == [8] * 3


def test_what_has_nothing_in_common_is_noise() -> None:
    found, _ = exactly(np.eye(40), config())
    assert (found.clustering.labels == -1).all()
    assert found.eps is None
    assert set(found.reasons) == {schema.SPARSE}
    (note,) = found.clustering.notes
    assert "nothing in common" not in note
    assert "anything in common" in note
    assert "dbscan.min_samples" in note
    again = dbscan.with_eps(config(), found.eps)
    assert again == config()


def test_one_component_is_one_cluster_and_said() -> None:
    vectors = np.random.default_rng(0).normal(size=(4000, 1)) + 0.3 * np.random.default_rng(1).normal(size=(4000, 40))
    found, _ = exactly(vectors, config(None, 10))
    labels = found.clustering.labels
    assert labels.max() == 0
    (note,) = found.clustering.notes
    assert f"one cluster holds {(labels == 0).mean():.0%} of the features at dbscan.eps" in note
    assert "(the elbow)" in note


def test_all_noise_says_at_which_eps_and_what_to_do() -> None:
    vectors = np.random.default_rng(0).random((50, 40))
    found, _ = exactly(vectors, config(1e-4))
    (note,) = found.clustering.notes
    assert note.startswith("all 40 features are noise at dbscan.eps 0.0001 on the distances: 0 are cores")
    assert "Raise dbscan.eps or lower dbscan.min_samples" in note
    assert "elbow" not in note


def test_small_groups_are_noise_and_say_so() -> None:
    points = np.concatenate([np.linspace(0, 1, 20), np.linspace(10, 10.2, 5), [30.0]])[:, None].astype(np.float32)
    found = dbscan.of_embedding(points, config(0.2, 3, "embedding", least=6))
    assert found.clustering.labels.tolist() == [0] * 20 + [-1] * 6
    assert found.reasons.tolist() == [None] * 20 + [schema.SMALL] * 5 + [schema.SPARSE]
    kept = dbscan.of_embedding(points, config(0.2, 3, "embedding", least=5))
    assert kept.clustering.labels.tolist() == [0] * 20 + [1] * 5 + [-1]


def test_values_that_are_refused() -> None:
    for eps in (0, -1, float("nan"), float("inf"), "near", True):
        for on in ("distances", "embedding"):
            with pytest.raises(ConfigError, match=r"dbscan"):
                validate({"dbscan": {"eps": eps, "on": on}})
    with pytest.raises(ConfigError, match=r"eps \(2\.5\) is above 2, the largest cosine or correlation distance"):
        validate({"dbscan": {"eps": 2.5}})
    assert validate({"dbscan": {"eps": 2.5, "on": "embedding"}}).dbscan.eps == 2.5
    for samples in (0, -3, 2.5):
        with pytest.raises(ConfigError, match=r"dbscan\.min_samples"):
            validate({"dbscan": {"min_samples": samples}})
    method = {"cluster": {"method": "dbscan"}}
    with pytest.raises(ConfigError, match=r"n_neighbors \(15\) must be at least dbscan\.min_samples \(20\)"):
        validate({**method, "dbscan": {"min_samples": 20}, "neighbors": {"n_neighbors": 15}})
    with pytest.raises(ConfigError, match=r"needs similarities .cosine, correlation, partial_correlation."):
        validate({**method, "neighbors": {"metric": "euclidean"}})
    with pytest.raises(ConfigError, match=r"needs exact distances"):
        validate({**method, "neighbors": {"method": "sketch"}})
    on = {"dbscan": {"on": "embedding"}}
    for more in ({"neighbors": {"metric": "euclidean"}}, {"neighbors": {"method": "sketch"}}):
        assert validate({**method, **on, **more}).tree_samples is None


def test_too_few_features_for_min_samples() -> None:
    wide = {"select": OPEN["select"] | {"sparsity_max": 1.01}}
    settings = {**wide, "cluster": {"method": "dbscan"}, "dbscan": {"min_samples": 50, "on": "embedding"}}
    activations = np.random.default_rng(0).random((60, 40))
    with pytest.raises(SelectionError, match=r"keeps 40 of 40 features; .*min_samples.* need at least 51"):
        gpuclust.cluster_features(activations, settings)
    with pytest.raises(SelectionError, match=r"20 features are fewer than dbscan\.min_samples \(50\)"):
        dbscan.of_embedding(np.zeros((20, 2), np.float32), config(None, 50, "embedding"))
    indices, distances = neighbors.of_vectors(activations.T, 5, "cosine", 40)
    with pytest.raises(InputError, match=r"neighbours are 5 a feature.*min_samples is 8"):
        dbscan.of_tree(np.zeros((39, 3)), indices, distances, config(None, 8))
    with pytest.raises(InputError, match="the tree has 31 features, the neighbours are of 40"):
        dbscan.of_tree(np.zeros((30, 3)), indices, distances, config())


def test_pairs_within_eps_that_do_not_fit_are_refused() -> None:
    points = np.random.default_rng(0).random((300, 2)).astype(np.float32)
    settings = config(5.0, 4, "embedding")
    needed = 300 * 300 * dbscan.HELD
    assert dbscan.of_embedding(points, settings, allowed=needed).clustering.labels.max() == 0
    with pytest.raises(MemoryBudgetError, match=r"pairs within dbscan\.eps \(5\).*Lower dbscan\.eps"):
        dbscan.of_embedding(points, settings, allowed=needed - 1)


def test_a_member_is_the_clustering_of_its_embedding() -> None:
    activations, _ = planted(n_prompts=300, n_clusters=4, n_noise=20)
    settings = config(None, 4, "embedding", least=5)
    indices, distances = neighbors.of_vectors(np.asarray(activations, np.float64).T, 15, "cosine", 100)
    labels = methods.member(indices, distances, 300, settings, 0)
    assert np.array_equal(labels, methods.member(indices, distances, 300, settings, 0))
    assert labels.max() > 0


# ---------------------------------------------------------------- runs and sweeps


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.build(tmp_path_factory.mktemp("tiny")) | {
        "cluster": {"method": "dbscan"},
        "quality": {"null": True, "decoder": True, "random_sets": 5, "seeds": 1},
    }


@pytest.mark.parametrize("on", ["distances", "embedding"])
def test_a_run(settings: dict[str, Any], on: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "config.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(settings | {"dbscan": {"min_samples": 3, "on": on}}))
    given = ["--config", str(file), "--out", str(out), "--scheduler", "threads"]
    assert command.main(given) == 0
    stages = json.loads((out / "run.json").read_text())["stages"]
    found = stages["cluster"]
    assert (found["method"], found["on"], found["members"]) == ("dbscan", on, 1)
    assert found["eps"] > 0
    assert f"dbscan.eps {found['eps']:.4g} on the {on}" in " ".join(capsys.readouterr().out.split())
    quality = stages["quality"]
    assert quality["halves"]["clusters"] is not None
    assert quality["null"]["noise_share"] >= 0
    skipped = "seeds: nothing is random in cluster.method=dbscan on exact distances"
    assert (skipped in quality["skipped"]) == (on == "distances") == ("seeds" not in quality)
    features = pd.read_parquet(out / schema.FEATURES)
    assert (out / schema.SPANNING_TREE).exists() == (on == "distances")
    assert not (out / schema.MEMBERS).exists()
    opened = gpuclust.open_run(out)
    assert opened.features["label"].max() + 1 == found["clusters"] > 0
    kept = features["kept"]
    assert (features.loc[kept, "noise_reason"].notna() == (features.loc[kept, "label"] == -1)).all()
    assert "dbscan" in (out / schema.REPORT).read_text()
    before = (out / "run.json").read_bytes()
    assert command.main(given) == 0
    assert (out / "run.json").read_bytes() == before or json.loads(before)["stages"] == stages
    views = out / schema.VIEWS
    trees = sorted(path.parent.name for path in views.glob("*/spanning_tree.npy"))
    assert trees == (["half0", "half1", "null"] if on == "distances" else [])


def test_a_sweep_has_both_forms_and_shares_with_the_others(settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    asked = {
        "base": settings | {"dbscan": {"min_samples": 3}, "umap": settings["umap"] | {"metric": "cosine"}},
        "seeds": 1,
        "questions": {
            "methods": {"vary": {"cluster.method": ["communities", "umap", "distances", "dbscan"]}},
            "eps": {"vary": {"dbscan.eps": [None, 0.3], "dbscan.on": ["distances", "embedding"]}},
        },
    }
    file.write_text(yaml.safe_dump(asked))
    out = tmp_path / "out"
    assert sweep_command.main([str(file), "--out", str(out), "--scheduler", "threads", "--quiet"]) == 0
    table = pd.read_parquet(out / "sweep.parquet")
    assert table["error"].isna().all()
    opened = gpuclust.open_sweep(out)
    for setting in table["setting"].unique():
        assert opened.run(int(setting)).features["label"].notna().any()
    run_file, run_out = tmp_path / "run.yaml", tmp_path / "run"
    for on in ("distances", "embedding"):
        base = asked["base"] | {"dbscan": {"min_samples": 3, "on": on}}
        run_file.write_text(yaml.safe_dump(base))
        given = ["--config", str(run_file), "--out", f"{run_out}-{on}", "--scheduler", "threads", "--quiet"]
        assert command.main(given) == 0
        rows = table[(table["cluster.method"] == "dbscan") & (table["dbscan.on"] == on) & table["dbscan.eps"].isna()]
        stage = json.loads(Path(f"{run_out}-{on}", "run.json").read_text())["stages"]
        assert rows["clusters"].tolist()[:1] == [stage["cluster"]["clusters"]]
        assert rows["found_again_halves"].tolist()[:1] == [stage["quality"]["halves"]["found_again"]]
