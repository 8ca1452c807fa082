"""Labels: a hook for naming clusters, with a language model or by any other means. Nothing is called by default.

A labeller is a function of the cluster table (a DataFrame, columns of ``schema.CLUSTER_COLUMNS``, noise left out) that
returns a mapping of cluster to name. ``analyse.labeller`` names it, as ``module:function`` or as an entry point:

.. code-block:: toml

    [project.entry-points."gpuclust.labels"]
    mine = "my_package.naming:label"
"""

from __future__ import annotations

import importlib
import importlib.metadata
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.errors import ConfigError
from gpuclust.formatting import shown

GROUP = "gpuclust.labels"
Labeller = Callable[[pd.DataFrame], Mapping[int, str]]


def find(name: str) -> Labeller:
    """Import the labeller that ``analyse.labeller`` names.

    Raises
    ------
    ConfigError
        If there is none of that name, or it is no function.

    Examples
    --------
    >>> find("math:sqrt").__name__
    'sqrt'
    """
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            found: Any = getattr(importlib.import_module(module), attribute)
        except BaseException as error:
            raise _not_imported(name, error) from error
    else:
        points = importlib.metadata.entry_points(group=GROUP)
        if name not in points.names:
            known = f"installed: {', '.join(sorted(points.names))}" if points else "none is installed"
            raise ConfigError(
                f"analyse.labeller is {name!r}: neither module:function nor an entry point of {GROUP} ({known})"
            )
        try:
            found = points[name].load()
        except BaseException as error:
            raise _not_imported(name, error) from error
    if not callable(found):
        raise ConfigError(f"analyse.labeller is {name}, a {type(found).__name__}; a function is expected")
    labeller: Labeller = found
    return labeller


def _not_imported(name: str, error: BaseException) -> ConfigError:
    """Say why; a module may raise anything, SystemExit included."""
    _let_interrupts_pass(error)
    known = isinstance(error, ImportError | AttributeError)
    fix = "Install its package, or set PYTHONPATH to its folder" if known else "Mend it, or set analyse.labeller=null"
    why = str(error) if known else f"{type(error).__name__}: {error}"
    return ConfigError(f"analyse.labeller is {name}, which cannot be imported ({why}). {fix}")


def _let_interrupts_pass(error: BaseException) -> None:
    """Raise a Ctrl-C again: only the main thread gets one, and labellers run in others, where it is their own."""
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error


def apply(name: str, clusters: pd.DataFrame) -> list[str | None]:
    """Call the labeller on the clusters and return a name, or None, for each row.

    Raises
    ------
    ConfigError
        If it fails, or returns something else than a mapping of the clusters to str.
    """
    label = find(name)
    try:
        names = label(clusters.copy())
    except BaseException as error:  # SystemExit too, which would end a worker
        _let_interrupts_pass(error)
        raise ConfigError(
            f"analyse.labeller {name} failed ({type(error).__name__}: {error}). Mend it, or set analyse.labeller=null; "
            "the same command goes on from the cluster tables"
        ) from error
    known = set(clusters["cluster"].tolist())
    if not isinstance(names, Mapping) or not all(_names(key, text, known) for key, text in names.items()):
        raise ConfigError(
            f"analyse.labeller {name} returned {shown(names)}; a mapping of clusters (0 to {len(known) - 1}) to str is "
            "expected, of characters that UTF-8 has"
        )
    return [names.get(cluster) for cluster in clusters["cluster"].tolist()]


def _names(key: Any, text: Any, known: set[int]) -> bool:
    """Whether it is a cluster's number, which True is not, and a text that a table can hold."""
    if isinstance(key, bool | np.bool_) or key not in known or not isinstance(text, str):
        return False
    return not any("\ud800" <= character <= "\udfff" for character in text)
