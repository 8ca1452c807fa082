"""Damaged files of a finished run: what every reader makes of them, and whether the run's own command repairs them."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.faults import outcomes, reading
from tests.faults.forking import Note
from tests.faults.outcomes import Try
from tests.faults.subject import Subject

TEXTS = ("config.yaml", "run.json")  # their checksum is of what they say, not of their bytes
UNCHECKED = (".lock",)  # has no checksum, and says nothing
FLIPS = ((0.0, 0), (0.1, 6), (0.33, 3), (0.5, 0), (0.75, 5), (1.0, 7))  # place in the file, and bit
TEXT_FLIPS = 40  # more of them, in those two

Damage = Callable[[bytes], bytes | None]  # from a file's bytes to what is left of them; None for no file


def _flip(where: float, bit: int) -> Damage:
    def flip(data: bytes) -> bytes:
        if not data:
            return data
        changed = bytearray(data)
        changed[int(where * (len(data) - 1))] ^= 1 << bit
        return bytes(changed)

    return flip


WAYS: dict[str, dict[str, Damage]] = {
    "a flipped bit": {f"bit {bit} at {where:.0%}": _flip(where, bit) for where, bit in FLIPS},
    "cut off": {"half": lambda data: data[: len(data) // 2], "a byte": lambda data: data[:-1]},
    "emptied": {"": lambda data: b""},
    "deleted": {"": lambda data: None},
    "overwritten": {"zeros": lambda data: bytes(len(data)), "longer": lambda data: data + b"\0" * 16},
}


def kind(place: str) -> str:
    """What kind of file that is."""
    name = place.rpartition("/")[2]
    if place in (*UNCHECKED, *TEXTS, "report.html"):
        return place
    if place.startswith("shards/"):
        return "shard marker" if name.endswith(".json") else "shard states .npz"
    if name == "zarr.json":
        return "zarr.json"
    if "/c/" in place:
        return "shard of activations" if place.startswith("activations.zarr/activations/") else "chunk"
    return name.rpartition(".")[2] + " file"


def places(run: Path) -> list[str]:
    """Files of a run that are worth damaging: all but those of the second half and of shards after the second."""
    found = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    many = ("state/views/half1/", "shards/00002", "shards/00003", "activations.zarr/activations/c/2")
    return [place for place in found if not place.startswith((*many, "activations.zarr/activations/c/3"))]


def cases(run: Path, other: Path) -> list[tuple[str, str, str, Damage]]:
    """Every damage: place, how, detail, and the function; in an order whose every n-th is of all kinds."""
    found: list[tuple[str, str, str, Damage]] = []
    for place in places(run):
        found += [(place, how, detail, damage) for how, ways in WAYS.items() for detail, damage in ways.items()]
        if place in TEXTS:
            for number in range(TEXT_FLIPS):
                where = (number + 0.5) / TEXT_FLIPS
                found.append((place, "a flipped bit", f"bit {number % 8} at {where:.1%}", _flip(where, number % 8)))
        if (other / place).is_file() and (other / place).read_bytes() != (run / place).read_bytes():
            swapped = (other / place).read_bytes()
            found.append((place, "another run's", "", lambda data, swapped=swapped: swapped))
    folders = sorted({Path(place).parts[0] for place in places(run) if "/" in place} | {"state/views"})
    return found + [(place, "deleted", "the folder", lambda data: None) for place in folders]


def undisturbed(subject: Subject, twice: bool = True) -> dict[str, str]:
    """What every reader says of the whole run; asked twice, the same."""
    first = _rows(subject, subject.finished, 300.0)
    second = _rows(subject, subject.finished, 300.0) if twice else first
    for row, again in zip(first, second, strict=True):
        if row["kind"] != "ok" or row["digest"] != again["digest"]:
            raise RuntimeError(f"a reader of an undisturbed run says {row} and then {again}")
    return {row["reader"]: row["digest"] for row in first}


def _rows(subject: Subject, damaged: Path, seconds: float) -> list[dict[str, Any]]:
    subject.wipe()

    def work(note: Note) -> object:
        shutil.copytree(damaged, subject.out, symlinks=True)
        for rows in (reading.properties(subject.out), reading.commands(subject, damaged)):
            for row in rows:
                note(row)
        return 0

    child = subject.run(work, seconds)
    rows = list(child.rows)
    if child.code:
        rows.append({"reader": "the next reader", "kind": "traceback", "said": f"exit code {child.code}: {child.last}"})
    return rows


def tries(subject: Subject, chosen: list[tuple[str, str, str, Damage]], whole: dict[str, str]) -> Iterator[Try]:
    """Damage one file, let every reader try, and judge."""
    damaged = subject.base / "damaged"
    for place, how, detail, damage in chosen:
        if damaged.exists():
            shutil.rmtree(damaged)
        shutil.copytree(subject.finished, damaged, symlinks=True)
        if not apply(damaged / place, damage) or _says_the_same(damaged / place, subject.finished / place):
            continue
        for row in _rows(subject, damaged, 180.0):
            outcome, said = judge(place, how, row, whole)
            where = f"{place} ({detail})" if detail else place
            yield Try(f"damaged: {kind(place) if detail != 'the folder' else 'folder'}", how, where, row["reader"],
                      outcome, said)  # fmt: skip


def apply(file: Path, damage: Damage) -> bool:
    """Damage a file, or delete a folder; False where that changes nothing."""
    if file.is_dir():
        shutil.rmtree(file)
        return True
    before = file.read_bytes()
    after = damage(before)
    if after is None:
        file.unlink()
        return True
    file.write_bytes(after)
    return after != before


def _says_the_same(file: Path, whole: Path) -> bool:
    """Whether no more than a blank or a line break has changed in a file that is read as what it says."""
    if not file.is_file() or not (file.name in TEXTS or (file.parent.name == "shards" and file.suffix == ".json")):
        return False
    with contextlib.suppress(ValueError, yaml.YAMLError):
        read = json.loads if file.suffix == ".json" else yaml.safe_load
        return bool(read(file.read_bytes()) == read(whole.read_bytes()))
    return False


def judge(place: str, how: str, row: dict[str, Any], whole: dict[str, str]) -> tuple[str, str]:
    """One word for what a reader said of a damaged run."""
    reader, said = row["reader"], row["said"]
    if row["kind"] == "traceback":
        return outcomes.TRACEBACK, said
    if row["kind"] == "refused":
        return (outcomes.FOUND, said) if len(said) < 1200 else (outcomes.TRACEBACK, f"a long message: {said}")
    if reader in (reading.RUN_AGAIN, reading.MENDED):
        if row["digest"].startswith(reading.LEFT) and reader == reading.RUN_AGAIN:
            return outcomes.UNCHECKED, row["digest"]  # nothing was to be computed, so no shard was read
        return (outcomes.SILENT, row["digest"]) if row["digest"] else (outcomes.REPAIRED, said)
    if reader == "verify" and place not in UNCHECKED:
        return outcomes.SILENT, "verify says that nothing is damaged"
    if reader == "show" and f"{place} is missing" in said:
        return outcomes.FOUND, said
    if row["digest"] == whole[reader]:
        return outcomes.HARMLESS, said
    swapped = how == "another run's" and place in TEXTS  # whole, and no run knows another's record
    return (outcomes.UNCHECKED, said) if place in UNCHECKED or swapped else (outcomes.SILENT, said or "another result")
