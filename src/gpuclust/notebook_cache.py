"""Import the notebook's cache, a ``.pt`` file of ``{'acts', 'prompts'}``, as a run."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from gpuclust import schema
from gpuclust.config import Config
from gpuclust.config_sections import ModelConfig, SaeConfig
from gpuclust.configfile import validate
from gpuclust.errors import ActivationError, GpuclustError, InputError, StoreError
from gpuclust.extraction.texts import storable
from gpuclust.hardware import process
from gpuclust.places import place
from gpuclust.results.inputs import dense
from gpuclust.results.run import Run, open_run
from gpuclust.storage import atomic, store
from gpuclust.storage.keys import content_key
from gpuclust.storage.run_folder import Folder, claim
from gpuclust.types import Array

log = logging.getLogger("gpuclust")


def import_cache(
    path: str | Path, out: str | Path | None = None, config: Config | Mapping[str, Any] | None = None,
    scheduler: str = "threads",
) -> Run:  # fmt: skip
    """Turn a cache of activations into a run, and compute everything that follows from activations.

    Parameters
    ----------
    path : str or Path
        A file that ``torch.save`` wrote: ``acts``, a tensor (prompt, feature), and ``prompts``, a list of str.
    out : str or Path, optional
        Folder of the run; default ``runs/`` and the file's name.
    config : Config or mapping, optional
        What comes after extraction; model and SAE are not used.
    scheduler : str
        As ``--scheduler``.

    Returns
    -------
    Run
        Its prompts have no tokens (``n_tokens`` is -1), and its examples no token positions (-1).

    Raises
    ------
    StoreError
        If the file cannot be read without running code from it, or is no such cache.
    ActivationError
        If the activations cannot be stored.
    """
    from gpuclust.engine.execute import execute
    from gpuclust.engine.scheduler import choose

    process.check_room()
    path = place(path)
    acts, texts = read_cache(path)
    c = config if isinstance(config, Config) else validate(config or {}, where="config")
    if c.keeps_tokens:
        raise InputError(f"extract.rows is {c.extract.rows}, but {path} has prompts, not tokens: leave it at prompt")
    target = place(out) if out is not None else Path("runs") / path.stem
    c = c.model_copy(update={"model": ModelConfig(name="imported"), "sae": SaeConfig(path=path.name)})
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
        data = store.to_stored(acts.astype(np.float32), c.store.dtype, str(path))
    nonzero = int(np.count_nonzero(data))
    underflowed = int(np.count_nonzero(acts)) - nonzero
    warnings = store.underflow(underflowed, nonzero, c.store.dtype)
    for text in warnings:
        log.warning("%s: %s", path, text)
    choose(scheduler)
    with claim(target):
        folder = Folder(target, c)
        digest = hashlib.sha256(data.tobytes()).hexdigest()
        key = content_key("imported", prompts_digest(texts), data.shape, str(data.dtype), digest)
        recorded = folder.record["stages"].get("extract")
        if (recorded is not None and recorded["key"] != key) or (folder.lost and not _holds(target, texts, data)):
            raise StoreError(f"{target} holds another cache's run; give another `out`, or delete that folder")
        if not (folder.done("prompts", key, [schema.PROMPTS]) and folder.done("extract", key, [schema.ACTIVATIONS])):
            folder.begin("prompts")
            table = pd.DataFrame(
                {"prompt": np.arange(len(texts), dtype=np.int64), "text": texts, "n_tokens": -1, "source": path.name}
            )
            atomic.write_table(target / schema.PROMPTS, table)
            attributes = {"model": "imported", "sae": path.name, "hook_name": "unknown", "aggregate": "unknown"}
            shutil.rmtree(target / schema.ACTIVATIONS, ignore_errors=True)
            store.create(target / schema.ACTIVATIONS, data.shape[0], data.shape[1], c.store, attributes)
            for index, (first, stop) in enumerate(store.shard_ranges(target / schema.ACTIVATIONS)):
                store.write_rows(target / schema.ACTIVATIONS, index, first, data[first:stop])
            facts = {"rows": len(texts), "d_sae": data.shape[1], "d_in": 0, "model_bytes": 0, "attributes": attributes}
            folder.complete("prompts", key, [schema.PROMPTS], **facts)
            facts = {"rows": len(texts), "bytes": data.nbytes, "underflowed": underflowed, "warnings": warnings}
            folder.complete("extract", key, [schema.ACTIVATIONS], **facts)
        execute(c, folder, scheduler, Console(quiet=True), quiet=True, report=True, imported=True)
    return open_run(target)


def _holds(target: Path, texts: list[str], data: Array) -> bool:
    """Whether a folder whose record is lost holds this cache's prompts and activations, as far as they can be read."""
    try:
        table = store.read_table(target / schema.PROMPTS, ["text"])
        rows = store.read_rows(target / schema.ACTIVATIONS, 512)
        return table["text"].tolist() == texts and all(
            np.array_equal(block, data[first : first + len(block)]) for first, block in rows
        )
    except (GpuclustError, OSError, ValueError) as error:
        log.warning("%s cannot be compared with the cache: %s", target, error)
        return False


def prompts_digest(texts: list[str]) -> str:
    """Hash the texts, in order."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


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
