"""Figures: a run's features as Plotly figures, for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpuclust.errors import InputError
from gpuclust.results import palette
from gpuclust.schema import NOISE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def feature_map(features: pd.DataFrame, clusters: pd.DataFrame) -> Figure:
    """Draw the 2-D map of the kept features, coloured and marked by cluster, noise quiet.

    Parameters
    ----------
    features, clusters : DataFrame
        Columns of ``schema.FEATURE_COLUMNS`` and ``schema.CLUSTER_COLUMNS``.

    Returns
    -------
    plotly.graph_objects.Figure
        Two WebGL traces, noise and clusters; ``customdata`` holds the feature numbers.
    """
    import plotly.graph_objects as go

    kept = features[features["kept"]]
    words = {row["cluster"]: describe(row) for row in clusters.to_dict("records")}
    figure = go.Figure()
    label = kept["label"].to_numpy(dtype=np.int64)
    for name, part, size, opacity in (("noise", label == NOISE, 4, 0.4), ("clusters", label != NOISE, 6, 0.85)):
        shown, of = kept[part], label[part]
        marker = {
            "color": [palette.hue(c) for c in of], "symbol": [palette.mark(c) for c in of], "size": size,
            "opacity": opacity,
        }  # fmt: skip
        texts = [f"feature {f}<br>{escape(words.get(c, 'noise'))}" for f, c in zip(shown["feature"], of, strict=True)]
        figure.add_trace(_points(shown, "x", "y", name, marker, texts))
    figure.update_layout(height=650, showlegend=False, margin={"l": 10, "r": 10, "t": 10, "b": 10}, dragmode="pan")
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return figure


def entropy_plot(features: pd.DataFrame, x: str = "entropy", y: str = "varentropy") -> Figure:
    """Plot two statistics of the kept features by quadrant, with lines at the medians.

    Parameters
    ----------
    features : DataFrame
        Columns of ``schema.FEATURE_COLUMNS``.
    x, y : str
        Of entropy, varentropy and sparsity.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    InputError
        For a name that is none of them.
    """
    import plotly.graph_objects as go

    units = {"entropy": "nats", "varentropy": "nats²", "sparsity": "share of prompts"}
    for axis in (x, y):
        if axis not in units:
            raise InputError(f"{axis!r} is not plotted here: choose from {', '.join(units)}")
    kept = features[features["kept"]]
    figure = go.Figure()
    for name, place in palette.QUADRANTS.items():
        part = kept[kept["quadrant"] == name]
        marker = {"color": palette.HUES[place], "symbol": palette.MARKS[place], "size": 5, "opacity": 0.7}
        figure.add_trace(_points(part, x, y, name, marker, [f"feature {f}<br>{name}" for f in part["feature"]]))
    figure.add_vline(float(kept[x].median()), line={"width": 1, "dash": "dot"})
    figure.add_hline(float(kept[y].median()), line={"width": 1, "dash": "dot"})
    figure.update_layout(height=500, margin={"l": 60, "r": 10, "t": 10, "b": 50})
    figure.update_xaxes(title=f"{x} ({units[x]})")
    figure.update_yaxes(title=f"{y} ({units[y]})")
    return figure


def describe(cluster: Any) -> str:
    """Say a cluster's number, its name where it has one, and words at which its features peak."""
    number = int(cluster["cluster"])
    if number == NOISE:
        return "noise"
    name, tokens = cluster.get("name"), cluster.get("tokens")
    words = " · ".join(list(tokens)[:4]) if isinstance(tokens, list | np.ndarray) else ""
    given = name if isinstance(name, str) else ""
    return " ".join([f"cluster {number}:", *([given] if given else []), words]).strip(" :")


def _points(table: pd.DataFrame, x: str, y: str, name: str, marker: dict[str, Any], texts: list[str]) -> Any:
    import plotly.graph_objects as go

    return go.Scattergl(
        x=table[x], y=table[y], mode="markers", name=name, marker=marker, text=texts, hoverinfo="text",
        customdata=table["feature"],
    )  # fmt: skip
