"""The house: imports go down only, importing is quick, and no GPU library is imported at import time."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "gpuclust"

# A module may import modules of the rows above its own, and the ones named here of its own row.
LAYERS = [
    {"errors"},
    {"schema", "config", "topk", "measure", "backend", "jit"},
    {"stage_table"},
    {"device"},
    {"kernels"},
    {
        "configfile", "loading", "terminal", "memory", "codec", "reductions", "texts", "labels", "keywords", "decoder",
        "palette", "profiles", "expand", "keys", "halves",
    },
    {"shards"},
    {"store", "scheduler", "gram", "prompts", "models", "spanning", "select", "progress"},
    {"shapes", "folder"},
    {"transfer"},
    {"neighbors", "extract", "embed", "cluster", "analyse", "figures", "quality", "matching"},
    {"duplicates"},
    {"tiles", "consensus", "grid", "subsets", "report"},
    {"stages", "checks", "summary", "cards", "page", "effects"},
    {"steps"},
    {"pipeline", "api", "export", "sharing"},
    {"trials"},
    {"run", "show", "clusterer", "compare", "computation", "answers"},
    {"cache", "experiment", "sweep_report"},
    {"sweep"},
]  # fmt: skip
LAZY = {"kernels"}  # imported only inside functions, so that it may import numba at its top level
OWN_ROW: dict[str, set[str]] = {"config": set(), "cluster": set()}
# Only these open a scheduler
OPENERS = {"run", "cache", "experiment"}
HEAVY = {
    "cupy", "cuml", "dask_cuda", "rmm", "torch", "transformers", "transformer_lens", "sae_lens", "datasets", "umap",
    "hdbscan", "numba", "sklearn", "scipy", "distributed", "dask", "plotly",
}  # fmt: skip


def modules() -> list[Path]:
    """Files of modules; those of a package count as one module of its name."""
    return sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def unit(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


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


def own(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("gpuclust.")} & {unit(p) for p in modules()}


def test_every_module_has_a_layer() -> None:
    assert {unit(path) for path in modules()} == set().union(*LAYERS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    level = next(index for index, layer in enumerate(LAYERS) if unit(path) in layer)
    below = set().union(*LAYERS[:level]) | OWN_ROW.get(unit(path), set())
    assert own(imports(path, everywhere=True)) - {unit(path)} <= below


@pytest.mark.parametrize(
    "path", [p for p in modules() if unit(p) not in LAZY], ids=lambda path: str(path.relative_to(SOURCE))
)
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    names = imports(path, everywhere=False)
    assert {name.split(".")[0] for name in names} & HEAVY == set()
    assert own(names) & LAZY == set()


def test_report_imports_no_compute_library() -> None:
    files = [path for path in modules() if unit(path) == "report"]
    top = {name.split(".")[0] for path in files for name in imports(path, everywhere=True)}
    assert len(files) > 1
    assert top & (HEAVY - {"plotly"}) == set()


def test_only_the_commands_open_a_scheduler() -> None:
    users = {unit(p) for p in modules() if "gpuclust.scheduler.start" in imports(p, everywhere=True)}
    assert users <= OPENERS


def test_importing_gpuclust_loads_nothing_heavy() -> None:
    code = (
        "import sys, gpuclust, gpuclust.config, gpuclust.run\n"
        f"heavy = {sorted(HEAVY)!r}\n"
        "print(sorted(set(heavy) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
