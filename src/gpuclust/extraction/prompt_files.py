"""Rows of prompt files, each with the place where it stands, for messages."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpuclust.config_sections import PromptSource
from gpuclust.errors import PromptsError
from gpuclust.extraction.texts import decoded
from gpuclust.formatting import shown

log = logging.getLogger("gpuclust")

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")
INSTEAD = {
    ".json": "write one JSON object a line into a .jsonl file",
    ".ndjson": "name it .jsonl",
    ".tsv": "write it with commas into a .csv file",
    ".arrow": "write it with pyarrow.parquet.write_table",
    ".feather": "write it with pandas.read_feather(path).to_parquet",
} | dict.fromkeys((".gz", ".zst", ".bz2", ".xz", ".zip"), "unpack it first")
SINGLE = 3  # lines of a paragraph that nobody doubts
LOOKED = 1000  # rows among which one has to have the column
Place = tuple[str, dict[str, Any]]


class Doubled(dict[str, Any]):
    """A JSON object that has keys twice, which are the `names`."""

    names: tuple[str, ...] = ()


def suffix_of(path: Path) -> str:
    """Return the kind of a file that is there and can be read.

    Raises
    ------
    PromptsError
    """
    try:
        there = path.is_file()
    except OSError as error:  # a folder on the way that may not be looked into
        raise unreadable(path, error) from error
    if not there:
        raise PromptsError(f"there is no prompt file {path.absolute()}; give the path of a {', '.join(SUFFIXES)} file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        more = f": {INSTEAD[suffix]}" if suffix in INSTEAD else ""
        raise PromptsError(
            f"{path}: files of type {suffix or '(none)'} are not read; use one of {', '.join(SUFFIXES)}{more}"
        )
    return suffix


def unreadable(path: Path, error: OSError) -> PromptsError:
    """What the system says no with."""
    return PromptsError(f"cannot read the prompt file {path}: {error.strerror or error}")


def rows(path: Path, source: PromptSource) -> Iterator[Place]:
    """Yield (place, row) of a file; a row lacks what the file has no value for.

    Raises
    ------
    PromptsError
        If the file cannot be read, or has no such columns.
    """
    suffix = suffix_of(path)
    try:
        if suffix == ".txt":
            yield from _paragraphs(path, source.column)
        elif suffix == ".jsonl":
            yield from checked(_json_lines(path), source, str(path))
        elif suffix == ".csv":
            yield from _csv(path, source)
        else:
            yield from _parquet(path, source)
    except OSError as error:
        raise unreadable(path, error) from error


def check(path: Path, source: PromptSource) -> None:
    """Look at a file before anything large is loaded: that it is there, is no other type, and has the columns.

    Raises
    ------
    PromptsError
        If not.
    """
    suffix = suffix_of(path)
    try:
        if path.stat().st_size == 0:
            raise PromptsError(f"{path} is empty")
        if suffix == ".jsonl":
            next(checked(_json_lines(path), source, str(path)), None)
        elif suffix == ".csv":
            next(_csv(path, source), None)
        elif suffix == ".parquet":
            _parquet_columns(path, source)
    except OSError as error:
        raise unreadable(path, error) from error


def checked(rows: Iterator[Place], source: PromptSource, where: str) -> Iterator[Place]:
    """Pass rows on once one of the first has each column that is asked for, or none has.

    Parameters
    ----------
    rows : iterator of (str, dict)
    source : PromptSource
    where : str
        What messages call the file or dataset.

    Raises
    ------
    PromptsError
        If no row has a column.
    """
    waiting: list[Place] = []
    columns: dict[str, None] = {}
    for place, row in rows:
        waiting.append((place, row))
        columns |= dict.fromkeys(row)
        if len(waiting) == LOOKED or not _lacking(columns, source):
            break
    if waiting:
        check_columns(list(columns), source, where)
    yield from waiting
    del waiting
    yield from rows


def check_columns(columns: list[str], source: PromptSource, where: str) -> None:
    """Refuse columns that are not there, or several times.

    Parameters
    ----------
    columns : list of str
    source : PromptSource
    where : str
        What messages call the file or dataset.

    Raises
    ------
    PromptsError
    """
    for key, missing in _lacking(dict.fromkeys(columns), source).items():
        names = [str(column).encode(errors="backslashreplace").decode() for column in columns[:20]]
        more = f" and {len(columns) - 20} more" if len(columns) > 20 else ""
        raise PromptsError(
            f"{where} has no column {missing!r}; it has {', '.join(names) or 'none'}{more}. Set prompts.{key} to one"
        )
    for name in (source.column, source.source_column):
        if name is not None and columns.count(name) > 1:
            raise PromptsError(f"{where} has {columns.count(name)} columns {name!r}; rename all but one")


def _lacking(columns: dict[str, None], source: PromptSource) -> dict[str, str]:
    asked = {"column": source.column, "source_column": source.source_column}
    return {key: name for key, name in asked.items() if name is not None and name not in columns}


def _paragraphs(path: Path, column: str) -> Iterator[Place]:
    text = decoded(path.read_bytes(), path)
    paragraphs = re.split(r"\n\s*\n", text)
    if len(paragraphs) == 1 and len(text.split("\n")) > SINGLE:
        log.warning("%s has %d lines and no blank line: it is one prompt", path, len(text.split("\n")))
    for number, paragraph in enumerate(paragraphs, 1):
        yield f"paragraph {number}", {column: " ".join(paragraph.split())}


def _csv(path: Path, source: PromptSource) -> Iterator[Place]:
    """Every character as it is, nothing guessed."""
    csv.field_size_limit(2**31 - 1)  # a prompt may be longer than the module's 131,072
    raw = _Lines(decoded(path.read_bytes(), path))
    lines = csv.reader(raw, strict=True)
    names: list[str] = []
    number = 0
    try:
        for row in lines:
            raw.row_ends(lines.line_num, path)
            if not row:
                continue  # a blank line
            if not names:
                names = row
                check_columns(names, source, str(path))
                continue
            number += 1
            if len(row) > len(names):
                raise PromptsError(
                    f"{path}, line {lines.line_num} has {len(row)} fields, more fields than its header names "
                    f"({len(names)}): {shown(row)}. Put texts that hold commas in double quotes, and take away commas "
                    "at the end of lines"
                )
            yield f"line {lines.line_num}, row {number}", dict(zip(names, row, strict=False))
    except csv.Error as error:
        raise PromptsError(
            f"{path}, line {lines.line_num} is no valid CSV: {error}. A quoted text ends with a quote before a comma "
            "or the end of the line, and quotes inside it are doubled"
        ) from error
    if not names:
        raise PromptsError(f"{path} is empty")


class _Lines:
    r"""Lines as they are, ended by ``\n``, ``\r\n`` or ``\r``; ``\r\r\n``, Windows's end twice over, is one end."""

    def __init__(self, text: str) -> None:
        self.found = re.finditer(r"[^\r\n]*(?:\r*\n|\r)|[^\r\n]+", text)
        self.line = ""
        self.ends: dict[str, int] = {}  # the last character of a row's last line: the first such line

    def __iter__(self) -> Iterator[str]:
        for match in self.found:
            self.line = match.group()
            yield self.line

    def row_ends(self, number: int, path: Path) -> None:
        """Refuse rows of which some end with a bare carriage return: one within a text would cut it in two."""
        if self.line[-1:] in ("\r", "\n"):
            self.ends.setdefault(self.line[-1], number)
        if len(self.ends) > 1:
            bare, other = self.ends["\r"], self.ends["\n"]
            raise PromptsError(
                f"{path}, line {bare} has a carriage return (\\r) outside of quotes, and line {other} ends with \\n: a "
                "text would be cut in two there. Put texts that hold line breaks in double quotes, or end all lines "
                "alike"
            )


