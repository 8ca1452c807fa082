"""Paths as people give them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import gpuclust
from gpuclust import cli, configfile, terminal
from gpuclust.errors import GpuclustError, StoreError
from gpuclust.places import place

BAD = {
    "": "an empty path was given",
    "s3://bucket/run": "is a URL",
    "file:///tmp/run": "is a URL",
    "/tmp/a\0b": "holds a NUL",
    "/tmp/x\udcff": "holds a byte that is no UTF-8, at character 6",
    "/tmp/" + "ä" * 128: "is a name of 256 bytes, but file systems take 255",
}


@pytest.mark.parametrize("text", BAD)
def test_what_no_file_can_be_called_is_refused_everywhere(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StoreError, match=BAD[text]):
        place(text)
    with pytest.raises(StoreError, match=BAD[text]):
        gpuclust.open_run(text)
    with pytest.raises(StoreError, match=BAD[text]):
        gpuclust.open_sweep(text)
    with pytest.raises(StoreError, match=BAD[text]):
        gpuclust.import_cache(text)
    for key in ("sae", "prompts"):
        with pytest.raises(GpuclustError, match=f"{BAD[text]}|which is no text"):
            configfile.validate({key: {"path": text} if key == "sae" else [{"path": text}]})
    for command in (
        ["run", "--out", text], ["run", "--config", text], ["show", text], ["report", text], ["verify", text],
        ["export", text, "x"], ["export", "x", text], ["compare", text, text],
        ["sweep", text], ["plan", "--config", text],
    ):  # fmt: skip
        assert cli.main(command) == 2, command
        assert BAD[text] in " ".join(capsys.readouterr().err.split()), command


def test_home_is_expanded_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place("~/run") == tmp_path / "run"
    assert place("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")  # as a shell has it
    config = configfile.validate(
        {"model": {"name": "~/m"}, "sae": {"path": "~/s"}, "prompts": [{"path": "~/p.jsonl"}, {"path": "./q.jsonl"}]}
    )
    assert config.model.name == f"{tmp_path}/m"
    assert config.sae.path == f"{tmp_path}/s"
    assert [source.path for source in config.prompts] == [f"{tmp_path}/p.jsonl", "./q.jsonl"]
    with pytest.raises(StoreError, match=f"{tmp_path}/nothing"):
        gpuclust.open_run("~/nothing")
    with pytest.raises(StoreError, match=f"{tmp_path}/none.pt"):
        gpuclust.import_cache("~/none.pt", "~/out")
    with pytest.raises(GpuclustError, match=f"{tmp_path}/none.yaml"):
        configfile.load("~/none.yaml")


@pytest.mark.parametrize(
    ("number", "name", "words"),
    [
        (errno.ENOSPC, None, "cannot write the standard output or a file: No space left"),
        (errno.EIO, "/d/x", "cannot read or write /d/x: Input/output error"),
        (errno.EACCES, "/d/x", "cannot read or write /d/x: Permission denied"),
        (errno.EROFS, "/d/x", "cannot write /d/x: Read-only file system"),
        (errno.ENAMETOOLONG, "/d/x", "cannot read or write /d/x: File name too long"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    number: int, name: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise OSError(number, __import__("os").strerror(number), name)

    assert terminal.exit_code(work) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert "None" not in said


def test_a_file_that_may_not_be_read_is_not_one_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("x")
    monkeypatch.setattr("os.access", lambda *_: False)

    def work() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    assert terminal.exit_code(work) == 1
    assert f"cannot read {file}: Permission denied" in " ".join(capsys.readouterr().err.split())


def test_colons_in_a_name_are_a_name(tmp_path: Path) -> None:
    assert place(tmp_path / "a::b") == tmp_path / "a::b"
    assert place("C:/runs") == Path("C:/runs")
