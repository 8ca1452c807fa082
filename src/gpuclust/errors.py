"""Everything that gpuclust raises on purpose.

::

    GpuclustError                 the base: catch this one
    ├── InputError                bad input or configuration, refused before or between work; exit code 2
    │   ├── ConfigError           an unknown key, a value out of range, settings that contradict each other
    │   ├── PromptsError          prompts that cannot be read, or none left after cleaning
    │   ├── ModelError            a model, SAE or hook that cannot be had or that do not belong together
    │   ├── StoreError            a folder that is no run, holds another run, or a store that cannot be read
    │   ├── SelectionError        a filter that leaves too few features to cluster; a ValueError, too
    │   ├── ActivationError       activations that cannot be taken: no array of numbers, NaN, infinite, too large for
    │   │                         the dtype; a ValueError and a TypeError, too, as other libraries raise for those
    │   ├── ParameterError        a parameter that `FeatureClusterer` does not have; a ValueError, too
    │   ├── MemoryBudgetError     a stage that cannot fit the memory it is allowed
    │   └── SchedulerError        a scheduler that cannot be started or reached
    ├── WorkerError               workers, or their scheduler, that die while something is computed; exit code 1
    ├── TaskError                 code of somebody else's that wants to end the process it runs in; exit code 1
    ├── DeviceError               memory that runs out while a stage runs, or a GPU that fails; exit code 1
    └── CorruptDataError          stored bytes that fail their checksum; exit code 1

Messages say what is wrong, both values, where, and the fix.
"""

from __future__ import annotations


class GpuclustError(Exception):
    """Base class of every error that gpuclust raises on purpose."""

    exit_code = 1


class InputError(GpuclustError):
    """Bad input or configuration."""

    exit_code = 2


class ConfigError(InputError):
    """An unknown key, a value out of range, or settings that contradict each other."""


class PromptsError(InputError):
    """Prompts that cannot be read, or none left after cleaning."""


class ModelError(InputError):
    """A model, SAE or hook that cannot be had, or that do not belong together."""


class StoreError(InputError):
    """A folder that is no run, holds another run, or a store that cannot be read."""


class SelectionError(InputError, ValueError):
    """A filter that leaves too few features to cluster."""


class ActivationError(InputError, ValueError, TypeError):
    """Activations that cannot be taken or stored: no array of numbers, NaN, infinite, or too large for the dtype."""


class ParameterError(InputError, ValueError):
    """A parameter that `FeatureClusterer` does not have, or a value that it does not take."""


class MemoryBudgetError(InputError):
    """A stage that cannot fit the memory it is allowed."""


class SchedulerError(InputError):
    """A scheduler that cannot be started or reached."""


class WorkerError(GpuclustError):
    """Workers, or their scheduler, that die while something is computed."""


class TaskError(GpuclustError):
    """Code of somebody else's that wants to end the process it runs in."""


class DeviceError(GpuclustError):
    """Memory that runs out while a stage runs, or a GPU that fails."""


class CorruptDataError(GpuclustError):
    """Stored bytes that fail their checksum or do not decode."""
