"""What the settings of a sweep are made of, and the names of what they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.config import Config
from gpuclust.folder import content_key
from gpuclust.grid import Setting
from gpuclust.subsets import Subset

Array = np.ndarray[Any, Any]


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
    """Neighbours to compute: of one subset, its kept features without copies, and one metric."""

    subset: Subset
    kept: Array
    metric: str
    near: tuple[str, ...]
    k: int = 0
    min_samples: set[int] = field(default_factory=set)


def tree_name(near: str, min_samples: int) -> str:
    """Name of the exact cosine spanning tree of some neighbours' features."""
    return f"{near}-tree-{min_samples}"


def prompts_key(trial: Trial) -> str:
    """What the prompts of a trial depend on."""
    assert trial.extraction is not None
    return content_key(trial.extraction.key, trial.pattern, trial.subset)


def fewest_active(trial: Trial) -> int:
    """The fewest prompts that a feature fires on in any subset, if a filter keeps it there."""
    assert trial.subset is not None
    select = trial.config.select
    return max(select.min_active_prompts, int(np.floor(select.sparsity_min * trial.subset.n)))


def n_features(trial: Trial) -> int:
    """Features of the SAE whose activations a trial clusters."""
    assert trial.extraction is not None
    return trial.extraction.d_sae
