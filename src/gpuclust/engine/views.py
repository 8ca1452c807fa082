"""Groups of prompts and views of them: over what neighbours are wanted, what a pass reads, and their files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.compute import gram
from gpuclust.engine import token_rows
from gpuclust.engine.prompt_rows import read_blocks
from gpuclust.engine.token_rows import Rows
from gpuclust.hardware import budget
from gpuclust.hardware.backend import Backend
from gpuclust.stage_table import view_file
from gpuclust.storage import atomic, row_blocks, store
from gpuclust.storage.record import versions
from gpuclust.types import Array

log = logging.getLogger("gpuclust")


@dataclass(frozen=True, eq=False)
class PromptGroups:
    """Groups of prompts, each with a Gram matrix of its own.

    Attributes
    ----------
    groups : array, (prompt,) or (layer, prompt), int
        Group of every prompt, from 0; -1 none. Groups that share prompts lie in different layers.
    n_groups : int
    permute : int, optional
        Seed: permute each feature's activations over the prompts of each block (`permuted`).
    lengths : array, (prompt,), int, optional
        Of all prompts of the store, for partial correlations (`prompt_lengths`).
    active_above : float, optional
        Count active prompts instead of adding up products (`gram.accumulate`): for metrics of the activity.
    rows : Rows, optional
        What is added up where it is not prompts; a row belongs to the group of its prompt.
    """

    groups: Array
    n_groups: int
    permute: int | None = None
    lengths: Array | None = None
    active_above: float | None = None
    rows: Rows | None = None


@dataclass(frozen=True, eq=False)
class View:
    """Neighbours that are wanted: over which prompts, between which features, and where they are written.

    Attributes
    ----------
    weights : array, (group,)
        All ones the whole, ones and zeros some groups, whole numbers a bootstrap.
    path : Path
        The neighbours, as `write_neighbors` has them.
    metric : str
    k : int
        Neighbours, the feature itself included; at most as many as there are features.
    features : array, (feature,), int, optional
        Features of the pass, ascending; None: all of them.
    trees : mapping of int to Path
        Where spanning trees of mutual reachability go, by ``min_samples``.
    """

    weights: Array
    path: Path
    metric: str
    k: int
    features: Array | None = None
    trees: Mapping[int, Path] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Found:
    """What a pass found.

    Attributes
    ----------
    keys : list of array, (feature, k - 1), uint64, one a view
        The nearest, packed (`topk`), the feature itself left out.
    totals : list of Gram, one a group
        Column sums over all prompts, without tiles.
    facts : dict
        What the record keeps of the pass.
    """

    keys: list[Array]
    totals: list[gram.Gram]
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Read:
    """What a pass reads of some prompts.

    Attributes
    ----------
    blocks : iterator of array or scipy.sparse.csr_array, (row, feature)
        The kept features only.
    groups : array, (row,) or (layer, row), int
        As `PromptGroups` has them, by row.
    lengths : array, (row,), int, or None
    """

    blocks: Iterator[Any]
    groups: Array
    lengths: Array | None


def read(
    out: Path, kept: Array, first: int, stop: int, plan: budget.Plan, groups: PromptGroups, backend: Backend
) -> Read:
    """Begin to read the rows of a range of prompts.

    Parameters
    ----------
    out : Path
        Folder with the store.
    kept : array, (feature,), int
        The SAE's numbers, ascending.
    first, stop : int
        Numbers of the prompts.
    plan : budget.Plan
    groups : PromptGroups
        Of all prompts of the store.
    backend : Backend
    """
    own = groups.groups[..., first:stop]
    lengths = None if groups.lengths is None else groups.lengths[first:stop]
    if groups.rows is not None:
        own = own[..., token_rows.prompts_of(out, groups.rows, first, stop) - first]
        below, most = gram.SPARSE_DENSITY, plan.rows
        if backend.name == "cuda":
            below, most = 0.0, max(plan.rows // 2, 1)  # the plan is of stored rows, and these are float32
            log.info("neighbors: blocks of %d rows become dense on the GPU, which has no sparse product", most)
        return Read(token_rows.blocks(out, kept, groups.rows, most, groups.permute, first, stop, below), own, lengths)
    if groups.permute is None:
        stored = row_blocks.rows(out / schema.ACTIVATIONS, plan.rows, backend, first, stop, kept)
        return Read((block for _, block in stored), own, lengths)
    mixed = read_blocks(out, kept, plan, groups.permute, first, stop)
    return Read((backend.xp.asarray(block) for block in mixed), own, lengths)


def view_path(out: Path, view: str, name: str) -> Path:
    """Where a view's file lies: the run's own for the whole, else in the folder of views.

    Parameters
    ----------
    out : Path
        Folder of the run.
    view : str
        ``schema.WHOLE``, or another view's name.
    name : str
        The file's, as the whole has it.
    """
    return out / view_file(view, name)


def write_neighbors(
    path: Path, kept: Array, indices: Array, distances: Array, metric: str, errors: Array | None = None
) -> None:
    """Store the neighbours with the SAE's own feature numbers.

    Parameters
    ----------
    path : Path
    kept : array, (feature,), int
        The SAE's numbers of the features.
    indices, distances : array, (feature, k), int32 and float32
        Counting `kept`.
    metric : str
    errors : array, (feature, k), float32, optional
        Standard errors of the similarities (`neighbors.errors_of`).
    """
    variables = {
        "indices": (("feature", "k"), kept[indices].astype(np.int64)),
        "distances": (("feature", "k"), distances),
        "feature": (("feature",), kept.astype(np.int64)),
        "k": (("k",), np.arange(indices.shape[1])),
    }
    if errors is not None:
        variables[schema.ERRORS] = (("feature", "k"), errors)
    atomic.make_folder(path.parent)
    store.write_dataset(path, variables, {"metric": metric, "made_by": versions()})


def read_neighbors(path: Path) -> tuple[Array, Array, Array]:
    """Return kept feature numbers, indices that count the kept features, and distances."""
    import zarr

    group: Any = zarr.open_group(path, mode="r")
    kept = group["feature"][:]
    return kept, np.searchsorted(kept, group["indices"][:]).astype(np.int32), group["distances"][:]


def read_errors(path: Path) -> Array | None:
    """Return the standard errors of the similarities, (feature, k), float32; None where the file has none."""
    import zarr

    group: Any = zarr.open_group(path, mode="r")
    return group[schema.ERRORS][:] if schema.ERRORS in group else None


def neighbors_held(path: Path) -> int:
    """Return how many neighbours a file has of every feature, the feature itself included."""
    import zarr

    return int(zarr.open_array(path / "indices", mode="r").shape[1])
