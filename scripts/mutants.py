"""Does a test notice? Each mutant is one wrong line; the tests that should notice it run on a copy of the repository.

    python scripts/mutants.py [--only NAME ...] [--list] [--jobs N]

A mutant is *killed* when a test fails, it *survived* when all pass, and it is *broken* when the tests do not run, or
take too long. First the same tests run without any mutant: they must pass. Exit code 0: all were killed; 1: some were
not; 2: the list does not fit the code, or tests fail without a mutant.

To add a mutant, add a record to `MUTANTS`: `old` must be there exactly once in `file`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("src", "tests", "configs", "pyproject.toml")
SECONDS = 300  # a run of tests
KILLED, SURVIVED, BROKEN = "killed", "survived", "broken"


@dataclass(frozen=True)
class Mutant:
    """One change that some test must notice.

    Attributes
    ----------
    name, why : str
        What `--only` takes, and what would be wrong.
    file : str
        Module of the package.
    old, new : str
        Text that is there once, and what takes its place.
    tests : str
        Test files, or tests of theirs, without the folder; parted by blanks.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    why: str

    @property
    def path(self) -> Path:
        return Path("src/gpuclust") / self.file


ARITHMETIC = "test_memory_arithmetic.py"


def constant(name: str, value: str, file: str = "memory.py", tests: str = ARITHMETIC) -> list[Mutant]:
    """A constant that is 0, and one that is 1."""
    why = f"{name} counts for nothing"
    return [
        Mutant(f"{name}={n}", file, f"\n{name} = {value}", f"\n{name} = {n}", tests, why) for n in (0, 1)
    ]


MUTANTS = [
    # ------------------------------------------------------------ memory: constants of the projections
    *constant("PROCESS", "1_800_000_000"),
    *constant("PROCESS_CUDA", "3_000_000_000"),
    *constant("SLABS", "6 * 8 * (1 << 20)"),
    *constant("ENCODE", "3 * (256 << 20)"),
    *constant("DEVICE_ENCODE", "3 * (128 << 20)"),
    *constant("BACK", "2 * (128 << 20)"),
    *constant("MOMENTS", "4 * (128 << 20) + 9 * 8 * (1 << 22)"),
    *constant("SUMS", "2 * 8 * (1 << 22)"),
    Mutant("UMAP_WORK=0", "memory.py", "HDBSCAN_WORK = 300_000_000,", "HDBSCAN_WORK = 0,", ARITHMETIC, "no workspace"),
    Mutant("HDBSCAN_WORK=0", "memory.py", "300_000_000, 1_000_000_000", "300_000_000, 0", ARITHMETIC, "no workspace"),
    *constant("TILE", "4096"),
    *constant("MAX_ROWS", "2048"),
    *constant("PROFILE_ROWS", "4096"),
    *constant("PERMUTED_ROWS", "512"),
    *constant("PAIRS", "1 << 22"),
    Mutant("LINKED=1", "memory.py", "LINKED = 4", "LINKED = 1", ARITHMETIC, "all features in one group"),
    *constant("FREE_SHARE", "0.6"),
    *constant("RESERVE", "(", "device.py")[:0],
    # ------------------------------------------------------------ memory: terms of the formulas
    Mutant("encoder-stays", "memory.py", "base = PROCESS + _weights(shapes)  # the", "base = PROCESS  # the",
           ARITHMETIC, "the weights that stay loaded are forgotten"),
    Mutant("tiles-of-groups", "memory.py", "per_pass * shapes.n_groups * tile * tile * 8 +", "per_pass * tile * tile * 8 +",
           ARITHMETIC, "every group of prompts has tiles"),
    Mutant("dense-views", "memory.py", "(4 + 2 * shapes.n_views)", "4", ARITHMETIC, "every view has distances"),
    Mutant("unembedding", "memory.py", "whole * 3 // 2", "whole", ARITHMETIC, "the float32 unembedding"),
    Mutant("refuse-equal", "memory.py", "if stage.peak <= result.budget:", "if stage.peak < result.budget:",
           ARITHMETIC, "what just fits is allowed"),
]  # fmt: skip


