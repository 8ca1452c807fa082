"""Limits: a full disk, a largest size of files, few open files, little memory, a disk that is read only.

A disk is full in two ways: a small tmpfs at the folder, where mounting is allowed, and everywhere an audit hook that
says ENOSPC to the k-th change and all after it. The command must say so once, and finish once the limit is gone.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults import killer, outcomes, reading
from tests.faults.forking import Child, Note
from tests.faults.outcomes import Try
from tests.faults.subject import Subject

SHARES = (0.005, 0.02, 0.06, 0.12, 0.2, 0.4, 0.7, 0.97)  # of what an undisturbed result takes
SIZES = (0, 300, 1000, 4000, 16_000, 100_000, 1_000_000, 4_000_000)  # bytes of the largest file
FILES = (3, 6, 10, 16, 24, 40)  # more than are open at the start
MEMORY = (8, 32, 128, 512, 2048)  # MB more than are mapped at the start
COMMANDS = ("run", "import_cache", "sweep", "export")


@dataclass(frozen=True)
class Limit:
    """One limit on one command.

    Attributes
    ----------
    fault, how, place : str
        For the table.
    command : str
    arm : callable
        Called in the child before the command.
    tmpfs : int
        Bytes of a disk to mount at the folder, 0 for none.
    """

    fault: str
    how: str
    place: str
    command: str
    arm: Callable[[Subject], None]
    tmpfs: int = 0


def _nothing(subject: Subject) -> None:
    pass


def cases(subject: Subject, commands: tuple[str, ...] = COMMANDS, hooks: int = 8, mount: bool = True) -> list[Limit]:
    """All limits; a disk that is full from the k-th change on at `hooks` places a command."""
    found = []
    for command in commands:
        if mount and can_mount(subject.base):
            size = taken(subject.undisturbed(command))
            found += [
                Limit("full disk", "a tmpfs", f"{share:.1%} of {size:,} bytes", command, _nothing, int(size * share))
                for share in SHARES
            ]
        count = len(_changes(subject, command))
        for number in range(hooks):
            at = 1 + int((number + 0.5) * count / hooks)
            found.append(Limit("full disk", "ENOSPC from change k on, by a hook", f"k = {at}", command, _full(at)))
        for size in SIZES:
            found.append(Limit("RLIMIT_FSIZE", "setrlimit", f"{size:,} bytes", command, _limit("FSIZE", size)))
    for command in commands[:2]:
        for count in FILES:
            found.append(Limit("RLIMIT_NOFILE", "setrlimit", f"{count} more files", command, _files(count)))
        for size in MEMORY:
            found.append(Limit("RLIMIT_AS", "setrlimit", f"{size} MB more", command, _memory(size << 20)))
    return found


def _changes(subject: Subject, command: str) -> list[str]:
    from tests.faults import kills

    return kills.changes(subject, command)


def _full(at: int) -> Callable[[Subject], None]:
    return lambda subject: killer.arm(subject.work, at, lambda what: None, full=True)


def _limit(name: str, value: int) -> Callable[[Subject], None]:
    return lambda subject: resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _files(more: int) -> Callable[[Subject], None]:
    def arm(subject: Subject) -> None:
        open_now = len(list(Path("/proc/self/fd").iterdir())) - 1  # without the one that looks
        _limit("NOFILE", open_now + more)(subject)

    return arm


def _memory(more: int) -> Callable[[Subject], None]:
    def arm(subject: Subject) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit("AS", pages * resource.getpagesize() + more)(subject)

    return arm


def taken(folder: Path) -> int:
    """Bytes that a folder takes on a disk of whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def can_mount(base: Path) -> bool:
    """Whether this process may mount a tmpfs."""
    place = base / "mounted"
    place.mkdir(exist_ok=True)
    if not _mount(place, "size=64k"):
        return False
    _unmount(place)
    return True


def _mount(place: Path, options: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True)
        return done.returncode == 0
    return False


def _unmount(place: Path) -> None:
    subprocess.run(["umount", str(place)], check=True)


@contextlib.contextmanager
def _disk(subject: Subject, size: int) -> Iterator[None]:
    """A small disk at the folder of tries."""
    if not _mount(subject.work, f"size={size}"):
        raise RuntimeError("a tmpfs could be mounted before, and cannot be now")
    try:
        yield
    finally:
        _unmount(subject.work)


def tries(subject: Subject, chosen: list[Limit]) -> Iterator[Try]:
    """Run a command under each limit, judge what it says, and let it finish without."""
    for limit in chosen:
        subject.wipe(limit.command)
        with _disk(subject, limit.tmpfs) if limit.tmpfs else contextlib.nullcontext():

            def before(note: Note, limit: Limit = limit) -> None:
                limit.arm(subject)

            child = subject.command(limit.command, before)
            yield Try(limit.fault, limit.how, f"{limit.command}: {limit.place}", limit.command, *_judge(child))
            if limit.tmpfs:
                subprocess.run(["mount", "-o", "remount,size=1g", str(subject.work)], check=True)
            again = subject.command(limit.command)
            unlike = subject.compared(limit.command)
            if again.raised:
                outcome, said = outcomes.TRACEBACK, again.last
            elif again.code and not (child.code == 0 and not unlike and limit.command == "export"):
                outcome, said = outcomes.LOST, again.last
            elif all(".tmp" in line.partition(":")[0] for line in unlike) and unlike:
                outcome, said = outcomes.REPAIRED, f"leftovers stay: {'; '.join(unlike[:2])}"
            elif unlike:
                outcome, said = outcomes.SILENT, "; ".join(unlike[:3])
            else:
                outcome, said = outcomes.REPAIRED, again.last
            yield Try(limit.fault, f"{limit.how}, then without", f"{limit.command}: {limit.place}", limit.command,
                      outcome, said)  # fmt: skip


def _judge(child: Child) -> tuple[str, str]:
    """One clear error, or success: enough was there."""
    if child.hung:
        return outcomes.TRACEBACK, f"hangs: {child.last}"
    if child.raised:
        return outcomes.TRACEBACK, f"exit code {child.code}: {child.last}"
    if child.code == 0:
        return outcomes.HARMLESS, "there was enough"
    if child.text.count("error: ") != 1:
        return outcomes.TRACEBACK, f"no single message: {child.last}"
    return outcomes.FOUND, next(line for line in child.text.splitlines() if "error: " in line)


def read_only(subject: Subject) -> Iterator[Try]:
    """Readers of a finished run on a disk that is read only, where mounting is allowed."""
    if not can_mount(subject.base):
        return
    subject.wipe()
    with _disk(subject, 1 << 30):
        shutil.copytree(subject.finished, subject.out, symlinks=True)
        subprocess.run(["mount", "-o", "remount,ro", str(subject.work)], check=True)

        def work(note: Note) -> object:
            for row in reading.properties(subject.out):
                note(row)
            for name in ("show", "show --cluster --feature", "report", "verify", reading.RUN_AGAIN):
                note(reading.command(subject, name))
            return 0

        child = subject.run(work)
    if child.code:
        yield Try("read-only disk", "a tmpfs", "", "a reader", outcomes.TRACEBACK, child.last)
    for row in child.rows:
        outcome = {"ok": outcomes.HARMLESS, "refused": outcomes.FOUND}.get(row["kind"], outcomes.TRACEBACK)
        yield Try("read-only disk", "a tmpfs", "", row["reader"], outcome, row["said"])
