"""What a pass reads where rows are tokens or windows of them: sparse blocks of the kept features, shard by shard."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.compute import windows
from gpuclust.config import Config
from gpuclust.errors import StoreError
from gpuclust.hardware import budget, token_budget
from gpuclust.storage import store, token_store
from gpuclust.types import Array


@dataclass(frozen=True)
class Rows:
    """What a row is.

    Attributes
    ----------
    window : int, optional
        Tokens of a row; None: each token is one.
    aggregate : str
        Over the tokens of a window, as ``extract.aggregate``.
    """

    window: int | None
    aggregate: str

    def starts(self, prompt: Array) -> Array:
        """Return where every row begins among the tokens of whole prompts, (row,), from the prompt of every token."""
        if self.window is None:
            return np.arange(len(prompt))
        found: Array = np.flatnonzero(np.diff(windows.windows(prompt, self.window), prepend=-1))
        return found

    def of(self, prompt: Array) -> Array:
        """Return the prompt of every row, (row,), from that of every token."""
        found: Array = prompt[self.starts(prompt)]
        return found

    def together(self, prompt: Array, fired: Any) -> Any:
        """Return what fires on every row, from what fires on every token of whole prompts; sparse rows."""
        if self.window is None:
            return fired
        return windows.aggregate(fired, windows.windows(prompt, self.window), self.aggregate)


def rows_of(config: Config, out: Path) -> Rows | None:
    """Return what rows are; None where they are prompts.

    Raises
    ------
    StoreError
        If they are of tokens, and the run has none.
    """
    if not config.keeps_tokens:
        return None
    if not (out / schema.TOKENS).exists():
        raise StoreError(
            f"{out} has no {schema.TOKENS}, and extract.rows is {config.extract.rows}: its activations were extracted "
            "with extract.rows=prompt, or imported as prompts. Extract anew, or leave extract.rows at prompt"
        )
    return Rows(config.used_window, config.extract.aggregate)


def prompts_of(out: Path, rows: Rows, first: int = 0, stop: int | None = None) -> Array:
    """Return the prompt of every row of a range of shards.

    Parameters
    ----------
    out : Path
        Folder of the run.
    rows : Rows
    first, stop : int
        Prompts, where shards begin and end; default all.

    Returns
    -------
    array, (row,), int32
        Ascending.
    """
    own = [
        rows.of(token_store.coordinates(out / schema.SHARDS, index)["prompt"]) for index in _shards(out, first, stop)
    ]
    return np.concatenate(own) if own else np.zeros(0, np.int32)


def blocks(
    out: Path, kept: Array, rows: Rows, most: int, permute: int | None = None, first: int = 0, stop: int | None = None,
    sparse_below: float = 0.0,
) -> Iterator[Any]:  # fmt: skip
    """Yield blocks of the kept features, in the order of `prompts_of`.

    With `permute`, features are permuted within blocks of `budget.PERMUTED_ROWS` prompts counted from the very first,
    a rest of fewer than half as many with those before it: neither the size of shards nor the share of a worker changes
    what comes out.

    Parameters
    ----------
    out, rows, first, stop
        As of `prompts_of`.
    kept : array, (feature,), int
        The SAE's numbers, ascending.
    most : int
        Rows of a block, at most.
    permute : int, optional
        Seed (`windows.permuted`).
    sparse_below : float
        Of rows of which a smaller share is not zero, blocks have more: up to `token_budget.ENTRIES` entries. A sparse
        product takes as long for a block as for its features, however few its rows are.

    Yields
    ------
    scipy.sparse.csr_array, (row, feature), float32
    """
    for prompt, fired in _parts(out, kept, permute, first, stop):
        found = rows.together(prompt, fired)
        n, entries = found.shape[0], max(found.nnz, 1)
        step = max(most, token_budget.ENTRIES * n // entries) if entries < sparse_below * n * len(kept) else most
        for start in range(0, n, step):
            yield found[start : start + step]


def _parts(out: Path, kept: Array, permute: int | None, first: int, stop: int | None) -> Iterator[tuple[Array, Any]]:
    """Prompts of tokens and what fires on them, a shard at a time, or a block of permuted prompts."""
    if permute is None:
        for index in _shards(out, first, stop):
            where, fired = token_store.read(out, index)
            yield where["prompt"], fired[:, kept]
        return
    n_prompts, size = store.open_array(out / schema.ACTIVATIONS).shape[0], budget.PERMUTED_ROWS
    stop = n_prompts if stop is None else stop
    edges = [*range(0, max(n_prompts - size // 2, 1), size), n_prompts]
    for begin, end in itertools.pairwise(edges):
        if begin < stop and end > first:
            prompt, fired = _between(out, kept, begin, end)
            mixed = windows.permuted(fired, prompt, [permute, begin])
            own = np.flatnonzero((prompt >= first) & (prompt < stop))
            yield prompt[own], mixed[own]


def _between(out: Path, kept: Array, begin: int, end: int) -> tuple[Array, Any]:
    """The tokens of a range of prompts, whatever shards they lie in."""
    from scipy.sparse import csr_array, vstack

    prompts, parts = [], []
    for index in _shards(out, begin, end):
        where, fired = token_store.read(out, index)
        own = np.flatnonzero((where["prompt"] >= begin) & (where["prompt"] < end))
        prompts.append(where["prompt"][own])
        parts.append(fired[own][:, kept])
    return np.concatenate(prompts), csr_array(vstack(parts, format="csr"))


def shards(out: Path, kept: Array, rows: Rows) -> Iterator[tuple[dict[str, Array], Any]]:
    """Yield the rows of one shard after the other with the tokens that they are of; a shard has whole prompts.

    Parameters
    ----------
    out, rows
        As of `prompts_of`.
    kept : array, (feature,), int
        Of the SAE's numbers, in any order.

    Yields
    ------
    dict of str to array, (token,), int32
        ``prompt``, ``position`` and ``token`` (`token_store.coordinates`).
    scipy.sparse.csr_array, (row, feature), float32
        Columns ascend within a row.
    """
    for index in _shards(out, 0, None):
        where, fired = token_store.read(out, index)
        own = fired[:, kept]
        own.sort_indices()
        yield where, rows.together(where["prompt"], own)


def first_rows(out: Path, kept: Array, rows: Rows, index: int) -> Any:
    """Return the rows of the first chunk of a shard's tokens, as an example.

    Parameters
    ----------
    out, rows
        As of `prompts_of`.
    kept : array, (feature,), int
        The SAE's numbers, ascending.
    index : int
        Number of the shard.

    Returns
    -------
    scipy.sparse.csr_array, (row, feature), float32
    """
    where, fired = token_store.read(out, index, token_store.CHUNK_ROWS)
    return rows.together(where["prompt"], fired[:, kept])


def norms(out: Path, kept: Array, rows: Rows, most: int) -> tuple[Array, Array]:
    """Return √Σ a² of every feature, and on how many rows it fires: (feature,), float64 and int64.

    Parameters
    ----------
    out, kept, rows, most
        As of `blocks`.
    """
    squares, times = np.zeros(len(kept)), np.zeros(len(kept), np.int64)
    for block in blocks(out, kept, rows, most):
        squares += np.bincount(block.indices, block.data.astype(np.float64) ** 2, minlength=len(kept))
        times += np.bincount(block.indices, minlength=len(kept))
    return np.sqrt(squares), times


def _shards(out: Path, first: int, stop: int | None) -> range:
    ranges = store.shard_ranges(out / schema.ACTIVATIONS)
    step = ranges[0][1] - ranges[0][0]
    return range(first // step, len(ranges) if stop is None else -(-stop // step))
