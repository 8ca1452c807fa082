"""Prompts from hub datasets and local files: cleaned, ordered by seed, tokenised, and fixed once as a table."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.config import Config
from gpuclust.config_sections import DEMO, PromptSource
from gpuclust.errors import ModelError, PromptsError
from gpuclust.extraction import prompt_files, prompt_hub
from gpuclust.extraction.texts import decoded, storable
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

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
        if source.path is not None and source.path != "demo":
            prompt_files.check(Path(source.path), source)


def read(source: PromptSource, n_prompts: int) -> Iterator[tuple[str | None, str]]:
    """Yield (text, source label) of one source, at most ``source.limit`` rows; a text of None where it has none.

    Of a streamed dataset without a limit, only the first rows with text are read: `STREAM_FACTOR` times `n_prompts`.

    Raises
    ------
    PromptsError
        If the file, dataset or column does not exist, or a row holds something else than text.
    """
    if source.path is not None:
        path = DEMO / "prompts.jsonl" if source.path == "demo" else Path(source.path)
        rows, where, label = prompt_files.rows(path, source), str(path), source.label or path.stem
    else:
        rows, where = prompt_hub.rows(source), prompt_hub.name(source)
        label = source.label or str(source.dataset)
    label = storable(label, f"the label of {where}")
    wanted = None
    if source.dataset is not None and source.streaming and source.limit is None:
        wanted = STREAM_FACTOR * n_prompts
        log.info("%s: reading the first %d rows with text (set `limit` for another number)", where, wanted)
    for place, row in islice(rows, source.limit):
        text = _value(row, source.column, f"{where}, {place}") if source.column in row else None
        named = _value(row, source.source_column, f"{where}, {place}") if source.source_column in row else ""
        yield text, named or label
        if wanted is not None and text is not None and text.strip():
            wanted -= 1
            if wanted == 0:
                return


def read_texts(path: Path, column: str = "text") -> list[str]:
    """Read the texts of prompts whose activations are there, one a prompt, in order; nothing for one that is missing.

    Parameters
    ----------
    path : Path
        A .txt file, one text a line, or a .jsonl, .csv or .parquet file.
    column : str
        Of all but .txt.

    Raises
    ------
    PromptsError
        If it cannot be read, has no such column, or a row holds something else than text.
    """
    if prompt_files.suffix_of(path) == ".txt":
        try:
            lines = decoded(path.read_bytes(), path).replace("\r\n", "\n").split("\n")
        except OSError as error:
            raise prompt_files.unreadable(path, error) from error
        return lines if lines[-1] else lines[:-1]
    return [text or "" for text, _ in read(PromptSource(path=str(path), column=column), 0)]


def _value(row: dict[str, Any], column: str | None, where: str) -> str:
    if isinstance(row, prompt_files.Doubled) and column in row.names:
        raise PromptsError(f"{where} has the key {column!r} twice; which one is meant? Take one away")
    return storable(row[str(column)], f"{where}, {column}")
