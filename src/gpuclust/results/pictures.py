"""Pictures for a paper or a page: a matplotlib figure that is the same bytes for the same run, written at once."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuclust.errors import InputError
from gpuclust.storage import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("gpuclust")

SUFFIXES = (".svg", ".pdf", ".png")
DPI = 160
GROUND, INK = {False: "#ffffff", True: "#16171a"}, {False: "#1b1b1f", True: "#ececf0"}  # by whether it is dark


def check(path: Path) -> None:
    """Refuse a file that is no picture by its name, or is a folder: InputError."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file in it, such as {path / 'map.svg'}")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} ends in {path.suffix or 'nothing'}: a figure is written as {', '.join(SUFFIXES)}")


@contextlib.contextmanager
def picture(path: Path, inches: tuple[float, float], dark: bool = False) -> Iterator[Figure]:
    """Give an empty figure to draw on, and write it when that is done.

    Parameters
    ----------
    path : Path
        Ends in .svg, .pdf or .png.
    inches : (float, float)
        Width and height.
    dark : bool
        On dark ground.

    Raises
    ------
    InputError
        For another kind of file.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check(path)
    wanted: Any = {"svg.hashsalt": "gpuclust", "font.family": "sans-serif", "font.size": 8, "text.parse_math": False}
    # The default beneath it, so that nobody's matplotlibrc makes it another picture
    with style.context(["default", wanted]), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        figure = Figure(inches, DPI, facecolor=GROUND[dark], layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        # No date: the same run gives the same bytes
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
        with atomic.replacing(path) as partial:
            figure.savefig(partial, format=path.suffix[1:].lower(), metadata=metadata)
    for warning in said:
        if "Glyph" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if any("Glyph" in str(warning.message) for warning in said):
        log.warning("figure: matplotlib's font lacks characters of some names, which are drawn as boxes: set "
                    "analyse.labeller to give names that it has")  # fmt: skip
