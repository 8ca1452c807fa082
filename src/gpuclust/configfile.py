"""From a YAML file and ``key=value`` overrides to a `Config`.

What is wrong is said with the key, the value and the fix; unknown keys with the nearest name that exists.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gpuclust import config_paths
from gpuclust.config import CORRECTABLE, Config
from gpuclust.config_sections import PromptSource
from gpuclust.errors import ConfigError
from gpuclust.formatting import shown
from gpuclust.places import place
from gpuclust.section import Section

LARGEST, MOST = 100_000, 20_000  # characters, and values, of a configuration or a sweep
DEEPEST = 50  # levels of it; PyYAML looks at all that are open with every character that it reads
SHOWN = 20  # problems that one message names
IDLE = {  # sections and settings that a clustering method does not read
    "communities": ("dbscan", "hdbscan.metric", "consensus.n_epochs"),
    "umap": ("communities", "dbscan", "hdbscan.metric"),
    "distances": ("communities", "dbscan", "consensus"),
    "dbscan": ("communities", "consensus", "hdbscan.metric"),
}


def load(path: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration file and apply ``key=value`` overrides.

    Relative paths become absolute. Those in the file are next to it, or, where nothing is there, in the working
    directory; a ``model.name`` is one of a hub unless one of the two has a folder of that name with a model
    (`config_paths.lead`).

    Parameters
    ----------
    path : str or Path, optional
        YAML file; without it, the embedded demo.
    overrides : iterable of str
        Such as ``umap.n_components=2`` or ``prompts.0.limit=100``; values are YAML, and paths relative to the working
        directory.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key or value is wrong.

    Examples
    --------
    >>> load(overrides=["umap.n_components=5"]).umap.n_components
    5
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            path = place(path)
            text = path.read_text(encoding="utf8")
        except OSError as error:
            raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"cannot read the configuration {path}: it is not UTF-8 text") from error
        try:
            loaded = parse(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(loaded, dict | None):
            raise ConfigError(f"{path} holds a {type(loaded).__name__}; a mapping such as `umap: {{…}}` is expected")
        data = loaded or {}
        config_paths.lead_all(data, path.parent)
    where, in_file, overrides = str(path) if path else "configuration", copy.deepcopy(data), list(overrides)
    for assignment in overrides:
        override(data, assignment)
    config_paths.lead_all(data, known=in_file)
    try:
        return validate(data, where)
    except ConfigError as error:
        said = str(error).removeprefix(f"{where}: ")
        raise ConfigError(f"{_given_by(where, in_file, overrides, said)}: {said}") from None


def _given_by(where: str, in_file: dict[str, Any], overrides: list[str], said: str) -> str:
    """Say where what is wrong was given: in the file, or by which of ``--set``; by what it names, else by all."""
    keys = {text: text.partition("=")[0].strip() for text in overrides}
    named = [text for text, key in keys.items() if re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", said)]
    try:
        validate(in_file)
    except ConfigError:
        places, blamed = [where], named
    else:
        places, blamed = [], named or overrides
    if blamed:
        more = f" and {len(blamed) - SHOWN} more" if len(blamed) > SHOWN else ""
        places.append(f"--set {' '.join(shown(text) for text in blamed[:SHOWN])}{more}")
    return " and ".join(places) or where


def validate(data: Mapping[str, Any], where: str = "configuration") -> Config:
    """Check plain data against the schema.

    Raises
    ------
    ConfigError
        With every problem found, each with its key, the value, and the nearest known key.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {shown(data)}: a Config or a mapping such as {{'umap': {{…}}}} is expected")
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        problems = [_explain(dict(problem)) for problem in found[:SHOWN]]
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ConfigError(f"{where}: " + "; ".join(problems) + more) from None
    except ConfigError as error:  # of what is read further than its type
        raise ConfigError(f"{where}: {error}") from None


