"""What a sweep asks: a base configuration, grids of values, and the settings that follow from them.

A sweep's file is YAML::

    base: local.yaml                # a configuration file, a mapping, or nothing: the embedded demo
    fixed: {consensus.members: 1}   # on top of the base
    seeds: 3                        # values of umap.random_state, from the base's on
    vary:                           # any field of the configuration: values
      umap.n_neighbors: [5, 15, 30]
      hdbscan.min_cluster_size: [5, 10]

or, for several grids that share what they can, `questions`: a name and one or more grids each. Two names beside the
fields vary which prompts are used: ``source`` (values of the prompts' source, see `source_pattern`) and ``length``
(lists of a smallest and a largest number of tokens).

Relative paths in it, `base` among them, are next to the file, or, where nothing is there, in the working directory.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from gpuclust import config_paths, configfile
from gpuclust.config import Config
from gpuclust.errors import ConfigError
from gpuclust.places import place
from gpuclust.section import Section

SOURCE, LENGTH = "source", "length"  # varied beside the fields of the configuration
DEFAULT = "default"
FREE = ("scheduler", "device")  # sections that change how, not what, is computed


class Grid(Section):
    """Values to combine."""

    vary: dict[str, list[Any]] = Field(description="field of the configuration, `source` or `length`: its values")
    search: Literal["grid", "random"] = Field("grid", description="all combinations, or `samples` of them")
    samples: int = Field(20, ge=1, description="combinations drawn, without replacement, by search: random")

    @field_validator("vary")
    @classmethod
    def _some(cls, vary: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if not vary or not all(vary.values()):
            raise ValueError("every varied field needs a list of at least one value")
        return vary

    def combinations(self, random: np.random.Generator) -> list[dict[str, Any]]:
        """Return the combinations of values, in the order of the grid."""
        shape = [len(values) for values in self.vary.values()]
        total = math.prod(shape)
        if self.search == "random" and self.samples < total:
            chosen = sorted(random.choice(total, self.samples, replace=False).tolist())
        else:
            chosen = list(range(total))
        places = [np.unravel_index(index, shape) for index in chosen]
        return [{key: values[i] for (key, values), i in zip(self.vary.items(), place, strict=True)} for place in places]


class SweepConfig(Section):
    """A whole sweep; see the module."""

    base: str | dict[str, Any] | None = Field(None, description="configuration file, or mapping; default the demo")
    fixed: dict[str, Any] = Field({}, description="fields of the configuration and values, on top of the base")
    questions: dict[str, list[Grid]] = Field(description="grids by name; a single grid needs no list")
    seeds: int = Field(3, ge=1, description="values of umap.random_state that every setting is computed with")
    seed: int = Field(0, ge=0, description="of search: random")
    source_pattern: str = Field(
        "(.*)", description="regular expression; the first group of its match in a prompt's source is its `source`"
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        """One grid at the top level is a question named `sweep`; a question with one grid is a list of it."""
        if not isinstance(data, Mapping):
            return data
        given = dict(data)
        if ("vary" in given) == ("questions" in given):
            raise ValueError("give either vary (one grid) or questions (grids by name)")
        if "vary" in given:
            given["questions"] = {"sweep": {key: given.pop(key) for key in Grid.model_fields if key in given}}
        if isinstance(given["questions"], Mapping):
            listed = given["questions"].items()
            given["questions"] = {name: [grids] if isinstance(grids, Mapping) else grids for name, grids in listed}
        return given

    @model_validator(mode="after")
    def _pattern(self) -> SweepConfig:
        try:
            groups = re.compile(self.source_pattern).groups
        except re.error as error:
            raise ValueError(f"source_pattern {self.source_pattern!r} is no regular expression: {error}") from error
        if groups < 1:
            raise ValueError(f"source_pattern {self.source_pattern!r} has no group: put parentheses around what to use")
        return self

    @property
    def fields(self) -> list[str]:
        """All varied names, in order of appearance."""
        return list(dict.fromkeys(key for grids in self.questions.values() for grid in grids for key in grid.vary))


@dataclass(eq=False)
class Setting:
    """One combination of values, on top of the base.

    Attributes
    ----------
    number : int
        0 is the default: the base itself.
    values : dict
        Value of every field that the sweep varies anywhere.
    grids : set of (str, int)
        Question and number of the grid within it, of every grid that has the setting.
    config : Config or None
        None where the values contradict each other: `error` says how.
    source, length : str or None, (int, int) or None
        The prompts used; None for all.
    """

    number: int
    values: dict[str, Any]
    config: Config | None
    error: str | None = None
    source: str | None = None
    length: tuple[int, int] | None = None
    grids: set[tuple[str, int]] = field(default_factory=set)


def load(path: str | Path, overrides: Sequence[str] = ()) -> tuple[SweepConfig, dict[str, Any]]:
    """Read a sweep's file and its base.

    Parameters
    ----------
    path : str or Path
        YAML file.
    overrides : sequence of str
        ``key=value`` on top of the base.

    Returns
    -------
    SweepConfig
    dict
        The base as plain data, valid and resolved.

    Raises
    ------
    ConfigError
        If a file cannot be read, or anything in it is wrong: unknown fields are refused with the nearest name.
    """
    try:
        data = configfile.parse(place(path).read_text(encoding="utf8"))
    except OSError as error:
        raise ConfigError(f"cannot read the sweep {path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no mapping; `base`, `seeds` and `vary` or `questions` are expected")
    try:
        sweep = SweepConfig.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc']))}: {str(p['msg']).removeprefix('Value error, ')}".removeprefix(": ")
            for p in error.errors()
        )
        raise ConfigError(f"{path}: {problems}") from None
    for key in sweep.fields:
        _check_field(key, str(path))
    for grids in sweep.questions.values():
        for grid in grids:
            _check_lengths(grid.vary.get(LENGTH, []), str(path))
    folder = place(path).parent
    for grid in (grid for grids in sweep.questions.values() for grid in grids):
        grid.vary.update({key: [_lead(key, value, folder) for value in grid.vary[key]] for key in grid.vary})
    if isinstance(sweep.base, str):
        base = configfile.load(config_paths.lead("base", sweep.base, folder)).resolved()
    else:
        given = copy.deepcopy(dict(sweep.base or {}))
        config_paths.lead_all(given, folder)
        base = configfile.validate(given, where=f"{path}, base").resolved()
    for key, value in sweep.fixed.items():
        configfile.assign(base, key, _lead(key, value, folder))
    known = copy.deepcopy(base)
    for override in overrides:
        configfile.override(base, override)
    config_paths.lead_all(base, known=known)
    return sweep, configfile.validate(base, where=f"{path}, base").resolved()


def _lead(key: str, value: Any, folder: Path) -> Any:
    """A value with its paths, as those of the file; a section is one of several values."""
    if config_paths.is_path(key):
        return config_paths.lead(key, value, folder)
    section = {key: copy.deepcopy(value)}
    config_paths.lead_all(section, folder)
    return section[key]


def _check_field(key: str, where: str) -> None:
    if key.split(".")[0] in FREE:
        raise ConfigError(f"{where}: {key} changes how a run is computed, not what comes out; it cannot be varied")
    if key.split(".")[0] == "quality":
        raise ConfigError(
            f"{where}: {key} cannot be varied: it changes the checks of a run, not its clusters, and a sweep compares "
            "halves and seeds itself"
        )
    if key == "umap.random_state":
        raise ConfigError(f"{where}: umap.random_state is varied by `seeds`, in every setting")
    known = [SOURCE, LENGTH, *configfile.keys()]
    if key not in known and not key.startswith("prompts."):
        near = configfile.nearest(key, known)
        raise ConfigError(f"{where}: unknown field {key}" + (f" (did you mean {near}?)" if near else ""))


def _check_lengths(lengths: Sequence[Any], where: str) -> None:
    for value in lengths:
        pair = isinstance(value, list) and len(value) == 2 and all(isinstance(end, int) for end in value)
        if not pair or not 0 <= value[0] <= value[1]:
            raise ConfigError(
                f"{where}: a length is {value!r}; write the smallest and the largest number of tokens, such as [1, 40]"
            )


def expand(sweep: SweepConfig, base: Mapping[str, Any]) -> list[Setting]:
    """Return all settings, the default first, each once however many grids have it.

    Values that contradict each other make a setting with an error, not an exception: a row of the result says so.

    Parameters
    ----------
    sweep : SweepConfig
    base : mapping
        The resolved base.
    """
    random = np.random.default_rng(sweep.seed)
    fields = sweep.fields
    settings = [_setting(0, {}, base, fields)]
    found = {_identity(settings[0]): settings[0]}
    for question, grids in sweep.questions.items():
        for number, grid in enumerate(grids):
            for values in grid.combinations(random):
                made = _setting(len(settings), values, base, fields)
                known = found.setdefault(_identity(made), made)
                if known is made:
                    settings.append(made)
                known.grids.add((question, number))
    return settings


def _setting(number: int, values: Mapping[str, Any], base: Mapping[str, Any], fields: Sequence[str]) -> Setting:
    data = yaml.safe_load(yaml.safe_dump(dict(base)))  # a copy without shared parts
    source = values.get(SOURCE)
    length = values.get(LENGTH)
    error, config = None, None
    for key, value in values.items():
        if key not in (SOURCE, LENGTH):
            configfile.assign(data, key, value)
    try:
        config = configfile.validate(data, where="setting")
        data = config.resolved()
    except ConfigError as problem:
        error = str(problem)
    shown = {key: value_of(data, key) if key not in (SOURCE, LENGTH) else values.get(key) for key in fields}
    return Setting(
        number, shown, config, error,
        None if source is None else str(source), None if length is None else (int(length[0]), int(length[1])),
    )  # fmt: skip


def value_of(data: Any, key: str) -> Any:
    """Return what a dotted key names in nested plain data; None where it names nothing."""
    for name in key.split("."):
        if isinstance(data, list) and name.isdigit() and int(name) < len(data):
            data = data[int(name)]
        elif isinstance(data, dict):
            data = data.get(name)
        else:
            return None
    return data


def _identity(setting: Setting) -> str:
    data = setting.values if setting.config is None else setting.config.resolved()
    return repr((setting.source, setting.length, data))
