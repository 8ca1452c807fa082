"""The readable summary that ends a run in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gpuclust import schema
from gpuclust.compute import verdicts
from gpuclust.formatting import gigabytes, plain
from gpuclust.results import tried
from gpuclust.schema import NOISE
from gpuclust.storage import reading

if TYPE_CHECKING:
    from gpuclust.results.run import Run

SHOWN = 12  # clusters
THEMES = 6


def show(out: Path, record: dict[str, Any], console: Console) -> None:
    """Print counts, the filter, the clusters with their words and top prompts, and the most similar pairs.

    Parameters
    ----------
    out : Path
        A finished run's folder.
    record : dict
        Its ``run.json``.
    console : Console
    """
    stages = record["stages"]
    run = reading.Files(out)
    clusters = run.table(schema.CLUSTERS)
    features = run.table(schema.FEATURES, ["kept", "quadrant", "entropy", "varentropy"])
    attributes = stages["prompts"].get("attributes", {})
    reduce, select = stages["reduce"], stages["select"]
    quality = stages.get("quality", {})
    where = f"{attributes.get('model', '?')} · {attributes.get('hook_name', '?')} · {attributes.get('sae', '?')}"
    console.print()
    if headline := quality.get("headline"):
        console.print(f"[bold]{headline}[/bold]")
    for warning in quality.get("warnings", []):
        console.print(f"[bold yellow]! {escape(warning)}[/bold yellow]")
    console.print(f"[dim]{escape(where)}[/dim]")
    n_prompts = stages["prompts"]["rows"]
    tokens = f" ({stages['prompts']['tokens']:,} tokens)" if stages["prompts"].get("tokens") else ""
    console.print(
        f"{n_prompts:,} prompts{tokens} × {reduce['rows']:,} features, {reduce['density']:.1%} of entries non-zero, "
        f"{reduce['dead_features']:,} features never fire"
    )
    rows = run.settings()["extract"].get("rows", "prompt")
    if rows != "prompt":
        console.print(f"compared over {stages['neighbors']['observed'][schema.WHOLE]:,} {rows}s")
    removed = ", ".join(f"{name} removes {count:,}" for name, count in select["removed"].items() if count)
    console.print(f"kept {select['kept']:,} features" + (f" ({removed})" if removed else ""))
    counts = features.loc[features["kept"], "quadrant"].value_counts()
    console.print("quadrants: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    real = _in_order(clusters[clusters["cluster"] != NOISE])
    noise = clusters.loc[clusters["cluster"] == NOISE, "size"].sum()
    share = noise / max(int(clusters["size"].sum()), 1)
    chosen, how = stages["cluster"].get("eps"), ""
    if chosen is not None:
        how = f"; dbscan.eps {chosen:.4g} on the {stages['cluster']['on']}"
    elif resolution := stages["cluster"].get("resolution"):
        how = f"; resolution {resolution:.3g}"
    found = f"[bold]{len(real)} cluster{'' if len(real) == 1 else 's'}[/bold]"
    console.print(f"{found}, {int(noise):,} features ({share:.0%}) are noise{how}")
    if reasons := stages["cluster"].get("noise_reasons"):
        console.print(f"[dim]noise: {', '.join(f'{count:,} {name}' for name, count in reasons.items())}[/dim]")
    copies = stages["cluster"].get("duplicates")
    if copies:
        console.print(f"[yellow]{copies:,} features are exact duplicates of others and clustered as these[/yellow]")
    for line in _quality(quality, run.settings()):
        console.print(line)
    if "validate" in stages:
        for line in tried.lines(run.table(schema.VALIDATION), run.facts(schema.VALIDATION_FACTS)):
            console.print(escape(line))
    if len(real):
        console.print(_cluster_table(real.head(SHOWN), console.width))
        if len(real) > SHOWN:
            console.print(f"[dim]… and {len(real) - SHOWN} more: `gpuclust show {escape(str(out))} --clusters`[/dim]")
        unnamed = not any(len(_listed(found)) for name in ("tokens", "keywords") for found in real[name])
        if unnamed and _imported(record):
            known = "gpuclust import takes texts (--prompts) and a tokenizer of ids (--tokenizer)"
            console.print(f"[dim]no words: nothing is known of what the prompts say; {known}[/dim]")
        _themes(run, console)
        _top_prompts(real.head(3), console)
        _similar(run, console)
    said = {f"quality: {warning}" for warning in quality.get("warnings", [])}
    for warning in (text for text in record.get("warnings", []) if text not in said):
        console.print(f"[yellow]! {escape(warning)}[/yellow]")
    peaks = [max(stage["peak_bytes"].values()) for stage in stages.values() if stage.get("peak_bytes")]
    seconds = sum(stage.get("seconds", 0) for stage in stages.values())
    console.print(f"[dim]stages took {seconds:.1f} s in all; largest process {gigabytes(max(peaks, default=0))}[/dim]")
    console.print(f"everything is in [bold]{escape(str(out))}[/bold]")
    if (out / schema.REPORT).exists():
        console.print(f"open [bold]{escape(str(out / schema.REPORT))}[/bold] in a browser")
    elif "report" in stages:
        console.print(f"[yellow]! {schema.REPORT} is missing: `gpuclust report {escape(str(out))}` writes it[/yellow]")


def _imported(record: dict[str, Any]) -> bool:
    return bool(record["stages"]["prompts"].get("attributes", {}).get("model") == schema.IMPORTED)


def _in_order(clusters: pd.DataFrame) -> pd.DataFrame:
    """The largest first, behind all others those that are not found again or no better than random."""
    doubtful = clusters.get("verdict", pd.Series(index=clusters.index, dtype=object)).isin(verdicts.DOUBTFUL)
    return clusters.assign(doubtful=doubtful).sort_values(["doubtful", "size"], ascending=[True, False], kind="stable")


def _quality(facts: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """What the checks found, a line each; what was not measured is left out or said."""
    lines = []
    if sum((counts := facts.get("verdicts", {})).values()):
        meaning = verdicts.explained(settings.get("quality", {}).get("stable", 0.5))
        lines += [
            f"  {count:>4} {name}: [dim]{escape(meaning.get(name, 'in the words of an earlier version'))}[/dim]"
            for name, count in counts.items()
            if count
        ]
    halves = facts.get("halves")
    if halves and halves["ari"] is None:
        lines.append("two halves of the prompts, clustered apart: neither has a cluster")
    elif halves:
        both = "no feature is clustered by both"
        if halves["ari_clustered"] is not None:
            both = f"{halves['ari_clustered']:.2f} on the {halves['clustered_both']:.0%} of features that both cluster"
        lines.append(
            f"two halves of the prompts, clustered apart, agree to ARI {halves['ari']:.2f} (AMI {halves['ami']:.2f}); "
            f"{both}"
        )
        lines += _again(facts)
    if null := facts.get("null"):
        lines.append(
            f"one clustering of permuted activations: {null['clusters']} clusters, {null['noise_share']:.0%} noise"
        )
    if decoder := facts.get("decoder"):
        lines.append(
            f"decoder directions: {decoder['overlap']:.1%} of neighbours shared ({decoder['overlap_by_chance']:.1%} by "
            "chance)" + (f", AMI of clusters {decoder['ami']:.2f}" if "ami" in decoder else "")
        )
    lines += [f"[dim]not measured: {escape(reason)}[/dim]" for reason in facts.get("skipped", [])]
    return lines


def _again(facts: dict[str, Any]) -> list[str]:
    """What of the clusters is found again in the other half, beside those of one UMAP and HDBSCAN."""
    if "found_again" not in facts["halves"]:  # of a run by an earlier version
        return []
    lines = [
        f"[bold]{facts['halves']['found_again']:.0%} of the features[/bold] are in clusters that the other half finds "
        f"again (Jaccard index 0.5; {facts['halves']['found_again_75']:.0%} at 0.75)"
    ]
    once = facts.get("hdbscan", {})
    if "halves" in once:
        lines.append(
            f"one UMAP and HDBSCAN: {once['clusters']} clusters, {once['noise']:.0%} noise, "
            f"{once['halves']['found_again']:.0%} found again ({once['halves']['found_again_75']:.0%}); agrees with "
            f"the clusters to AMI {once['ami']:.2f}"
        )
    return lines


def _cluster_table(clusters: pd.DataFrame, width: int) -> Table:
    """A line a cluster, as wide as the terminal."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    words, head = _judged(clusters)
    judged = bool(words.notna().any())  # not where quality was not measured
    for name in ("cluster", "size", "stability"):
        table.add_column(name, justify="right", no_wrap=True)
    if judged:
        table.add_column(head, no_wrap=True)
    taken = len("cluster  size  stability  ") + (max(map(len, words.dropna())) + 2 if judged else 0)
    peaks = any(len(_listed(tokens)) for tokens in clusters["tokens"])  # imported activations may have none
    table.add_column(
        "features peak at" if peaks else "words of its prompts",
        no_wrap=True,
        overflow="ellipsis",
        max_width=max(width - taken, 16),
    )
    for row, word in zip(clusters.to_dict("records"), words, strict=True):
        listed = _listed(row["tokens"] if peaks else row["keywords"])[:12]
        table.add_row(
            str(row["cluster"]),
            str(row["size"]),
            "" if pd.isna(row["stability"]) else f"{row['stability']:.2f}",
            *([plain(word)] if judged else []),
            escape(_name(row) + " · ".join(listed)),
        )
    return table


