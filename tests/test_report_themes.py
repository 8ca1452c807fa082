"""The report of a run with themes and sources, in headless Chromium."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpuclust import schema
from gpuclust.results import report
from gpuclust.storage.record import write_record
from tests.browser import card, until
from tests.test_report_map import NAMES, SHOWN, colour_by, zoom

pytestmark = pytest.mark.browser

CLUSTERS, SOURCES = 24, 12


@pytest.fixture(scope="module")
def reported(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose tables say that it has two dozen clusters in four themes, of prompts of a dozen sources."""
    out = tmp_path_factory.mktemp("themed") / "out"
    shutil.copytree(small_run, out)
    rng = np.random.default_rng(0)
    features = pd.read_parquet(out / schema.FEATURES)
    kept = np.flatnonzero(features["kept"])
    labels = np.arange(len(kept)) % (CLUSTERS + 1) - 1
    features.loc[kept, "label"] = labels
    angle, radius = 2.4 * labels, np.sqrt((labels + 1) / CLUSTERS)
    features.loc[kept, "x"] = radius * np.cos(angle) + 0.01 * rng.standard_normal(len(kept))
    features.loc[kept, "y"] = radius * np.sin(angle) + 0.01 * rng.standard_normal(len(kept))
    features.to_parquet(out / schema.FEATURES)
    row = pd.read_parquet(out / schema.CLUSTERS).iloc[-1].to_dict()
    made = [
        row | {
            "cluster": c, "size": int((labels == c).sum()), "features": features["feature"][kept[labels == c]].tolist(),
            "theme": None if c < 0 else c % 4, "tree_node": None, "name": None, "tokens": [f"{c}th", "word"],
            "verdict": "stable", "similarity_rank": max(c, 0),
        }
        for c in range(-1, CLUSTERS)
    ]  # fmt: skip
    clusters = pd.DataFrame(made).astype({"theme": "Int64", "tree_node": "Int64"})
    clusters.to_parquet(out / schema.CLUSTERS)
    a, b = np.triu_indices(CLUSTERS, 1)
    pairs = pd.DataFrame({"cluster_a": a, "cluster_b": b, "correlation": 0.1})
    pairs.to_parquet(out / schema.CLUSTER_SIMILARITY)
    real = clusters[clusters["cluster"] >= 0]
    rows = [{"theme": t, "words": [f"theme{t}", "second"], "clusters": own["cluster"].tolist()[::-1], "doubtful": 0,
             "size": int(own["size"].sum())} for t, own in real.groupby("theme")]  # fmt: skip
    pd.DataFrame(rows).to_parquet(out / schema.THEMES)
    prompts = pd.read_parquet(out / schema.PROMPTS)
    prompts["source"] = [f"source{n}" for n in rng.integers(SOURCES, size=len(prompts))]
    prompts.to_parquet(out / schema.PROMPTS)
    record = json.loads((out / schema.RECORD).read_text())
    for entry in record["stages"].values():
        del entry["checksums"], entry["files"]
    record["stages"]["analyse"] |= {"themes": 4, "themes_ari_halves": 0.364}
    write_record(out / schema.RECORD, record)
    report.write(out)
    return out


def test_far_out_themes_are_named_and_close_in_clusters_alone(page: Any, reported: Path) -> None:
    themes = pd.read_parquet(reported / schema.THEMES)
    assert len(themes) > 1
    named = """return [...document.querySelectorAll('#names .theme')].map(e => [+e.dataset.theme, e.textContent])"""
    zoom(page, 0)
    far = dict(page.execute_script(named))
    assert far
    assert all(text.split(" · ")[0] == themes.loc[theme, "words"][0] for theme, text in far.items())
    zoom(page, 4)
    assert page.execute_script(named) == []
    assert page.execute_script(f"return {NAMES}.length") > 0
    zoom(page, 0)
    assert dict(page.execute_script(named)) == far


def test_a_theme_opens_to_its_clusters(page: Any, reported: Path) -> None:
    themes = pd.read_parquet(reported / schema.THEMES).set_index("theme")
    page.execute_script("location.hash = 't1'")
    until(page, "document.querySelector('#card').innerText.startsWith('Theme 1')")
    assert "agree to an adjusted Rand index of" in card(page)
    rows = "return [...document.querySelectorAll('#card tr')].map(r => r.innerText.trim().split(/\\s/)[0])"
    assert page.execute_script(rows) == [f"c{c}" for c in themes.loc[1, "clusters"]]
    assert page.execute_script("return document.getElementById('map').data[2].x.length") == themes.loc[1, "size"]
    page.execute_script("document.querySelector('#card td button').click()")
    until(page, "document.querySelector('#card').innerText.startsWith('Cluster')")
    assert page.execute_script(
        "return [...document.querySelectorAll('#card p')].some(p => p.innerText.startsWith('Its theme: t1 '))"
    )
    listed = page.execute_script(
        """return [...document.querySelectorAll('#themes-list details')].map(d => [
          d.querySelector('summary').textContent,
          d.querySelectorAll('tr').length])"""
    )
    assert [n for _, n in listed] == themes["clusters"].map(len).tolist()
    assert all(f"{size:,} features" in text for (text, _), size in zip(listed, themes["size"], strict=True))


def test_the_map_is_coloured_by_theme(page: Any, reported: Path, features: pd.DataFrame) -> None:
    clusters = pd.read_parquet(reported / schema.CLUSTERS).set_index("cluster")
    colour_by(page, "theme")
    shown = pd.Series(dict(page.execute_script(SHOWN)))
    kept = features[features["kept"]].set_index("feature")
    theme = kept["label"].map(clusters["theme"])
    assert theme.isna().equals(kept["label"].eq(schema.NOISE).astype(bool))
    assert shown.groupby(theme.fillna(-1)).nunique().eq(1).all()
    colour_by(page, "cluster")


def test_the_map_is_coloured_by_source(page: Any, reported: Path, features: pd.DataFrame) -> None:
    """By the source of most of a feature's stored prompts; sources that are no feature's first are not among those."""
    examples = pd.read_parquet(reported / schema.EXAMPLES)
    source = pd.read_parquet(reported / schema.PROMPTS).set_index("prompt")["source"].astype(str)
    times = examples.assign(source=examples["prompt"].map(source)).groupby(["feature", "source"]).size()
    first = times.groupby("feature").apply(lambda of: sorted(of[of == of.max()].index.get_level_values(1))[0])
    kept = features.loc[features["kept"], "feature"]
    colour_by(page, "source")
    shown = dict(page.execute_script(SHOWN))
    common = page.execute_script(
        "return [...document.querySelectorAll('#legend .chip')].map(e => e.innerText.replace(/ \\([\\d,]+\\)$/, ''))"
    )
    assert 2 < len(common) <= 9
    assert common[-1] == "other sources"
    of = pd.Series(shown).groupby(first[kept].where(first[kept].isin(common), "other")).nunique()
    assert of.eq(1).all()
    told = page.execute_script("return document.getElementById('map').data[1].text[0]")
    at = page.execute_script("return document.getElementById('map').data[1].customdata[0]")
    assert told.endswith(first[at])
    colour_by(page, "cluster")
