"""Settings by name, as functions of Python take them, on top of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuclust.config import Config
from gpuclust.config_sections import ClusterConfig
from gpuclust.errors import ConfigError
from gpuclust.formatting import shown


def merged(
    config: Config | Mapping[str, Any] | None, n_neighbors: int | None, named: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Put settings by name into a configuration's plain data, before it is validated.

    Parameters
    ----------
    config : Config or mapping, optional
    n_neighbors : int, optional
        Of a feature, in the map and, by communities, in the graph too: each has a setting of its own.
    named : mapping of str to mapping
        Values by section and name; None is not set.

    Returns
    -------
    dict

    Raises
    ------
    ConfigError
        If `config` is none.

    Examples
    --------
    >>> merged({"umap": {"n_components": 2}}, 12, {"cluster": {"method": "umap"}})
    {'umap': {'n_components': 2, 'n_neighbors': 12}, 'cluster': {'method': 'umap'}}
    >>> merged(None, 12, {"communities": {"resolution": None}})
    {'umap': {'n_neighbors': 12}, 'communities': {'n_neighbors': 12}}
    """
    given = config.resolved() if isinstance(config, Config) else config
    if not isinstance(given, Mapping | None):
        raise ConfigError(f"config is {shown(given)}: a Config or a mapping such as {{'umap': {{…}}}} is expected")
    data = dict(given or {})
    _put(data, {**named, "umap": {**named.get("umap", {}), "n_neighbors": n_neighbors}})
    cluster = data.get("cluster", {})
    if isinstance(cluster, Mapping) and cluster.get("method", ClusterConfig().method) == "communities":
        _put(data, {"communities": {"n_neighbors": n_neighbors}})
    return data


def _put(data: dict[str, Any], named: Mapping[str, Mapping[str, Any]]) -> None:
    """What is no section stays as it is, to be refused with all else."""
    for section, values in named.items():
        values = {name: value for name, value in values.items() if value is not None}
        if values and isinstance(data.setdefault(section, {}), Mapping):
            data[section] = {**data[section], **values}
