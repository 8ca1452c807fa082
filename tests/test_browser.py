"""The report in headless Chromium: drawn, clicked, searched, sorted; nothing that a prompt says is done.

The report is that of a small run with hostile prompts; GPUCLUST_BROWSER_RUN=DIR takes that of a finished run instead.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gpuclust import schema
from gpuclust.results.palette import QUADRANTS
from tests.browser import card, send, until

pytestmark = pytest.mark.browser


def test_the_card_of_noise_says_why(
    chromium: Any, reported: Path, features: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs before the report is opened that the other tests look at, and at whose log the last looks."""
    from gpuclust.results.report import write
    from gpuclust.storage import reading

    shutil.copytree(reported, tmp_path / "out")
    row = features.index[features["kept"]][0]
    features = features.copy()
    features.loc[row, "label"], features.loc[row, "noise_reason"] = schema.NOISE, schema.DISAGREE
    table = reading.Files.table
    monkeypatch.setattr(
        reading.Files,
        "table",
        lambda self, name, *columns: features if name == schema.FEATURES else table(self, name, *columns),
    )
    write(tmp_path / "out")
    chromium.get(f"{(tmp_path / 'out' / schema.REPORT).as_uri()}#feature={features.loc[row, 'feature']}")
    until(chromium, "document.documentElement.dataset.ready === 'true'")
    assert "Noise: members disagree: clusterings of redrawn similarities" in card(chromium)


def test_the_map_is_drawn_with_webgl(page: Any, features: pd.DataFrame) -> None:
    types, n = page.execute_script(
        "const d = document.getElementById('map').data; return [d.map(t => t.type), d[0].x.length + d[1].x.length]"
    )
    assert set(types) == {"scattergl"}
    assert n == features["kept"].sum()
    inked = page.execute_script(
        """const c = document.querySelector('#map .gl-canvas-context'), gl = c.getContext('webgl');
        const copy = document.createElement('canvas'); [copy.width, copy.height] = [c.width, c.height];
        const flat = copy.getContext('2d'); flat.drawImage(c, 0, 0);
        return flat.getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 === 3 && v > 0).length"""
    )
    assert inked > 200


def test_a_click_opens_the_card_of_that_feature(page: Any, features: pd.DataFrame) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    x, y, feature = page.execute_script(
        """scrollTo(0, 0); const map = document.getElementById('map'); map.scrollIntoView({block: 'center'});
        const {xaxis, yaxis} = map._fullLayout, box = map.getBoundingClientRect(), all = [];
        for (const t of map.data.slice(0, 2)) t.x.forEach((x, i) => all.push(
          [box.left + xaxis._offset + xaxis.d2p(x), box.top + yaxis._offset + yaxis.d2p(t.y[i]), t.customdata[i]]));
        const alone = p => Math.min(...all.filter(q => q !== p).map(q => Math.hypot(p[0] - q[0], p[1] - q[1])));
        const some = all.filter((p, i) => i % Math.ceil(all.length / 300) === 0).map(p => [alone(p), p]);
        return some.reduce((p, q) => q[0] > p[0] ? q : p)[1]"""
    )
    chain = ActionChains(page)
    chain.w3c_actions.pointer_action.move_to_location(round(x), round(y)).pause(0.3).click()
    chain.perform()
    until(page, f"location.hash === '#f{feature}'")
    text = card(page)
    row = features.loc[feature]
    assert text.startswith(f"Feature {feature}")
    assert str(row["quadrant"]) in text
    assert f"{row['n_active']:,} prompts" in text
    assert "Nearest features" in text
    ringed = page.execute_script("return document.getElementById('map').data[2].x")
    assert ringed == pytest.approx([row["x"]], rel=1e-5)


def test_a_feature_card_marks_the_peak_token(page: Any, reported: Path, features: pd.DataFrame) -> None:
    spans = pd.read_parquet(reported / schema.EXAMPLE_SPANS)
    examples = pd.read_parquet(reported / schema.EXAMPLES)
    prompts = pd.read_parquet(reported / schema.PROMPTS)
    feature = int(features.loc[features["kept"], "feature"].iloc[0])
    mine = (spans["feature"] == feature) & (spans["rank"] < 5)
    expected = [
        prompts["text"].iat[p][a:b]
        for p, a, b in zip(examples.loc[mine, "prompt"], spans.loc[mine, "start"], spans.loc[mine, "stop"], strict=True)
        if a >= 0
    ]
    send(page, "#query", str(feature))
    until(page, f"location.hash === '#f{feature}'")
    assert expected
    assert (
        page.execute_script("return [...document.querySelectorAll('#card mark')].map(m => m.textContent)") == expected
    )


