"""Scripts without a guard: Dask's worker processes import the script that starts them, which must not start more."""

from __future__ import annotations

import multiprocessing
import multiprocessing.spawn
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpuclust.errors import SchedulerError

MARK = "GPUCLUST_STARTING_WORKERS"  # the file in which a worker process says that it came here
# Whoever writes one of these asks where the script runs
ASKS = ("__name__", "multiprocessing", "parent_process")


def refuse_in_child() -> None:
    """End a worker process that, importing the main script, is about to start workers itself, and let its parent know.

    Raises
    ------
    SchedulerError
        In a process that something else started in the same way.
    """
    if not getattr(multiprocessing.current_process(), "_inheriting", False):
        return
    main = getattr(sys.modules.get("__main__"), "__file__", None) or "the script"
    script = getattr(sys.modules.get("__mp_main__"), "__file__", None) or main
    if mark := os.environ.get(MARK):
        Path(mark).touch()
        os._exit(1)  # not sys.exit: nothing of the script is to run here, its exits included
    raise SchedulerError(_unguarded(str(script)))


@contextmanager
def guarded_script() -> Iterator[None]:
    """Start worker processes within, and refuse a script that has no guard.

    Raises
    ------
    SchedulerError
        At once, where the script does not ask at all where it runs; else when a worker process comes to the same place.
    """
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) == "<stdin>":  # no file, which worker processes would look for all the same
        del main.__file__
    data = multiprocessing.spawn.get_preparation_data("gpuclust")
    script = data.get("init_main_from_path")
    if script is None and not str(data.get("init_main_from_name", ".__main__")).endswith(".__main__"):
        script = getattr(main, "__file__", None)
    if script is None:  # python -c, a notebook, standard input, python -m of a package: nothing is imported
        yield
        return
    if _never_asks(Path(script)):
        raise SchedulerError(_unguarded(script))
    with tempfile.TemporaryDirectory(prefix="gpuclust-") as folder:
        mark = Path(folder) / "mark"
        os.environ[MARK] = str(mark)
        try:
            yield
        except Exception:
            if mark.exists():
                raise SchedulerError(_unguarded(script)) from None  # Dask's own says nothing of it, at length
            raise
        finally:
            del os.environ[MARK]


def _never_asks(script: Path) -> bool:
    try:
        text = script.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # a zip file, or one that is gone: the worker processes will tell
        return False
    return not any(word in text for word in ASKS)


def _unguarded(script: str) -> str:
    return (
        f"{script} starts worker processes, which import it, and has no guard: they would start it all over again. "
        'Put what it does under `if __name__ == "__main__":`, or use scheduler threads, which starts none'
    )
