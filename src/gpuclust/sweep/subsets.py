"""Which prompts a setting uses, and how one pass over the store serves all of them.

A subset is the first `n` prompts of a group: of all prompts, of a source, of a range of lengths. Its halves are those
of `compute.halves`, counted within the group, so a half of the first thousand is the first part of that half of all,
and those of all prompts are the halves of a run. Subsets are cut into *atoms*, one Gram matrix each, that add up to
them: the prompts between one prefix and the next, in one half. Groups that share prompts go into different layers, and
each layer puts every prompt into one atom at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from gpuclust.compute.halves import half_of
from gpuclust.errors import SelectionError
from gpuclust.types import Array

FEWEST = 20  # prompts of a subset


class Subset(NamedTuple):
    """The first `n` prompts of a group; None stands for all sources, and for all lengths."""

    source: str | None
    length: tuple[int, int] | None
    n: int

    @property
    def group(self) -> tuple[str | None, tuple[int, int] | None]:
        """The group without the number of prompts."""
        return self.source, self.length

    def __str__(self) -> str:
        named = [] if self.source is None else [f"source {self.source}"]
        named += [] if self.length is None else [f"{self.length[0]} to {self.length[1]} tokens"]
        return f"{self.n} prompts" + (f" of {', '.join(named)}" if named else "")


@dataclass(frozen=True, eq=False)
class Layer:
    """One way to put prompts into atoms.

    Attributes
    ----------
    codes : array, (prompt,), int64
        Atom of every prompt, -1 for none.
    n_atoms : int
    atoms : dict of Subset to pair of lists of int
        The atoms of each half of every subset of the layer.
    """

    codes: Array
    n_atoms: int
    atoms: dict[Subset, tuple[list[int], list[int]]]


def group_prompts(prompts: pd.DataFrame, pattern: str, source: str | None, length: tuple[int, int] | None) -> Array:
    """Return the prompts of a group, in order.

    Parameters
    ----------
    prompts : DataFrame
        With ``source`` and ``n_tokens``.
    pattern : str
        Its first group is what is compared with `source`.
    source : str, optional
    length : (int, int), optional
        Smallest and largest number of tokens.
    """
    mask = np.ones(len(prompts), dtype=bool)
    if source is not None:
        mask &= np.array([value == source for value in source_values(prompts, pattern)], dtype=bool)
    if length is not None:
        mask &= prompts["n_tokens"].between(*length).to_numpy()
    return np.flatnonzero(mask)


def source_values(prompts: pd.DataFrame, pattern: str) -> list[str | None]:
    """Return what the pattern's first group finds in the source of every prompt; None where it does not match."""
    compiled = re.compile(pattern)
    found = {text: compiled.search(text) for text in prompts["source"].unique()}
    return [match[1] if (match := found[text]) else None for text in prompts["source"]]


def refuse_small(size: int, subset: Subset, prompts: pd.DataFrame, pattern: str) -> None:
    """Refuse a group with hardly any prompts, and say what there is.

    Parameters
    ----------
    size : int
        Prompts of the group.
    subset : Subset
        Of that group.
    prompts, pattern
        As in `group_prompts`.

    Raises
    ------
    SelectionError
    """
    if size >= FEWEST:
        return
    there = ""
    if subset.source is not None:
        counts = pd.Series(source_values(prompts, pattern)).value_counts().head(6)
        there = f"; source_pattern finds {', '.join(f'{name} ({count})' for name, count in counts.items())}"
    if subset.length is not None:
        there += f"; prompts have {prompts['n_tokens'].min()} to {prompts['n_tokens'].max()} tokens"
    raise SelectionError(f"only {size} prompts in the group ({subset}), at least {FEWEST} are needed{there}")


def layers(subsets: Iterable[Subset], prompts: pd.DataFrame, pattern: str, seed: int) -> list[Layer]:
    """Cut subsets into atoms, in as few layers as a first fit finds.

    Parameters
    ----------
    subsets : iterable of Subset
    prompts : DataFrame
        With ``source`` and ``n_tokens``.
    pattern : str
        As in `group_prompts`.
    seed : int
        Of the halves.

    Examples
    --------
    >>> prompts = pd.DataFrame({"source": ["a", "b"] * 4, "n_tokens": 5})
    >>> (layer,) = layers([Subset(None, None, 4), Subset(None, None, 8)], prompts, "(.*)", seed=0)
    >>> layer.codes.tolist(), layer.atoms[Subset(None, None, 8)]
    ([0, 1, 1, 0, 3, 2, 3, 2], ([0, 2], [1, 3]))
    """
    by_group: dict[Any, list[Subset]] = {}
    for subset in sorted(set(subsets), key=lambda subset: subset.n):
        by_group.setdefault(subset.group, []).append(subset)
    made: list[Layer] = []
    for (source, length), nested in by_group.items():
        chosen = group_prompts(prompts, pattern, source, length)[: nested[-1].n]
        fits = (layer for layer in made if (layer.codes[chosen] < 0).all())
        layer = next(fits, None)
        if layer is None:
            made.append(layer := Layer(np.full(len(prompts), -1, dtype=np.int64), 0, {}))
        made[made.index(layer)] = _with_group(layer, chosen, nested, seed)
    return made


def _with_group(layer: Layer, chosen: Array, nested: Sequence[Subset], seed: int) -> Layer:
    """Add a group and its prefixes to a layer."""
    codes, n_atoms = layer.codes.copy(), layer.n_atoms
    known = dict(layer.atoms)
    halves = half_of(len(chosen), seed)
    first: list[int] = []
    second: list[int] = []
    start = 0
    for subset in nested:
        codes[chosen[start : subset.n]] = n_atoms + halves[start : subset.n]
        first, second = [*first, n_atoms], [*second, n_atoms + 1]
        known[subset] = (first, second)
        n_atoms += 2
        start = subset.n
    return Layer(codes, n_atoms, known)
