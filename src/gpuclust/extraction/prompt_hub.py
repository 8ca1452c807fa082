"""Rows of hub data sets, and of local folders that are read like them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gpuclust.config_sections import PromptSource
from gpuclust.errors import PromptsError
from gpuclust.extraction import prompt_files
from gpuclust.extraction.texts import storable

READ = prompt_files.SUFFIXES  # of which `prompt_files` can say more than `datasets`


def name(source: PromptSource) -> str:
    """What messages call a dataset."""
    return f"dataset {source.dataset}" + (f" ({source.name})" if source.name else "")


def rows(source: PromptSource) -> Iterator[prompt_files.Place]:
    """Yield (place, row) of a dataset.

    Raises
    ------
    PromptsError
        If it cannot be loaded or read on, or has no such columns.
    """
    return prompt_files.checked(_rows(source), source, name(source))


def _rows(source: PromptSource) -> Iterator[prompt_files.Place]:
    import datasets

    where = f"{name(source)}, split {source.split!r}"
    try:
        data = iter(datasets.load_dataset(source.dataset, source.name, split=source.split, streaming=source.streaming))
    except Exception as error:  # readers of any format raise anything
        raise PromptsError(
            f"{where} cannot be loaded: {_said(error)}. {_fix(source)}Check its name, configuration and split, or "
            "give a local file with `path`"
        ) from error
    number = 0
    while True:
        try:
            row = next(data, None)
        except Exception as error:
            raise PromptsError(
                f"{where} cannot be read after row {number}: {_said(error)}. {_fix(source)}Mend that, take the rows "
                "before it with `limit`, or give its files one by one with `path`"
            ) from error
        if row is None:
            return
        number += 1
        yield f"row {number}", row


def _said(error: BaseException) -> str:
    """What an error and those behind it say, in a line: `datasets` wraps what it meets."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(parts) < 3:
        text = " ".join(str(seen).split()).removesuffix(".")
        text = f"{text[:300]}…" if len(text) > 300 else text or type(seen).__name__
        if not any(text in part for part in parts):
            parts.append(text)
        seen = seen.__cause__ or seen.__context__
    return ": ".join(parts)


def _fix(source: PromptSource) -> str:
    """Of a local folder, the first file that is wrong, with its line."""
    folder = Path(str(source.dataset))
    files: list[Path] = sorted(file for file in folder.rglob("*") if file.suffix in READ) if folder.is_dir() else []
    for file in files[:100]:
        try:
            for place, row in prompt_files.rows(file, source):
                storable(row.get(source.column), f"{file}, {place}, {source.column}")
        except PromptsError as error:
            return f"{error}. "
    return ""
