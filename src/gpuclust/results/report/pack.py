"""Pack: plain data and typed arrays as one compressed block of bytes that a browser opens without copying.

Layout, before gzip: the length of the header (uint32), the header (JSON in UTF-8: `data`, and for each array its dtype,
shape and offset), and the arrays, little-endian, each at a multiple of 8 bytes.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np

from gpuclust.types import Array

DTYPES = ("uint8", "int8", "int32", "float32")  # what a browser has typed arrays for, and the page uses


def pack(data: dict[str, Any], arrays: dict[str, Array]) -> bytes:
    """Pack data and arrays.

    Parameters
    ----------
    data : dict
        What JSON holds; NaN is refused, write None.
    arrays : dict of arrays
        Of `DTYPES`.

    Raises
    ------
    ValueError
        If `data` holds NaN, or an array has another dtype.
    """
    places: dict[str, Any] = {}
    blocks: list[bytes] = []
    offset = 0
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES:
            raise ValueError(f"{name} is {array.dtype}; one of {', '.join(DTYPES)} is expected")
        raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        places[name] = {"dtype": array.dtype.name, "shape": array.shape, "offset": offset}
        blocks += [raw, bytes(-len(raw) % 8)]
        offset += len(raw) + len(blocks[-1])
    header = json.dumps({"data": data, "arrays": places}, allow_nan=False, ensure_ascii=False).encode()
    header += b" " * (-(4 + len(header)) % 8)
    return gzip.compress(b"".join([len(header).to_bytes(4, "little"), header, *blocks]), compresslevel=6, mtime=0)
