"""What came of a try, and the table of all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

FOUND = "found"  # one clear message and an exit code of 1 or 2
REPAIRED = "repaired"  # what came out equals the undisturbed result
HARMLESS = "harmless"  # the reader does without what is damaged, and says the same
UNCHECKED = "not looked at"  # of a file that is known to have no checksum, or that nothing was read from
SILENT = "silently wrong"  # success, and another result
TRACEBACK = "traceback"  # an error that nobody foresaw, a crash, or no end
LOST = "lost"  # the same command does not finish any more once the fault is gone
GOOD, BAD = (FOUND, REPAIRED, HARMLESS, UNCHECKED), (SILENT, TRACEBACK, LOST)


@dataclass(frozen=True)
class Try:
    """One fault and what came of it."""

    fault: str
    how: str
    place: str
    reader: str
    outcome: str
    said: str

    def __str__(self) -> str:
        return f"{self.outcome:14} {self.fault} | {self.how} | {self.place} | {self.reader} | {self.said}"


def table(tries: Iterable[Try]) -> str:
    """A Markdown table: a row a fault and the way it was made."""
    rows: dict[tuple[str, str], list[Try]] = {}
    for one in tries:
        rows.setdefault((one.fault, one.how), []).append(one)
    heads = ("fault", "how made", "tries", *GOOD, *BAD)
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    every = [one for own in rows.values() for one in own]
    for (fault, how), own in [*rows.items(), (("all", ""), every)]:
        counts = [sum(one.outcome == name for one in own) for name in (*GOOD, *BAD)]
        lines.append("| " + " | ".join([fault, how, *map(str, [len(own), *counts])]) + " |")
    return "\n".join(lines)


def bad(tries: Iterable[Try]) -> list[Try]:
    """Those that must not be, gravest first."""
    return sorted((one for one in tries if one.outcome in BAD), key=lambda one: BAD.index(one.outcome))


def save(tries: Iterable[Try], path: Path) -> None:
    """Write all tries as JSON lines."""
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in tries))


def load(path: Path) -> list[Try]:
    """Read what `save` wrote."""
    return [Try(**json.loads(line)) for line in path.read_text().splitlines()]
