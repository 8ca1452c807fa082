"""Print the newest CPython on this machine, from 3.11 on, that can make environments: on the PATH, or kept by pyenv."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

OLDEST, NEWEST = 11, 14  # minor versions that gpuclust is tried with


def candidates(minor: int) -> Iterator[str]:
    if found := shutil.which(f"python3.{minor}"):
        yield found
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for folder in sorted(kept.glob(f"3.{minor}.*"), reverse=True):
        yield str(folder / "bin" / "python")


def main() -> None:
    for minor in range(NEWEST, OLDEST - 1, -1):
        for path in candidates(minor):
            code = f"import sys, ssl, venv; sys.exit(sys.version_info[:2] != (3, {minor}))"
            if subprocess.run([path, "-c", code], capture_output=True).returncode == 0:
                print(path)
                return
    raise SystemExit(f"no Python 3.{OLDEST} to 3.{NEWEST} found")


if __name__ == "__main__":
    main()
