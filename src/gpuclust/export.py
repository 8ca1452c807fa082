"""The command ``python -m gpuclust.export DIR OUT``: copy a run's activations to a store that needs no gpuclust."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpuclust import schema, terminal
from gpuclust.config import StoreConfig
from gpuclust.storage import store


def export(run: Path, target: Path, codec: str = "zstd") -> None:
    """Copy ``activations.zarr`` of a run with another codec, shard by shard.

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
    source = run / schema.ACTIVATIONS
    array = store.open_array(source)
    config = StoreConfig.model_validate(
        {
            "codec": codec, "dtype": str(array.dtype), "shard_prompts": array.shards[0],
            "chunk_prompts": array.chunks[0], "chunk_features": array.chunks[1],
        }
    )  # fmt: skip
    store.create(target, array.shape[0], array.shape[1], config, store.attributes(source))
    step = store.shard_ranges(target)[0][1]
    for index, (first, block) in enumerate(store.read_rows(source, step)):
        store.write_rows(target, index, first, block)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m gpuclust.export", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("target", type=Path, help="new Zarr store")
    parser.add_argument("--codec", choices=("zstd", "bitmap"), default="zstd")
    args = parser.parse_args(arguments)

    def work() -> None:
        export(args.run, args.target, args.codec)
        print(f"wrote {args.target}")

    return terminal.exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
