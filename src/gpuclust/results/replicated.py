"""What another SAE finds of a run's clusters: in the terminal, on cards, and as tables of two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from gpuclust import schema
from gpuclust.compute.evidence import SURE
from gpuclust.compute.replication import LEAST, WORDS
from gpuclust.formatting import counted, plain
from gpuclust.results import html_page
from gpuclust.storage import atomic

TABLE, PAGE = "replication", "compare.html"
COLUMNS = ("cluster", "size", *(name for name in schema.VALIDATION_COLUMNS if name.startswith("replicate")))
SHOWN = {
    "cluster": "cluster", "size": "size", "replicated": "replicated", "replicate_cluster": "there",
    "replicate_r": "r", "replicate_r_random": "random", "replicate_angles": "angles",
    "replicate_angles_random": "random", "replicate_prompts": "prompts", "replicate_prompts_random": "random",
}  # fmt: skip
LISTED = 30  # clusters listed in the terminal
RULE = (
    "A cluster's activity on a prompt is the mean of its features' activations, each in units of its standard "
    "deviation; its match is the other run's cluster whose activity correlates with it most, given the prompts' "
    f"lengths. Replicated: more than random sets of either run ({SURE:.0%} falsely), a correlation of {LEAST} or more, "
    "each the other's best match, and where both decoders write to one space, subspaces nearer than those of random "
    "sets. Partly: more than random sets, but not all of that."
)


def lines(table: pd.DataFrame, facts: Mapping[str, Any]) -> list[str]:
    """Say in a few lines how many clusters the other SAE has, beside controls.

    Parameters
    ----------
    table : DataFrame
        With COLUMNS.
    facts : mapping
        Of `replicating.replicate`.
    """
    times = table["replicated"].value_counts()
    told = ", ".join(f"{times.get(word, 0)} {word}" for word in WORDS)
    unknown = int(table["replicated"].isna().sum())
    told += f", {unknown} without controls" if unknown else ""
    random = "" if facts["random"] is None else f"; of random sets {facts['random']:.1%} would be called replicated"
    mean = table[[name for name in COLUMNS if name.startswith("replicate_")]].astype(float).mean()
    found = [
        f"clusters in {facts['other']}, over {counted(facts['prompts'], 'prompt')} in common: {told}{random}",
        f"correlation with the best match: {mean['replicate_r']:.2f}, of random sets {mean['replicate_r_random']:.2f}; "
        f"strongest prompts in common (Jaccard): {mean['replicate_prompts']:.2f}, of random sets "
        f"{mean['replicate_prompts_random']:.2f}",
    ]
    if facts["no_angles"]:
        found.append(f"angles between decoder subspaces are left out: {facts['no_angles']}")
    else:
        found.append(
            f"decoder subspaces (mean squared cosine): {mean['replicate_angles']:.2f}, of random sets "
            f"{mean['replicate_angles_random']:.2f}"
        )
    return found


def on_card(row: Any, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a cluster's card says of it: names and texts; nothing where it was not looked for.

    Parameters
    ----------
    row : mapping
        With COLUMNS.
    facts : mapping
        Of ``validation.json``.
    """
    if pd.isna(row["replicate_r"]):
        return []
    word = "without controls" if pd.isna(row["replicated"]) else row["replicated"]
    best = "each the other's best match" if row["replicate_mutual"] else "whose own best match is another"
    told = (
        f"{word}: cluster {int(row['replicate_cluster'])}, {best}; correlation {plain(row['replicate_r'])} (random "
        f"sets {plain(row['replicate_r_random'])}; q = {plain(row['replicate_q'])}), strongest prompts in common "
        f"{plain(row['replicate_prompts'])} ({plain(row['replicate_prompts_random'])})"
    )
    if pd.notna(row["replicate_angles"]):
        told += (
            f", decoder subspaces {plain(row['replicate_angles'])} ({plain(row['replicate_angles_random'])}; q = "
            f"{plain(row['replicate_angles_q'])})"
        )
    return [(f"in {Path(facts['replicate']['other']).name}, of another SAE", told)]


def show(found: pd.DataFrame, told: Sequence[str], console: Console) -> None:
    """Print the largest clusters' matches, and what there is to say of every pair of runs.

    Parameters
    ----------
    found, told
        As of `write`.
    console : Console
    """
    for _, own in found.groupby("run_b", sort=False):
        grid = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
        for name in SHOWN.values():
            word = name == "replicated"
            grid.add_column(name, justify="left" if word else "right", overflow="fold", no_wrap=word)
        for row in own.sort_values("size", ascending=False, kind="stable").head(LISTED).to_dict("records"):
            grid.add_row(*(plain(row[name]) for name in SHOWN))
        console.print(grid)
        if len(own) > LISTED:
            console.print(f"and {len(own) - LISTED} more (--out writes all)", style="dim")
    for line in told:
        console.print(line, markup=False)
    console.print(RULE, markup=False, style="dim")


def write(found: pd.DataFrame, told: Sequence[str], out: Path, kind: str) -> None:
    """Write the table and a page into a folder.

    Parameters
    ----------
    found : DataFrame
        COLUMNS, after ``run_a`` and ``run_b``.
    told : sequence of str
        Of `lines`, of every pair of runs.
    out : Path
    kind : {"parquet", "csv"}
    """
    atomic.make_folder(out)
    if kind == "csv":
        atomic.write_text(out / f"{TABLE}.csv", found.to_csv(index=False))
    else:
        atomic.write_table(out / f"{TABLE}.parquet", found)
    rows = found.astype(object).where(found.notna(), None)
    head = [name.replace("replicate_", "").replace("_", " ") for name in found.columns]
    said = "".join(f"<p>{html_page.text(line)}</p>" for line in told)
    body = f'{said}<p class="quiet">{RULE}</p>{html_page.table(head, rows.to_numpy())}'
    atomic.write_text(out / PAGE, html_page.page("Runs of different SAEs", body))
