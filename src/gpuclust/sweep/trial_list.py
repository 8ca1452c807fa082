"""Which trials a sweep has, and the activations and prompts that each of them uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gpuclust import schema
from gpuclust.config import Config
from gpuclust.errors import GpuclustError
from gpuclust.storage.keys import content_key
from gpuclust.sweep import subsets
from gpuclust.sweep.grid import Setting, SweepConfig
from gpuclust.sweep.sharing import Extraction, Trial, texts, with_tokens

APART = 1000  # between the seeds of a consensus, whose members count on from there


def identity(setting: Setting) -> str:
    """What the activations of a setting depend on, the number of prompts and its rows left out."""
    return "" if setting.config is None else content_key(texts(setting.config))


def extractions_wanted(settings: Sequence[Setting]) -> dict[str, Config]:
    """The configuration with the most prompts, and tokens if any asks for rows of them, by what activations are of."""
    wanted: dict[str, Config] = {}
    for setting in settings:
        if setting.config is not None:
            known = wanted.get(identity(setting))
            if known is None or known.n_prompts < setting.config.n_prompts:
                wanted[identity(setting)] = setting.config
    of_tokens = {
        identity(setting) for setting in settings if setting.config is not None and setting.config.keeps_tokens
    }
    return {name: with_tokens(config) if name in of_tokens else config for name, config in wanted.items()}


def read_extraction(path: Path, config: Config, key: str, facts: Mapping[str, Any]) -> Extraction:
    """Activations in a folder, of which `facts` are known: the record's entry of the stage prompts.

    Parameters
    ----------
    path : Path
        Folder of a run.
    config : Config
    key : str
        Of the stage extract.
    facts : mapping
    """
    prompts = pd.read_parquet(path / schema.PROMPTS, columns=["source", "n_tokens"])
    return Extraction(key, config, path, prompts, facts["d_sae"], facts["attributes"])


def trials_of(
    sweep: SweepConfig, base: Mapping[str, Any], settings: Sequence[Setting],
    extractions: Mapping[str, Extraction | str],
) -> list[Trial]:  # fmt: skip
    """Every setting with every seed, the configuration that its seed gives, and the prompts that it uses.

    Parameters
    ----------
    sweep : SweepConfig
    base : mapping
        The resolved base configuration.
    settings : sequence of Setting
        As from `grid.expand`.
    extractions : mapping of str to Extraction or str
        By `identity`; the text of the error where there is none.
    """
    sizes = _group_sizes(sweep, settings, extractions)
    first = Config.model_validate(base).umap.random_state
    found = []
    for setting in settings:
        for seed in range(first, first + sweep.seeds):
            trial = Trial(setting, seed)
            found.append(trial)
            used = _prompts_of(setting, extractions, sizes)
            if setting.config is None or isinstance(used, str):
                trial.error = str(used)
                continue
            trial.extraction, trial.subset = used
            trial.pattern = sweep.source_pattern if setting.source is not None else ""
            apart = APART if setting.config.n_members > 1 else 1
            umap = setting.config.umap.model_copy(update={"random_state": first + apart * (seed - first)})
            trial.config = setting.config.model_copy(update={"umap": umap})
    return found


def _prompts_of(
    setting: Setting, extractions: Mapping[str, Extraction | str], sizes: dict[Any, dict[Any, int | str]]
) -> tuple[Extraction, subsets.Subset] | str:
    """The activations and the prompts of a setting, or why it has none."""
    if setting.config is None:
        return str(setting.error)
    extraction = extractions[identity(setting)]
    if isinstance(extraction, str):
        return extraction
    n = min(setting.config.n_prompts, len(extraction.prompts))
    if _kind(setting) != (False, False):
        own = sizes[_kind(setting)]
        size = own[setting.source, setting.length]
        if isinstance(size, str):
            return size
        n = min(n, *(value for value in own.values() if isinstance(value, int)))
    return extraction, subsets.Subset(setting.source, setting.length, n)


def _group_sizes(
    sweep: SweepConfig, settings: Sequence[Setting], extractions: Mapping[str, Extraction | str]
) -> dict[Any, dict[Any, int | str]]:
    """Prompts of every group, or why it cannot be used, by kind of group: groups of a kind are cut to one size."""
    sizes: dict[Any, dict[Any, int | str]] = {}
    for setting in settings:
        extraction = extractions.get(identity(setting)) if setting.config is not None else None
        if _kind(setting) == (False, False) or not isinstance(extraction, Extraction):
            continue
        pattern, prompts = sweep.source_pattern, extraction.prompts
        size = len(subsets.group_prompts(prompts, pattern, setting.source, setting.length))
        own = sizes.setdefault(_kind(setting), {})
        group = setting.source, setting.length
        try:
            subsets.refuse_small(size, subsets.Subset(*group, size), prompts, pattern)
        except GpuclustError as error:
            own[group] = str(error)
        else:
            before = own.get(group, size)  # the same group may be of several extractions
            own[group] = min(size, before) if isinstance(before, int) else before
    return sizes


def _kind(setting: Setting) -> tuple[bool, bool]:
    return setting.source is not None, setting.length is not None
