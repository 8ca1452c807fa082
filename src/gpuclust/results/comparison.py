"""What two or more runs on one SAE agree on: as tables, in the terminal, and as a page.

The first run is the reference that the others are laid beside; agreement is given for every pair.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gpuclust import schema
from gpuclust.compute import agreement
from gpuclust.config_sections import DEMO, DEMO_SAES
from gpuclust.errors import InputError, StoreError
from gpuclust.formatting import plain
from gpuclust.results import html_page
from gpuclust.results.run import Run
from gpuclust.storage import atomic
from gpuclust.storage.keys import fingerprint
from gpuclust.storage.run_folder import differences
from gpuclust.types import Array

PAIRS, CLUSTERS, FEATURES, PAGE = "pairs", "clusters", "features", "compare.html"
SHOWN = 200  # features listed on the page
LISTED = 8  # clusters listed in the terminal
NOISE_RULE = (
    "ARI and AMI are over the features that both runs keep, noise counted as one cluster; “clustered” leaves out the "
    "features that are noise in either run."
)
MATCH_RULE = (
    "Clusters are paired so that the sum of Jaccard indices is largest. Vanished: more than half of the features are "
    "noise or not kept in the other run. Split: at least two clusters, each mostly from it and with a tenth of it or "
    "more, hold at least half of it; merged: the same, seen from the other run. Same: Jaccard at least 0.5. Changed: "
    "none of these."
)


def compare(paths: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Compare finished runs.

    Parameters
    ----------
    paths : sequence of Path
        Folders of at least two runs; the first is the reference.

    Returns
    -------
    dict of str to DataFrame
        ``pairs``: a row per pair of runs with `agreement.agreement` and how many clusters of the first had which fate.
        ``clusters`` and ``features``: `agreement.relate` of the reference and each other run, with ``run_a``, ``run_b``
        and, for clusters, ``tokens``: the words at which the features peak.

    Raises
    ------
    InputError
        With fewer than two runs.
    StoreError
        If a folder is no finished run, or the runs are of different SAEs.
    """
    if len(paths) < 2:
        raise InputError(f"{len(paths)} run given; give the folders of at least two: RUN_A RUN_B …")
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("the same run is given twice; give each folder once")
    runs = [Run(path) for path in paths]
    names = [str(path) for path in paths]
    _refuse_other_sae(runs)
    labels = [read_labels(run) for run in runs]
    pairs, clusters, features = [], [], []
    for i, j in combinations(range(len(runs)), 2):
        relation = agreement.relate(labels[i], labels[j])
        forward = relation.clusters[relation.clusters["side"] == "a"]
        appeared = int((relation.clusters["fate"] == "appeared").sum())
        counts = {fate: int((forward["fate"] == fate).sum()) for fate in agreement.FATES}
        ends = {"run_a": names[i], "run_b": names[j]}
        found = {"clusters_a": len(forward), "clusters_b": len(relation.clusters) - len(forward)}
        changed = ", ".join(key for key, _, _ in differences(runs[i].config.resolved(), runs[j].config.resolved()))
        moved = {"moved": len(relation.features), "settings": changed}
        pairs.append(
            {**ends, **agreement.agreement(labels[i], labels[j]), **found, **counts, "appeared": appeared, **moved}
        )
        if i == 0:
            words = {"a": _words(runs[i]), "b": _words(runs[j])}
            tokens = [
                words[side].get(cluster, "")
                for side, cluster in zip(relation.clusters["side"], relation.clusters["cluster"], strict=True)
            ]
            clusters.append(relation.clusters.assign(**ends, tokens=tokens))
            features.append(relation.features.assign(**ends))
    return {
        PAIRS: pd.DataFrame(pairs),
        CLUSTERS: pd.concat(clusters, ignore_index=True),
        FEATURES: pd.concat(features, ignore_index=True),
    }


