"""What a process may use and has used: cores, and peak memory."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from gpuclust.errors import MemoryBudgetError, SchedulerError
from gpuclust.formatting import gigabytes

FILES = 16  # with fewer Dask starts nothing, and says so in odd ways: 10 failed, 16 did
ADDRESS_SPACE = 1_000_000_000  # bytes that threads' stacks and libraries map without using them


def cores() -> int:
    """Return the number of cores that this process may use."""
    from dask.system import cpu_count  # knows the quota of a container

    return int(cpu_count())


def total() -> int:
    """Return the bytes of host memory that this process could ever have: the machine's, or the limit of its groups."""
    return min(int(psutil.virtual_memory().total), *map(_limit_of, _groups()), sys.maxsize)


def available() -> int:
    """Return the bytes of host memory that this process may still take.

    The least of what the system has, what the limits of its control groups leave (containers, batch systems: cgroup 2,
    or the memory controller of cgroup 1), and what its own limit of address space leaves (``ulimit -v``).
    """
    return max(min(int(psutil.virtual_memory().available), *map(_left_in, _groups()), _address_space()), 0)


def check_room() -> None:
    """Refuse to compute in a corner in which libraries abort or hang rather than fail: address space, open files.

    Raises
    ------
    MemoryBudgetError, SchedulerError
    """
    if (left := _address_space()) < ADDRESS_SPACE:
        raise MemoryBudgetError(
            f"this process may map {gigabytes(max(left, 0))} more of address space (ulimit -v, RLIMIT_AS), but threads "
            f"and libraries alone take {gigabytes(ADDRESS_SPACE)}. Raise that limit; device.memory bounds what a "
            "worker really uses"
        )
    if (files := _open_files()) < FILES:
        raise SchedulerError(
            f"this process may open {max(files, 0)} more files (ulimit -n, RLIMIT_NOFILE), but workers and their "
            f"connections take {FILES} at the least. Raise that limit, to 4096 for instance, and run the same command "
            "again; what is computed stays"
        )


def _open_files() -> int:
    """Files that this process may still open."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return sys.maxsize
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit - psutil.Process().num_fds()


def _address_space() -> int:
    """Bytes that this process may still map."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return sys.maxsize
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit - int(psutil.Process().memory_info().vms)


def _groups(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Folders of this process's control groups for memory, the outer ones too: each may have a limit."""
    found = []
    for line in proc.read_text().splitlines() if proc.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        group = top / path.lstrip("/")
        found += [group, *(parent for parent in group.parents if parent == top or top in parent.parents)]
        if not group.exists():  # a container sees its own group as the root
            found.append(top)
    return list(dict.fromkeys(found))


def _limit_of(group: Path) -> int:
    """Bytes that a group may have in all; `sys.maxsize` where there is no such group, or no limit on this level."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int((group / name).read_text())
        except (OSError, ValueError):  # the other version's file, or "max"
            continue
    return sys.maxsize


def _left_in(group: Path) -> int:
    """Bytes that a group may still take: caches of files count as free, as the kernel drops them first."""
    if (limit := _limit_of(group)) == sys.maxsize:
        return sys.maxsize
    name = "memory.current" if (group / "memory.current").exists() else "memory.usage_in_bytes"
    try:
        used = int((group / name).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return limit
    return limit - used + int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def reset_peak() -> None:
    """Set the kernel's record of this process's peak back to what it uses now (Linux)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def peak_bytes() -> int:
    """Return the peak resident memory (bytes) since `reset_peak`; where the system keeps no peak, what is used now."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
