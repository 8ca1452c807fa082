"""Files that are no prompts, no sweep and no cache, by what is wrong with them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Make = Callable[[Path], object]


def _text(text: str) -> Make:
    return lambda path: path.write_text(text, encoding="utf8")


def _bytes(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def _rows(*rows: Any) -> Make:
    return _text("".join(json.dumps(row) + "\n" for row in rows))


def _table(columns: dict[str, list[Any]], cut: int = 0) -> Make:
    def make(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), path)
        if cut:
            path.write_bytes(path.read_bytes()[:-cut])

    return make


def _flipped(path: Path) -> None:
    _table({"text": [f"some words {i} of a prompt" for i in range(500)]})(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)


def _folder(path: Path) -> None:
    path.mkdir()


def _nothing(path: Path) -> None:
    pass


def _loop(path: Path) -> None:
    path.symlink_to(path)


MANY = [f"prompt {i} about topic {i % 5} and some more words" for i in range(40)]
JSON = {"column": "text"}
PROMPTS: dict[str, tuple[str, Make, dict[str, Any]]] = {
    "empty": ("a.txt", _text(""), {}),
    "blank": ("a.txt", _text("\n\n \n\t\n"), {}),
    "one prompt": ("a.txt", _text("a b c"), {}),
    "two prompts": ("a.txt", _text("a b c\n\nd e f"), {}),
    "NUL bytes": ("a.txt", _text("\n\n".join(f"{one}\0" for one in MANY)), {}),
    "random bytes": ("a.txt", _bytes(bytes(range(256)) * 40), {}),
    "UTF-16": ("a.txt", _bytes("\n\n".join(MANY).encode("utf16")), {}),
    "lone surrogates": ("a.jsonl", _text("".join(f'{{"text": "a \\ud800 {i}"}}\n' for i in range(40))), JSON),
    "one long word": ("a.txt", _text("x" * 300_000), {}),
    "all the same": ("a.txt", _text("\n\n".join(["same"] * 40)), {}),
    "a folder": ("a.txt", _folder, {}),
    "missing": ("a.txt", _nothing, {}),
    "a link to itself": ("a.txt", _loop, {}),
    "no suffix": ("a", _text("\n\n".join(MANY)), {}),
    "another suffix": ("a.xlsx", _text("\n\n".join(MANY)), {}),
    "windows line ends": ("a.txt", _bytes("\r\n\r\n".join(MANY).encode()), {}),
    "empty lines file": ("a.jsonl", _text(""), JSON),
    "no JSON": ("a.jsonl", _text("hello\n"), JSON),
    "cut short": ("a.jsonl", _text("".join(json.dumps({"text": one}) + "\n" for one in MANY)[:-5]), JSON),
    "numbers for rows": ("a.jsonl", _rows(*range(40)), JSON),
    "lists for rows": ("a.jsonl", _rows(*([one] for one in MANY)), JSON),
    "one JSON list": ("a.jsonl", _text(json.dumps([{"text": one} for one in MANY])), JSON),
    "another column": ("a.jsonl", _rows(*({"words": one} for one in MANY)), JSON),
    "numbers for texts": ("a.jsonl", _rows(*({"text": i} for i in range(40))), JSON),
    "mixed texts": ("a.jsonl", _rows(*({"text": one if i % 2 else i} for i, one in enumerate(MANY))), JSON),
    "null texts": ("a.jsonl", _rows(*({"text": None} for _ in MANY)), JSON),
    "objects for texts": ("a.jsonl", _rows(*({"text": {"a": one}} for one in MANY)), JSON),
    "objects for sources": (
        "a.jsonl", _rows(*({"text": one, "s": {"a": [i]}} for i, one in enumerate(MANY))),
        {**JSON, "source_column": "s"},
    ),
    "mixed sources": (
        "a.jsonl", _rows(*({"text": one, "s": [1, "a", None, 2.5][i % 4]} for i, one in enumerate(MANY))),
        {**JSON, "source_column": "s"},
    ),
    "lists as sources": (
        "a.jsonl", _rows(*({"text": one, "s": ["a", i]} for i, one in enumerate(MANY))), {**JSON, "source_column": "s"},
    ),
    "surrogates as sources": (
        "a.jsonl", _text("".join(f'{{"text": "a {i}", "s": "\\ud800"}}\n' for i in range(40))),
        {**JSON, "source_column": "s"},
    ),
    "compressed": ("a.jsonl", _bytes(gzip.compress(b'{"text": "a b c"}\n' * 40)), JSON),
    "UTF-16 without a mark": ("a.csv", _bytes("text\na b c\n".encode("utf-16-le") * 9), JSON),
    "infinite numbers": ("a.parquet", _table({"text": [float("inf")] * 40}), JSON),
    "lists as sources, a table": (
        "a.parquet", _table({"text": MANY, "s": [["a", "b"]] * 40}), {**JSON, "source_column": "s"},
    ),
    "another source column": ("a.jsonl", _rows(*({"text": one} for one in MANY)), {**JSON, "source_column": "s"}),
    "the text as source": ("a.jsonl", _rows(*({"text": one} for one in MANY)), {**JSON, "source_column": "text"}),
    "deeply nested": ("a.jsonl", _text("[" * 100_000 + "\n"), JSON),
    "huge number": ("a.jsonl", _text('{"text": ' + "9" * 6000 + "}\n"), JSON),
    "NaN": ("a.jsonl", _text('{"text": NaN}\n' * 3), JSON),
    "doubled keys": ("a.jsonl", _text("".join(f'{{"text": "a", "text": "b {i} c"}}\n' for i in range(40))), JSON),
    "empty table": ("a.csv", _text(""), JSON),
    "only a head": ("a.csv", _text("text\n"), JSON),
    "ragged": ("a.csv", _text("text,source\n" + "a,b,c,d\nx\n" * 20), JSON),
    "open quote": ("a.csv", _text('text\n"never closed\n' + "more\n" * 20), JSON),
    "NUL in a table": ("a.csv", _text("text\n" + "a\0b\n" * 20), JSON),
    "bad bytes in a table": ("a.csv", _bytes(b"text\n" + b"\xff\xfe words\n" * 20), JSON),
    "doubled columns": ("a.csv", _text("text,text\n" + "".join(f"a {i},b {i}\n" for i in range(40))), JSON),
    "numbers in a table": ("a.csv", _text("text\n" + "".join(f"{i}\n" for i in range(40))), JSON),
    "a huge cell": ("a.csv", _text("text\n" + "word " * 60_000 + "\n"), JSON),
    "an empty file": ("a.parquet", _bytes(b""), JSON),
    "text for Parquet": ("a.parquet", _text("hello"), JSON),
    "no end": ("a.parquet", _table({"text": MANY}, 7), JSON),
    "a flipped bit": ("a.parquet", _flipped, JSON),
    "no rows": ("a.parquet", _table({"text": []}), JSON),
    "integers": ("a.parquet", _table({"text": list(range(40))}), JSON),
    "lists": ("a.parquet", _table({"text": [[one] for one in MANY]}), JSON),
    "bytes": ("a.parquet", _table({"text": [one.encode() + b"\xff" for one in MANY]}), JSON),
    "nulls": ("a.parquet", _table({"text": [None] * 40}), JSON),
    "no such column": ("a.parquet", _table({"words": MANY}), JSON),
    "a limit of one": ("a.parquet", _table({"text": MANY}), {**JSON, "limit": 1}),
}  # fmt: skip

SWEEPS: dict[str, Any] = {
    "empty": "", "a list": "- 1\n", "no YAML": "a: [", "another base": {"base": 3},
    "unknown field": {"vary": {"umap.neighbours": [4]}}, "no values": {"vary": {"umap.n_neighbors": []}},
    "a value for values": {"vary": {"umap.n_neighbors": 4}}, "text for numbers": {"vary": {"umap.n_neighbors": ["x"]}},
    "one bad value": {"vary": {"umap.n_neighbors": [4, -1]}}, "no seeds": {"seeds": 0}, "no fields": {"vary": {}},
    "too many neighbours": {"vary": {"umap.n_neighbors": [4, 5000]}},
    "a section": {"vary": {"umap": [{"min_dist": 0.5}]}},
    "a filter for none": {"vary": {"select.sparsity_max": [1.01, 1e-9]}},
    "no such source": {"vary": {"source": ["a", "zz"]}},
    "no such length": {"vary": {"length": [[1000, 2000]]}}, "length turned": {"vary": {"length": [[40, 20]]}},
    "too many prompts": {"vary": {"n_prompts": [30, 10**9]}}, "one prompt": {"vary": {"n_prompts": [1]}},
    "null": {"vary": None}, "equal values": {"vary": {"umap.n_neighbors": [4, 4, 4.0]}},
    "large clusters": {"vary": {"hdbscan.min_cluster_size": [4, 10**6]}}, "questions twice": {"questions": {"a": 1}},
    "nan": {"vary": {"umap.min_dist": [float("nan")]}}, "seeds as list": {"seeds": ["a"]},
}  # fmt: skip


def _saved(make: Callable[[Any], Any]) -> Make:
    def save(path: Path) -> None:
        import torch

        torch.save(make(torch), path)

    return save


def _cut(path: Path) -> None:
    _saved(lambda torch: {"acts": torch.rand(80, 40), "prompts": [f"p {i}" for i in range(80)]})(path)
    path.write_bytes(path.read_bytes()[:-300])


def _bit(path: Path) -> None:
    _saved(lambda torch: {"acts": torch.rand(80, 40), "prompts": [f"p {i}" for i in range(80)]})(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)


TEXTS = [f"p {i}" for i in range(80)]
CACHES: dict[str, Make] = {
    "missing": _nothing, "a folder": _folder, "empty": _bytes(b""), "text": _text("hello"), "cut short": _cut,
    "a zip": _bytes(b"PK\x05\x06" + bytes(18)), "a flipped bit": _bit,
    "a tensor": _saved(lambda torch: torch.rand(3, 3)), "no prompts": _saved(lambda torch: {"acts": torch.rand(3, 3)}),
    "integers": _saved(lambda torch: {"acts": torch.ones(80, 40, dtype=torch.int64), "prompts": TEXTS}),
    "three axes": _saved(lambda torch: {"acts": torch.rand(80, 4, 10), "prompts": TEXTS}),
    "no rows": _saved(lambda torch: {"acts": torch.rand(0, 40), "prompts": []}),
    "no features": _saved(lambda torch: {"acts": torch.rand(80, 0), "prompts": TEXTS}),
    "one row": _saved(lambda torch: {"acts": torch.rand(1, 40), "prompts": ["a"]}),
    "one feature": _saved(lambda torch: {"acts": torch.rand(80, 1), "prompts": TEXTS}),
    "fewer prompts": _saved(lambda torch: {"acts": torch.rand(80, 40), "prompts": TEXTS[:-1]}),
    "a text for prompts": _saved(lambda torch: {"acts": torch.rand(80, 40), "prompts": "a" * 80}),
    "a number for prompts": _saved(lambda torch: {"acts": torch.rand(80, 40), "prompts": 80}),
    "nothing for prompts": _saved(lambda torch: {"acts": torch.rand(80, 40), "prompts": None}),
    "numbers as prompts": _saved(lambda torch: {"acts": torch.rand(80, 40), "prompts": list(range(80))}),
    "surrogates": _saved(lambda torch: {"acts": torch.rand(80, 40), "prompts": [f"\ud800{i}" for i in range(80)]}),
    "NaN": _saved(lambda torch: {"acts": torch.rand(80, 40) / 0 * 0, "prompts": TEXTS}),
    "infinite": _saved(lambda torch: {"acts": torch.rand(80, 40) / 0, "prompts": TEXTS}),
    "too large": _saved(lambda torch: {"acts": torch.rand(80, 40) * 1e38, "prompts": TEXTS}),
    "zeros": _saved(lambda torch: {"acts": torch.zeros(80, 40), "prompts": TEXTS}),
    "ones": _saved(lambda torch: {"acts": torch.ones(80, 40), "prompts": TEXTS}),
    "negative": _saved(lambda torch: {"acts": -torch.rand(80, 40), "prompts": TEXTS}),
    "bfloat16": _saved(lambda torch: {"acts": torch.rand(80, 40).bfloat16(), "prompts": TEXTS}),
    "float64": _saved(lambda torch: {"acts": torch.rand(80, 40).double() * 1e300, "prompts": TEXTS}),
    "sparse": _saved(lambda torch: {"acts": torch.rand(80, 40).to_sparse(), "prompts": TEXTS}),
    "complex": _saved(lambda torch: {"acts": torch.rand(80, 40) + 1j, "prompts": TEXTS}),
    "a gradient": _saved(lambda torch: {"acts": torch.rand(80, 40).requires_grad_(), "prompts": TEXTS}),
    "lists": _saved(lambda torch: {"acts": [[1.0] * 40] * 80, "prompts": TEXTS}),
}  # fmt: skip
