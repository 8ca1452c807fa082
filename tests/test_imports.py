"""The house: folders import folders below them only, importing is quick, no GPU library is imported at import time."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "gpuclust"
VOCABULARY = {
    "errors",
    "schema",
    "config",
    "configfile",
    "terminal",
    "stage_table",
    "types",
    "formatting",
    "places",
    "section",
    "config_sections",
    "config_paths",
}
# From the ground up: a folder may import those before it. All else at the top level is a command.
FLOORS = [
    "vocabulary",
    "hardware",
    "storage",
    "compute",
    "extraction",
    "tables",
    "results",
    "engine",
    "sweep",
    "commands",
]
# Of the floors below it, these are all that one may use: arrays in, arrays out; tables in, tables out
PURE = {
    "compute": {"vocabulary", "hardware.budget", "hardware.jit"},
    "tables": {"vocabulary"},
}
IMPURE = {"zarr", "dask", "distributed", "pathlib", "xarray"}  # what those do not touch
# Imported only inside functions, so they may import numba or sklearn
LAZY = {
    "storage.codec_kernels", "compute.sparse_gram", "storage.codec_packed_kernels", "clusterer", "engine.inverted_pass",
    *(f"compute.{name}" for name in ("inverted_index", "inverted_pairs", "never_together", "pair_distance")),
    "compute.prediction",
    "engine.held_out", "engine.validating",
}  # fmt: skip
OPENERS = {"engine.execute", "sweep.experiment"}  # only these start a scheduler
HEAVY = {
    "cupy", "cuml", "dask_cuda", "rmm", "torch", "transformers", "transformer_lens", "sae_lens", "datasets", "umap",
    "hdbscan", "numba", "sklearn", "scipy", "distributed", "dask", "plotly",
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def name(path: Path) -> str:
    """The module's name below gpuclust: ``storage.codec``; a package is named by its folder."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """The folder that a module belongs to, or which of the two kinds of module at the top level it is."""
    head, dot, _ = module.partition(".")
    if dot or (SOURCE / head).is_dir():
        return head
    return "vocabulary" if head in VOCABULARY else "commands"


def imports(path: Path, *, everywhere: bool) -> set[str]:
    """Full names that a module imports: at its top level, or anywhere; TYPE_CHECKING blocks left out."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf8"))
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree) if everywhere else tree.body:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


MODULES = {name(path): path for path in modules()}


def own(names: set[str]) -> set[str]:
    """Which modules of ours are among the names."""
    return {full.removeprefix("gpuclust.") for full in names if full.startswith("gpuclust.")} & set(MODULES)


def arrows(module: str) -> set[str]:
    """The modules of ours that one imports anywhere, packages only where nothing of theirs is named."""
    found = own(imports(MODULES[module], everywhere=True)) - {module}
    return {to for to in found if not any(other.startswith(f"{to}.") for other in found)}


def test_every_folder_is_on_a_floor() -> None:
    assert {room(module) for module in MODULES} == set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    mine = FLOORS.index(room(module))
    above = {to for to in arrows(module) if FLOORS.index(room(to)) > mine}
    assert above == set()


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in PURE])
def test_what_computes_touches_no_file_and_no_scheduler(module: str) -> None:
    allowed = PURE[room(module)]
    others = {to for to in arrows(module) if room(to) != room(module)}
    assert {to for to in others if room(to) not in allowed and to not in allowed} == set()
    top = {full.split(".")[0] for full in imports(MODULES[module], everywhere=True)}
    assert top & IMPURE == set()


def test_no_circles() -> None:
    seen: dict[str, int] = {}

    def visit(module: str) -> None:
        seen[module] = 1
        for to in arrows(module):
            assert seen.get(to) != 1, f"{module} and {to} import each other"
            if to not in seen:
                visit(to)
        seen[module] = 2

    for module in MODULES:
        if module not in seen:
            visit(module)


@pytest.mark.parametrize("module", [m for m in MODULES if m not in LAZY])
def test_heavy_libraries_are_imported_where_they_are_used(module: str) -> None:
    names = imports(MODULES[module], everywhere=False)
    assert {full.split(".")[0] for full in names} & HEAVY == set()
    assert own(names) & LAZY == set()


def test_report_imports_no_compute_library() -> None:
    files = [path for module, path in MODULES.items() if module.startswith("results.report")]
    top = {full.split(".")[0] for path in files for full in imports(path, everywhere=True)}
    assert len(files) > 1
    assert top & (HEAVY - {"plotly"}) == set()


def test_a_scheduler_is_started_in_two_places() -> None:
    started = "gpuclust.engine.scheduler.start"
    assert {m for m, path in MODULES.items() if started in imports(path, everywhere=True)} == OPENERS


def test_importing_gpuclust_loads_nothing_heavy() -> None:
    code = (
        "import sys, gpuclust, gpuclust.config, gpuclust.run\n"
        f"heavy = {sorted(HEAVY)!r}\n"
        "print(sorted(set(heavy) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_dir_is_the_public_api() -> None:
    import gpuclust
    import gpuclust.compute.gram  # a module that is loaded is no part of it

    assert dir(gpuclust) == sorted([*gpuclust.__all__, "__version__"])
    assert all(getattr(gpuclust, name) is not None for name in dir(gpuclust))
