"""Texts: how a prompt is shown, and where in it a token lies."""

from __future__ import annotations

import bisect
import functools
import itertools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.tables import words
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

HEADING = re.compile(r"\s*((?:=\s+)+)(\S.*?)\s+((?:=\s*)+)\s*")
BATCH = 1000  # prompts tokenised at a time
AROUND = 16  # tokens on either side of a peak that are decoded where its place in the text is not known
BYTES_OF_A_CHARACTER = 4  # in UTF-8


@dataclass(frozen=True)
class Shown:
    """A text as it is shown: on one line, section headings of wiki text as ``[SECTION] a > b``.

    Attributes
    ----------
    text : str
    starts, places : list of int
        Where each word that is shown begins in the original text, and where in `text`.
    """

    text: str
    starts: list[int]
    places: list[int]

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Return where characters `start` to `stop` of the original are in `text`.

        Examples
        --------
        >>> shown = show("two\\n   lines")
        >>> shown.text[slice(*shown.span(7, 12))]
        'lines'
        """
        first = self._place(start)
        return first, min(self._place(stop - 1) + 1, len(self.text)) if stop > start else first

    def _place(self, at: int) -> int:
        word = bisect.bisect_right(self.starts, at) - 1
        if word < 0:
            return 0
        end = self.places[word + 1] if word + 1 < len(self.places) else len(self.text)
        return min(self.places[word] + at - self.starts[word], max(end - 1, 0))


def show(text: str) -> Shown:
    """Put a text on one line, with section headings as the original notebook printed them.

    Examples
    --------
    >>> show(" = Valkyria Chronicles III = \\n = = Gameplay = = \\n The game is tactical .").text
    '[SECTION] Valkyria Chronicles III > Gameplay | The game is tactical .'
    """
    pieces: list[str] = []
    starts: list[int] = []
    places: list[int] = []
    length = 0

    def add(piece: str, start: int | None = None) -> None:
        nonlocal length
        if start is not None:
            starts.append(start)
            places.append(length)
        pieces.append(piece)
        length += len(piece)

    def words(line: str, offset: int) -> None:
        for index, word in enumerate(re.finditer(r"\S+", line)):
            if index:
                add(" ")
            add(word[0], offset + word.start())

    offset, before = 0, ""  # what the last line was: "heading", "text", or there was none
    for line in text.splitlines(keepends=True):
        match = HEADING.fullmatch(line)
        if match and match[1].count("=") == match[3].count("="):
            joint = {"": "[SECTION] ", "heading": " > ", "text": " | [SECTION] "}[before]
            add(joint)
            words(match[2], offset + match.start(2))
            before = "heading"
        elif line.strip():
            add({"": "", "heading": " | ", "text": " | " if pieces[:1] == ["[SECTION] "] else " "}[before])
            words(line, offset)
            before = "text"
        offset += len(line)
    return Shown("".join(pieces), starts, places)


def peak_spans(examples: pd.DataFrame, prompts: pd.DataFrame, tokenizer: Any) -> pd.DataFrame:
    """Find the characters of the token at which each example peaks.

    A token that is a part of a character, such as one of the three bytes of 世 or an accent, has the whole character.

    Parameters
    ----------
    examples : DataFrame
        Columns of ``schema.EXAMPLE_COLUMNS``.
    prompts : DataFrame
        Columns of ``schema.PROMPT_COLUMNS``.
    tokenizer : Hugging Face tokenizer

    Returns
    -------
    DataFrame
        Columns of ``schema.SPAN_COLUMNS``, a row per example; -1 where the place is not known: a special token, or a
        tokenizer that does not give the stored tokens back with their offsets.
    """
    prompt, position = examples["prompt"].to_numpy(), examples["position"].to_numpy()
    start = np.full(len(examples), -1, dtype=np.int64)
    stop = start.copy()
    known = np.flatnonzero(position >= 0)
    if len(known) and not getattr(tokenizer, "is_fast", False):
        log.warning("analyse: this tokenizer gives no offsets, so that peak tokens are not marked in the prompts")
        known = known[:0]
    order = known[np.argsort(prompt[known], kind="stable")]
    wanted, first = np.unique(prompt[order], return_index=True)
    rows_of = dict(zip(wanted.tolist(), np.split(order, first[1:]), strict=True)) if len(order) else {}
    unlike = 0
    for p, offsets in offsets_of(wanted, prompts, tokenizer):
        if offsets is None:
            unlike += 1
            continue
        text, ids, rows = str(prompts["text"].iat[p]), prompts["tokens"].iat[p], rows_of[p]
        for row, at in zip(rows, position[rows].tolist(), strict=True):
            start[row], stop[row] = _token(offsets, at, text, ids, tokenizer)
    if unlike:
        log.warning("analyse: the tokenizer reads %d prompts otherwise than stored: their peaks are not marked", unlike)
    return pd.DataFrame({"feature": examples["feature"], "rank": examples["rank"], "start": start, "stop": stop})


def offsets_of(
    wanted: Array, prompts: pd.DataFrame, tokenizer: Any
) -> Iterator[tuple[int, list[tuple[int, int]] | None]]:
    """Yield prompts and where their tokens lie in the text: first character, and the one after the last.

    Parameters
    ----------
    wanted : array, (any,), int
        Numbers of prompts.
    prompts : DataFrame
        Columns of ``schema.PROMPT_COLUMNS``.
    tokenizer : Hugging Face tokenizer
        That gives offsets (``is_fast``).

    Yields
    ------
    int
    list of (int, int) or None
        None where the tokenizer does not give the stored tokens back.
    """
    all_texts, all_tokens = prompts["text"].tolist(), prompts["tokens"].tolist() if len(wanted) else []
    for batch in (wanted[i : i + BATCH].tolist() for i in range(0, len(wanted), BATCH)):
        texts = [all_texts[p] for p in batch]
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for p, ids, offsets in zip(batch, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            n = len(all_tokens[p])
            yield p, offsets if len(ids) >= n and np.array_equal(ids[:n], all_tokens[p]) else None


def _token(offsets: list[tuple[int, int]], at: int, text: str, ids: Any, tokenizer: Any) -> tuple[int, int]:
    """Characters of a token without the space that byte-level tokens begin with; -1 for a space that is not there."""
    a, b = _character(offsets, at, text)
    a += len(text[a:b]) - len(text[a:b].lstrip())
    if a < b and (at > 0 or tokenizer.decode(ids[:1]).strip()):  # a space that the tokenizer put before
        return words.whole(text, a, b)
    return -1, -1


def _character(offsets: list[tuple[int, int]], at: int, text: str) -> tuple[int, int]:
    """A token's characters: its own one, where SentencePiece gives each byte of several the characters of all."""
    a, b = offsets[at]
    if b - a < 2:
        return a, b
    same = (a, b)
    before = sum(1 for _ in itertools.takewhile(lambda other: tuple(other) == same, reversed(offsets[:at])))
    after = sum(1 for _ in itertools.takewhile(lambda other: tuple(other) == same, offsets[at + 1 :]))
    ends = list(itertools.accumulate(len(character.encode()) for character in text[a:b]))
    if before + after and before + 1 + after == ends[-1]:
        a += bisect.bisect_right(ends, before)
        return a, a + 1
    return a, b


