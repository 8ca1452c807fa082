"""Where the relative paths of a configuration lead: next to its file first, then, as ever, to the working directory.

`model.name`, `sae.path` and the paths of `prompts` are made absolute as a file or ``--set`` is read, so that what a run
records is the same place from everywhere.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpuclust import schema
from gpuclust.config_sections import DEMO_SAES
from gpuclust.errors import StoreError
from gpuclust.places import place

MODEL = "model.name"


def is_path(key: str) -> bool:
    """Whether a dotted key of the configuration is a path, or may be one, as a model's name.

    Examples
    --------
    >>> [is_path(key) for key in ("model.name", "prompts.0.path", "prompts.0.column")]
    [True, True, False]
    """
    return key in (MODEL, "sae.path") or (key.startswith("prompts.") and key.endswith(".path"))


def lead(key: str, value: Any, folder: Path | None = None) -> Any:
    """Return where a path of the configuration leads, absolute.

    Of a relative path, what is there decides: next to the file, then in the working directory; where nothing is, it is
    next to the file, and the error about it says so. A model's name is a folder where one of the two has it with a
    ``config.json``, or where it begins with a dot; else it stays what it is, such as the hub's ``gpt2``.

    Parameters
    ----------
    key : str
        One of which `is_path` is true.
    value : object
        As given; what is no path at all is returned as it is, and refused where the configuration is validated.
    folder : Path, optional
        Of the file. Without it, and for the record of a run, whose relative paths are of earlier versions, the working
        directory alone counts; a model's name in a record is what it was, an id of the hub or such a path.
    """
    if not isinstance(value, str) or value == "demo" or (key == "sae.path" and value in DEMO_SAES):
        return value
    if folder is not None and (folder / schema.RECORD).exists():
        if key == MODEL:
            return value
        folder = None
    try:
        given = place(value)
    except StoreError:
        return value
    if given.is_absolute():
        return value
    tried = [absolute(given)] if folder is None else [absolute(folder / given), absolute(given)]
    for path in tried:
        if os.path.exists(path / "config.json" if key == MODEL else path):
            return str(path)
    return value if key == MODEL and not value.startswith(".") else str(tried[0])


def absolute(path: Path) -> Path:
    """Return a path from the root on; links stay as they are, unless ``..`` would lead elsewhere then."""
    return path.resolve() if ".." in path.parts else path.absolute()


def lead_all(data: Any, folder: Path | None = None, known: Any = None) -> None:
    """Do to all paths of a configuration, in place, what `lead` does to one.

    Parameters
    ----------
    data : plain data
    folder : Path, optional
    known : plain data, optional
        Whose paths were led already: those that are the same here are left.
    """
    done = {key: holder[name] for key, holder, name in _places(known)}
    for key, holder, name in _places(data):
        if key not in done or done[key] != holder[name]:
            holder[name] = lead(key, holder[name], folder)


def as_recorded(data: dict[str, Any], record: Any) -> dict[str, Any]:
    """Spell paths as a record does, where that is the same place from here.

    Keys of what earlier versions computed are made of relative paths: in the directory in which that began, it goes on.

    Parameters
    ----------
    data, record : plain data of a configuration

    Returns
    -------
    dict
        A copy.
    """
    data = copy.deepcopy(data)
    recorded = {key: holder[name] for key, holder, name in _places(record)}
    for key, holder, name in _places(data):
        there, here = recorded.get(key), holder[name]
        if isinstance(there, str) and isinstance(here, str) and os.path.realpath(there) == os.path.realpath(here):
            holder[name] = there
    return data


def _places(data: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """All paths that are given: the key, and where the value stands."""
    if not isinstance(data, dict):
        return
    prompts = data.get("prompts")
    listed = prompts if isinstance(prompts, list | tuple) else ()
    holders = [("model", data.get("model"), "name"), ("sae", data.get("sae"), "path")]
    holders += [(f"prompts.{number}", source, "path") for number, source in enumerate(listed)]
    for section, holder, name in holders:
        if isinstance(holder, dict) and holder.get(name) is not None:
            yield f"{section}.{name}", holder, name