def test_search_finds_by_number_and_the_filter_by_words(page: Any, reported: Path) -> None:
    send(page, "#query", "c1")
    until(page, "location.hash === '#c1'")
    clusters = pd.read_parquet(reported / schema.CLUSTERS).set_index("cluster")
    text = card(page)
    assert text.startswith("Cluster 1")
    for token in clusters.loc[1, "tokens"]:
        assert token in text
    send(page, "#query", "99999")
    last = len(pd.read_parquet(reported / schema.FEATURES)) - 1
    said = until(page, "document.querySelector('#message').textContent")
    assert f"There is no feature 99999; the last is {last}." in said
    word = str(clusters.loc[0, "keywords"][0])
    send(page, "#filter", word)
    shown = page.execute_script(
        "return [...document.querySelectorAll('#cluster-table tbody tr')].map(r => +r.dataset.key)"
    )
    every = clusters[clusters.index >= 0]
    text_of = every["keywords"].map(" ".join) + " " + every["tokens"].map(" ".join) + " " + every["name"].fillna("")
    assert sorted(shown) == sorted(every.index[text_of.str.lower().str.contains(word, regex=False)])
    page.execute_script(
        "const f = document.querySelector('#filter'); f.value = ''; f.dispatchEvent(new Event('input'))"
    )


@pytest.mark.parametrize(("title", "name"), [("size", "size"), ("persist", "persistence"), ("stab", "stability")])
def test_clusters_sort_by_any_column(page: Any, reported: Path, title: str, name: str) -> None:
    values = pd.read_parquet(reported / schema.CLUSTERS).set_index("cluster")[name]
    head = f"[...document.querySelectorAll('#cluster-table th')].find(th => th.textContent.startsWith('{title}'))"
    for _ in range(2):
        page.execute_script(f"{head}.querySelector('button').click()")
        order = page.execute_script(f"return {head}.getAttribute('aria-sort')")
        keys = page.execute_script(
            "return [...document.querySelectorAll('#cluster-table tbody tr')].map(r => +r.dataset.key)"
        )
        got = values[keys]
        assert len(keys) == (values.index >= 0).sum()
        assert got.is_monotonic_increasing if order == "ascending" else got.is_monotonic_decreasing
    assert order in ("ascending", "descending")


def test_every_plot_is_drawn_when_it_comes_into_sight(page: Any) -> None:
    for name in ("moments", "heat", "tree"):
        page.execute_script(f"document.getElementById('{name}').scrollIntoView()")
        until(page, f"document.querySelector('#{name} .main-svg') !== null")
    drawn = "document.getElementById('moments')"
    names = f"return {drawn}.data.map(trace => trace.name)"
    assert page.execute_script(f"return {drawn}.layout.yaxis.type") == "log"  # entropy against sparsity
    assert page.execute_script(names) == ["not kept", "kept"]
    page.execute_script("document.querySelectorAll('#axes button')[1].click()")
    until(page, f"{drawn}.layout.yaxis.type === 'linear'")
    assert page.execute_script(names) == ["not kept", *QUADRANTS]
    assert (
        page.execute_script(f"return {drawn}.layout.shapes.filter(s => s.line.dash === 'dot').length") == 2
    )  # medians


def test_the_tree_has_numbers_where_boxes_are_wide_enough(page: Any) -> None:
    page.execute_script("document.getElementById('tree').scrollIntoView()")
    until(page, "document.querySelector('#tree .main-svg') !== null")
    written = "[...document.querySelectorAll('#tree .textpoint text')].map(t => +t.textContent)"
    relayout = "const [x0, x1] = arguments[0]; Plotly.relayout('tree', {'xaxis.range': [x0, x1]})"
    low, high = page.execute_script("return document.getElementById('tree')._fullLayout.xaxis.range")
    every = page.execute_script(f"return {written}")
    boxes = page.execute_script("return document.getElementById('tree').data[0].customdata.filter(c => c >= 0)")
    assert 0 < len(every) <= len(boxes)
    assert set(every) <= set(boxes)
    page.execute_script(relayout, [low, low + 300 * (high - low)])
    until(page, f"{written}.length === 0")
    page.execute_script(relayout, [low, high])
    assert sorted(until(page, f"{written}.length && {written}")) == sorted(every)


