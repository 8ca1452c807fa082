"""Select: the filter that decides which features are clustered, and the quadrants of those that are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.config_sections import SelectConfig
from gpuclust.errors import SelectionError

FEW = 100  # prompts


def select(
    statistics: dict[str, Any], config: SelectConfig, needed: int, n_prompts: int | None = None
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Filter the features and name their quadrants.

    Kept where entropy_low < H < entropy_high, sparsity_min < sparsity < sparsity_max (strict), and
    n_active >= min_active_prompts. Quadrants split the kept features at the medians of entropy and varentropy; a value
    at the median counts as low.

    Parameters
    ----------
    statistics : dict of arrays, (feature,)
        As from ``MOMENTS.finalize``.
    config : SelectConfig
    needed : int
        The fewest features that the later stages can work with.
    n_prompts : int, optional
        For the message, where they are few.

    Returns
    -------
    DataFrame
        A row per SAE feature: the statistics, ``kept`` and ``quadrant``.
    dict of str to int
        How many features each threshold removes on its own, and ``kept``.

    Raises
    ------
    SelectionError
        If fewer than `needed` features are kept; says how many each threshold removes.
    """
    table = pd.DataFrame({"feature": np.arange(len(statistics["entropy"]), dtype=np.int64), **statistics})
    passes = {
        f"entropy > {config.entropy_low:g}": table["entropy"] > config.entropy_low,
        f"entropy < {config.entropy_high:g}": table["entropy"] < config.entropy_high,
        f"sparsity > {config.sparsity_min:g}": table["sparsity"] > config.sparsity_min,
        f"sparsity < {config.sparsity_max:g}": table["sparsity"] < config.sparsity_max,
        f"n_active >= {config.min_active_prompts}": table["n_active"] >= config.min_active_prompts,
    }
    table["kept"] = np.logical_and.reduce(list(passes.values()))
    removed = {name: int((~mask).sum()) for name, mask in passes.items()}
    n_kept = int(table["kept"].sum())
    if n_kept < needed:
        each = ", ".join(f"{name} removes {count}" for name, count in removed.items())
        few = (
            f". The run has {n_prompts} prompt(s) only: give more" if n_prompts is not None and n_prompts < FEW else ""
        )
        raise SelectionError(
            f"the filter keeps {n_kept} of {len(table)} features; n_neighbors, min_samples and min_cluster_size need "
            f"at least {needed}. Of all features, {each}{few}. Widen select.*, or lower those three"
        )
    table["quadrant"] = quadrants(table)
    return table, {**removed, "kept": n_kept}


def check_size(n_features: int, needed: int) -> None:
    """Refuse settings that an SAE has too few features for.

    Raises
    ------
    SelectionError
        If `n_features` are fewer than `needed`.
    """
    if n_features < needed:
        raise SelectionError(
            f"n_neighbors, min_samples and min_cluster_size need at least {needed} features, but the SAE has "
            f"{n_features}: lower them"
        )


def quadrants(table: pd.DataFrame) -> pd.Series[str]:
    """Name the quadrant of every kept feature; null for the others."""
    kept = table["kept"].to_numpy()
    high_h = (table["entropy"] > table.loc[kept, "entropy"].median()).to_numpy()
    high_v = (table["varentropy"] > table.loc[kept, "varentropy"].median()).to_numpy()
    names = np.array([[schema.FLOWING, schema.EXPLORING], [schema.CAREFUL, schema.RESAMPLING]], dtype=object)
    found = np.where(kept, names[high_h.astype(int), high_v.astype(int)], None)
    return pd.Series(found, index=table.index, dtype=schema.text_dtype())
