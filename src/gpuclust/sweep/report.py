"""What a sweep found, told from its tables: the page, the Markdown and the terminal's lines."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape

from gpuclust.storage import atomic, checksums
from gpuclust.sweep import answers_page
from gpuclust.sweep.answers import about_base, answers
from gpuclust.sweep.experiment import PAIR_TABLE, RECORD, SETTING_TABLE

PAGE, MARKDOWN = "sweep.html", "sweep.md"


def report(out: Path, markdown: Path | None, console: Console, quiet: bool) -> None:
    """Answer from a sweep's tables: the page, the Markdown, and a summary.

    Parameters
    ----------
    out : Path
        Folder of a finished sweep.
    markdown : Path, optional
        Another place for the Markdown.
    console : Console
    quiet : bool
        No summary.
    """
    table, pairs = pd.read_parquet(out / SETTING_TABLE), pd.read_parquet(out / PAIR_TABLE)
    record = checksums.read_json(out / RECORD)
    found = answers(table, pairs, record)
    written = answers_page.markdown(found, table, record)
    for path in filter(None, (out / MARKDOWN, markdown)):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, written)
    atomic.write_text(out / PAGE, answers_page.html(found, table, record))
    if quiet:
        return
    console.print(f"\n{escape(about_base(table, record))}")
    for answer in found:
        console.print(f"\n[bold]{escape(answer.title)}[/bold] {answer.verdict}")
        for line in (*answer.sentences, *answer.notes):
            console.print(f"  {escape(line)}")
    console.print(f"\ntables, {PAGE} and {MARKDOWN} are in {escape(str(out))}")
