"""Whether a sweep's files are what it wrote: its results, what it keeps for the next time, extractions and runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gpuclust.errors import CorruptDataError, StoreError
from gpuclust.storage import atomic, checksums, verifying
from gpuclust.sweep.experiment import EXTRACTIONS, RECORD, RESULTS
from gpuclust.sweep.opened import RUNS


def damages(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, what) of each file of a sweep that is not what was written.

    Where the folder can be written to, extractions and runs are marked as damaged, and what was kept for the next time
    is removed: it is made when it is wanted.

    Parameters
    ----------
    path : Path
        The folder of the sweep.
    """
    writable = os.access(path, os.W_OK)
    yield from _results(path)
    for seal in sorted(path.rglob(f"*{checksums.SEAL}")):
        kept = seal.with_name(seal.name.removesuffix(checksums.SEAL))
        if not checksums.sealed(kept):
            yield kept.relative_to(path).as_posix(), "is not what was kept"
            if writable:
                atomic.remove(kept)
                atomic.remove(seal)
    runs = [run for name in (EXTRACTIONS, RUNS) for run in sorted((path / name).glob("*")) if run.is_dir()]
    for run in runs:
        if atomic.is_leftover(run):  # of a killed process: the next command removes it
            continue
        try:
            found = verifying.damages(run)
        except (CorruptDataError, StoreError) as error:
            yield run.relative_to(path).as_posix(), f"cannot be checked: {error}"
            continue
        for damage in found:
            yield (run / damage.place).relative_to(path).as_posix(), damage.what
        broken = [damage.stage for damage in found if damage.stage != verifying.CONFIGURATION]
        if broken and writable:
            verifying.forget(run, broken[0])


def finished(path: Path) -> bool:
    """Whether a sweep has come to its end, and its record is there."""
    return (path / RECORD).exists()


def _results(path: Path) -> Iterator[tuple[str, str]]:
    if not finished(path):
        if any((path / name).exists() for name in RESULTS):
            yield RECORD, "is missing, so that nobody knows what its results should be"
        return
    try:
        known = checksums.read_json(path / RECORD).get("checksums", {})
    except ValueError as error:
        yield RECORD, f"is damaged: {error}"
    else:
        yield from ((place, "fails its checksum, or is missing") for place in checksums.damaged(path, known))
