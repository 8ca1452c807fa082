"""Bad inputs: configurations, files of prompts, caches, sweeps and arrays; each is taken, or refused with one error."""

from __future__ import annotations

import json
import resource
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.faults import outcomes
from tests.faults.bad_files import CACHES, PROMPTS, SWEEPS
from tests.faults.forking import Note
from tests.faults.outcomes import Try
from tests.faults.subject import Subject

ODD = (
    None, True, "", "x", "6GB", "1e3", "\0é", [], {}, [1, "a"], {"a": 1}, -1, 0, 1, 2, 3, 7, 0.5, 1.0, 1e-300, 1.5,
    float("nan"), float("inf"), float("-inf"), 10**9, 2**31, 10**30,
)  # fmt: skip
LONG = ("n_epochs", "members", "seeds", "random_sets", "timeout")  # of which more takes longer, as asked
MEMORY = 6 << 30  # more bytes than are mapped at the start: what is asked for in good faith must be planned


def _raised(error: Exception) -> dict[str, Any]:
    """What is noted of an error: refused in one line, or what nobody foresaw."""
    from gpuclust.errors import GpuclustError

    if isinstance(error, GpuclustError):
        return {"outcome": outcomes.FOUND, "said": str(error)}
    return {"outcome": outcomes.TRACEBACK, "said": traceback.format_exception(error)[-1].strip()}


def fields() -> list[str]:
    """All settings by their dotted names."""
    from gpuclust.config import Config

    found = []
    for name, value in Config().resolved().items():
        found += [f"{name}.{inner}" for inner in value] if isinstance(value, dict) else [name]
    return [*found, "prompts.0.path", "prompts.0.column", "prompts.0.limit", "prompts.0.source_column", "nothing"]


def drawn(count: int) -> list[dict[str, Any]]:
    """Settings with odd values, by dotted names: always the same ones."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    found: list[dict[str, Any]] = []
    one = st.tuples(st.sampled_from(fields()), st.sampled_from(ODD))

    @settings(max_examples=count, derandomize=True, database=None, phases=[Phase.generate], deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.lists(one, min_size=1, max_size=3))
    def collect(chosen: list[tuple[str, Any]]) -> None:
        found.append({key: value for key, value in chosen if not (_is_long(key) and isinstance(value, int | float)
                                                                  and value > 10)})  # fmt: skip

    collect()
    return [one for one in found if one]


def _is_long(key: str) -> bool:
    return key.endswith(LONG)


def configurations(subject: Subject, count: int, runs: int) -> Iterator[Try]:
    """Draw settings, check them all, and run on those that are taken."""
    from gpuclust import configfile

    base = yaml.safe_load(subject.config.read_text())
    cases = drawn(count)

    def settings(case: dict[str, Any]) -> dict[str, Any]:
        data = json.loads(json.dumps(base))
        for key, value in case.items():
            configfile.assign(data, key, value)
        return data

    def work(note: Note) -> object:
        for number, case in enumerate(cases):
            row = {"number": number, "outcome": outcomes.HARMLESS, "said": ""}
            try:
                configfile.validate(settings(case))
            except Exception as error:
                row |= _raised(error)
            note(row)
        return 0

    rows = subject.run(work).rows
    taken = []
    for row in rows:
        case = cases[int(row["number"])]
        if row["outcome"] == outcomes.HARMLESS:
            taken.append(case)
        else:
            yield Try("bad configuration", "drawn by Hypothesis", repr(case), "configfile", row["outcome"], row["said"])
    for case in taken[:: max(1, len(taken) // max(runs, 1))][:runs]:
        subject.wipe()
        file = subject.work / "config.yaml"
        file.write_text(yaml.safe_dump(settings(case), allow_unicode=True))
        yield _run(subject, "odd configuration", "drawn by Hypothesis, then run", repr(case),
                   ["run", "--config", file, "--out", subject.out, "--scheduler", "threads", "--quiet"])  # fmt: skip


def _run(subject: Subject, fault: str, how: str, place: str, arguments: list[Any], seconds: float = 60.0) -> Try:
    """Run a command: success or one clear error."""

    def work(note: Note) -> object:
        from gpuclust import cli

        pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY, pages + MEMORY))
        return cli.main([str(one) for one in arguments])

    child = subject.run(work, seconds)
    if child.raised:
        said = f"{'hangs' if child.hung else f'exit code {child.code}'}: {child.last}"
        return Try(fault, how, place, str(arguments[0]), outcomes.TRACEBACK, said)
    if child.code == 0:
        return Try(fault, how, place, str(arguments[0]), outcomes.HARMLESS, "taken")
    single = child.text.count("error: ") >= 1
    return Try(fault, how, place, str(arguments[0]), outcomes.FOUND if single else outcomes.TRACEBACK, child.last)


def prompts(subject: Subject, files: Mapping[str, Any] = PROMPTS) -> Iterator[Try]:
    """Files of prompts that hold something else."""
    base = yaml.safe_load(subject.config.read_text())
    for name, (file, make, more) in files.items():
        subject.wipe()
        path = subject.work / file
        make(path)
        config = subject.work / "config.yaml"
        config.write_text(yaml.safe_dump({**base, "prompts": [{"path": str(path), **more}]}, allow_unicode=True))
        yield _run(subject, "bad prompts", path.suffix or "none", f"{name} ({file})",
                   ["run", "--config", config, "--out", subject.out, "--scheduler", "threads", "--quiet"])  # fmt: skip


def sweeps(subject: Subject, files: Mapping[str, Any] = SWEEPS) -> Iterator[Try]:
    """Files of sweeps that say something else."""
    base = yaml.safe_load(subject.config.read_text()) | {"consensus": {"members": 1}}
    for name, data in files.items():
        subject.wipe()
        file = subject.work / "sweep.yaml"
        file.write_text(data if isinstance(data, str) else yaml.safe_dump({"base": base, "seeds": 1, **data}))
        yield _run(subject, "bad sweep", "a table", name,
                   ["sweep", file, "--out", subject.out, "--scheduler", "threads", "--quiet"])  # fmt: skip


def caches(subject: Subject, files: Mapping[str, Any] = CACHES) -> Iterator[Try]:
    """Files that are no notebook's cache."""
    from gpuclust import import_cache, terminal

    for name, make in files.items():
        subject.wipe()
        path = subject.work / "cache.pt"
        make(path)
        config: dict[str, Any] = {
            "cluster": {"method": "distances"}, "hdbscan": {"min_cluster_size": 3, "min_samples": 2},
            "select": {"sparsity_max": 2.0}, "quality": {"random_sets": 2},
        }  # fmt: skip

        def work(note: Note, path: Path = path, config: dict[str, Any] = config) -> object:
            return terminal.exit_code(lambda: import_cache(path, subject.out, config))

        child = subject.run(work)
        outcome = outcomes.TRACEBACK if child.raised else (outcomes.FOUND if child.code else outcomes.HARMLESS)
        yield Try("bad cache", "a table", name, "import_cache", outcome, child.last if child.code else "taken")


