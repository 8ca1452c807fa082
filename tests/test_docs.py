"""README and docs say what is so: their code runs, their files are there, and the reference holds all that exists."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import gpuclust
from gpuclust import cli, schema
from gpuclust.config import Config
from gpuclust.config_sections import PromptSource
from gpuclust.configfile import load
from gpuclust.sweep import grid
from tests import scripts

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FEW = 300  # prompts of everything that is tried
MINE = "# mine.yaml\nprompts: [{path: texts.jsonl}]\n"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TRIED = [page for page in PAGES if re.search(r"^```(sh|python|yaml)$", page.read_text(), re.MULTILINE)]


def blocks(page: Path, *kinds: str) -> list[tuple[str, str]]:
    """Code of a page in order: kind and text; a block without a kind is shown, not run."""
    return [(kind, text) for kind, text in BLOCK.findall(page.read_text()) if kind in kinds]


class Newcomer:
    """Does what a page says, line by line, on few prompts, in a folder of its own."""

    def __init__(self, folder: Path, demo: Path, texts: Path) -> None:
        self.folder, self.namespace = folder, dict[str, Any]()
        shutil.copytree(demo, folder / "runs/demo")
        shutil.copytree(demo, folder / "runs/mine")
        shutil.copytree(demo, folder / "runs/finer")
        shutil.copy(texts, folder / "texts.jsonl")
        self.done: set[str] = set()
        self.yaml(MINE)

    def sh(self, text: str) -> None:
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            if words[0] == "make":
                assert re.search(rf"^{words[1]}[: ]", (ROOT / "Makefile").read_text(), re.MULTILINE), line
            elif words[:2] == ["pip", "install"]:
                pass  # what is installed here is what is tested
            else:
                assert words[0] == "gpuclust", f"{line}: what is not tried has no place in a block of sh"
                self.command(words[1:])

    def command(self, words: list[str]) -> None:
        name = words[0]
        if name in ("run", "sweep", "import"):
            words = [*words, "--scheduler", "threads", "--quiet"]
        if name == "run":
            out = words[words.index("--out") + 1] if "--out" in words else "runs/demo"
            if out not in self.done:  # the finished runs of the fixture only stand in for what was not made yet
                shutil.rmtree(self.folder / out, ignore_errors=True)
            self.done.add(out)
            words = words if "--out" in words else [*words, "--set", f"n_prompts={FEW}"]
        if name == "sweep":
            self.yaml(MINE)
            if "runs/mine" not in self.done:
                self.command(["run", "--config", "mine.yaml", "--out", "runs/mine"])
            words = [*words, "--set", "umap.n_epochs=20"]
        assert cli.main(words) == 0, words

    def yaml(self, text: str) -> None:
        named = re.match(r"# (\S+\.yaml)", text)
        path = self.folder / (named[1] if named else "shown.yaml")
        path.write_text(text)
        data = yaml.safe_load(text)
        if "base" in data:
            assert len(grid.expand(*grid.load(path))) > 1
        elif "distributed" not in data:  # Dask's own
            assert load(path, []).n_prompts == data.get("n_prompts", Config().n_prompts)

    def python(self, text: str) -> None:
        exec(compile(text, "docs", "exec"), self.namespace)


@pytest.mark.slow
@pytest.mark.parametrize("page", TRIED, ids=lambda page: page.name)
def test_a_page_can_be_followed(
    page: Path, demo_run: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    newcomer = Newcomer(tmp_path, demo_run, texts)
    for kind, text in blocks(page, "sh", "python", "yaml"):
        getattr(newcomer, kind)(text)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the demo's prompts, as somebody's own."""
    lines = (ROOT / "src/gpuclust/demo/prompts.jsonl").read_text().splitlines(keepends=True)
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(lines[:FEW]))
    return path


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo on few prompts."""
    out = tmp_path_factory.mktemp("demo") / "out"
    assert cli.main(["run", "--out", str(out), "--scheduler", "threads", "--quiet", "--set", f"n_prompts={FEW}"]) == 0
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http", "#")) or "reference/" in target:  # the reference is generated; mkdocs checks it
            continue
        assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


def test_the_first_page_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert [place for place in ("<picture>", "pip install", "gpuclust run") if place not in text[:2500]] == []


def test_what_a_page_names_in_the_package_is_there() -> None:
    for page in PAGES:
        if page.name in ("decisions.md",):  # of its day
            continue
        text = page.read_text()
        for path in re.findall(r"`((?:src|tests|scripts|benchmarks|configs|examples|docs)/[\w./*-]+)`", text):
            assert list(ROOT.glob(path.rstrip("/"))), f"{page.name}: {path}"


def test_a_superseded_decision_names_what_took_its_place() -> None:
    text = (ROOT / "docs/decisions.md").read_text()
    titles = " ".join(re.findall(r"^## .*$", text, re.MULTILINE) + re.findall(r"\*\*(.*?)\*\*", text))
    named = re.findall(r"^\*Superseded: .*?“(.*?)(?: …)?”", text, re.MULTILINE)
    assert len(named) >= 8
    assert [name for name in named if name not in titles] == []


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    found: dict[str, str] = scripts.load("reference_pages").pages()
    return found


def test_the_reference_holds_every_setting_command_and_column(pages: dict[str, str]) -> None:
    settings = dict(Config.model_fields)
    for section in (PromptSource, *(field.annotation for field in settings.values())):
        for name, field in getattr(section, "model_fields", {}).items():
            assert f"| `{name}` |" in pages["configuration"]
            assert (field.description or "").replace("|", "\\|") in pages["configuration"]
    assert [name for name in settings if f"## {name}\n" not in pages["configuration"] and f"| `{name}` |" not in
            pages["configuration"]] == []  # fmt: skip
    for name in cli.COMMANDS:
        assert f"## gpuclust {name}\n" in pages["commands"]
    assert "`--reuse RUN`" in pages["commands"]
    tables = [value for name, value in vars(schema).items() if name.endswith("_COLUMNS")]
    for column in itertools.chain(*tables):
        assert f"| `{column}` |" in pages["files"]
    for name in gpuclust.__all__:
        assert re.search(rf"^::: gpuclust\.\S*{name}$", pages["python"], re.MULTILINE)


def test_the_reference_holds_every_file_of_a_run(pages: dict[str, str], small_run: Path) -> None:
    for path in small_run.iterdir():
        if path.name not in (schema.LOCK,):
            assert f"| `{path.name}{'/' if path.is_dir() and path.suffix != '.zarr' else ''}` |" in pages["files"], path


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    build(load_config("mkdocs.yml", strict=True, site_dir=str(tmp_path / "site")))
    assert "n_prompts" in (tmp_path / "site/reference/configuration.html").read_text()
    assert "cluster_features" in (tmp_path / "site/reference/python.html").read_text()
