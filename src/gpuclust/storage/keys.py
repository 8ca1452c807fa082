"""Keys: hashes of what a result depends on. Equal keys, equal results; the stage table says what they are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpuclust.config import Config
from gpuclust.config_sections import DEMO, DEMO_SAES, PromptSource
from gpuclust.stage_table import Stage, values


def content_key(*parts: Any) -> str:
    """Hash plain data; equal data give equal keys on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def stage_key(stage: Stage, config: Config, before: Mapping[str, str], inputs: Any = None) -> str:
    """Return the key of a stage.

    Parameters
    ----------
    stage : Stage
    config : Config
    before : mapping of str to str
        Keys of the stages that it reads, others may be there.
    inputs : plain data, optional
        What it reads beside them: `inputs`.
    """
    read = {name: before[name] for name in stage.reads}
    return content_key(stage.name, stage.version, values(stage, config), read, inputs)


def inputs(stage: Stage, config: Config, done: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return fingerprints of what a stage reads that no stage wrote; None for most.

    Parameters
    ----------
    stage : Stage
    config : Config
    done : mapping
        The record's entries of the stages before it.
    """
    if stage.name == "prompts":
        return [source_state(source) for source in config.prompts]
    if stage.name == "extract":
        weights = [weights_state("model", config.model.name), weights_state("sae", config.sae.path)]
        return [done["prompts"]["attributes"]["prompts_sha256"], weights]
    return None


def weights_state(part: str, name: str | None) -> Any:
    """What a local folder of weights holds; None for a hub's, whose commit the store keeps."""
    if name is None:
        return None
    embedded = DEMO_SAES if part == "sae" else {"demo": part}
    return fingerprint(DEMO / embedded[name] if name in embedded else Path(name))


def source_state(source: PromptSource) -> Any:
    """What a local file of prompts holds: an edited file is another input; None for a hub's."""
    if source.path is None:
        return None
    return fingerprint(DEMO / "prompts.jsonl" if source.path == "demo" else Path(source.path))


def fingerprint(path: Path) -> Any:
    """Tell local files apart by size and content: all of a file, or both ends of those above 256 MiB; None if missing.

    A folder is the fingerprints of its files. Times do not count, so a copied folder is the same.
    """
    if path.is_dir():
        return {p.name: fingerprint(p) for p in sorted(path.iterdir()) if p.is_file()}
    if not path.is_file():
        return None
    size, whole = path.stat().st_size, 256 << 20
    with path.open("rb") as file:
        if size <= whole:
            return [size, hashlib.file_digest(file, "sha256").hexdigest()[:24]]
        ends = file.read(1 << 20)
        file.seek(-(1 << 20), 2)
        return [size, hashlib.sha256(ends + file.read()).hexdigest()[:24]]
