"""One command with all others in it: the same arguments, the same work, and help that imports nothing slow."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from gpuclust import cli, terminal
from gpuclust.errors import ConfigError

SLOW = {"pandas", "numpy", "pydantic", "rich", "yaml", "torch", "dask", "distributed", "zarr", "plotly", "scipy"}


def test_the_console_script_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="gpuclust")
    assert script.load() is cli.main


@pytest.mark.parametrize("arguments", [["gpuclust"], *(["gpuclust", name] for name in cli.COMMANDS)])
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    code = (
        "import sys, json\n"
        "from gpuclust import cli\n"
        f"sys.argv = {[*arguments, '--help']!r}\n"
        "try:\n    cli.main()\n"
        f"except SystemExit as end:\n    print(json.dumps([end.code, sorted({SLOW!r} & set(sys.modules))]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
    assert done.stdout.startswith("usage: " + " ".join(arguments))


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS])
def test_modules_are_commands_too(name: str) -> None:
    """``python -m gpuclust.NAME`` takes what ``gpuclust NAME`` takes."""

    def told(command: list[str]) -> str:
        done = subprocess.run([sys.executable, "-m", *command, "--help"], capture_output=True, text=True, check=True)
        return " ".join(done.stdout.replace(" ".join(["usage: python -m", *command]), "").split())

    alone = told([f"gpuclust.{name}"])
    assert "show this help" in alone
    within = " ".join(told(["gpuclust", name]).replace(f"usage: gpuclust {name}", "").split())
    assert within == alone


def test_plan_is_run_with_plan(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for command in (["plan"], ["run", "--plan"]):
        assert cli.main([*command, "--scheduler", "local", "--set", "device.memory=6GB"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert "extract" in told[0]


def test_what_is_no_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        cli.main(["runn"])
    assert refused.value.code == 2
    assert "'run', 'plan', 'sweep'" in capsys.readouterr().err
    assert cli.main(["show", "/no/such/folder"]) == 2


def test_codes_of_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ended(error: BaseException | None) -> int:
        def work(args: argparse.Namespace) -> None:
            if error is not None:
                raise error

        return terminal.command("m", "about", lambda parser: None, work, [])

    assert ended(None) == 0
    assert ended(ConfigError("no [b]such[/b] key")) == 2
    assert "no [b]such[/b] key" in capsys.readouterr().err
    assert ended(KeyboardInterrupt()) == terminal.STOPPED
    assert "the same command goes on" in capsys.readouterr().err
    assert ended(PermissionError(13, "Permission denied", str(tmp_path))) == 1
    capsys.readouterr()
    assert ended(FileNotFoundError(2, "No such file or directory", "/proc/x.tmp")) == 1
    assert "cannot read or write /proc/x.tmp: No such file or directory" in " ".join(capsys.readouterr().err.split())
    assert ended(FileExistsError(17, "File exists", "a/state")) == 1
    for error in (OSError("unforeseen"), FileNotFoundError(2, "unforeseen")):
        with pytest.raises(OSError, match="unforeseen"):
            ended(error)


HOSTILE = "a\x1b]52;c;cm0gLXJm\x07b\x1b[2Jc\x9b31md\x00e\rf\u202eg :heart: [red]h[/red]"


def test_texts_are_data_on_every_line_that_a_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    def work(args: argparse.Namespace) -> None:
        console = terminal.console(quiet=False)
        console.print(escape(HOSTILE), soft_wrap=True)
        grid = Table(box=None)
        grid.add_column("words")
        grid.add_row(escape(HOSTILE))
        console.print(grid, width=300)
        logging.getLogger("gpuclust").warning("logged %s", HOSTILE)
        raise ConfigError(HOSTILE)

    logging.getLogger().handlers.clear()
    assert terminal.command("m", "about", lambda parser: None, work, []) == 2
    out, err = capsys.readouterr()
    written = out + err
    assert not any(character in written for character in "\x1b\x07\x9b\x00\r\u202e")
    joined = "".join(written.split())  # lines end at 80 columns
    assert joined.count(r"\x1b]52;c;cm0gLXJm") == 4
    assert joined.count(":heart:[red]h[/red]") == 4


@pytest.mark.parametrize("command", ["gpuclust", "gpuclust.verify"])
def test_arguments_are_data_in_errors_of_the_command_line(command: str) -> None:
    arguments = ["verify"] * (command == "gpuclust") + ["a", HOSTILE.replace("\0", ""), "é…\n"]
    done = subprocess.run([sys.executable, "-m", command, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: unrecognized arguments: " in done.stderr
    assert r"a\x1b]52;c;cm0gLXJm\x07b" in done.stderr
    assert "é…" in done.stderr
    assert not any(character in done.stderr for character in "\x1b\x07\x9b\r\u202e")


def test_colours_still_go_out() -> None:
    console = terminal.safe_console(force_terminal=True, color_system="standard", record=True, file=io.StringIO())
    console.print("[bold red]hot[/bold red] \x1b[2J")
    assert console.file.getvalue() == "\x1b[1;31mhot\x1b[0m \\x1b[2J\n"


@pytest.mark.parametrize("arguments", [["run", "--help"], ["show", "/no/such/folder…"]])
def test_a_terminal_of_ascii_gets_escapes(arguments: list[str]) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-m", "gpuclust", *arguments], capture_output=True, env=environment)
    assert done.returncode == (0 if "--help" in arguments else 2), done.stderr
    assert rb"\u" in done.stdout + done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_told() -> None:
    shapes = ["plan.d_in=8", "plan.d_sae=6400", "plan.model_bytes=1MB"]
    command = [sys.executable, "-m", "gpuclust", "plan", "--scheduler", "local", "--set", *shapes]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1, done.stderr
    assert "cannot write the standard output or a file: No space left on device" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("command", "made"),
    [
        (["compare", "RUN", "OTHER", "--out", "OUT"], "OUT/compare.html"),
        (["show", "RUN"], None),
        (["verify", "RUN"], None),
        (["report", "RUN"], "RUN/report.html"),
        (["export", "RUN", "OUT.zarr"], "OUT.zarr"),
        (["run", "--reuse", "RUN", "--out", "OUT", "--scheduler", "threads"], "OUT/report.html"),
        (["run", "--reuse", "RUN", "--out", "OUT", "--scheduler", "threads", "--quiet"], "OUT/report.html"),
    ],
    ids=lambda value: " ".join(value[:1] + value[6:]) if isinstance(value, list) else "",
)
def test_a_reader_that_goes_away_ends_no_command(
    small_run: Path, tmp_path: Path, command: list[str], made: str | None
) -> None:
    """gpuclust … | head: what was asked for is there, and nothing is said of it."""
    for name in ("RUN", "OTHER"):
        shutil.copytree(small_run, tmp_path / name)
    if made is not None:
        (tmp_path / made).unlink(missing_ok=True)
    names = {"RUN", "OTHER", "OUT", "OUT.zarr"}
    words = [str(tmp_path / word) if word in names else word for word in command]
    with subprocess.Popen(
        [sys.executable, "-m", "gpuclust.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as done:
        assert done.stdout is not None
        assert done.stderr is not None
        done.stdout.close()
        said = done.stderr.read().decode()
    assert done.returncode == 0, said
    assert "Error" not in said
    assert made is None or (tmp_path / made).exists()
