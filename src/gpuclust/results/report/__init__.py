"""The report: a run's tables as one HTML file that works offline. It computes nothing about features.

``page/`` holds the page: its HTML, its style and its scripts. The run's data are packed into it (`pack`), and the
scripts draw them with Plotly. Text from prompts and tokens is data: it travels as base64 and is only ever set as text.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from html import escape
from importlib.resources import files
from pathlib import Path

from gpuclust import schema
from gpuclust.errors import StoreError
from gpuclust.results.report import content, pack
from gpuclust.storage import atomic, reading

log = logging.getLogger("gpuclust")

SCRIPTS = (
    "dom.js",
    "data.js",
    "tables.js",
    "plots.js",
    "colours.js",
    "map.js",
    "names.js",
    "cards.js",
    "selection.js",
    "search.js",
    "main.js",
)  # in the order they are read
NEEDED = (schema.CONFIG, schema.RECORD, schema.PROMPTS, schema.FEATURES, schema.CLUSTERS, schema.CLUSTER_SIMILARITY)


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

    Raises
    ------
    StoreError
        If the folder is no run, or not as far as its cluster tables.

    Notes
    -----
    Memory: the tables of the run, and a few times the size of the file.
    """
    if missing := [name for name in NEEDED if not (out / name).exists()]:
        raise StoreError(
            f"{out} cannot be reported: it has no {', '.join(missing)}. Give the --out folder of a run whose stage "
            "analyse is done. The run's own command makes what is missing"
        )
    run = reading.Files(out)
    record = run.record()
    if "analyse" not in record["stages"]:
        raise StoreError(
            f"{out} cannot be reported: its stage analyse is not done; the same command goes on from there"
        )
    from plotly.offline import get_plotlyjs

    data, arrays = content.collect(run, record)
    page = files(__name__) / "page"
    libraries = get_plotlyjs()
    # One scope for all: page scripts share their names, and nothing leaks into the page.
    scripts = "\n".join((page / name).read_text(encoding="utf8") for name in SCRIPTS)
    script = f"(() => {{\n'use strict';\n{scripts}\n}})();"
    title = f"{data['model']} · {data['hook_name']}"
    parts = {
        "title": escape(title),
        # Scripts other than these two do not run, and nothing is fetched, whatever a prompt holds.
        "policy": (
            f"default-src 'none'; script-src {_digest(libraries)} {_digest(script)} 'unsafe-eval'; "
            "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
        ),
        "style": (page / "style.css").read_text(encoding="utf8"),
        "plotly": libraries,
        "script": script,
        "data": base64.b64encode(pack.pack(data, arrays)).decode(),
    }
    text = (page / "index.html").read_text(encoding="utf8")
    target = out / schema.REPORT
    with atomic.replacing(target) as partial, partial.open("w", encoding="utf8") as file:
        for index, part in enumerate(text.split("@@")):  # name and text in turn
            file.write(parts[part] if index % 2 else part)
    size = target.stat().st_size
    log.info("report: %s, %.1f MB, of them %.1f MB of data", target, size / 1e6, len(parts["data"]) / 1e6)
    return size


def _digest(script: str) -> str:
    """A script's hash as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
