"""The table of top contexts: the rows on which most features of a cluster fire at once, with the text around them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.tables import prompt_text, words
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

AROUND = 10  # tokens of text on either side
NEAR = 30  # characters, within which a word ends that the text would be cut in
SIGNS = (("\n", "⏎"), ("\t", "⇥"), ("", "␣"))  # what stands for a row that is nothing but space


def context_table(found: pd.DataFrame, prompts: pd.DataFrame, tokenizer: Any) -> pd.DataFrame:
    """Add ranks and texts to the rows that were found.

    Parameters
    ----------
    found : DataFrame
        ``cluster`` (ascending), ``prompt``, ``position``, ``tokens``, ``n_features``, ``score`` and ``features`` of
        ``schema.CONTEXT_COLUMNS``; of a cluster best first.
    prompts : DataFrame
        Columns of ``schema.PROMPT_COLUMNS``.
    tokenizer : Hugging Face tokenizer or None
        None where nothing is known of the texts: they are empty then.

    Returns
    -------
    DataFrame
        Columns of ``schema.CONTEXT_COLUMNS``.
    """
    cluster, first = found["cluster"].to_numpy(), found["position"].to_numpy()
    last = first + found["tokens"].map(len).to_numpy(np.int64) - 1
    texts = [("", -1, -1)] * len(found)
    if tokenizer is not None:
        texts = _texts(found["prompt"].to_numpy(), first, last, prompts, tokenizer)
    table = found.assign(
        rank=np.arange(len(cluster)) - np.searchsorted(cluster, cluster),
        text=[text for text, *_ in texts],
        start=[start for _, start, _ in texts],
        stop=[stop for *_, stop in texts],
    )
    whole = {name: dtype for name, (dtype, _) in schema.CONTEXT_COLUMNS.items() if dtype == "int64"}
    return table[list(schema.CONTEXT_COLUMNS)].astype(whole)


def _texts(
    prompt: Array, first: Array, last: Array, prompts: pd.DataFrame, tokenizer: Any
) -> list[tuple[str, int, int]]:
    """The text around each row, and the row's characters in it."""
    offsets: dict[int, list[tuple[int, int]] | None] = {}
    if getattr(tokenizer, "is_fast", False):
        offsets = dict(prompt_text.offsets_of(np.unique(prompt), prompts, tokenizer))
    found = []
    decoded = 0
    for p, a, b in zip(prompt.tolist(), first.tolist(), last.tolist(), strict=True):
        ids: Any = prompts["tokens"].iat[p]
        known = offsets.get(p)
        if known is None:
            decoded += 1
            found.append(_decoded(ids, a, b, tokenizer))
        else:
            found.append(_cut(str(prompts["text"].iat[p]), known[: len(ids)], a, b))
    if decoded:
        log.warning("analyse: %d contexts are decoded from their tokens: the tokenizer does not say where they lie in "
                    "the text", decoded)  # fmt: skip
    return found


def _cut(text: str, offsets: list[tuple[int, int]], first: int, last: int) -> tuple[str, int, int]:
    """A row with the tokens around it out of its prompt."""
    begin = _out(text, offsets[first - AROUND][0], -1) if first > AROUND else 0
    end = _out(text, offsets[last + AROUND][1], 1) if last + AROUND < len(offsets) else len(text)
    if last < 0:
        return _shown(text[begin:end], -1, -1, begin > 0, end < len(text))
    a, b = offsets[max(first, 0)][0], offsets[last][1]
    piece = text[a:b]
    if piece.strip():
        a += len(piece) - len(piece.lstrip())
        a, b = words.whole(text, a, b - len(piece) + len(piece.rstrip()))
        return _shown(text[begin:end], a - begin, b - begin, begin > 0, end < len(text))
    sign = next(sign for space, sign in SIGNS if space in piece)
    shown = f"{text[begin:a]} {sign} {text[b:end]}"
    return _shown(shown, a - begin + 1, a - begin + 2, begin > 0, end < len(text))


def _out(text: str, at: int, step: int) -> int:
    """Where to cut a text near a place: out of a word if its end is near, and never through a character."""
    if text[at - 1 : at + 1].isalnum():
        near = text[max(at - NEAR, 0) : at][::-1] if step < 0 else text[at : at + NEAR]
        space = next((place for place, letter in enumerate(near) if letter.isspace()), len(near) % NEAR)
        at += step * space
    return words.boundary(text, at)


def _decoded(ids: Any, first: int, last: int, tokenizer: Any) -> tuple[str, int, int]:
    """The same, of tokens of which nobody says where in the text they lie."""
    low, high = max(first - AROUND, 0), last + 1 + AROUND
    before, up_to, text = (tokenizer.decode([int(i) for i in ids[low:end]]) for end in (max(first, 0), last + 1, high))
    piece = text[len(before) : len(up_to)]
    start = len(before) + len(piece) - len(piece.lstrip())
    at = (start, len(up_to)) if piece.strip() else (-1, -1)
    return _shown(text, *at, low > 0, high < len(ids))


def _shown(text: str, start: int, stop: int, before: bool, after: bool) -> tuple[str, int, int]:
    """On one line, with dots where the prompt begins before it or goes on."""
    shown = prompt_text.show(text)
    lead, tail = "… " if before else "", " …" if after else ""
    a, b = shown.span(start, stop) if 0 <= start < stop else (-1 - len(lead), -1 - len(lead))
    return f"{lead}{shown.text}{tail}", a + len(lead), b + len(lead)
