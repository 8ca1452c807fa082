"""Which features of a sparse autoencoder belong together, and is that real?

>>> import gpuclust
>>> run = gpuclust.open_run("runs/demo")  # doctest: +SKIP

Importing gpuclust loads no GPU library, no PyTorch, and nothing else that is slow: names are resolved when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuclust.clusterer import FeatureClusterer as FeatureClusterer
    from gpuclust.config import Config as Config
    from gpuclust.errors import GpuclustError as GpuclustError
    from gpuclust.importing import import_activations as import_activations
    from gpuclust.importing import import_cache as import_cache
    from gpuclust.results.feature_clusters import FeatureClusters as FeatureClusters
    from gpuclust.results.run import Run as Run
    from gpuclust.results.run import cluster_features as cluster_features
    from gpuclust.results.run import open_run as open_run
    from gpuclust.sweep.opened import Sweep as Sweep
    from gpuclust.sweep.opened import open_sweep as open_sweep

__version__ = "0.1.0"

_HOMES = {
    "Config": "config",
    "FeatureClusterer": "clusterer",
    "FeatureClusters": "results.feature_clusters",
    "GpuclustError": "errors",
    "Run": "results.run",
    "cluster_features": "results.run",
    "import_activations": "importing",
    "import_cache": "importing",
    "open_run": "results.run",
    "Sweep": "sweep.opened",
    "open_sweep": "sweep.opened",
}
__all__ = [
    "Config", "FeatureClusterer", "FeatureClusters", "GpuclustError", "Run", "Sweep", "cluster_features",
    "import_activations", "import_cache", "open_run", "open_sweep",
]  # fmt: skip


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"gpuclust.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gpuclust' has no attribute {name!r}")