def read_labels(run: Run) -> Array:
    """Return the labels of all features of a run: a cluster, noise (-1), or not kept (-2); (feature,), int64."""
    if "label" not in run.features:
        raise StoreError(f"{run.path} has no labels in {schema.FEATURES}; finish the run first")
    return run.features["label"].fillna(agreement.ABSENT).to_numpy(dtype=np.int64)


def _sae(run: Run) -> tuple[str, str]:
    """The SAE of a run: what to call it, and what tells it apart (content of its folder where that is at hand)."""
    settings = run.config.sae
    hook = run.attributes.get("hook_name", settings.hook_name)
    name = settings.label
    content: Any = name
    if settings.path is not None:
        folder = DEMO / DEMO_SAES[settings.path] if settings.path in DEMO_SAES else Path(settings.path)
        content = fingerprint(folder) or name
    return f"{name} at {hook}", json.dumps([content, hook, len(run.features)], sort_keys=True)


def of_one_sae(run: Run, other: Run) -> bool:
    """Whether two runs are of one SAE, by the content of its folder where that is at hand."""
    return _sae(run)[1] == _sae(other)[1]


def of_other_saes(paths: Sequence[Path]) -> bool:
    """Whether all runs after the first are of SAEs other than the first's; False where fewer than two are given."""
    if len(paths) < 2:
        return False
    first, *others = map(Run, paths)
    return not any(of_one_sae(first, other) for other in others)


def different(run: Run, other: Run) -> str:
    """Say of which SAEs two runs are."""
    told = [f"{one.path} has {_sae(one)[0]} ({len(one.features)} features)" for one in (run, other)]
    return f"the runs are of different SAEs, so their feature numbers mean different things: {', '.join(told)}"


def refuse_run_folder(out: Path) -> None:
    """Refuse to write a comparison to a file or into the folder of a run: StoreError."""
    if out.is_file() or (out / schema.CONFIG).exists():
        raise StoreError(f"--out {out} is a file or the folder of a run; give a new folder for the comparison")


def _refuse_other_sae(runs: Sequence[Run]) -> None:
    """Feature numbers mean the same only within one SAE."""
    for run in runs[1:]:
        if not of_one_sae(runs[0], run):
            raise StoreError(f"{different(runs[0], run)}. Compare runs of one SAE, or one run with those of other SAEs")


def _words(run: Run) -> dict[int, str]:
    """The words of each cluster; empty for a run that was not analysed."""
    if "analyse" not in run.record["stages"] and not (run.path / schema.CLUSTERS).exists():
        return {}
    listed = run.clusters[["cluster", "tokens"]].itertuples(index=False, name=None)
    return {int(cluster): " · ".join(words[:5]) if words is not None else "" for cluster, words in listed}


# ---------------------------------------------------------------- what people see


def show(tables: dict[str, pd.DataFrame], console: Console) -> None:
    """Print agreement of every pair, and the largest clusters that are not the same as in the reference."""
    grid = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("runs", *AGREEMENT):
        grid.add_column(name, justify="left" if name == "runs" else "right", overflow="fold")
    for row in tables[PAIRS].to_dict("records"):
        grid.add_row(escape(f"{row['run_a']}\n{row['run_b']}"), *(plain(row[key]) for key in AGREEMENT.values()))
    console.print(grid)
    console.print(f"[dim]{NOISE_RULE}[/dim]")
    for row in tables[PAIRS].to_dict("records"):
        fates = ", ".join(f"{row[fate]} {fate}" for fate in (*agreement.FATES, "appeared"))
        console.print(
            f"{escape(row['run_b'])}: {row['clusters_a']} clusters of {escape(row['run_a'])} became "
            f"{row['clusters_b']}: {fates}; {row['moved']:,} features moved"
        )
        here = tables[CLUSTERS]
        own = here[(here["run_a"] == row["run_a"]) & (here["run_b"] == row["run_b"]) & (here["fate"] != "same")]
        for cluster in own.sort_values("size", ascending=False).head(LISTED).to_dict("records"):
            where = row["run_a"] if cluster["side"] == "a" else row["run_b"]
            into = f" ({plain(list(cluster['others']))})" if len(cluster["others"]) else ""
            console.print(
                f"  {cluster['fate']}{into}: cluster {cluster['cluster']} of {escape(where)}, {cluster['size']} "
                f"features  [dim]{escape(cluster['tokens'])}[/dim]"
            )
        if len(own) > LISTED:
            console.print(f"  [dim]and {len(own) - LISTED} more that are not the same[/dim]")
    console.print(f"[dim]{MATCH_RULE}[/dim]")


