"""Compare the store's codec with zstd and with none, through zarr, on one layout.

    python benchmarks/codec.py                                   # synthetic activations, 6,000 x 6,000
    python benchmarks/codec.py --real acts.npy --json out.json   # real ones, (prompt, feature), float16 or float32

Each repeat writes and then reads a whole store per codec, in turn, so that a noisy machine is as unfair to one as to
another; the medians are of the repeats after one warm-up. Reads come from the page cache: they time decoding, no disk.
CPU seconds are of all threads, and tell more than the clock on a machine that has other work.

The row "bitmap, direct" writes and reads what the row "bitmap" does as gpuclust does: shards' files as they lie, chunks
decoded where they belong, where zarr copies each chunk into its shard and each shard into the result on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from gpuclust.hardware.process import cores
from gpuclust.storage import shards
from gpuclust.storage.codec import BitmapCodec, decode, encode

CODECS: dict[str, dict[str, Any]] = {
    "bitmap": {"serializer": BitmapCodec(), "compressors": None},
    "zstd 1": {"serializer": BytesCodec(), "compressors": [ZstdCodec(level=1)]},
    "zstd 1 + crc32c": {"serializer": BytesCodec(), "compressors": [ZstdCodec(level=1), Crc32cCodec()]},
    "none": {"serializer": BytesCodec(), "compressors": None},
}
DIRECT = "bitmap, direct"


def synthetic(prompts: int, features: int, density: float, seed: int = 0) -> NDArray[np.float16]:
    """Draw activations: features of unequal density (Beta), log-normal values."""
    rng = np.random.default_rng(seed)
    rates = rng.beta(0.5, 0.5 * (1 / density - 1), features).astype(np.float32)
    out = np.zeros((prompts, features), np.float16)
    for row in out:
        active = np.flatnonzero(rng.random(features, np.float32) < rates)
        row[active] = rng.lognormal(0.0, 0.8, active.size)
    return out


def create(path: Path, data: NDArray[Any], args: argparse.Namespace, codec: str) -> zarr.Array[Any]:
    """Create the empty array: shards of whole inner chunks, the width covered by one row of shards."""
    rows, width = args.chunk[0], min(args.chunk[1], data.shape[1])
    shards = None if args.shard == 0 else (args.shard, -(-data.shape[1] // width) * width)
    return zarr.create_array(
        path,
        shape=data.shape,
        dtype=data.dtype,
        chunks=(rows, width),
        shards=shards,
        fill_value=0,
        config={"write_empty_chunks": not args.skip_empty},
        **CODECS[codec],
    )


def write(array: zarr.Array[Any], data: NDArray[Any], step: int) -> None:
    """Write as an extraction does: a shard at a time."""
    for start in range(0, len(data), step):
        array[start : start + step] = data[start : start + step]


def read(path: Path, step: int) -> Iterator[NDArray[Any]]:
    """Read as a reduction does: `step` prompts at a time (0: all at once)."""
    array = zarr.open_array(path, mode="r")
    for start in range(0, array.shape[0], step or array.shape[0]):
        yield np.asarray(array[start : start + (step or array.shape[0])])


def write_direct(path: Path, data: NDArray[Any], step: int) -> None:
    """Write as an extraction does, with gpuclust's own writer."""
    for index, start in enumerate(range(0, len(data), step)):
        shards.write(found(path), index, data[start : start + step])


def read_direct(path: Path, step: int) -> Iterator[NDArray[Any]]:
    """Read a bitmap store as `read` does, with gpuclust's own reader."""
    source = found(path)
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, source.shape[0], step or source.shape[0]):
            yield shards.read(source, start, min(start + (step or source.shape[0]), source.shape[0]), pool)


def found(path: Path) -> shards.Shards:
    source = shards.of(zarr.open_array(path, mode="r"), path)
    if isinstance(source, str):
        sys.exit(f"{path} is not read directly, because {source}")
    return source


def timed(name: str, function: Any, *args: Any) -> dict[str, float]:
    """Return the seconds that a call takes, on the clock and of the CPUs."""
    start, start_cpu = time.perf_counter(), time.process_time()
    function(*args)
    return {f"{name}_s": time.perf_counter() - start, f"{name}_cpu_s": time.process_time() - start_cpu}


def check(codec: str, data: NDArray[Any], blocks: Iterable[NDArray[Any]]) -> None:
    if np.concatenate(list(blocks)).tobytes() != data.tobytes():
        sys.exit(f"{codec} does not return what was written")


