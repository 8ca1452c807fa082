"""Commands with planted faults: what the harness must call silently wrong, a traceback, and lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.faults import kills, outcomes, subject
from tests.faults.outcomes import Try

FAULT = "planted"


def _trusting(there: subject.Subject) -> int:
    """Takes a file that is there for what it should be."""
    return _written_in_place(there.out, 0)


def _raising(there: subject.Subject) -> int:
    """Cannot go on, and does not say why."""
    if there.out.exists():
        raise KeyError("planted")
    return _written_in_place(there.out, 0)


def _refusing(there: subject.Subject) -> int:
    """Never goes on."""
    return _written_in_place(there.out, 2)


def _written_in_place(out: Path, refusal: int) -> int:
    file = out / "values.npy"
    if file.exists():
        return refusal
    out.mkdir(parents=True)
    for values in (np.zeros(3), np.ones(3)):
        with file.open("wb") as stream:
            np.save(stream, values)
    return 0


EXPECTED = {_trusting: outcomes.SILENT, _raising: outcomes.TRACEBACK, _refusing: outcomes.LOST}


def tries(tried: subject.Subject) -> Iterator[Try]:
    """Kill each between its two writes; the place says what has to come out."""
    for command, expected in EXPECTED.items():
        name = f"planted-{expected}"
        subject.COMMANDS[name] = command
        tried.wipe()
        tried.command(name)
        tried.work.rename(tried.undisturbed(name))
        for one in kills.tries(tried, name, [3]):
            yield Try(FAULT, one.how, expected, one.reader, one.outcome, one.said)
        del subject.COMMANDS[name]