def _json_lines(path: Path) -> Iterator[Place]:
    found = 0
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            where = f"{path}, line {number}"
            line = decoded(raw, where)
            if not line.strip():
                continue
            try:  # numbers stay as they are written, however long
                row = json.loads(line, parse_int=str, parse_float=str, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise PromptsError(
                    f"{where} is not valid JSON: {said}: {shown(line.strip())}. Write one JSON object a line"
                ) from error
            if not isinstance(row, dict):
                raise PromptsError(
                    f"{where} is a {type(row).__name__}; one JSON object a line is expected, such as "
                    f'{{"text": "…"}}, not {shown(line.strip())}'
                )
            found += 1
            yield f"line {number}, row {found}", row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        row = Doubled(row)
        names = [name for name, _ in pairs]
        row.names = tuple(name for name in row if names.count(name) > 1)
    return row


def _parquet_columns(path: Path, source: PromptSource) -> Any:
    """The opened file, whose columns were looked at."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
    except (OSError, ValueError, NotImplementedError, pa.ArrowException) as error:
        raise PromptsError(f"{path} is no valid Parquet file: {_line(error)}") from error
    check_columns(names, source, str(path))
    return file


def _parquet(path: Path, source: PromptSource) -> Iterator[Place]:
    import pyarrow as pa

    names = [source.column, *([source.source_column] if source.source_column else [])]
    number = 0
    with _parquet_columns(path, source) as file:
        batches = file.iter_batches(batch_size=4096, columns=names)
        while True:
            try:
                batch = next(batches, None)
                if batch is None:
                    return
                columns = [_values(batch.column(batch.schema.get_field_index(name))) for name in names]
            except (OSError, ValueError, NotImplementedError, KeyError, OverflowError, pa.ArrowException) as error:
                raise PromptsError(
                    f"{path} is no valid Parquet file: {_line(error)}, in rows {number + 1} and after"
                ) from error
            for values in zip(*columns, strict=True):
                number += 1
                yield f"row {number}", dict(zip(names, values, strict=True))


def _values(column: Any) -> list[Any]:
    """The values of an Arrow array; text that is no UTF-8 as bytes, and dates that Python lacks as text."""
    import pyarrow as pa

    found: list[Any]
    try:
        found = column.to_pylist()
    except UnicodeDecodeError:
        plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        found = plain.cast(pa.large_binary()).to_pylist()
    except (OverflowError, ValueError):
        found = column.cast(pa.large_string()).to_pylist()
        for value in found:
            if str(value).startswith("<value out of range"):
                raise ValueError(f"a date is a {value.strip('<>')}") from None
    return found


def _line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = " ".join(str(error).split())
    return f"{text[:300]}…" if len(text) > 300 else text or type(error).__name__