def arrays(subject: Subject, count: int) -> Iterator[Try]:
    """Arrays in hand: of odd kinds, and drawn ones."""
    from gpuclust import cluster_features
    from tests.faults.bad_arrays import DRAWN, TABLE, arrays_drawn

    cases: list[tuple[str, str, Callable[[], Any], dict[str, Any]]] = [
        ("a table", name, make, config) for name, (make, config) in TABLE.items()
    ]
    cases += [(DRAWN, text, lambda value=value: value, config) for text, value, config in arrays_drawn(count)]

    def work(note: Note) -> object:
        for number, (_, _, make, config) in enumerate(cases):
            row: dict[str, Any] = {"number": number, "outcome": outcomes.HARMLESS, "said": "taken"}
            note({"number": number, "begun": True})
            try:
                given = make()
                result = cluster_features(given, config)
                size = int(result.features["kept"].sum())
                if not (
                    len(result.labels) == len(result.probabilities) == size and np.isfinite(result.distances).all()
                ):
                    row |= {"outcome": outcomes.SILENT, "said": f"{size} kept, {len(result.labels)} labels"}
            except Exception as error:
                row |= _raised(error)
            note(row)
        return 0

    child = subject.run(work, 600.0)
    for row in child.rows:
        if "outcome" in row:
            how, name, _, _ = cases[row["number"]]
            yield Try("odd array", how, name, "cluster_features", row["outcome"], row["said"])
    if child.code:
        how, name, _, _ = cases[child.rows[-1]["number"]]
        yield Try("odd array", how, name, "cluster_features", outcomes.TRACEBACK, f"{child.code}: {child.last}")


def tries(subject: Subject, every: int = 1) -> Iterator[Try]:
    """All of them."""
    yield from prompts(subject)
    yield from caches(subject)
    yield from sweeps(subject)
    yield from arrays(subject, 200 // every)
    yield from configurations(subject, 600 // every, 90 // every)
