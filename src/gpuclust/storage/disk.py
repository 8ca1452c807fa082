"""Room on a disk: what a run's files will take at least and at most, and whether that is there."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from gpuclust.config import Config
from gpuclust.errors import StoreError
from gpuclust.formatting import gigabytes
from gpuclust.hardware import token_budget

log = logging.getLogger("gpuclust")

PAGE = 16_000_000  # bytes of the report, and of tables that do not grow with features
PER_FEATURE = 400  # bytes of a feature in all tables, beside its examples and neighbours
PER_EXAMPLE = 60  # bytes of an example of a feature: prompt, value, token, word and place
PER_NEIGHBOR = 8  # bytes of a neighbour: int32 and float32
SPARSEST = 1 << 16  # elements of a bucket of the codec's layout for sparse chunks, a bit each
SHARD = 52  # bytes of a shard's file without an entry: a chunk's header, its place and their checksum
TOKEN = 4  # bytes of an activation of a token, its place included: real ones take 3.2 to 3.8
MOMENTS = 20 * 8  # bytes of a feature in the state of a shard


def needed(config: Config, rows: int, d_sae: int, kept_bytes: int = 0, kept_rows: int = 0) -> tuple[int, int]:
    """Return the bytes that activations still take on a disk, and what is made of them: at least, and at most.

    What fires on tokens (``extract.rows``) is counted in the shards that are there; before the first one is, at most
    `TOKEN` bytes for each activation that `token_budget.entries` expects.

    Parameters
    ----------
    config : Config
    rows : int
        Prompts whose activations are to be written.
    d_sae : int
        Features.
    kept_bytes, kept_rows : int
        Size of the shards that are there already, and their prompts: the rest is then taken to be like them, with a
        tenth more at most.
    """
    item = 2 if config.store.dtype == "float16" else 4
    bitmap = rows * d_sae // 8 if config.store.codec == "bitmap" else 0
    shards = -(-rows // config.store.shard_prompts)
    sparsest = bitmap // SPARSEST + shards * SHARD  # where next to nothing is active
    states = shards * d_sae * (MOMENTS + 16 * config.extract.top_examples)
    views = 3 if config.halved else 1
    later = PAGE + d_sae * (
        PER_FEATURE + PER_EXAMPLE * config.extract.top_examples + PER_NEIGHBOR * views * config.n_neighbors
    )
    if kept_rows:
        like = kept_bytes * rows // kept_rows
        return like, like + like // 10 + states + later
    tokens = int(TOKEN * token_budget.entries(config, rows, d_sae)) if config.keeps_tokens else 0
    return sparsest, bitmap + rows * d_sae * item + tokens + states + later


def check(path: Path, config: Config, rows: int, d_sae: int, kept_bytes: int = 0, kept_rows: int = 0) -> None:
    """Refuse to begin, or to go on, where what is sure to come does not fit; say so where it may not.

    Parameters
    ----------
    path : Path
        A folder on the disk.
    config, rows, d_sae, kept_bytes, kept_rows
        As in `needed`.

    Raises
    ------
    StoreError
    """
    free = shutil.disk_usage(path).free
    least, most = needed(config, rows, d_sae, kept_bytes, kept_rows)
    if least > free:
        raise StoreError(
            f"{rows:,} prompts × {d_sae:,} features take at least {gigabytes(least)} of disk more, but {path} has "
            f"{gigabytes(free)} free. Make room, give another --out, or lower n_prompts; shards that are written stay"
        )
    if most > free and not kept_rows:
        log.warning(
            "extract: %s × %s features take %s to %s of disk, and %s has %s free: that is looked at after every shard",
            f"{rows:,} prompts", f"{d_sae:,}", gigabytes(least), gigabytes(most), path, gigabytes(free),
        )  # fmt: skip
