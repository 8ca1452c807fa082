"""How numbers are written for people, in the terminal, on pages and in sentences.

The report's script has its own `number`, with the same digits."""

from __future__ import annotations

import math
import reprlib
from typing import Any

import numpy as np

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlevel = 2


def shown(value: Any) -> str:
    """Write the beginning of a value of any kind as Python does, however long or deep it is.

    Examples
    --------
    >>> shown("a" * 1000), shown([[[1]]]), shown(10**5000)
    ("'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'", '[[[...]]]', 'a very long int')
    """
    try:
        text = " ".join(_SHORT.repr(value).split())
    except Exception:  # what `repr` of somebody else's objects raises is anything; of a long int, ValueError
        return f"a very long {type(value).__name__}"
    return text.encode(errors="backslashreplace").decode()


def gigabytes(n: int) -> str:
    """Write bytes.

    Examples
    --------
    >>> gigabytes(2_150_000_000)
    '2.15 GB'
    """
    return f"{n / 1e9:.2f} GB"


def number(value: float | None) -> str:
    """Write a measured number with three significant digits; nothing for null.

    Examples
    --------
    >>> [number(x) for x in (0.12345, 2.0, 1234567, 123.45, 2345.6, 1.5e-7, math.nan)]
    ['0.123', '2', '1,234,567', '123.5', '2,346', '1.50e-07', '']
    """
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return str(value)
    if float(value).is_integer():
        return f"{value:,.0f}"
    size = abs(value)
    if size >= 1e5 or size < 1e-4:
        return f"{value:.2e}"
    if size >= 100:
        return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}"
    return f"{value:.3g}"


def score(value: float) -> str:
    """Write an index such as ARI, with two decimals; ``none`` where there was nothing to measure.

    Examples
    --------
    >>> score(0.5), score(math.nan)
    ('0.50', 'none')
    """
    return f"{value:.2f}" if math.isfinite(value) else "none"


def percent(share: float) -> str:
    """Write a share; ``none`` where there was nothing to measure.

    Examples
    --------
    >>> percent(0.567), percent(-0.001), percent(math.nan)
    ('57%', '0%', 'none')
    """
    return f"{abs(share) if abs(share) < 0.005 else share:.0%}" if math.isfinite(share) else "none"


def counted(number: int, noun: str) -> str:
    """Write how many there are.

    Examples
    --------
    >>> counted(1, "seed"), counted(1200, "file")
    ('1 seed', '1,200 files')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def written(value: Any) -> str:
    """Write a setting's value: whole numbers without a point, truth values as in YAML.

    Examples
    --------
    >>> written(True), written(15.0), written(0.25), written("cosine")
    ('true', '15', '0.25', 'cosine')
    """
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:.0f}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def plain(value: Any) -> str:
    """Write any value of a table: numbers as `number`, lists with commas, nothing for null.

    Examples
    --------
    >>> plain([1, 0.12345]), plain(None), plain(True)
    ('1, 0.123', '', 'True')
    """
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if value is None or value != value:
        return ""
    if isinstance(value, bool | np.bool_ | str):
        return str(value)
    return number(float(value)) if isinstance(value, int | float | np.number) else str(value)
