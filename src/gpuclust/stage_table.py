"""The stages of a run: one record each, with all that others need to know of a stage beside how it computes.

Order, names, what is said while one runs, its files, what its key is made of, and what to change when memory runs out:
keys, resuming, the folder, the progress lines and the memory plan read them here and hold no lists of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from gpuclust import schema

if TYPE_CHECKING:
    from gpuclust.config import Config


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes
    ----------
    name, blurb : str
        The name, and what it does, as people see it.
    reads : tuple of str
        The stages before it whose files or facts it reads.
    writes : callable
        Every file and folder that it writes under a configuration, relative to the run's folder.
    fields : tuple of str
        What of the configuration its results depend on beside what it reads: dotted names of fields, whole sections,
        or properties of `Config` that several fields come together in.
    version : int
        Of its algorithm: raise it by hand when its numbers change, and results of older versions are made anew.
    advice : str
        What to change when memory runs out; ``budget.plan`` names the same settings before it runs.
    planned : bool
        Its memory is projected.
    """

    name: str
    blurb: str
    reads: tuple[str, ...]
    writes: Callable[[Config], tuple[str, ...]]
    fields: tuple[str, ...]
    version: int = 1
    advice: str = "keep fewer features (select.*)"
    planned: bool = False


def view_file(view: str, name: str) -> str:
    """Where a view's file lies in a run's folder: the run's own for the whole, else in the folder of views."""
    return name if view == schema.WHOLE else f"{schema.VIEWS}/{view}/{PurePosixPath(name).name}"


def _files(*names: str) -> Callable[[Config], tuple[str, ...]]:
    return lambda config: names


def _near(config: Config, *views: str) -> tuple[str, ...]:
    """Neighbours of views, and for exact distances their spanning trees."""
    names = [schema.NEIGHBORS] if config.tree_samples is None else [schema.NEIGHBORS, schema.SPANNING_TREE]
    return tuple(view_file(view, name) for view in views for name in names)


def _extract(config: Config) -> tuple[str, ...]:
    files = (schema.ACTIVATIONS, schema.SHARDS)
    return (*files, schema.TOKENS) if config.keeps_tokens else files


def _neighbors(config: Config) -> tuple[str, ...]:
    return _near(config, schema.WHOLE, *(schema.HALVES if config.halved else ()))


def _cluster(config: Config) -> tuple[str, ...]:
    tables = (schema.FEATURES, schema.CONDENSED_TREE, schema.PERSISTENCE)
    return (*tables, schema.MEMBERS) if config.n_members > 1 else tables


def _quality(config: Config) -> tuple[str, ...]:
    halves = (schema.HALF_LABELS,) if config.halved else ()
    return (schema.QUALITY, *halves, *(_near(config, schema.NULL) if config.permuted else ()))


def _analyse(config: Config) -> tuple[str, ...]:
    tables = (schema.CLUSTERS, schema.CLUSTER_ACTIVATIONS, schema.CLUSTER_SIMILARITY, schema.THEMES)
    contexts = (schema.CONTEXTS,) if config.n_contexts else ()
    return (*tables, schema.EXAMPLE_SPANS, *contexts)


STAGES = (
    Stage(
        "prompts", "load the model, read prompts", (), _files(schema.PROMPTS),
        ("model", "sae", "prompts", "n_prompts", "min_tokens", "max_tokens", "seed", "deduplicate",
         "extract.prepend_bos"),
        advice="take an earlier layer, or model.dtype=bfloat16",
    ),
    Stage(
        "extract", "activations of every prompt", ("prompts",), _extract,
        ("model", "sae", "keeps_tokens", "extract.aggregate", "extract.prepend_bos", "extract.exclude_special_tokens",
         "extract.top_examples", "store"),
        advice="lower extract.batch_tokens or store.shard_prompts, or set model.dtype=bfloat16", planned=True,
    ),
    Stage(
        "reduce", "entropy, sparsity, varentropy", ("extract",), _files(schema.MOMENTS, schema.EXAMPLES),
        ("extract.activation_threshold", "extract.top_examples"),
        advice="lower store.shard_prompts", planned=True,
    ),
    Stage(
        "select", "filter the features", ("extract", "reduce"), _files(schema.SELECTED),
        ("select", "fewest_features", "copies_by"),
    ),
    Stage(
        "neighbors", "exact neighbours", ("extract", "select"), _neighbors,
        ("neighbors.method", "neighbors.sketch_size", "n_neighbors", "metric", "tree_samples", "halved", "seed",
         "extract.rows", "used_window"),
        advice="keep fewer features (select.*), or set neighbors.method=sketch", planned=True,
    ),
    Stage(
        "embed", "UMAP", ("neighbors",), _files(schema.MAP, schema.EMBEDDING), ("umap",),
        advice="lower umap.n_neighbors or umap.n_components, or keep fewer features (select.*)", planned=True,
    ),
    Stage(
        "cluster", "clusters", ("prompts", "select", "neighbors", "embed"), _cluster,
        ("cluster", "used_communities", "used_dbscan", "hdbscan", "consensus", "quality.duplicates"), version=2,
        advice="lower hdbscan.min_samples or umap.n_components, or keep fewer features (select.*)", planned=True,
    ),
    Stage(
        "quality", "stability, nulls, validity",
        ("prompts", "extract", "select", "neighbors", "embed", "cluster"), _quality, ("quality", "seed"), version=5,
        planned=True,
    ),
    Stage(
        "validate", "held-out prediction, levels",
        ("prompts", "extract", "reduce", "select", "cluster", "quality"),
        _files(schema.VALIDATION, schema.VALIDATION_FACTS),
        ("validation", "seed", "extract.rows", "used_window"),
    ),
    Stage(
        "analyse", "cluster tables",
        ("prompts", "extract", "reduce", "select", "cluster", "quality", "validate"), _analyse,
        ("analyse", "seed", "extract.rows", "used_window"), version=4, planned=True,
    ),
    Stage(
        "report", "report.html",
        ("prompts", "extract", "reduce", "select", "neighbors", "embed", "cluster", "quality", "validate",
         "analyse"),
        _files(schema.REPORT), (),
    ),
)  # fmt: skip
NAMES = tuple(stage.name for stage in STAGES)
PLANNED = tuple(stage.name for stage in STAGES if stage.planned)
ACTIVATIONS = ("prompts", "extract")  # the stages that activations come from: imported ones take their place
_BY_NAME = {stage.name: stage for stage in STAGES}


def get(name: str) -> Stage:
    """Return the stage of a name."""
    return _BY_NAME[name]


def after(name: str) -> tuple[str, ...]:
    """Return the names of a stage and of all after it."""
    return NAMES[NAMES.index(name) :]


def values(stage: Stage, config: Config) -> dict[str, Any]:
    """Return what of the configuration a stage's key depends on, as plain data by the names of `Stage.fields`."""
    return {name: value(config, name) for name in stage.fields}


def value(config: Config, name: str) -> Any:
    """Return a field, a section or what follows from them, such as ``umap.n_components``, as plain data."""
    found: Any = config
    for part in name.split("."):
        found = getattr(found, part)
    if isinstance(found, tuple):
        return [item.model_dump(mode="json") for item in found]
    return found.model_dump(mode="json") if hasattr(found, "model_dump") else found
