"""Activations of tokens as delphi caches them (EleutherAI/delphi, `LatentCache.save` and `save_splits`).

A ``.safetensors`` file has `locations`, (entry, 3): number of the prompt, position and feature; `activations`,
(entry,); and mostly `tokens`, (prompt, position): token ids. A folder has one file a range of features, named
``{first}_{last}.safetensors``, both included, each with the tokens of all prompts. In such files features are counted
from the file's first one; before September 2024 delphi kept the SAE's own numbers there.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust.errors import ActivationError, StoreError
from gpuclust.extraction import row_places
from gpuclust.extraction.row_places import Activations
from gpuclust.extraction.row_readers import Entries, ScatteredRows, as_places, iterate

log = logging.getLogger("gpuclust")

NAME = re.compile(r"(\d+)_(\d+)")
WIDE = "BF16"
KNOWN = ("F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")
NEEDED = ("locations", "activations")


@dataclass(frozen=True, eq=False)
class Part:
    """One file: its features, as its name says them (None where it does not), and its open tensors.

    `wide` is the file opened by PyTorch where its activations are bfloat16, which NumPy lacks.
    """

    path: Path
    first: int
    last: int | None
    file: Any
    shapes: dict[str, tuple[int, ...]]
    wide: Any = None

    def values(self, own: slice) -> Any:
        """Return some of the activations, (entry,)."""
        if self.wide is not None:
            return self.wide.get_slice("activations")[own].float().numpy()
        return self.file.get_slice("activations")[own]

    def largest(self) -> tuple[Any, Any]:
        """Return the smallest and the largest prompt, position and feature, (3,), int64; of no entry 0 and -1."""
        low, high = np.zeros(3, np.int64), np.full(3, -1, np.int64)
        for number, own in enumerate(iterate(self.shapes["activations"][0])):
            found = as_places(self.file.get_slice("locations")[own], self.path)
            low = found.min(axis=0) if number == 0 else np.minimum(low, found.min(axis=0))
            high = np.maximum(high, found.max(axis=0))
        return low, high


def of_latents(path: Path, n_features: int | None) -> Activations:
    """Open a file or a folder of such files.

    Parameters
    ----------
    path : Path
    n_features : int, optional
        Features of the SAE; default as the names of files say it, or the largest that fires.

    Raises
    ------
    StoreError
        If there is no such file, or one cannot be read.
    ActivationError
        If they hold no such tensors, or do not belong together.
    """
    parts = [_part(file, named=path.is_dir()) for file in _files(path)]
    tokens = _tokens(parts)
    bounds = [part.largest() for part in parts]
    _refuse_negative(parts, bounds)
    relative = _is_relative(parts, bounds)
    high = np.max([bound for _, bound in bounds], axis=0)
    features = [int(top[2]) + (part.first if relative else 0) for part, (_, top) in zip(parts, bounds, strict=True)]
    known = [part.last for part in parts if part.last is not None]
    width = n_features if n_features is not None else max([*known, *features]) + 1
    if width <= max(features):
        raise ActivationError(
            f"{path} has feature {max(features)}, and --n-features (n_features) is {width}, so that features are 0 to "
            f"{width - 1}: give the number of features of the SAE"
        )
    if tokens is not None:
        n_prompts, length = tokens.shape
        where = "tokens"
    else:
        n_prompts, length = int(high[0]) + 1, int(high[1]) + 1
        where = "entries"
        log.info("%s has no tokens: prompts and positions are as many as something fires on", path)
    for name, axis, n in (("prompt", 0, n_prompts), ("position", 1, length)):
        if high[axis] >= n:
            raise ActivationError(
                f"{path}: an entry is of {name} {high[axis]}, but `{where}` have {n:,} {name}s: they do not belong "
                "together"
            )
    if max(n_prompts, length) > row_places.LARGEST:
        raise ActivationError(
            f"{path}: {n_prompts:,} prompts of {length:,} positions; at most {row_places.LARGEST:,} (int32) are kept"
        )
    places = row_places.grid(path, n_prompts, length, tokens)
    slices = [
        _slice(part, own, length, part.first if relative else 0)
        for part in parts
        for own in iterate(part.shapes["activations"][0])
    ]
    return Activations(ScatteredRows(path, (n_prompts * length, width), slices), places)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.safetensors"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.stem)])
    if not found:
        inside = sorted({file.parent.name for file in path.glob("*/*.safetensors")})
        more = f"; give one of its folders, each of one SAE: {', '.join(inside[:8])}" if inside else ""
        raise StoreError(
            f"{path} is neither a Zarr folder nor has it files FIRST_LAST.safetensors, as delphi writes them{more}"
        )
    return found


def _part(path: Path, named: bool) -> Part:
    """Open a file and look at its tensors."""
    from safetensors import SafetensorError, safe_open

    name = NAME.fullmatch(path.stem)
    if named and name is None:
        raise StoreError(
            f"{path} is not named FIRST_LAST.safetensors by its features, as delphi names them: name it so, or give "
            "the file alone"
        )
    try:
        file: Any = safe_open(path, framework="numpy")
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path} cannot be read as safetensors ({error}): it is damaged, or another file") from error
    if lost := [key for key in NEEDED if key not in shapes]:
        raise ActivationError(
            f"{path} holds {', '.join(sorted(shapes)) or 'nothing'}, and no {' and no '.join(lost)}: locations "
            "(entry, 3) of prompt, position and feature, and activations (entry,), are expected"
        )
    n = shapes["activations"][:1]
    if len(shapes["activations"]) != 1 or shapes["locations"] != (*n, 3):
        raise ActivationError(
            f"{path}: locations have the shape {shapes['locations']} and activations {shapes['activations']}; "
            "(entry, 3) and (entry,) of as many entries are expected"
        )
    kinds = {key: file.get_slice(key).get_dtype() for key in shapes if key in (*NEEDED, "tokens")}
    if unknown := [key for key, kind in kinds.items() if kind not in KNOWN and (key, kind) != ("activations", WIDE)]:
        raise ActivationError(
            f"{path}: {unknown[0]} are of dtype {kinds[unknown[0]]}; whole numbers, and for activations float16, "
            "bfloat16, float32 or float64, are expected"
        )
    wide: Any = safe_open(path, framework="pt") if kinds["activations"] == WIDE else None
    first, last = (int(name[1]), int(name[2])) if name else (0, None)
    if last is not None and last < first:
        raise StoreError(f"{path} is named by features {first} to {last}: the first is beyond the last")
    return Part(path, first, last, file, shapes, wide)


def _tokens(parts: list[Part]) -> Any:
    """Token ids (prompt, position), which all files have alike; None where none has them."""
    found = [part for part in parts if "tokens" in part.shapes]
    if not found:
        return None
    tokens = found[0].file.get_tensor("tokens")
    if tokens.ndim != 2 or 0 in tokens.shape or tokens.dtype.kind not in "iu":
        raise ActivationError(
            f"{found[0].path}: tokens are {tokens.dtype} of shape {tokens.shape}; whole numbers (prompt, position) are "
            "expected"
        )
    digest = hashlib.sha256(tokens.tobytes()).digest()
    for part in found[1:]:
        other = part.file.get_tensor("tokens")
        if other.shape != tokens.shape or hashlib.sha256(other.tobytes()).digest() != digest:
            raise ActivationError(
                f"{part.path} has other tokens, {other.shape}, than {found[0].path}, {tokens.shape}: these files are "
                "not of one cache"
            )
    return tokens


def _refuse_negative(parts: list[Part], bounds: list[tuple[Any, Any]]) -> None:
    for part, (low, _) in zip(parts, bounds, strict=True):
        if (low < 0).any():
            axis = int(np.flatnonzero(low < 0)[0])
            raise ActivationError(
                f"{part.path}: an entry is of {('prompt', 'position', 'feature')[axis]} {low[axis]}; all are numbered "
                "from 0"
            )


def _is_relative(parts: list[Part], bounds: list[tuple[Any, Any]]) -> bool:
    """Whether features are counted from each file's first one; they are unless some only fit the SAE's own numbers."""
    ordered = sorted((part for part in parts if part.last is not None), key=lambda part: part.first)
    for one, other in itertools.pairwise(ordered):
        if other.first <= (one.last or 0):
            raise ActivationError(f"{one.path} and {other.path.name} both have feature {other.first}: take one away")
        if other.first > (one.last or 0) + 1:
            log.warning("%s: no file has features %d to %d, which never fire here", one.path.parent,
                        (one.last or 0) + 1, other.first - 1)  # fmt: skip
    beyond = [
        (part, int(high[2])) for part, (_, high) in zip(parts, bounds, strict=True)
        if part.last is not None and high[2] > part.last - part.first
    ]  # fmt: skip
    if not beyond:
        return True
    for part, (low, high) in zip(parts, bounds, strict=True):
        if part.last is not None and high[2] >= 0 and not part.first <= low[2] <= high[2] <= part.last:
            part, top = beyond[0]
            raise ActivationError(
                f"{part.path} has feature {top}, and its name says {part.first} to {part.last}: that is neither its "
                f"place in the file (0 to {(part.last or 0) - part.first}) nor, in all files, the SAE's own number"
            )
    log.info("%s: features have the SAE's own numbers, as delphi wrote them before September 2024", parts[0].path)
    return False


def _slice(part: Part, own: slice, length: int, offset: int) -> Callable[[], Entries]:
    def read() -> Entries:
        where = as_places(part.file.get_slice("locations")[own], part.path)
        return where[:, 0] * length + where[:, 1], where[:, 2] + offset, part.values(own)

    return read
