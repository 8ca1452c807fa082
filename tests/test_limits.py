"""What a process may take of memory, and a run of a disk: control groups, address space, free room."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from gpuclust import schema
from gpuclust.config import Config
from gpuclust.errors import MemoryBudgetError, StoreError
from gpuclust.hardware import process
from gpuclust.results.inputs import refuse_larger_than_memory
from gpuclust.storage import disk
from tests import tiny
from tests.test_folder import go

GB = 10**9


def group(folder: Path, limit: str, used: int, cached: int, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}[version]
    for name, text in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(f"{text}\n")
    stat = f"inactive_file {cached}\n" if version == 2 else f"inactive_file 1\ntotal_inactive_file {cached}\n"
    (folder / "memory.stat").write_text(f"anon 5\n{stat}")


@pytest.mark.parametrize(
    ("line", "groups", "left"),
    [
        ("0::/job/step", {"job/step": ("max", 3 * GB, 0, 2), "job": ("8000000000", 3 * GB, GB, 2)}, 6 * GB),
        ("0::/job/step", {"job/step": ("4000000000", GB, 0, 2), "job": ("8000000000", 3 * GB, GB, 2)}, 3 * GB),
        ("0::/docker/abc", {".": ("2000000000", 500, 100, 2)}, 2 * GB - 400),  # a container sees its own as the root
        ("4:cpu,memory:/a", {"memory/a": ("3000000000", GB, GB // 2, 1)}, 5 * GB // 2),
        ("4:cpu:/a", {"a": ("3000000000", GB, 0, 1)}, None),
        ("0::/none", {}, None),
    ],
)
def test_limits_of_control_groups(line: str, groups: dict[str, Any], left: int | None, tmp_path: Path) -> None:
    for name, facts in groups.items():
        group(tmp_path / "fs" / name, *facts)
    (tmp_path / "cgroup").write_text(f"9:name=systemd:/\n{line}\n")
    found = process._groups(tmp_path / "cgroup", tmp_path / "fs")
    assert min(map(process._left_in, found), default=sys.maxsize) == (sys.maxsize if left is None else left)


def test_what_is_available_is_the_least_of_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    group(tmp_path, "1000000000", 300_000_000, 0)
    monkeypatch.setattr(process, "_groups", lambda: [tmp_path])
    assert process.available() == 700_000_000
    assert process.total() == 1_000_000_000
    with pytest.raises(MemoryBudgetError, match=r"container, has 1\.00 GB"):
        refuse_larger_than_memory((10**6, 1000), 4)
    group(tmp_path, "100000000000000", 0, 0)
    assert process.available() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_too_little_address_space_is_refused_at_once() -> None:
    """Libraries would abort, or wait for a thread that never starts."""
    code = (
        "import resource, psutil; from gpuclust.hardware import process; "
        "room = psutil.Process().memory_info().vms + 64_000_000; "
        "resource.setrlimit(resource.RLIMIT_AS, (room, room)); process.check_room()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "MemoryBudgetError: this process may map 0.06 GB more of address space" in done.stderr
    process.check_room()
    assert issubclass(MemoryBudgetError, Exception)


def test_too_few_open_files_are_refused_at_once() -> None:
    """Dask would start no worker, and leave half a loop behind."""
    code = (
        "import resource, psutil; from gpuclust.hardware import process; room = psutil.Process().num_fds() + {}; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (room, room)); process.check_room()"
    )
    for more, said in ((10, "SchedulerError: this process may open 10 more files"), (20, "")):
        done = subprocess.run([sys.executable, "-c", code.format(more)], capture_output=True, text=True, timeout=60)
        assert said in done.stderr
        assert (done.returncode == 0) == (said == "")


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_room_is_looked_at_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny.build(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 100))
    go(tmp_path, settings, code=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "prompts × 96 features take at least" in said
    assert not list((tmp_path / "out" / schema.SHARDS).glob("*.json"))


def test_a_run_stops_at_a_shard_where_the_rest_cannot_fit_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny.build(tmp_path)
    looked: list[int] = []
    said: list[tuple[int, int]] = []
    needed = disk.needed

    def told(config: Config, rows: int, d_sae: int, kept_bytes: int = 0, kept_rows: int = 0) -> tuple[int, int]:
        said.append((kept_bytes, kept_rows))
        return needed(config, rows, d_sae, kept_bytes, kept_rows)

    def usage(_: Path) -> Usage:
        looked.append(1)
        return Usage(10**12, 0, 10**12 if len(looked) < 2 else 10)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", usage)
        patched.setattr(disk, "needed", told)
        go(tmp_path, settings, code=2)
    assert "shards that are written stay" in " ".join(capsys.readouterr().err.split())
    markers = sorted(path.name for path in (tmp_path / "out" / schema.SHARDS).glob("*.json"))
    assert markers
    first = tmp_path / "out" / schema.ACTIVATIONS / "activations" / "c" / "0" / "0"
    assert said == [(0, 0), (first.stat().st_size, settings["store"]["shard_prompts"])]
    go(tmp_path, settings)


def test_the_estimate_holds_what_a_run_takes(tmp_path: Path) -> None:
    settings = tiny.build(tmp_path)
    out, config = go(tmp_path, settings), Config.model_validate(settings)
    rows = 60
    taken = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    least, most = disk.needed(config, rows, 96)
    shards = sum(file.stat().st_size for file in (out / schema.ACTIVATIONS / "activations" / "c").glob("*/0"))
    assert least <= shards <= taken <= most
    like, _ = disk.needed(config, rows, 96, shards, rows)
    assert like == shards


def test_the_estimate_counts_what_fires_on_tokens() -> None:
    prompts, tokens = (
        Config.model_validate({"extract": {"rows": rows}, "max_tokens": 50}) for rows in ("prompt", "token")
    )
    for d_sae, active in ((96, 64), (32_768, 163.84)):
        (less, before), (least, most) = disk.needed(prompts, 600, d_sae), disk.needed(tokens, 600, d_sae)
        assert least == less
        assert most - before == int(4 * 600 * 50 * active)


def test_a_disk_with_room_is_no_hindrance(tmp_path: Path) -> None:
    disk.check(tmp_path, Config(), 1000, 2048)
    with pytest.raises(StoreError, match="take at least"):
        disk.check(tmp_path, Config(), 10**14, 10**6)
