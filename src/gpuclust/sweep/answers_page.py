"""The sweep's report: answers with tables and figures as one HTML page that works offline, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.formatting import counted, percent, written
from gpuclust.results import html_page, palette
from gpuclust.sweep.answers import NOISE_GAP, Answer, short
from gpuclust.sweep.effects import COVERAGE_LOSS, LEAST, OUTCOME

METHOD = (
    "Stability is the adjusted Rand index (ARI) between the clusters of the two halves of the prompts, noise counted "
    "as one cluster. Intervals are 95%, over seeds of UMAP (two-way analysis of variance, Student's t; differences "
    "between the best and the worst level are corrected for the choice, Bonferroni): they speak of the seed, not of "
    f"other prompts. “Clear” means that the interval excludes 0, the difference is at least {LEAST}, and the better "
    f"level does not leave {NOISE_GAP:.0%} more of the features as noise, on which halves agree easily. A setting is "
    f"recommended only if it leaves at most {COVERAGE_LOSS:.0%} more features as noise than the default and has half "
    "to twice as many clusters."
)
COLUMNS = {
    "clusters": "clusters", "noise": "noise", "n_kept": "kept", "ari_clustered_halves": "ARI, both clustered",
    "recovered_halves": "recovered", "ari_seeds": "ARI, seeds", "ari_default": "ARI with default", "purity": "purity",
}  # fmt: skip
LEGEND = (
    "ARI of halves as above; “both clustered” only over features that are noise in neither half; recovered: share of "
    "clusters of a half that come back in the other (Jaccard at least 0.5); seeds: between two seeds; purity: share of "
    "a clustered feature's ten nearest neighbours that are in its cluster."
)
Rows = list[list[str]]


def overview(found: Sequence[Answer]) -> tuple[list[str], Rows]:
    """The table of verdicts: a row per thing asked."""
    rows = []
    for answer in found:
        for part in answer.parts:
            measured = OUTCOME_NAME if part.outcome == OUTCOME else part.outcome
            said = "clear" if part.clear else ("not clear: more noise" if part.noisier else "not clear")
            rows.append([answer.title, part.name, said, f"{measured} {part.estimate}"])
    return ["question", "varied", "answer", "largest difference"], rows


OUTCOME_NAME = "ARI of halves"


def level_table(answer: Answer) -> tuple[list[str], Rows]:
    """The levels of every field of a question."""
    rows: Rows = []
    for effect in answer.effects:
        for level in effect.levels.to_dict("records"):
            interval = f" [{level['low']:.2f}, {level['high']:.2f}]" if np.isfinite(level["low"]) else ""
            others = [_cell(name, level.get(name, np.nan)) for name in COLUMNS]
            rows.append([effect.field, str(level["level"]), f"{level['mean']:.2f}{interval}", *others])
    return ["varied", "level", OUTCOME_NAME, *COLUMNS.values()], rows


def pair_table(answer: Answer) -> tuple[list[str], Rows]:
    """Agreement between groups of prompts."""
    if answer.pairs is None:
        return [], []
    keys = ["field", "level_a", "level_b"]
    means = answer.pairs.groupby(keys, sort=False)[["ari", "within", "ari_clustered", "common"]].mean().reset_index()
    rows = [
        [str(row["field"]), str(row["level_a"]), str(row["level_b"]),
         *(_cell(name, row[name]) for name in ("ari", "within", "ari_clustered")), f"{row['common']:.0f}"]
        for row in means.to_dict("records")
    ]  # fmt: skip
    return ["varied", "group", "group", "ARI across", "ARI within", "ARI across, both clustered", "common"], rows


def _cell(name: str, value: float) -> str:
    if not np.isfinite(value):
        return ""
    if name in ("clusters", "n_kept"):
        return f"{value:.0f}"
    return percent(value) if name in ("noise", "recovered_halves", "purity") else f"{value:.2f}"


# ---------------------------------------------------------------- Markdown


def markdown(found: Sequence[Answer], record: Mapping[str, Any]) -> str:
    """Write answers and tables as Markdown."""
    lines = [f"{_about(record)}", "", METHOD, "", *_markdown_table(*overview(found)), ""]
    for answer in found:
        lines += [f"## {answer.title}", "", f"**{answer.verdict.capitalize()}.** {' '.join(answer.sentences)}", ""]
        lines += [f"- {note}" for note in answer.notes] + ([""] if answer.notes else [])
        for head, rows in (level_table(answer), pair_table(answer)):
            if rows:
                lines += [*_markdown_table(head, rows), ""]
    return "\n".join([*lines, LEGEND, ""])


def _markdown_table(head: Sequence[str], rows: Rows) -> list[str]:
    if not rows:
        return []
    made = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [list(head), *rows]]
    return [f"| {' | '.join(made[0])} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in made[1:])]


def _about(record: Mapping[str, Any]) -> str:
    attributes = record["attributes"]
    tried = f"{counted(record['settings'], 'setting')} with {counted(record['seeds'], 'seed')} each"
    failed = f", {record['failed']} of the rows failed" if record["failed"] else ""
    return (
        f"{attributes.get('model', '?')}, {attributes.get('hook_name', '?')}, {record['prompts']:,} prompts, "
        f"{record['d_sae']:,} features; {tried}{failed}."
    )


# ---------------------------------------------------------------- HTML


def html(found: Sequence[Answer], table: pd.DataFrame, record: Mapping[str, Any]) -> str:
    """Write the page.

    Parameters
    ----------
    found : sequence of Answer
    table, record
        As in `answers.answers`.
    """
    figures: dict[str, Any] = {}
    good = table[table["error"].isna()]
    body = [
        f"<p>{escape(_about(record))}</p>",
        html_page.table(*overview(found)),
        f'<p class="quiet">{escape(METHOD)}</p>',
    ]
    for answer in found:
        body.append(f"<h2>{escape(answer.title)}</h2>")
        body.append(f"<p><b>{answer.verdict.capitalize()}.</b> {escape(' '.join(answer.sentences))}</p>")
        figure = _figure(answer)
        if figure is not None:
            figures[f"figure-{answer.name}"] = figure
            body.append(f'<div id="{escape(f"figure-{answer.name}")}" class="plot"></div>')
        body += [f'<p class="warn">{escape(note)}</p>' for note in answer.notes]
        for head, rows in (level_table(answer), pair_table(answer)):
            if rows:
                body.append(f"<details><summary>Table</summary>{html_page.table(head, rows)}</details>")
    figures["granularity"] = granularity(good, record)
    body.append(
        "<h2>Stability and granularity</h2><p>A point per setting, means over seeds; the star is the default. "
        'Settings with no clusters in either half have no stability and are left out.</p><div id="granularity" '
        f'class="plot"></div><p class="quiet">{escape(LEGEND)}</p>'
    )
    errors = table[table["error"].notna()].drop_duplicates("setting")
    if len(errors):
        rows = [[f"{row['setting']}", row["error"]] for row in errors.to_dict("records")]
        body.append(f"<h2>Settings that failed</h2>{html_page.table(['setting', 'error'], rows)}")
    return html_page.page("Sweep", "".join(body), figures)


def _figure(answer: Answer) -> dict[str, Any] | None:
    """Levels with intervals, or agreement across and within groups."""
    traces: list[dict[str, Any]] = []
    for index, effect in enumerate(answer.effects):
        levels = effect.levels
        known = bool(np.isfinite(levels["low"]).all())
        spread = (levels["high"] - levels["mean"]).round(4).tolist() if known else None
        notes = [f"{row['clusters']:.0f} clusters, {row['noise']:.0%} noise" for row in levels.to_dict("records")]
        traces.append(
            {
                "type": "scatter", "mode": "markers", "x": [f"{short(effect.field)}={x}" for x in levels["level"]],
                "y": levels["mean"].round(4).tolist(), "text": notes, "hoverinfo": "x+y+text",
                "error_y": {"type": "data", "array": spread, "visible": known},
                "marker": {"size": 9, "color": palette.HUES[index % len(palette.HUES)]},
            }
        )  # fmt: skip
    if answer.pairs is not None:
        means = answer.pairs.groupby(["level_a", "level_b"], sort=False)[["ari", "within"]].mean().dropna()
        names = [f"{a} and {b}" for a, b in means.index]
        for column, said, hue in (("within", "within", 0), ("ari", "across", 1)):
            traces.append(
                {"type": "bar", "name": said, "x": names, "y": means[column].round(4).tolist(), "text": said,
                 "hoverinfo": "x+y+text", "marker": {"color": palette.HUES[hue]}}
            )  # fmt: skip
    return {"data": traces, "x": "", "y": OUTCOME_NAME} if traces else None


def granularity(good: pd.DataFrame, record: Mapping[str, Any]) -> dict[str, Any]:
    """Agreement of halves against the number of clusters, a point per setting."""
    fields = record["fields"]
    means = good.groupby("setting")[["clusters", "noise", OUTCOME]].mean().dropna()
    first = good.drop_duplicates("setting").set_index("setting")
    base = first.loc[0] if 0 in first.index else None
    traces = []
    for index, question in enumerate(record["questions"]):
        own = first["questions"].str.contains(rf"(?:^| ){question}:", regex=True)
        chosen = means[means.index.isin(first.index[own]) & (means.index != 0)]
        traces.append(
            _points(chosen, first, base, fields, question, palette.HUES[index % len(palette.HUES)], "circle", 7)
        )
    if 0 in means.index:
        traces.append(_points(means.loc[[0]], first, None, fields, "default", "#d55e00", "star", 16))
    return {"data": traces, "x": "clusters", "y": OUTCOME_NAME, "layout": {"showlegend": True}}


def _points(
    means: pd.DataFrame, first: pd.DataFrame, base: Any, fields: Sequence[str], name: str, color: str, symbol: str,
    size: int,
) -> dict[str, Any]:  # fmt: skip
    said = []
    for number, row in zip(means.index.to_list(), means.to_dict("records"), strict=True):
        changed = [
            f"{escape(key)}={escape(written(first.loc[number, key]))}"
            for key in fields
            if base is not None and written(first.loc[number, key]) != written(base[key])
        ]
        said.append(f"{'<br>'.join(changed) or 'default'}<br>{row['noise']:.0%} noise")
    return {
        "type": "scatter", "mode": "markers", "name": escape(name), "x": means["clusters"].round(2).tolist(),
        "y": means[OUTCOME].round(4).tolist(), "text": said, "hoverinfo": "x+y+text+name",
        "marker": {"size": size, "color": color, "symbol": symbol, "opacity": 0.75},
    }  # fmt: skip
