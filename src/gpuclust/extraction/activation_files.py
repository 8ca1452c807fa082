"""Files and folders of activations, whatever wrote them, opened as rows by the kind of file.

===========================  =======================================================================
``.npy``, ``.npz``           `array_files`: dense (row, feature), or a sparse matrix of SciPy
``.h5ad``, Zarr folders      `group_files`: AnnData, or an array `activations`
``.safetensors``, folders    `latent_files`: (prompt, position, feature) and values, as delphi has them
===========================  =======================================================================

Nothing that a file holds is run: no pickles are read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gpuclust import schema
from gpuclust.errors import ActivationError, InputError, StoreError
from gpuclust.extraction import array_files, group_files, latent_files
from gpuclust.extraction.row_places import Activations

KINDS = ".npy, .npz, .h5ad, .safetensors, .pt, or a folder: Zarr, or delphi's cache"


@contextmanager
def opened(path: Path, n_features: int | None = None) -> Iterator[Activations]:
    """Open a file or a folder of activations.

    Parameters
    ----------
    path : Path
    n_features : int, optional
        Features of the SAE, where the file does not say how many there are.

    Raises
    ------
    StoreError
        If it is not there, of no known kind, or cannot be read.
    ActivationError
        If it holds no activations.
    """
    if not path.exists():
        raise StoreError(f"there is no {path.absolute()}: give a file or folder of activations ({KINDS})")
    with ExitStack() as stack:
        try:
            suffix = path.suffix.lower()
            if path.is_dir() and (path / schema.RECORD).exists():
                raise StoreError(
                    f"{path} is a run of gpuclust: gpuclust run --reuse {path} --out OTHER takes it as it is"
                )
            if path.is_dir() and group_files.is_zarr(path):
                found = group_files.of_zarr(path)
            elif path.is_dir() or suffix == ".safetensors":
                found = latent_files.of_latents(path, n_features)
            elif suffix == ".h5ad":
                found = group_files.of_h5ad(path, stack)
            elif suffix == ".npy":
                found = array_files.of_npy(path)
            elif suffix == ".npz":
                found = array_files.of_npz(path, stack)
            else:
                raise StoreError(f"{path}: files of type {suffix or '(none)'} are not read; give {KINDS}")
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
            if isinstance(error, InputError):
                raise
            said = " ".join(str(error).split())[:200]
            raise StoreError(
                f"{path} cannot be read ({type(error).__name__}: {said}): it is damaged, of another kind than its name "
                "says, or holds objects, which are not loaded because that can run code. Save it again as plain numbers"
            ) from error
        rows = found.rows
        if 0 in rows.shape:
            raise ActivationError(f"{path} has the shape {rows.shape}; it holds no activations")
        if n_features is not None and n_features != rows.shape[1]:
            raise ActivationError(
                f"{path} has {rows.shape[1]:,} features, and --n-features (n_features) is {n_features:,}: leave it out"
            )
        yield found
