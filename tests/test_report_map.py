"""The map of the report in headless Chromium: names, colours, what a lasso holds, and finding things."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpuclust import schema
from tests.browser import card, send, until

pytestmark = pytest.mark.browser


ALL = "[...document.querySelectorAll('#names span')]"
NAMES = "[...document.querySelectorAll('#names span[data-cluster]')]"
BOXES = f"return {ALL}.map(e => {{ const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; }})"


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


def test_no_name_lies_on_the_buttons(page: Any) -> None:
    zoom(page, 0)
    cluster = page.execute_script(
        f"""const map = document.getElementById('map'), {{xaxis, yaxis}} = map._fullLayout, name = {NAMES}[0];
        const corner = e => {{ const r = e.getBoundingClientRect(); return [r.right, r.bottom]; }};
        const [from, to] = [corner(name), corner(map.querySelector('.modebar'))];
        const by = [(from[0] - to[0] + 12) / xaxis._length, (to[1] - from[1]) / yaxis._length];
        const moved = (axis, share) => axis.range.map(v => v + share * (axis.range[1] - axis.range[0]));
        {AFTERWARDS}
        Plotly.relayout(map, {{'xaxis.range': moved(xaxis, by[0]), 'yaxis.range': moved(yaxis, by[1])}});
        return name.dataset.cluster"""
    )
    until(page, "window.placed")
    assert cluster not in page.execute_script(f"return {NAMES}.map(e => e.dataset.cluster)")
    zoom(page, 0)
    assert cluster in page.execute_script(f"return {NAMES}.map(e => e.dataset.cluster)")


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


@pytest.mark.parametrize("lasso", [True, False])
def test_what_a_lasso_or_a_box_holds_is_listed(page: Any, reported: Path, features: pd.DataFrame, lasso: bool) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    zoom(page, 0)
    page.execute_script(
        """Plotly.relayout('map', {dragmode: arguments[0]});
        document.getElementById('map').scrollIntoView({block: 'center'})""",
        "lasso" if lasso else "select",
    )
    left, top, x0, x1, y0, y1, w, height = page.execute_script(
        """const map = document.getElementById('map'), r = map.getBoundingClientRect();
        const {xaxis, yaxis} = map._fullLayout;
        return [r.left + xaxis._offset, r.top + yaxis._offset, ...xaxis.range, ...yaxis.range, xaxis._length,
          yaxis._length]"""
    )
    kept = features[features["kept"]]
    across = left + (kept["x"] - x0) / (x1 - x0) * w
    down = top + (y1 - kept["y"]) / (y1 - y0) * height
    low, high = round(across.min()) - 3, round(across.median())
    corners = [(low, round(down.min()) - 3), (high, round(down.min()) - 3), (high, round(down.max()) + 3)]
    path = [*corners, (low, round(down.max()) + 3), corners[0]] if lasso else [corners[0], corners[2]]
    drag = ActionChains(page, duration=40)
    pointer = drag.w3c_actions.pointer_action
    pointer.move_to_location(*path[0]).pointer_down()
    for x, y in path[1:]:
        pointer.move_to_location(*(int((a + b) / 2) for a, b in zip(path[path.index((x, y)) - 1], (x, y), strict=True)))
        pointer.move_to_location(x, y)
    pointer.pointer_up()
    drag.perform()
    until(page, "document.querySelector('#card').innerText.includes('Held by the lasso or box')")
    held = kept[across < high]
    listed = page.execute_script(
        """return [...document.querySelectorAll('#card table')].map(t => [...t.querySelectorAll('tbody tr')].map(
          r => [...r.cells].map(cell => cell.innerText)))"""
    )
    assert card(page).startswith(f"{len(held):,} features")
    assert [int(row[0]) for row in listed[1]] == held["feature"].tolist()[:200]
    sizes = held["label"].value_counts()
    all_sizes = kept["label"].value_counts()
    assert {(re.split(r"\s", a)[0], b) for a, b in listed[0]} == {
        ("noise" if c < 0 else f"c{c}", f"{n:,} of {all_sizes[c]:,}") for c, n in sizes.items()
    }
    page.execute_script("[...document.querySelectorAll('#card button')].find(b => b.innerText === 'let go').click()")
    until(page, "document.querySelector('#card').innerText.startsWith('Cards')")
    assert page.execute_script("return document.getElementById('map').layout.selections") == []
    page.execute_script("Plotly.relayout('map', {dragmode: 'pan'})")


@pytest.mark.parametrize(
    ("address", "title"),
    [("f17", "Feature 17"), ("feature=17", "Feature 17"), ("c1", "Cluster 1"), ("cluster=1", "Cluster 1")],
)
def test_addresses_open_cards_those_of_older_reports_too(page: Any, address: str, title: str) -> None:
    page.execute_script("location.hash = arguments[0]", address)
    until(page, f"document.querySelector('#card').innerText.startsWith('{title}')")


@pytest.mark.parametrize(
    ("asked", "address"),
    [
        ("17", "f17"),
        ("f17", "f17"),
        ("feature 17", "f17"),
        ("F 17", "f17"),
        ("c1", "c1"),
        ("Cluster 1", "c1"),
        ("#c1", "c1"),
        ("#f17", "f17"),
    ],
)
def test_numbers_are_searched_for(page: Any, asked: str, address: str) -> None:
    send(page, "#query", asked)
    until(page, f"location.hash === '#{address}'")


def test_words_are_searched_for_in_clusters_and_at_peaks(page: Any, reported: Path) -> None:
    clusters = pd.read_parquet(reported / schema.CLUSTERS).set_index("cluster").drop(schema.NOISE)
    prompts = pd.read_parquet(reported / schema.PROMPTS)["text"]
    spans = pd.read_parquet(reported / schema.EXAMPLE_SPANS)
    examples = pd.read_parquet(reported / schema.EXAMPLES)
    shown = (examples["rank"] < 5) & (spans["start"] >= 0)
    word = str(clusters.loc[0, "tokens"][0]).lower()
    expected = {}
    for feature, prompt, start, stop in zip(
        examples.loc[shown, "feature"], examples.loc[shown, "prompt"],
        spans.loc[shown, "start"], spans.loc[shown, "stop"], strict=True,
    ):  # fmt: skip
        found = re.finditer(re.escape(word), prompts[prompt].lower())
        if any(at.start() < stop and start < at.end() for at in found):
            expected[str(feature)] = expected.get(str(feature), 0) + 1
    send(page, "#query", word.upper())
    until(page, "document.querySelector('#card h2').innerText.startsWith('“')")
    by_words, at_peaks = page.execute_script(
        """return [...document.querySelectorAll('#card table')].map(t => [...t.querySelectorAll('tbody tr')].map(
          r => [...r.cells].map(cell => cell.innerText)))"""
    )
    told = (
        clusters["tokens"].map(" ".join) + " " + clusters["keywords"].map(" ".join) + " " + clusters["name"].fillna("")
    )
    matching = clusters.index[told.str.lower().str.contains(word, regex=False)]
    assert [int(row[0].split()[0][1:]) for row in by_words] == matching.tolist()
    assert f"{len(expected)} feature" in card(page)
    assert len(at_peaks) == min(len(expected), 200)
    assert all(expected[row[0]] == int(row[-1]) for row in at_peaks)
    counts = [int(row[-1]) for row in at_peaks]
    assert counts == sorted(counts, reverse=True)


def test_what_is_not_there_is_said(page: Any) -> None:
    send(page, "#query", "<b>qqq")
    assert until(page, "document.querySelector('#message').textContent") == 'Nothing matches "<b>qqq".'
    top = page.execute_script("return document.querySelector('#message').getBoundingClientRect().top")
    assert 0 < top < 300  # in sight wherever the page is scrolled to
    send(page, "#query", "c1 c1")  # words: a cluster's number is none
    until(page, "document.querySelector('#message').textContent === 'Nothing matches \"c1 c1\".'")
    send(page, "#query", "c99999")
    until(page, "document.querySelector('#message').textContent.startsWith('There is no cluster 99999; there are ')")


def test_an_address_of_nothing_shows_no_other_card(page: Any) -> None:
    page.execute_script("location.hash = 'c1'")
    until(page, "document.querySelector('#card').innerText.startsWith('Cluster 1')")
    page.execute_script("location.hash = 'f999999'")
    until(page, "document.querySelector('#message').textContent === 'There is no feature 999999.'")
    assert card(page).startswith("Cards")
    assert page.execute_script("return document.getElementById('map').data[2].x.length") == 0
