"""Shards of the bitmap codec, written to and read from their files: chunks encoded and decoded where they belong.

Zarr's own pipeline decodes each chunk into an array, copies that into its shard, and copies the shard into the result,
on one thread. What gpuclust writes is simple enough to read as it lies: a shard is one file, its chunks' places are at
the file's end, a chunk decodes into its place in the result, a thread a chunk. Nothing of zarr but an array's metadata
is used, so its releases may change how they read and write.

The index of a shard is the last ``16 n + 4`` bytes of its file: offset and length (uint64) of each of its n chunks in C
order, all ones for a chunk that is not stored, and their CRC-32C (Zarr v3 specification, sharding-indexed codec). A
chunk that is not stored is zeros: the checksum says that this was meant. A file that is missing is damage: gpuclust
writes one for a shard of zeros too (zarr may leave it out, whatever it is told).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from gpuclust import schema
from gpuclust.errors import CorruptDataError
from gpuclust.storage import atomic, codec, codec_packed

MISSING = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True)
class Shards:
    """Where the chunks of an array (prompt, feature) lie: the folder of its files, and its shapes in elements."""

    folder: Path
    shape: tuple[int, int]
    shard: tuple[int, int]
    chunk: tuple[int, int]
    dtype: np.dtype[Any]

    @property
    def grid(self) -> tuple[int, int]:
        """Chunks of a shard, both ways."""
        return self.shard[0] // self.chunk[0], self.shard[1] // self.chunk[1]

    def file(self, index: int) -> Path:
        """The file of a shard."""
        return self.folder / "c" / str(index) / "0"


def of(array: Any, folder: Path) -> Shards | str:
    """Return the shards of an open zarr array, or why its files are not read directly.

    Parameters
    ----------
    array : zarr.Array
    folder : Path
        Where its ``zarr.json`` is.
    """
    if array.metadata.zarr_format == 2:
        return "it is of Zarr's format 2"
    outer = [c.to_dict() for c in array.metadata.codecs]
    inner = outer[0].get("configuration", {}).get("codecs", ())
    names = [c["name"] for c in outer], [c["name"] for c in inner]
    if names != (["sharding_indexed"], [codec.NAME]):
        return f"its codec is {(names[1] or names[0])[0]}, not {codec.NAME}"
    if outer[0]["configuration"].get("index_location", "end") != "end":
        return "the index of its shards is not at their end"
    if array.metadata.fill_value != 0:
        return f"its fill value is {array.metadata.fill_value}, not 0"
    if len(array.shape) != 2 or array.shards[1] < array.shape[1]:
        return f"its shards {array.shards} do not span the features of {array.shape}"
    return Shards(folder, array.shape, array.shards, array.chunks, array.dtype)


def write(shards: Shards, index: int, data: NDArray[Any]) -> None:
    """Write one whole shard, so that readers see either what was there or all of the new file.

    Parameters
    ----------
    shards : Shards
    index : int
        Number of the shard.
    data : array, (prompt, feature), of the array's dtype
        All of its rows that the array has.
    """

    def chunk(top: int, left: int) -> NDArray[np.uint8]:
        part = data[top : top + shards.chunk[0], left : left + shards.chunk[1]]
        if part.shape != shards.chunk:
            part = np.pad(part, [(0, full - n) for full, n in zip(shards.chunk, part.shape, strict=True)])
        return codec.encode(part)

    _write(shards, index, len(data), chunk)


def write_csr(shards: Shards, index: int, indptr: NDArray[Any], indices: NDArray[Any], values: NDArray[Any]) -> None:
    """Write one whole shard from compressed sparse rows: the file that `write` makes of the dense ones.

    Parameters
    ----------
    shards : Shards
    index : int
        Number of the shard.
    indptr : array, (prompt + 1,), integer
        Where each row begins among the entries; all rows of the shard that the array has.
    indices : array, (entry,), integer
        Features, ascending within a row.
    values : array, (entry,), of the array's dtype

    Raises
    ------
    ConfigError
        If these are not compressed sparse rows.
    """
    height, width = shards.chunk
    rows = len(indptr) - 1
    codec_packed.positions_of_csr(indptr, indices, values.shape, (rows, shards.shape[1]))  # refuses what they are not
    column = indices // width

    def chunk(top: int, left: int) -> NDArray[np.uint8]:
        bounds = indptr[top : top + height + 1]
        own = slice(bounds[0], bounds[-1])
        inside = column[own] == left // width
        starts = np.concatenate([[0], np.cumsum(inside)])[bounds - bounds[0]]
        starts = np.pad(starts, (0, height + 1 - len(starts)), mode="edge")
        return codec.encode_csr(starts, indices[own][inside] - left, values[own][inside], shards.chunk)

    _write(shards, index, rows, chunk)


def _write(shards: Shards, index: int, rows: int, chunk: Callable[[int, int], NDArray[np.uint8]]) -> None:
    """Write a shard's file of encoded chunks, of which each is asked for by its first row and column."""
    at = np.full((*shards.grid, 2), MISSING)
    end = 0
    with atomic.replacing(shards.file(index)) as partial, partial.open("wb") as out:
        for row, column in np.ndindex(*shards.grid):
            top, left = row * shards.chunk[0], column * shards.chunk[1]
            if top >= rows or left >= shards.shape[1]:
                continue  # past the array's end
            encoded = chunk(top, left)
            out.write(encoded.data)
            at[row, column] = end, encoded.size
            end += encoded.size
        out.write(_index(at))


