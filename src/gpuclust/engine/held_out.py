"""Held-out prediction of a run's clusters: two passes over its rows, each row tested by the other half's clusters."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.compute import prediction, row_words
from gpuclust.compute.halves import half_of
from gpuclust.config import Config
from gpuclust.engine import prompt_rows, token_rows
from gpuclust.errors import MemoryBudgetError
from gpuclust.formatting import gigabytes
from gpuclust.hardware import budget, process
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

CELLS = 1 << 24  # rows times features of a slice
MOST_CELLS, MOST_WORDS = 4e9, 2e10  # rows times features, tokens times features: of more, some prompts are taken
VOCABULARY = 4096
DENSE = 0.02  # share of a block that is not zero: of more, a dense product is faster
TABLE = 1 << 27  # attributes times features, at most
POSITIONS = 16  # places of a row in its prompt: 0, 1 to 2, 3 to 6 …


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows: their half, what fires there (row, feature) in units of its mean where it fires, their attributes."""

    half: Array
    fired: Any
    attributes: Any


@dataclass(frozen=True, eq=False)
class Subject:
    """What is predicted, of which prompts.

    Attributes
    ----------
    out : Path
        Folder of the run.
    config : Config
    plan : budget.Plan
    features : DataFrame
        Of the kept features, each once: ``feature``, ``label``, ``n_active``, ``mean``.
    prompts : DataFrame
        Columns ``tokens``, ``n_tokens``, ``source``.
    halves : array, (2, feature), int
        Clusters of either half of the prompts.
    exchanged : array, (draw, feature), int
        Controls: permutations of the features (`controls.exchanged`).
    """

    out: Path
    config: Config
    plan: budget.Plan
    features: pd.DataFrame
    prompts: pd.DataFrame
    halves: Array
    exchanged: Array


