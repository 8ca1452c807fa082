"""The chunked Zarr array of activations: template first, then whole shards by region, then a done-marker.

A shard is a range of prompts, one Zarr shard file, written once by one task. Beside the array lie, per shard, its
states and its marker (`markers`).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.config_sections import StoreConfig
from gpuclust.errors import ActivationError, CorruptDataError, StoreError
from gpuclust.hardware import process
from gpuclust.storage import atomic, checksums
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

FLOAT16_MAX = 65504.0
WRITE: Any = {"write_empty_chunks": True}  # looking for empty chunks takes three times as long as writing them


def create(path: Path, n_prompts: int, n_features: int, config: StoreConfig, attributes: Mapping[str, Any]) -> None:
    """Create the template: the empty array `activations(prompt, feature)`, its coordinates, and its attributes.

    Parameters
    ----------
    path : Path
    n_prompts, n_features : int
    config : StoreConfig
    attributes : mapping of str to plain data

    Raises
    ------
    StoreError
        If `path` exists already.
    """
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

    from gpuclust.storage.codec import BitmapCodec

    if path.exists():
        raise StoreError(f"{path} exists already; give a path that does not, or delete it")
    chunks, shards = layout(n_prompts, n_features, config)
    with atomic.replacing(path) as partial:
        group = zarr.create_group(partial, attributes=dict(attributes))
        bitmap = config.codec == "bitmap"
        group.create_array(
            "activations",
            shape=(n_prompts, n_features),
            dtype=config.dtype,
            chunks=chunks,
            shards=shards,
            serializer=BitmapCodec() if bitmap else BytesCodec(),
            compressors=None if bitmap else (ZstdCodec(level=1), Crc32cCodec()),
            fill_value=0,
            dimension_names=("prompt", "feature"),
            config=WRITE,
        )
        for name, size in (("prompt", n_prompts), ("feature", n_features)):
            group.create_array(name, data=np.arange(size, dtype=np.int64), dimension_names=(name,))
        consolidate(partial)


def restore(path: Path, make: Callable[[Path], None]) -> list[str]:
    """Put the template's files back where they are not those that are written now; shards stay as they are.

    Parameters
    ----------
    path : Path
    make : callable
        Creates a template at a path: `create`.

    Returns
    -------
    list of str
        What was put back.
    """
    found = []
    fresh = path.with_name(f"{path.name}.fresh.{os.getpid()}.tmp")
    atomic.remove(fresh)
    try:
        make(fresh)
        for file in sorted(file for file in fresh.rglob("*") if file.is_file()):
            place = file.relative_to(fresh)
            if checksums.of_file(path / place) != checksums.of_file(file):
                atomic.write_bytes(path / place, file.read_bytes())
                found.append(place.as_posix())
    finally:
        atomic.remove(fresh)
    return found


def layout(n_prompts: int, n_features: int, config: StoreConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of chunks and of shards; a shard is a whole number of chunks both ways.

    Parameters
    ----------
    n_prompts, n_features, config
        As in `create`.
    """
    chunk_prompts = min(config.chunk_prompts, config.shard_prompts, n_prompts)
    per_shard = max(1, min(config.shard_prompts, n_prompts) // chunk_prompts)
    chunk_features = min(config.chunk_features, n_features)
    across = -(-n_features // chunk_features)
    return (chunk_prompts, chunk_features), (per_shard * chunk_prompts, across * chunk_features)


def open_array(path: Path) -> Any:
    """Open `activations` as a zarr array.

    Raises
    ------
    StoreError
        If there is no such store.
    """
    import zarr

    if not (path / "activations" / "zarr.json").exists():
        raise StoreError(f"{path} is not a gpuclust store: it has no array `activations`")
    return zarr.open_array(path / "activations", mode="r")


def attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a store; none where there is no store."""
    import zarr

    return dict(zarr.open_group(path, mode="r").attrs) if (path / "zarr.json").exists() else {}


def imported(path: Path) -> bool:
    """Whether the activations of a store are of a file, so that neither model nor SAE are known."""
    return attributes(path).get("model") == schema.IMPORTED


def shard_ranges(path: Path) -> list[tuple[int, int]]:
    """Return the (first, stop) prompts of every shard."""
    array: Any = open_array(path)
    step, n = array.shards[0], array.shape[0]
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def refuse_missing(path: Path) -> None:
    """Refuse a store without the file of a shard, where readers other than `read_rows` find zeros.

    What a shard says of its chunks' places is compared with its checksum too: Zarr would raise its own error.

    Raises
    ------
    CorruptDataError
    """
    from gpuclust.storage import shards

    source = shards.of(open_array(path), path / "activations")
    for index, (first, stop) in enumerate(shard_ranges(path)):
        file = path / "activations" / "c" / str(index) / "0"
        with shards.damage(path, first, stop):
            if not file.is_file() or not file.stat().st_size:
                raise CorruptDataError(f"{file} is missing or empty")
            if not isinstance(source, str):
                shards.places(source, index)


def to_stored(activations: Array, dtype: str, where: str) -> Array:
    """Cast activations to the stored dtype.

    Parameters
    ----------
    activations : array, (prompt, feature), floating
    dtype : {"float16", "float32"}
    where : str
        For messages.

    Raises
    ------
    ActivationError
        On NaN, infinity, or a value that float16 cannot hold.
    """
    if not np.isfinite(activations).all():
        prompt, feature = np.argwhere(~np.isfinite(activations))[0]
        raise ActivationError(
            f"{where}: the activation of feature {feature} for the prompt at row {prompt} is "
            f"{activations[prompt, feature]}. The model or SAE overflows: try model.dtype=float32, and check that the "
            "SAE belongs to this model and hook"
        )
    if dtype == "float16":
        largest = float(np.abs(activations).max(initial=0))
        if largest > FLOAT16_MAX:
            raise ActivationError(
                f"{where}: the largest activation, {largest:g}, does not fit float16 (at most {FLOAT16_MAX:g}). "
                "Set store.dtype=float32"
            )
    return activations.astype(dtype)


def underflow(count: int, nonzero: int, dtype: str) -> list[str]:
    """Return what is to be said of activations that became 0 as they were stored; nothing where none did.

    Parameters
    ----------
    count, nonzero : int
        How many became 0, and how many did not.
    dtype : {"float16", "float32"}
    """
    if not count:
        return []
    fix = "Set store.dtype=float32" if dtype == "float16" else "Multiply the activations by a power of two first"
    return [
        f"{count:,} activations that are not zero ({count / (count + nonzero):.2%}) are too small for "
        f"store.dtype={dtype} and are stored as 0: sparsity and entropy miss them. {fix}"
    ]


def write_rows(path: Path, index: int, first: int, data: Array) -> None:
    """Write the activations of one whole shard: its file is there afterwards, even if all of them are zero.

    Parameters
    ----------
    path : Path
        The Zarr store.
    index, first : int
        Number of the shard, and its first prompt.
    data : array, (prompt, feature), in the stored dtype
        All rows of the shard.

    Raises
    ------
    StoreError
        If they are not just the rows of that shard.
    """
    import zarr

    from gpuclust.storage import shards

    array: Any = zarr.open_array(path / "activations", mode="r+", config=WRITE)
    step = array.shards[0]
    expected = (min(step, array.shape[0] - first), array.shape[1])
    if first != index * step or data.shape != expected or data.dtype != array.dtype:
        raise StoreError(
            f"shard {index} at prompt {first} has shape {data.shape} and dtype {data.dtype}; the store expects "
            f"prompt {index * step}, shape {expected}, dtype {array.dtype}"
        )
    folder = path / "activations"
    target = shards.of(array, folder)
    if isinstance(target, shards.Shards):
        shards.write(target, index, data)
        return
    file = folder / "c" / str(index) / "0"
    file.unlink(missing_ok=True)  # zarr reads what is there, which may be damaged
    array[first : first + len(data)] = data
    if not file.exists():
        grid = tuple(s // c for s, c in zip(array.shards, array.chunks, strict=True))
        shards.write_empty(folder, index, grid)


def read_rows(path: Path, rows: int, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (first prompt, activations) for blocks of at most `rows` prompts, in order.

    Shards of the bitmap codec are read from their files (see `shards`), a thread a core; other stores through zarr.

    Parameters
    ----------
    path : Path
        The Zarr store.
    rows, first : int
    stop : int, optional
        Default: after the last prompt.

    Raises
    ------
    CorruptDataError
        If a shard's file is missing, or stored bytes fail their checksum.
    """
    from gpuclust.storage import shards

    array = open_array(path)
    stop = array.shape[0] if stop is None else stop
    source = shards.of(array, path / "activations")
    if isinstance(source, str):
        log.info("%s is read through zarr, because %s", path, source)
    with ThreadPoolExecutor(process.cores(), thread_name_prefix="gpuclust-decode") as pool:
        for start in range(first, stop, rows):
            end = min(start + rows, stop)
            with shards.damage(path, start, end):
                if isinstance(source, str):
                    _refuse_missing(array, path, start, end)
                    block = array[start:end]
                else:
                    block = shards.read(source, start, end, pool)
            yield start, block


def _refuse_missing(array: Any, path: Path, first: int, stop: int) -> None:
    """Refuse files that are missing: to zarr they are zeros, but gpuclust writes every one."""
    step = (array.shards or array.chunks)[0]
    for index in range(first // step, -(-stop // step)):
        folder = path / "activations" / "c" / str(index)
        if not folder.is_dir() or not any(folder.iterdir()):
            raise CorruptDataError(f"{folder / '0'} is missing")


@dataclass(frozen=True)
class Stream:
    """A float64 array that is written block by block: `blocks` gives its rows in order; a chunk has `rows` of them."""

    shape: tuple[int, int]
    blocks: Iterable[Array]
    rows: int


def write_dataset(
    path: Path, variables: Mapping[str, tuple[tuple[str, ...], Any]], attributes: Mapping[str, Any]
) -> None:
    """Write arrays as a Zarr group that xarray opens, replacing what is there only once all is written.

    Parameters
    ----------
    path : Path
    variables : mapping of str to (dimensions, array or `Stream`)
    attributes : mapping
    """
    import zarr

    with atomic.replacing(path) as partial:
        group = zarr.create_group(partial, attributes=dict(attributes))
        for name, (dimensions, data) in variables.items():
            if isinstance(data, Stream):
                chunks = (min(data.rows, max(data.shape[0], 1)), max(data.shape[1], 1))
                target = group.create_array(
                    name, shape=data.shape, dtype="float64", chunks=chunks, dimension_names=dimensions
                )
                first = 0
                for block in data.blocks:
                    if block.size:
                        target[first : first + len(block)] = block
                    first += len(block)
                continue
            data = np.asarray(data)
            chunks = tuple(max(1, min(size, 1 << 20)) for size in data.shape)
            target = group.create_array(
                name, shape=data.shape, dtype=data.dtype, chunks=chunks, dimension_names=dimensions
            )
            if data.size:
                target[...] = data
        consolidate(partial)


def read_table(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a table of a run.

    Raises
    ------
    StoreError
        If it is missing or damaged.
    """
    if not path.is_file():
        raise StoreError(f"there is no {path}: run the same command again, which makes what is missing")
    try:
        return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise StoreError(
            f"{path} is damaged ({str(error)[:200]}). Delete it and run the same command again, which makes it anew"
        ) from error


def consolidate(path: Path) -> None:
    """Gather the metadata in one place, which is where `xarray.open_zarr` looks first."""
    import zarr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part", category=UserWarning)
        zarr.consolidate_metadata(path)