def without_effect(config: Config) -> str | None:
    """Say in one line which settings were given, and change nothing under the clustering method that was chosen.

    A setting counts that was given another value than its default: a run's own ``config.yaml`` gives them all.

    Parameters
    ----------
    config : Config

    Returns
    -------
    str or None
        None where there are none.

    Examples
    --------
    >>> without_effect(load(overrides=["cluster.method=umap", "communities.resolution=60"]))
    'communities.resolution has no effect with cluster.method=umap: take it away, or set another cluster.method'
    """
    method, metric = config.cluster.method, config.metric
    if not config.neighbors.corrected and metric not in CORRECTABLE:
        names = f"{', '.join(CORRECTABLE[:-1])} and {CORRECTABLE[-1]}"
        said = f"neighbors.corrected has no effect with the metric {metric}: it is of {names}"
        plain = config.model_copy(update={"neighbors": config.neighbors.model_copy(update={"corrected": True})})
        return "; ".join(filter(None, [said, without_effect(plain)]))
    if "extract.window" in _given(config) and config.used_window is None:
        said = f"extract.window has no effect with extract.rows={config.extract.rows}: it is of window"
        kept = config.extract.model_copy(update={"window": type(config.extract).model_fields["window"].default})
        return "; ".join(filter(None, [said, without_effect(config.model_copy(update={"extract": kept}))]))
    idle = [key for key in _given(config) if any(f"{key}.".startswith(f"{one}.") for one in IDLE[method])]
    if not idle:
        return None
    has, it = ("has", "it") if len(idle) == 1 else ("have", "them")
    names = ", ".join(idle)
    return f"{names} {has} no effect with cluster.method={method}: take {it} away, or set another cluster.method"


def _given(section: Section, prefix: str = "") -> list[str]:
    """Dotted names of the settings that were given, and are not the default."""
    found: list[str] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name not in section.model_fields_set:
            continue
        if isinstance(value, Section):
            found += _given(value, f"{prefix}{name}.")
        elif value != field.default:
            found.append(prefix + name)
    return found


def override(data: dict[str, Any], text: str) -> None:
    """Apply one ``key=value`` to plain data, in place.

    Raises
    ------
    ConfigError
        If the text is no such thing, or there is no place for the value.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {shown(text)}: write key=value, such as umap.n_components=10")
    try:
        parsed = parse(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {shown(text)}: the value is not valid YAML; quote it") from error
    assign(data, key.strip(), parsed)


def assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Put a value where a dotted key such as ``umap.n_neighbors`` or ``prompts.0.limit`` says, in place.

    Parameters
    ----------
    data : dict
        Plain data of a configuration.
    key : str
    value : object
        Plain data.

    Raises
    ------
    ConfigError
        If there is no place for it.
    """
    *parents, last = key.split(".")
    if parents[:1] == ["prompts"] or key == "sae.hook_name":  # these change a part of the demo's
        data.setdefault(parents[0], Config().resolved()[parents[0]])
    place: Any = data
    for name in parents:
        if _is_place(name, place):
            place = place[int(name)]
        elif isinstance(place, dict):
            place = place.setdefault(name, {})
        else:
            raise ConfigError(f"{_key(key)}: there is no {shown(name)} to set a value in")
    if _is_place(last, place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"{_key(key)}: there is no section to set {shown(last)} in")


def _is_place(name: str, parts: Any) -> bool:
    """Whether it is a number of a part of a list, in ASCII: ``"²".isdigit()`` too, and int() takes 4,300 digits."""
    number = name.isascii() and name.isdigit() and len(name) < 10
    return isinstance(parts, list) and number and int(name) < len(parts)


# What PyYAML raises of values that look like a date, a number or a tagged one, and are none: 2024-99-99, 0x_, !!bool x
BAD_VALUES = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


