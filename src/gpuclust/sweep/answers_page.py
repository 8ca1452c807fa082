"""The sweep's report: answers with tables and figures as one HTML page that works offline, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.formatting import counted, percent, written
from gpuclust.results import html_page, palette
from gpuclust.sweep.answers import Answer, Part, about_base, short
from gpuclust.sweep.effects import LARGEST, LEAST, OUTCOME

METHOD = (
    "Found again is the share of the kept features, exact duplicates counted once, that lie in a cluster of one "
    "half of the prompts which the other half finds again: the halves are clustered apart, and some cluster of the "
    "other has a Jaccard index of at least 0.5 with it; mean of both. What is noise is not found again, so leaving "
    "more out does not raise it. Few large clusters do: they are found again easily, and say little. Intervals are "
    "95%, over seeds of UMAP and of communities (two-way analysis of variance, Student's t; differences between the "
    "best and the worst level are corrected for the choice, Bonferroni): they speak of the seed, not of other "
    "prompts. Differences are in percentage points. “Clear” means that the interval excludes 0, the difference is "
    f"at least {LEAST * 100:.0f} points, and the better level's largest cluster holds at most {LARGEST:.0%} of the "
    "features (over all prompts, mean over the level's settings). Levels with a larger one are passed over where "
    "another is better than the worst. A setting is recommended only if its largest cluster holds at most "
    f"{LARGEST:.0%} of the features and it has half to twice as many clusters as the default."
)
COLUMNS = {
    "clusters": "clusters", "noise": "noise", "largest": "largest", "n_kept": "kept", "ari_halves": "ARI of halves",
    "ami_halves": "AMI of halves", "recovered_halves": "recovered", "ari_seeds": "ARI, seeds",
    "ari_default": "ARI with default", "purity": "purity",
}  # fmt: skip
LEGEND = (
    "Found again as above; largest: share of the features in the largest cluster of all prompts; kept: features "
    "that the filter keeps, of which the shares are; ARI and AMI: adjusted Rand index and adjusted mutual "
    "information, noise counted as one cluster, of the two halves, of two seeds, and with the default; recovered: "
    "share of clusters of a half that come back in the other (Jaccard at least 0.5 with their match, one to one); "
    "purity: share of a clustered feature's ten nearest neighbours that are in its cluster."
)
SHARES = ("noise", "recovered_halves", "purity", "found_again", "within")
Rows = list[list[str]]


def overview(found: Sequence[Answer]) -> tuple[list[str], Rows]:
    """The table of verdicts: a row per thing asked."""
    rows = []
    for answer in found:
        for part in answer.parts:
            measured = OUTCOME_NAME if part.outcome == OUTCOME else part.outcome
            rows.append([answer.title, part.name, verdict(part), f"{measured} {part.estimate}"])
    return ["question", "varied", "answer", "largest difference"], rows


OUTCOME_NAME = "found again"


def verdict(part: Part) -> str:
    """Whether one thing is clear, and what one large cluster has to do with it."""
    if part.large:
        return "not clear: one large cluster"
    said = "clear" if part.clear else "not clear"
    return f"{said} (passing over {', '.join(part.aside)}: one large cluster)" if part.aside else said


def level_table(answer: Answer) -> tuple[list[str], Rows]:
    """The levels of every field of a question."""
    rows: Rows = []
    for effect in answer.effects:
        for level in effect.levels.to_dict("records"):
            known = np.isfinite(level["low"])
            low, high = (100 * min(max(level[end], 0), 1) for end in ("low", "high"))
            interval = f" [{low:.1f}, {high:.1f}]" if known else ""
            others = [_cell(name, level.get(name, np.nan)) for name in COLUMNS]
            rows.append([effect.field, str(level["level"]), f"{level['mean']:.1%}{interval}", *others])
    return ["varied", "level", OUTCOME_NAME, *COLUMNS.values()], rows


SETTINGS = "The settings themselves"


def setting_table(table: pd.DataFrame, record: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """A row per setting: where it differs from the default, and what came of it, means over seeds.

    Parameters
    ----------
    table, record
        As in `html`.
    """
    rows: Rows = []
    for number, own in table.groupby("setting"):
        first = own.iloc[0]
        changed = [
            f"{key}={written(first[key])}"
            for key in record["fields"]
            if key in record["default"]
            and written(first[key]) != written(record["default"][key])
            and pd.notna(first[key])
        ]
        seeds = own[OUTCOME].std() if own[OUTCOME].notna().sum() > 1 else np.nan
        spread = f" ± {100 * seeds:.1f}" if np.isfinite(seeds) else ""
        level = f"{own[OUTCOME].mean():.1%}{spread}" if own[OUTCOME].notna().any() else "failed"
        others = [_cell(name, own[name].mean()) for name in ("clusters", "noise", "largest", "n_kept")]
        rows.append([f"{number}", ", ".join(changed) or "the default", level, *others])
    return ["setting", "differs from the default in", f"{OUTCOME_NAME} ± standard deviation over seeds", "clusters",
            "noise", "largest", "kept"], rows  # fmt: skip


def pair_table(answer: Answer) -> tuple[list[str], Rows]:
    """What is found again between groups of prompts."""
    if answer.pairs is None:
        return [], []
    keys = ["field", "level_a", "level_b"]
    means = answer.pairs.groupby(keys, sort=False)[["found_again", "within", "ari", "common"]].mean().reset_index()
    rows = [
        [str(row["field"]), str(row["level_a"]), str(row["level_b"]),
         *(_cell(name, row[name]) for name in ("found_again", "within", "ari")), f"{row['common']:.0f}"]
        for row in means.to_dict("records")
    ]  # fmt: skip
    return ["varied", "group", "group", "found again across", "found again within", "ARI across", "kept in both"], rows


def _cell(name: str, value: float) -> str:
    if not np.isfinite(value):
        return ""
    if name in ("clusters", "n_kept"):
        return f"{value:.0f}"
    if name == "largest":
        return f"{value:.1%}"
    return percent(value) if name in SHARES else f"{value:.2f}"


# ---------------------------------------------------------------- Markdown


def markdown(found: Sequence[Answer], table: pd.DataFrame, record: Mapping[str, Any]) -> str:
    """Write answers and tables as Markdown.

    Parameters
    ----------
    found : sequence of Answer
    table, record
        As in `answers.answers`.
    """
    lines = [f"{_about(record)}", "", about_base(table, record), "", METHOD, "", *_markdown_table(*overview(found)), ""]
    for answer in found:
        lines += [f"## {answer.title}", "", f"**{answer.verdict.capitalize()}.** {' '.join(answer.sentences)}", ""]
        lines += [f"- {note}" for note in answer.notes] + ([""] if answer.notes else [])
        for head, rows in (level_table(answer), pair_table(answer)):
            if rows:
                lines += [*_markdown_table(head, rows), ""]
    lines += [f"## {SETTINGS}", "", *_markdown_table(*setting_table(table, record)), ""]
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
        f"<p><b>{escape(about_base(table, record))}</b></p>",
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
        "<h2>Found again and granularity</h2><p>A point per setting, means over seeds with their standard deviation; "
        "the star is the default. "
        'Few large clusters are found again easily: the tips say how large.</p><div id="granularity" '
        f'class="plot"></div><p class="quiet">{escape(LEGEND)}</p>'
    )
    body.append(
        f"<h2>{SETTINGS}</h2><details><summary>Table</summary>"
        f"{html_page.table(*setting_table(table, record))}</details>"
    )
    errors = table[table["error"].notna()].drop_duplicates("setting")
    if len(errors):
        rows = [[f"{row['setting']}", row["error"]] for row in errors.to_dict("records")]
        body.append(f"<h2>Settings that failed</h2>{html_page.table(['setting', 'error'], rows)}")
    return html_page.page("Sweep", "".join(body), figures)


def _figure(answer: Answer) -> dict[str, Any] | None:
    """Levels with intervals, or what is found again across and within groups."""
    traces: list[dict[str, Any]] = []
    for index, effect in enumerate(answer.effects):
        levels = effect.levels
        known = bool(np.isfinite(levels["low"]).all())
        spread = (levels["high"] - levels["mean"]).round(4).tolist() if known else None
        notes = [_tip(row) for row in levels.to_dict("records")]
        traces.append(
            {
                "type": "scatter", "mode": "markers", "x": [f"{short(effect.field)}={x}" for x in levels["level"]],
                "y": levels["mean"].round(4).tolist(), "text": notes, "hoverinfo": "x+y+text",
                "error_y": {"type": "data", "array": spread, "visible": known},
                "marker": {"size": 9, "color": palette.HUES[index % len(palette.HUES)]},
            }
        )  # fmt: skip
    if answer.pairs is not None:
        by_seed = answer.pairs.groupby(["level_a", "level_b"], sort=False)[["found_again", "within"]]
        means, deviations = by_seed.mean().dropna(), by_seed.std()
        names = [f"{a} and {b}" for a, b in means.index]
        for column, said, hue in (("within", "within", 0), ("found_again", "across", 1)):
            traces.append(
                {"type": "bar", "name": said, "x": names, "y": means[column].round(4).tolist(), "text": said,
                 "error_y": _bars(deviations.loc[means.index, column]), "hoverinfo": "x+y+text",
                 "marker": {"color": palette.HUES[hue]}}
            )  # fmt: skip
    return {"data": traces, "x": "", "y": OUTCOME_NAME, "zero": True} if traces else None


def _bars(spread: pd.Series[float]) -> dict[str, Any]:
    """Error bars; none where there is one seed."""
    return {"type": "data", "array": spread.fillna(0).round(4).tolist(), "visible": bool(spread.notna().all())}


def _tip(row: Mapping[Any, Any]) -> str:
    return f"{row['clusters']:.0f} clusters, {row['noise']:.0%} noise, the largest {row['largest']:.1%}"


def granularity(good: pd.DataFrame, record: Mapping[str, Any]) -> dict[str, Any]:
    """What is found again against the number of clusters, a point per setting."""
    fields = record["fields"]
    by_setting = good.groupby("setting")[["clusters", "noise", "largest", OUTCOME]]
    means = by_setting.mean().dropna().assign(spread=by_setting.std()[OUTCOME])
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
    return {"data": traces, "x": "clusters", "y": OUTCOME_NAME, "zero": True, "layout": {"showlegend": True}}


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
        said.append(f"{'<br>'.join(changed) or 'default'}<br>{_tip(row)}")
    return {
        "type": "scatter", "mode": "markers", "name": escape(name), "x": means["clusters"].round(2).tolist(),
        "y": means[OUTCOME].round(4).tolist(), "text": said, "hoverinfo": "x+y+text+name",
        "error_y": {**_bars(means["spread"]), "thickness": 1, "width": 0},
        "marker": {"size": size, "color": color, "symbol": symbol, "opacity": 0.75},
    }  # fmt: skip