def write_empty(shards: Path, index: int, grid: tuple[int, int]) -> None:
    """Write the file of a shard without chunks, which is zeros, where zarr wrote none.

    Parameters
    ----------
    shards : Path
        Folder of the array.
    index : int
        Number of the shard.
    grid : (int, int)
        Chunks of a shard, both ways.
    """
    with atomic.replacing(shards / "c" / str(index) / "0") as partial:
        partial.write_bytes(_index(np.full((*grid, 2), MISSING)))


def _index(at: NDArray[np.uint64]) -> bytes:
    """The end of a shard's file: the places of its chunks and their checksum."""
    packed = at.astype("<u8").tobytes()
    return packed + int(google_crc32c.value(packed)).to_bytes(4, "little")


def places(shards: Shards, index: int) -> NDArray[np.uint64]:
    """Read where the chunks of a shard lie in its file.

    Returns
    -------
    array, (chunk row, chunk column, 2), uint64
        Offset and length in bytes; `MISSING` for a chunk that is not stored.

    Raises
    ------
    CorruptDataError
        If the file is missing, or the index fails its checksum.
    """
    file = shards.file(index)
    if not file.is_file():
        raise CorruptDataError(f"{file} is missing")
    end, size = file.stat().st_size, 16 * math.prod(shards.grid) + 4
    tail = np.fromfile(file, np.uint8, offset=max(end - size, 0)).tobytes()
    if len(tail) < size or google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
        raise CorruptDataError(f"{file}: the index of a shard of {end} bytes does not match its checksum")
    return np.frombuffer(tail[:-4], "<u8").reshape(*shards.grid, 2)


def stored_chunk(shards: Shards, index: int, place: NDArray[np.uint64]) -> NDArray[np.uint8] | None:
    """Return a chunk as it is stored, unchecked: `codec` refuses wrong bytes. None for one that is not stored.

    Parameters
    ----------
    shards : Shards
    index : int
        Number of the shard.
    place : array, (2,), uint64
        Offset and length in bytes, as from `places`.
    """
    offset, length = place
    return None if offset == MISSING else np.fromfile(shards.file(index), np.uint8, int(length), offset=int(offset))


@contextmanager
def damage(path: Path, first: int, stop: int) -> Iterator[None]:
    """Within this context, whatever a damaged store raises becomes an error that says where, and the way out.

    Parameters
    ----------
    path : Path
        The Zarr store.
    first, stop : int
        Numbers of the prompts.

    Raises
    ------
    CorruptDataError
    """
    try:
        yield
    except (ValueError, RuntimeError, CorruptDataError) as error:  # zstd's own errors are RuntimeErrors
        what = "rows" if path.name == schema.TOKENS else "prompts"
        raise CorruptDataError(
            f"{path}: {what} {first} to {stop - 1} cannot be read: {error}. Run `gpuclust verify {path.parent}`, "
            "and then the run's own command again: it computes anew what is damaged"
        ) from error


