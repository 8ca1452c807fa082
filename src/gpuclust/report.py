"""The report: a run's tables as one HTML file that works offline. It computes nothing.

Text from prompts and tokens is data: escaped wherever it is shown.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.schema import NOISE

# Ten hues that colour-blind readers can tell apart on light and dark ground (after Tol and Okabe-Ito); clusters cycle.
HUES = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b5a300", "#882255", "#44aa99", "#8c7ae6",
)  # fmt: skip
MARKS = ("circle", "square", "diamond", "cross", "triangle-up", "star")

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
  const axis = title => ({title: {text: title}, gridcolor: line, zerolinecolor: line});
  Plotly.newPlot(id, figure.data, {paper_bgcolor: 'transparent', plot_bgcolor: 'transparent', font: {color: ink},
    margin: {l: 50, r: 10, t: 10, b: 40}, hovermode: 'closest', showlegend: false,
    xaxis: axis(figure.x), yaxis: axis(figure.y)}, {responsive: true, displaylogo: false, scrollZoom: true});
}
"""


def write(out: Path) -> int:
    """Write ``report.html`` of a run.

    Parameters
    ----------
    out : Path
        The run's folder, all stages before the report done.

    Returns
    -------
    int
        Bytes of the file.
    """
    from plotly.offline import get_plotlyjs

    record = json.loads((out / schema.RECORD).read_text(encoding="utf8"))
    features = pd.read_parquet(out / schema.FEATURES)
    clusters = pd.read_parquet(out / schema.CLUSTERS)
    similarity = pd.read_parquet(out / schema.CLUSTER_SIMILARITY)
    kept = features[features["kept"]]
    words = {int(row["cluster"]): " · ".join(_listed(row["tokens"])[:5]) for row in clusters.to_dict("records")}
    figures = {
        "map": {"data": _map(kept, words), "x": "UMAP 1", "y": "UMAP 2"},
        "entropy": {"data": _entropy(kept), "x": "entropy (nats)", "y": "varentropy (nats²)"},
    }
    data = json.dumps(figures, allow_nan=False).replace("<", "\\u003c")
    attributes = record["stages"]["prompts"].get("attributes", {})
    title = f"{attributes.get('model', 'activations')} · {attributes.get('hook_name', '')}"
    page = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>gpuclust: {escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>
<script>{get_plotlyjs()}</script></head><body>
<h1>Feature clusters of {escape(title)}</h1>
{_overview(record, features, clusters, _settings(out)["extract"]["aggregate"])}
<h2>Map</h2><p class="quiet">A point per kept feature; noise is grey. Distances on the map are a sketch only.</p>
<div id="map" class="plot"></div>
<h2>Entropy and varentropy</h2><p class="quiet">Kept features, by quadrant; lines at the medians.</p>
<div id="entropy" class="plot"></div>
<h2>Clusters</h2><div class="wide">{_cluster_table(clusters)}</div>
<h2>Strongest prompts</h2>{_prompts(clusters)}
<h2>Clusters that go together</h2>{_similar(similarity, _settings(out)["analyse"]["similarity_threshold"])}
<h2>Stages</h2><div class="wide">{_stages(record)}</div>
<script type="application/json" id="figures">{data}</script><script>{SCRIPT}</script></body></html>"""
    target = out / schema.REPORT
    target.write_text(page, encoding="utf8")
    return target.stat().st_size


def _settings(out: Path) -> dict[str, Any]:
    import yaml

    settings: dict[str, Any] = yaml.safe_load((out / schema.CONFIG).read_text(encoding="utf8"))
    return settings


def _map(kept: pd.DataFrame, words: dict[int, str]) -> list[dict[str, Any]]:
    label = kept["label"].to_numpy(dtype=np.int64)
    named = {c: f"cluster {c}: {escape(text)}" for c, text in words.items()} | {NOISE: "noise"}
    texts = [f"feature {f}<br>{named[int(c)]}" for f, c in zip(kept["feature"], label, strict=True)]
    marker = {
        "color": ["#9a9aa0" if c == NOISE else HUES[c % len(HUES)] for c in label],
        "symbol": ["circle" if c == NOISE else MARKS[c // len(HUES) % len(MARKS)] for c in label],
        "size": [3 if c == NOISE else 6 for c in label],
        "opacity": [0.35 if c == NOISE else 0.9 for c in label],
    }
    x, y = (np.round(kept[axis].to_numpy(), 4).tolist() for axis in ("x", "y"))
    return [
        {"type": "scattergl", "mode": "markers", "x": x, "y": y, "text": texts, "hoverinfo": "text", "marker": marker}
    ]


def _entropy(kept: pd.DataFrame) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    for index, (name, part) in enumerate(kept.groupby("quadrant")):
        traces.append(
            {
                "type": "scattergl",
                "mode": "markers",
                "name": str(name),
                "x": part["entropy"].round(5).tolist(),
                "y": [float(f"{v:.5g}") for v in part["varentropy"]],
                "text": [f"feature {f}<br>{name}" for f in part["feature"]],
                "hoverinfo": "text",
                "marker": {"size": 4, "color": HUES[index], "symbol": MARKS[index], "opacity": 0.7},
            }
        )
    h, v = float(kept["entropy"].median()), float(kept["varentropy"].median())
    span_h = [float(kept["entropy"].min()), float(kept["entropy"].max())]
    span_v = [float(kept["varentropy"].min()), float(kept["varentropy"].max())]
    line = {
        "type": "scatter",
        "mode": "lines",
        "hoverinfo": "skip",
        "line": {"color": "#888", "width": 1, "dash": "dot"},
    }
    return [*traces, {**line, "x": [h, h], "y": span_v}, {**line, "x": span_h, "y": [v, v]}]


def _overview(record: dict[str, Any], features: pd.DataFrame, clusters: pd.DataFrame, aggregate: str) -> str:
    stages = record["stages"]
    attributes = stages["prompts"].get("attributes", {})
    noise = int(clusters.loc[clusters["cluster"] == NOISE, "size"].sum())
    kept = int(features["kept"].sum())
    removed = stages["select"]["removed"]
    rows = [
        ("SAE", attributes.get("sae", "")),
        ("Aggregate over tokens", aggregate),
        ("Prompts", f"{stages['prompts']['rows']:,}"),
        ("Features", f"{len(features):,}, {stages['reduce']['dead_features']:,} never fire"),
        ("Kept", f"{kept:,}; " + ", ".join(f"{name} removes {count:,}" for name, count in removed.items())),
        ("Clusters", f"{len(clusters) - 1}, and {noise:,} features ({noise / max(kept, 1):.0%}) of noise"),
        ("Neighbours", f"{stages['neighbors']['method']}, {stages['neighbors']['metric']}"),
        ("Exact duplicates", f"{stages['cluster'].get('duplicates', 'not counted')} features"),
    ]
    table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
    warnings = "".join(f'<p class="warn">{escape(text)}</p>' for text in record.get("warnings", []))
    return f"<table>{table}</table>{warnings}"


def _cluster_table(clusters: pd.DataFrame) -> str:
    head = "".join(f'<th class="n">{name}</th>' for name in ("cluster", "size", "persistence", "mean |a|", "sparsity"))
    rows = []
    for row in clusters[clusters["cluster"] != NOISE].sort_values("size", ascending=False).to_dict("records"):
        numbers = (
            row["cluster"], row["size"], f"{row['persistence']:.3f}", f"{row['mean_activation']:.3g}",
            f"{row['sparsity']:.3f}",
        )  # fmt: skip
        cells = "".join(f'<td class="n">{value}</td>' for value in numbers)
        texts = (" · ".join(_listed(row["tokens"])), " ".join(_listed(row["keywords"])))
        rows.append(f"<tr>{cells}{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>")
    return f"<table><tr>{head}<th>features peak at</th><th>words of its prompts</th></tr>{''.join(rows)}</table>"


def _prompts(clusters: pd.DataFrame) -> str:
    blocks = []
    for row in clusters[clusters["cluster"] != NOISE].sort_values("size", ascending=False).to_dict("records"):
        items = "".join(
            f"<p>{escape(p['text'])} <span class='quiet'>({p['activation']:.3g}; {escape(p['source'])}, "
            f"{p['n_chars']} characters, {p['n_tokens']} tokens)</span></p>"
            for p in _listed(row["top_prompts"])
        )
        title = escape(" · ".join(_listed(row["tokens"])[:5]))
        numbers = ", ".join(map(str, _listed(row["features"])))
        blocks.append(
            f"<details><summary>cluster {row['cluster']} ({row['size']}): {title}</summary>{items}"
            f"<p class='quiet'>features {numbers}</p></details>"
        )
    return "".join(blocks)


def _similar(similarity: pd.DataFrame, threshold: float) -> str:
    shown = similarity[similarity["correlation"].abs() > threshold]
    shown = shown.reindex(shown["correlation"].abs().sort_values(ascending=False).index)
    if shown.empty:
        return f'<p class="quiet">No two clusters correlate above {threshold:g} over the prompts.</p>'
    rows = "".join(
        f'<tr><td class="n">{a}</td><td class="n">{b}</td><td class="n">{r:+.3f}</td></tr>'
        for a, b, r in shown.head(100).itertuples(index=False, name=None)
    )
    more = f'<p class="quiet">{len(shown)} pairs above |r| = {threshold:g}; the strongest 100 are listed.</p>'
    return (
        f'{more}<table><tr><th class="n">cluster</th><th class="n">cluster</th><th class="n">r</th></tr>{rows}</table>'
    )


def _stages(record: dict[str, Any]) -> str:
    rows = []
    for name, stage in record["stages"].items():
        peak = max((stage.get("peak_bytes") or {"": 0}).values()) / 1e9
        rows.append(
            f'<tr><td>{name}</td><td class="n">{stage.get("seconds", 0):.1f}</td><td class="n">{peak:.2f}</td></tr>'
        )
    head = '<tr><th>stage</th><th class="n">seconds</th><th class="n">largest process, GB</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | np.ndarray) else []
