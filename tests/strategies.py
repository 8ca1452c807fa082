"""Hypothesis strategies: activations that look like an SAE's, and ways to cut them."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

Array = np.ndarray[Any, Any]


@st.composite
def activations(draw: st.DrawFn, max_prompts: int = 40, max_features: int = 12, signed: bool = False) -> Array:
    """(prompt, feature), float16 or float32: many zeros, some dead features, some duplicates."""
    shape = (draw(st.integers(1, max_prompts)), draw(st.integers(1, max_features)))
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    values = draw(
        hnp.arrays(
            np.float32,
            shape,
            elements=st.one_of(st.just(0.0), st.floats(-8 if signed else 2**-7, 64, width=32, allow_subnormal=False)),
            fill=st.just(0.0),
        )
    )
    return values.astype(dtype)


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[slice]:
    """Slices that cover range(length), in any order."""
    inner = draw(st.lists(st.integers(1, max(length - 1, 1)), unique=True, max_size=6)) if length > 1 else []
    edges = [0, *sorted(inner), length]
    pieces = [slice(a, b) for a, b in pairwise(edges) if b > a]
    return list(draw(st.permutations(pieces)))


def sae_like(n_prompts: int, n_features: int, density: float = 0.2, seed: int = 0) -> Array:
    """Activations in float16 with groups of features that fire together, none dead, no ties."""
    rng = np.random.default_rng(seed)
    topics = rng.random((n_prompts, 8)) < 0.25
    member = rng.integers(0, 8, n_features)
    fires = rng.random((n_prompts, n_features)) < np.where(topics[:, member], 3 * density, density / 3)
    fires[rng.integers(0, n_prompts, n_features), np.arange(n_features)] = True
    return np.where(fires, rng.gamma(2.0, 1.0, fires.shape) + 0.05, 0).astype(np.float16)


ODD_NUMBERS = st.sampled_from([0, 1, -1, 2, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400])
SCALARS = st.one_of(
    st.none(), st.booleans(), ODD_NUMBERS, st.integers(-3, 70), st.floats(), st.floats(0, 1),
    st.text(st.characters(codec=None), max_size=8),
    st.sampled_from(["", "auto", "6GB", "1e3", "null", "../x", "\0", "é"]),
)  # fmt: skip
JUNK = st.recursive(
    st.one_of(SCALARS, st.binary(max_size=4), st.dates(), st.sampled_from([np.float32(2), np.arange(3), {1, 2}])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(SCALARS, inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip


@st.composite
def settings_of_any_kind(draw: st.DrawFn, plain: bool = False) -> dict[Any, Any]:
    """A configuration with junk for some of its known keys, values that are right for others, and unknown keys.

    With `plain`, of what YAML can write.
    """
    from gpuclust.config import Config

    right = Config().resolved() | {"prompts": [{"path": "a.txt", "limit": 3, "label": "a"}]}
    values = SCALARS if plain else JUNK
    found: dict[Any, Any] = {}
    for name in draw(st.lists(st.sampled_from(sorted(right)), max_size=4, unique=True)):
        value = right[name]
        if isinstance(value, dict) and draw(st.integers(0, 3)):
            chosen = draw(st.lists(st.sampled_from(sorted(value)), max_size=3))
            found[name] = {key: draw(values) if draw(st.booleans()) else value[key] for key in chosen}
        elif name == "prompts" and draw(st.integers(0, 3)):
            keys = ["path", "dataset", "name", "split", "column", "source_column", "limit", "label", "streaming", "x"]
            found[name] = [value[0] | draw(st.dictionaries(st.sampled_from(keys), values, max_size=3))]
        else:
            found[name] = draw(values)
    if not draw(st.integers(0, 5)):
        found[draw(SCALARS)] = draw(values)
    return found


PIECES = st.sampled_from(
    [
        '{"text": "a b"}', '{"text": ', "}", "[", "]", '"', "\\", "\\ud800", "\ud800", "\0", "\n", "\r\n", "\r", "\n\n",
        ",", "text", "text,source\n", "source", "null", "NaN", "1e999", "9" * 5000, "\ufeff", "é", "🙂", "a b", " ",
        "\x1a", "\u2028", '{"text": "a", "text": "b"}', "[" * 3000, "PAR1", ";", "'", '""',
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["text", "text", "source", "other"]), VALUES, max_size=3), max_size=4)
ENCODINGS = st.sampled_from(
    ["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"]
)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Bytes of a file of prompts, nearly: pieces of all formats in an encoding, sometimes packed, cut or flipped."""
    text = "".join(draw(st.lists(PIECES, max_size=12)))
    if draw(st.booleans()):
        rows = draw(ROWS)
        text = "".join(json.dumps(row, ensure_ascii=draw(st.booleans())) + "\n" for row in rows)
    encoding = draw(ENCODINGS)
    data = text.encode(encoding, errors="surrogatepass" if "utf" in encoding else "replace")
    if not draw(st.integers(0, 6)):
        data = draw(st.binary(max_size=60))
    if not draw(st.integers(0, 8)):
        data = gzip.compress(data, mtime=0)
    return data[draw(st.sampled_from([0, 0, 0, 1, 2, 3])) :]


@st.composite
def columns_of_arrow(draw: st.DrawFn, size: int) -> Any:
    """An Arrow array of some type, with nulls."""
    import pyarrow as pa

    texts = st.none() | st.text(max_size=4) | st.sampled_from(["a b c", "", "\0"])
    raws = st.none() | st.binary(max_size=4)
    inner, kind = draw(
        st.sampled_from(
            [
                (texts, pa.string()), (texts, pa.large_string()), (texts, pa.string_view()), (raws, pa.binary()),
                (raws, pa.large_binary()), (st.none() | st.integers(-(2**63), 2**63 - 1), pa.int64()),
                (st.none() | st.integers(0, 255), pa.uint8()), (st.none() | st.floats(), pa.float64()),
                (st.none() | st.floats(width=16), pa.float32()), (st.none() | st.booleans(), pa.bool_()),
                (st.none() | st.integers(-(2**62), 2**62), pa.timestamp("us")),
                (st.none() | st.integers(-(2**40), 2**40), pa.timestamp("ms", tz="UTC")),
                (st.none() | st.integers(-(2**31), 2**31 - 1), pa.date32()),
                (st.none() | st.integers(0, 86_399), pa.time32("s")),
                (st.none() | st.integers(-9, 9), pa.duration("s")),
                (st.none() | st.lists(texts, max_size=2), pa.list_(pa.string())),
                (st.none() | st.fixed_dictionaries({"a": texts}), pa.struct({"a": pa.string()})),
                (st.none(), pa.null()),
            ]
        )
    )  # fmt: skip
    column = pa.array(draw(st.lists(inner, min_size=size, max_size=size)), kind)
    if pa.types.is_binary(kind) and draw(st.booleans()):
        column = column.view(pa.string())  # which need be no UTF-8
    if (pa.types.is_string(column.type) or pa.types.is_integer(kind)) and draw(st.booleans()):
        column = column.dictionary_encode()
    return column


@st.composite
def tables_of_arrow(draw: st.DrawFn) -> Any:
    """An Arrow table with columns ``text`` and ``source``, or others."""
    import pyarrow as pa

    names = draw(st.lists(st.sampled_from(["text", "text", "source", "other", ""]), min_size=1, max_size=3))
    size = draw(st.integers(0, 4))
    return pa.Table.from_arrays([draw(columns_of_arrow(size)) for _ in names], names=names)
