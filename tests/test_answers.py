"""Answers follow the numbers: the same sweep with other numbers says something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gpuclust.sweep import answers_page
from gpuclust.sweep.answers import Answer, answers

RECORD: dict[str, Any] = {
    "questions": {
        "umap": [{"umap.n_neighbors": [5, 15]}, {"cluster.method": ["umap", "distances"]}],
        "hdbscan": [{"hdbscan.min_cluster_size": [10, 20]}],
        "prompts": [{"n_prompts": [50, 100]}],
        "dataset": [{"source": ["<a>", "b"]}],
    },
    "fields": ["umap.n_neighbors", "cluster.method", "hdbscan.min_cluster_size", "n_prompts", "source"],
    "attributes": {"model": "<m>", "hook_name": "h"}, "prompts": 100, "d_sae": 40, "settings": 7, "seeds": 3,
    "failed": 1,
}  # fmt: skip
BASE = {
    "umap.n_neighbors": 15,
    "cluster.method": "umap",
    "hdbscan.min_cluster_size": 10,
    "n_prompts": 100,
    "source": None,
}


def sweep(gain: float, between: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A sweep in which 5 neighbours gain `gain`, and sources agree to `between` (0.5 within)."""
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
                "ari_halves": value + 0.01 * ((seed + number) % 3 - 1),
                "clusters": 10.0,
                "noise": 0.4,
                "n_kept": 40,
            }
            row |= {
                "recovered_halves": 0.5,
                "found_again_halves": 0.4,
                "purity": 0.6,
                "ari_default": 0.4,
                "ari_seeds": 0.7,
            }
            row |= {"ari_clustered_halves": 0.8, "error": None}
            row |= {f"shared_{name}": 0.2 + 0.01 * rng.standard_normal() for name in ("entropy", "sparsity", "mean")}
            if row["cluster.method"] == "distances":
                row["noise"] = 0.9
            rows.append(row)
    pair = {"question": "dataset", "grid": 0, "field": "source", "setting_a": 5, "setting_b": 6, "level_a": "<a>",
            "level_b": "b", "ari_clustered": 0.5, "common": 40}  # fmt: skip
    pairs = [{**pair, "seed": seed, "ari": between + 0.01 * (seed - 1)} for seed in range(3)]
    return pd.DataFrame(rows), pd.DataFrame(pairs)


def by_name(gain: float, between: float) -> dict[str, Answer]:
    return {answer.name: answer for answer in answers(*sweep(gain, between), RECORD)}


def test_sentences_and_verdicts_follow_the_numbers() -> None:
    strong, flat = by_name(0.2, 0.1), by_name(0.0, 0.5)
    said = " ".join(strong["umap"].sentences)
    assert "changes clearly with umap.n_neighbors (5 rather than 15: +0.2" in said
    assert "Recommended" in said
    assert "umap.n_neighbors=5" in said
    assert "the default loses 0.20 [" in said
    assert strong["umap"].verdict == "clear"
    assert flat["umap"].verdict == "partly clear"  # enabled or not still differs
    assert "not clearly with umap.n_neighbors (at most +0.00" in " ".join(flat["umap"].sentences)
    assert strong["dataset"].verdict == "clear"
    assert "differs clearly between sources" in strong["dataset"].sentences[0]
    assert "0.10 across sources and 0.50 within one" in strong["dataset"].sentences[0]
    assert flat["dataset"].verdict == "not clear"
    assert strong["hdbscan"].verdict == "not clear"
    assert strong["prompts"].verdict == "clear"
    assert strong["common"].verdict == "clear"


def test_agreement_on_noise_is_no_clear_answer() -> None:
    table, pairs = sweep(0.2, 0.1)
    table.loc[table["umap.n_neighbors"] == 5, "noise"] = 0.9
    (answer, *_) = answers(table, pairs, RECORD)
    part = next(part for part in answer.parts if part.name == "umap.n_neighbors")
    assert part.noisier
    assert not part.clear
    assert "but with 90% noise against 40%" in " ".join(answer.sentences)
    assert "The default is the most stable" in answer.sentences[-1]


def test_markdown_and_page_hold_the_tables_and_escape_what_users_wrote() -> None:
    table, pairs = sweep(0.2, 0.1)
    table.loc[len(table)] = {**table.iloc[0].to_dict(), "setting": 9, "questions": "umap:0", "error": "<b>boom|"}
    found = answers(table, pairs, RECORD)
    written = answers_page.markdown(found, RECORD)
    assert "| umap.n_neighbors | 5 | 0.5" in written
    assert written.count("\n## ") == len(found)
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
    assert "not answered" in answers_page.markdown(found, RECORD).lower()
    answers_page.html(found, table.assign(error="no memory"), RECORD)
