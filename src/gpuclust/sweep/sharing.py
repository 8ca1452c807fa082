"""What the settings of a sweep are made of, and the names of what they share.

A name says all that its file depends on: fields of the configuration, the names of the files before it, and the
versions of the algorithms that make it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.config import Config
from gpuclust.config_sections import NeighborsConfig
from gpuclust.engine import reuse
from gpuclust.engine.token_rows import Rows
from gpuclust.stage_table import get
from gpuclust.storage.keys import content_key
from gpuclust.sweep.grid import Setting
from gpuclust.sweep.subsets import Subset
from gpuclust.types import Array

PARTS = ("all", "half0", "half1")
TREE = "-tree-"  # in the names of spanning trees
# What a sweep makes: the version of its own algorithm, raised by hand when its numbers change, and the stages of a run
# whose code it calls, whose versions count too.
ALGORITHMS: dict[str, tuple[int, tuple[str, ...]]] = {
    "extraction": (1, ("prompts", "extract")),
    "moments": (1, ("reduce",)),
    "neighbors": (1, ("neighbors",)),
    "embedding": (1, ("embed",)),
    "redrawn": (1, ("embed", "cluster")),
    "trial": (2, ("reduce", "cluster", "quality")),
}


@dataclass(eq=False)
class Extraction:
    """The activations that some settings share: key, a configuration with the most prompts, folder, prompts."""

    key: str
    config: Config
    run: Path
    prompts: pd.DataFrame
    d_sae: int
    attributes: dict[str, Any]


@dataclass(eq=False)
class Trial:
    """A setting with a seed. What it is made from is filled in on the way; `error` ends it."""

    setting: Setting
    seed: int
    config: Config = field(default_factory=Config)
    extraction: Extraction | None = None
    subset: Subset | None = None
    pattern: str = ""
    moments: str = ""
    kept: Array | None = None
    point: Array | None = None  # the feature that each kept one is clustered as (`duplicates`)
    near: tuple[str, ...] = ()
    key: str = ""
    error: str | None = None


@dataclass
class Counts:
    """What was computed and not found: extractions, passes over a store, neighbours and so on."""

    extractions: int = 0
    store_reads: int = 0
    neighbors: int = 0
    embeddings: int = 0
    trees: int = 0
    trials: int = 0


@dataclass(eq=False)
class Request:
    """Neighbours to compute: of one subset, its kept features without copies, one metric, and rows; None: prompts."""

    subset: Subset
    kept: Array
    metric: str
    near: tuple[str, ...]
    active_above: float | None = None
    rows: Rows | None = None
    k: int = 0
    min_samples: set[int] = field(default_factory=set)


def algorithms(kind: str) -> list[int]:
    """Versions of the algorithms that make something of a kind of `ALGORITHMS`."""
    own, used = ALGORITHMS[kind]
    return [own, *(get(name).version for name in used)]


def named(kind: str, *parts: Any) -> str:
    """Hash of what something depends on, its algorithms among it."""
    return content_key(kind, algorithms(kind), *parts)


def texts(config: Config) -> dict[str, Any]:
    """What activations depend on, the number of prompts and whether tokens are kept left out: fields and values."""
    return {name: value for name, value in reuse.texts(config).items() if name not in ("n_prompts", reuse.KEEPS_TOKENS)}


def extraction_name(config: Config) -> str:
    """Name of the folder of activations."""
    known = {name: value for name, value in reuse.texts(config).items() if name != "n_prompts"}
    return named("extraction", known, config.n_prompts)


def with_tokens(config: Config) -> Config:
    """The configuration of an extraction that keeps tokens beside prompts, for settings of any rows."""
    if config.keeps_tokens:
        return config
    free = {"rows": "token"}, {"metric": None}  # a metric may be one of prompts
    return config.model_copy(update={
        "extract": config.extract.model_copy(update=free[0]), "umap": config.umap.model_copy(update=free[1]),
        "neighbors": NeighborsConfig(),
    })  # fmt: skip


def there(extractions: Path, config: Config) -> Config:
    """The configuration of activations that a sweep's folder has: with tokens where it has those, which serve all rows.

    Parameters
    ----------
    extractions : Path
        Folder of the sweep's extractions.
    config : Config
    """
    fuller = with_tokens(config)
    return fuller if (extractions / extraction_name(fuller)).exists() else config


def prompts_key(trial: Trial) -> str:
    """What the prompts of a trial depend on."""
    assert trial.extraction is not None
    return content_key(trial.extraction.key, trial.pattern, trial.subset)


def moments_name(trial: Trial, thresholds: Sequence[float]) -> str:
    """Name of the moments of a trial's prompts, with the active prompts for several thresholds."""
    return f"moments-{named('moments', prompts_key(trial), thresholds)}"


def near_names(trial: Trial) -> tuple[str, ...]:
    """Names of the neighbours of a trial's features, in the order of `PARTS`; for any number of them."""
    assert trial.point is not None
    c = trial.config
    more: list[Any] = [] if c.active_above is None else [c.active_above]
    more += [c.extract.rows, c.used_window] if c.keeps_tokens else []
    key = named("neighbors", prompts_key(trial), _digest(np.unique(trial.point)), c.metric, c.seed, *more)
    return tuple(f"neighbors-{key}-{part}" for part in PARTS)


def tree_name(near: str, min_samples: int) -> str:
    """Name of the exact cosine spanning tree of some neighbours' features."""
    return f"{near}{TREE}{min_samples}"


def member_names(config: Config, near: str) -> list[str]:
    """Names of what one part of a trial is clustered on: neighbours, a tree, or an embedding a member."""
    if config.cluster.method == "communities":
        return [near]
    if config.tree_samples is not None:
        return [tree_name(near, config.tree_samples)]
    umap = config.umap.model_dump()
    redrawn = (near, umap, config.n_neighbors, config.consensus.n_epochs)
    return [f"embedding-{named('embedding', near, umap)}"] + [
        f"embedding-{named('redrawn', *redrawn, number)}" for number in range(1, config.n_members)
    ]


def trial_name(trial: Trial) -> str:
    """Name of a trial."""
    c = trial.config
    settings: list[Any] = [c.hdbscan.model_dump(), *([c.agreement] if c.n_members > 1 else [])]
    if c.cluster.method == "communities":
        used = (c.hdbscan.min_cluster_size, c.n_neighbors, c.n_members, c.umap.random_state, c.metric)
        settings = [c.communities.model_dump(), c.agreement, *used]
    if c.used_dbscan:
        settings = [c.dbscan.model_dump(), c.hdbscan.min_cluster_size, c.n_neighbors]
    made_of = [member_names(c, near) for near in trial.near]
    assert trial.kept is not None
    assert trial.point is not None
    spread = _digest(trial.kept, trial.point)
    return named("trial", made_of, c.extract.activation_threshold, spread, *settings)


def _digest(*arrays: Array) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def n_features(trial: Trial) -> int:
    """Features of the SAE whose activations a trial clusters."""
    assert trial.extraction is not None
    return trial.extraction.d_sae
