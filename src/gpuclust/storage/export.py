"""A copy of a run's activations in a store that needs no gpuclust."""

from __future__ import annotations

from pathlib import Path

from gpuclust import schema
from gpuclust.config_sections import StoreConfig
from gpuclust.errors import StoreError
from gpuclust.storage import atomic, reading, store


def export(run: Path, target: Path, codec: str = "zstd") -> None:
    """Copy ``activations.zarr`` of a run with another codec, shard by shard; it has its name when it is whole.

    Parameters
    ----------
    run : Path
        Folder of a run.
    target : Path
        The new store; must not exist.
    codec : {"zstd", "bitmap"}

    Raises
    ------
    StoreError
        If there is no store, or `target` exists.
    """
    source = reading.Files(run).path(schema.ACTIVATIONS)
    array = store.open_array(source)
    config = StoreConfig.model_validate(
        {
            "codec": codec, "dtype": str(array.dtype), "shard_prompts": array.shards[0],
            "chunk_prompts": array.chunks[0], "chunk_features": array.chunks[1],
        }
    )  # fmt: skip
    if target.exists():
        raise StoreError(f"{target} exists already; give a path that does not, or delete it")
    atomic.remove_leftovers(target.parent, target.name)
    with atomic.replacing(target) as partial:
        store.create(partial, array.shape[0], array.shape[1], config, store.attributes(source))
        step = store.shard_ranges(partial)[0][1]
        for index, (first, block) in enumerate(store.read_rows(source, step)):
            store.write_rows(partial, index, first, block)
