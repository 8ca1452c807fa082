"""``python -m gpuclust``: the command ``gpuclust``."""

from __future__ import annotations

import sys

from gpuclust.cli import main

if __name__ == "__main__":
    sys.exit(main())
