"""Types of arrays, once for all modules; shapes and dtypes are in the docstrings of what takes and returns them."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]  # in host memory
AnyArray = Any  # NumPy's or CuPy's, whose types have nothing in common
