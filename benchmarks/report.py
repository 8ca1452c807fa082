"""Time the report of a made-up run: seconds, bytes of the file, and with --browser how long Chromium takes to open it.

    python -m benchmarks.report --features 32768 --prompts 1000

The tables have the shapes of a real run (points in blobs, clustered by HDBSCAN; words drawn by Zipf's law; 20 examples
a feature); what they say means nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.configfile import load
from gpuclust.hardware import process
from gpuclust.results import report
from gpuclust.storage import atomic, store
from gpuclust.tables import cluster_table, profiles

Array = np.ndarray[Any, Any]


def prompts(n: int, rng: np.random.Generator) -> tuple[pd.DataFrame, list[Array]]:
    """Texts of 25 to 250 words, and where their words begin and end."""
    letters = np.array(list("etaoinshrdlu"))
    words = np.array(["".join(rng.choice(letters, length)) for length in rng.integers(2, 11, 20_000)])
    rows = [words[np.minimum(rng.zipf(1.3, rng.integers(25, 250)), len(words)) - 1] for _ in range(n)]
    ends = [np.cumsum([len(word) + 1 for word in row]) - 1 for row in rows]
    spans = [np.stack([end - [len(word) for word in row], end], axis=1) for row, end in zip(rows, ends, strict=True)]
    table = pd.DataFrame({"prompt": range(n), "text": [" ".join(row) for row in rows]})
    table["source"] = [f"source {i % 7}" for i in range(n)]
    table["n_tokens"] = [len(row) for row in rows]
    return table, spans


def make(out: Path, n_features: int, n_prompts: int) -> int:
    """Write the tables of a run; return the number of clusters."""
    import hdbscan

    rng = np.random.default_rng(0)
    n_blobs = max(n_features // 45, 2)
    centres = rng.normal(0, 10, (n_blobs, 2))
    points = np.concatenate([
        centres[rng.integers(0, n_blobs, n_features * 3 // 5)] + rng.normal(0, 0.08, (n_features * 3 // 5, 2)),
        rng.normal(0, 10, (n_features - n_features * 3 // 5, 2)),
    ])  # fmt: skip
    model = hdbscan.HDBSCAN(min_cluster_size=10, min_samples=5, approx_min_span_tree=True).fit(points)
    atomic.write_table(out / schema.CONDENSED_TREE, model.condensed_tree_.to_pandas())
    features = pd.DataFrame({"feature": np.arange(n_features)})
    for name, scale in (
        ("entropy", 7),
        ("varentropy", 1e-5),
        ("mean", 1),
        ("std", 1),
        ("max", 9),
        ("outlier_score", 1),
    ):
        features[name] = scale * rng.random(n_features)
    features["n_active"] = rng.integers(1, n_prompts, n_features)
    features["sparsity"] = features["n_active"] / n_prompts
    features["kept"] = True
    features["quadrant"] = rng.choice([schema.FLOWING, schema.CAREFUL, schema.EXPLORING, schema.RESAMPLING], n_features)
    features["label"] = pd.array(model.labels_, dtype="Int64")
    features["probability"] = model.probabilities_
    features[["x", "y"]] = points
    atomic.write_table(out / schema.FEATURES, features)
    texts, spans = prompts(n_prompts, rng)
    atomic.write_table(out / schema.PROMPTS, texts)
    examples = pd.DataFrame(
        {"feature": np.repeat(np.arange(n_features), 20), "rank": np.tile(np.arange(20), n_features)}
    )
    examples["prompt"] = rng.integers(0, n_prompts, len(examples))
    examples["value"] = rng.random(len(examples))
    examples["position"] = [rng.integers(len(spans[p])) for p in examples["prompt"]]
    atomic.write_table(out / schema.EXAMPLES, examples)
    found = np.array([spans[p][i] for p, i in zip(examples["prompt"], examples["position"], strict=True)])
    marks = examples[["feature", "rank"]].assign(start=found[:, 0], stop=found[:, 1])
    atomic.write_table(out / schema.EXAMPLE_SPANS, marks)
    n_clusters = int(model.labels_.max()) + 1
    activations = rng.random((n_prompts, n_clusters))
    profile = profiles.profile(lambda: [activations], n_clusters, 5)
    words = [["word", "other", "third", "more"]] * n_clusters
    more = {"tokens": words, "promoted_tokens": words, "decoder_cosine": rng.random(n_clusters)}
    more["tree_node"] = cluster_table.tree_nodes(model.condensed_tree_.to_pandas(), model.labels_)
    settings = load()
    clusters = cluster_table.cluster_table(
        features, texts, profile, model.cluster_persistence_, settings.analyse,
        cluster_table.peak_marks(features, examples, marks), more,
    )  # fmt: skip
    atomic.write_table(out / schema.CLUSTERS, clusters)
    atomic.write_table(out / schema.CLUSTER_SIMILARITY, cluster_table.similarity(profile.correlation))
    nearest = rng.integers(0, n_features, (n_features, 15))
    variables = {
        "indices": (("feature", "k"), nearest),
        "distances": (("feature", "k"), rng.random((n_features, 15), np.float32)),
        "feature": (("feature",), np.arange(n_features)), "k": (("k",), np.arange(15)),
    }  # fmt: skip
    store.write_dataset(out / schema.NEIGHBORS, variables, {})
    stages: dict[str, Any] = {
        "prompts": {"rows": n_prompts, "attributes": {"model": "made-up", "hook_name": "none", "sae": "none"}},
        "reduce": {"rows": n_features, "density": 0.1, "dead_features": 0}, "select": {"removed": {}},
        "neighbors": {"method": "exact", "metric": "cosine"}, "cluster": {}, "analyse": {},
    }  # fmt: skip
    atomic.write_json(out / schema.RECORD, {"stages": stages})
    atomic.write_text(out / schema.CONFIG, json.dumps(settings.resolved()))
    return n_clusters


DRAG = """const done = arguments[0], map = document.getElementById('map'), pad = map.querySelector('.nsewdrag');
    const {left, top} = pad.getBoundingClientRect(), times = [];
    const at = (kind, where, n) => where.dispatchEvent(new MouseEvent(kind,
      {bubbles: true, clientX: left + 300 + 3 * n, clientY: top + 200 + n, button: 0, buttons: 1, view: window}));
    performance.clearMeasures();
    at('mousedown', pad, 0);
    const step = () => {
      times.push(performance.now());
      if (times.length <= 20 && times.at(-1) - times[0] < 60000) {
        at('mousemove', document, times.length);
        requestAnimationFrame(step);
      } else { at('mouseup', document, times.length); done((times.at(-1) - times[0]) / 1000 / (times.length - 1)); }
    };
    requestAnimationFrame(step);"""
WHEEL = """const done = arguments[0], map = document.getElementById('map'), pad = map.querySelector('.nsewdrag');
    const {left, top} = pad.getBoundingClientRect(), times = [];
    const step = () => {
      times.push(performance.now());
      if (times.length <= 20 && times.at(-1) - times[0] < 60000) {
        pad.dispatchEvent(new WheelEvent('wheel', {bubbles: true, cancelable: true,
          clientX: left + 300, clientY: top + 200, deltaY: times.length % 2 ? -40 : 40}));
        requestAnimationFrame(step);
      } else done((times.at(-1) - times[0]) / 1000 / (times.length - 1));
    };
    requestAnimationFrame(step);"""
MEASURES = """const all = {};
    for (const {name, duration} of performance.getEntriesByType('measure')) {
      all[name] ||= [0, 0]; all[name][0] += duration / 1000; all[name][1]++;
    }
    return all"""


def open_in_browser(path: Path) -> dict[str, Any]:
    """Seconds until Chromium has drawn the page, those of its parts, and frames per second while the map is moved.

    Parts named Plotly are its calls; the others are the page's own. What remains is the browser's: to read the file,
    to read the scripts, and to draw the points, which a frame mostly waits for where WebGL is software.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-unsafe-swiftshader",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    page = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        page.set_script_timeout(240)
        started = time.perf_counter()
        page.get(path.resolve().as_uri())
        while not page.execute_script("return document.documentElement.dataset.ready === 'true'"):
            time.sleep(0.05)
        opened = time.perf_counter() - started
        page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        parts = {name: round(seconds, 3) for name, (seconds, _) in page.execute_script(MEASURES).items()}
        dragged = page.execute_async_script(DRAG)
        seconds, n = page.execute_script(MEASURES).get("names", (0, 1))
        wheeled = page.execute_async_script(WHEEL)
        started = time.perf_counter()
        page.execute_script(
            """const s = document.querySelector('#colour-by select');
            s.value = 'entropy'; s.dispatchEvent(new Event('change'))"""
        )
        coloured = time.perf_counter() - started
        page.execute_script(
            "document.querySelector('#query').value = 'eta'; document.querySelector('#search').requestSubmit()"
        )
        found = page.execute_script(MEASURES)["search"][0]
    finally:
        page.quit()
    return {
        "seconds to ready": round(opened, 2), "of them": parts, "frames a second, dragging": round(1 / dragged, 2),
        "frames a second, wheel": round(1 / wheeled, 2), "names a frame, seconds": round(seconds / n, 4),
        "another colouring, seconds": round(coloured, 2), "search, seconds": round(found, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--browser", action="store_true", help="also open it in Chromium (software WebGL)")
    parser.add_argument("--out", type=Path, help="keep the made-up run here")
    parser.add_argument("--open", type=Path, metavar="REPORT", help="only open this report in Chromium")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    if args.open:
        print(json.dumps(open_in_browser(args.open)))
        return
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        n_clusters = make(out, args.features, args.prompts)
        process.reset_peak()
        started = time.perf_counter()
        size = report.write(out)
        seconds = time.perf_counter() - started
        facts: dict[str, Any] = {"features": args.features, "prompts": args.prompts, "clusters": n_clusters}
        facts |= {
            "seconds": round(seconds, 1),
            "MB": round(size / 1e6, 1),
            "peak_GB": round(process.peak_bytes() / 1e9, 2),
        }
        if args.browser:
            facts |= open_in_browser(out / schema.REPORT)
        if args.json:
            args.json.write_text(json.dumps(facts, indent=2) + "\n")
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
