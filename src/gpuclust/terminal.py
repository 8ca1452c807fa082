"""What all commands have in common: where their lines go, and how an error becomes a message and an exit code."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from gpuclust import schema
from gpuclust.errors import GpuclustError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleRenderable

STOPPED = 130  # as a shell has it for an interrupt
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of writing only
# What a disk or a system says no with, to reading or writing; any other OSError is one that nobody foresaw
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
           errno.EIO, errno.ESTALE)  # fmt: skip
NAMED = (errno.ENOENT, errno.EEXIST)  # where it says of what: a place within /proc, a file that is in a folder's way
JOINERS = "\u200c\u200d"
TOO_MANY = (errno.EMFILE, errno.ENFILE)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are data to a terminal: they name arguments as they were given, such as odd file names."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End with a message, as `error` does."""
        super().exit(status, None if message is None else visible(message))


def command(
    module: str, description: str, arguments: Callable[[argparse.ArgumentParser], None],
    work: Callable[[argparse.Namespace], None], given: Sequence[str] | None,
) -> int:  # fmt: skip
    """Read a command line, do the work and return the exit code; help imports nothing that is slow.

    Parameters
    ----------
    module : str
        Named in the usage, as what ``python -m`` takes.
    description : str
    arguments : callable
        Adds to the parser what the command takes.
    work : callable
    given : sequence of str, optional
        The command line; default `sys.argv`.
    """
    write_anything()
    parser = Parser(prog=f"python -m {module}", description=description)
    arguments(parser)
    return exit_code(lambda: work(parser.parse_args(given)))


def write_anything() -> None:
    """Let what a terminal's encoding does not have, such as an ellipsis in ASCII, go out as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def quiet(parser: argparse.ArgumentParser) -> None:
    """Add what leaves out all that is printed but the folder, in a line that a script can read."""
    parser.add_argument("--quiet", action="store_true", help="print the folder only; warnings go to stderr")


def computing(parser: argparse.ArgumentParser) -> None:
    """Add what commands that compute have in common: where, and settings on top of the configuration's."""
    parser.add_argument(
        "--scheduler", default="auto", metavar="|".join((*schema.SCHEDULERS, "tcp://…", "tls://…")),
        help="where it computes; default auto",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="such as umap.n_components=10"
    )


def console(quiet: bool) -> Console:
    """Return where a command prints, and log warnings there; when `quiet`, that is stderr."""
    result = safe_console(stderr=quiet)
    log_to(result)
    return result


def say(line: str) -> None:
    """Print a line as it is on stdout, whole however long it is; that nobody reads it costs nothing."""
    safe_console().print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)


def safe_console(**options: Any) -> Console:
    """Return a Rich console on which texts are data: what a terminal would act on is written as escapes.

    Prompts, words, paths and messages may hold control sequences that move the cursor, set the clipboard or hide what
    follows; Rich's own colours and bars go out as they are. ``:heart:`` stays as it stands.
    """
    from rich.console import Console
    from rich.segment import Segment
    from rich.text import Text

    class Safe(Console):
        def on_broken_pipe(self) -> None:
            """Go on in silence where the reader went away (``| head``): work that is begun is worth its end."""
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())  # what Python flushes at its end, too

        def render_str(self, text: str, **kwargs: Any) -> Text:  # before lines are broken
            return super().render_str(visible(text), **kwargs)

        def render(self, *args: Any, **kwargs: Any) -> Iterator[Segment]:
            for segment in super().render(*args, **kwargs):
                if segment.control is None and not segment.text.isprintable():
                    segment = Segment(visible(segment.text), segment.style)
                yield segment

    return Safe(highlight=False, emoji=False, **options)


def visible(text: str) -> str:
    """Write characters that a terminal would act on, or not show at all, as escapes; keep line breaks.

    Joiners (ZWJ, ZWNJ) stay where they follow a letter or emoji that is not ASCII: they are spelling there.

    Examples
    --------
    >>> print(visible(f"a{chr(27)}[2Jb{chr(8)}"))
    a\\x1b[2Jb\\x08
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" or (c in JOINERS and _joins(before)) else _escaped(c)
        for before, c in zip(" " + text, text, strict=False)
    )


def _joins(before: str) -> bool:
    return not before.isascii() and unicodedata.category(before)[0] in "LMS"


def _escaped(character: str) -> str:
    return character if unicodedata.category(character) == "Zs" else character.encode("unicode_escape").decode()


def log_to(console: Console) -> None:
    """Send warnings of the log to a console."""
    from rich.logging import RichHandler

    class Safe(RichHandler):
        def render_message(self, record: logging.LogRecord, message: str) -> ConsoleRenderable:
            return super().render_message(record, visible(message))

    handler = Safe(console=console, show_path=False, markup=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])


def exit_code(work: Callable[[], object]) -> int:
    """Do a command's work and return its exit code.

    Parameters
    ----------
    work : callable without arguments

    Returns
    -------
    int
        0 done, 2 bad input or configuration, 1 another error that gpuclust raises on purpose or a place that cannot be
        written to, 130 interrupted. What nobody foresaw is raised.
    """
    try:
        work()
    except GpuclustError as error:
        _say_error(str(error))
        return error.exit_code
    except OSError as error:
        if error.errno in TOO_MANY:
            _say_error(
                f"too many open files{f', at {error.filename}' if error.filename else ''}. Raise the limit (ulimit "
                "-n 4096, for instance) and run the same command again; what is computed stays"
            )
            return 1
        if error.errno not in FULL + REFUSED + (NAMED if error.filename is not None else ()):
            raise
        _say_error(
            f"cannot {_refused(error)}: {error.strerror}. What is computed stays; mend that, or give another place, "
            "and run the same command again"
        )
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED
    return 0


def _refused(error: OSError) -> str:
    """What could not be done, as far as the system says: it names no file where one is written in pieces."""
    if error.filename is None:
        return f"{'write' if error.errno in FULL else 'read or write'} the standard output or a file"
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    if error.errno in FULL or error.errno == errno.EROFS:
        return f"write {where}"
    there = os.path.isfile(where)
    return f"read {where}" if there and not os.access(where, os.R_OK) else f"read or write {where}"


def _say_error(text: str) -> None:
    from rich.markup import escape

    safe_console(stderr=True).print(f"[bold red]error:[/bold red] {escape(text)}", soft_wrap=True)