def read(shards: Shards, first: int, stop: int, pool: ThreadPoolExecutor) -> NDArray[Any]:
    """Return the rows of a range of prompts.

    Parameters
    ----------
    shards : Shards
    first, stop : int
        Prompts. A chunk is decoded whole, however few of its rows are wanted.
    pool : ThreadPoolExecutor
        Reads and decodes, a chunk a task.

    Returns
    -------
    array, (stop - first, feature), float16 or float32

    Raises
    ------
    CorruptDataError
        If a file is missing, or bytes fail their checksum.

    Notes
    -----
    Memory: the result, and per thread a chunk as stored and (unless it spans all features) decoded.
    """
    out = np.empty((stop - first, shards.shape[1]), shards.dtype)

    def decode(piece: Piece) -> None:
        target = out[piece.at, piece.left : piece.left + shards.chunk[1]]
        encoded = stored_chunk(shards, piece.shard, piece.place)
        if encoded is None:
            target[...] = 0
        elif target.shape == shards.chunk and target.flags.c_contiguous:
            codec.decode(encoded, shards.chunk, shards.dtype, out=target)
        else:
            target[...] = codec.decode(encoded, shards.chunk, shards.dtype)[piece.rows, : target.shape[1]]

    in_threads(pool, decode, pieces(shards, first, stop))
    return out


@dataclass(frozen=True)
class Piece:
    """A chunk's rows within a range of prompts: number of its shard, its place there, and where they belong.

    Attributes
    ----------
    shard : int
    place : array, (2,), uint64
    rows, at : slice
        Rows of the chunk, and rows of the range.
    left : int
        First feature.
    """

    shard: int
    place: NDArray[np.uint64]
    rows: slice
    at: slice
    left: int


def pieces(shards: Shards, first: int, stop: int) -> Iterator[Piece]:
    """Yield the pieces of a range of prompts, by rows, and within those by features.

    Parameters
    ----------
    shards : Shards
    first, stop : int
        Prompts.

    Raises
    ------
    CorruptDataError
        If a file is missing, or its index fails its checksum.
    """
    height, width = shards.chunk
    for index in range(first // shards.shard[0], -(-stop // shards.shard[0]) if stop > first else 0):
        at = places(shards, index)
        for row, column in np.ndindex(*shards.grid):
            top, left = index * shards.shard[0] + row * height, column * width
            if top < stop and top + height > first and left < shards.shape[1]:
                rows = slice(max(first - top, 0), min(stop - top, height))
                yield Piece(
                    index, at[row, column], rows, slice(top + rows.start - first, top + rows.stop - first), left
                )


def in_threads(pool: ThreadPoolExecutor, function: Callable[[Piece], Any], items: Iterable[Piece]) -> list[Any]:
    """Return what a function makes of each piece, in order; after an error no more are begun.

    Parameters
    ----------
    pool : ThreadPoolExecutor
    function : callable
    items : iterable of Piece
    """
    tasks: list[Future[Any]] = []
    try:
        tasks.extend(pool.submit(function, item) for item in items)
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()


def packed_bands(shards: Shards, first: int, stop: int) -> Iterator[tuple[int, int, list[tuple[int, Any, Any]]]]:
    """Read whole shards and yield their chunks, packed and checked, a band of chunk rows at a time.

    Parameters
    ----------
    shards : Shards
    first, stop : int
        Prompts, where shards begin and end.

    Yields
    ------
    start : int
        First prompt of the band.
    rows : int
        Its prompts.
    chunks : list of (first column, words, packed)
        The chunks that hold something, as of `codec.sections`, which makes a bitmap for those without; the rest of the
        band is zero.

    Raises
    ------
    CorruptDataError
        If a file is missing, or bytes fail their checksum.
    """
    height, width = shards.chunk
    end = min(stop, shards.shape[0])
    for start in range(first, end, shards.shard[0]):
        index = start // shards.shard[0]
        with damage(shards.folder.parent, start, min(start + shards.shard[0], end)):
            at = places(shards, index)
        for row, top in enumerate(range(start, min(start + shards.shard[0], end), height)):
            chunks = []
            with damage(shards.folder.parent, top, min(top + height, end)):
                for column in range(-(-shards.shape[1] // width)):
                    encoded = stored_chunk(shards, index, at[row, column])
                    if encoded is not None:
                        words, packed = codec.sections(encoded, height * width, shards.dtype.itemsize)
                        chunks.append((column * width, words, packed))
            yield top, min(height, end - top), chunks
