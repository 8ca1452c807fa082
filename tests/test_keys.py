"""What every result depends on, written down a second time: each setting, the stages and files it makes anew.

`CASES` is independent of the stage table on purpose: a field that is dropped from a key there is missed here, and a new
field of the configuration has no case and fails the first test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
import zarr

from gpuclust import configfile, stage_table
from gpuclust import run as command
from gpuclust.config import Config
from gpuclust.config_sections import PromptSource
from gpuclust.engine.steps import STEPS
from gpuclust.section import Section
from gpuclust.stage_table import NAMES, STAGES
from gpuclust.storage import run_folder
from gpuclust.storage.keys import content_key, inputs, stage_key
from gpuclust.sweep import __main__ as sweep_command
from gpuclust.sweep import sharing
from gpuclust.sweep.grid import Setting
from gpuclust.sweep.sharing import Extraction, Trial
from gpuclust.sweep.subsets import Subset
from tests import tiny

NO_UMAP = {"cluster.method": "distances"}
COMMUNITIES = {"cluster.method": "communities"}
DBSCAN = {"cluster.method": "dbscan", "dbscan.min_samples": 5}
EMBEDDED = DBSCAN | {"dbscan.on": "embedding"}
HUB = {"sae": {"release": "a", "sae_id": "b"}}
DATASET = {"prompts": [{"dataset": "a"}]}
PLAN = {"plan": {"d_in": 2, "d_sae": 2, "model_bytes": "1GB"}}


class Case(NamedTuple):
    """Another value, the stages that depend on it by themselves, the files of a sweep that do, and what is set first.

    The stages after the first one named are made anew as well: each reads, at some remove, all before it.
    """

    field: str
    value: Any
    stages: str = ""
    files: str = ""
    first: dict[str, Any] = {}  # noqa: RUF012


MODEL, LAYOUT = ("prompts extract", "extraction"), "embedding redrawn trial"
CASES = [
    Case("model.name", "/other", *MODEL),
    Case("model.loader", "bridge", *MODEL),
    Case("model.dtype", "bfloat16", *MODEL),
    Case("model.processed", True, *MODEL),
    Case("model.revision", "main", *MODEL),
    Case("sae.release", "c", *MODEL, HUB),
    Case("sae.sae_id", "c", *MODEL, HUB),
    Case("sae.path", "/other", *MODEL),
    Case("sae.hook_name", "blocks.0.hook_resid_post", *MODEL),
    Case("prompts.0.dataset", "b", "prompts", "extraction", DATASET),
    Case("prompts.0.name", "b", "prompts", "extraction"),
    Case("prompts.0.split", "test", "prompts", "extraction"),
    Case("prompts.0.streaming", False, "prompts", "extraction"),
    Case("prompts.0.path", "/other.txt", "prompts", "extraction"),
    Case("prompts.0.column", "b", "prompts", "extraction"),
    Case("prompts.0.source_column", None, "prompts", "extraction"),
    Case("prompts.0.limit", 9, "prompts", "extraction"),
    Case("prompts.0.label", "b", "prompts", "extraction"),
    Case("n_prompts", 50, "prompts", "extraction"),
    Case("min_tokens", 2, "prompts", "extraction"),
    Case("max_tokens", 30, "prompts", "extraction"),
    Case("seed", 1, "prompts neighbors quality validate analyse", "extraction neighbors"),
    Case("deduplicate", False, "prompts", "extraction"),
    Case("extract.rows", "token", "extract neighbors validate analyse", "extraction neighbors"),
    Case("extract.window", 8),
    Case("extract.window", 8, "neighbors validate analyse", "neighbors", {"extract.rows": "window"}),
    Case("extract.aggregate", "mean", "extract", "extraction"),
    Case("extract.prepend_bos", False, "prompts extract", "extraction"),
    Case("extract.exclude_special_tokens", False, "extract", "extraction"),
    Case("extract.batch_tokens", 50),
    Case("extract.activation_threshold", 0.1, "reduce", "moments trial"),
    Case("extract.activation_threshold", 0.1, "reduce select", "moments neighbors trial", {"umap.metric": "phi"}),
    Case("extract.top_examples", 3, "extract reduce", "extraction"),
    Case("store.dtype", "float32", "extract", "extraction"),
    Case("store.shard_prompts", 20, "extract", "extraction"),
    Case("store.chunk_prompts", 4, "extract", "extraction"),
    Case("store.chunk_features", 20, "extract", "extraction"),
    Case("store.codec", "zstd", "extract", "extraction"),
    # A sweep filters anew each time; what it keeps is part of the neighbours' names
    Case("select.entropy_low", 0.1, "select"),
    Case("select.entropy_high", 14, "select"),
    Case("select.sparsity_min", 0.01, "select"),
    Case("select.sparsity_max", 0.9, "select"),
    Case("select.min_active_prompts", 3, "select"),
    Case("neighbors.method", "exact", "neighbors"),
    Case("neighbors.n_neighbors", 30, "select neighbors", "redrawn trial"),
    Case("neighbors.metric", "cosine"),  # what it says is umap.metric's, or it is refused
    Case("neighbors.corrected", False),
    Case("neighbors.corrected", False, "neighbors", "neighbors", {"umap.metric": "jaccard"}),
    Case("neighbors.corrected", False, "", "", {"umap.metric": "phi"}),
    Case("neighbors.sketch_size", 99, "neighbors"),
    Case("cluster.method", "distances", "neighbors cluster", "embedding redrawn tree trial"),
    Case("cluster.method", "communities", "neighbors cluster", "embedding redrawn tree trial"),
    Case("cluster.method", "dbscan", "select neighbors cluster", "embedding redrawn tree trial"),
    Case("dbscan.eps", 0.3, "cluster", "trial", DBSCAN),
    Case("dbscan.eps", 0.3, "cluster", "trial", EMBEDDED),
    Case("dbscan.eps", 0.3),
    Case("dbscan.min_samples", 4, "neighbors cluster", "tree trial", DBSCAN),
    Case("dbscan.min_samples", 8, "select neighbors cluster", "tree trial", DBSCAN),
    Case("dbscan.min_samples", 4, "cluster", "trial", EMBEDDED),
    Case("dbscan.min_samples", 30),
    Case("dbscan.on", "embedding", "neighbors cluster", "embedding tree trial", DBSCAN),
    Case("dbscan.on", "embedding"),
    Case("hdbscan.min_cluster_size", 20, "select cluster", "trial", DBSCAN),
    Case("hdbscan.min_samples", 4, "cluster", "", DBSCAN),
    Case("hdbscan.min_samples", 4, "cluster", "", EMBEDDED),
    Case("umap.n_components", 4, "embed", "embedding trial", EMBEDDED),
    Case("umap.n_components", 4, "embed", "", DBSCAN),
    Case("communities.n_neighbors", 25, "neighbors cluster", "trial", COMMUNITIES),
    Case("communities.n_neighbors", 25, "cluster", "trial", COMMUNITIES | {"communities.shared_neighbors": 20}),
    Case("communities.n_neighbors", 25),
    Case("communities.shared_neighbors", 25, "neighbors cluster", "trial", COMMUNITIES),
    Case("communities.shared_neighbors", 25),
    Case("communities.resolution", 2.0, "cluster", "trial", COMMUNITIES),
    Case("communities.correct_hubs", False, "cluster", "trial", COMMUNITIES),
    Case("hdbscan.min_cluster_size", 20, "select cluster", "trial", COMMUNITIES),
    Case("hdbscan.min_samples", 4, "cluster", "", COMMUNITIES),  # of one HDBSCAN of a run; a sweep has none
    Case("umap.min_dist", 0.1, "embed", "", COMMUNITIES),
    Case("umap.random_state", 2, "embed", "trial", COMMUNITIES),
    Case("umap.metric", "correlation", "neighbors embed", "neighbors trial", COMMUNITIES),
    Case("consensus.members", 3, "cluster", "trial", COMMUNITIES),
    Case("consensus.agreement", 0.4, "cluster", "trial", COMMUNITIES),
    Case("umap.n_components", 4, "embed", LAYOUT),
    Case("umap.n_neighbors", 20, "select neighbors embed", LAYOUT),
    Case("umap.min_dist", 0.1, "embed", LAYOUT),
    Case("umap.metric", "euclidean", "select neighbors embed", f"neighbors {LAYOUT}"),
    Case("umap.n_epochs", 40, "embed", LAYOUT),
    Case("umap.random_state", 1, "embed", LAYOUT),
    Case("hdbscan.min_cluster_size", 20, "select cluster", "trial"),
    Case("hdbscan.min_samples", 20, "select cluster", "trial"),
    Case("hdbscan.min_samples", 4, "neighbors cluster", "tree trial", NO_UMAP),
    Case("hdbscan.cluster_selection_epsilon", 0.1, "cluster", "trial"),
    Case("hdbscan.cluster_selection_method", "leaf", "cluster", "trial"),
    Case("hdbscan.metric", "euclidean", "cluster", "trial"),
    Case("consensus.members", 3, "cluster", "redrawn trial"),
    Case("consensus.members", 1, "neighbors cluster", "redrawn trial"),
    Case("consensus.agreement", 0.6, "cluster", "trial"),
    Case("consensus.candidates", 3, "neighbors cluster", "redrawn trial"),
    Case("consensus.n_epochs", 30, "cluster", "redrawn trial"),
    Case("quality.duplicates", False, "select cluster quality"),
    Case("quality.halves", False, "neighbors quality"),
    Case("quality.null", False, "quality"),
    Case("quality.hdbscan", False, "quality"),
    Case("quality.decoder", True, "quality"),
    Case("quality.seeds", 1, "quality"),
    Case("quality.random_sets", 9, "quality"),
    Case("quality.stable", 0.6, "quality"),
    Case("quality.dbcv_features", 9, "quality"),
    Case("validation.prediction", False, "validate"),
    Case("validation.levels", False, "validate"),
    Case("validation.draws", 3, "validate"),
    Case("analyse.top_prompts", 3, "analyse"),
    Case("analyse.top_contexts", 3, "analyse"),
    Case("analyse.similarity_threshold", 0.6, "analyse"),
    Case("analyse.keywords", 3, "analyse"),
    Case("analyse.promoted_tokens", 3, "analyse"),
    Case("analyse.labeller", "tests.tiny:label", "analyse"),
    Case("device.memory", "40GB"),
    Case("scheduler.n_workers", 1),
    Case("scheduler.timeout", 9),
    Case("plan.d_in", 3, first=PLAN),
    Case("plan.d_sae", 3, first=PLAN),
    Case("plan.model_bytes", "2GB", first=PLAN),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.field}={case.value}")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = tiny.build(tmp_path_factory.mktemp("tiny"))
    found["umap"]["metric"] = "cosine"
    return found | {"quality": {"null": True, "decoder": False, "random_sets": 5}, "cluster": {"method": "umap"}}


def changed(settings: dict[str, Any], case: Case) -> tuple[Config, Config]:
    """The configuration before and after."""
    data = json.loads(json.dumps(settings | {k: v for k, v in case.first.items() if "." not in k}))
    for key, value in case.first.items():
        if "." in key:
            configfile.assign(data, key, value)
    before = configfile.validate(data)
    configfile.assign(data, case.field, case.value)
    after = configfile.validate(data)
    assert before.resolved() != after.resolved()
    return before, after


def leaves(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner: Any = field.annotation
        if name == "prompts":
            yield from leaves(PromptSource, "prompts.0.")
        elif isinstance(inner, type) and issubclass(inner, Section):
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_field_of_the_configuration_has_a_case() -> None:
    assert {case.field for case in CASES} == set(leaves(Config))


def test_every_stage_has_a_step_and_reads_what_is_before_it() -> None:
    assert tuple(STEPS) == NAMES
    for index, stage in enumerate(STAGES):
        assert set(stage.reads) <= set(NAMES[:index])


def direct(config: Config) -> dict[str, str]:
    """Keys of all stages, whatever those before them depend on."""
    return {stage.name: stage_key(stage, config, dict.fromkeys(NAMES, "before")) for stage in STAGES}


@each_case
def test_stages_depend_on_these_fields_by_themselves(settings: dict[str, Any], case: Case) -> None:
    before, after = (direct(config) for config in changed(settings, case))
    assert [name for name in NAMES if before[name] != after[name]] == case.stages.split()


def names(config: Config) -> dict[str, Any]:
    """Names of a sweep's files by kind, whatever those before them are named."""
    trial = Trial(Setting(0, {}, config), 0, config, Extraction("key", config, Path(), pd.DataFrame(), 9, {}))
    trial.subset, trial.kept, trial.near = Subset(None, None, 9), np.arange(5), ("near",)
    trial.point = trial.kept
    members = sharing.member_names(config, "near")
    umap = config.cluster.method == "umap" or bool(config.used_dbscan and config.dbscan.on == "embedding")
    return {
        "extraction": sharing.extraction_name(config),
        "moments": sharing.moments_name(trial, [config.extract.activation_threshold]),
        "neighbors": sharing.near_names(trial),
        "embedding": members[:1] if umap else [],
        "redrawn": members[1:] if umap else [],
        "tree": [] if umap else members,
        "trial": sharing.trial_name(trial),
    }


