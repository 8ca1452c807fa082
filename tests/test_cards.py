from __future__ import annotations

import io
import json
import urllib.parse
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import gpuclust
from gpuclust import schema, terminal
from gpuclust.errors import InputError
from gpuclust.results import cards
from tests import tiny


@pytest.fixture(scope="module")
def run(small_run: Path) -> gpuclust.Run:
    return gpuclust.open_run(small_run)


def printed(card: cards.Card) -> str:
    console = Console(width=10_000, file=io.StringIO())
    console.print(card)
    return str(console.file.getvalue())


def test_a_cluster_card_holds_the_cluster(run: gpuclust.Run) -> None:
    row = run.clusters.set_index("cluster").loc[1]
    card = run.cluster(1)
    text = printed(card)
    for word in [*row["tokens"], *row["keywords"], *map(str.strip, row["promoted_tokens"])]:
        assert terminal.visible(word) in text
    assert f"{row['persistence']:.3g}" in text
    assert card.tables[0][1]["feature"].isin(row["features"]).all()
    (_, prompts), *_ = card.prompts
    assert len(prompts) == len(row["distinctive_prompts"])
    assert text.count("\nmost distinctive prompts, by strength relative to the other clusters\n") == 1
    assert text.index("most distinctive prompts") < text.index(prompts[0].about)
    assert "<b>most distinctive prompts, by" in card._repr_html_()
    assert card.link is None  # this SAE has no id on Neuronpedia
    assert repr(card).startswith("cluster 1: ")


def test_a_feature_card_marks_the_peak(run: gpuclust.Run) -> None:
    feature = int(run.features.loc[run.features["kept"], "feature"].iloc[3])
    card = run.feature(feature, n_prompts=3)
    examples = run.examples[run.examples["feature"] == feature].head(3)
    spans = run.example_spans.loc[examples.index]
    assert (spans["start"] >= 0).any()
    for prompt, number, start, stop in zip(
        card.prompts[0][1], examples["prompt"], spans["start"], spans["stop"], strict=True
    ):
        marked = [text for text, is_marked in prompt.parts() if is_marked]
        assert marked == ([run.prompts["text"].iat[number][start:stop]] if start >= 0 else [])
    near = card.tables[0][1]
    assert near["feature"].tolist() == run.neighbors["indices"].sel(feature=feature).values[1:11].tolist()
    left = run.neighbors.sizes["k"] - 11
    assert left > 0
    assert f"\n10 nearest features, {left} more in neighbors.zarr\n" in printed(card)
    assert "\nstrongest prompts\n" in printed(card)
    removed = run.features[~run.features["kept"]]
    if len(removed):
        assert "removed by the filter" in printed(run.feature(int(removed["feature"].iloc[0])))