def predict(run: Subject) -> tuple[dict[str, Array], dict[str, Any]]:
    """Measure how well the mates of every feature tell where it fires, among prompts that they were not chosen from.

    Parameters
    ----------
    run : Subject

    Returns
    -------
    dict of str to array, (cluster,), float64
        Columns ``prediction…`` of ``schema.VALIDATION_COLUMNS``.
    dict
        Facts: ``prompts`` that were taken, ``rows``, ``attributes``.

    Raises
    ------
    MemoryBudgetError
        If that does not fit.

    Notes
    -----
    Memory: 2 histograms of 2 KB a feature and clustering, 4 bytes a feature and attribute (at most `TABLE` of them) of
    either half, and 12 bytes a row and feature of a slice (`CELLS`).
    """
    n, draws = len(run.features), len(run.exchanged)
    _refuse(run.config, n, draws)
    taken, n_rows = _taken(run)
    words = row_words.RowWords(
        row_words.vocabulary(_tokens(run), min(VOCABULARY, TABLE // n)),
        (row_words.LENGTHS, row_words.sources(list(run.prompts["source"]))[1], POSITIONS),
    )
    sets = [_with_controls(label, run.exchanged) for label in run.halves]
    together = np.zeros((2, len(words), n), np.float32)
    attribute, active, counted = np.zeros((2, len(words))), np.zeros((2, n)), np.zeros(2, np.int64)
    sample: list[list[Any]] = [[], []]
    every = max(1, n_rows // (2 * prediction.SAMPLE))
    for rows in _rows(run, taken, words):
        for half in (0, 1):
            own = np.flatnonzero(rows.half == half)
            fired, known = rows.fired[own], rows.attributes[own]
            _add(together[half], known, fired)
            attribute[half] += known.sum(axis=0)
            active[half] += np.bincount(fired.indices, minlength=n)
            some = np.flatnonzero((counted[half] + np.arange(len(own))) % every == 0)
            sample[half].append((prediction.scores(fired[some], sets[half]), known[some]))
            counted[half] += len(own)
    told = [
        prediction.mates(own, np.concatenate([scored for scored, _ in some], axis=1))
        for own, some in zip(sets, sample, strict=True)
    ]
    odds = [prediction.log_odds(together[h], attribute[h], active[h], int(counted[h])) for h in (0, 1)]
    edges = [
        prediction.strata(np.concatenate([known @ odds[half] for _, known in sample[1 - half]])) for half in (0, 1)
    ]
    del sample
    tables = [prediction.histograms(1 + draws, n) for _ in (0, 1)]
    for rows in _rows(run, taken, words):
        for half in (0, 1):
            own = np.flatnonzero(rows.half != half)  # rows that its clusters were not chosen from
            said = np.asarray(rows.attributes[own] @ odds[half], np.float32)
            prediction.count(tables[half], rows.fired[own], told[half], said, edges[half], process.cores())
    del together, odds
    label = _with_controls(run.features["label"].to_numpy(np.int64), run.exchanged)
    each = [prediction.measured(table) for table in tables]
    plain, given, alone = (
        prediction.of_clusters(label, [one[name] for one in each]) for name in ("plain", "given", "words")
    )
    columns = {
        "prediction": plain["mean"], "prediction_random": plain["control"], "prediction_words": alone["mean"],
        "prediction_given_words": given["mean"], "prediction_given_words_random": given["control"],
        "prediction_low": given["low"], "prediction_high": given["high"], "prediction_p": given["p"],
    }  # fmt: skip
    return columns, {"prompts": int(taken.sum()), "rows": int(counted.sum()), "attributes": len(words)}


def _with_controls(label: Array, exchanged: Array) -> Array:
    """A clustering and its controls, (set, feature)."""
    return np.concatenate([label[None], label[exchanged]])


def _refuse(config: Config, n: int, draws: int) -> None:
    """Refuse what does not fit the memory, before anything is read."""
    table = prediction.histograms(1, 1).nbytes
    slab = 5 * table * (1 + draws) * min(prediction.SLAB, n)  # in float64, with temporaries
    needed = budget.PROCESS + 2 * table * (1 + draws) * n + 2 * 4 * TABLE + 24 * CELLS + slab
    allowed = budget.budget(config)
    if needed > allowed:
        raise MemoryBudgetError(
            f"prediction with {draws} control clusterings of {n:,} features needs {gigabytes(needed)}, but "
            f"{gigabytes(allowed)} may be used. Give fewer --draws, or raise device.memory of the run"
        )


def _add(into: Array, known: Any, fired: Any) -> None:
    """Add, in place, on how many rows each attribute and each feature are together."""
    fires = (fired > 0).astype(np.float32)
    if fires.nnz > DENSE * fires.shape[0] * fires.shape[1]:
        into += known.T @ fires.toarray()
        return
    both = (known.T @ fires).tocoo()
    into[both.coords] += both.data


def _tokens(run: Subject) -> list[Array]:
    """The ids of every prompt; none where they are not known."""
    if "tokens" not in run.prompts:
        return [np.zeros(0, np.int64)] * len(run.prompts)
    return list(run.prompts["tokens"])


def _taken(run: Subject) -> tuple[Array, int]:
    """Which prompts are taken, (prompt,), bool, and about how many rows they have: all, or pairs drawn by chance."""
    n_tokens, n = run.prompts["n_tokens"].to_numpy(), len(run.features)
    rows = token_rows.rows_of(run.config, run.out)
    n_rows = len(n_tokens) if rows is None else len(token_rows.prompts_of(run.out, rows))
    words = int(np.maximum(n_tokens, 1).sum()) if rows is None or rows.window else 2 * n_rows
    share = min(1.0, MOST_CELLS / max(n_rows * n, 1), MOST_WORDS / max(words * n, 1))
    pairs = -(-len(n_tokens) // 2)
    if share == 1:
        return np.ones(len(n_tokens), bool), n_rows
    random = np.random.default_rng([run.config.seed, 16])
    chosen = np.zeros(pairs, bool)
    chosen[random.permutation(pairs)[: max(1, int(share * pairs))]] = True
    taken = np.repeat(chosen, 2)[: len(n_tokens)]
    log.warning(
        "validate: prediction by %d of %d prompts, %d rows of %d features each", taken.sum(), len(taken), n_rows, n
    )
    return taken, int(n_rows * share)


def _rows(run: Subject, taken: Array, words: row_words.RowWords) -> Iterator[Rows]:
    """Yield the taken rows, a slice at a time."""
    halves = half_of(len(run.prompts), run.config.seed)
    step = max(1, CELLS // len(run.features))
    length, source = (
        row_words.lengths(run.prompts["n_tokens"].to_numpy()),
        row_words.sources(list(run.prompts["source"]))[0],
    )
    n, mean, active = len(run.prompts), run.features["mean"].to_numpy(), run.features["n_active"].to_numpy()
    inverse = (active / np.maximum(mean * n, np.finfo(float).tiny)).astype(np.float32)
    for prompt, fired, tokens, row, position in _read(run):
        begin = np.searchsorted(row, np.arange(len(prompt) + 1))
        for start in range(0, len(prompt), step):
            own = start + np.flatnonzero(taken[prompt[start : start + step]])
            if not len(own):
                continue
            some = np.concatenate([np.arange(begin[r], begin[r + 1]) for r in own])
            local = np.repeat(np.arange(len(own)), begin[own + 1] - begin[own])
            place = np.minimum(np.log2(position[own] + 1).astype(np.int64), POSITIONS - 1)
            categories = (length[prompt[own]], source[prompt[own]], place)
            scaled = fired[own].astype(np.float32)
            scaled.data *= inverse[scaled.indices]
            yield Rows(halves[prompt[own]], scaled, words.of(tokens[some], local, len(own), categories))


def _read(run: Subject) -> Iterator[tuple[Array, Any, Array, Array, Array]]:
    """Yield prompt, what fires (row, feature), tokens and the row of each, and position, for the rows of a block."""
    from scipy.sparse import csr_array

    kept, above = run.features["feature"].to_numpy(), run.config.extract.activation_threshold
    rows = token_rows.rows_of(run.config, run.out)
    if rows is None:
        first, own = 0, _tokens(run)
        for block in prompt_rows.read_blocks(run.out, kept, run.plan):
            values = np.abs(block.astype(np.float32))
            values[values <= above] = 0
            prompt = np.arange(first, first + len(block))
            here = own[first : first + len(block)]
            tokens = np.concatenate([np.zeros(0, np.int64), *here])
            yield prompt, csr_array(values), tokens, np.repeat(np.arange(len(here)), [len(t) for t in here]), 0 * prompt
            first += len(block)
        return
    for where, fired in token_rows.shards(run.out, kept, rows):
        starts = rows.starts(where["prompt"])
        row = np.searchsorted(starts, np.arange(len(where["prompt"])), side="right") - 1
        fired = abs(fired)
        fired.data[fired.data <= above] = 0
        fired.eliminate_zeros()
        yield where["prompt"][starts], fired, where["token"], row, np.maximum(where["position"][starts], 0)
