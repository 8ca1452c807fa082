"""Neighbours from Gram tiles on Dask: accumulated in place on every worker, combined tile by tile.

G adds up over prompts, so one pass over the store serves any number of groups of prompts: halves, sources, lengths,
prefixes, blocks of a bootstrap. Each group has its tiles; a view is a weighted sum of groups between some of the
features, and what is computed per tile (neighbours, distances) is computed for every view. A run has three views, a
sweep as many as its settings need; how many tiles are held at a time follows from the memory plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.compute import gram, neighbors
from gpuclust.engine.failures import submit
from gpuclust.engine.views import Found, PromptGroups, View, read
from gpuclust.hardware import budget
from gpuclust.hardware.backend import on_host, resolve, to_host
from gpuclust.storage import atomic, store
from gpuclust.types import Array


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
    rows = read(out, kept, first, stop, plan, groups, backend)
    return gram.accumulate_groups(
        rows.blocks, rows.groups, groups.n_groups, len(kept), tiles, plan.tile, backend.xp, lengths=rows.lengths,
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


def by_tiles(
    client: Any, workers: list[str], run: Path, features: Array, groups: PromptGroups, views: Sequence[View],
    plan: budget.Plan, progress: Any, device: str,
) -> Found:  # fmt: skip
    """Find the neighbours of every view, and write the spanning trees that views want.

    Tiles are accumulated in place on every worker over its share of the shards, and combined one by one: a worker's
    Gram never travels as a whole. Workers share the views of a tile among them.

    Parameters
    ----------
    client, workers, run, features, groups, views, plan, progress, device
        As of `exact_pass.exact_neighbors`.
    """
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
    keys = []
    for v, (view, place) in enumerate(zip(views, places, strict=True)):
        if view.trees:
            tiles = [tile for one, tile in dense if one == v]
            own = edges if place is None else tuple(np.searchsorted(place, edges).tolist())
            parts = [dense.pop((v, tile)) for tile in tiles]
            submit(client, "neighbors", tree_task, dict(view.trees), own, tiles, parts).result()
        keys.append(np.concatenate([found.pop((v, block)) for one, block in sorted(found) if one == v]))
    return Found(keys, totals, {"passes": len(passes), "tiles": sum(map(len, passes)), "routes": routes})


def _candidates(done: tuple[Any, Any]) -> Any:
    return done[0]


def _distances(done: tuple[Any, Any], view: int) -> Any:
    return done[1][view]
