"""Top contexts of clusters: a pass over what fires on every token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.compute import top_rows
from gpuclust.config import Config
from gpuclust.engine import token_rows
from gpuclust.tables import context_table
from gpuclust.types import Array


def contexts(
    out: Path, config: Config, kept: Array, label: Array, peak: Array, prompts: pd.DataFrame, tokenizer: Any
) -> pd.DataFrame:
    """Find the rows on which most features of each cluster fire.

    Parameters
    ----------
    out : Path
        Folder of the run.
    config : Config
        Whose rows are tokens or windows.
    kept, label : array, (kept,), int64
        The SAE's numbers of the features, and their clusters.
    peak : array, (kept,), float64
        Largest abs(activation) of each over prompts.
    prompts : DataFrame
        Columns of ``schema.PROMPT_COLUMNS``.
    tokenizer : Hugging Face tokenizer or None
        None where nothing is known of the texts.

    Returns
    -------
    DataFrame
        Columns of ``schema.CONTEXT_COLUMNS``.

    Notes
    -----
    Memory: the tokens of one shard, some 80 bytes for every activation of a clustered feature that is not zero.
    """
    rows = token_rows.rows_of(config, out)
    assert rows is not None
    features, peak, label = kept[label >= 0], peak[label >= 0], label[label >= 0]
    largest = peak if config.extract.aggregate == "max" else _largest(out, features, rows)
    found, first = top_rows.nothing(), 0
    places: dict[int, tuple[int, Array]] = {}
    for where, fired in token_rows.shards(out, features, rows):
        here = top_rows.top(
            fired, rows.of(where["prompt"]), first, label, largest, config.extract.activation_threshold,
            config.n_contexts,
        )  # fmt: skip
        found = top_rows.merge([found, here], config.n_contexts)
        edges = np.append(rows.starts(where["prompt"]), len(where["prompt"]))
        new = found.row[found.row >= first]
        for row, a, b in zip(new.tolist(), edges[new - first], edges[new - first + 1], strict=True):
            places[row] = int(where["position"][a]), where["token"][a:b]
        places = {row: places[row] for row in found.row.tolist()}
        first += fired.shape[0]
    columns = {
        "cluster": found.cluster, "prompt": found.prompt, "n_features": found.n_features, "score": found.score,
        "position": np.array([places[row][0] for row in found.row.tolist()], np.int64),
        "tokens": [places[row][1].tolist() for row in found.row.tolist()],
        "features": [features[own].tolist() for own in found.columns],
    }  # fmt: skip
    return context_table.context_table(pd.DataFrame(columns), prompts, tokenizer)


def _largest(out: Path, features: Array, rows: token_rows.Rows) -> Array:
    """Largest abs(activation) of each feature over the rows, by a pass of its own: what prompts have is no maximum."""
    largest = np.zeros(len(features))
    for _, fired in token_rows.shards(out, features, rows):
        np.maximum.at(largest, fired.indices, np.abs(fired.data))
    return largest
