"""Build the wheel, install it alone, and use it away from the repository: as a user has it, and in harder places.

    python scripts/check_wheel.py --python python3.13    # by an interpreter that has `build` and `uv`

Steps: what the wheel holds; an empty environment with the newest packages that its ranges allow; `pip check`; the
embedded demo with 300 prompts from an empty folder, its report and an export; the same with no network, an installation
that cannot be written to and no home, where this system lets one make these; the short set of tests against the
installed package. Exit code 1 and the step's output where one fails. What could not be tried is said.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOLDS = (
    "gpuclust/demo/model/model.safetensors", "gpuclust/demo/sae/sae_weights.safetensors",
    "gpuclust/demo/sae-2/sae_weights.safetensors", "gpuclust/demo/prompts.jsonl",
    "gpuclust/results/report/page/", ".dist-info/licenses/LICENSE", ".dist-info/entry_points.txt", "gpuclust/py.typed",
)  # fmt: skip
SHORT = (
    "tests/test_store.py", "tests/test_shards.py", "tests/test_codec.py", "tests/test_report.py",
    "tests/test_borrowed.py", "tests/test_jit.py",
)  # fmt: skip
TESTERS = ("pytest>=8.4", "pytest-xdist", "hypothesis>=6.130", "anndata>=0.12", "nbformat", "nbclient", "selenium")


def say(text: str) -> None:
    print(f"wheel: {text}", flush=True)


def run(*command: str | Path, **options: object) -> str:
    """Run a command; print what it said and stop where it fails."""
    done = subprocess.run([str(c) for c in command], text=True, capture_output=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-8000:], sep="\n", file=sys.stderr)
        sys.exit(f"wheel: failed with exit code {done.returncode}: {' '.join(map(str, command))}")
    return str(done.stdout)


def build(folder: Path) -> Path:
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    missing = [part for part in HOLDS if not any(part in name for name in names)]
    strangers = [
        name for name in names if not name.startswith("gpuclust") or "__pycache__" in name or "/test" in name.lower()
    ]
    if missing or strangers:
        sys.exit(f"wheel: {wheel.name} lacks {missing}, and holds {strangers}")
    inside = sum(entry.file_size for entry in entries)
    say(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB, {inside / 1e6:.1f} MB unpacked")


def install(wheel: Path, python: str, into: Path) -> Path:
    """Make an empty environment with the wheel and the newest packages; return its interpreter."""
    start = time.perf_counter()
    run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", python, into)
    mine = into / "bin" / "python"
    extra = os.environ.get("UV_ARGS", "").split()
    run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", mine, *extra, wheel)
    run(sys.executable, "-m", "uv", "pip", "check", "--python", mine)
    names = ("torch", "zarr", "numpy", "dask", "numba", "pandas")
    code = f"import importlib.metadata as m; print(*(f'{{p}} {{m.version(p)}}' for p in {names}), sep=', ')"
    size = sum(file.stat().st_size for file in into.rglob("*") if file.is_file() and not file.is_symlink())
    count = len(run(sys.executable, "-m", "uv", "pip", "list", "--quiet", "--python", mine).splitlines()) - 2
    say(f"installed in {time.perf_counter() - start:.0f} s: {count} packages, {size / 1e9:.1f} GB")
    say(f"{run(mine, '--version').strip()}, {run(mine, '-c', code).strip()}")
    return mine


def use(mine: Path, folder: Path) -> None:
    """The demo from an empty folder, its report, an export that opens without gpuclust."""
    start = time.perf_counter()
    out = folder / "demo"
    run(mine, "-m", "gpuclust.run", "--set", "n_prompts=300", "--out", out, cwd=folder)
    if not (out / "report.html").stat().st_size > 100_000:
        sys.exit("wheel: the report is empty")
    run(mine, "-m", "gpuclust.show", out, cwd=folder)
    run(mine, "-m", "gpuclust.export", out, folder / "plain.zarr", cwd=folder)
    opened = (
        "import sys; sys.modules['gpuclust'] = None\n"
        "import xarray; print(xarray.open_zarr('plain.zarr').activations.shape)"
    )
    shape = run(mine, "-c", opened, cwd=folder).strip()
    say(f"the demo with 300 prompts in {time.perf_counter() - start:.0f} s from an empty folder; exported {shape}")


def use_hard(mine: Path, folder: Path) -> None:
    """The demo once more: no network but loopback, nothing writable but the folder, no home."""
    if os.getuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "ip"))):
        say("LEFT OUT: no network, read-only installation, no home: needs root, unshare, setpriv and ip")
        return
    if subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        say("LEFT OUT: no network, read-only installation, no home: no network namespace can be made here")
        return
    start = time.perf_counter()
    (folder / "tmp").mkdir()
    run("find", mine.parent.parent, "-type", "d", "-exec", "chmod", "a-w", "{}", "+")
    # Root without capabilities may write only where a folder's mode lets its owner; files may be links into a cache
    command = (
        f"ip link set lo up && exec setpriv --inh-caps=-all --bounding-set=-all "
        f"{mine} -m gpuclust.run --set n_prompts=300 --out {folder / 'hard'}"
    )
    environment = {"HOME": "/proc/nowhere", "PATH": os.environ["PATH"], "TMPDIR": str(folder / "tmp")}
    try:
        run("unshare", "--net", "sh", "-c", command, cwd=folder, env=environment)
    finally:
        run("find", mine.parent.parent, "-type", "d", "-exec", "chmod", "u+w", "{}", "+")
    if not list((folder / "tmp").rglob("*.nbc")):
        sys.exit("wheel: kernels were not kept in the temporary folder: something else could be written to")
    say(f"the same without network, home and a writable installation: {time.perf_counter() - start:.0f} s")


def test(mine: Path) -> None:
    """The short set, against the installed package."""
    run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", mine, *TESTERS)
    say("installed what the tests need")
    command = [str(mine), "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider", *SHORT]
    where = run(mine, "-c", "import gpuclust; print(gpuclust.__file__)", cwd=ROOT).strip()
    if not where.startswith(str(mine.parent.parent)):
        sys.exit(f"wheel: the tests would run on {where}, not on the installed package")
    if subprocess.run(command, cwd=ROOT).returncode:
        sys.exit("wheel: the short set of tests failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the empty environment")
    parser.add_argument("--no-tests", action="store_true", help="leave the short set of tests out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpuclust-wheel-") as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        check_contents(wheel)
        mine = install(wheel, args.python, folder / "env")
        for step in (use, use_hard):
            work = folder / step.__name__
            work.mkdir()
            step(mine, work)
        if not args.no_tests:
            test(mine)


if __name__ == "__main__":
    main()
