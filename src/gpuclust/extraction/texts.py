"""Values of tables and files as text that can be stored, or refused with where they stand and what they are."""

from __future__ import annotations

import datetime
import math
import numbers
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.errors import PromptsError
from gpuclust.formatting import shown

# What `str` writes as people would: True, 3, 0.5, 2024-01-31. A Decimal is a number, a Timestamp a date
PLAIN = (
    numbers.Number, np.bool_, np.datetime64, np.timedelta64, datetime.date, datetime.time, datetime.timedelta,
    uuid.UUID,
)  # fmt: skip
MARKS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz"}
WIDE = {"utf-32": (b"\xff\xfe\0\0", b"\0\0\xfe\xff"), "utf-16": (b"\xff\xfe", b"\xfe\xff")}


def storable(value: Any, where: str) -> str:
    """Return a value as text that can be stored; nothing for a missing one (None, NaN, NaT or pd.NA).

    Raises
    ------
    PromptsError
        If it is a list or the like, bytes that are no UTF-8, infinite, or holds half of a surrogate pair.
    """
    if isinstance(value, str):
        text = value
    elif isinstance(value, bytes | bytearray | memoryview):
        return decoded(bytes(value), where)
    elif is_missing(value):
        return ""
    elif isinstance(value, float | np.floating) and math.isinf(value):
        raise PromptsError(f"{where} is {value}, not text: a number that was too large? Write it in quotes")
    elif isinstance(value, PLAIN):
        try:
            text = str(value)
        except ValueError as error:  # thousands of digits
            raise PromptsError(f"{where} is a number of too many digits ({error}): write it in quotes") from error
    else:
        raise PromptsError(f"{where} is a {type(value).__name__}, not text: {shown(value)}. Write each out as one text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptsError(
            f"{where} has half of a surrogate pair at character {error.start}, which is no text in Unicode: "
            f"{shown(text[max(error.start - 20, 0) : error.start + 20])}. Clean it, such as with "
            'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
        ) from error
    return text


def is_missing(value: Any) -> bool:
    """None, or what takes its place in tables: NaN, NaT and pd.NA."""
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def decoded(raw: bytes, where: str | Path) -> str:
    """Return UTF-8 text, with a byte order mark or without.

    Raises
    ------
    PromptsError
        If it is no UTF-8, with what it may be instead.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptsError(f"{where} is not UTF-8 text{_instead(raw, error)}") from error
    if raw.count(0) * 3 > len(raw) > 8:
        raise PromptsError(f"{where} is not UTF-8 text: a third of it is NUL, as in UTF-16; {convert('utf-16')}")
    return text


def convert(encoding: str) -> str:
    """How to make UTF-8 of an encoding."""
    return f'convert it: data.decode("{encoding}").encode(), or iconv -f {encoding.upper()} -t UTF-8'


def _instead(raw: bytes, error: UnicodeDecodeError) -> str:
    """What bytes that are no UTF-8 may be, and the fix."""
    for mark, name in MARKS.items():
        if raw.startswith(mark):
            return f", but {name}-compressed: unpack it first"
    for name, marks in WIDE.items():
        if raw.startswith(marks):
            return f", but probably {name.upper()}: {convert(name)}"
    near = raw[max(error.start - 12, 0) : error.start + 12]
    line = raw.count(b"\n", 0, error.start) + 1
    place = (
        f"{error.reason} at byte {error.start}, line {line}"
        if b"\n" in raw
        else f"{error.reason} at byte {error.start}"
    )
    return f" ({place}: {near!r}); {convert('latin-1')}, or whatever it is in"
