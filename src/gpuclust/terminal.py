"""What all commands have in common: where their lines go, and how an error becomes a message and an exit code."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from gpuclust.errors import GpuclustError

STOPPED = 130  # as a shell has it for an interrupt
# What a disk or a system says no with; any other OSError is one that nobody foresaw
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def log_to(console: Console, quiet: bool) -> None:
    """Send log lines to a console: warnings, or when `quiet` leaves out bars and summaries, all that gpuclust does."""
    handler = RichHandler(console=console, show_path=False, markup=False, show_level=quiet)
    logging.basicConfig(level=logging.INFO if quiet else logging.WARNING, format="%(message)s", handlers=[handler])
    if quiet:
        logging.getLogger("gpuclust").setLevel(logging.INFO)
        logging.getLogger("distributed").setLevel(logging.WARNING)


def exit_code(work: Callable[[], object], stopped: str = "stopped") -> int:
    """Do a command's work and return its exit code.

    Parameters
    ----------
    work : callable without arguments
    stopped : str
        Said after an interrupt.

    Returns
    -------
    int
        0 done, 2 bad input or configuration, 1 another error that gpuclust raises on purpose or a place that cannot be
        written to, 130 interrupted. What nobody foresaw is raised.
    """
    said = Console(stderr=True, highlight=False)
    try:
        work()
    except GpuclustError as error:
        said.print(f"[bold red]error:[/bold red] {escape(str(error))}", soft_wrap=True)
        return error.exit_code
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        said.print(
            f"[bold red]error:[/bold red] cannot write {escape(str(error.filename))}: {error.strerror}. What is "
            "computed stays; mend that, or give another place, and run the same command again",
            soft_wrap=True,
        )
        return 1
    except KeyboardInterrupt:
        said.print(f"[yellow]{stopped}[/yellow]")
        return STOPPED
    return 0
