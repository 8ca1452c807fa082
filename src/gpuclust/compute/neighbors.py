"""Exact nearest neighbours between features, from tiles of the Gram matrix; and a sketch for very many features.

Either way the result is one contract: ``indices`` int32 and ``distances`` float32, both (feature, k), sorted by
distance, ties by feature number, the feature itself forced into column 0 with distance 0. Numbers count the kept
features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpuclust.compute import gram, topk
from gpuclust.compute.association import similarity, standard_errors
from gpuclust.compute.gram import Gram, length_share
from gpuclust.config import ACTIVITY
from gpuclust.errors import ActivationError
from gpuclust.types import AnyArray, Array

# Cosine and correlation distances, and relative squared euclidean ones, below this are rounding of exact duplicates, by
# the precision of the tile
ZERO = {"d": 1e-12, "f": 4e-6}
# Euclidean and dot distances that float32 holds, with room for what is made of them, are at most this, and at least
# its inverse; where the tile is float32 too, its entries are squares of distances
MOST = {"d": 1e30, "f": 1e15}
SLAB_ROWS = 1024
DISTANCE_ROWS = 256


def distances(
    metric: str, tile: AnyArray, n: int, a: dict[str, AnyArray], b: dict[str, AnyArray], largest: float, xp: Any = np
) -> AnyArray:
    """Turn a tile of G into distances.

    - cosine: 1 - G_ij / sqrt(G_ii G_jj); a feature of zeros is at distance 1 from all others
    - correlation: the same of C_ij = G_ij - s_i s_j / n
    - partial_correlation: the same of C_ij less what it owes to the prompts' length (`gram.length_share`)
    - euclidean: sqrt(G_ii + G_jj - 2 G_ij)
    - dot: max_k G_kk - G_ij, which is not negative (Cauchy-Schwarz)
    - of the Gram matrix of the activity, 1 - `association.similarity`: 0 to 2, 1 where features have nothing in common,
      or no more than chance leaves where the metric knows chance

    Parameters
    ----------
    metric : {"cosine", "correlation", "partial_correlation", "euclidean", "dot"} or of `config.ACTIVITY`
    tile : array, (row, column), float64; from a GPU float32, or int32 counts
    n : int
        Prompts.
    a, b : dict of arrays, (row,) and (column,), float64
        ``sums`` and ``squares`` of the rows and of the columns; for partial correlations ``by_length`` too.
    largest : float
        The largest G_kk.
    xp : module
        numpy, or cupy for device arrays.

    Returns
    -------
    array, (row, column), float32, not negative

    Raises
    ------
    ActivationError
        If float32 cannot hold euclidean or dot distances of such values: they would be 0 or infinite.
    """
    refuse_beyond_float32(metric, tile.dtype.char, a, b, largest, xp)
    result = xp.empty(tile.shape, dtype=xp.float32)
    for start in range(0, len(tile), DISTANCE_ROWS):  # temporaries that stay in the cache
        rows = slice(start, start + DISTANCE_ROWS)
        part = {name: values[rows] for name, values in a.items()}
        result[rows] = _distances(metric, tile[rows], n, part, b, largest, xp)
    return result


def refuse_beyond_float32(
    metric: str, precision: str, a: dict[str, AnyArray], b: dict[str, AnyArray], largest: float, xp: Any
) -> None:
    """Refuse values whose distances float32 cannot hold.

    Parameters
    ----------
    metric, a, b, largest, xp
        As of `distances`.
    precision : {"d", "f"}
        Of the tile.

    Raises
    ------
    ActivationError
    """
    if metric == "euclidean":
        sizes = xp.sqrt(xp.concatenate([a["squares"], b["squares"]]))
        most = MOST[precision]
    elif metric == "dot":
        sizes, most = xp.asarray([largest]), MOST["d"]
    else:
        return  # at most 2, whatever the activations
    bad = sizes[(sizes > most) | ((sizes > 0) & (sizes < 1 / most))]
    if len(bad):
        what = "length" if metric == "euclidean" else "squared length"
        raise ActivationError(
            f"metric={metric}: a feature's activations have the {what} {float(bad[0]):g}, outside {1 / most:g} to "
            f"{most:g}: float32 cannot hold its distances. Multiply the activations by a power of two, or set "
            "neighbors.metric=cosine, which does not depend on their scale"
        )


def _distances(
    metric: str, tile: AnyArray, n: int, a: dict[str, AnyArray], b: dict[str, AnyArray], largest: float, xp: Any
) -> AnyArray:
    zero = ZERO["f" if tile.dtype.char == "f" else "d"]
    squares_a, squares_b = a["squares"][:, None], b["squares"][None, :]
    if metric == "dot":
        result = largest - tile
    elif metric == "euclidean":
        gap = squares_a + squares_b - 2 * tile
        result = xp.sqrt(xp.where(gap < zero * (squares_a + squares_b), 0, gap))
    elif metric in ACTIVITY:
        result = 1 - similarity(metric, tile.astype(xp.float64, copy=False), squares_a, squares_b, n, xp)
        result = xp.where(result < zero, 0, result)
    else:
        if metric != "cosine":
            tile = tile - a["sums"][:, None] * (b["sums"][None, :] / n)
            squares_a = xp.maximum(squares_a - a["sums"][:, None] ** 2 / n, 0)
            squares_b = xp.maximum(squares_b - b["sums"][None, :] ** 2 / n, 0)
        if metric == "partial_correlation":
            tile = tile - a["by_length"][:, None] * b["by_length"][None, :]
            squares_a = left_of(squares_a, a["by_length"][:, None], zero, xp)
            squares_b = left_of(squares_b, b["by_length"][None, :], zero, xp)
        scale = xp.sqrt(squares_a * squares_b)
        result = 1 - xp.where(scale > 0, tile / xp.where(scale > 0, scale, 1), 0)
        result = xp.where(result < zero, 0, result)
    return (xp.maximum(result, 0) + 0.0).astype(xp.float32)


def left_of(squares: AnyArray, by_length: AnyArray, zero: float, xp: Any = np) -> AnyArray:
    """Return what of centred squares is left without the part along the length; 0 where that is rounding.

    Parameters
    ----------
    squares, by_length : array, float64
        `gram.length_share` is the second.
    zero : float
        What is rounding, relative.
    xp : module
        As in `distances`.
    """
    left = squares - by_length**2
    return xp.where(left > zero * squares, left, 0)


def tile_distances(gram: Gram, i: int, j: int, metric: str, largest: float, xp: Any = np) -> AnyArray:
    """Return the distances of one tile that `gram` holds: (block i, block j), float32.

    Parameters
    ----------
    gram : Gram
    i, j : int
        Block row and block column of the tile.
    metric, largest, xp
        As in `distances`.
    """
    sides = []
    values = {"sums": gram.sums, "squares": gram.squares}
    if metric == "partial_correlation":
        values["by_length"] = length_share(gram, xp)
    for index in (i, j):
        block = gram.block(index)
        sides.append({name: of_all[block] for name, of_all in values.items()})
    return distances(metric, gram.tiles[i, j], gram.n_prompts, sides[0], sides[1], largest, xp)


def all_distances(gram: Gram, metric: str) -> Array:
    """Return the distances of all pairs of a Gram that holds all its tiles: (feature, feature), float32, host.

    Parameters
    ----------
    gram : Gram
    metric : str
        As in `distances`.
    """
    size, largest = gram.edges[-1], float(gram.squares.max())
    whole = np.empty((size, size), np.float32)
    for i, j in gram.tiles:
        part = tile_distances(gram, i, j, metric, largest)
        whole[gram.block(i), gram.block(j)] = part
        whole[gram.block(j), gram.block(i)] = part.T
    np.fill_diagonal(whole, 0)
    return whole


def candidates(gram: Gram, i: int, j: int, metric: str, k: int, largest: float, xp: Any = np) -> dict[int, AnyArray]:
    """Return the k nearest of each feature within one tile, itself left out.

    Parameters
    ----------
    gram, i, j, metric, largest, xp
        As in `tile_distances`.
    k : int
        Neighbours, the feature itself not counted.

    Returns
    -------
    dict of int to array, (block, k), uint64
        Packed keys (see `topk`) for block i, and for block j where it is another one.
    """
    distance = tile_distances(gram, i, j, metric, largest, xp)
    found = {i: _nearest(distance, gram.block(i).start, gram.block(j).start, k, xp)}
    if i != j:
        found[j] = _nearest(distance.T, gram.block(j).start, gram.block(i).start, k, xp)
    return found


def _nearest(distance: AnyArray, first_row: int, first_column: int, k: int, xp: Any) -> AnyArray:
    n_rows, n_columns = distance.shape
    column = xp.arange(first_column, first_column + n_columns)[None, :]
    best = xp.empty((n_rows, k), dtype=xp.uint64)
    for start in range(0, n_rows, SLAB_ROWS):
        part = distance[start : start + SLAB_ROWS]
        keys = topk.pack(part, column, xp)
        row = xp.arange(first_row + start, first_row + start + len(part))[:, None]
        keys = xp.where(row == column, topk.NOTHING, keys)
        best[start : start + len(part)] = topk.smallest(keys, k, xp)
    return best


def merge(parts: Iterable[AnyArray], k: int, xp: Any = np) -> AnyArray:
    """Merge candidates of the same features from several tiles: (feature, k) keys.

    Parameters
    ----------
    parts : iterable of array, (feature, candidate), uint64
        Packed keys, as from `candidates`.
    k, xp
        As in `candidates`.
    """
    return topk.smallest(xp.concatenate(list(parts), axis=1), k, xp)


def finish(keys: AnyArray, k: int, xp: Any = np) -> tuple[AnyArray, AnyArray]:
    """Turn merged keys of all features into the contract.

    Parameters
    ----------
    keys : array, (feature, k - 1), uint64, without the feature itself
    k : int
        Neighbours, the feature itself included.
    xp : module
        As in `distances`.

    Returns
    -------
    indices : array, (feature, k), int32
    distances : array, (feature, k), float32
    """
    distance, index = topk.unpack(keys[:, : k - 1], xp)
    itself = xp.arange(len(keys))[:, None]
    indices = xp.concatenate([itself, index], axis=1).astype(xp.int32)
    return indices, xp.concatenate([xp.zeros((len(keys), 1), xp.float32), distance], axis=1)


def exact(gram: Gram, k: int, metric: str, xp: Any = np) -> tuple[AnyArray, AnyArray]:
    """Return the neighbours from a Gram that holds all its tiles.

    Parameters
    ----------
    gram : Gram
    k : int
        Neighbours, the feature itself included; fewer than the features.
    metric : str
        As in `distances`.
    xp : module
        As in `distances`.
    """
    largest = float(gram.squares.max())
    per_block: dict[int, list[AnyArray]] = {}
    for i, j in gram.tiles:
        for block, keys in candidates(gram, i, j, metric, k - 1, largest, xp).items():
            per_block.setdefault(block, []).append(keys)
    keys = xp.concatenate([merge(per_block[block], k - 1, xp) for block in sorted(per_block)])
    return finish(keys, k, xp)


def errors_of(gram: Gram, indices: Array, distances: Array, metric: str) -> Array | None:
    """Return the standard errors of the similarities of neighbours, where they follow from counts; else None.

    Parameters
    ----------
    gram : Gram
        Of the activity; its tiles are not read.
    indices, distances : array, (feature, k), int32 and float32, host
    metric : str
        As in `distances`.

    Returns
    -------
    array, (feature, k), float32, host, or None
    """
    if metric not in ACTIVITY:
        return None
    active, found = gram.sums, np.empty(distances.shape, np.float32)
    for start in range(0, len(indices), SLAB_ROWS):
        rows = slice(start, start + SLAB_ROWS)
        near = 1 - distances[rows].astype(np.float64)
        found[rows] = standard_errors(metric, near, active[rows, None], active[indices[rows]], gram.n_prompts)
    return found


def of_vectors(vectors: AnyArray, k: int, metric: str, tile: int) -> tuple[AnyArray, AnyArray]:
    """Return the neighbours of vectors in hand, with one tile of their Gram matrix in memory at a time.

    Parameters
    ----------
    vectors : array, (feature, dimension), host
    k : int
        Neighbours, the feature itself included; fewer than the features.
    metric : {"cosine", "correlation", "euclidean", "dot"}
    tile : int
        Features of a tile: ``tile² * 24`` bytes are held, never a matrix of all pairs.

    Returns
    -------
    indices, distances
        As `finish`.
    """
    n_blocks = -(-len(vectors) // tile)
    found: dict[int, AnyArray] = {}
    for i in range(n_blocks):
        for j in range(i, n_blocks):
            part = gram.accumulate([vectors.T], len(vectors), [(i, j)], tile, sparse=False)
            for block, keys in candidates(part, i, j, metric, k - 1, float(part.squares.max())).items():
                found[block] = merge([found[block], keys] if block in found else [keys], k - 1)
    return finish(np.concatenate([found[block] for block in sorted(found)]), k)


# ---------------------------------------------------------------- sketch


def sketch_rows(first: int, stop: int, size: int, seed: int) -> Array:
    """Return rows of the random projection, (prompt, size), float64, of variance 1/size.

    A row depends on the prompt's number and the seed only, so the sketch does not depend on how prompts are cut.

    Parameters
    ----------
    first, stop : int
        Numbers of the prompts.
    size : int
        Columns of the projection.
    seed : int
    """
    rows: list[Any] = [
        np.random.Generator(np.random.Philox(key=[seed, p])).standard_normal(size) for p in range(first, stop)
    ]
    stacked: Array = np.stack(rows) / np.sqrt(size)
    return stacked


def sketch(chunks: Iterable[tuple[int, AnyArray]], n_features: int, size: int, seed: int) -> Array:
    """Project the prompt axis at random: Y = AᵀR, (feature, size), float64.

    Inner products of rows of Y estimate those of A's columns with a standard error of about 1/sqrt(size) of the
    product of their norms (Johnson and Lindenstrauss, 1984). Y adds up over prompts.

    Parameters
    ----------
    chunks : iterable of (first prompt, array (prompt, feature))
    n_features : int
    size, seed : int
        As in `sketch_rows`.
    """
    projected = np.zeros((n_features, size))
    for first, chunk in chunks:
        projected += chunk.astype(np.float64).T @ sketch_rows(first, first + len(chunk), size, seed)
    return projected