class Copy:
    """A copy of the repository that tests run on; mutants come and go in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, folder / name)

    def run(self, tests: list[str]) -> tuple[int, str]:
        """Run tests; return pytest's exit code, -1 where they take too long, and the end of what it said."""
        environment = os.environ | {"PYTHONPATH": str(self.folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += [str(self.folder / "tests" / test) for test in tests]
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return -1, f"more than {SECONDS} seconds"
        return done.returncode, (done.stdout + done.stderr)[-3000:]

    def judge(self, mutant: Mutant) -> tuple[str, str]:
        """Put a mutant in, run its tests, take it out; return the verdict and what the tests said."""
        path = self.folder / mutant.path
        before = path.read_text(encoding="utf8")
        path.write_text(before.replace(mutant.old, mutant.new), encoding="utf8")
        try:
            code, said = self.run(mutant.tests.split())
        finally:
            path.write_text(before, encoding="utf8")
        return {0: SURVIVED, 1: KILLED}.get(code, BROKEN), said


def check(mutants: list[Mutant]) -> list[str]:
    """What is wrong with a list of mutants."""
    wrong = []
    names = [mutant.name for mutant in mutants]
    wrong += [f"{name}: the name is there {names.count(name)} times" for name in dict.fromkeys(names)
              if names.count(name) > 1]  # fmt: skip
    for mutant in mutants:
        count = (ROOT / mutant.path).read_text(encoding="utf8").count(mutant.old)
        if count != 1:
            wrong.append(f"{mutant.name}: {mutant.path} holds its text {count} times, not once: {mutant.old!r}")
    return wrong


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mutants of these names")
    parser.add_argument("--list", action="store_true", help="name the mutants and run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time, each on a copy of its own")
    options = parser.parse_args()
    if wrong := check(MUTANTS):
        print(*wrong, sep="\n", file=sys.stderr)
        return 2
    unknown = set(options.only or ()) - {mutant.name for mutant in MUTANTS}
    if unknown:
        print(f"there is no mutant {', '.join(sorted(unknown))}; --list names all", file=sys.stderr)
        return 2
    chosen = [mutant for mutant in MUTANTS if not options.only or mutant.name in options.only]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name:24} {mutant.file:16} {mutant.why}")
        return 0
    with tempfile.TemporaryDirectory(prefix="gpuclust-mutants-") as folder:
        copies = [Copy(Path(folder) / str(number)) for number in range(max(options.jobs, 1))]
        tests = sorted({test for mutant in chosen for test in mutant.tests.split()})
        code, said = copies[0].run(tests)
        if code != 0:
            print(said, f"these tests do not pass without a mutant: {' '.join(tests)}", sep="\n", file=sys.stderr)
            return 2
        free = list(copies)

        def judge(mutant: Mutant) -> tuple[str, str, float]:
            copy, started = free.pop(), time.perf_counter()
            try:
                return (*copy.judge(mutant), time.perf_counter() - started)
            finally:
                free.append(copy)

        found: dict[str, list[str]] = {KILLED: [], SURVIVED: [], BROKEN: []}
        with ThreadPoolExecutor(len(copies)) as pool:
            for mutant, (verdict, said, seconds) in zip(chosen, pool.map(judge, chosen), strict=True):
                found[verdict].append(mutant.name)
                print(f"{verdict:9} {mutant.name:24} {seconds:5.1f} s  {mutant.file}: {mutant.why}", flush=True)
                if verdict == BROKEN:
                    print(said)
    print(f"{len(found[KILLED])} of {len(chosen)} killed", *(
        f"{len(found[verdict])} {verdict}: {', '.join(found[verdict])}" for verdict in (SURVIVED, BROKEN) if found[verdict]
    ), sep="; ")  # fmt: skip
    return 1 if found[SURVIVED] or found[BROKEN] else 0


if __name__ == "__main__":
    sys.exit(main())
