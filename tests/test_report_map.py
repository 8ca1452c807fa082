"""The map of the report in headless Chromium: names, colours, what a lasso holds, and finding things."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpuclust import schema
from tests.browser import until

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def opened(chromium: Any, reported: Path) -> Any:
    chromium.get("about:blank")
    chromium.get((reported / schema.REPORT).as_uri())
    until(chromium, "document.documentElement.dataset.ready === 'true'")
    return chromium


@pytest.fixture
def page(opened: Any) -> Any:
    opened.execute_script(
        "history.replaceState(null, '', location.pathname); dispatchEvent(new PopStateEvent('popstate'))"
    )
    return opened


@pytest.fixture(scope="module")
def features(reported: Path) -> pd.DataFrame:
    return pd.read_parquet(reported / schema.FEATURES)


NAMES = "[...document.querySelectorAll('#names span')]"
BOXES = (
    f"return {NAMES}.map(e => {{ const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; }})"
)


AFTERWARDS = """map.once('plotly_afterplot', () => requestAnimationFrame(() => requestAnimationFrame(
    () => { window.placed = true; })));
    window.placed = false;"""


def zoom(page: Any, factor: float) -> None:
    """Shows the middle of the map, that many times as large; 0: the whole map."""
    page.execute_script(
        f"""const map = document.getElementById('map'), axes = map._fullLayout;
        window.whole ||= ['xaxis', 'yaxis'].map(name => [...axes[name].range]);
        const near = ([a, b]) => [1, -1].map(s => (a + b) / 2 - s * (b - a) / 2 / arguments[0]);
        const [x, y] = arguments[0] ? window.whole.map(near) : window.whole;
        {AFTERWARDS}
        Plotly.relayout(map, {{'xaxis.range': x, 'yaxis.range': y}});""",
        factor,
    )
    until(page, "window.placed")


def test_names_on_the_map_do_not_overlap_and_zooming_in_shows_more(page: Any) -> None:
    placed = {}
    for factor in (0.1, 1, 0):
        zoom(page, factor)
        placed[factor] = page.execute_script(BOXES)
        boxes = np.array(placed[factor])
        for i, box in enumerate(boxes):
            others = np.delete(boxes, i, axis=0)
            apart = (
                (others[:, 0] >= box[2])
                | (others[:, 2] <= box[0])
                | (others[:, 1] >= box[3])
                | (others[:, 3] <= box[1])
            )
            assert apart.all()
    assert 0 < len(placed[0.1]) < len(placed[0])
    frame = page.execute_script(
        "const r = document.getElementById('map').getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]"
    )
    assert all(
        frame[0] <= left and frame[1] <= top and right <= frame[2] and bottom <= frame[3]
        for left, top, right, bottom in placed[0]
    )


def test_a_name_lies_among_the_features_of_its_cluster(page: Any, reported: Path, features: pd.DataFrame) -> None:
    clusters = pd.read_parquet(reported / schema.CLUSTERS).set_index("cluster")
    zoom(page, 0)
    where = page.execute_script(
        f"""const map = document.getElementById('map'), frame = map.getBoundingClientRect(), axes = map._fullLayout;
        const [left, top] = [frame.left + axes.xaxis._offset, frame.top + axes.yaxis._offset];
        return {NAMES}.map(e => {{ const r = e.getBoundingClientRect(); return [+e.dataset.cluster, e.textContent,
          axes.xaxis.p2l((r.left + r.right) / 2 - left), axes.yaxis.p2l((r.top + r.bottom) / 2 - top)]; }})"""
    )
    assert len(where) > 0
    for cluster, text, x, y in where:
        members = features[features["label"].eq(cluster).fillna(False)]
        away = np.hypot(members["x"] - x, members["y"] - y)
        assert away.min() < 0.02 * np.ptp(features.loc[features["kept"], "x"])
        name = clusters.loc[cluster, "name"]
        words = [name] if isinstance(name, str) else clusters.loc[cluster, "tokens"]
        assert text.rstrip("…").split(" · ")[0] in "".join(words)


def test_moving_the_map_moves_the_names_and_changes_none(page: Any) -> None:
    places = f"return {NAMES}.map(e => [e.dataset.cluster, e.getBoundingClientRect().left])"
    zoom(page, 0)
    before = dict(page.execute_script(places))
    page.execute_script(
        f"""const map = document.getElementById('map'), {{range: [x0, x1], _length}} = map._fullLayout.xaxis;
        {AFTERWARDS}
        Plotly.relayout(map, {{'xaxis.range': [x0, x1].map(x => x + 40 / _length * (x1 - x0))}})"""
    )
    until(page, "window.placed")
    after = dict(page.execute_script(places))
    both = before.keys() & after.keys()
    assert both
    assert [before[c] - after[c] for c in both] == pytest.approx([40] * len(both), abs=1)
    frame = page.execute_script("return document.getElementById('names').getBoundingClientRect().left")
    assert all(before[c] < frame + 45 for c in before.keys() - after.keys())  # those that left on the left
    zoom(page, 0)


def colour_by(page: Any, key: str) -> None:
    page.execute_script(
        """const select = document.querySelector('#colour-by select');
        select.value = arguments[0]; select.dispatchEvent(new Event('change'))""",
        key,
    )


SHOWN = """const [noise, real] = document.getElementById('map').data;
    return [noise, real].flatMap(t => t.customdata.map((f, i) => [f, t.marker.color[i]]))"""


@pytest.mark.parametrize("name", ["entropy", "sparsity"])
def test_the_map_is_coloured_by_a_number(page: Any, features: pd.DataFrame, name: str) -> None:
    colour_by(page, name)
    shown = dict(page.execute_script(SHOWN))
    kept = features[features["kept"]]
    values = kept[name] if name == "entropy" else np.log10(kept[name])
    assert [shown[f] for f in kept["feature"]] == pytest.approx(values.tolist(), rel=1e-5)
    low, high = (
        float(x)
        for x in re.findall(
            r"[≤≥] ([\d.e-]+)", page.execute_script("return document.querySelector('#legend').innerText")
        )
    )
    assert kept[name].min() <= low * 1.01
    assert low < high <= kept[name].max() * 1.01
    colour_by(page, "cluster")


@pytest.mark.parametrize(
    ("key", "column"), [("quadrant", "quadrant"), ("noise", "noise_reason"), ("hdbscan", "hdbscan_label")]
)
def test_the_map_is_coloured_by_categories(page: Any, features: pd.DataFrame, key: str, column: str) -> None:
    """Features of a kind have a colour of their own, which the legend explains."""
    colour_by(page, key)
    shown = pd.Series(dict(page.execute_script(SHOWN)))
    kept = features[features["kept"]].set_index("feature")
    kinds = kept[column].astype(object).where(kept[column].notna(), "rest")
    colours = shown.groupby(kinds).agg(set)
    assert all(len(of) == 1 for of in colours)
    assert len(set.union(*colours)) == min(len(colours), 11)
    legend = page.execute_script("return document.querySelector('#legend').innerText")
    for kind, n in kinds.value_counts().items():
        if column != "hdbscan_label" and kind != "rest":
            assert f"{kind} ({n:,})" in legend
    colour_by(page, "cluster")
    assert "noise is grey" in page.execute_script("return document.querySelector('#legend').innerText")
