"""The command: try faults, print the bad ones as they come, and a table at the end."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults import forking, outcomes

KINDS = ("kills", "damages", "limits", "inputs")


def main() -> int:
    """Try what is asked for; exit code 1 where something was bad."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="|".join(KINDS), help="default all")
    parser.add_argument("--commands", nargs="*", help="of the kills; default all")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th try")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="of those, begin with this one")
    parser.add_argument("--sample", action="store_true", help="about 25 tries of all kinds")
    parser.add_argument("--tries", type=Path, metavar="FILE", help="write every try there, as JSON lines")
    parser.add_argument("--where", type=Path, metavar="DIR", help="for what is tried on; default in memory if possible")
    asked = parser.parse_args()
    if unknown := set(asked.kinds) - set(KINDS):
        parser.error(f"there is no kind {', '.join(unknown)}: {', '.join(KINDS)}")
    if any(os.environ.get(name) != value for name, value in forking.ONE_THREAD.items()):
        os.environ.update(forking.ONE_THREAD)
        os.execv(sys.executable, [sys.executable, "-m", "tests.faults", *sys.argv[1:]])
    began = time.monotonic()
    from tests.faults import planted

    forking.warm()
    memory = Path("/dev/shm")
    parent = asked.where or (memory if memory.is_dir() and os.access(memory, os.W_OK) else None)
    found: list[outcomes.Try] = []
    with tempfile.TemporaryDirectory(prefix="gpuclust-faults-", dir=parent) as folder:
        print(f"warm after {time.monotonic() - began:.0f} s; trying in {folder}", flush=True)
        for one in _tries(Path(folder).resolve(), asked):
            found.append(one)
            if (one.outcome in outcomes.BAD and one.fault != planted.FAULT) or one.said.startswith("leftovers"):
                print(one, flush=True)
            if asked.tries:
                outcomes.save(found, asked.tries)
    found = [one for one in found if one.fault != planted.FAULT]
    bad = outcomes.bad(found)
    print(f"\n{outcomes.table(found)}\n\n{len(found):,} tries, {len(bad)} bad, {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


def _tries(base: Path, asked: argparse.Namespace) -> Iterator[outcomes.Try]:
    from tests.faults import damages, inputs, kills, limits, sample, subject

    if asked.sample:
        yield from sample.tries(subject.prepare(base / "tried", sample.COMMANDS))
        return
    kinds = asked.kinds or KINDS
    commands = tuple(asked.commands or kills.COMMANDS) if "kills" in kinds else ("run",)
    commands = (
        tuple(dict.fromkeys((*commands, *(asked.commands or limits.COMMANDS)))) if "limits" in kinds else commands
    )
    tried = subject.prepare(base / "tried", commands)
    if "kills" in kinds:
        for command in commands:
            count = len(kills.changes(tried, command))
            print(f"{command}: {count} changes", flush=True)
            yield from kills.tries(tried, command, range(1 + asked.first, count + 1, asked.every))
    if "damages" in kinds:
        chosen = damages.cases(tried.finished, tried.other)[asked.first :: asked.every]
        print(f"damages: {len(chosen)}", flush=True)
        yield from damages.tries(tried, chosen, damages.undisturbed(tried))
    if "limits" in kinds:
        limited = limits.cases(tried, tuple(asked.commands or limits.COMMANDS))[asked.first :: asked.every]
        print(f"limits: {len(limited)}", flush=True)
        yield from limits.tries(tried, limited)
        yield from limits.read_only(tried)
    if "inputs" in kinds:
        yield from inputs.tries(tried, asked.every)


if __name__ == "__main__":
    sys.exit(main())
