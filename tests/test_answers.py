"""Answers follow the numbers: the same sweep with other numbers says something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gpuclust.sweep import answers_page
from gpuclust.sweep.answers import METHOD, Answer, about_base, answers, nothing_stable

RECORD: dict[str, Any] = {
    "questions": {
        "umap": [{"umap.n_neighbors": [5, 15]}, {"cluster.method": ["umap", "distances"]}],
        "hdbscan": [{"hdbscan.min_cluster_size": [10, 20]}],
        "prompts": [{"n_prompts": [50, 100]}],
        "dataset": [{"source": ["<a>", "b"]}],
    },
    "fields": ["umap.n_neighbors", "cluster.method", "hdbscan.min_cluster_size", "n_prompts", "source"],
    "attributes": {"model": "<m>", "hook_name": "h"}, "prompts": 100, "d_sae": 40, "settings": 7, "seeds": 3,
    "failed": 1, "base": {"consensus.members": 1, "umap.min_dist": 0.1},
}  # fmt: skip
BASE = {
    "umap.n_neighbors": 15,
    "cluster.method": "umap",
    "hdbscan.min_cluster_size": 10,
    "n_prompts": 100,
    "source": None,
}
RECORD["default"] = BASE


def sweep(gain: float, between: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A sweep in which 5 neighbours gain `gain`, and sources find `between` of each other again (0.5 within)."""
    settings: list[tuple[str, dict[str, Any], float]] = [
        ("umap:0 umap:1 hdbscan:0 prompts:0", {}, 0.3), ("umap:0", {"umap.n_neighbors": 5}, 0.3 + gain),
        ("umap:1", {"cluster.method": "distances"}, 0.1), ("hdbscan:0", {"hdbscan.min_cluster_size": 20}, 0.3),
        ("prompts:0", {"n_prompts": 50}, 0.2), ("dataset:0", {"source": "<a>"}, 0.5),
        ("dataset:0", {"source": "b"}, 0.5),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    rows = []
    for number, (questions, changed, value) in enumerate(settings):
        for seed in range(3):
            row = {"setting": number, "seed": seed, "questions": questions, **BASE, **changed, "prompts": 50}
            row |= {
                "found_again_halves": value + 0.01 * ((seed + number) % 3 - 1),
                "ari_halves": 0.35,
                "ami_halves": 0.45,
                "clusters": 10.0,
                "noise": 0.4,
                "largest": 0.08,
                "n_kept": 40,
                "duplicates": 2,
            }
            row |= {
                "recovered_halves": 0.5,
                "purity": 0.6,
                "ari_default": 0.4,
                "ari_seeds": 0.7,
            }
            row["error"] = None
            row |= {f"shared_{name}": 0.2 + 0.01 * rng.standard_normal() for name in ("entropy", "sparsity", "mean")}
            if row["cluster.method"] == "distances":
                row["noise"] = 0.9
            rows.append(row)
    pair = {"question": "dataset", "grid": 0, "field": "source", "setting_a": 5, "setting_b": 6, "level_a": "<a>",
            "level_b": "b", "ari": 0.15, "common": 40}  # fmt: skip
    pairs = [{**pair, "seed": seed, "found_again": between + 0.01 * (seed - 1)} for seed in range(3)]
    return pd.DataFrame(rows), pd.DataFrame(pairs)


def by_name(gain: float, between: float) -> dict[str, Answer]:
    return {answer.name: answer for answer in answers(*sweep(gain, between), RECORD)}


def test_sentences_and_verdicts_follow_the_numbers() -> None:
    strong, flat = by_name(0.2, 0.1), by_name(0.0, 0.5)
    said = " ".join(strong["umap"].sentences)
    assert "changes clearly with umap.n_neighbors (5 rather than 15: +20.0 points [" in said
    assert "Recommended" in said
    assert "umap.n_neighbors=5" in said
    assert "the default loses 20.0 points [" in said
    assert "50% of the features found again, 10 clusters, the largest with 8.0% of the features" in said
    assert strong["umap"].verdict == "clear"
    assert flat["umap"].verdict == "partly clear"  # methods still differ
    assert "not clearly with umap.n_neighbors (at most +0.0 points" in " ".join(flat["umap"].sentences)
    assert strong["dataset"].verdict == "clear"
    assert "differs clearly between sources" in strong["dataset"].sentences[0]
    assert (
        "of two halves of 25 prompts, one finds the clusters of 10% of the features" in strong["dataset"].sentences[0]
    )
    assert "and of 50% where it is of the same, a difference of +40.0 points [" in strong["dataset"].sentences[0]
    assert "Found again, compared with umap: distances -20.0 points [" in said
    assert flat["dataset"].verdict == "not clear"
    assert strong["hdbscan"].verdict == "not clear"
    assert strong["prompts"].verdict == "clear"
    assert strong["common"].verdict == "clear"


def test_one_large_cluster_is_no_clear_answer() -> None:
    table, pairs = sweep(0.2, 0.1)
    table.loc[table["umap.n_neighbors"] == 5, "largest"] = 0.9
    found = answers(table, pairs, RECORD)
    part = next(part for part in found[0].parts if part.name == "umap.n_neighbors")
    assert part.large
    assert not part.clear
    assert "but with 90% of the features in one cluster, so it is not called better" in " ".join(found[0].sentences)
    assert "Keep the default: most is found again by it" in found[0].sentences[-1]
    assert "| umap.n_neighbors | not clear: one large cluster | found again +20.0" in answers_page.markdown(
        found, table, RECORD
    )


def test_noise_does_not_speak_against_what_is_found_again() -> None:
    table, pairs = sweep(0.2, 0.1)
    table.loc[table["umap.n_neighbors"] == 5, "noise"] = 0.9
    (answer, *_) = answers(table, pairs, RECORD)
    assert next(part for part in answer.parts if part.name == "umap.n_neighbors").clear
    assert "Recommended" in answer.sentences[-1]


def methods(**facts: dict[str, float]) -> tuple[list[Answer], str]:
    """A sweep of methods: what of each is found again, and in how large a cluster."""
    table, pairs = sweep(0.0, 0.1)
    rows = [
        table[table["setting"] == 0].assign(setting=number, questions="umap:0", **{"cluster.method": name}, **own)
        for number, (name, own) in enumerate(facts.items())
    ]
    record = {**RECORD, "questions": {"umap": [{"cluster.method": list(facts)}]}}
    found = answers(pd.concat(rows), pairs, record)
    return found, answers_page.markdown(found, pd.concat(rows), record)


def test_methods_are_compared_with_umap_and_a_large_cluster_is_passed_over() -> None:
    (answer, *_), written = methods(
        communities={"found_again_halves": 0.5}, umap={"found_again_halves": 0.3},
        dbscan={"found_again_halves": 0.99, "largest": 0.98},
    )  # fmt: skip
    said = " ".join(answer.sentences)
    assert "Found again, compared with umap: communities +20.0 points" in said
    assert "dbscan: 99% of the features found again, 10 clusters, the largest with 98.0% of the features" in said
    assert "communities rather than umap: +20.0 points" in said
    assert "dbscan +" not in said
    assert "passing over dbscan with 98% of the features in one cluster" in said
    assert "| clear (passing over dbscan: one large cluster) | found again +20.0 points" in written


def test_rows_are_compared_and_how_far_they_agree_with_the_default() -> None:
    table, pairs = sweep(0.0, 0.5)
    table["extract.rows"], table["ami_default"] = "prompt", 0.7
    own = table[table["setting"] == 1].assign(
        **{"extract.rows": "token", "umap.n_neighbors": 15, "questions": "rows:0", "found_again_halves": 0.6}
    )
    asked = {"rows": [{"extract.rows": ["prompt", "token"]}]}
    default = table[table["setting"] == 0].assign(questions="rows:0")
    found = answers(pd.concat([default, own], ignore_index=True), pairs, RECORD | {"questions": asked})[0]
    assert found.title == "What should a row be: prompts, windows or tokens?"
    said = " ".join(found.sentences)
    assert "By row, prompt: 30% of the features found again, 10 clusters" in said
    assert "; token: 60% of the features found again" in said
    assert "The clusters agree with the default's to ARI 0.40 by token (AMI 0.70)." in said
    assert "extract.rows (token rather than prompt: +30.0 points [" in said
    assert "What a row is decides what clusters are of: none is recommended." in said
    assert "Recommended" not in said


def test_only_what_a_question_is_about_is_asked() -> None:
    """Cluster sizes are crossed with methods, similarities belong to communities."""
    table, pairs = sweep(0.0, 0.1)
    grids = {
        "umap": {METHOD: ["umap", "distances"], "hdbscan.min_cluster_size": [5, 10]},
        "communities": {"communities.n_neighbors": [10, 20], "neighbors.metric": ["cosine", "correlation"]},
    }
    for name, grid in grids.items():
        (a, first), (b, second) = grid.items()
        rows = [
            table[table["setting"] == 0].assign(setting=2 * i + j, questions=f"{name}:0", **{a: one, b: other})
            for i, one in enumerate(first) for j, other in enumerate(second)
        ]  # fmt: skip
        (answer, *_) = answers(pd.concat(rows), pairs, {**RECORD, "questions": {name: [grid]}})
        assert [part.name for part in answer.parts] == ([a] if name == "umap" else [a, b])
        assert answer.sentences[-1].startswith("Keep the default: most is found again by it, of 4 settings")


def test_what_is_not_clearly_better_is_not_recommended() -> None:
    (answer, *_), _ = methods(umap={"found_again_halves": 0.3}, distances={"found_again_halves": 0.31})
    assert answer.sentences[-1].startswith(
        "Keep the default, nothing is clearly better; most found again of 2 settings"
    )


def test_a_default_with_a_large_cluster_is_not_what_others_lose_against() -> None:
    (answer, *_), _ = methods(
        umap={"found_again_halves": 0.9, "largest": 0.8}, distances={"found_again_halves": 0.3},
    )  # fmt: skip
    assert "Recommended" in answer.sentences[-1]
    assert "the default's large cluster is found again easily, so that no difference is told" in answer.sentences[-1]
    (answer, *_), _ = methods(umap={"largest": 0.8}, distances={"largest": 0.8})
    assert answer.sentences[-1].startswith("No setting is recommended: there is none of those with half to twice")


def test_what_a_filter_keeps_is_counted_too() -> None:
    table, pairs = sweep(0.0, 0.1)
    rows = [
        table[table["setting"] == 0].assign(setting=number, questions="filters:0", **{"select.sparsity_max": most})
        for number, most in enumerate([0.3, 0.5])
    ]
    record = {**RECORD, "questions": {"filters": [{"select.sparsity_max": [0.3, 0.5]}]}}
    table = pd.concat(rows)
    table["found_again_halves"] = np.where(table["select.sparsity_max"] == 0.3, 1.0, 0.5)
    (answer, *_) = answers(table, pairs, record)
    assert "found again are 38 of 40 kept at sparsity_max=0.3; 19 of 40 kept at sparsity_max=0.5" in answer.sentences[0]


def test_markdown_and_page_hold_the_tables_and_escape_what_users_wrote() -> None:
    table, pairs = sweep(0.2, 0.1)
    table.loc[len(table)] = {**table.iloc[0].to_dict(), "setting": 9, "questions": "umap:0", "error": "<b>boom|"}
    found = answers(table, pairs, RECORD)
    written = answers_page.markdown(found, table, RECORD)
    assert "| umap.n_neighbors | 5 | 50.0% [" in written
    assert "| 10 | 40% | 8.0% | 40 | 0.35 | 0.45 | 50% |" in written
    assert "| source | <a> | b | 10% | 50% | 0.15 | 40 |" in written
    assert written.count("\n## ") == len(found) + 1  # and the settings themselves
    page = answers_page.html(found, table, RECORD)
    assert "&lt;b&gt;boom|" in page
    assert "<b>boom" not in page
    assert "<a>" not in page.replace("\\u003ca>", "")
    assert 'id="figure-umap"' in page
    assert "src=" not in page.split("</head>")[1]  # offline


def test_a_sweep_in_which_all_failed_says_so() -> None:
    table, pairs = sweep(0.2, 0.1)
    found = answers(table.assign(error="no memory"), pairs.iloc[:0], RECORD)
    assert {answer.verdict for answer in found} == {"not answered"}
    assert any("2 of 3 settings failed" in note or "3 of 3 settings failed" in note for note in found[0].notes)
    assert "not answered" in answers_page.markdown(found, table, RECORD).lower()
    answers_page.html(found, table.assign(error="no memory"), RECORD)


def test_little_found_again_is_said_in_numbers_and_nothing_is_recommended() -> None:
    table, pairs = sweep(0.2, 0.1)
    table["found_again_halves"] /= 10
    table["prompts"] = 307
    (answer, *_) = answers(table, pairs, RECORD)
    assert answer.sentences[-1] == (
        "Keep the default: found again 5% at most, by any of 3 settings: nothing is stable at 307 prompts. Take more "
        "prompts before you set anything."
    )
    written = answers_page.markdown([answer], table, RECORD)
    assert "Found again 3%: nothing is stable at 307 prompts. Take more prompts before" in written
    table["largest"] = 0.5  # few large clusters are found again easily
    assert nothing_stable(table) is None
    assert nothing_stable(sweep(0.2, 0.1)[0]) is None


def test_the_default_is_called_what_it_is() -> None:
    table, _ = sweep(0.2, 0.1)
    said = about_base(table, RECORD)
    assert said.startswith(
        "“The default” is this sweep's base: gpuclust's defaults but for consensus.members=1 (one clustering, no "
        "consensus), umap.min_dist=0.1. By the default, 30% of the features found again, 10 clusters"
    )
    assert "gpuclust's defaults. By" in about_base(table, RECORD | {"base": {}})
    assert about_base(table, {}).startswith("By the default, ")  # of an earlier version
    assert about_base(table.assign(error="no memory"), RECORD).endswith("umap.min_dist=0.1. It failed.")


def test_the_settings_themselves_are_a_table() -> None:
    table, _ = sweep(0.2, 0.1)
    head, rows = answers_page.setting_table(table, RECORD)
    assert len(rows) == table["setting"].nunique()
    assert rows[0][:3] == ["0", "the default", "30.0% ± 1.0"]
    assert rows[1][:3] == ["1", "umap.n_neighbors=5", "50.0% ± 1.0"]
    assert rows[5][1] == "source=<a>"
    assert len(head) == len(rows[0])
    table.loc[table["setting"] == 1, "found_again_halves"] = np.nan
    assert answers_page.setting_table(table, RECORD)[1][1][2] == "failed"
    one_seed = table[table["seed"] == 0]
    assert answers_page.setting_table(one_seed, RECORD)[1][0][2] == "29.0%"


def test_plots_begin_at_zero_and_have_bars_over_seeds() -> None:
    table, pairs = sweep(0.2, 0.1)
    found = {answer.name: answer for answer in answers(table, pairs, RECORD)}
    for figure in (answers_page._figure(found["dataset"]), answers_page._figure(found["umap"])):
        assert figure is not None
        assert figure["zero"]
        assert all(trace["error_y"]["visible"] for trace in figure["data"])
    figure = answers_page.granularity(table, RECORD)
    assert figure["zero"]
    np.testing.assert_allclose(figure["data"][-1]["error_y"]["array"], [0.01])
    one_seed = table[table["seed"] == 0]
    assert not answers_page.granularity(one_seed, RECORD)["data"][-1]["error_y"]["visible"]
