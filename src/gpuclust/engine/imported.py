"""Activations that others wrote, as the first two stages of a run: looked at once, then written shard by shard.

What is written is what an extraction writes, with its markers, so that a killed import goes on and ``verify`` and
``--reuse`` work as ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.compute import windows
from gpuclust.config import Config
from gpuclust.engine.progress import Progress
from gpuclust.errors import ActivationError, CorruptDataError, StoreError
from gpuclust.extraction.extract_shard import shard_states
from gpuclust.extraction.row_places import Activations
from gpuclust.hardware.backend import resolve
from gpuclust.storage import atomic, disk, markers, store, token_store
from gpuclust.storage.keys import content_key
from gpuclust.storage.record import read_record
from gpuclust.storage.run_folder import Folder
from gpuclust.types import Array

log = logging.getLogger("gpuclust")


@dataclass(frozen=True)
class Looked:
    """What was found as all of it was read once.

    Attributes
    ----------
    key : str
        Of what the activations, the texts and the settings that matter are.
    entries, underflowed : int
        Activations that are not zero as they are stored, and those that become zero.
    """

    key: str
    entries: int
    underflowed: int


def keeps_tokens(found: Activations, config: Config) -> bool:
    """Whether what fires on every token is written, too: where it is known and the codec takes it."""
    return found.places is not None and config.store.codec == "bitmap"


def has_words(config: Config) -> bool:
    """Whether a tokenizer was given, which says what tokens are."""
    return config.model.name != schema.IMPORTED


def look(found: Activations, texts: Sequence[str], config: Config) -> Looked:
    """Read all activations once, before anything is written.

    Parameters
    ----------
    found : Activations
    texts : sequence of str
        Of the prompts.
    config : Config

    Raises
    ------
    ActivationError
        If they are no activations, do not fit the stored dtype, or all are zero.
    """
    digest = hashlib.sha256()
    entries = given = 0
    for first, stop, block in _blocks(found, config):
        stored = _stored(block.data, config, found.rows.path)
        if found.places is not None and config.extract.aggregate == "sum":
            _aggregated(found, block, stop - first, first, config)  # sums may not fit what each of them does
        given += len(stored)
        entries += int(np.count_nonzero(stored))
        for part in (np.diff(block.indptr).astype(np.int64), block.indices.astype(np.int32), stored):
            digest.update(part.tobytes())
    if not given:
        raise ActivationError(
            f"{found.rows.path} holds no activations: all of {found.rows.shape[0]:,} rows × "
            f"{found.rows.shape[1]:,} features are zero"
        )
    for name in token_store.COORDINATES if found.places is not None else ():
        digest.update(getattr(found.places, name).tobytes())
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    matters = [config.store.model_dump(), config.extract.aggregate, config.extract.top_examples, has_words(config)]
    key = content_key("imported", 1, found.rows.shape, found.places is not None, matters, digest.hexdigest())
    return Looked(key, entries, given - entries)


def refuse_other(out: Path, path: Path, key: str) -> None:
    """Leave a folder alone that holds activations of something else.

    Parameters
    ----------
    out, path : Path
        Folder of the run, and the file.
    key : str
        As of `look`.

    Raises
    ------
    StoreError
    """
    store_path, shards = out / schema.ACTIVATIONS, out / schema.SHARDS
    with contextlib.suppress(CorruptDataError):  # what a lost record said is not known
        known = read_record(out / schema.RECORD)["stages"].get("extract", {}).get("key", key)
        if known != key:
            raise _other(out, path)
    held = markers.shards_done(shards) or any((store_path / "activations" / "c").glob("*"))
    if held and markers.begun_with(store_path, shards) != key:
        raise _other(out, path)


def _other(out: Path, path: Path) -> StoreError:
    return StoreError(
        f"{out} holds another cache's run, or one that was imported with other settings or texts, and not that of "
        f"{path}; give another --out, or delete that folder. Nothing in it was changed"
    )


def write(
    found: Activations, texts: Sequence[str], config: Config, folder: Folder, looked: Looked, progress: Progress
) -> None:
    """Write prompts and activations where they are missing, and record that they are done.

    Parameters
    ----------
    found, texts, config
        As of `look`.
    folder : Folder
        Of the run.
    looked : Looked
    progress : Progress

    Raises
    ------
    StoreError
        If the disk has no room.
    """
    out, key, n_prompts = folder.path, looked.key, found.n_prompts
    files = [schema.ACTIVATIONS, schema.SHARDS, *([schema.TOKENS] if keeps_tokens(found, config) else [])]
    attributes = {
        "model": schema.IMPORTED, "sae": config.sae.label, "hook_name": "unknown",
        "aggregate": config.extract.aggregate if found.places is not None else "unknown",
    }  # fmt: skip
    if not folder.done("prompts", key, [schema.PROMPTS]):
        folder.begin("prompts")
        atomic.write_table(out / schema.PROMPTS, _table(found, texts, config))
        facts = {"rows": n_prompts, "d_sae": found.rows.shape[1], "d_in": 0, "model_bytes": 0, "attributes": attributes}
        if found.places is not None:
            facts["tokens"] = int((found.places.position >= 0).sum())
        folder.complete("prompts", key, [schema.PROMPTS], **facts)
    if folder.done("extract", key, files):
        progress.skipped("extract")
        return
    folder.begin("extract")
    if markers.begun_with(out / schema.ACTIVATIONS, out / schema.SHARDS) not in (None, key):  # and has no shard yet
        for name in (schema.ACTIVATIONS, schema.TOKENS):
            shutil.rmtree(out / name, ignore_errors=True)
    for name, make in _templates(found, config, {**attributes, "extraction_key": key}).items():
        if not (out / name).exists():
            make(out / name)
        elif restored := store.restore(out / name, make):
            log.warning("%s of %s are not what is written now, and are put back", ", ".join(restored[:3]), out / name)
    with progress.stage("extract"):
        facts = _shards(found, config, out, key, progress)
    warnings = store.underflow(looked.underflowed, looked.entries, config.store.dtype)
    facts |= {"rows": n_prompts, "underflowed": looked.underflowed, "warnings": warnings}
    if keeps_tokens(found, config):
        path = out / schema.TOKENS
        facts["token_rows"] = token_store.write_coordinates(path, out / schema.SHARDS)
        facts["token_bytes"] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    folder.complete("extract", key, files, **facts)


def _shards(found: Activations, config: Config, out: Path, key: str, progress: Progress) -> dict[str, Any]:
    """Write the shards that are not done; return what is recorded of them."""
    path, shards = out / schema.ACTIVATIONS, out / schema.SHARDS
    ranges = store.shard_ranges(path)
    left = {index for index in range(len(ranges)) if markers.shard_done(path, shards, index, key) is not None}
    disk.check(out, config, sum(ranges[index][1] - ranges[index][0] for index in left), found.rows.shape[1])
    with progress.counting("shards", len(left)) as advance:
        for index in sorted(left):
            first, stop = ranges[index]
            _write_shard(found, config, out, index, (first, stop), key)
            advance()
    item = store.open_array(path).dtype.itemsize
    return {"shards": len(ranges), "shards_computed": len(left), "bytes": ranges[-1][1] * found.rows.shape[1] * item}


def _write_shard(found: Activations, config: Config, out: Path, index: int, prompts: tuple[int, int], key: str) -> None:
    """Write one shard of prompts, with its tokens where they are kept."""
    first, stop = prompts
    block = _block(found, first, stop)
    shape = (stop - first, block.shape[1])
    more: dict[str, Any] = {}
    if found.places is None:
        data = np.zeros(shape, config.store.dtype)
        row = np.repeat(np.arange(shape[0]), np.diff(block.indptr))
        data[row, block.indices] = _stored(block.data, config, found.rows.path)
        positions: Array = np.broadcast_to(np.int32(-1), shape)
    else:
        data, positions = _aggregated(found, block, shape[0], first, config)
        more["negative"] = np.int64((data < 0).sum())
        if keeps_tokens(found, config):
            tokens = _tokens(found, block, first, stop, config)
            more |= tokens.states()
            token_store.write_shard(out / schema.TOKENS, index, tokens)
    states = shard_states(data, positions, first, config, resolve("cpu")) | more
    markers.write_shard(out / schema.ACTIVATIONS, out / schema.SHARDS, index, first, data, states, key)


def _templates(found: Activations, config: Config, attributes: dict[str, Any]) -> dict[str, Any]:
    """The stores that are filled, by name, and what makes an empty one."""
    n, width, own = found.n_prompts, found.rows.shape[1], config.store
    stores: dict[str, Any] = {schema.ACTIVATIONS: lambda path: store.create(path, n, width, own, attributes)}
    if found.places is not None and keeps_tokens(found, config):
        starts = found.places.starts()
        rows = [int(starts[stop] - starts[first]) for first, stop in _ranges(found, config)]
        stores[schema.TOKENS] = lambda path: token_store.create(path, rows, width, own, attributes)
    return stores


def _table(found: Activations, texts: Sequence[str], config: Config) -> pd.DataFrame:
    """The table of prompts: their lengths where rows are tokens, and the ids where a tokenizer reads them."""
    n = found.n_prompts
    lengths: Array = np.full(n, -1, np.int64)
    if found.places is not None:
        lengths = np.bincount(found.places.prompt, found.places.position >= 0, minlength=n).astype(np.int64)
    columns = {"prompt": np.arange(n, dtype=np.int64), "text": texts, "n_tokens": lengths, "source": config.sae.label}
    table = pd.DataFrame(columns)
    if found.places is not None and has_words(config):
        table["tokens"] = pd.Series(found.places.ids(found.rows.path), dtype=object)
    return table


def _ranges(found: Activations, config: Config) -> list[tuple[int, int]]:
    """The (first, stop) prompts of every shard that will be."""
    n = found.n_prompts
    step = store.layout(n, found.rows.shape[1], config.store)[1][0]
    return [(first, min(first + step, n)) for first in range(0, n, step)]


def _blocks(found: Activations, config: Config) -> Iterator[tuple[int, int, Any]]:
    for first, stop in _ranges(found, config):
        yield first, stop, _block(found, first, stop)


def _rows_of(found: Activations, first: int, stop: int) -> slice:
    """The rows of a range of prompts."""
    if found.places is None:
        return slice(first, stop)
    begin, end = np.searchsorted(found.places.prompt, [first, stop])
    return slice(int(begin), int(end))


def _block(found: Activations, first: int, stop: int) -> Any:
    own = _rows_of(found, first, stop)
    return found.rows.read(own.start, own.stop)


def _stored(values: Array, config: Config, path: Path) -> Array:
    """Values of entries in the stored dtype, (entry,), or refused."""
    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype(np.float32)
    if len(bad := np.flatnonzero(~np.isfinite(narrow))):
        raise ActivationError(
            f"{path}: an activation is {values[bad[0]]:g}, which float32 cannot hold (at most "
            f"{np.finfo(np.float32).max:g}). Multiply the activations by a power of two first"
        )
    return store.to_stored(narrow[:, None], config.store.dtype, str(path))[:, 0]


def _aggregated(found: Activations, block: Any, n_prompts: int, first: int, config: Config) -> tuple[Array, Array]:
    """Prompts from their tokens, as an extraction aggregates them: stored values and positions of the peaks.

    Returns
    -------
    data : array, (prompt, feature), in the stored dtype
    positions : array, (prompt, feature), int32
        Place of the token with the largest abs(activation); 0 where nothing fires.
    """
    from scipy.sparse import csr_array

    assert found.places is not None
    own = _rows_of(found, first, first + n_prompts)
    group = found.places.prompt[own].astype(np.int64) - first
    tokens = csr_array((block.data.astype(np.float32), block.indices, block.indptr), shape=block.shape)
    whole = windows.aggregate(tokens, group, config.extract.aggregate).toarray()
    data = store.to_stored(whole, config.store.dtype, f"{found.rows.path}, prompts {first} and on")
    row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    place = group[row] * block.shape[1] + block.indices
    chosen = windows.peaks(place, tokens.data)
    positions = np.zeros(whole.shape, np.int32)
    positions.reshape(-1)[place[chosen]] = found.places.position[own][row[chosen]]
    return data, positions


def _tokens(found: Activations, block: Any, first: int, stop: int, config: Config) -> token_store.Tokens:
    """What fires on the tokens of a range of prompts, as it is stored; what becomes zero is left out."""
    assert found.places is not None
    own, values = _rows_of(found, first, stop), _stored(block.data, config, found.rows.path)
    kept = values != 0
    row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))[kept]
    counts = np.bincount(row, minlength=block.shape[0])
    places = {name: getattr(found.places, name)[own] for name in token_store.COORDINATES}
    return token_store.Tokens(
        np.concatenate([[0], np.cumsum(counts)]), block.indices[kept].astype(np.int32), values[kept], **places
    )
