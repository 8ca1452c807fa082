"""Gram matrix G = AᵀA of the kept features, streamed over prompts into symmetric tiles.

G adds up chunk by chunk, so its cost in memory does not depend on the number of prompts. Only tiles (i, j) with i <= j
are held; `plan_passes` cuts them into passes over the store that fit a budget.

Sums are float64 on the host. A product of two float16 numbers is exact in float64, and so is the sum as long as all
products of a pair lie within 53 bits of each other, which is the ordinary case: the order of the prompts and the way
they are cut then do not change a bit of G. Where it is not, they change G by about 1e-16 relative.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any
Tile = tuple[int, int]

log = logging.getLogger("gpuclust")

SPARSE_DENSITY = 0.015  # below this share of non-zero entries the sparse product is faster (benchmarks/gram.py)


@dataclass
class Gram:
    """Tiles of G over some prompts, and the column sums that the metrics need.

    Attributes
    ----------
    n_features, tile : int
        Features in all, and features of a tile.
    tiles : dict of (int, int) to array, (tile, tile), float64
        Block row and block column of each tile that is held, row <= column.
    sums, squares : array, (feature,), float64
        Σ a and Σ a² over prompts.
    n_prompts : int
    """

    n_features: int
    tile: int
    tiles: dict[Tile, Array]
    sums: Array
    squares: Array
    n_prompts: int = 0
    routes: dict[str, int] = field(default_factory=dict)

    def block(self, index: int) -> slice:
        """Features of a block row or column."""
        return slice(index * self.tile, min((index + 1) * self.tile, self.n_features))

    def dense(self) -> Array:
        """Return the whole symmetric matrix, (feature, feature); all tiles must be held."""
        whole = np.empty((self.n_features, self.n_features))
        for (i, j), tile in self.tiles.items():
            whole[self.block(i), self.block(j)] = tile
            whole[self.block(j), self.block(i)] = tile.T
        return whole


def plan_passes(n_features: int, tile: int, budget: int) -> list[list[Tile]]:
    """Cut the upper triangle into passes whose tiles fit `budget` bytes (at least one tile a pass).

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
    chunks: Iterable[Array], n_features: int, tiles: Sequence[Tile], tile: int, xp: Any = np, sparse: bool | None = None
) -> Gram:
    """Add chunks of prompts into tiles, in place.

    Parameters
    ----------
    chunks : iterable of array, (prompt, feature), float16 or float32
        The kept features only.
    n_features, tile : int
    tiles : sequence of (int, int)
        The tiles of this pass.
    xp : module
        numpy, or cupy for device arrays.
    sparse : bool, optional
        Force the sparse or the dense product; by default each chunk's measured density decides.

    Returns
    -------
    Gram

    Notes
    -----
    Peak memory: the tiles, one more tile, and a chunk in float64.
    """
    gram = Gram(n_features, tile, {}, xp.zeros(n_features), xp.zeros(n_features))
    for i, j in tiles:
        shape = tuple(s.stop - s.start for s in (gram.block(i), gram.block(j)))
        gram.tiles[i, j] = xp.zeros(shape)
    for chunk in chunks:
        use_sparse = sparse
        if use_sparse is None:
            use_sparse = xp is np and np.count_nonzero(chunk) < SPARSE_DENSITY * chunk.size
        route = "sparse" if use_sparse else "dense"
        if route not in gram.routes:
            log.info("gram: %s product for a chunk of %d prompts", route, len(chunk))
        gram.routes[route] = gram.routes.get(route, 0) + 1
        wide = chunk.astype(xp.float64)
        gram.sums += wide.sum(axis=0)
        gram.squares += xp.einsum("pf,pf->f", wide, wide)
        gram.n_prompts += len(chunk)
        if use_sparse:
            _add_sparse(gram, wide)
        else:
            for (i, j), held in gram.tiles.items():
                held += wide[:, gram.block(i)].T @ wide[:, gram.block(j)]
    return gram


def _add_sparse(gram: Gram, wide: Array) -> None:
    from scipy import sparse

    columns = sparse.csc_array(wide)
    blocks: dict[int, Any] = {}
    for index in {index for pair in gram.tiles for index in pair}:
        blocks[index] = columns[:, gram.block(index)]
    for (i, j), held in gram.tiles.items():
        product = (blocks[i].T.tocsr() @ blocks[j].tocsr()).tocoo()
        np.add.at(held, (product.row, product.col), product.data)


def combine(grams: Sequence[Gram]) -> Gram:
    """Add Grams of different prompts over the same tiles (the first is added to in place)."""
    first, *rest = grams
    for other in rest:
        for key, held in first.tiles.items():
            held += other.tiles[key]
        first.sums += other.sums
        first.squares += other.squares
        first.n_prompts += other.n_prompts
        for route, count in other.routes.items():
            first.routes[route] = first.routes.get(route, 0) + count
    return first
