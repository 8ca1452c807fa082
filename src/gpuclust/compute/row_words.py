"""What is known of a row beside its activations: the words in it, how long its prompt is, where it lies, its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuclust.types import Array

SEEN = 5  # rows at least that a token must be in, to be an attribute
LENGTHS = 8  # quantiles of the prompts' lengths
SOURCES = 64  # the most frequent; others are one


@dataclass(frozen=True, eq=False)
class RowWords:
    """Attributes of rows: a token each of a vocabulary, and categories.

    Attributes
    ----------
    vocabulary : array, (token,), int
        Ids, ascending.
    sizes : tuple of int
        Of every category, how many values it has, from 0.
    """

    vocabulary: Array
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.vocabulary) + sum(self.sizes)

    def of(self, tokens: Array, row: Array, n_rows: int, categories: Sequence[Array]) -> Any:
        """Return which attributes each row has.

        Parameters
        ----------
        tokens, row : array, (token,), int
            Ids, and the row that each is of.
        n_rows : int
        categories : sequence of array, (row,), int
            In the order of `sizes`.

        Returns
        -------
        scipy.sparse.csr_array, (row, attribute), float32
            Ones; a token that is twice in a row counts once.
        """
        from scipy.sparse import csr_array

        place = np.searchsorted(self.vocabulary, tokens)
        known = place < len(self.vocabulary)
        known[known] = self.vocabulary[place[known]] == tokens[known]
        rows, columns, first = [row[known]], [place[known]], len(self.vocabulary)
        for size, category in zip(self.sizes, categories, strict=True):
            rows.append(np.arange(n_rows))
            columns.append(first + category)
            first += size
        at = (np.concatenate(rows), np.concatenate(columns))
        found = csr_array((np.ones(len(at[0]), np.float32), at), shape=(n_rows, len(self)))
        found.sum_duplicates()
        found.data[:] = 1
        return found


def vocabulary(tokens: Sequence[Array], most: int) -> Array:
    """Return the ids that are in SEEN prompts at least: of more than `most` those in most prompts, ties by number.

    Parameters
    ----------
    tokens : sequence of array, (token,), int
        Of every prompt.
    most : int

    Returns
    -------
    array, (token,), int64
        Ascending.

    Examples
    --------
    >>> vocabulary([np.array([3, 3, 9])] * 5 + [np.array([9, 4])] * 4, most=10).tolist()
    [3, 9]
    """
    distinct = [np.unique(one) for one in tokens]
    ids, prompts = np.unique(np.concatenate([np.zeros(0, np.int64), *distinct]), return_counts=True)
    ids, prompts = ids[prompts >= SEEN], prompts[prompts >= SEEN]
    found: Array = np.sort(ids[np.argsort(-prompts, kind="stable")[:most]]).astype(np.int64)
    return found


def lengths(n_tokens: Array) -> Array:
    """Return which of LENGTHS quantiles of the prompts' lengths each lies in, (prompt,), int64.

    Parameters
    ----------
    n_tokens : array, (prompt,), int
    """
    cuts = np.quantile(n_tokens, np.linspace(0, 1, LENGTHS + 1)[1:-1]) if len(n_tokens) else np.zeros(0)
    found: Array = np.searchsorted(cuts, n_tokens, side="left")
    return found


def sources(source: Sequence[Any]) -> tuple[Array, int]:
    """Return a number for the source of every prompt, (prompt,), int64, and how many numbers there are.

    Parameters
    ----------
    source : sequence of str
    """
    names, place, times = np.unique(np.asarray(source, dtype=str), return_inverse=True, return_counts=True)
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(-times, kind="stable")] = np.arange(len(names))
    found: Array = np.minimum(rank[place], SOURCES)
    return found, min(len(names), SOURCES + 1)
