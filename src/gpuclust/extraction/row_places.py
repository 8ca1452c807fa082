"""Which prompt, position and token rows of activations are, as a file of somebody else's says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust.errors import ActivationError
from gpuclust.extraction.row_readers import ChosenRows, Rows
from gpuclust.types import Array

LARGEST = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class Places:
    """Where rows that are tokens come from.

    Attributes
    ----------
    prompt, position, token : array, (row,), int32
        Number of the prompt, ascending from 0 with none left out; place in the prompt, ascending within it; token id,
        -1 where it is not known.
    """

    prompt: Array
    position: Array
    token: Array

    @property
    def n_prompts(self) -> int:
        """How many prompts there are."""
        return int(self.prompt[-1]) + 1

    def ids(self, path: Path) -> list[Array]:
        """Return the token ids of every prompt, int32, those before its position 0 left out.

        Raises
        ------
        ActivationError
            If some are not known, or positions are left out.
        """
        if len(lost := np.flatnonzero(self.token < 0)):
            raise ActivationError(
                f"{path} has no token id for row {lost[0]} and {len(lost) - 1:,} others, so that a tokenizer can say "
                "nothing: add `token`, or leave the tokenizer out"
            )
        own = [part[part >= 0] for part in np.split(self.position, self.starts()[1:-1])]
        for prompt, positions in enumerate(own):
            if not np.array_equal(positions, np.arange(len(positions))):
                raise ActivationError(
                    f"{path}: prompt {prompt} has {len(positions)} tokens at positions {positions[0]} to "
                    f"{positions[-1]}: some are left out, so that its text is not known. Leave the tokenizer out"
                )
        kept = self.position >= 0
        counts = np.bincount(self.prompt[kept], minlength=self.n_prompts)
        return np.split(self.token[kept], np.cumsum(counts)[:-1])

    def starts(self) -> Array:
        """Return the first row of every prompt, and last the number of rows, (prompt + 1,), int64."""
        return np.searchsorted(self.prompt, np.arange(self.n_prompts + 1))


@dataclass(frozen=True, eq=False)
class Activations:
    """What a file holds.

    Attributes
    ----------
    rows : Rows
        Of prompts, or of tokens where there are `places`.
    places : Places, optional
    texts : list of str, optional
        Of the prompts.
    """

    rows: Rows
    places: Places | None = None
    texts: list[str] | None = None

    @property
    def n_prompts(self) -> int:
        """How many prompts there are."""
        return self.rows.shape[0] if self.places is None else self.places.n_prompts


def read(path: Path, n_rows: int, prompt: Any, position: Any, token: Any) -> tuple[Array, Places]:
    """Check what a file says of its rows.

    Parameters
    ----------
    path : Path
    n_rows : int
        Rows of its activations.
    prompt : array, (row,), whole numbers
        -1 for a row that is no token, as at the ends of shards of a ``tokens.zarr``.
    position, token : array, (row,), whole numbers, or None
        Default: counted within the prompt, and not known.

    Returns
    -------
    chosen : array, (token,), int64
        The rows that are tokens.
    Places
        Of these.

    Raises
    ------
    ActivationError
        If lengths differ, numbers are negative or beyond int32, or rows of a prompt do not stand together and in order.
    """
    numbers = _whole(path, "prompt", prompt, n_rows)
    chosen = np.flatnonzero(numbers >= 0)
    numbers = numbers[chosen]
    if not len(numbers):
        raise ActivationError(f"{path}: `prompt` is -1 for all {n_rows:,} rows: none is a token")
    step = np.diff(numbers, prepend=np.int32(-1))
    if len(bad := np.flatnonzero((step < 0) | (step > 1))):
        at = bad[0]
        before = f"follows a row of prompt {numbers[at - 1]}" if at else "is the first"
        raise ActivationError(
            f"{path}: row {chosen[at]} is of prompt {numbers[at]} and {before}. Prompts are numbered from 0 with none "
            "left out, and rows of a prompt stand together: sort the rows by prompt and position, and number prompts "
            "by np.unique(prompt, return_inverse=True)[1]"
        )
    begin = np.flatnonzero(step)
    counted = (np.arange(len(numbers)) - np.repeat(begin, np.diff([*begin, len(numbers)]))).astype(np.int32)
    at = counted if position is None else _whole(path, "position", position, n_rows)[chosen]
    if len(bad := np.flatnonzero((np.diff(at) <= 0) & (step[1:] == 0))):
        row = bad[0] + 1
        raise ActivationError(
            f"{path}: row {chosen[row]} has position {at[row]} of prompt {numbers[row]}, and the row before it "
            f"{at[row - 1]}: positions ascend within a prompt. Sort the rows by prompt and position"
        )
    ids = np.full(len(numbers), -1, np.int32) if token is None else _whole(path, "token", token, n_rows)[chosen]
    return chosen, Places(numbers, at, ids)


def with_places(rows: Rows, given: Mapping[str, Any], texts: list[str] | None = None) -> Activations:
    """Return what a file holds, whose rows are tokens where it says which prompt each is of.

    Parameters
    ----------
    rows : Rows
    given : mapping of str to array
        What there is of `prompt`, `position` and `token`, (row,).
    texts : list of str, optional
        Of the rows, where they are prompts.
    """
    if "prompt" not in given:
        if lost := sorted(given):
            raise ActivationError(f"{rows.path} has `{lost[0]}` of its rows, but not `prompt`: add it, or take it away")
        return Activations(rows, None, texts)
    chosen, places = read(rows.path, rows.shape[0], given["prompt"], given.get("position"), given.get("token"))
    return Activations(rows if len(chosen) == rows.shape[0] else ChosenRows(rows, chosen), places)


def grid(path: Path, n_prompts: int, length: int, tokens: Any = None) -> Places:
    """Return the places of prompts that are equally long.

    Parameters
    ----------
    path : Path
    n_prompts, length : int
    tokens : array, (prompt, position), whole numbers, optional
        Token ids.
    """
    n = n_prompts * length
    ids = None if tokens is None else np.asarray(tokens).reshape(-1)
    _, found = read(path, n, np.repeat(np.arange(n_prompts), length), np.tile(np.arange(length), n_prompts), ids)
    return found


def _whole(path: Path, name: str, given: Any, n_rows: int) -> Array:
    """One of the coordinates as int32."""
    found: Array = np.asarray(given)
    if found.shape != (n_rows,):
        raise ActivationError(
            f"{path}: `{name}` has the shape {found.shape}, and there are {n_rows:,} rows: one number a row is expected"
        )
    if found.dtype.kind not in "iu":
        raise ActivationError(f"{path}: `{name}` is {found.dtype}; whole numbers are expected")
    if len(bad := np.flatnonzero((found < -1) | (found > LARGEST))):
        raise ActivationError(
            f"{path}: `{name}` of row {bad[0]} is {found[bad[0]]}; 0 to {LARGEST:,} (int32) is expected, or -1 for none"
        )
    return found.astype(np.int32)