def test_a_feature_card_says_at_which_words_it_peaks(run: gpuclust.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = run.examples[run.examples["feature"] == 4]
    texts = ["the Ship sails", "a ship, and", "by sea"]
    starts = [4, 3, 3]  # Ship, hip, sea: of a token the whole word is meant, and no case
    places, spans = run.examples.copy(), run.example_spans.copy()
    places["prompt"] = places["prompt"] % 3
    spans["start"], spans["stop"] = -1, -1
    for row, number in zip(examples.index, range(3), strict=False):
        places.loc[row, "prompt"], spans.loc[row, "start"] = number, starts[number]
        spans.loc[row, "stop"] = starts[number] + 3
    other = gpuclust.open_run(run.path)
    for name, table in {"examples": places, "example_spans": spans}.items():
        monkeypatch.setattr(type(other), name, table)
    monkeypatch.setattr(type(other), "prompts", pd.DataFrame({"text": texts, "source": "s"}))
    card = other.feature(4)
    assert card.words == [(f"peaks in its {len(examples)} strongest prompts at", ["Ship (2)", "sea (1)"])]
    assert "a s«hip», and" in printed(card)  # marks are seen where there are no colours
    spans["start"] = -1  # of imported activations
    assert other.feature(4).words == []
    colours = Console(width=200, file=io.StringIO(), force_terminal=True, color_system="standard")
    colours.print(card)
    assert "«" not in colours.file.getvalue()


def test_a_feature_card_says_what_its_cluster_is_worth(run: gpuclust.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = run.clusters.set_index("cluster", drop=False)
    own = run.features[run.features["label"] >= 0].iloc[0]
    verdict = clusters.loc[own["label"], ["verdict", "verdict_reason"]]
    said = dict(run.feature(int(own["feature"])).facts)
    assert said["verdict on that"] == f"{verdict['verdict']}: {verdict['verdict_reason']}"
    other = gpuclust.open_run(run.path)
    monkeypatch.setattr(type(other), "clusters", run.clusters.assign(verdict=None))  # not measured
    assert "verdict on that" not in dict(other.feature(int(own["feature"])).facts)


def test_a_cluster_card_tells_distinctive_prompts_from_strong_ones(
    run: gpuclust.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [{"prompt": n, "text": f"t{n}", "source": "s", "activation": 1.0, "marks": []} for n in range(4)]
    clusters = run.clusters.copy()
    row = clusters.index[clusters["cluster"] == 1][0]
    clusters.at[row, "distinctive_prompts"], clusters.at[row, "top_prompts"] = made[:3], made[1:]
    other = gpuclust.open_run(run.path)
    monkeypatch.setattr(type(other), "clusters", clusters)
    (first, distinctive), (second, strongest) = other.cluster(1).prompts
    assert (first, second) == (cards.DISTINCTIVE, cards.OTHERS)
    assert [prompt.text for prompt in strongest] == ["t3"]
    assert [prompt.about.endswith("among the strongest") for prompt in distinctive] == [False, True, True]
    clusters.at[row, "top_prompts"] = made[:2]
    assert [name for name, _ in other.cluster(1).prompts] == [cards.DISTINCTIVE]
    clusters.at[row, "distinctive_prompts"] = None  # of an earlier version
    assert [name for name, _ in other.cluster(1).prompts] == [cards.STRONGEST]


@pytest.mark.parametrize("reason", schema.NOISE_REASONS)
def test_a_feature_card_says_why_it_is_noise(run: gpuclust.Run, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = run.features.copy()
    row = features.index[features["kept"]][3]
    features.loc[row, "label"], features.loc[row, "noise_reason"] = schema.NOISE, reason
    other = gpuclust.open_run(run.path)
    monkeypatch.setattr(type(other), "features", features)
    monkeypatch.setattr(type(other), "clusters", run.clusters)
    card = other.feature(int(features.loc[row, "feature"]))
    said = dict(card.facts)
    assert said["in"] == "noise"
    assert said["why"].startswith(f"{reason}: ")
    assert said["why"] in printed(card)
    assert said["why"] in card._repr_html_()
    assert ("a cluster has 2 features or more (hdbscan.min_cluster_size)" in said["why"]) == (reason == schema.SMALL)
    features.loc[row, "noise_reason"] = "a word of a later version"
    assert dict(other.feature(int(features.loc[row, "feature"])).facts)["why"] == "a word of a later version"
    monkeypatch.setattr(type(other), "features", features.drop(columns="noise_reason"))  # of an older run
    assert "why" not in dict(other.feature(int(features.loc[row, "feature"])).facts)


def test_html_of_prompts_is_escaped(run: gpuclust.Run) -> None:
    cluster = run.cluster(1)
    assert "&lt;img" in cluster._repr_html_()
    assert tiny.HOSTILE[:20] in printed(cluster)
    for card in (cluster, run.feature(0)):
        assert "<script" not in card._repr_html_()
        assert "<img" not in card._repr_html_()


def test_what_is_not_there_is_refused(run: gpuclust.Run) -> None:
    with pytest.raises(InputError, match=r"has no cluster 99; it has \d+, numbered from 0"):
        run.cluster(99)
    with pytest.raises(InputError, match="has no cluster -1"):
        run.cluster(schema.NOISE)
    with pytest.raises(InputError, match="has no feature 96; it has 96"):
        run.feature(96)


def test_neuronpedia(run: gpuclust.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpuclust.Run, "neuronpedia_id", "pythia-70m/3-res-sm")
    assert run.feature(5).link == "https://www.neuronpedia.org/pythia-70m/3-res-sm/5"
    link = run.cluster(0).link
    assert link is not None
    asked = urllib.parse.parse_qs(urllib.parse.urlparse(link).query)
    features = json.loads(asked["features"][0])
    assert sorted(int(row["index"]) for row in features) == sorted(run.clusters.set_index("cluster").loc[0, "features"])
    assert {(row["modelId"], row["layer"]) for row in features} == {("pythia-70m", "3-res-sm")}


def test_marks_that_overlap_are_shown_once() -> None:
    prompt = cards.Prompt("abcdef", [(1, 3), (2, 4), (4, 5)], "")
    assert list(prompt.parts()) == [("a", False), ("bc", True), ("d", False), ("e", True), ("f", False)]


def test_figures(run: gpuclust.Run) -> None:
    kept = run.features[run.features["kept"]]
    figure = run.map()
    shown = pd.concat([pd.Series(trace.customdata) for trace in figure.data])
    assert sorted(shown) == kept["feature"].tolist()
    assert {trace.type for trace in figure.data} == {"scattergl"}
    texts = [text for trace in figure.data for text in trace.text]
    assert not any("<img" in text for text in texts)
    assert any("&lt;img" in text for text in texts)
    with pytest.raises(InputError, match="'size' is not plotted here: choose from entropy, varentropy, sparsity"):
        run.entropy_plot("size")
    entropy = run.entropy_plot("entropy", "sparsity")
    assert sum(len(trace.x) for trace in entropy.data) == len(kept)
    assert {shape.x0 for shape in entropy.layout.shapes} >= {kept["entropy"].median()}


def test_joiners_of_words_reach_the_terminal() -> None:
    for text in ("کتاب\u200cها", "क्\u200dष", "👩\u200d👧"):
        assert terminal.visible(text) == text
    assert terminal.visible("a\u200db \u200c") == "a\\u200db \\u200c"


def test_no_character_of_a_prompt_reaches_the_terminal_as_a_command(run: gpuclust.Run) -> None:
    bad = "a\x1b]0;title\x07b\x9b2Jc\x00d\u202ee\r"
    card = cards.Card(
        bad, run.clusters.iloc[0], [("x", bad)], [("w", [bad])], [(bad, [cards.Prompt(bad, [(0, 3)], bad)])]
    )
    text = printed(card).replace("«", "").replace("»", "")
    assert not set("\x1b\x07\x9b\x00\u202e\r") & set(text)
    assert text.count("\\x1b]0;title\\x07b\\x9b2Jc\\x00d\\u202ee\\r") >= 4
