"""The reference of the docs, made from the code: commands, settings, files and columns, the Python API.

mkdocs calls `on_files` (mkdocs.yml, hooks). Nothing of it is written by hand or committed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import gpuclust
from gpuclust import cli, schema
from gpuclust.config import Config

FILES = {
    schema.CONFIG: "the resolved configuration",
    schema.RECORD: "versions, device, scheduler; per stage the versions that made it, seconds, rows, bytes, projected "
    "and measured memory, warnings; `headline`, what the run is worth",
    schema.ACTIVATIONS: "Zarr v3, `activations(prompt, feature)`, float16 or float32: of a prompt's tokens",
    schema.NEIGHBORS: "Zarr v3, `indices` and `distances`, (feature, k): nearest neighbours of the kept features, in "
    "the SAE's own numbers, the feature itself in column 0; of exact duplicates only the first; of metrics of the "
    "activity also `errors`, the standard errors of the similarities",
    schema.EMBEDDING: "Zarr v3, `embedding(feature, component)`, float32: the UMAP that HDBSCAN clusters",
    schema.CLUSTER_ACTIVATIONS: "Zarr v3, `activation(prompt, cluster)`, float64: mean abs(activation) of the "
    "cluster's features",
    schema.CONDENSED_TREE: "`parent`, `child`, `lambda_val` (1 / distance), `child_size`: of the consensus' average "
    "linkage, or HDBSCAN's own",
    schema.VALIDATION_FACTS: "of `gpuclust validate`: prompts, rows, passes and tests, what was left out and why, and "
    "the keys of the clusters that it is of; both files have their checksums beside them (`.crc`)",
    schema.REPORT: "one file, works offline",
    f"{schema.SHARDS}/": "per shard of the extraction its moments and strongest prompts, and a marker that it is whole",
    "state/": "what one stage hands to the next; the views are the halves and the permuted activations",
}
SWEEP_FILES = {
    schema.SWEEP: "questions, values and the base, as given",
    "sweep.json": "versions, prompts, seconds, and what varied",
    "labels.zarr": "Zarr v3, `labels(setting, seed, feature)`, -1 noise",
    "sweep.html": "the answers with tables and figures, works offline",
    "sweep.md": "the answers and tables as Markdown",
    "extractions/": "activations that the settings share",
    "cache/, trials/": "what a killed sweep goes on with",
}
SWEEP_TABLES: dict[str, Mapping[str, tuple[str, str]]] = {
    "sweep.parquet": schema.SWEEP_COLUMNS,
    "pairs.parquet": schema.PAIR_COLUMNS,
}
TABLES: dict[str, Mapping[str, tuple[str, str]]] = {
    schema.PROMPTS: schema.PROMPT_COLUMNS,
    schema.FEATURES: schema.FEATURE_COLUMNS,
    schema.EXAMPLES: schema.EXAMPLE_COLUMNS,
    schema.EXAMPLE_SPANS: schema.SPAN_COLUMNS,
    schema.CLUSTERS: schema.CLUSTER_COLUMNS,
    schema.QUALITY: schema.QUALITY_COLUMNS,
    schema.CLUSTER_SIMILARITY: schema.SIMILARITY_COLUMNS,
    schema.THEMES: schema.THEME_COLUMNS,
    schema.CONTEXTS: schema.CONTEXT_COLUMNS,
    schema.VALIDATION: schema.VALIDATION_COLUMNS,
}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for name, text in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def pages() -> dict[str, str]:
    """The pages by name."""
    return {"commands": commands(), "configuration": configuration(), "files": files_and_columns(), "python": python()}


def commands() -> str:
    """Usage and help of every command."""
    about = (
        "`gpuclust COMMAND` and `python -m gpuclust.COMMAND` are the same. Exit code 0: done; 2: bad input or "
        "configuration, with one message that names the fix; 1: a failure; 130: interrupted."
    )
    parts = ["# Commands", about]
    for name, (description, arguments, _) in cli.COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"gpuclust {name}")
        arguments(parser)
        parts += [f"## gpuclust {name}", description, table(("argument", "what"), _arguments(parser))]
    return "\n\n".join(parts)


def _arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        shown = " ".join(filter(None, [", ".join(action.option_strings), _metavar(action)]))
        yield f"`{shown}`", action.help or ""


def _metavar(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    return action.metavar if isinstance(action.metavar, str) else action.dest.upper()


def configuration() -> str:
    """Every setting with its type, default and meaning."""
    about = (
        "A YAML file, or `--set section.key=value`. All settings have defaults; without any the demo runs. Unknown "
        "keys are refused with the nearest name. `null` asks for the default that follows from the rest."
    )
    parts = ["# Configuration", about]
    sections, own = [], []
    for name, field in Config.model_fields.items():
        section = field.annotation
        if name == "prompts":
            section = gpuclust.config.PromptSource
        if isinstance(section, type) and issubclass(section, BaseModel):
            sections.append((name, section))
        else:
            own.append(_setting(name, field))
    head = ("setting", "type", "default", "what")
    parts += ["## At the top", table(head, own)]
    for name, section in sections:
        about = " ".join((section.__doc__ or "").split())
        rows = [_setting(key, field) for key, field in section.model_fields.items()]
        parts += [f"## {name}", about + (" A list of such." if name == "prompts" else ""), table(head, rows)]
    return "\n\n".join(parts)


def _setting(name: str, field: Any) -> tuple[str, str, str, str]:
    default = "needed" if field.default is PydanticUndefined else _shown(field.default)
    limits = ", ".join(f"{sign} {value}" for sign, value in _limits(field))
    about = (field.description or "") + (f" ({limits})" if limits else "")
    return f"`{name}`", f"`{_kind(field.annotation)}`", f"`{default}`", about


def _kind(annotation: Any) -> str:
    """A type as a reader of YAML knows it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " | ".join(map(_kind, inner))
    if origin is not None:
        return f"{origin.__name__} of {', '.join(_kind(one) for one in inner if one is not ...)}"
    return "null" if annotation is type(None) else str(annotation.__name__)


def _limits(field: Any) -> Iterator[tuple[str, Any]]:
    for part in field.metadata:
        for key, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if (value := getattr(part, key, None)) is not None:
                yield sign, value


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def files_and_columns() -> str:
    """Every file of a run and a sweep, and every column of its tables."""
    parts = ["# Files and columns", "Entropy and its relatives are in nats, over prompts, of abs(activation)."]
    for title, others, tables in (
        ("A run's folder", FILES, TABLES), ("A sweep's folder", SWEEP_FILES, SWEEP_TABLES),
    ):  # fmt: skip
        rows = {name: about for name, about in others.items()} | {
            name: f"[a table](#{name.replace('.', '')})" for name in tables
        }
        parts += [f"## {title}", table(("file", "what"), [(f"`{name}`", rows[name]) for name in sorted(rows)])]
        for name, columns in tables.items():
            listed = [(f"`{column}`", f"`{dtype}`", about) for column, (dtype, about) in columns.items()]
            parts += [f"### {name}", table(("column", "dtype", "what"), listed)]
    return "\n\n".join(parts)


def python() -> str:
    """The public names, by their docstrings."""
    parts = ["# Python", "Importing gpuclust loads nothing that is slow; names are resolved when used."]
    return "\n\n".join([*parts, *(f"::: gpuclust.{gpuclust._HOMES[name]}.{name}" for name in gpuclust.__all__)])


def table(head: tuple[str, ...], rows: Any) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in lines
    )
