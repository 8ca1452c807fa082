"""The command ``python -m gpuclust.report DIR``: make the report of a run anew."""

from __future__ import annotations

import sys

from gpuclust.results.report.__main__ import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
