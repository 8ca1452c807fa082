"""The map as a picture for a paper or a page: points by cluster, and the names that fit beside them."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpuclust.compute import verdicts
from gpuclust.results import palette, pictures
from gpuclust.results.pictures import GROUND, INK
from gpuclust.schema import NOISE
from gpuclust.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (8.0, 5.0)
MARKS = {"circle": "o", "square": "s", "diamond": "D", "cross": "P", "triangle-up": "^", "star": "*"}
WORDS, CHARACTERS = 3, 28  # of a cluster's name
ROOM = 5  # pixels around a name
PALE = 0.5  # opacity of clusters that are found again in part
FADED = 0.2  # opacity of clusters that are not found again, or no better than random


def write(
    features: pd.DataFrame,
    clusters: pd.DataFrame,
    path: Path,
    dark: bool = False,
    themes: pd.DataFrame | None = None,
    caption: str = "",
) -> list[int]:
    """Write the map of a run as a picture.

    Parameters
    ----------
    features, clusters : DataFrame
        Columns of ``schema.FEATURE_COLUMNS`` and ``schema.CLUSTER_COLUMNS``.
    path : Path
        Ends in .svg, .pdf or .png.
    dark : bool
        On dark ground.
    themes : DataFrame, optional
        Columns of ``schema.THEME_COLUMNS``: their words are written first, and larger.
    caption : str
        Of what, beneath the map; what the colours mean is added.

    Returns
    -------
    list of int
        Clusters whose names found room, after the themes: the stable ones first, and of them those whose most features
        are found again (size times stability).

    Raises
    ------
    InputError
        For another kind of file.
    """
    with pictures.picture(path, INCHES, dark) as figure:
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.set_aspect("equal", adjustable="datalim")
        bold = themes is not None and len(themes) > 0
        figure.supxlabel(_caption(caption, clusters, bold), x=0.01, ha="left", fontsize=7, color=palette.QUIET)
        return _draw(axes, features[features["kept"]], clusters, dark, themes)


def _caption(about: str, clusters: pd.DataFrame, bold: bool) -> str:
    """What is seen, on lines that are as long as the picture is wide."""
    found = set(clusters["verdict"].dropna()) if "verdict" in clusters else set()
    faded = " faded what is not found again or no better than random," if found & set(verdicts.DOUBTFUL) else ""
    part = "; italic and pale what is found again in part" if verdicts.FRAGILE in found else ""
    legend = f"A point is a feature; colours and marks, which repeat, are clusters;{faded} grey is noise"
    names = f"Names as far as there is room, those found again first{part}{'; bold: themes' if bold else ''}"
    return "\n".join([*([about] if about else []), f"{legend}.", f"{names}."])


def _draw(axes: Axes, kept: pd.DataFrame, clusters: pd.DataFrame, dark: bool, themes: pd.DataFrame | None) -> list[int]:
    hues = palette.HUES_DARK if dark else palette.HUES
    label = kept["label"].to_numpy(np.int64)
    places = kept[["x", "y"]].to_numpy(np.float64)
    size = 60 / (1 + (len(kept) / 400) ** 0.5)
    x, y = places.T
    noise = label == NOISE
    axes.scatter(x[noise], y[noise], s=size / 3, c=palette.QUIET, alpha=0.45, linewidths=0)
    real = clusters[clusters["cluster"] != NOISE]
    doubtful = real["verdict"].isin(verdicts.DOUBTFUL) if "verdict" in real else pd.Series(False, real.index)
    verdict = real["verdict"].tolist() if "verdict" in real else [None] * len(real)
    for cluster, judged in zip(real["cluster"].tolist(), verdict, strict=True):
        own, alpha = label == cluster, 0.85
        if judged == verdicts.FRAGILE or judged in verdicts.DOUBTFUL:
            alpha = PALE if judged == verdicts.FRAGILE else FADED
        marker = MARKS[palette.mark(cluster)]
        axes.scatter(x[own], y[own], s=size, color=hues[cluster % len(hues)], marker=marker, alpha=alpha, linewidths=0)
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    sure = real[~doubtful]
    stable = sure["verdict"] == verdicts.STABLE if "verdict" in sure else pd.Series(True, sure.index)
    again = sure["size"] * (sure["stability"].fillna(1) if "stability" in sure else 1)  # features that are found again
    order = sure.assign(stable=stable, again=again).sort_values(["stable", "again"], ascending=False, kind="stable")
    taken: list[Any] = []
    if themes is not None and len(themes):
        above = themes[themes["doubtful"] < themes["clusters"].map(len)]
        wide = [(_joined(list(row["words"])), row["clusters"]) for row in above.to_dict("records")]
        _name(axes, wide, places, label, dark, taken, size=10, weight="bold")
    named = []
    for style, rows in (("normal", order[order["stable"]]), ("italic", order[~order["stable"]])):
        fine = [(_title(row), [int(row["cluster"])]) for row in rows.to_dict("records")]
        named += [clusters[0] for clusters in _name(axes, fine, places, label, dark, taken, style=style)]
    return named


def _name(
    axes: Axes, names: list[tuple[str, list[int]]], places: Array, label: Array, dark: bool, taken: list[Any],
    **font: Any,
) -> list[list[int]]:  # fmt: skip
    """Write names in the order given, each at the median place of its clusters, where none is in the way.

    Returns the clusters of those that found room, whose boxes are added to `taken`.
    """
    from matplotlib.patheffects import withStroke

    named = []
    for words, clusters in names:
        if not words:
            continue
        x, y = np.median(places[np.isin(label, clusters)], axis=0).tolist()
        halo = withStroke(linewidth=2.5, foreground=GROUND[dark])
        text = axes.text(x, y, words, color=INK[dark], ha="center", va="center", path_effects=[halo], **font)
        box = text.get_window_extent().padded(ROOM)
        inside = axes.figure.bbox
        if any(box.overlaps(other) for other in taken) or not inside.containsx(box.x0) or not inside.containsx(box.x1):
            text.remove()
            continue
        taken.append(box)
        named.append(clusters)
    return named


def _title(row: dict[Any, Any]) -> str:
    """The given name, or the first words, on one line, cut."""
    name, tokens = row.get("name"), row.get("tokens")
    if isinstance(name, str) and name:
        return _cut(name)
    return _joined(list(tokens)) if isinstance(tokens, list | np.ndarray) else ""


def _joined(words: list[str]) -> str:
    """The first words, as many as have room whole."""
    while len(words) > 1 and (len(words) > WORDS or len(" · ".join(words)) > CHARACTERS):
        words = words[:-1]
    return _cut(" · ".join(words))


def _cut(text: str) -> str:
    text = "".join(c for c in " ".join(text.split()) if unicodedata.category(c)[0] != "C")
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1].rstrip() + "…"
