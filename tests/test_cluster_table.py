from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gpuclust.config_sections import AnalyseConfig
from gpuclust.schema import CLUSTER_COLUMNS
from gpuclust.tables import cluster_table, profiles


def prompts(texts: list[str]) -> pd.DataFrame:
    n = len(texts)
    return pd.DataFrame({"prompt": range(n), "text": texts, "n_tokens": [7] * n, "source": ["s"] * n})


def test_similarity_has_a_row_a_pair() -> None:
    correlation = np.array([[1, 0.5, np.nan], [0.5, 1, -0.2], [np.nan, -0.2, 1]])
    rows = cluster_table.similarity(correlation).astype(object).where(lambda t: t.notna(), None).to_numpy().tolist()
    assert rows == [[0, 1, 0.5], [0, 2, None], [1, 2, -0.2]]


def test_prompts_are_described_in_order_without_silent_ones() -> None:
    table = prompts(["a", "bb", "two\n lines", "d"])
    marks = {(5, 2): {(5, 10): 3}, (4, 2): {(0, 3): 1}}
    rows = cluster_table.describe_prompts(table, np.array([1, 2, 0, 3]), np.array([3.0, 2.0, 1.0, 0.0]), 5, marks)
    assert [row["prompt"] for row in rows] == [1, 2, 0]
    assert [row["activation"] for row in rows] == [3.0, 2.0, 1.0]
    assert [row["n_chars"] for row in rows] == [2, 10, 1]
    assert rows[1]["text"] == "two lines"
    assert rows[1]["marks"] == [{"start": 4, "stop": 9, "features": 3}]
    assert rows[0]["marks"] == []


def test_peak_marks_count_features_of_a_cluster() -> None:
    features = pd.DataFrame({"feature": [0, 1, 2, 3], "kept": [True, True, True, False]})
    features["label"] = pd.array([1, 1, -1, pd.NA], dtype="Int64")
    examples = pd.DataFrame({"feature": [0, 0, 1, 2, 3], "prompt": [7, 8, 7, 7, 7]})
    spans = pd.DataFrame({"start": [2, -1, 2, 2, 2], "stop": [4, -1, 4, 4, 4]})
    assert cluster_table.peak_marks(features, examples, spans) == {(1, 7): {(2, 4): 2}}


def test_source_shares() -> None:
    overall = pd.Series({"a": 0.5, "b": 0.25, "c": 0.25})
    assert cluster_table.source_shares(pd.Series(["b", "a", "b", "b"]), overall) == [
        {"source": "b", "share": 0.75, "overall": 0.25},
        {"source": "a", "share": 0.25, "overall": 0.5},
    ]


def profile_of(activations: np.ndarray) -> profiles.Profile:
    return profiles.profile(lambda: [activations], activations.shape[1], 5)


@pytest.mark.parametrize("seed", range(3))
def test_tree_nodes_are_the_smallest_that_hold_the_cluster(seed: int) -> None:
    import hdbscan

    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.normal(centre, 0.3, (20, 2)) for centre in (0, 0, 3, 6, 9)])
    model = hdbscan.HDBSCAN(min_cluster_size=5, min_samples=3).fit(points)
    condensed = model.condensed_tree_.to_pandas()

    def points_below(node: int) -> set[int]:
        below = condensed.loc[condensed["parent"] == node, "child"]
        return set().union(*({c} if c < len(points) else points_below(c) for c in below))

    holding = {node: points_below(node) for node in condensed["parent"].unique()}
    assert model.labels_.max() >= 1
    for cluster, node in enumerate(cluster_table.tree_nodes(condensed, model.labels_)):
        members = set(np.flatnonzero(model.labels_ == cluster))
        assert members <= holding[node]
        assert not any(members <= inside for inside in holding.values() if inside < holding[node])


def test_similarity_order_puts_correlated_clusters_side_by_side() -> None:
    rng = np.random.default_rng(0)
    base = rng.random((50, 3))
    activations = np.concatenate([base, base + 0.05 * rng.random((50, 3))], axis=1)
    rank = cluster_table.similarity_order(np.corrcoef(activations.T))
    assert sorted(rank) == list(range(6))
    assert all(abs(rank[c] - rank[c + 3]) == 1 for c in range(3))


def test_cluster_table_of_noise_only() -> None:
    features = pd.DataFrame(
        {
            "feature": [4, 5],
            "kept": True,
            "label": pd.array([-1, -1], dtype="Int64"),
            "mean": 1.0,
            "std": 0.0,
            "max": 1.0,
        }
    )
    table = cluster_table.cluster_table(
        features, prompts(["a"]), profile_of(np.zeros((1, 0))), np.zeros(0), AnalyseConfig()
    )
    assert list(table.columns) == list(CLUSTER_COLUMNS)
    assert table[["cluster", "size", "ratio", "features"]].to_dict("records") == [
        {"cluster": -1, "size": 2, "ratio": 1.0, "features": [4, 5]}
    ]
    assert table.drop(columns=["cluster", "size", "ratio", "features"]).isna().all().all()


def test_cluster_table_takes_further_columns_of_clusters() -> None:
    features = pd.DataFrame(
        {"feature": [0, 1], "kept": True, "label": pd.array([0, 0], dtype="Int64"), "mean": 1.0, "std": 0.0, "max": 1.0}
    ).assign(sparsity=0.5)
    more = {"tokens": [["word"]], "tree_node": [7], "decoder_cosine": [0.25]}
    table = cluster_table.cluster_table(
        features, prompts(["a"]), profile_of(np.ones((1, 1))), np.ones(1), AnalyseConfig(), more=more
    ).set_index("cluster")
    assert table.loc[0, ["tokens", "tree_node", "decoder_cosine"]].tolist() == [["word"], 7, 0.25]
    assert pd.isna(table.loc[0, "name"])
    assert pd.isna(table.loc[-1, "tree_node"])
