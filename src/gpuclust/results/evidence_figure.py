"""One figure of what was tried on every cluster: each test a row of points, beside its controls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpuclust.compute import evidence, verdicts
from gpuclust.errors import InputError
from gpuclust.results import palette, pictures
from gpuclust.schema import NOISE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, ROW, MARGIN = 8.0, 1.35, 1.1  # inches: of the figure, of a test, and of what is above and below
NUMBERED = 60  # clusters whose numbers have room below


@dataclass(frozen=True)
class Panel:
    """A test: its name, the columns of its value, controls and interval, and where chance lies."""

    name: str
    value: str
    control: str = ""
    low: str = ""
    high: str = ""
    beyond_control: bool = False  # low and high are of the difference
    chance: float | None = None
    logarithmic: bool = False


PANELS = (
    Panel("found again:\nJaccard index of halves", "stability"),
    Panel("told by mates, given words:\nAUROC", "prediction_given_words", "prediction_given_words_random",
          "prediction_low", "prediction_high", True, 0.5),
    Panel("on the same token:\ntimes random sets", "token_excess", "", "token_low", "token_high", chance=1.0,
          logarithmic=True),
    Panel("within 16 tokens:\ntimes random sets", "near_excess", "", "near_low", "near_high", chance=1.0,
          logarithmic=True),
    Panel("taken out of the model:\nKL, nats a token", "cause_kl", "cause_kl_random", logarithmic=True),
    Panel("in another SAE:\ncorrelation over prompts", "replicate_r", "replicate_r_random"),
)  # fmt: skip


def write(clusters: pd.DataFrame, path: Path, dark: bool = False) -> list[str]:
    """Write what was tried on each cluster as a picture.

    Parameters
    ----------
    clusters : DataFrame
        Columns of ``schema.CLUSTER_COLUMNS``.
    path : Path
        Ends in .svg, .pdf or .png.
    dark : bool
        On dark ground.

    Returns
    -------
    list of str
        The columns of values that are shown: those that any cluster has.

    Raises
    ------
    InputError
        For another kind of file, or where nothing was tried on any cluster.
    """
    table = clusters[clusters["cluster"] != NOISE]
    shown = [panel for panel in PANELS if panel.value in table and table[panel.value].notna().any()]
    if not shown:
        raise InputError("there is nothing to draw: no test was made of any cluster (quality.halves, validation)")
    words = list(evidence.WORDS)
    word = table.get("evidence", pd.Series(index=table.index, dtype=object)).astype(object)
    place = word.map({name: at for at, name in enumerate(words)}).fillna(len(words))
    table = table.assign(word=word, place=place).sort_values(["place", "stability"], ascending=[True, False])
    with pictures.picture(path, (WIDTH, ROW * len(shown) + MARGIN), dark) as figure:
        axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for panel, one in zip(shown, axes, strict=True):
            _draw(one, panel, table, dark)
        if len(table) <= NUMBERED:
            axes[-1].set_xticks(range(len(table)), table["cluster"].astype(str), rotation=90, fontsize=6)
            axes[-1].tick_params(labelbottom=True)
        axes[-1].set_xlabel(
            "clusters, by evidence and then by how far halves find them again", color=pictures.INK[dark]
        )
        _legend(figure, table, dark)
    return [panel.value for panel in shown]


def _draw(axes: Axes, panel: Panel, table: pd.DataFrame, dark: bool) -> None:
    ink = pictures.INK[dark]
    axes.set_facecolor(pictures.GROUND[dark])
    axes.set_ylabel(panel.name, color=ink, fontsize=7)
    axes.tick_params(colors=ink, labelsize=7, bottom=False, labelbottom=False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "left")
        spine.set_color(palette.QUIET)
    if panel.logarithmic:
        _logarithmic(axes)
    if panel.chance is not None:
        axes.axhline(panel.chance, color=palette.QUIET, linewidth=0.8, linestyle=":")
    x, value = np.arange(len(table)), table[panel.value].to_numpy(np.float64)
    size = max(2.0, min(14.0, 900 / max(len(table), 1)))
    colours = [_colour(name, dark) for name in table["word"]]
    if panel.control:
        control = table[panel.control].to_numpy(np.float64)
        axes.scatter(x, control, marker="_", s=2 * size, color=palette.QUIET, linewidths=0.9)
    if panel.low:
        base = table[panel.control].to_numpy(np.float64) if panel.beyond_control else np.zeros(len(table))
        ends = [base + table[name].to_numpy(np.float64) for name in (panel.low, panel.high)]
        axes.vlines(x, *ends, color=colours, linewidth=0.7, alpha=0.6)
    hollow = table["word"].isin(verdicts.DOUBTFUL).to_numpy()
    for some, fill in ((~hollow, None), (hollow, "none")):
        own = [colour for colour, here in zip(colours, some, strict=True) if here]
        axes.scatter(x[some], value[some], s=size, facecolors=fill or own, edgecolors=own, linewidths=0.6)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    from matplotlib import ticker

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def _colour(word: Any, dark: bool) -> str:
    hues = palette.HUES_DARK if dark else palette.HUES
    return hues[palette.EVIDENCE[word]] if word in palette.EVIDENCE else palette.QUIET


def _legend(figure: Any, table: pd.DataFrame, dark: bool) -> None:
    """Words and how many clusters have each, above; what marks mean, with them."""
    from matplotlib.lines import Line2D

    counts = evidence.counted(table["word"].to_numpy(object))
    handles = [
        Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            color=_colour(name, dark),
            markersize=4,
            label=f"{times:,} {name}",
            fillstyle="none" if name in verdicts.DOUBTFUL else "full",
        )
        for name, times in counts.items()
    ]
    handles.append(Line2D([], [], marker="_", linestyle="", color=palette.QUIET, label="controls"))
    handles.append(Line2D([], [], linestyle=":", color=palette.QUIET, label="chance"))
    handles.append(Line2D([], [], marker="|", linestyle="", color=palette.QUIET, label="95% interval"))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=7,
        labelcolor=pictures.INK[dark],
    )  # fmt: skip
