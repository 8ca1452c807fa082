"""Contexts: the texts in which features peak, each stored once, however many features point into it."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from gpuclust.tables import words
from gpuclust.tables.prompt_text import show
from gpuclust.types import Array

log = logging.getLogger("gpuclust")


# Examples a feature, and characters on either side of the peak (None: whole prompts). The first that fits is taken.
STEPS = ((5, None), (5, 300), (5, 150), (3, 150), (2, 100), (1, 100), (1, 60))
BUDGET = 24_000_000  # characters; about half as many bytes in the file
APART = 1 << 32  # more than a text is long


def collect(
    examples: pd.DataFrame, spans: pd.DataFrame, prompts: pd.DataFrame, n_features: int
) -> tuple[list[str], dict[str, Array]]:
    """Cut out of the prompts what the feature cards show.

    Parameters
    ----------
    examples, spans, prompts : DataFrame
        Columns of ``schema.EXAMPLE_COLUMNS``, ``SPAN_COLUMNS`` and ``PROMPT_COLUMNS``; a span per example, in order.
    n_features : int

    Returns
    -------
    list of str
        Pieces of prompts, as they are shown.
    dict of arrays
        ``ctx_first`` (feature + 1), int32: a feature's contexts are ctx_first[f] to ctx_first[f + 1]; and per context
        ``ctx_piece``, ``ctx_start`` and ``ctx_stop`` (the peak token in its piece, in code points; -1 if not known),
        ``ctx_prompt`` int32, ``ctx_value`` float32; per piece ``piece_cut`` uint8, 1 if the prompt begins before it,
        plus 2 if it goes on after it.
    """
    table = pd.DataFrame(
        {name: examples[name].to_numpy() for name in ("feature", "rank", "prompt", "value")}
        | {name: spans[name].to_numpy() for name in ("start", "stop")}
    )
    lengths = prompts["text"].str.len().to_numpy()
    for n_examples, radius in STEPS:
        chosen = table[table["rank"] < n_examples].sort_values(["feature", "rank"], ignore_index=True)
        low, high = _windows(chosen, lengths, radius)
        piece, first, last = _merge(chosen["prompt"].to_numpy(), low, high)
        if (size := int((last - first).sum())) <= BUDGET:
            break
    if (n_examples, radius) != STEPS[0]:
        log.info("report: feature cards show %d prompts each, %s characters around the peak, to keep the file small",
                 n_examples, radius)  # fmt: skip
    log.debug("report: %d characters of prompts in %d pieces", size, len(first))
    texts = prompts["text"].tolist()
    prompt_of = np.zeros(len(first), np.int64)
    prompt_of[piece] = chosen["prompt"]
    if radius is not None:  # cut between characters, none through
        first, last = (
            np.asarray([words.boundary(texts[p], at) for p, at in zip(prompt_of.tolist(), ends, strict=True)], np.int64)
            for ends in (first.tolist(), last.tolist())
        )
    shown = [show(texts[p][a:b]) for p, a, b in zip(prompt_of.tolist(), first.tolist(), last.tolist(), strict=True)]
    begin = first.tolist()
    places = [
        shown[i].span(a - begin[i], b - begin[i]) if a >= 0 else (-1, -1)
        for i, a, b in zip(piece.tolist(), chosen["start"].tolist(), chosen["stop"].tolist(), strict=True)
    ]
    marks = np.asarray(places, np.int32).reshape(-1, 2)
    return [s.text for s in shown], {
        "ctx_first": np.searchsorted(chosen["feature"], np.arange(n_features + 1)).astype(np.int32),
        "ctx_piece": piece.astype(np.int32),
        "ctx_start": np.ascontiguousarray(marks[:, 0]),
        "ctx_stop": np.ascontiguousarray(marks[:, 1]),
        "ctx_prompt": chosen["prompt"].to_numpy(np.int32),
        "ctx_value": chosen["value"].to_numpy(np.float32),
        "piece_cut": ((first > 0) + 2 * (last < lengths[prompt_of])).astype(np.uint8),
    }


def _windows(chosen: pd.DataFrame, lengths: Array, radius: int | None) -> tuple[Array, Array]:
    """First and last character to show of each example's prompt."""
    length = lengths[chosen["prompt"].to_numpy()]
    if radius is None:
        return np.zeros(len(chosen), np.int64), length
    start, stop = chosen["start"].to_numpy(), chosen["stop"].to_numpy()
    return np.maximum(start - radius, 0), np.minimum(np.where(start < 0, 2 * radius, stop + radius), length)


def _merge(prompt: Array, low: Array, high: Array) -> tuple[Array, Array, Array]:
    """Merge windows that overlap: each window's piece, and the pieces' first and last characters in their prompts."""
    if not len(prompt):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    begin, end = prompt * APART + low, prompt * APART + high
    order = np.argsort(begin, kind="stable")
    reached = np.maximum.accumulate(end[order])
    new = np.r_[True, begin[order][1:] > reached[:-1]]
    piece = np.empty(len(prompt), np.int64)
    piece[order] = np.cumsum(new) - 1
    return piece, begin[order][new] % APART, reached[np.r_[new[1:], True]] % APART