AGREEMENT = {
    "common": "common", "ARI": "ari", "AMI": "ami", "ARI clustered": "ari_clustered", "AMI clustered": "ami_clustered",
    "clustered in both": "clustered_both",
}  # fmt: skip


def write(tables: dict[str, pd.DataFrame], out: Path, paths: Sequence[Path], kind: str) -> None:
    """Write the tables and the page into a folder, over what the last call wrote there.

    Parameters
    ----------
    tables : dict of str to DataFrame
        As from `compare`.
    out : Path
    paths : sequence of Path
        Folders of the runs.
    kind : {"parquet", "csv"}

    Raises
    ------
    StoreError
        If `out` is a file or the folder of a run.
    """
    refuse_run_folder(out)
    atomic.make_folder(out)
    for name in (PAGE, *(f"{name}.{kind}" for name in tables)):
        atomic.remove_leftovers(out, name)
    for name, table in tables.items():
        if kind == "csv":
            atomic.write_text(out / f"{name}.csv", table.to_csv(index=False))
        else:
            atomic.write_table(out / f"{name}.parquet", table)
    atomic.write_text(out / PAGE, _page(tables, paths))


def _page(tables: dict[str, pd.DataFrame], paths: Sequence[Path]) -> str:
    pairs = tables[PAIRS]
    fates = ["clusters_a", "clusters_b", *agreement.FATES, "appeared", "moved"]
    body = [
        f'<p class="quiet">{NOISE_RULE}</p>',
        html_page.table(
            ["run", "run", *AGREEMENT, "differing settings"],
            pairs[["run_a", "run_b", *AGREEMENT.values(), "settings"]].to_numpy(dtype=object),
        ),
        f'<h2>What became of the clusters</h2><p class="quiet">{MATCH_RULE}</p>',
        html_page.table(
            ["run", "run", *(name.replace("_", " ") for name in fates)],
            pairs[["run_a", "run_b", *fates]].to_numpy(dtype=object),
        ),
    ]
    columns = ["cluster", "size", "fate", "match", "jaccard", "others", "noise", "not_kept", "tokens"]
    for other in map(str, paths[1:]):
        clusters = tables[CLUSTERS][tables[CLUSTERS]["run_b"] == other]
        moved = tables[FEATURES][tables[FEATURES]["run_b"] == other]
        body.append(f"<h2>{html_page.text(str(paths[0]))} and {html_page.text(other)}</h2>")
        for side, name in (("a", str(paths[0])), ("b", other)):
            rows = clusters[clusters["side"] == side].sort_values("size", ascending=False)[columns]
            rows = rows.astype(object).where(rows.notna(), None)
            head = [column.replace("_", " ") for column in columns]
            body.append(f"<h3>Clusters of {html_page.text(name)}</h3>" + html_page.table(head, rows.to_numpy()))
        counts = ", ".join(f"{count:,} {move}" for move, count in moved["move"].value_counts().items())
        first = f"; the first {SHOWN} are listed" if len(moved) > SHOWN else ""
        body.append(f"<h3>Features that moved</h3><p>{counts or 'none'}{first}</p>")
        listed = moved.head(SHOWN)[["feature", "label_a", "label_b", "move"]]
        body.append(html_page.table(["feature", "label", "label there", "move"], listed.to_numpy(dtype=object)))
    return html_page.page("Comparison of runs", "".join(body))
