"""The table of themes: what each holds, and words for it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.tables import words
from gpuclust.types import Array

WORDS = 4  # of a theme


def theme_table(themes: Array, clusters: pd.DataFrame, correlation: Array, doubtful: Array) -> pd.DataFrame:
    """Describe every theme.

    Parameters
    ----------
    themes : array, (cluster,), int
        From 0; -1 for all where there are none.
    clusters : DataFrame
        Columns of ``schema.CLUSTER_COLUMNS``, a row per cluster by number, without noise.
    correlation : array, (cluster, cluster), float64
    doubtful : array, (cluster,), bool
        Not found again, or no better than random: their words come last.

    Returns
    -------
    DataFrame
        Columns of ``schema.THEME_COLUMNS``.
    """
    rows = []
    for theme in range(int(themes.max(initial=schema.NOISE)) + 1):
        own = np.flatnonzero(themes == theme)
        central = np.nan_to_num(correlation[np.ix_(own, own)]).mean(axis=1)
        order = own[np.lexsort((-central, doubtful[own]))]
        rows.append(
            {
                "theme": theme,
                "words": _words(clusters.iloc[order]),
                "size": int(clusters["size"].iloc[own].sum()),
                "clusters": order.tolist(),
                "doubtful": int(doubtful[own].sum()),
            }
        )
    return pd.DataFrame(rows, columns=list(schema.THEME_COLUMNS)).astype(
        {name: dtype for name, (dtype, _) in schema.THEME_COLUMNS.items() if dtype == "int64"}
    )


def _words(clusters: pd.DataFrame) -> list[str]:
    """A name or word of each cluster in turn, no word twice; stop words and numbers only where there are no others."""
    names: dict[str, str] = {}
    others: dict[str, str] = {}
    for row in clusters.to_dict("records"):
        listed = row["tokens"] if isinstance(row["tokens"], list | np.ndarray) else row["keywords"]
        if isinstance(name := row.get("name"), str) and name:
            names.setdefault(words.folded(name), name)
        elif found := next(
            (word for word in listed if any(words.terms(word)) and words.folded(word) not in names), None
        ):
            names[words.folded(found)] = found
        elif len(listed):
            others.setdefault(words.folded(listed[0]), listed[0])
    return [*names.values(), *others.values()][:WORDS]