@each_case
def test_files_of_a_sweep_depend_on_these_fields_by_themselves(settings: dict[str, Any], case: Case) -> None:
    before, after = (names(config) for config in changed(settings, case))
    assert {name for name in before if before[name] != after[name]} == set(case.files.split())


def test_files_of_a_sweep_depend_on_prompts_and_kept_features(settings: dict[str, Any]) -> None:
    config = configfile.validate(settings)

    def found(key: str = "a", pattern: str = "", n: int = 9, kept: int = 5) -> tuple[str, tuple[str, ...]]:
        trial = Trial(Setting(0, {}, config), 0, config, Extraction(key, config, Path(), pd.DataFrame(), 9, {}))
        trial.subset, trial.pattern, trial.point = Subset(None, None, n), pattern, np.arange(kept)
        return sharing.moments_name(trial, [0.0]), sharing.near_names(trial)

    same = found()
    assert same == found()
    for other in (found(key="b"), found(pattern="(.)"), found(n=8)):
        assert other[0] != same[0]
        assert not set(other[1]) & set(same[1])
    assert found(kept=4)[0] == same[0]
    assert not set(found(kept=4)[1]) & set(same[1])


@pytest.mark.parametrize("name", NAMES)
def test_versions_of_algorithms_are_in_the_keys(
    settings: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configfile.validate(settings)
    stage = stage_table.get(name)
    newer = replace(stage, version=stage.version + 1)
    before = names(config)
    monkeypatch.setitem(stage_table._BY_NAME, name, newer)
    assert stage_key(newer, config, dict.fromkeys(NAMES, "")) != stage_key(stage, config, dict.fromkeys(NAMES, ""))
    expected = {
        "prompts": {"extraction"}, "extract": {"extraction"}, "reduce": {"moments", "trial"},
        "neighbors": {"neighbors"}, "embed": {"embedding", "redrawn", "trial"}, "cluster": {"redrawn", "trial"},
        "quality": {"trial"},
    }  # fmt: skip
    after = names(config)
    assert {kind for kind in before if before[kind] != after[kind]} == expected.get(name, set())


@pytest.mark.parametrize("kind", sharing.ALGORITHMS)
def test_versions_of_a_sweeps_own_algorithms_are_in_its_names(
    settings: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configfile.validate(settings)
    before = names(config)
    own, used = sharing.ALGORITHMS[kind]
    monkeypatch.setitem(sharing.ALGORITHMS, kind, (own + 1, used))
    after = names(config)
    expected = {kind, "trial"} if kind in ("embedding", "redrawn") else {kind}
    assert {name for name in before if before[name] != after[name]} == expected


# ---------------------------------------------------------------- on folders


def go(folder: Path, settings: dict[str, Any], *arguments: str, code: int = 0) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    out = folder / "out"
    given = ["--config", str(file), "--out", str(out), "--scheduler", "threads", "--quiet", *arguments]
    assert command.main(given) == code
    return out


@pytest.fixture(scope="module")
def finished(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(tmp_path_factory.mktemp("finished"), settings)


def not_done(out: Path, before: Config, config: Config) -> list[str]:
    """Stages of a finished folder that a configuration would compute."""
    opened = run_folder.Folder(out, before)
    keys: dict[str, str] = {}
    for stage in STAGES:
        keys[stage.name] = stage_key(stage, config, keys, inputs(stage, config, opened.record["stages"]))
    return [s.name for s in STAGES if not opened.done(s.name, keys[s.name], s.writes(config))]


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.first], ids=lambda case: f"{case.field}={case.value}"
)
def test_these_stages_are_not_done_any_more(finished: Path, settings: dict[str, Any], case: Case) -> None:
    before, after = changed(settings, case)
    assert not_done(finished, before, before) == []
    expected = list(stage_table.after(case.stages.split()[0])) if case.stages else []
    assert not_done(finished, before, after) == expected


def test_a_run_computes_just_what_a_changed_setting_asks_for(settings: dict[str, Any], tmp_path: Path) -> None:
    failing = settings | {"analyse": {"promoted_tokens": 0, "labeller": "tests.test_keys:nobody"}}
    go(tmp_path, failing, code=2)
    before = json.loads((tmp_path / "out" / "run.json").read_text())["stages"]
    assert list(before)[-1] == "validate"
    hdbscan = settings["hdbscan"] | {"cluster_selection_epsilon": 0.02}
    out = go(tmp_path, settings | {"hdbscan": hdbscan})
    after = json.loads((out / "run.json").read_text())["stages"]
    assert [name for name in NAMES if before.get(name) != after[name]] == list(stage_table.after("cluster"))


def nobody(clusters: Any) -> dict[int, str]:
    """Fail as a labeller may."""
    raise ValueError("no names today")


def sweep_files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for part in ("cache", "trials") for path in (out / part).glob("*")} | {
        f"extractions/extraction-{path.name}" for path in (out / "extractions").iterdir()
    }