def decoded_around(ids: Any, position: int, tokenizer: Any) -> tuple[str, int, int]:
    """Decode the tokens around one, and find its characters in that text.

    Parameters
    ----------
    ids : sequence of int
    position : int
        The token's, in `ids`.
    tokenizer : Hugging Face tokenizer

    Returns
    -------
    str
        U+FFFD stands where the tokens make no whole character.
    int, int
        First character of the token, or of the character that it is a part of, and the one after the last.
    """
    first = max(0, position - AROUND)
    window, at = [int(i) for i in ids[first : position + 1 + AROUND]], position - first
    text: str = tokenizer.decode(window)

    def reached(n_tokens: int) -> int:
        begin: str = tokenizer.decode(window[:n_tokens]) if n_tokens else ""
        unlike = (i for i, (a, b) in enumerate(zip(begin, text, strict=False)) if a != b)
        return next(unlike, min(len(begin), len(text)))

    start = reached(at)
    stops = (reached(at + n) for n in range(1, BYTES_OF_A_CHARACTER + 1))
    stop = next((stop for stop in stops if stop > start), start)
    piece = text[start:stop]
    return text, start + len(piece) - len(piece.lstrip()), stop


def spelled(token: int, tokenizer: Any) -> str:
    """Write a token of the vocabulary out; bytes that are no whole character as escapes, such as \\xe4, each its own.

    Parameters
    ----------
    token : int
    tokenizer : Hugging Face tokenizer
    """
    text: str = tokenizer.decode([token])
    if "\ufffd" not in text:
        return text
    piece: str = tokenizer.convert_ids_to_tokens(token)
    table = _bytes_of_letters()
    if all(letter in table for letter in piece) and not re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return bytes(table[letter] for letter in piece).decode(errors="backslashreplace")
    return piece


@functools.cache
def _bytes_of_letters() -> dict[str, int]:
    """The letters that byte-level BPE writes bytes as: what can be printed in Latin-1 is itself, others follow 255."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in own)
    return {chr(byte): byte for byte in own} | {chr(256 + n): byte for n, byte in enumerate(others)}
