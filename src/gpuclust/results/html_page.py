"""The bare bones of an HTML page that works offline: head, tables, figures. Text is escaped here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from gpuclust.formatting import plain

STYLE = """
:root { color-scheme: light dark; --fg: #1c1c1e; --bg: #fff; --quiet: #6b6b70; --line: #d8d8dc; }
@media (prefers-color-scheme: dark) { :root { --fg: #eee; --bg: #18181a; --quiet: #a0a0a6; --line: #3a3a3e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); max-width: 72rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .25rem .6rem .25rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--quiet); font-weight: 500; overflow-wrap: normal; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; } .quiet { color: var(--quiet); } .plot { height: 34rem; } .warn { color: #b35900; }
details { border-bottom: 1px solid var(--line); padding: .4rem 0; } summary { cursor: pointer; }
"""

SCRIPT = """
const dark = matchMedia('(prefers-color-scheme: dark)').matches;
for (const [id, figure] of Object.entries(JSON.parse(document.getElementById('figures').textContent))) {
  const ink = dark ? '#eee' : '#1c1c1e', line = dark ? '#3a3a3e' : '#e4e4e8';
  const axis = title => ({title: {text: title}, gridcolor: line, zerolinecolor: line, automargin: true,
    rangemode: figure.zero ? 'tozero' : 'normal'});
  Plotly.newPlot(id, figure.data, {paper_bgcolor: 'transparent', plot_bgcolor: 'transparent', font: {color: ink},
    margin: {l: 50, r: 10, t: 10, b: 40}, hovermode: 'closest', showlegend: false, xaxis: axis(figure.x),
    yaxis: axis(figure.y), ...figure.layout}, {responsive: true, displaylogo: false, showSendToCloud: false,
    plotlyServerURL: ''});
}
"""


def text(value: Any) -> str:
    """Write a value for people, escaped: numbers short, lists with commas, nothing for null."""
    return escape(plain(value))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Make a table; a column is set as numbers when its first value is one."""
    body = [list(row) for row in rows]
    numeric = [bool(body) and isinstance(value, int | float) for value in (body[0] if body else columns)]
    marks = [' class="n"' if number else "" for number in numeric]
    head = "".join(f"<th{mark}>{escape(name)}</th>" for name, mark in zip(columns, marks, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{mark}>{text(value)}</td>" for value, mark in zip(row, marks, strict=True)) + "</tr>"
        for row in body
    )
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def page(title: str, body: str, figures: Mapping[str, Any] | None = None) -> str:
    """Make the page; with figures, Plotly is in it.

    Parameters
    ----------
    title : str
    body : str
        HTML, escaped already; a figure goes where a ``<div id="NAME" class="plot">`` is.
    figures : mapping of str to dict, optional
        Each with ``data`` (Plotly's traces), the axis titles ``x`` and ``y``, if need be more ``layout``, and ``zero``
        where axes begin at 0.
    """
    scripts = head = ""
    if figures:
        from plotly.offline import get_plotlyjs

        data = json.dumps(figures, allow_nan=False).replace("<", "\\u003c")
        head = f"<script>{get_plotlyjs()}</script>"
        scripts = f'<script type="application/json" id="figures">{data}</script><script>{SCRIPT}</script>'
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>{head}</head>'
        f"<body><h1>{escape(title)}</h1>{body}{scripts}</body></html>"
    )
