"""Compare layouts of very sparse chunks: their bytes and seconds, and the codec's against zstd 1 on the dense chunks.

    python -m benchmarks.sparse_codec [--json out.json]

Activations are drawn: SYNTHETIC, no claim about real ones. A feature is active by Zipf's law (its rate is c / rank, at
most 0.9, features in random order), `L0` of them a token on average; values are log-normal. What is compared is
repeated in turn in one run; ratios are of CPU seconds, medians with the quartiles, and of stores of the clock's too. On
a machine that has other work CPU seconds tell more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from math import lgamma, log
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numcodecs import Zstd
from numpy.typing import NDArray

from gpuclust.config_sections import StoreConfig
from gpuclust.storage import codec, codec_packed, sparse_rows, store

CASES = [(32, 6_144), (64, 32_768), (100, 131_072)]  # active features of a token, features
ROWS = 512  # tokens of a chunk
Rows = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float16]]


def drawn(rows: int, features: int, active: float, seed: int = 0) -> Rows:
    """Draw compressed sparse rows."""
    rng = np.random.default_rng(seed)
    ranks = rng.permutation(np.arange(1, features + 1))
    low, high = 0.0, float(features)
    for _ in range(60):  # the c that makes the rates sum to what is wanted
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle / ranks, 0.9).sum() < active else (low, middle)
    rates = np.minimum(high / ranks, 0.9).astype(np.float32)
    columns = [np.flatnonzero(rng.random(features, np.float32) < rates).astype(np.int32) for _ in range(rows)]
    indptr = np.concatenate([[0], np.cumsum([len(c) for c in columns])])
    return indptr, np.concatenate(columns), rng.lognormal(0, 0.8, indptr[-1]).astype(np.float16)


def part(sparse: Rows, first: int, stop: int, left: int, width: int) -> Rows:
    """Cut a chunk out."""
    indptr, indices, values = sparse
    bounds = indptr[first : stop + 1]
    own = slice(bounds[0], bounds[-1])
    inside = (indices[own] >= left) & (indices[own] < left + width)
    starts = np.concatenate([[0], np.cumsum(inside)])[bounds - bounds[0]]
    return starts, indices[own][inside] - np.int32(left), values[own][inside]


def dense(sparse: Rows, features: int) -> NDArray[np.float16]:
    indptr, indices, values = sparse
    out = np.zeros((len(indptr) - 1, features), np.float16)
    out[np.repeat(np.arange(len(out)), np.diff(indptr)), indices] = values
    return out


# ---------------------------------------------------------------- other ways to write feature numbers

compiled: Any = numba.njit(nogil=True)


def smallest(largest: int) -> int:
    """Bytes of the smallest whole-byte integer that holds a number."""
    return max(1, -(-int(largest).bit_length() // 8))


@compiled
def _deltas(indptr: Any, indices: Any, out: Any, escape: int) -> int:
    """A byte a difference (less one, within a row); 255 and `escape` bytes for larger ones; LEB128 where it is 0."""
    at = 0
    for row in range(indptr.size - 1):
        last = -1
        for k in range(indptr[row], indptr[row + 1]):
            delta = indices[k] - last - 1
            last = indices[k]
            if escape == 0:
                while delta >= 128:
                    out[at] = (delta & 127) | 128
                    delta >>= 7
                    at += 1
                out[at] = delta
                at += 1
            elif delta < 255:
                out[at] = delta
                at += 1
            else:
                out[at] = 255
                for byte in range(escape):
                    out[at + 1 + byte] = (delta >> (8 * byte)) & 255
                at += 1 + escape
    return at


@compiled
def _undeltas(data: Any, indptr: Any, indices: Any, escape: int) -> None:
    at = 0
    for row in range(indptr.size - 1):
        last = -1
        for k in range(indptr[row], indptr[row + 1]):
            delta = np.int64(data[at])
            at += 1
            if escape == 0:
                shift = 7
                if delta >= 128:
                    delta &= 127
                    while True:
                        byte = np.int64(data[at])
                        at += 1
                        delta |= (byte & 127) << shift
                        shift += 7
                        if byte < 128:
                            break
            elif delta == 255:
                delta = 0
                for byte in range(escape):
                    delta |= np.int64(data[at + byte]) << (8 * byte)
                at += escape
            last += delta + 1
            indices[k] = last


def plain(chunk: Rows, width: int) -> tuple[int, Callable[[], Any], Callable[[], Any]]:
    """Counts of rows in the smallest integer, feature numbers in the smallest integer: bytes, encoder, decoder."""
    indptr, indices, _ = chunk
    item, count = smallest(width - 1), smallest(np.diff(indptr).max(initial=0))

    def encode() -> NDArray[np.uint8]:
        return np.ascontiguousarray(indices.view(np.uint8).reshape(-1, 4)[:, :item])

    stored = encode()

    def decode() -> NDArray[np.int32]:
        out = np.zeros((len(stored), 4), np.uint8)
        out[:, :item] = stored
        return out.view(np.int32)[:, 0]

    assert (decode() == indices).all()
    return stored.size + (len(indptr) - 1) * count, encode, decode


def deltas(chunk: Rows, width: int, escaped: bool) -> tuple[int, Callable[[], Any], Callable[[], Any]]:
    """Differences in bytes with escapes, or in LEB128; counts of rows as in `plain`."""
    indptr, indices, _ = chunk
    escape = smallest(width - 1) if escaped else 0
    count = smallest(np.diff(indptr).max(initial=0))

    def encode() -> NDArray[np.uint8]:
        out = np.empty(5 * len(indices), np.uint8)
        return out[: _deltas(indptr, indices, out, escape)]

    stored = encode()

    def decode() -> NDArray[np.int32]:
        out = np.empty(len(indices), np.int32)
        _undeltas(stored, indptr, out, escape)
        return out

    assert (decode() == indices).all()
    return stored.size + (len(indptr) - 1) * count, encode, decode


def buckets(chunk: Rows, width: int, low: int) -> tuple[int, Callable[[], Any], Callable[[], Any]]:
    """The codec's: buckets, and low parts of `low` bytes; decoding includes all checks."""
    indptr, indices, _ = chunk
    shape = len(indptr) - 1, width
    size = codec_packed.size(shape[0] * width, len(indices), low)

    def encode() -> NDArray[np.uint8]:
        places = np.zeros(size, np.uint8)
        codec_packed.write(codec_packed.positions_of_csr(indptr, indices, indices.shape, shape), low, places)
        return places

    stored = encode()
    starts = np.arange(shape[0] + 1) * width

    def decode() -> NDArray[np.int32]:
        positions = codec_packed.read(stored, shape[0] * width, len(indices), low)
        assert not isinstance(positions, str)
        bounds = np.searchsorted(positions, starts)
        return (positions - np.repeat(starts[:-1], np.diff(bounds))).astype(np.int32)

    assert (decode() == indices).all()
    return size, encode, decode


