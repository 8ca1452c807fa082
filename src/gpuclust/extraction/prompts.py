"""Prompts from hub datasets and local files: cleaned, ordered by seed, tokenised, and fixed once as a table."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.config import DEMO, Config, PromptSource
from gpuclust.errors import ModelError, PromptsError
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")
SINGLE = 3  # lines of a paragraph that nobody doubts
STREAM_FACTOR = 4  # rows with text read from a streamed dataset, as a multiple of n_prompts


def build(config: Config, tokenizer: Any) -> tuple[pd.DataFrame, list[str]]:
    """Read all sources and fix the list of prompts.

    Blank rows and (with ``deduplicate``) exact duplicates are dropped, the rest is put in an order that depends on
    ``seed`` alone, texts under ``min_tokens`` are dropped, longer ones are read up to ``max_tokens``, and the first
    ``n_prompts`` are used.

    Parameters
    ----------
    config : Config
    tokenizer : Hugging Face tokenizer
        Lengths are its tokens, special tokens not counted.

    Returns
    -------
    DataFrame
        Columns of ``schema.PROMPT_COLUMNS``.
    list of str
        Warnings worth showing.

    Raises
    ------
    PromptsError
        If a source cannot be read, or nothing is left.
    """
    texts: list[str] = []
    sources: list[str] = []
    blank = 0
    warnings: list[str] = []
    for source in config.prompts:
        before, seen, absent = len(texts), 0, 0
        for text, label in read(source, config.n_prompts):
            seen += 1
            if text is None:
                absent += 1
                continue
            if not text.strip():
                blank += 1
                continue
            texts.append(text)
            sources.append(label)
        if len(texts) == before:
            raise PromptsError(
                f"{source.path or source.dataset} holds no text: 0 rows with text in column {source.column!r}. "
                "Check the file, the column and the split"
            )
        if absent:
            name = source.path or source.dataset
            warnings.append(f"{absent} of {seen} rows of {name} have no {source.column!r}; they are left out")
            log.warning(warnings[-1])
    n_read = len(texts)
    keep = list(dict.fromkeys(texts)) if config.deduplicate else texts
    if config.deduplicate:
        label_of = dict(zip(reversed(texts), reversed(sources), strict=True))
        sources = [label_of[text] for text in keep]
    order = np.random.default_rng(config.seed).permutation(len(keep))
    rows: list[tuple[str, int, str, Array]] = []
    short = cut = looked_at = 0
    for start in range(0, len(order), 1000):
        batch = [int(i) for i in order[start : start + 1000]]
        encoded = tokenizer([keep[i] for i in batch], add_special_tokens=False, verbose=False)["input_ids"]
        for i, ids in zip(batch, encoded, strict=True):
            if len(rows) == config.n_prompts:
                break
            looked_at += 1
            if len(ids) < config.min_tokens:
                short += 1
                continue
            cut += len(ids) > config.max_tokens
            tokens = np.asarray(ids[: config.max_tokens], dtype=np.int32)
            rows.append((keep[i], len(tokens), sources[i], tokens))
        if len(rows) == config.n_prompts:
            break
    log.info(
        "prompts: %d rows with text, %d blank dropped, %d exact duplicates dropped; of the first %d in order, "
        "%d under %d tokens dropped, %d read up to %d tokens only; %d prompts",
        n_read, blank, n_read - len(keep), looked_at, short, config.min_tokens, cut, config.max_tokens, len(rows),
    )  # fmt: skip
    if not rows:
        raise PromptsError(
            f"no prompts are left: of {n_read} rows with text ({blank} blank), {n_read - len(keep)} were duplicates "
            f"and {short} had fewer than min_tokens={config.min_tokens} tokens. Lower min_tokens or give more text"
        )
    if len(rows) < config.n_prompts:
        streamed = any(s.dataset is not None and s.streaming and s.limit is None for s in config.prompts)
        more = f"; of streamed datasets only the first {STREAM_FACTOR} x n_prompts rows with text were read: set limit"
        warnings.append(
            f"n_prompts is {config.n_prompts}, but the data has {len(rows)} usable prompts; all of them are used"
            + (more if streamed else "")
        )
        log.warning(warnings[-1])
    texts_list, n_tokens, source_names, tokens_list = zip(*rows, strict=True)
    table = pd.DataFrame(
        {
            "prompt": np.arange(len(rows), dtype=np.int64),
            "text": texts_list,
            "n_tokens": np.asarray(n_tokens, dtype=np.int64),
            "source": source_names,
            "tokens": list(tokens_list),
        }
    )
    return table, warnings


def refuse_unknown_ids(table: pd.DataFrame, n_ids: int, tokenizer: Any, model: str) -> None:
    """Refuse tokens that the model has no embedding for: a tokenizer of another model, or one that was added to.

    Parameters
    ----------
    table : DataFrame
        With ``tokens``.
    n_ids : int
        Rows of the model's token embedding.
    tokenizer : Hugging Face tokenizer
    model : str
        What the message calls the model.

    Raises
    ------
    ModelError
    """
    for number, tokens in enumerate(table["tokens"]):
        unknown = np.asarray(tokens)[np.asarray(tokens) >= n_ids]
        if len(unknown):
            token = tokenizer.convert_ids_to_tokens(int(unknown[0]))
            raise ModelError(
                f"the tokenizer of {model} gives prompt {number} the token {token!r} with the id {unknown[0]}, but the "
                f"model's embedding has {n_ids} rows: they do not belong together. Give a model.name whose tokenizer "
                "and weights do, or enlarge the embedding (transformers' resize_token_embeddings) and train it"
            )


def digest(table: pd.DataFrame) -> str:
    """Return a SHA-256 of texts, sources and tokens, in order."""
    hasher = hashlib.sha256()
    for text, source, tokens in zip(table["text"], table["source"], table["tokens"], strict=True):
        for part in (text.encode(), source.encode(), np.asarray(tokens, dtype=np.int32).tobytes()):
            hasher.update(len(part).to_bytes(8, "little"))
            hasher.update(part)
    return hasher.hexdigest()


def check(sources: Iterable[PromptSource]) -> None:
    """Look at local files before anything large is loaded: that they are there, are no other type, and have the column.

    Raises
    ------
    PromptsError
        If not.
    """
    for source in sources:
        if source.path is None or source.path == "demo":
            continue
        path = Path(source.path)
        suffix = _suffix(path)
        if path.stat().st_size == 0:
            raise PromptsError(f"{path} is empty")
        if suffix == ".jsonl" and (row := next(_read_jsonl(path), None)) is not None:
            _check_columns(list(row), source, str(path))
        elif suffix == ".csv":
            _check_columns(list(next(_read_csv(path, source))), source, str(path))
        elif suffix == ".parquet":
            _check_columns(list(_parquet(path, head=True).columns), source, str(path))


def read(source: PromptSource, n_prompts: int) -> Iterator[tuple[str | None, str]]:
    """Yield (text, source label) of one source, at most ``source.limit`` rows; a text of None where it has none.

    Raises
    ------
    PromptsError
        If the file, dataset or column does not exist, or a row holds something else than text.
    """
    if source.path is not None:
        path = DEMO / "prompts.jsonl" if source.path == "demo" else Path(source.path)
        rows = _read_file(path, source)
        label = source.label or path.stem
    else:
        rows = _read_hub(source, n_prompts)
        label = source.label or str(source.dataset)
    where = source.path or f"dataset {source.dataset}"
    for number, row in enumerate(islice(rows, source.limit), 1):
        named = None if source.source_column is None else row.get(source.source_column)
        text = storable(row[source.column], f"{where}, row {number}, {source.column}") if source.column in row else None
        yield text, label if _missing(named) else str(named)


def storable(value: Any, where: str) -> str:
    """Return a row's value as text that can be stored; nothing for a missing one.

    Raises
    ------
    PromptsError
        If it is a list or the like, bytes that are no UTF-8, or holds half of a surrogate pair.
    """
    if isinstance(value, dict | list | tuple | set | np.ndarray):
        raise PromptsError(f"{where} is a {type(value).__name__}, not text: write each prompt out as one text")
    if isinstance(value, bytes):
        return _decoded(value, where)
    text = "" if _missing(value) else str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptsError(
            f"{where} has half of a surrogate pair at character {error.start}, which is no text in Unicode: clean it, "
            'such as with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
        ) from error
    return text


def _missing(value: Any) -> bool:
    """None, or the NaN that pandas puts in its place."""
    return value is None or value != value


def _read_file(path: Path, source: PromptSource) -> Iterator[dict[str, Any]]:
    suffix = _suffix(path)
    if suffix == ".txt":
        text = _decoded(path.read_bytes(), path)
        paragraphs = re.split(r"\n\s*\n", text)
        if len(paragraphs) == 1 and len(text.split("\n")) > SINGLE:
            log.warning("%s has %d lines and no blank line: it is one prompt", path, len(text.split("\n")))
        return iter({source.column: " ".join(paragraph.split())} for paragraph in paragraphs)
    if suffix == ".jsonl":
        return _checked(_read_jsonl(path), source, str(path))
    if suffix == ".csv":
        return islice(_checked(_read_csv(path, source), source, str(path)), 1, None)
    table = _parquet(path)
    _check_columns(list(table.columns), source, str(path))
    names = [source.column, *([source.source_column] if source.source_column else [])]
    return (dict(zip(names, values, strict=True)) for values in table[names].itertuples(index=False, name=None))


def _suffix(path: Path) -> str:
    """The kind of a file that is there and can be read."""
    if not path.is_file():
        raise PromptsError(f"there is no prompt file {path}; give the path of a {', '.join(SUFFIXES)} file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise PromptsError(f"{path}: files of type {suffix or '(none)'} are not read; use one of {', '.join(SUFFIXES)}")
    return suffix


def _read_csv(path: Path, source: PromptSource) -> Iterator[dict[str, Any]]:
    """Yield the header's names without values, then the rows: every character as it is, nothing guessed."""
    csv.field_size_limit(2**31 - 1)  # a prompt may be longer than the module's 131,072
    rows = csv.reader(io.StringIO(_decoded(path.read_bytes(), path), newline=""), strict=True)
    names: list[str] = []
    try:
        for row in rows:
            if not row:
                continue  # a blank line
            if not names:
                names = row
                for name in (source.column, source.source_column):
                    if name is not None and names.count(name) > 1:
                        raise PromptsError(f"{path} has {names.count(name)} columns {name!r}; rename all but one")
                yield dict.fromkeys(names)
            elif len(row) > len(names):
                raise PromptsError(
                    f"{path}, line {rows.line_num} has {len(row)} fields, more fields than its header names "
                    f"({len(names)}): put texts that hold commas in double quotes, and take away commas at the end of "
                    "lines"
                )
            else:
                yield dict(zip(names, row, strict=False))
    except csv.Error as error:
        raise PromptsError(f"{path}, line {rows.line_num} is no valid CSV: {error}") from error
    if not names:
        raise PromptsError(f"{path} is empty")


