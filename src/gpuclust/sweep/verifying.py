"""Whether a sweep's files are what it wrote: its results, what it keeps for the next time, and its extractions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gpuclust.errors import CorruptDataError, StoreError
from gpuclust.storage import atomic, checksums, verifying
from gpuclust.sweep.experiment import EXTRACTIONS, RECORD


def damages(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, what) of each file of a sweep that is not what was written.

    Extractions are marked as damaged, and what was kept for the next time is removed: it is made when it is wanted.

    Parameters
    ----------
    path : Path
        The folder of the sweep.
    """
    if (path / RECORD).exists():
        try:
            known = checksums.read_json(path / RECORD).get("checksums", {})
        except ValueError as error:
            yield RECORD, f"is damaged: {error}"
        else:
            yield from ((place, "fails its checksum, or is missing") for place in checksums.damaged(path, known))
    for seal in sorted(path.rglob(f"*{checksums.SEAL}")):
        kept = seal.with_name(seal.name.removesuffix(checksums.SEAL))
        if not checksums.sealed(kept):
            yield kept.relative_to(path).as_posix(), "is not what was kept, and is removed"
            atomic.remove(kept)
            atomic.remove(seal)
    for extraction in sorted((path / EXTRACTIONS).glob("*")) if (path / EXTRACTIONS).is_dir() else ():
        try:
            found = verifying.damages(extraction)
        except (CorruptDataError, StoreError) as error:
            yield extraction.relative_to(path).as_posix(), str(error)
            continue
        for damage in found:
            yield (extraction / damage.place).relative_to(path).as_posix(), damage.what
        if broken := [damage.stage for damage in found if damage.stage != verifying.CONFIGURATION]:
            verifying.forget(extraction, broken[0])
