"""The command ``gpuclust``: all commands by name. ``gpuclust run`` is ``python -m gpuclust.run``, and so the others."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from gpuclust import __version__, compare, export, plan, report, run, show, terminal, validate, verify
from gpuclust.sweep import __main__ as sweep

Adds = Callable[[argparse.ArgumentParser], None]
Works = Callable[[argparse.Namespace], None]
importing = importlib.import_module("gpuclust.import")  # a keyword, which the statement cannot say
COMMANDS: dict[str, tuple[str, Adds, Works]] = {
    "run": (run.DESCRIPTION, run.arguments, run.work),
    "plan": (plan.DESCRIPTION, plan.arguments, plan.work),
    "sweep": (sweep.DESCRIPTION, sweep.arguments, sweep.work),
    "import": (importing.DESCRIPTION, importing.arguments, importing.work),
    "compare": (compare.DESCRIPTION, compare.arguments, compare.work),
    "show": (show.DESCRIPTION, show.arguments, show.work),
    "validate": (validate.DESCRIPTION, validate.arguments, validate.work),
    "report": (report.DESCRIPTION, report.arguments, report.work),
    "export": (export.DESCRIPTION, export.arguments, export.work),
    "verify": (verify.DESCRIPTION, verify.arguments, verify.work),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    result = terminal.Parser(
        prog="gpuclust",
        description="Which features of a sparse autoencoder belong together, and is that real? "
        "`gpuclust run` alone runs the embedded demo.",
    )
    result.add_argument("--version", action="version", version=f"gpuclust {__version__}")
    commands = result.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (description, arguments, _) in COMMANDS.items():
        arguments(commands.add_parser(name, description=description, help=description.partition(". ")[0].rstrip(".")))
    return result


def main(given: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 bad input or configuration, 1 a failure."""
    terminal.write_anything()

    def work() -> None:
        args = parser().parse_args(given)
        COMMANDS[args.command][2](args)

    return terminal.exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