def _parquet(path: Path, head: bool = False) -> pd.DataFrame:
    """A Parquet file; with `head`, its columns only."""
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_schema(path).empty_table().to_pandas() if head else pd.read_parquet(path)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise PromptsError(f"{path} is no valid Parquet file: {error}") from error


def _decoded(raw: bytes, where: str | Path) -> str:
    try:
        return raw.decode("utf-8-sig")  # with a byte order mark or without
    except UnicodeDecodeError as error:
        raise PromptsError(f"{where} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            line = _decoded(raw, path)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets without an end
                said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise PromptsError(f"{path}, line {number} is not valid JSON: {said}") from error
            if not isinstance(row, dict):
                raise PromptsError(
                    f"{path}, line {number} is a {type(row).__name__}; one JSON object a line is expected"
                )
            yield row


def _read_hub(source: PromptSource, n_prompts: int) -> Iterator[dict[str, Any]]:
    import datasets

    where = f"dataset {source.dataset}" + (f" ({source.name})" if source.name else "")
    try:
        data = datasets.load_dataset(source.dataset, source.name, split=source.split, streaming=source.streaming)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise PromptsError(
            f"{where}, split {source.split!r} cannot be loaded: {error}. Check its name, configuration and split, or "
            "give a local file with `path`"
        ) from error
    rows = _checked(iter(data), source, where)
    if not source.streaming or source.limit is not None:
        return rows
    wanted = STREAM_FACTOR * n_prompts
    log.info("%s: reading the first %d rows with text (set `limit` for another number)", where, wanted)
    return _first_with_text(rows, source.column, wanted)


def _first_with_text(rows: Iterable[dict[str, Any]], column: str, wanted: int) -> Iterator[dict[str, Any]]:
    for row in rows:
        wanted -= bool(str(row[column] or "").strip())
        yield row
        if wanted == 0:
            return


def _checked(rows: Iterator[dict[str, Any]], source: PromptSource, where: str) -> Iterator[dict[str, Any]]:
    """Check the columns of the first row, then pass all rows on."""
    for index, row in enumerate(rows):
        if index == 0:
            _check_columns(list(row), source, where)
        yield row


def _check_columns(columns: list[str], source: PromptSource, where: str) -> None:
    for key, name in (("column", source.column), ("source_column", source.source_column)):
        if name is not None and name not in columns:
            raise PromptsError(
                f"{where} has no column {name!r}; it has {', '.join(map(str, columns)) or 'none'}. Set prompts.{key} "
                "to one"
            )
