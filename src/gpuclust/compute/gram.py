"""Gram matrix G = AᵀA of the kept features, streamed over prompts into symmetric tiles.

G adds up chunk by chunk, so its cost in memory does not depend on the number of prompts. Only tiles (i, j) with i <= j
are held; `plan_passes` cuts them into passes over the store that fit a budget.

Sums are float64 on the host. A product of two float16 numbers is exact in float64, and so is the sum as long as all
products of a pair lie within 53 bits of each other, which is the ordinary case: the order of the prompts and the way
they are cut then do not change a bit of G. Where it is not, they change G by about 1e-16 relative.

On a GPU tiles are float32 and column sums float64. A chunk's product is made by one GEMM with float32 accumulation
(float16 inputs on tensor cores, whose products are exact in float32; float32 inputs without TF32) and added once. With
chunks of p prompts, c of them, and u = 2^-24, ``|error of G_ij| <= (2 p + c + 1) u Σ|a_i a_j|``: 2 because tensor cores
may truncate instead of round. For 1,000,000 prompts in chunks of 512 that is 1.8e-4 of Σ|a_i a_j|, and the most by
which a cosine distance can be off; rounding errors that do not all point one way leave a few 1e-6.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuclust.compute import sparse_blocks
from gpuclust.compute.association import activity
from gpuclust.errors import InputError
from gpuclust.types import AnyArray, Array

CUDA_R_32F, CUDA_R_16F = 0, 2  # cudaDataType

Tile = tuple[int, int]

log = logging.getLogger("gpuclust")

GEMM_ROWS = 512  # prompts of one product on a GPU
EXACT_ROWS = 1 << 20  # of 0 and 1: float32 counts up to 2^24
EQUAL = 1e-12  # relative: prompts whose lengths spread less are equally long, but for rounding
SUMS = 1 << 22  # elements of a chunk that are in float64 at a time on a GPU
SPARSE_DENSITY = 0.1  # below this share of non-zero entries the sparse product is faster (benchmarks/gram.py)


@dataclass
class Gram:
    """Tiles of G over some prompts, and the column sums that the metrics need; of values, or of the 0/1 activity.

    Attributes
    ----------
    edges : tuple of int
        Where blocks of features begin, and after the last of them the number of features.
    tiles : dict of (int, int) to array, (block, block), float64; on a GPU float32, or int32 of the activity
        Block row and block column of each tile that is held, row <= column.
    sums, squares : array, (feature,), float64
        Σ a and Σ a² over prompts.
    by_length : array, (feature,), float64
        Σ l a, l being the prompts' lengths; 0 where none are given.
    lengths : array, (2,), float64, host
        Σ l and Σ l².
    n_prompts : int
    """

    edges: tuple[int, ...]
    tiles: dict[Tile, AnyArray]
    sums: AnyArray
    squares: AnyArray
    by_length: AnyArray
    lengths: Array
    n_prompts: int = 0
    routes: dict[str, int] = field(default_factory=dict)

    def block(self, index: int) -> slice:
        """Features of a block row or column."""
        return slice(self.edges[index], self.edges[index + 1])

    def dense(self) -> AnyArray:
        """Return the whole symmetric matrix, (feature, feature); all tiles must be held."""
        whole = np.empty((self.edges[-1], self.edges[-1]))
        for (i, j), tile in self.tiles.items():
            whole[self.block(i), self.block(j)] = tile
            whole[self.block(j), self.block(i)] = tile.T
        return whole


def length_share(gram: Gram, xp: Any = np) -> AnyArray:
    """Each feature's part along the prompts' length, (feature,), float64.

    The product of two features' parts is what their covariance, as a sum over prompts, owes to the length: their
    partial covariance given the length (Fisher 1924) is what is left without it. All 0 where prompts are equally long.

    Parameters
    ----------
    gram : Gram
    xp : module
        As in `accumulate`.
    """
    total, squares = gram.lengths.tolist()
    spread = squares - total**2 / max(gram.n_prompts, 1)
    if spread <= EQUAL * squares:
        return xp.zeros_like(gram.sums)
    return (gram.by_length - gram.sums * (total / gram.n_prompts)) / np.sqrt(spread)


def plan_passes(n_features: int, tile: int, budget: int) -> list[list[Tile]]:
    """Cut the upper triangle into passes whose tiles fit `budget` bytes (at least one tile a pass).

    Parameters
    ----------
    n_features : int
    tile : int
        Features of a tile, both ways.
    budget : int
        Bytes; an element has 8.

    Examples
    --------
    >>> plan_passes(6, tile=3, budget=2 * 3 * 3 * 8)
    [[(0, 0), (0, 1)], [(1, 1)]]
    """
    blocks = -(-n_features // tile)
    tiles = [(i, j) for i in range(blocks) for j in range(i, blocks)]
    per_pass = max(1, budget // (tile * tile * 8))
    return [tiles[start : start + per_pass] for start in range(0, len(tiles), per_pass)]


def accumulate(
    chunks: Iterable[AnyArray],
    n_features: int,
    tiles: Sequence[Tile],
    tile: int,
    xp: Any = np,
    sparse: bool | None = None,
    lengths: Array | None = None,
    active_above: float | None = None,
) -> Gram:
    """Add chunks of prompts into tiles, in place.

    Parameters
    ----------
    chunks : iterable of array, (prompt, feature), float16 or float32, or scipy.sparse.csr_array of float32
        The kept features only. Rows may be windows or tokens: all that is said of prompts here is then of these.
    n_features, tile : int
    tiles : sequence of (int, int)
        The tiles of this pass.
    xp : module
        numpy, or cupy for device arrays.
    sparse : bool, optional
        Force the sparse or the dense product; by default each chunk's measured density decides.
    lengths : array, (prompt,), int, optional
        Lengths of the prompts of all chunks, for partial correlations.
    active_above : float, optional
        Add 1 for an activation whose size is above it and 0 else (`association.activity`), so that G counts prompts.

    Returns
    -------
    Gram

    Notes
    -----
    Peak memory: the tiles, one more tile, and a chunk in float64.
    """
    gram, first = _empty(n_features, tiles, tile, xp, active_above is not None), 0
    for chunk in chunks:
        n = chunk.shape[0]
        _add(gram, chunk, xp, sparse, None if lengths is None else lengths[first : first + n], active_above)
        first += n
    return gram


def accumulate_groups(
    chunks: Iterable[AnyArray],
    groups: Array,
    n_groups: int,
    n_features: int,
    tiles: Sequence[Tile],
    tile: int,
    xp: Any = np,
    sparse: bool | None = None,
    lengths: Array | None = None,
    active_above: float | None = None,
) -> list[Gram]:
    """Add chunks of prompts into one Gram per group of prompts, in one pass.

    G adds up over prompts: the Gram of any union of groups is the sum of theirs (`weighted`).

    Parameters
    ----------
    chunks, n_features, tiles, tile, xp, sparse, lengths, active_above
        As in `accumulate`; the chunks follow one another as `groups` does.
    groups : array, (prompt,) or (layer, prompt), int
        Group of every prompt of the chunks, from 0; -1 leaves the prompt out. Groups that share prompts lie in
        different layers.
    n_groups : int

    Returns
    -------
    list of Gram
        One a group, empty groups included.

    Raises
    ------
    InputError
        If `groups` names a group that is not there, or is not as long as the chunks.

    Notes
    -----
    Peak memory: the tiles of every group, one more tile, and a chunk in float64. The work is that of one Gram.

    Examples
    --------
    >>> chunk = np.array([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]])
    >>> halves = accumulate_groups([chunk], np.array([0, 1, 0]), 2, 2, [(0, 0)], tile=2)
    >>> weighted(halves, [1, 1]).dense().tolist()
    [[5.0, 2.0], [2.0, 10.0]]
    """
    layers = np.atleast_2d(groups)
    if layers.size and (layers.min() < -1 or layers.max() >= n_groups):
        raise InputError(f"groups run from {groups.min()} to {groups.max()}; -1 to {n_groups - 1} is expected")
    grams = [_empty(n_features, tiles, tile, xp, active_above is not None) for _ in range(n_groups)]
    first = 0
    for chunk in chunks:
        n = chunk.shape[0]
        own = layers[:, first : first + n]
        long = None if lengths is None else lengths[first : first + n]
        first += n
        if own.shape[1] < n:
            break
        for codes in own:
            for group in np.unique(codes[codes >= 0]):
                inside = codes == group
                where = np.flatnonzero(inside)
                index = where if sparse_blocks.is_sparse(chunk) else xp.asarray(where)
                part = chunk if inside.all() else chunk[index]
                _add(grams[group], part, xp, sparse, None if long is None else long[inside], active_above)
    if first != layers.shape[1]:
        raise InputError(f"groups are given for {layers.shape[1]} prompts, but the chunks hold at least {first}")
    return grams


def _empty(n_features: int, tiles: Sequence[Tile], tile: int, xp: Any, counts: bool) -> Gram:
    edges = (*range(0, n_features, tile), n_features)
    gram = Gram(edges, {}, xp.zeros(n_features), xp.zeros(n_features), xp.zeros(n_features), np.zeros(2))
    for i, j in tiles:
        shape = tuple(s.stop - s.start for s in (gram.block(i), gram.block(j)))
        gram.tiles[i, j] = xp.zeros(shape, xp.float64 if xp is np else xp.int32 if counts else xp.float32)
    return gram


def _add(
    gram: Gram, chunk: AnyArray, xp: Any, sparse: bool | None, lengths: Array | None, active_above: float | None
) -> None:
    """Add one chunk in place."""
    rows, route = sparse_blocks.is_sparse(chunk), "dense"
    if active_above is not None:
        chunk = sparse_blocks.active_rows(chunk, active_above) if rows else activity(chunk, active_above, xp)
    few = SPARSE_DENSITY * math.prod(chunk.shape)
    if sparse or (sparse is None and xp is np and sparse_blocks.entries(chunk) < few):
        route = "sparse"
    if route not in gram.routes:
        log.debug("gram: %s product for a chunk of %d prompts", route, chunk.shape[0])
    gram.routes[route] = gram.routes.get(route, 0) + 1
    gram.n_prompts += chunk.shape[0]
    if route == "sparse":
        sparse_blocks.add(gram, chunk, lengths)
        return
    if rows:
        chunk = xp.asarray(chunk.toarray())
    wide = chunk.astype(np.float64, copy=False) if xp is np else xp.ascontiguousarray(chunk)
    _add_sums(gram, wide, xp, lengths)
    for (i, j), held in gram.tiles.items():
        add_product(held, wide[:, gram.block(i)], wide[:, gram.block(j)], xp)


def add_product(held: AnyArray, a: AnyArray, b: AnyArray, xp: Any = np) -> None:
    """Add AᵀB to a tile in place: float64 on the host, on a GPU with float32 accumulation, `GEMM_ROWS` rows at a time.

    Tensor cores truncate as they add, so that what a product holds is too small by a share that grows with its rows:
    measured on an H200, the cosine distance of exact copies is 1.8e-6 at 512 rows and 8.1e-6 at 2,048. Counts are
    whole numbers: a product of `EXACT_ROWS` rows of 0 and 1 is exact in float32, and added to int32.

    Parameters
    ----------
    held : array, (row, column), float64 on the host; on a GPU float32, or int32 of counts; C-contiguous
    a, b : array, (prompt, row) and (prompt, column)
        float64 on the host, float16 or float32 on a GPU, where columns must be contiguous.
    xp : module
        As in `accumulate`.
    """
    if xp is np:
        held += a.T @ b
        return
    if held.dtype == xp.int32:
        for start in range(0, len(a), EXACT_ROWS):
            part = xp.zeros(held.shape, xp.float32)
            _add_on_gpu(part, a[start : start + EXACT_ROWS], b[start : start + EXACT_ROWS])
            held += part.astype(xp.int32)
        return
    for start in range(0, len(a), GEMM_ROWS):
        _add_on_gpu(held, a[start : start + GEMM_ROWS], b[start : start + GEMM_ROWS])


def _add_on_gpu(held: AnyArray, left: AnyArray, right: AnyArray) -> None:
    """Add one product to a float32 tile."""
    from cupy.cuda import cublas, device

    # cuBLAS counts columns first: what is AᵀB here, row by row, is BᵀA there. TF32 needs a compute type of its own.
    one = np.ones((), np.float32)
    kind = {"e": CUDA_R_16F, "f": CUDA_R_32F}[left.dtype.char]
    compute = cublas.CUBLAS_COMPUTE_32F if kind == CUDA_R_16F else cublas.CUBLAS_COMPUTE_32F_PEDANTIC
    cublas.gemmEx(
        device.get_cublas_handle(), cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_T, right.shape[1], left.shape[1], len(left),
        one.ctypes.data, right.data.ptr, kind, right.strides[0] // right.itemsize, left.data.ptr, kind,
        left.strides[0] // left.itemsize, one.ctypes.data, held.data.ptr, CUDA_R_32F, held.shape[1], compute,
        cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip


def _add_sums(gram: Gram, wide: AnyArray, xp: Any, lengths: Array | None) -> None:
    """Add a chunk's column sums, in float64; on a GPU, where the chunk is not, a slab of rows at a time."""
    long = None if lengths is None else lengths.astype(np.float64)
    if long is not None:
        gram.lengths += [long.sum(), long @ long]
    rows = len(wide) if xp is np else max(1, SUMS // max(wide.shape[1], 1))
    for start in range(0, len(wide), max(rows, 1)):
        slab = wide[start : start + rows].astype(xp.float64, copy=False)
        gram.sums += slab.sum(axis=0)
        if long is not None:
            gram.by_length += xp.asarray(long[start : start + rows]) @ slab
        gram.squares += np.einsum("pf,pf->f", slab, slab) if xp is np else (slab * slab).sum(axis=0)


def combine(grams: Sequence[Gram]) -> Gram:
    """Add Grams of different prompts over the same tiles (the first is added to in place)."""
    first, *rest = grams
    for other in rest:
        for key, held in first.tiles.items():
            held += other.tiles[key]
        first.sums += other.sums
        first.squares += other.squares
        first.by_length += other.by_length
        first.lengths += other.lengths
        first.n_prompts += other.n_prompts
        for route, count in other.routes.items():
            first.routes[route] = first.routes.get(route, 0) + count
    return first


def weighted(grams: Sequence[Gram], weights: Sequence[float] | AnyArray) -> Gram:
    """Return Σ w G over groups of prompts, as a new Gram; whole-number weights stay exact.

    Weights of 0 and 1 give the Gram of a union of groups, other whole numbers that of a bootstrap over groups.

    Parameters
    ----------
    grams : sequence of Gram
        Over the same tiles.
    weights : sequence of float
        One a Gram; not all 0.
    """
    used = [(gram, weight) for gram, weight in zip(grams, weights, strict=True) if weight]
    first, _ = used[0]
    whole = Gram(first.edges, {}, 0 * first.sums, 0 * first.squares, 0 * first.by_length, 0 * first.lengths)
    for key, held in first.tiles.items():
        whole.tiles[key] = 0 * held
    for gram, weight in used:
        for key, held in whole.tiles.items():
            held += gram.tiles[key] if weight == 1 else (weight * gram.tiles[key]).astype(held.dtype)
        whole.sums += weight * gram.sums
        whole.squares += weight * gram.squares
        whole.by_length += weight * gram.by_length
        whole.lengths += weight * gram.lengths
        whole.n_prompts += weight * gram.n_prompts
        for route, count in gram.routes.items():
            whole.routes[route] = whole.routes.get(route, 0) + count
    return whole


def chosen(gram: Gram, place: Array, xp: Any = np) -> Gram:
    """Return the Gram of some of the features, as a new one: the same tiles, each with fewer features.

    Parameters
    ----------
    gram : Gram
    place : array, (chosen,), int
        Features, ascending.
    xp : module
        As in `accumulate`.

    Examples
    --------
    >>> values = np.array([[1.0, 2.0, 3.0, 4.0]])
    >>> whole = accumulate([values], 4, [(0, 0), (0, 1), (1, 1)], tile=2)
    >>> chosen(whole, np.array([0, 3])).dense().tolist()
    [[1.0, 4.0], [4.0, 16.0]]
    """
    edges = tuple(np.searchsorted(place, gram.edges).tolist())
    at = [xp.asarray(place[a:b] - edge) for a, b, edge in zip(edges, edges[1:], gram.edges, strict=False)]
    tiles = {(i, j): held[at[i][:, None], at[j][None, :]] for (i, j), held in gram.tiles.items()}
    everywhere = xp.asarray(place)
    sums, squares, by_length = (values[everywhere] for values in (gram.sums, gram.squares, gram.by_length))
    return Gram(edges, tiles, sums, squares, by_length, gram.lengths, gram.n_prompts, dict(gram.routes))
