"""The notebook's cache, a ``.pt`` file of ``{'acts', 'prompts'}``, as activations to be imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpuclust.errors import ActivationError, StoreError
from gpuclust.extraction.row_places import Activations
from gpuclust.extraction.row_readers import DenseRows
from gpuclust.extraction.texts import storable
from gpuclust.results.inputs import dense
from gpuclust.types import Array


@contextmanager
def opened(path: Path, n_features: int | None = None) -> Iterator[Activations]:
    """Open a cache as rows of prompts, with their texts.

    Raises
    ------
    StoreError, ActivationError
        As `read_cache`, and if `n_features` are not as many as it has.
    """
    acts, texts = read_cache(path)
    if n_features is not None and n_features != acts.shape[1]:
        raise ActivationError(f"{path} has {acts.shape[1]} features, and --n-features (n_features) is {n_features}")
    yield Activations(DenseRows(path, acts), None, texts)


def read_cache(path: Path) -> tuple[Array, list[str]]:
    """Read ``{'acts', 'prompts'}`` without running anything that the file holds.

    Returns
    -------
    acts : array, (prompt, feature), float16, float32 or float64
    prompts : list of str

    Raises
    ------
    StoreError
        If the file is missing, holds code, or is no such cache.
    """
    import torch

    if not path.is_file():
        raise StoreError(f"there is no cache file {path}")
    try:
        data = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # what unpickling damaged bytes raises is anything
        raise StoreError(
            f"{path} cannot be loaded safely ({type(error).__name__}): it is damaged, or holds objects or code beside "
            "tensors and text, which are not run. In a session you trust, save it again as {'acts': tensor, 'prompts': "
            "list of str}"
        ) from error
    if not isinstance(data, dict) or not {"acts", "prompts"} <= set(data):
        found = ", ".join(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise StoreError(f"{path} holds {found}; a dict with 'acts' and 'prompts' is expected")
    acts, texts = data["acts"], _texts(data["prompts"], path)
    if not isinstance(acts, torch.Tensor) or acts.ndim != 2 or not acts.is_floating_point():
        shape = tuple(acts.shape) if isinstance(acts, torch.Tensor) else type(acts).__name__
        raise ActivationError(f"{path}: 'acts' is {shape}; a floating tensor (prompt, feature) is expected")
    if 0 in acts.shape:
        raise ActivationError(f"{path}: 'acts' has the shape {tuple(acts.shape)}; it holds no activations")
    if len(texts) != len(acts):
        raise ActivationError(f"{path}: 'acts' has {len(acts)} rows but 'prompts' has {len(texts)}; they must agree")
    return dense(acts), texts


def _texts(given: Any, path: Path) -> list[str]:
    """The texts of prompts, which UTF-8 can hold."""
    if not isinstance(given, list | tuple):
        raise StoreError(f"{path}: 'prompts' is of type {type(given).__name__}; a list of str is expected")
    for row, text in enumerate(given):
        if not isinstance(text, str):
            raise StoreError(f"{path}: prompt {row} is of type {type(text).__name__}; a list of str is expected")
    return [storable(text, f"{path}, prompt {row}") for row, text in enumerate(given)]