def _judged(clusters: pd.DataFrame) -> tuple[pd.Series[Any], str]:
    """The word of each cluster, and what it is: for all that was tried, where anything was, else the verdict."""
    nothing = pd.Series(index=clusters.index, dtype=object)
    verdict, tried = clusters.get("verdict", nothing), clusters.get("evidence", nothing)
    return (tried.where(tried.notna(), verdict), "evidence") if tried.notna().any() else (verdict, "verdict")


def clusters_of(run: Run, width: int) -> Table:
    """All clusters of a run, a line each, as wide as the terminal."""
    return _cluster_table(_in_order(run.clusters[run.clusters["cluster"] != NOISE]), width)


def themes_of(run: Run) -> Table:
    """All themes of a run, a line each."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("theme", "features"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("words")
    table.add_column("clusters")
    for row in run.themes.to_dict("records"):
        words, clusters = " · ".join(map(plain, row["words"])), ", ".join(map(str, row["clusters"]))
        table.add_row(str(row["theme"]), str(row["size"]), escape(words), clusters)
    return table


def _themes(run: reading.Files, console: Console) -> None:
    """The words of the largest themes, on one line."""
    if schema.THEMES not in run or not len(table := run.table(schema.THEMES)):
        return
    named = [" · ".join(map(plain, list(words)[:2])) for words in table["words"] if len(words)]
    more = f"; and {len(named) - THEMES} more" if len(named) > THEMES else ""
    ari = run.record()["stages"]["analyse"].get("themes_ari_halves")
    sure = (
        "" if ari is None else f" (those of either half of the prompts agree to ARI {ari:.2f}; `--themes` lists them)"
    )
    words = f": {escape('; '.join(named[:THEMES]))}{more}" if named else f": {len(table)}, without words"
    console.print(f"\nthemes, clusters that rise and fall together{sure}{words}")


def _top_prompts(clusters: pd.DataFrame, console: Console) -> None:
    for row in clusters.to_dict("records"):
        console.print(f"\n[bold]cluster {row['cluster']}[/bold] ({row['size']} features), strongest prompts:")
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0), expand=True)
        table.add_column("mean |a|", justify="right", no_wrap=True)
        table.add_column("text", ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column("source", no_wrap=True, overflow="ellipsis", max_width=20)
        table.add_column("chars", justify="right", no_wrap=True)
        table.add_column("tokens", justify="right", no_wrap=True)
        for prompt in _listed(row["top_prompts"]):
            table.add_row(
                f"{prompt['activation']:.3g}", escape(prompt["text"]) or f"[dim]prompt {prompt['prompt']}[/dim]",
                f"[dim]{escape(prompt['source'])}[/dim]",
                str(prompt["n_chars"]), str(prompt["n_tokens"]) if prompt["n_tokens"] >= 0 else "?",
            )  # fmt: skip
        console.print(table)


def _similar(run: reading.Files, console: Console) -> None:
    pairs = run.table(schema.CLUSTER_SIMILARITY).dropna()
    pairs = pairs.reindex(pairs["correlation"].abs().sort_values(ascending=False).index).head(5)
    if len(pairs):
        listed = ", ".join(f"{a}–{b} {r:+.2f}" for a, b, r in pairs.itertuples(index=False, name=None))
        console.print(f"\nclusters that go together over prompts (correlation): {listed}")


def _name(row: Any) -> str:
    """The cluster's name from a labeller, if it has one."""
    name = row.get("name")
    return f"{name}: " if isinstance(name, str) else ""


def _listed(value: Any) -> list[Any]:
    """A list column's value as a list; nothing where the cell is null."""
    return list(value) if isinstance(value, list | tuple | np.ndarray) else []
