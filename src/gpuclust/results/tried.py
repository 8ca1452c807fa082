"""What was tried on clusters, in words: held-out prediction, where features fire together, and the one word for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from gpuclust.compute import evidence
from gpuclust.compute.levels import LEVELS
from gpuclust.formatting import counted, plain
from gpuclust.results import replicated

TOGETHER = {
    "token": "on the same token", "near": "within 16 tokens", "topic": "in the same prompt only",
    "none": "no more than matched features, on a token",
}  # fmt: skip
UNTRIED = {"levels": ", as the run keeps no tokens (extract.rows=token does)"}  # parts, and why they may be left out


def facts(cluster: Mapping[str, Any], told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say what was tried on a cluster, a name and a text each; nothing of tests that were not made.

    Parameters
    ----------
    cluster : mapping
        A row of ``clusters.parquet``, of whatever version.
    told : mapping
        ``validation.json``; empty of a run without.

    Returns
    -------
    list of (str, str)
    """
    row = {name: value for name, value in cluster.items() if pd.api.types.is_scalar(value) and pd.notna(value)}
    found = []
    if "evidence" in row:
        found.append(("evidence", f"{row['evidence']}: {row['evidence_reason']}"))
    if "prediction" in row and "prediction_q" not in row:
        found.append(("told by mates in other prompts", "not tested: too few others fire as often, or noise in halves"))
    elif "prediction" in row:
        random, words = _of(row, "prediction_random"), _of(row, "prediction_words")
        text = f"AUROC {plain(row['prediction'])} (random mates {random}; words, length and source alone {words})"
        found.append(("told by mates in other prompts", text))
        given, by_chance = _of(row, "prediction_given_words"), _of(row, "prediction_given_words_random")
        found.append(("given these words", f"AUROC {given} (random mates {by_chance}; q = {_of(row, 'prediction_q')})"))
    if "level" in row:
        name = {"near": "near", "topic": "prompt"}.get(row["level"], "token")
        excess, low, high = (_of(row, f"{name}_{what}") for what in ("excess", "low", "high"))
        text = f"{TOGETHER[row['level']]}: {excess} times as often as random sets, {low} to {high}"
        found.append(("fire together", text))
    if "cause" in told and "cause_kl" in row:
        found += _caused(row, told["cause"])
    if "replicate" in told and "replicate_r" in row:
        found += replicated.on_card(cluster, told)
    return found


def _caused(row: Mapping[str, Any], told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the model does without a cluster."""
    kl = [_of(row, f"cause_kl{end}") for end in ("", "_random", "_flipped", "_noise")]
    done = f"times {told['amplify']:g} in the model" if told["amplify"] else "taken out of the model"
    text = f"KL {kl[0]} nats per active token (other features there {kl[1]}, flipped {kl[2]}, noise {kl[3]}; "
    text += f"q = {_of(row, 'cause_q')}), log-probability of the text {_of(row, 'cause_logprob')}"
    found = [(done, text)]
    if "cause_same_direction" in row:
        own, others = _of(row, "cause_same_direction"), _of(row, "cause_same_direction_random")
        found.append(("single features change the output alike", f"cosine {own} (other features {others})"))
    return found


def lines(table: pd.DataFrame, told: Mapping[str, Any]) -> list[str]:
    """Say in a few lines what was found of all clusters.

    Parameters
    ----------
    table : DataFrame
        ``validation.parquet``.
    told : mapping
        ``validation.json``.

    Returns
    -------
    list of str
    """
    found = []
    if "prediction" in told:
        some = told["prediction"]
        mean = table.mean(numeric_only=True)
        sure = int((table["prediction_q"] <= evidence.SURE).sum())
        found += [
            f"cluster-mates tell where a feature fires in the other half of {counted(some['prompts'], 'prompt')} "
            f"(AUROC): {mean['prediction']:.2f}; random mates {mean['prediction_random']:.2f}; words, length and "
            f"source alone {mean['prediction_words']:.2f}",
            f"given these words: {mean['prediction_given_words']:.3f}, random mates "
            f"{mean['prediction_given_words_random']:.3f}; more than random mates do {sure} of "
            f"{counted(some['tests'], 'cluster')} that could be tested ({evidence.SURE:.0%} of them falsely, Benjamini "
            "and Hochberg)",
        ]
    if "levels" in told:
        times = table["level"].value_counts()
        said = {"token": "on the same token", "near": "within 16 tokens", "topic": "in the same prompt only"}
        parts = [f"{times[word]} {said[word]}" for word in LEVELS.values() if word in times]
        parts += [f"{times['none']} no more than matched features do"] if "none" in times else []
        found.append(f"features of a cluster fire together: {', '.join(parts) or 'nothing to count'}")
    if "cause" in told:
        some, tried = told["cause"], table.dropna(subset="cause_kl")
        kl = {name: tried[f"cause_kl{name}"].median() for name in ("", "_random", "_flipped", "_noise")}
        sure = int((tried["cause_q"] <= evidence.SURE).sum())
        done = f"times {some['amplify']:g}" if some["amplify"] else "taken out"
        found += [
            f"a cluster {done} at {some['hook']}: KL {kl['']:.2g} nats per active token (median of "
            f"{counted(len(tried), 'cluster')} within {some['passes']:,} forward passes); as much of others that are "
            f"active there {kl['_random']:.2g}, flipped {kl['_flipped']:.2g}, noise {kl['_noise']:.2g}",
            f"more than random sets do {sure} of {counted(some['tests'], 'cluster')} ({evidence.SURE:.0%} of them "
            "falsely, Benjamini and Hochberg); single features of a cluster change the output alike: cosine "
            f"{tried['cause_same_direction'].mean():.2f}, of random sets "
            f"{tried['cause_same_direction_random'].mean():.2f}",
        ]
    if "replicate" in told:
        found += replicated.lines(table, told["replicate"])
    for part in told.get("left_out", {}):
        found.append(f"not tried: {part}{UNTRIED.get(part, '')}")
    if told.get("evidence"):
        found.append(f"all in all: {', '.join(f'{times} {word}' for word, times in told['evidence'].items())}")
    return found


def _of(row: Mapping[str, Any], name: str) -> str:
    return plain(row[name]) if name in row else "unknown"
