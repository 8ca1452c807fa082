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
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from gpuclust.errors import ConfigError

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
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"analyse.labeller is {name}, which cannot be imported ({error}). Install its package, or set "
                "PYTHONPATH to its folder"
            ) from error
    else:
        points = importlib.metadata.entry_points(group=GROUP)
        if name not in points.names:
            known = f"installed: {', '.join(sorted(points.names))}" if points else "none is installed"
            raise ConfigError(
                f"analyse.labeller is {name!r}: neither module:function nor an entry point of {GROUP} ({known})"
            )
        found = points[name].load()
    if not callable(found):
        raise ConfigError(f"analyse.labeller is {name}, a {type(found).__name__}; a function is expected")
    labeller: Labeller = found
    return labeller


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
    except Exception as error:
        raise ConfigError(
            f"analyse.labeller {name} failed ({type(error).__name__}: {error}). Mend it, or set analyse.labeller=null; "
            "the same command goes on from the cluster tables"
        ) from error
    known = set(clusters["cluster"].tolist())
    if not isinstance(names, Mapping) or not all(key in known and isinstance(text, str) for key, text in names.items()):
        raise ConfigError(
            f"analyse.labeller {name} returned {str(names)[:200]}; a mapping of clusters (0 to {len(known) - 1}) to "
            "str is expected"
        )
    return [names.get(cluster) for cluster in clusters["cluster"].tolist()]
