"""Metrics of the activity through the engine: runs with halves and permuted views, sweeps, arrays, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
from sklearn.metrics import adjusted_rand_score

import gpuclust
from gpuclust import schema
from gpuclust.compute import neighbors
from gpuclust.compute.halves import half_of
from gpuclust.config import ACTIVITY
from gpuclust.configfile import load, validate, without_effect
from gpuclust.engine import exact_pass, prompt_rows
from gpuclust.engine.views import PromptGroups, View, read_errors, read_neighbors, view_path
from gpuclust.errors import ConfigError, InputError
from gpuclust.hardware import budget
from gpuclust.stage_table import NAMES, after
from gpuclust.storage import store
from gpuclust.sweep import __main__ as sweep_command
from tests import tiny
from tests.planted import planted
from tests.test_association import counted
from tests.test_quality_task import judged
from tests.test_run import go, results


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.build(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("metric", "method", "threshold"),
    [("jaccard", "communities", 0.2), ("npmi", "communities", 0.0), ("lift", "umap", 0.0), ("phi", "dbscan", 0.2)],
)
def test_runs_have_counts_of_the_whole_of_halves_and_of_permuted_views(
    settings: dict[str, Any], tmp_path: Path, metric: str, method: str, threshold: float
) -> None:
    changed = settings | {
        "neighbors": {"metric": metric}, "cluster": {"method": method}, "quality": {"null": True, "decoder": False},
        "extract": {"activation_threshold": threshold},
        # active on all prompts of a half or on none, features are alike, and which is listed depends on the number
        "select": {"sparsity_min": 0.05, "sparsity_max": 0.95},
        "dbscan": {"min_samples": 3}, "communities": {"n_neighbors": 6, "shared_neighbors": 6},
    }  # fmt: skip
    out = go(tmp_path, changed)
    config = load(out / "config.yaml")
    found = results(out)
    features = xr.open_zarr(out / schema.NEIGHBORS)["feature"].values
    values = found["activations"][:, features]
    half = half_of(len(values), config.seed)
    plan = budget.Plan(10**9, 512, 512, 1, ())
    mixed = np.concatenate(list(prompt_rows.read_blocks(out, features, plan, permute=config.seed)))
    assert not np.array_equal(mixed, values)
    views = {schema.WHOLE: values, schema.NULL: mixed} | {
        name: values[half == side] for side, name in enumerate(schema.HALVES)
    }
    for view, rows in views.items():
        path = view_path(out, view, schema.NEIGHBORS)
        held = counted(rows, threshold)
        indices, distances = neighbors.exact(held, config.n_neighbors, config.metric)
        _, got, far = read_neighbors(path)
        np.testing.assert_array_equal(got, indices, err_msg=view)
        np.testing.assert_array_equal(far, distances, err_msg=view)
        np.testing.assert_array_equal(read_errors(path), neighbors.errors_of(held, indices, distances, config.metric))
        assert xr.open_zarr(path).attrs["metric"] == config.metric
    quality = json.loads((out / schema.RECORD).read_text())["stages"]["quality"]
    assert quality["halves"]["clusters"] >= 0
    again = gpuclust.cluster_features(found["activations"], validate(changed), check_halves=False)
    np.testing.assert_array_equal(again.indices, features_of(again, found["indices"]))
    np.testing.assert_array_equal(again.distances, found["distances"])
    labels = found["features"].loc[found["features"]["kept"], "label"].to_numpy(int)
    np.testing.assert_array_equal(again.labels, labels)


def features_of(again: gpuclust.FeatureClusters, indices: np.ndarray) -> np.ndarray:
    """Numbers of the SAE as numbers of the kept features."""
    kept = np.flatnonzero(again.features["kept"])
    return np.searchsorted(kept, indices)


def test_stages_are_done_again_for_another_metric_correction_or_threshold(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    def keys(**changed: Any) -> dict[str, str]:
        out = go(tmp_path, settings | changed, name="-".join(changed))
        return {name: stage["key"] for name, stage in json.loads((out / schema.RECORD).read_text())["stages"].items()}

    one = keys(neighbors={"metric": "jaccard"})
    for begin, other in [
        ("neighbors", keys(neighbors={"metric": "jaccard", "corrected": False}, seed=0)),
        ("neighbors", keys(neighbors={"metric": "phi"}, n_prompts=tiny.N_PROMPTS)),
        ("reduce", keys(neighbors={"metric": "jaccard"}, extract={"activation_threshold": 0.2})),
    ]:
        assert [name for name in NAMES if one[name] != other[name]] == list(after(begin))


def test_a_sweep_counts_by_threshold_and_adds_products(settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    base = settings | {"consensus": {"members": 1}, "select": {"sparsity_min": 0.05, "sparsity_max": 0.95}}
    base["umap"] = base["umap"] | {"metric": "cosine"}
    vary = {"umap.metric": ["cosine", "jaccard"], "extract.activation_threshold": [0.0, 0.2]}
    file.write_text(yaml.safe_dump({"base": base | {"cluster": {"method": "umap"}}, "vary": vary, "seeds": 1}))
    given = [str(file), "--out", str(tmp_path / "out"), "--scheduler", "threads", "--quiet"]
    assert sweep_command.main(given) == 0
    sweep = gpuclust.open_sweep(tmp_path / "out")
    assert sweep.table["error"].isna().all()
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["computed"]["store_reads"] == 1 + 3
    (extraction,) = (tmp_path / "out" / "extractions").iterdir()
    values = store.open_array(extraction / schema.ACTIVATIONS)[:]
    for _, row in sweep.table.iterrows():
        one = base | {
            "umap": base["umap"] | {"metric": row["umap.metric"]},
            "extract": {"activation_threshold": row["extract.activation_threshold"]}, "cluster": {"method": "umap"},
        }  # fmt: skip
        expected = gpuclust.cluster_features(values, one)
        kept = expected.features["kept"].to_numpy()
        np.testing.assert_array_equal(sweep.labels[int(row["setting"]), 0][kept], expected.labels)


@pytest.mark.parametrize("metric", ["jaccard", "dice", "phi", "npmi", "lift"])
def test_planted_groups_are_found_by_when_they_are_active(tmp_path: Path, metric: str) -> None:
    values, truth = planted(n_prompts=1500, size=20, n_noise=120, long=False)
    found = gpuclust.FeatureClusterer(metric=metric, check_halves=False, config={"consensus": {"members": 3}})
    labels = found.fit_predict(values)
    grouped = found.kept_ & (truth >= 0)
    assert adjusted_rand_score(truth[grouped], labels[grouped]) > 0.9
    assert found.result_.method == "communities"


def test_permuted_activity_has_no_groups(tmp_path: Path) -> None:
    values, _ = planted(n_prompts=800, n_clusters=1, size=1, n_noise=200, long=False)
    run = judged(tmp_path, values[:, 1:], {"consensus": {"members": 2}, "neighbors": {"metric": "phi"}})
    assert not (run.clusters["verdict"] == "stable").any()


def test_what_they_cannot_do_is_refused_before_work_starts() -> None:
    for metric in ("jaccard", "dice", "overlap", "phi", "npmi", "lift"):
        chosen = [f"neighbors.metric={metric}"]
        with pytest.raises(ConfigError, match=r"neighbors.method=sketch has no \w*"):
            load(overrides=[*chosen, "neighbors.method=sketch"])
        with pytest.raises(ConfigError, match=r"clusters on cosine distances, but the metric is \w+"):
            load(overrides=[*chosen, "cluster.method=distances"])
        assert load(overrides=[*chosen, "cluster.method=dbscan"]).metric in ACTIVITY
        with pytest.raises(ConfigError, match="differ: set only one"):
            load(overrides=[*chosen, "umap.metric=cosine"])


def test_names_say_what_is_measured() -> None:
    plain, raw = load(overrides=["neighbors.metric=dice"]), ["neighbors.metric=dice", "neighbors.corrected=false"]
    assert (plain.metric, plain.active_above, plain.shared_neighbors) == ("corrected_dice", 0, 20)
    assert (load(overrides=raw).metric, load(overrides=raw).shared_neighbors) == ("dice", 0)
    assert load(overrides=["neighbors.metric=phi"]).shared_neighbors == 20
    assert load(overrides=["umap.metric=overlap"]).metric == "corrected_overlap"
    assert load(overrides=["neighbors.metric=cosine"]).active_above is None
    above = load(overrides=["neighbors.metric=npmi", "extract.activation_threshold=0.5"])
    assert above.active_above == 0.5
    assert above.copies_by == "column"  # a copy times a factor is not active on the same prompts
    assert plain.copies_by == "direction"
    idle = without_effect(load(overrides=["neighbors.metric=phi", raw[1], "dbscan.eps=0.1"])) or ""
    assert "neighbors.corrected has no effect with the metric phi: it is of jaccard, dice and overlap; " in idle
    assert "dbscan.eps has no effect" in idle
    assert without_effect(load(overrides=raw)) is None


def test_metrics_of_other_sums_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(metric: str, above: float | None, device: str = "cpu") -> str:
        groups = PromptGroups(np.zeros(50, np.int64), 1, active_above=above)
        view = View(np.array([2]), tmp_path, metric, 5)
        plan: Any = None
        with pytest.raises(InputError) as caught:
            exact_pass.exact_neighbors(None, [], tmp_path, np.arange(3), groups, [view], plan, None, device)
        return str(caught.value)

    assert "metric=jaccard" in refused("jaccard", None)
    assert "give it groups of its own, with active_above=the threshold" in refused("jaccard", None)
    assert "the groups add up counts of active prompts" in refused("cosine", 0.0)
    monkeypatch.setattr(exact_pass, "MOST_PROMPTS", 99)
    assert "100 prompts are more than the 99 that a GPU counts exactly" in refused("phi", 0.0, "cuda")