class _Loader(yaml.SafeLoader):
    """YAML as people mean it here: ``null:`` is the name of a setting, and a key that is there twice is a mistake."""

    most = MOST  # values
    values = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read a value, or refuse it where there are too many, or they are nested too deeply, before all are read."""
        self.values += 1
        self.depth += 1
        if self.values > self.most:
            raise yaml.YAMLError(f"it has more than {self.most:,} values; a configuration has {self.most:,} at most")
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested too deeply: {DEEPEST} levels at most")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value, or say where it stands."""
        try:
            return super().construct_object(node, deep)
        except BAD_VALUES as error:
            kind = str(node.tag).rpartition(":")[2]
            said = f"{shown(node.value)} is no {kind} ({error}); write it in quotes if it is text"
            raise yaml.constructor.ConstructorError(None, None, said, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping with ``null`` as a name, and no key twice."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        found = super().construct_mapping(node, deep)
        return {"null" if key is None else key: value for key, value in found.items()}


def parse(text: str, room: int = 1) -> Any:
    """Read YAML; raises yaml.YAMLError, also for a key that is there twice and for what is no configuration by size.

    Aliases stand for whole copies of what they name: a few lines can make billions of values, which are counted first.

    Parameters
    ----------
    text : str
    room : int
        How many times as much as what people write it may be: with every default written out it is more.
    """
    if len(text) > LARGEST * room:
        raise yaml.YAMLError(f"it has {len(text):,} characters; a configuration has {LARGEST * room:,} at most")
    loader = _Loader(text)  # which looks for characters that YAML does not have
    loader.most = MOST * room
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (size := _size(node, {}, loader.most)) > loader.most:
            raise yaml.YAMLError(
                f"it has {size:,} values, aliases written out; a configuration has {loader.most:,} at most"
            )
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except BAD_VALUES as error:
        raise yaml.YAMLError(f"a value in it is not what its tag says: {error}") from error
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int], most: int) -> int:
    """Count the values under a node, with every alias written out; a node that holds itself has no end."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = most + 1  # while it is being counted
    parts = node.value if isinstance(node, yaml.CollectionNode) else ()
    flat = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
    known[id(node)] = 1 + sum(_size(part, known, most) for part in flat)
    return known[id(node)]


def keys() -> list[str]:
    """Return the dotted names of all settings."""
    return _all_keys(Config)


def nearest(key: str, known: Iterable[str]) -> str | None:
    """Return the known key that is most like another, or has the same last part; None where none is."""
    options = list(known)
    close = difflib.get_close_matches(key, options, n=1)
    last = [option for option in options if option.split(".")[-1] == key.split(".")[-1]]
    return close[0] if close else (last[0] if last else None)


def _explain(problem: dict[str, Any]) -> str:
    """One pydantic problem as one clause: key, value, and what to write instead."""
    location = [_key(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        likely = [path for path in _all_keys(Config) if path.split(".")[-1] == location[-1]]
        likely = likely or [".".join([*location[:-1], name]) for name in near]
        hint = f"did you mean {' or '.join(likely)}?" if likely else f"known: {', '.join(known)}"
        if location in (["questions"], ["vary"], ["base"]):
            hint = "of a sweep: gpuclust sweep FILE"
        return f"unknown key {key} ({hint})"
    message = str(problem["msg"]).removeprefix("Value error, ")
    value = problem.get("input")
    if problem["type"] in ("model_type", "tuple_type"):
        shape = "a list of sources" if problem["type"] == "tuple_type" else "settings with their values"
        return f"{key} is {shown(value)}: {shape} is expected; leave it out for the defaults"
    if problem["type"] == "value_error" or isinstance(value, dict | list):
        return f"{key}: {message}" if key else message
    return f"{key} is {shown(value)}: {message}"


def _key(part: object) -> str:
    """A part of a dotted name as it is, unless it is not text or no name by its length."""
    return part if isinstance(part, str) and part.isprintable() and len(part) < 80 else shown(part)


def _known_keys(location: list[str]) -> list[str]:
    section: Any = Config
    for name in location:
        if name.isdigit():
            continue
        section = PromptSource if name == "prompts" else section.model_fields[name].annotation
    return list(section.model_fields)


def _all_keys(section: Any, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            keys += _all_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys
