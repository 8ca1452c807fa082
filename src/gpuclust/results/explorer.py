"""The map as a widget in a notebook: a click on a point shows its feature's card, and its cluster's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuclust.errors import InputError
from gpuclust.results import figures
from gpuclust.schema import NOISE

if TYPE_CHECKING:
    from gpuclust.results.run import Run

HINT = "<p>Click a point: its feature's card is shown here, and its cluster's below it.</p>"


def explore(run: Run) -> Any:
    """Make the widget.

    Parameters
    ----------
    run : Run
        Done as far as its cluster tables.

    Returns
    -------
    ipywidgets.HBox
        The map, a Plotly figure widget, and beside it the cards.

    Raises
    ------
    InputError
        Where ipywidgets or anywidget are not installed.
    """
    try:
        import anywidget  # noqa: F401  # Plotly's figure widgets need it
        import ipywidgets
    except ImportError as error:
        raise InputError(
            f'run.explore() needs ipywidgets and anywidget ({error}): pip install "gpuclust[notebook]". run.map() and '
            "run.cluster(N) do without"
        ) from error
    import plotly.graph_objects as go

    labels = run.features.set_index("feature")["label"]
    cards = ipywidgets.HTML(HINT, layout={"width": "42%", "max_height": "650px", "overflow": "auto"})

    def show(trace: Any, points: Any, state: Any) -> None:
        if points.point_inds:
            feature = int(trace.customdata[points.point_inds[0]])
            shown, cluster = [run.feature(feature)], int(labels[feature])
            if cluster != NOISE:
                shown.append(run.cluster(cluster))
            cards.value = "<hr>".join(card._repr_html_() for card in shown)

    figure = go.FigureWidget(figures.feature_map(run.features, run.clusters))
    figure.update_layout(clickmode="event")
    for trace in figure.data:
        trace.on_click(show)
    box = ipywidgets.Box([figure], layout={"width": "58%"})
    return ipywidgets.HBox([box, cards])
