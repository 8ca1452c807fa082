"""Some of all kinds that take about two minutes together: those that plain pytest tries."""

from __future__ import annotations

from collections.abc import Iterator

from tests.faults import damages, inputs, kills, limits, planted
from tests.faults.bad_files import CACHES, PROMPTS, SWEEPS
from tests.faults.outcomes import Try
from tests.faults.subject import Subject

COMMANDS = ("run", "export", "import_cache", "compare")
KILLS = {"run": (0.15,), "import_cache": (0.08,), "export": (0.5,), "compare": (0.5,)}  # shares of all changes
DAMAGES = (
    ("activations.zarr/feature/c/0", "bit 3 at 33%"), ("activations.zarr/activations/zarr.json", "bit 3 at 33%"),
    ("activations.zarr/zarr.json", "half"), ("config.yaml", "bit 2 at 46.2%"), ("features.parquet", "bit 6 at 10%"),
    ("shards/00001.json", "half"),
)  # fmt: skip
LIMITS = (("full disk", "run: k ="), ("RLIMIT_FSIZE", "run: 16,000 bytes"), ("full disk", "export: k ="))
FILES = ("NUL bytes", "cut short", "mixed sources", "text for Parquet", "a flipped bit")
OF_CACHES, OF_SWEEPS = ("cut short", "NaN", "a number for prompts"), ("text for numbers", "a value for values")


def tries(subject: Subject) -> Iterator[Try]:
    """All of them; always the same."""
    yield from planted.tries(subject)
    for command, shares in KILLS.items():
        count = len(kills.changes(subject, command))
        yield from kills.tries(subject, command, [max(1, int(share * count)) for share in shares], read=False)
    whole = damages.undisturbed(subject, twice=False)
    chosen = [case for case in damages.cases(subject.finished, subject.other) if (case[0], case[2]) in DAMAGES]
    yield from damages.tries(subject, chosen, whole)
    every = limits.cases(subject, ("run", "export"), hooks=1, mount=False)
    for fault, place in LIMITS:
        found = [one for one in every if one.fault == fault and f"{one.command}: {one.place}".startswith(place)]
        yield from limits.tries(subject, found[:1])
    yield from inputs.prompts(subject, {name: PROMPTS[name] for name in FILES})
    yield from inputs.caches(subject, {name: CACHES[name] for name in OF_CACHES})
    yield from inputs.sweeps(subject, {name: SWEEPS[name] for name in OF_SWEEPS})
    yield from inputs.arrays(subject, 10)
    yield from inputs.configurations(subject, 40, 1)