def test_a_cluster_card_shows_its_features_first_and_no_prompt_twice(page: Any, reported: Path) -> None:
    clusters = pd.read_parquet(reported / schema.CLUSTERS).set_index("cluster").drop(schema.NOISE)
    for cluster, row in clusters.iterrows():
        page.execute_script("location.hash = `c${arguments[0]}`", cluster)
        until(page, f"document.querySelector('#card').innerText.startsWith('Cluster {cluster}')")
        shown = page.execute_script(
            """return [...document.querySelectorAll('#card .prompt .about')].map(
              e => +e.innerText.match(/prompt (\\d+)/)[1])"""
        )
        expected = [prompt["prompt"] for prompt in (*row["distinctive_prompts"], *row["top_prompts"])]
        assert shown == list(dict.fromkeys(expected))
        headings = page.execute_script("return [...document.querySelectorAll('#card h3')].map(e => e.innerText)")
        assert headings.index(f"Its {row['size']} features") < headings.index("Most distinctive prompts")
        assert ("Output tokens promoted" in headings) == (not row["decoder_cosine_p"] > 0.05)


def test_light_and_dark(page: Any) -> None:
    seen = set()
    for _ in range(2):
        page.execute_script("document.getElementById('theme').click()")
        seen.add(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert page.execute_script("return document.getElementById('map').data[1].x.length") > 0
    assert len(seen) == 2


def test_keys(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.execute_script("document.activeElement.blur(); location.hash = 'cluster=0'")
    until(page, "document.querySelector('#card').innerText.startsWith('Cluster 0')")
    ActionChains(page).send_keys(Keys.ESCAPE).perform()
    until(page, "document.querySelector('#card').innerText.startsWith('Cards')")
    ActionChains(page).send_keys("/").perform()
    assert page.execute_script("return document.activeElement.id") == "query"
    page.execute_script("location.hash = 'c1'")
    until(page, "document.querySelector('#card').innerText.startsWith('Cluster 1')")
    ActionChains(page).send_keys("x", Keys.ESCAPE).perform()  # still in the field
    until(page, "document.querySelector('#card').innerText.startsWith('Cards') && location.hash === ''")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_page(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    page.execute_script("location.hash = 'cluster=1'")
    until(page, "document.querySelector('#card').innerText.startsWith('Cluster 1')")
    until(page, f"document.documentElement.scrollWidth <= {width}")  # the map is drawn anew a moment after
    assert page.execute_script("const c = document.querySelector('#card'); return c.scrollWidth <= c.clientWidth")
    box = page.execute_script(
        "const r = document.querySelector('#card').getBoundingClientRect(); return [r.left, r.right]"
    )
    assert 0 <= box[0] < box[1] <= width
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.skipif("GPUCLUST_BROWSER_RUN" in os.environ, reason="only the small run has hostile prompts")
def test_hostile_text_stays_text(page: Any) -> None:
    page.execute_script("location.hash = 'cluster=1'")
    until(page, "document.querySelector('#card').innerText.startsWith('Cluster 1')")
    text = card(page)
    assert "<img src=x onerror='window.hurt=1'>1" in text
    assert '</script><script>window.hurt = 1</script><img src="x" onerror="window.hurt = 1">' in text
    assert "<i>a</i>" in text or "<i>b</i>" in text
    page.execute_script(
        "const map = document.getElementById('map'); Plotly.Fx.hover(map, [{curveNumber: 1, pointNumber: 0}])"
    )
    assert page.execute_script(
        "return window.hurt === undefined && document.querySelectorAll('img, #card i').length === 0"
    )


def test_no_error_is_logged_and_nothing_is_fetched(page: Any) -> None:
    """Runs last: the logs hold all that the tests before did."""
    errors = [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {page.current_url.split("#")[0]}
