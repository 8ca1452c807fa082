"""Make the pictures of README and docs: the maps of finished runs, on light and on dark ground.

    python scripts/pictures.py NAME=RUN ...      # docs/images/NAME-light.png, NAME-dark.png

`demo` is what `make run` leaves in runs/demo; `smollm2` is the run of 6,000 prompts that docs/answers.md tells of.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gpuclust

IMAGES = Path(__file__).parent.parent / "docs" / "images"


def main(given: list[str]) -> None:
    for name, run in (text.split("=", 1) for text in given):
        for ground in ("light", "dark"):
            target = IMAGES / f"{name}-{ground}.png"
            named = gpuclust.open_run(run).write_map(target, dark=ground == "dark")
            print(f"{target}: {len(named)} names, {target.stat().st_size >> 10} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
