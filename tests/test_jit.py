from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpuclust.hardware import jit

CODE = """
import logging, sys, tempfile
from pathlib import Path
logging.basicConfig(level="INFO")
from gpuclust.hardware import jit
home = Path("/dev/null/nowhere")
real = jit._writable
jit._writable = lambda folder: real(folder) if tempfile.gettempdir() in str(folder) else False
import numpy as np
from gpuclust.storage import codec
print(codec.decode(codec.encode(np.eye(3, dtype="f2")), (3, 3), "f2").sum())
import numba
print(numba.config.CACHE_DIR)
"""


def run(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")} | {"TMPDIR": str(tmp_path)}
    return subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)


def test_kernels_are_kept_where_nothing_can_be_written(tmp_path: Path) -> None:
    done = run(tmp_path)
    folder = tmp_path / f"gpuclust-numba-{os.getuid()}"
    assert done.stdout.split() == ["3.0", str(folder)]
    assert "Set NUMBA_CACHE_DIR" in done.stderr
    assert list(folder.rglob("*.nbc"))


@pytest.mark.parametrize("kind", ["a link", "open to others", "a file"])
def test_a_folder_that_others_may_fill_is_not_used(tmp_path: Path, kind: str) -> None:
    """Compiled kernels are pickles: whoever writes them runs code here."""
    planted, other = tmp_path / f"gpuclust-numba-{os.getuid()}", tmp_path / "other"
    other.mkdir()
    if kind == "a link":
        planted.symlink_to(other)
    elif kind == "a file":
        planted.write_text("")
    else:
        planted.mkdir()
        planted.chmod(0o777)
    used = Path(run(tmp_path).stdout.split()[1])
    assert used.parent == tmp_path
    assert used not in (planted, other)
    assert not list(other.iterdir())
    assert used.stat().st_mode & 0o077 == 0


def test_nothing_changes_where_the_cache_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import numba

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = numba.config.CACHE_DIR
    jit.keep_kernels.__wrapped__()
    assert before == numba.config.CACHE_DIR


UMAP_TWICE = """
import sys
import numba.core.event as event
import numpy as np

class Compiled(event.Listener):
    def on_start(self, found): pass
    def on_end(self, found): print(found.data["dispatcher"].py_func.__name__)

event.register("numba:compile", Compiled())
from gpuclust.compute.embedding import embed
from gpuclust.config_sections import UmapConfig
rng = np.random.default_rng(0)
place = rng.normal(size=(60, 3))
far = np.linalg.norm(place[:, None] - place[None], axis=2).astype(np.float32)
near = np.argsort(far, axis=1, kind="stable")[:, :8].astype(np.int32)
import umap.layouts
embed(near, np.take_along_axis(far, near.astype(np.int64), 1), UmapConfig(n_neighbors=8, n_components=2, n_epochs=3))
assert umap.layouts._nb_optimize_layout_euclidean_single_epoch.targetoptions["nogil"]
"""


def test_umaps_kernels_are_compiled_once_for_all_processes(tmp_path: Path) -> None:
    """Three of them umap-learn compiles in every process, for 10 seconds."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", UMAP_TWICE], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    slow = {"smooth_knn_dist", "compute_membership_strengths", "_optimize_layout_euclidean_single_epoch"}
    assert slow <= set(first.stdout.split())
    assert not slow & set(second.stdout.split())
