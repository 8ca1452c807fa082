"""Neighbours from Gram tiles on Dask: accumulated in place on every worker, combined tile by tile.

G adds up over prompts, so one pass over the store serves any number of groups of prompts: halves, sources, lengths,
prefixes, blocks of a bootstrap. Each group has its tiles; a view is a weighted sum of groups, and what is computed per
tile (neighbours, distances) is computed for every view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.compute import gram, neighbors
from gpuclust.compute.halves import half_of
from gpuclust.config import Config
from gpuclust.hardware import budget
from gpuclust.hardware.backend import on_host, resolve, to_host
from gpuclust.hardware.device import guarded
from gpuclust.stage_table import view_file
from gpuclust.storage import row_blocks, store

Array = np.ndarray[Any, Any]

WHOLE, HALVES, NULL = schema.WHOLE, schema.HALVES, schema.NULL


@dataclass(frozen=True, eq=False)
class PromptGroups:
    """Groups of prompts, and the weighted sums of groups (views) that neighbours are wanted for.

    Attributes
    ----------
    groups : array, (prompt,), int
        Group of every prompt, from 0; -1 none.
    views : dict of str to array, (group,)
        Weight of every group in each view: all ones the whole, ones and zeros some groups, whole numbers a bootstrap.
    permute : int, optional
        Seed: permute each feature's activations over the prompts of each block (`permuted`).
    """

    groups: Array
    views: dict[str, Array]
    permute: int | None = None

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(next(iter(self.views.values())))


def halves(n_prompts: int, seed: int) -> PromptGroups:
    """The two halves of the prompts (`gpuclust.compute.halves`), and the views `whole`, `half0` and `half1`."""
    groups = half_of(n_prompts, seed)
    return PromptGroups(groups, {WHOLE: np.array([1, 1]), HALVES[0]: np.array([1, 0]), HALVES[1]: np.array([0, 1])})


def permuted(block: Array, first: int, seed: int) -> Array:
    """Permute each feature's activations over the prompts of a block; the same for the same first prompt and seed.

    Whatever each feature does by itself stays as it is, and what features do together goes.
    """
    return np.random.default_rng([seed, first]).permuted(block, axis=0)


def gram_task(
    out: Path, kept: Array, first: int, stop: int, tiles: list[gram.Tile], plan: budget.Plan, groups: PromptGroups,
    device: str,
) -> list[gram.Gram]:  # fmt: skip
    """Accumulate the tiles of one pass over a range of prompts, a Gram a group."""
    backend = resolve(device)
    own, n_groups = groups.groups[first:stop], groups.n_groups
    if groups.permute is None:
        blocks = row_blocks.rows(out / schema.ACTIVATIONS, plan.rows, backend, first, stop, kept)
        chunks = (block for _, block in blocks)
    else:
        chunks = (backend.xp.asarray(b) for b in read_blocks(out, kept, plan, groups.permute, first, stop))
    return gram.accumulate_groups(chunks, own, n_groups, len(kept), tiles, plan.tile, backend.xp)


def read_blocks(
    out: Path, kept: Array, plan: budget.Plan, permute: int | None = None, first: int = 0, stop: int | None = None
) -> Iterator[Array]:
    """Yield blocks of the kept features of some prompts, at most ``plan.rows`` of them at a time.

    With `permute`, features are permuted within blocks of `memory.PERMUTED_ROWS` prompts counted from the very first,
    so that neither memory nor the share of a worker changes what comes out.
    """
    path, size = out / schema.ACTIVATIONS, budget.PERMUTED_ROWS
    if permute is None:
        yield from (block[:, kept] for _, block in store.read_rows(path, plan.rows, first, stop))
        return
    n_prompts = store.open_array(path).shape[0]
    stop = n_prompts if stop is None else stop
    for start, block in store.read_rows(path, size, first - first % size, min(n_prompts, -(-stop // size) * size)):
        mixed = permuted(block[:, kept], start, permute)[max(first - start, 0) : stop - start]
        yield from (mixed[at : at + plan.rows] for at in range(0, len(mixed), plan.rows))


def gram_sums(parts: list[gram.Gram]) -> list[gram.Gram]:
    """Grams without their tiles: the column sums, in host memory, small enough to travel."""
    return [gram.Gram(part.n_features, part.tile, {}, to_host(part.sums), to_host(part.squares), part.n_prompts,
                      part.routes) for part in parts]  # fmt: skip


def gram_tile(parts: list[gram.Gram], tile: gram.Tile, travels: bool) -> list[Array]:
    """One tile of every group, where the Grams are; in host memory if it `travels` to another worker."""
    return [to_host(part.tiles[tile]) if travels else part.tiles[tile] for part in parts]


def tile_task(
    totals: list[gram.Gram], tile: gram.Tile, weights: list[Array], metric: str, k: int, dense: bool, device: str,
    *parts: list[Array],
) -> tuple[list[dict[int, Array]], list[Array]]:  # fmt: skip
    """Add up one tile over the workers; return each view's nearest candidates and, if `dense`, its distances."""
    xp = resolve(device).xp
    grams = gram_sums(totals)
    for group, whole in enumerate(grams):
        held = [part[group] for part in parts]
        summed = held[0] if len(held) == 1 else np.sum(held, axis=0, dtype=np.float64).astype(held[0].dtype)
        whole.tiles[tile] = xp.asarray(summed)
        whole.sums, whole.squares = xp.asarray(whole.sums), xp.asarray(whole.squares)
    found, distances = [], []
    for weight in weights:
        view = grams[0] if len(grams) == 1 else gram.weighted(grams, weight)
        largest = float(view.squares.max())
        found.append(on_host(neighbors.candidates(view, *tile, metric, k, largest, xp)))
        if dense:
            distances.append(to_host(neighbors.tile_distances(view, *tile, metric, largest, xp)))
    return found, distances