def kinds(files: set[str]) -> set[str]:
    return {
        "trial" if file.startswith("trials") else "tree" if "-tree-" in file else Path(file).name.split("-")[0]
        for file in files
    }


def test_a_sweep_makes_just_what_a_changed_setting_asks_for(settings: dict[str, Any], tmp_path: Path) -> None:
    def files(change: dict[str, Any]) -> set[str]:
        base = json.loads(json.dumps(settings))
        for key, value in change.items():
            configfile.assign(base, key, value)
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump({"base": base, "vary": {"analyse.keywords": [8]}, "seeds": 1}))
        given = [str(file), "--out", str(tmp_path / "out"), "--scheduler", "threads", "--quiet"]
        assert sweep_command.main(given) == 0
        return sweep_files(tmp_path / "out")

    known = files({})
    assert kinds(known) == {"extraction", "moments", "neighbors", "embedding", "trial"}
    for change, expected in [
        ({}, set()),
        ({"quality.seeds": 2}, set()),
        ({"hdbscan.min_cluster_size": 5}, {"trial"}),
        ({"extract.activation_threshold": 1e-9}, {"moments", "trial"}),
        ({"consensus.n_epochs": 30}, {"embedding", "trial"}),
        ({"umap.metric": "euclidean"}, {"neighbors", "embedding", "trial"}),
        ({"select.sparsity_max": 0.9}, {"neighbors", "embedding", "trial"}),
        ({"cluster.method": "distances"}, {"tree", "trial"}),
    ]:
        found = files(change)
        # Trees are computed with the neighbours, which are written anew under the same names
        assert kinds(found - known) == expected, change
        known = found
    for name in known:
        if name.endswith(".npz"):
            with np.load(tmp_path / "out" / name) as file:
                assert json.loads(str(file["made_by"])) == run_folder.versions(), name
        elif name.endswith(".zarr"):
            assert zarr.open_group(tmp_path / "out" / name).attrs["made_by"] == run_folder.versions(), name
    written = yaml.safe_load((tmp_path / "out" / "sweep.yaml").read_text())
    for version, words in [(1, "record version 1"), (run_folder.RECORD_VERSION + 1, "written by a newer one")]:
        (tmp_path / "out" / "sweep.yaml").write_text(yaml.safe_dump(written | {"record_version": version}))
        given = [str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out"), "--scheduler", "threads", "--quiet"]
        assert sweep_command.main(given) == 2, words
        assert sweep_files(tmp_path / "out") == known


def test_content_keys_tell_data_apart() -> None:
    assert content_key("a", 1) == content_key("a", 1)
    assert content_key("a", 1) != content_key("a", 2)
