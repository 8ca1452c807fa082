"""Neighbours from Gram tiles on Dask: accumulated in place on every worker, combined tile by tile.

G adds up over prompts, so one pass over the store serves any number of groups of prompts: halves, sources, lengths,
prefixes, blocks of a bootstrap. Each group has its tiles; a view is a weighted sum of groups between some of the
features, and what is computed per tile (neighbours, distances) is computed for every view. A run has three views, a
sweep as many as its settings need; how many tiles are held at a time follows from the memory plan.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.compute import gram, neighbors, row_errors
from gpuclust.compute.association import MOST_PROMPTS
from gpuclust.config import ACTIVITY
from gpuclust.engine import token_rows
from gpuclust.engine.failures import submit
from gpuclust.engine.prompt_rows import read_blocks
from gpuclust.engine.token_rows import Rows
from gpuclust.errors import InputError
from gpuclust.hardware import budget
from gpuclust.hardware.backend import on_host, resolve, to_host
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
class _Wanted:
    """What a tile's task needs of a view; `place` counts the features of the pass."""

    weights: Array
    place: Array | None
    metric: str
    k: int
    dense: bool


def gram_task(
    out: Path, kept: Array, first: int, stop: int, tiles: list[gram.Tile], plan: budget.Plan, groups: PromptGroups,
    device: str,
) -> list[gram.Gram]:  # fmt: skip
    """Accumulate the tiles of one pass over a range of prompts, a Gram a group.

    Parameters
    ----------
    out : Path
        Folder with the store.
    kept : array, (feature,), int
        Features of the pass, in the SAE's numbers, ascending.
    first, stop : int
        Numbers of the prompts.
    tiles : list of (int, int)
        Block row and block column of the tiles of this pass.
    plan : budget.Plan
    groups : PromptGroups
        Of all prompts of the store.
    device : {"cpu", "cuda"}
    """
    backend = resolve(device)
    own, n_groups = groups.groups[..., first:stop], groups.n_groups
    if groups.rows is not None:
        own = own[..., token_rows.prompts_of(out, groups.rows, first, stop) - first]
        below, most = gram.SPARSE_DENSITY, plan.rows
        if backend.name == "cuda":
            below, most = 0.0, max(plan.rows // 2, 1)  # the plan is of stored rows, and these are float32
            log.info("neighbors: blocks of %d rows become dense on the GPU, which has no sparse product", most)
        chunks = token_rows.blocks(out, kept, groups.rows, most, groups.permute, first, stop, below)
    elif groups.permute is None:
        blocks = row_blocks.rows(out / schema.ACTIVATIONS, plan.rows, backend, first, stop, kept)
        chunks = (block for _, block in blocks)
    else:
        chunks = (backend.xp.asarray(b) for b in read_blocks(out, kept, plan, groups.permute, first, stop))
    lengths = None if groups.lengths is None else groups.lengths[first:stop]
    return gram.accumulate_groups(
        chunks, own, n_groups, len(kept), tiles, plan.tile, backend.xp, lengths=lengths,
        active_above=groups.active_above,
    )  # fmt: skip


def gram_sums(parts: list[gram.Gram]) -> list[gram.Gram]:
    """Grams without their tiles: the column sums, in host memory, small enough to travel."""
    return [
        gram.Gram(
            part.edges, {}, to_host(part.sums), to_host(part.squares), to_host(part.by_length), part.lengths,
            part.n_prompts, part.routes,
        )
        for part in parts
    ]  # fmt: skip


def gram_totals(*sums: list[gram.Gram]) -> list[gram.Gram]:
    """What `gram_sums` made of every share of the prompts, added up by group."""
    return [gram.combine(list(group)) for group in zip(*sums, strict=True)]


def gram_tile(parts: list[gram.Gram], tile: gram.Tile, travels: bool) -> list[Array]:
    """One tile of every group, where the Grams are; in host memory if it `travels` to another worker.

    Parameters
    ----------
    parts : list of Gram, one a group
    tile : (int, int)
        Block row and block column.
    travels : bool
    """
    return [to_host(part.tiles[tile]) if travels else part.tiles[tile] for part in parts]


def tile_task(
    totals: list[gram.Gram], tile: gram.Tile, wanted: Sequence[_Wanted], device: str, *parts: list[Array]
) -> tuple[list[dict[int, Array]], list[Array | None]]:
    """Add up one tile over the workers; return each view's nearest candidates, and its distances where wanted.

    Parameters
    ----------
    totals : list of Gram, one a group
        Over all workers, without tiles.
    tile : (int, int)
    wanted : sequence of _Wanted, one a view
    device : {"cpu", "cuda"}
    *parts : list of array, (row, column), float64; float32 of a GPU
        The tile of every group, over one worker's prompts.
    """
    xp = resolve(device).xp
    grams = gram_sums(totals)
    for group, whole in enumerate(grams):
        held = [part[group] for part in parts]
        summed = held[0] if len(held) == 1 else np.sum(held, axis=0, dtype=np.float64).astype(held[0].dtype)
        whole.tiles[tile] = xp.asarray(summed)
        for name in ("sums", "squares", "by_length"):
            setattr(whole, name, xp.asarray(getattr(whole, name)))
    found: list[dict[int, Array]] = []
    distances: list[Array | None] = []
    for one in wanted:
        view = grams[0] if len(grams) == 1 else gram.weighted(grams, one.weights)
        if one.place is not None:
            view = gram.chosen(view, one.place, xp)
        if 0 in view.tiles[tile].shape:  # none of the view's features are here
            found.append({})
            distances.append(None)
            continue
        largest = float(view.squares.max())
        found.append(on_host(neighbors.candidates(view, *tile, one.metric, one.k - 1, largest, xp)))
        here = to_host(neighbors.tile_distances(view, *tile, one.metric, largest, xp)) if one.dense else None
        distances.append(here)
    return found, distances


def tree_task(paths: Mapping[int, Path], edges: Sequence[int], keys: list[gram.Tile], parts: list[Array]) -> None:
    """Build spanning trees of mutual reachability, by ``min_samples``, from all tiles of distances.

    Parameters
    ----------
    paths : mapping of int to Path
        Where each tree goes, by ``min_samples``.
    edges : sequence of int
        Where blocks of features begin, and after the last of them the number of features.
    keys : list of (int, int)
        Block row and block column of each of `parts`.
    parts : list of array, (row, column), float32, or None
        Tiles of distances; None where a tile has none of the features.
    """
    from gpuclust.compute.spanning_tree import mutual_reachability_tree

    n = edges[-1]
    matrix = np.empty((n, n), dtype=np.float32)
    for (i, j), part in zip(keys, parts, strict=True):
        if part is None:
            continue
        rows, columns = slice(edges[i], edges[i + 1]), slice(edges[j], edges[j + 1])
        matrix[rows, columns] = part
        matrix[columns, rows] = part.T
    np.fill_diagonal(matrix, 0)
    for min_samples, path in paths.items():
        atomic.write_array(path, mutual_reachability_tree(matrix, min_samples))


def exact_neighbors(
    client: Any, workers: list[str], run: Path, features: Array, groups: PromptGroups, views: Sequence[View],
    plan: budget.Plan, progress: Any, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Write the neighbours of every view, and the spanning trees that views want.

    Tiles are accumulated in place on every worker over its share of the shards, and combined one by one: a worker's
    Gram never travels as a whole. Workers share the views of a tile among them.

    Parameters
    ----------
    client : distributed.Client
    workers : list of str
    run : Path
        Folder with the store.
    features : array, (feature,), int
        Features of the pass, in the SAE's numbers, ascending.
    groups : PromptGroups
    views : sequence of View
    plan : budget.Plan
        Made for as many groups and views.
    progress : Progress
    device : {"cpu", "cuda"}

    Returns
    -------
    dict
        ``rows`` (features), ``passes`` over the store, ``tiles``, and ``routes`` of the products.

    Raises
    ------
    InputError
        If a view's metric is not of what the groups add up, or a GPU cannot count so many prompts.
    """
    _refuse_other_metrics(groups, views, device)
    ranges = store.shard_ranges(run / schema.ACTIVATIONS)
    places = [None if view.features is None else np.searchsorted(features, view.features) for view in views]
    sizes = [len(features) if place is None else len(place) for place in places]
    wanted = [
        _Wanted(view.weights, place, view.metric, min(view.k, size), bool(view.trees))
        for view, place, size in zip(views, places, sizes, strict=True)
    ]
    parted = np.array_split(np.arange(len(views)), min(len(workers), len(views)))
    shares = [part for part in np.array_split(np.asarray(ranges), len(workers)) if len(part)]
    passes = gram.plan_passes(len(features), plan.tile, plan.tiles_per_pass * plan.tile**2 * 8)
    found: dict[tuple[int, int], Array] = {}
    dense: dict[tuple[int, gram.Tile], Any] = {}
    routes: dict[str, int] = {}
    with progress.counting("tiles", sum(map(len, passes))) as advance:
        for tiles in passes:
            partial = [
                submit(
                    client, "neighbors", gram_task, run, features, int(share[0][0]), int(share[-1][1]), tiles, plan,
                    groups, device,
                )
                for share in shares  # not tied to a worker: Dask would wait for that one where all have died
            ]  # fmt: skip
            sums = [submit(client, "neighbors", gram_sums, part) for part in partial]
            shared = submit(client, "neighbors", gram_totals, *sums)  # not scattered: Dask can compute it again
            totals = shared.result()
            edges = totals[0].edges
            for total in totals:
                routes |= {name: routes.get(name, 0) + count for name, count in total.routes.items()}
            for tile in tiles:
                travels = len(partial) > 1
                held = [submit(client, "neighbors", gram_tile, part, tile, travels) for part in partial]
                done = [
                    submit(
                        client, "neighbors", tile_task, shared, tile, [wanted[v] for v in part], device, *held,
                        label=f"tile {tile}",
                    )
                    for part in parted
                ]  # fmt: skip
                near = client.gather([submit(client, "neighbors", _candidates, one) for one in done])
                for part, one, several in zip(parted, done, near, strict=True):
                    for at, (v, blocks) in enumerate(zip(part.tolist(), several, strict=True)):
                        if wanted[v].dense:
                            dense[v, tile] = submit(client, "neighbors", _distances, one, at)
                        for block, keys in blocks.items():
                            parts = [found[v, block], keys] if (v, block) in found else [keys]
                            found[v, block] = neighbors.merge(parts, wanted[v].k - 1)
                advance()
            del partial, sums, held, done, shared  # the workers let go of their tiles before the next pass
    for v, (view, place) in enumerate(zip(views, places, strict=True)):
        if view.trees:
            tiles = [tile for one, tile in dense if one == v]
            own = edges if place is None else tuple(np.searchsorted(place, edges).tolist())
            parts = [dense.pop((v, tile)) for tile in tiles]
            submit(client, "neighbors", tree_task, dict(view.trees), own, tiles, parts).result()
        merged = np.concatenate([found.pop((v, block)) for one, block in sorted(found) if one == v])
        indices, far = neighbors.finish(merged, wanted[v].k)
        whole = gram.weighted(totals, view.weights)
        whole = whole if place is None else gram.chosen(whole, place)
        errors = neighbors.errors_of(whole, indices, far, view.metric)
        if errors is None and groups.rows is not None:
            n_prompts = int(np.append(view.weights, 0)[groups.groups].sum())
            if whole.n_prompts > n_prompts:  # else each row is a prompt
                errors = row_errors.standard_errors(far, whole.n_prompts, n_prompts)
        write_neighbors(view.path, features if place is None else features[place], indices, far, view.metric, errors)
    return {"rows": len(features), "passes": len(passes), "tiles": sum(map(len, passes)), "routes": routes}


def _refuse_other_metrics(groups: PromptGroups, views: Sequence[View], device: str) -> None:
    counted = groups.active_above is not None
    for view in views:
        if (view.metric in ACTIVITY) != counted:
            held = "counts of active prompts" if counted else "products of activations"
            raise InputError(
                f"metric={view.metric} for {view.path}, but the groups add up {held}: give it groups of its own, with "
                f"active_above={'None' if counted else 'the threshold'}"
            )
    most = int(max(view.weights.max() for view in views)) * groups.groups.shape[-1]
    if counted and device == "cuda" and most > MOST_PROMPTS:
        raise InputError(
            f"{most:,} prompts are more than the {MOST_PROMPTS:,} that a GPU counts exactly for metric="
            f"{views[0].metric}: use fewer prompts, or --scheduler local, whose counts are exact to 2^53"
        )


def _candidates(done: tuple[Any, Any]) -> Any:
    return done[0]


def _distances(done: tuple[Any, Any], view: int) -> Any:
    return done[1][view]


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