def tree_task(path: Path, n: int, tile: int, min_samples: int, keys: list[gram.Tile], parts: list[Array]) -> None:
    """Build the spanning tree of mutual reachability from all tiles of distances."""
    from gpuclust.compute.spanning_tree import mutual_reachability_tree

    matrix = np.empty((n, n), dtype=np.float32)
    for (i, j), part in zip(keys, parts, strict=True):
        rows, columns = slice(i * tile, i * tile + part.shape[0]), slice(j * tile, j * tile + part.shape[1])
        matrix[rows, columns] = part
        matrix[columns, rows] = part.T
    np.fill_diagonal(matrix, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, mutual_reachability_tree(matrix, min_samples))


def exact_neighbors(
    client: Any, workers: list[str], out: Path, kept: Array, config: Config, plan: budget.Plan, progress: Any,
    groups: PromptGroups | None = None, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Neighbours from Gram tiles, accumulated in place on every worker over its share of the shards.

    Tiles are combined one by one: a worker's Gram never travels as a whole. Without UMAP the tiles' distances also make
    the spanning tree. With `groups`, the same pass gives the neighbours (and trees) of every view; the view `whole`
    goes where a run has its neighbours, the others into the folder of views (`view_path`). `plan` must have been made
    for their numbers.
    """
    ranges = store.shard_ranges(out / schema.ACTIVATIONS)
    if groups is None:
        groups = PromptGroups(np.zeros(ranges[-1][1], dtype=np.int64), {WHOLE: np.ones(1)})
    views = list(groups.views)
    weights = [groups.views[name] for name in views]
    shares = [part for part in np.array_split(np.asarray(ranges), len(workers)) if len(part)]
    passes = gram.plan_passes(len(kept), plan.tile, plan.tiles_per_pass * plan.tile**2 * 8)
    k = min(config.n_neighbors, len(kept))
    dense = not config.umap.enabled
    found: dict[tuple[str, int], Array] = {}
    dense_parts: dict[tuple[str, gram.Tile], Any] = {}
    routes: dict[str, int] = {}
    with progress.counting("tiles", sum(map(len, passes))) as advance:
        for tiles in passes:
            partial = [
                client.submit(
                    guarded, "neighbors", gram_task, out, kept, int(share[0][0]), int(share[-1][1]), tiles, plan,
                    groups, device, workers=[worker], allow_other_workers=True, pure=False,
                )
                for worker, share in zip(workers, shares, strict=False)
            ]  # fmt: skip
            sums = client.gather([client.submit(guarded, "neighbors", gram_sums, part, pure=False) for part in partial])
            totals = [gram.combine(list(group)) for group in zip(*sums, strict=True)]
            for total in totals:
                routes |= {name: routes.get(name, 0) + count for name, count in total.routes.items()}
            shared = client.scatter([totals], broadcast=True, hash=False)[0]
            for tile in tiles:
                travels = len(partial) > 1
                held = [client.submit(guarded, "neighbors", gram_tile, part, tile, travels, pure=False)
                        for part in partial]  # fmt: skip
                done = client.submit(
                    guarded, "neighbors", tile_task, shared, tile, weights, config.metric, k - 1, dense, device, *held,
                    pure=False,
                )  # fmt: skip
                candidates = client.submit(_candidates, done, pure=False).result()
                if dense:
                    for index, view in enumerate(views):
                        dense_parts[view, tile] = client.submit(_distances, done, index, pure=False)
                for view, blocks in zip(views, candidates, strict=True):
                    for block, keys in blocks.items():
                        parts = [found[view, block], keys] if (view, block) in found else [keys]
                        found[view, block] = neighbors.merge(parts, k - 1)
                advance()
            del partial, held, done, shared  # the workers let go of their tiles before the next pass
    for view in views:
        if dense:
            tiles = [tile for name, tile in dense_parts if name == view]
            client.submit(
                guarded, "neighbors", tree_task, view_path(out, view, schema.SPANNING_TREE), len(kept), plan.tile,
                config.hdbscan.min_samples, tiles, [dense_parts.pop((view, tile)) for tile in tiles], pure=False,
            ).result()  # fmt: skip
        merged = np.concatenate([found[view, block] for name, block in sorted(found) if name == view])
        indices, far = neighbors.finish(merged, k)
        write_neighbors(view_path(out, view, schema.NEIGHBORS), kept, indices, far, config.metric)
    return {"rows": len(kept), "passes": len(passes), "tiles": sum(map(len, passes)), "routes": routes}


def _candidates(done: tuple[Any, Any]) -> Any:
    return done[0]


def _distances(done: tuple[Any, Any], view: int) -> Any:
    return done[1][view]


def view_path(out: Path, view: str, name: str) -> Path:
    """Where a view's file lies: the run's own for the whole, else in the folder of views."""
    return out / view_file(view, name)


def write_neighbors(path: Path, kept: Array, indices: Array, distances: Array, metric: str) -> None:
    """Store the neighbours with the SAE's own feature numbers."""
    variables = {
        "indices": (("feature", "k"), kept[indices].astype(np.int64)),
        "distances": (("feature", "k"), distances),
        "feature": (("feature",), kept.astype(np.int64)),
        "k": (("k",), np.arange(indices.shape[1])),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_dataset(path, variables, {"metric": metric})


def read_neighbors(out: Path, view: str = WHOLE) -> tuple[Array, Array, Array]:
    """Return kept feature numbers, indices that count the kept features, and distances."""
    import zarr

    group: Any = zarr.open_group(view_path(out, view, schema.NEIGHBORS), mode="r")
    kept = group["feature"][:]
    return kept, np.searchsorted(kept, group["indices"][:]).astype(np.int32), group["distances"][:]