def bound(count: int, nonzero: int) -> float:
    """Bytes that no code of so many places can stay below, all sets of places being as likely."""
    return (lgamma(count + 1) - lgamma(nonzero + 1) - lgamma(count - nonzero + 1)) / log(2) / 8


LAYOUTS: dict[str, Callable[[Rows, int], tuple[int, Callable[[], Any], Callable[[], Any]]]] = {
    "plain, smallest integer": plain,
    "differences, bytes with escapes": lambda chunk, width: deltas(chunk, width, True),
    "differences, LEB128": lambda chunk, width: deltas(chunk, width, False),
    "buckets of 256": lambda chunk, width: buckets(chunk, width, 1),
    "buckets of 65,536": lambda chunk, width: buckets(chunk, width, 2),
}


# ---------------------------------------------------------------- measuring


def in_turn(
    functions: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Time each in turn, after one warm-up of all: seconds of all CPUs, and of the clock."""
    cpu: dict[str, list[float]] = {name: [] for name in functions}
    clock: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            function()
            if repeat:
                cpu[name].append(time.process_time() - start_cpu)
                clock[name].append(time.perf_counter() - start)
    return cpu, clock


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times as fast: the median over repeats, and the quartiles."""
    low, median, high = np.percentile([a / b for a, b in zip(times[slow], times[fast], strict=True)], [25, 50, 75])
    return {"median": median, "low": low, "high": high}


def indices_of(sparse: Rows, features: int, width: int, repeats: int) -> list[dict[str, Any]]:
    """Bytes and seconds of feature numbers in every layout, for chunks of `ROWS` rows and `width` features."""
    rows = len(sparse[0]) - 1
    chunks = [
        part(sparse, top, min(top + ROWS, rows), left, width)
        for top in range(0, rows, ROWS)
        for left in range(0, features, width)
    ]
    nonzero = len(sparse[1])
    pair = smallest(features - 1) + 2
    made = {name: [layout(chunk, width) for chunk in chunks] for name, layout in LAYOUTS.items()}
    times, _ = in_turn(
        {f"{name}/{side}": (lambda each=each, at=at: [one[at]() for one in each])
         for name, each in made.items() for side, at in (("encode", 1), ("decode", 2))}, repeats,
    )  # fmt: skip
    found = [
        {
            "layout": name,
            "index_bytes": sum(size for size, _, _ in each) / nonzero,
            "of_pairs": (sum(size for size, _, _ in each) / nonzero + 2) / pair,
            "encode_ns": statistics.median(times[f"{name}/encode"]) / nonzero * 1e9,
            "decode_ns": statistics.median(times[f"{name}/decode"]) / nonzero * 1e9,
        }
        for name, each in made.items()
    ]
    bitmap = sum(8 * -(-ROWS * width // 64) for _ in chunks) / nonzero
    least = sum(bound((len(chunk[0]) - 1) * width, len(chunk[1])) for chunk in chunks) / nonzero
    for name, size in (("bitmap", bitmap), ("no code is below", least)):
        found.append({"layout": name, "index_bytes": size, "of_pairs": (size + 2) / pair})
    return found


def one_chunk(sparse: Rows, features: int, repeats: int) -> dict[str, Any]:
    """The codec against zstd 1 on one dense chunk in memory, as `numcodecs.Zstd`, which zarr calls, has it."""
    chunk = part(sparse, 0, ROWS, 0, min(features, 8192))
    shape = ROWS, min(features, 8192)
    block, zstd = dense(chunk, shape[1]), Zstd(level=1)
    ours, theirs, out = codec.encode(block), zstd.encode(block), np.empty_like(block)
    assert codec.encode_csr(*chunk, shape).tobytes() == ours.tobytes()
    times, _ = in_turn(
        {
            "zstd encode": lambda: zstd.encode(block),
            "encode": lambda: codec.encode(block),
            "encode_csr": lambda: codec.encode_csr(*chunk, shape),
            "zstd decode": lambda: zstd.decode(theirs),
            "decode": lambda: codec.decode(ours, shape, np.float16),
            "zstd decode into": lambda: zstd.decode(theirs, out),
            "decode into": lambda: codec.decode(ours, shape, np.float16, out=out),
            "fill with zeros": lambda: out.fill(0),
            "decode_csr": lambda: codec.decode_csr(ours, shape, np.float16),
        },
        repeats,
    )
    return {
        "shape": shape,
        "bytes": len(ours),
        "bytes_of_zstd": len(theirs),
        "version": int(ours[4]),
        "milliseconds": {name: statistics.median(each) * 1e3 for name, each in times.items()},
        "times_as_fast": {
            "encode": ratio(times, "zstd encode", "encode"),
            "encode_csr": ratio(times, "zstd encode", "encode_csr"),
            "decode": ratio(times, "zstd decode", "decode"),
            "decode into": ratio(times, "zstd decode into", "decode into"),
            "filling zeros": ratio(times, "zstd decode into", "fill with zeros"),
            "decode_csr": ratio(times, "zstd decode", "decode_csr"),
        },
    }


def whole_store(sparse: Rows, features: int, width: int, folder: Path, repeats: int) -> dict[str, Any]:
    """Write and read a store: zstd 1 by zarr, the codec dense, and the codec by sparse rows."""
    rows = len(sparse[0]) - 1
    block = dense(sparse, features)
    paths = {name: folder / name for name in ("zstd", "bitmap")}
    layout = {"shard_prompts": ROWS, "chunk_prompts": ROWS, "chunk_features": width}
    for name, path in paths.items():
        shutil.rmtree(path, ignore_errors=True)
        store.create(path, rows, features, StoreConfig.model_validate(layout | {"codec": name}), {})
    cuts = list(enumerate(range(0, rows, ROWS)))
    pieces = [part(sparse, first, min(first + ROWS, rows), 0, features) for _, first in cuts]

    def write(name: str) -> None:
        for index, first in cuts:
            store.write_rows(paths[name], index, first, block[first : first + ROWS])

    def write_sparse() -> None:
        for (index, first), piece in zip(cuts, pieces, strict=True):
            sparse_rows.write_rows(paths["bitmap"], index, first, *piece)

    times, clock = in_turn(
        {
            "zstd write": lambda: write("zstd"),
            "write": lambda: write("bitmap"),
            "zstd read": lambda: deque(store.read_rows(paths["zstd"], ROWS), maxlen=1),
            "read": lambda: deque(store.read_rows(paths["bitmap"], ROWS), maxlen=1),
            "write sparse": write_sparse,
            "read sparse": lambda: deque(sparse_rows.read_rows(paths["bitmap"], ROWS), maxlen=1),
        },
        repeats,
    )
    for (first, got), (_, rows_got) in zip(
        store.read_rows(paths["bitmap"], ROWS), sparse_rows.read_rows(paths["bitmap"], ROWS), strict=True
    ):
        assert (got == block[first : first + ROWS]).all()
        assert (rows_got.toarray() == got).all()
    size = {
        name: sum(file.stat().st_size for file in (path / "activations" / "c").rglob("0") if file.is_file())
        for name, path in paths.items()
    }
    nonzero, pair = len(sparse[1]), smallest(features - 1) + 2
    return {
        "tokens": rows,
        "chunk": (ROWS, width),
        "bytes_a_token": size["bitmap"] / rows,
        "zstd_bytes_a_token": size["zstd"] / rows,
        "of_pairs": size["bitmap"] / (nonzero * pair),
        "gigabytes_of_10_million_tokens": size["bitmap"] / rows / 100,
        "seconds": {name: statistics.median(each) for name, each in clock.items()},
        "cpu_seconds": {name: statistics.median(each) for name, each in times.items()},
        "sparse_entries_a_cpu_second": nonzero / statistics.median(times["read sparse"]),
        "times_as_fast": {
            name: ratio(times, f"zstd {name.split()[0]}", name)
            for name in ("write", "read", "write sparse", "read sparse")
        },
        "times_as_fast_by_the_clock": {
            name: ratio(clock, f"zstd {name.split()[0]}", name)
            for name in ("write", "read", "write sparse", "read sparse")
        },
    }


def crossing(repeats: int) -> list[dict[str, float]]:
    """Around the density at which a bitmap takes fewer bytes, what a chunk of 512 x 8,192 takes of either."""
    count, rng, found = ROWS * 8192, np.random.default_rng(0), []
    for nonzero in (codec_packed.most(count), codec_packed.most(count) + 64):
        block = np.zeros(count, np.float16)
        block[rng.permutation(count)[:nonzero]] = rng.lognormal(0, 0.8, nonzero)
        chunk, out = codec.encode(block), np.empty_like(block)
        times, _ = in_turn(
            {"encode": lambda block=block: codec.encode(block),
             "decode": lambda chunk=chunk, out=out: codec.decode(chunk, out.shape, out.dtype, out=out)}, repeats,
        )  # fmt: skip
        found.append(
            {"density": nonzero / count, "version": int(chunk[4]), "bytes": chunk.size}
            | {f"{name}_ms": statistics.median(each) * 1e3 for name, each in times.items()}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=1 << 28, help="of each case's dense activations")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to put the stores; a temporary folder by default")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "data": "SYNTHETIC: Zipf rates, log-normal values", "python": platform.python_version(),
        "cpus": os.cpu_count(), "load_before": os.getloadavg(), "cases": [], "crossing": crossing(args.repeats),
    }  # fmt: skip
    print(f"chunk of {ROWS} x 8,192: ", report["crossing"])
    for active, features in CASES:
        tokens = max(args.bytes // (2 * features) // ROWS, 1) * ROWS
        sparse = drawn(tokens, features, active)
        case: dict[str, Any] = {"L0": len(sparse[1]) / tokens, "features": features, "layouts": {}}
        pair = smallest(features - 1) + 2
        print(f"\n{case['L0']:.1f} of {features:,} features, a pair of {pair} bytes")
        for width in sorted({min(features, 8192), features}):
            rows = case["layouts"][f"{ROWS} x {width}"] = indices_of(sparse, features, width, args.repeats)
            print(f"  chunks of {ROWS} x {width:,}\n  {'':<34}{'index bytes':>12}{'of pairs':>9}{'ns in':>7}{'out':>6}")
            for row in rows:
                cells = "".join(f"{row[key]:>7.1f}" for key in ("encode_ns", "decode_ns") if key in row)
                print(f"  {row['layout']:<34}{row['index_bytes']:>12.3f}{row['of_pairs']:>9.3f}{cells}")
        case["chunk"] = one_chunk(sparse, features, 3 * args.repeats)
        case["stores"] = []
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            for width in sorted({min(features, 8192), features}):
                case["stores"].append(whole_store(sparse, features, width, Path(folder), args.repeats))
        for name, ratios in (
            ("a chunk", case["chunk"]["times_as_fast"]),
            *((f"store {each['chunk']}", each["times_as_fast"]) for each in case["stores"]),
            *((f"store {each['chunk']}, clock", each["times_as_fast_by_the_clock"]) for each in case["stores"]),
        ):
            fast = ", ".join(f"{k} {v['median']:.1f} [{v['low']:.1f}, {v['high']:.1f}]" for k, v in ratios.items())
            print(f"  {name}: times as fast as zstd 1: {fast}")
        for each in case["stores"]:
            print(
                f"  store {each['chunk']}: {each['bytes_a_token']:.1f} bytes a token, {each['of_pairs']:.3f} of pairs, "
                f"{each['bytes_a_token'] / each['zstd_bytes_a_token']:.2f} of zstd 1; of 10,000,000 tokens "
                f"{each['gigabytes_of_10_million_tokens']:.2f} GB (extrapolated); "
                f"{each['sparse_entries_a_cpu_second'] / 1e6:.0f} million entries a CPU second read as sparse rows"
            )
        report["cases"].append(case)
    report["load_after"] = os.getloadavg()
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