def measure(data: NDArray[Any], args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Time every codec, interleaved; check that each returns the very bits."""
    repeats: dict[str, list[dict[str, float]]] = {codec: [] for codec in CODECS} | {DIRECT: []}
    stored: dict[str, int] = {}
    for repeat in range(args.repeats + 1):
        for codec in CODECS:
            path = folder / codec.replace(" ", "")
            shutil.rmtree(path, ignore_errors=True)
            times = timed("write", write, create(path, data, args, codec), data, args.shard or args.chunk[0])
            times |= timed("read", lambda path=path: deque(read(path, args.read_rows), maxlen=1))
            repeats[codec].append(times)
            if codec == "bitmap":
                direct = timed("write", write_direct, path, data, args.shard)
                direct |= timed("read", lambda path=path: deque(read_direct(path, args.read_rows), maxlen=1))
                repeats[DIRECT].append(direct)
            if repeat == 0:
                stored[codec] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                check(codec, data, read(path, args.read_rows))
                if codec == "bitmap":
                    check(DIRECT, data, read_direct(path, args.read_rows))
    stored[DIRECT] = stored["bitmap"]
    return [
        {"codec": codec, "bytes": stored[codec], "ratio": data.nbytes / stored[codec]}
        | {name: statistics.median(times[name] for times in measured[1:]) for name in measured[0]}
        | {"repeats": measured[1:]}
        for codec, measured in repeats.items()
    ]


def in_memory(data: NDArray[Any], rows: int) -> tuple[float, float]:
    """Return encode and decode in GB per CPU second, without zarr: chunks of `rows` prompts."""
    chunks = [data[start : start + rows] for start in range(0, len(data), rows)]
    encoded = [encode(chunk) for chunk in chunks]
    times = timed("encode", lambda: [encode(chunk).size for chunk in chunks])
    times |= timed("decode", lambda: [decode(e, c.shape, c.dtype).size for e, c in zip(encoded, chunks, strict=True)])
    return data.nbytes / 1e9 / times["encode_cpu_s"], data.nbytes / 1e9 / times["decode_cpu_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help=".npy of real activations, (prompt, feature), float16 or float32")
    parser.add_argument("--shape", type=int, nargs=2, default=(6000, 6000), help="at most so many prompts and features")
    parser.add_argument("--density", type=float, default=0.27, help="of the synthetic activations")
    parser.add_argument(
        "--chunk", type=int, nargs=2, default=(512, 8192), help="prompts and features of an inner chunk"
    )
    parser.add_argument("--shard", type=int, default=512, help="prompts of a shard; 0 for no shards")
    parser.add_argument("--read-rows", type=int, default=512, help="prompts of one read; 0 for all at once")
    parser.add_argument("--skip-empty", action="store_true", help="let zarr search for empty chunks, its default")
    parser.add_argument("--workers", type=int, help="zarr's threading.max_workers")
    parser.add_argument("--concurrency", type=int, help="zarr's async.concurrency")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to put the stores; a temporary folder by default")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    args = parser.parse_args()

    if args.workers:
        zarr.config.set({"threading.max_workers": args.workers})
    if args.concurrency:
        zarr.config.set({"async.concurrency": args.concurrency})
    prompts, features = args.shape
    if args.real:
        data = np.ascontiguousarray(np.load(args.real, mmap_mode="r")[:prompts, :features])
        source = f"real: {args.real}"
    else:
        data = synthetic(prompts, features, args.density)
        source = "SYNTHETIC (Beta densities, log-normal values): no claim about real activations"
    density = np.count_nonzero(data) / data.size
    encoding, decoding = in_memory(data, args.chunk[0])
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = measure(data, args, Path(folder))

    gigabytes = data.nbytes / 1e9
    width = min(args.chunk[1], data.shape[1])
    print(f"data    {source}")
    print(f"        {data.shape[0]} x {data.shape[1]} {data.dtype}, {gigabytes:.3f} GB, {density:.1%} non-zero")
    print(
        f"layout  chunks ({args.chunk[0]}, {width}), shards of {args.shard or 'no'} prompts, median of {args.repeats}"
    )
    print(f"machine {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(f"without zarr, GB per CPU second: encode {encoding:.2f}, decode {decoding:.2f}\n")
    heads = "".join(f"{side:>9} s{'GB/s':>7}{'CPU s':>8}" for side in ("write", "read"))
    print(f"{'codec':<16}{'MB':>8}{'ratio':>7}{heads}")
    for row in rows:
        cells = ""
        for side in ("write", "read"):
            seconds, cpu = row.get(f"{side}_s"), row.get(f"{side}_cpu_s")
            cells += f"{seconds:>11.3f}{gigabytes / seconds:>7.2f}{cpu:>8.3f}" if seconds else f"{'':>26}"
        print(f"{row['codec']:<16}{row['bytes'] / 1e6:>8.1f}{row['ratio']:>7.2f}{cells}")
    print()
    by_name = {row["codec"]: row for row in rows}
    zstd = by_name["zstd 1"]
    for codec in ("bitmap", DIRECT):
        ours = by_name[codec]
        faster = " and ".join(
            f"{side}s {zstd[f'{side}_s'] / ours[f'{side}_s']:.1f} times as fast "
            f"({zstd[f'{side}_cpu_s'] / ours[f'{side}_cpu_s']:.1f} by CPU time)"
            for side in ("write", "read")
            if f"{side}_s" in ours
        )
        print(f"{codec} against zstd 1: {faster}, {ours['bytes'] / zstd['bytes']:.2f} of its size")
    if args.json:
        report = {
            "data": source,
            "shape": data.shape,
            "dtype": str(data.dtype),
            "density": density,
            "chunk": (args.chunk[0], width),
            "shard_prompts": args.shard,
            "settings": {k: str(v) for k, v in vars(args).items()},
            "zarr": zarr.__version__,
            "python": platform.python_version(),
            "load": os.getloadavg(),
            "encode_gb_per_s": encoding,
            "decode_gb_per_s": decoding,
            "codecs": rows,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
