"""Colours and marks of clusters and quadrants, which colour-blind readers can tell apart on light and dark ground.

After Okabe and Ito, and Tol. Never by colour alone: clusters of one hue differ by mark, and a point names its cluster.
"""

from __future__ import annotations

from typing import Final

from gpuclust import schema

HUES: Final = (
    "#0072b2", "#d98200", "#00896a", "#c2578f", "#2f9ad0", "#d55e00", "#8f8200", "#882255", "#3a978a", "#7a67de",
)  # fmt: skip
HUES_DARK: Final = (
    "#5aaeea", "#f2b13c", "#2fc79a", "#ea9cc6", "#93d3f7", "#ff8d55", "#d9cd45", "#dd7299", "#74d3c6", "#b6a9ff",
)  # fmt: skip
MARKS: Final = ("circle", "square", "diamond", "cross", "triangle-up", "star")
EVIDENCE: Final = {"real": 2, "supported": 0, "topic only": 1, "fragile": 3}  # place in HUES; the others are quiet
QUIET: Final = "#9a9aa0"  # noise
QUADRANTS: Final = {schema.FLOWING: 0, schema.CAREFUL: 1, schema.EXPLORING: 2, schema.RESAMPLING: 3}  # place in HUES


def hue(cluster: int) -> str:
    """Return the colour of a cluster on light ground."""
    return QUIET if cluster == schema.NOISE else HUES[cluster % len(HUES)]


def mark(cluster: int) -> str:
    """Return Plotly's name of the mark of a cluster."""
    return MARKS[0] if cluster == schema.NOISE else MARKS[cluster // len(HUES) % len(MARKS)]
