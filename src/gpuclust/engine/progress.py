"""What a person sees while a run goes on: a line and a bar per stage, or nothing but lines of the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from gpuclust.stage_table import STAGES

log = logging.getLogger("gpuclust")

DOING = {stage.name: stage.blurb for stage in STAGES} | {"sweep": "settings and seeds"}


class Progress:
    """Shows stages on `console`; when quiet, logs one line as each begins and ends."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self.console = console
        self.quiet = quiet
        self._bars: Bars | None = None
        self._task: object = None

    def skipped(self, name: str) -> None:
        """Say that a stage was already done."""
        if self.quiet:
            log.info("%s: done before", name)
        else:
            self.console.print(f"  [dim]✓ {name:<10} done before[/dim]")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show one stage while it runs, and its time after."""
        started = time.perf_counter()
        if self.quiet:
            log.info("%s: %s", name, DOING[name])
            yield
        elif not self.console.is_terminal:
            yield
        else:
            columns = (
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TimeElapsedColumn(),
            )  # fmt: skip
            with Bars(*columns, console=self.console, transient=True) as self._bars:
                self._task = self._bars.add_task(f"{name:<10} {DOING[name]}", total=None)
                try:
                    yield
                finally:
                    self._bars.stop()
                    self._bars = None
        seconds = time.perf_counter() - started
        if self.quiet:
            log.info("%s: %.1f s", name, seconds)
        else:
            self.console.print(f"  [green]✓[/green] {name:<10} {DOING[name]} [dim]{seconds:.1f} s[/dim]")

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """Count steps within the stage that runs."""
        done = 0
        if self._bars is not None:
            self._bars.update(self._task, total=total)  # type: ignore[arg-type]

        def advance() -> None:
            nonlocal done
            done += 1
            if self._bars is not None:
                self._bars.update(self._task, completed=done)  # type: ignore[arg-type]
            elif self.quiet and (done == total or done % max(1, total // 10) == 0):
                log.info("%d of %d %s", done, total, what)

        yield advance
