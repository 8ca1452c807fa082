"""Kills before every change of the file system; then what is there is read, and the same command finishes it."""

from __future__ import annotations

from collections.abc import Iterator

from tests.faults import killer, outcomes, reading
from tests.faults.forking import Note
from tests.faults.outcomes import Try
from tests.faults.subject import Subject

FAULT = "killed"
COMMANDS = ("run", "import_cache", "sweep", "export", "compare", "report")


def changes(subject: Subject, command: str) -> list[str]:
    """What a command changes, in order, from a run that is only counted."""
    subject.wipe(command)
    child = subject.command(command, lambda note: killer.arm(subject.work, 0, lambda what: note({"change": what})))
    if child.code:
        raise RuntimeError(f"{command} fails under the hook: {child.text}")
    return [row["change"] for row in child.rows]


def tries(subject: Subject, command: str, numbers: range | list[int], *, read: bool = True) -> Iterator[Try]:
    """Kill a command before change k, for each k; then read (if asked for), do it again, and compare."""
    for k in numbers:
        subject.wipe(command)

        def before(note: Note, k: int = k) -> None:
            killer.arm(subject.work, k, lambda what: note({"change": what}))

        child = subject.command(command, before)
        place = f"before change {k}: {child.rows[-1]['change'] if child.rows else ''}"
        how = f"{command}: SIGKILL before change k"
        if child.code == 0:
            continue  # finished with fewer changes: threads take turns
        if child.code != -9:
            yield Try(FAULT, how, place, command, outcomes.TRACEBACK, f"exit code {child.code}: {child.last}")
            continue
        if read and command in ("run", "import_cache"):
            yield from _read(subject, command, how, place)
        yield _again(subject, command, how, place)


def _read(subject: Subject, command: str, how: str, place: str) -> Iterator[Try]:
    """Readers of what a killed run left: what they say is right, or they refuse. Only wrong ones are yielded."""
    whole = digests(subject, command)

    def work(note: Note) -> object:
        for row in reading.properties(subject.out):
            note(row)
        for name in ("show", "verify"):
            note(reading.command(subject, name))
        return 0

    child = subject.run(work)
    for row in child.rows:
        outcome = outcomes.FOUND
        if row["kind"] == "traceback":
            outcome = outcomes.TRACEBACK
        elif row["kind"] == "ok" and row["reader"] not in VARYING and row["digest"] != whole.get(row["reader"]):
            outcome = outcomes.SILENT
        if outcome in outcomes.BAD:
            yield Try(FAULT, f"{how}, then read", place, row["reader"], outcome, row["said"] or "another result")
    if child.code:
        yield Try(FAULT, f"{how}, then read", place, "a reader", outcomes.TRACEBACK, child.last)


VARYING = {".record", "repr", ".neuronpedia_id", "show", "verify"}  # say how far the run has come
_DIGESTS: dict[str, dict[str, str]] = {}


def digests(subject: Subject, command: str) -> dict[str, str]:
    """What readers say of the undisturbed result, at the place where tries are."""
    key = f"{subject.base} {command}"
    if key not in _DIGESTS:

        def work(note: Note) -> object:
            for row in reading.properties(subject.undisturbed(command) / "out"):
                note(row)
            return 0

        rows = subject.run(work).rows
        _DIGESTS[key] = {row["reader"]: row["digest"] for row in rows if row["kind"] == "ok"}
    return _DIGESTS[key]


def _again(subject: Subject, command: str, how: str, place: str) -> Try:
    """The same command on what is left."""
    child = subject.command(command)
    if child.raised:
        return Try(FAULT, how, place, command, outcomes.TRACEBACK, child.last)
    unlike = subject.compared(command)
    if child.code:
        whole = not unlike and "exists already" in child.text  # it was killed after its last change
        return Try(FAULT, how, place, command, outcomes.FOUND if whole else outcomes.LOST, child.last)
    left = [line for line in unlike if ".tmp" in line.partition(":")[0]]
    wrong = [line for line in unlike if line not in left]
    if wrong:
        return Try(FAULT, how, place, command, outcomes.SILENT, "; ".join(wrong[:3]))
    said = f"leftovers stay: {'; '.join(left[:2])}" if left else ""
    return Try(FAULT, how, place, command, outcomes.REPAIRED, said)
