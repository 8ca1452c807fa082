"""Does another SAE find a run's clusters? Two passes over the prompts that both runs have."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.compute import controls, evidence, replication, topk
from gpuclust.errors import MemoryBudgetError, ModelError, StoreError
from gpuclust.extraction import directions
from gpuclust.formatting import gigabytes
from gpuclust.hardware import budget
from gpuclust.results import comparison, replicated
from gpuclust.results.run import Run
from gpuclust.storage import store
from gpuclust.tables import decoder, feature_table
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

FEWEST = 100  # prompts that both runs have
CELLS = 1 << 24  # of a block
APART = 4  # times as many prompts as are used may be read for them; of more, each is read by itself
TOP, TOP_SHARE = 100, 20  # a cluster's strongest prompts: at most TOP, and one of TOP_SHARE


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two runs: its kept features, each once, and its sets of them, (set, feature); controls follow."""

    run: Run
    features: Array
    scale: Array
    sets: Array
    label: Array
    prompts: Array
    kept_share: Any = None

    @property
    def n(self) -> int:
        """Clusters."""
        return int(self.label.max(initial=schema.NOISE)) + 1


def replicate(run: Run, other: Run, draws: int) -> tuple[dict[str, Array], dict[str, Any]]:
    """Match a run's clusters with those of a run of another SAE over the same prompts.

    Parameters
    ----------
    run, other : Run
        Whose features are clustered. Prompts are matched by their texts and tokens, whatever their order.
    draws : int
        Controls of each cluster, of either kind; at least `replication.DRAWS` are drawn.

    Returns
    -------
    dict of str to array, (cluster,)
        Columns ``replicate…`` of ``schema.VALIDATION_COLUMNS``, and ``replicated``.
    dict
        Facts: ``other``; ``prompts`` in common, and ``prompts_of`` either; ``clusters_other``; ``top_prompts``;
        ``no_angles``, why there are none; ``shares`` of the words; ``random``, share of control clusterings' clusters
        that would be called replicated, by the random sets of this run alone; ``draws``.

    Raises
    ------
    StoreError
        If the runs are of one SAE, have too few prompts in common, other tokenizers or no texts, or the other has no
        clusters.
    MemoryBudgetError
        If sums over pairs of clusters do not fit.

    Notes
    -----
    Memory: 16 bytes for each set and pair of clusters, and a block of prompts of either run.
    """
    if comparison.of_one_sae(run, other):
        raise StoreError(
            f"{run.path} and {other.path} are of one SAE, so that the second tells nothing of another: give a run of "
            "another SAE over the same prompts (for settings, gpuclust compare)"
        )
    draws = max(draws, replication.DRAWS)
    places = shared(run, other)
    sides = [_side(one, place, draws) for one, place in zip((run, other), places, strict=True)]
    _refuse(run, sides)
    state = replication.nothing(1 + draws, sides[0].n, sides[1].n)
    for _, length, (mine, theirs) in _blocks(sides):
        state = replication.merge([state, replication.chunk(mine, theirs, length)])
    top = max(1, min(TOP, len(places[0]) // TOP_SHARE))
    slopes = [replication.slopes(state, name) for name in ("own", "other")]
    strongest = [np.full(((1 + draws) * side.n, top), topk.NOTHING) for side in sides]
    for number, length, scores in _blocks(sides):
        for at, (score, slope) in enumerate(zip(scores, slopes, strict=True)):
            more = replication.strongest(score, slope, length, number, top)
            strongest[at] = topk.smallest(np.concatenate([strongest[at], more], axis=1), top)
    prompts = [keys.reshape(1 + draws, side.n, top) for keys, side in zip(strongest, sides, strict=True)]
    directions, why = _directions(run, other)
    if why:
        log.warning("validate: replication without angles: %s", why)
    bases = [_bases(side, rows) for side, rows in zip(sides, directions, strict=True)] if directions else None
    columns, random = _table(sides, replication.correlations(state), prompts, bases)
    told = pd.Series(columns["replicated"]).value_counts()
    return columns, {
        "other": str(other.path),
        "prompts": len(places[0]),
        "prompts_of": [len(run.prompts), len(other.prompts)],
        "clusters_other": sides[1].n,
        "top_prompts": top,
        "no_angles": why or None,
        "shares": {word: float(told.get(word, 0) / max(told.sum(), 1)) for word in replication.WORDS},
        "random": random,
        "draws": draws,
    }


def shared(run: Run, other: Run) -> tuple[Array, Array]:
    """Return the numbers of the prompts that both runs have, in either: texts are equal, and so are the tokens read.

    Where one of the runs does not know its tokens, as imported ones may, texts and lengths decide.

    Returns
    -------
    array, (prompt,), int64; twice
        Ascending in the first run.

    Raises
    ------
    StoreError
        If a run has no texts, most texts in common have other tokens, or fewer than FEWEST prompts are in common.
    """
    for one in (run, other):
        if not (one.prompts["text"].str.len() > 0).any():
            raise StoreError(
                f"{one.path} has no texts of its prompts, so which it has in common with another run is not known: "
                "import the activations with --prompts"
            )
    names = [name for name in ("prompt", "text", "n_tokens", "tokens") if name in run.prompts and name in other.prompts]
    a, b = (one.prompts.loc[one.prompts["text"].str.len() > 0, names] for one in (run, other))
    both = a.drop_duplicates("text").merge(b.drop_duplicates("text"), on="text", suffixes=("", "_other"))
    if "tokens" in names:
        pairs = list(zip(both["tokens"], both["tokens_other"], strict=True))
        same = np.array([np.array_equal(x, y) for x, y in pairs], bool)
        cut = np.array([np.array_equal(x[: len(y)], y[: len(x)]) for x, y in pairs], bool)  # at another length
        if len(both) and cut.mean() < 0.5:
            raise StoreError(
                f"{run.path} and {other.path} have {len(both):,} texts in common, but read them as other tokens: their "
                f"models ({_model(run)} and {_model(other)}) have other tokenizers. Give runs of one tokenizer"
            )
    else:
        x, y = both["n_tokens"].to_numpy(), both["n_tokens_other"].to_numpy()
        same = (x == y) | (x < 0) | (y < 0)
    found = both[same].sort_values("prompt")
    if len(found) < FEWEST:
        also = f"; {int((~same).sum()):,} more texts are in both, cut at other lengths (max_tokens)" * (not same.all())
        raise StoreError(
            f"{run.path} ({len(run.prompts):,} prompts) and {other.path} ({len(other.prompts):,}) have {len(found):,} "
            f"in common{also}; replication needs {FEWEST}. Give runs over the same prompts"
        )
    return found["prompt"].to_numpy(np.int64), found["prompt_other"].to_numpy(np.int64)


def _side(run: Run, place: Array, draws: int) -> Side:
    if "label" not in run.features:
        raise StoreError(f"{run.path} has no labels in {schema.FEATURES}; finish the run first")
    table = run.features[feature_table.is_point(run.features)]
    label = table["label"].to_numpy(np.int64)
    if label.max(initial=schema.NOISE) < 0:
        raise StoreError(f"{run.path} has no clusters: there is nothing to match")
    exchanged = controls.exchanged(label, table["n_active"].to_numpy(), draws, run.config.seed)
    std = table["std"].to_numpy()
    scale = np.divide(1, std, out=np.zeros(len(std)), where=std > 0).astype(np.float32)
    sets = np.concatenate([label[None], label[exchanged]])
    return Side(run, table["feature"].to_numpy(), scale, sets, label, place, controls.kept_share(label, exchanged))


def _refuse(run: Run, sides: Sequence[Side]) -> None:
    """Refuse what does not fit the memory, before anything is read."""
    pairs = 2 * 8 * 2 * len(sides[0].sets) * sides[0].n * sides[1].n  # a state, and that of a block
    needed, allowed = budget.PROCESS + pairs + 16 * CELLS, budget.budget(run.config)
    if needed > allowed:
        raise MemoryBudgetError(
            f"replication of {sides[0].n:,} clusters among {sides[1].n:,} needs {gigabytes(needed)}, but "
            f"{gigabytes(allowed)} may be used. Give fewer --draws, or raise device.memory of the run"
        )


def _blocks(sides: Sequence[Side]) -> Iterator[tuple[Array, Array, list[Array]]]:
    """Yield number among the shared ones, length, and scores of both runs, for the prompts of a block."""
    width = sum(len(side.run.features) + side.sets.shape[0] * side.n for side in sides)
    step = max(1, CELLS // width)
    n_tokens = sides[0].run.prompts["n_tokens"].to_numpy()
    for start in range(0, len(sides[0].prompts), step):
        own = slice(start, start + step)
        number = np.arange(start, min(start + step, len(sides[0].prompts)))
        yield number, n_tokens[sides[0].prompts[own]], [_scores(side, side.prompts[own]) for side in sides]


def _scores(side: Side, prompts: Array) -> Array:
    """Scores of a run's sets on prompts, (set, prompt, cluster), float32: sums over features, of one size in a set."""
    from scipy.sparse import csr_array

    from gpuclust.compute import prediction

    values = np.abs(_rows(side.run.path / schema.ACTIVATIONS, prompts)[:, side.features].astype(np.float32))
    values[values <= side.run.config.extract.activation_threshold] = 0
    return prediction.scores(csr_array(values * side.scale), side.sets)


def _rows(path: Path, prompts: Array) -> Array:
    """Activations of prompts in any order, (prompt, feature)."""
    first, stop = int(prompts.min()), int(prompts.max()) + 1
    if stop - first <= APART * len(prompts):
        ((_, block),) = store.read_rows(path, stop - first, first, stop)
        found: Array = block[prompts - first]
        return found
    log.info("%s: its prompts are in another order, or few of them are shared: each is read by itself", path)
    order = np.argsort(prompts)
    parts = [block for at in prompts[order] for _, block in store.read_rows(path, 1, int(at), int(at) + 1)]
    apart: Array = np.concatenate(parts)[np.argsort(order)]
    return apart


def _model(run: Run) -> str:
    return str(run.attributes.get("model", run.config.model.name))


def _directions(run: Run, other: Run) -> tuple[list[Array], str]:
    """Unit decoder rows of both runs' kept features, or none and why: there is no common space, or no decoder."""
    rows, spaces = [], []
    for one in (run, other):
        if store.imported(one.path / schema.ACTIVATIONS):
            return [], f"the activations of {one.path} were imported, there is no SAE"
        try:
            weights, hook = directions.load_decoder(one.config.sae)
        except ModelError as error:
            return [], f"the decoder of {one.path} cannot be had: {error}"
        if len(weights) != len(one.features):
            return [], f"the SAE of {one.path} has {len(weights)} features now, and had {len(one.features)}"
        rows.append(decoder.unit_rows(weights))
        model = one.config.model
        spaces.append((model.name, model.revision, model.processed, hook, weights.shape[1]))
    if spaces[0] != spaces[1]:
        told = [f"{hook} of {name}, {width} values" for name, _, _, hook, width in spaces]
        return [], f"the decoders do not write to one space: {told[0]}, and {told[1]}"
    return rows, ""


def _bases(side: Side, rows: Array) -> list[list[Array]]:
    """A basis of every cluster of every set."""
    own = rows[side.features]
    return [[replication.subspace(own[one == c]) for c in range(side.n)] for one in side.sets]


def _table(
    sides: Sequence[Side], r: tuple[Array, Array], prompts: Sequence[Array], bases: Any
) -> tuple[dict[str, Array], float | None]:
    """Columns, and the share of controls that would be called replicated."""
    n, draws = sides[0].n, len(sides[0].sets) - 1
    clusters, drawn = np.arange(n), range(1, draws + 1)
    matches = [table.argmax(axis=1) for table in r[0]]  # of the clusters, then of random sets of this run
    there = [r[1][at].argmax(axis=1) for at in drawn]  # of the clusters, among random sets of the other
    match = matches[0]

    def listed(own: int, other: int, matched: Array) -> list[float]:
        return [replication.jaccard(prompts[0][own, c], prompts[1][other, m]) for c, m in enumerate(matched)]

    def near(own: int, other: int) -> list[float]:
        """Overlap of every cluster's directions with its match's, with the sets in their place."""
        if bases is None:
            return [np.nan] * n
        return [replication.overlap(bases[0][own][c], bases[1][other][m]) for c, m in enumerate(match)]

    best = np.stack([table[clusters, matched] for table, matched in zip(r[0], matches, strict=True)])
    best_there = np.stack([r[1][at][clusters, there[at - 1]] for at in drawn])
    angles = np.array(near(0, 0))
    angle_kinds = [np.array([near(at, 0) for at in drawn]), np.array([near(0, at) for at in drawn])]
    prompt_kinds = [[listed(at, 0, matches[at]) for at in drawn], [listed(0, at, there[at - 1]) for at in drawn]]
    without = (sides[0].kept_share > controls.OWN) | (best[0] <= -1)

    def sure(at: int, kinds: Sequence[Array]) -> tuple[Array, Array, Array]:
        p = replication.above(_z(best[at]), [_z(kind) for kind in kinds])
        p[without] = np.nan
        return p, evidence.discoveries(p), r[0][at].argmax(axis=0)[matches[at]] == clusters

    p, q, mutual = sure(0, [best[1:], best_there])
    angles_p = replication.above(angles, angle_kinds)
    angles_p[without] = np.nan
    angles_q = evidence.discoveries(angles_p)
    named: list[Any] = []
    for at in drawn:  # every control clustering in the clusters' place, by what it has: the others, and no angles
        _, own_q, own_mutual = sure(at, [np.delete(best, [0, at], axis=0)])
        named += replication.words(best[at], own_q, own_mutual, None).tolist()
    said = [word == replication.REPLICATED for word in named if word is not None]

    def larger(kinds: Sequence[Any]) -> Array:
        found: Array = np.max([np.mean(kind, axis=0) for kind in kinds], axis=0)
        return found

    return {
        "replicate_cluster": match, "replicate_mutual": mutual.astype(float),
        "replicate_r": best[0], "replicate_r_random": larger([best[1:], best_there]),
        "replicate_angles": angles, "replicate_angles_random": larger(angle_kinds),
        "replicate_prompts": np.array(listed(0, 0, match)), "replicate_prompts_random": larger(prompt_kinds),
        "replicate_p": p, "replicate_q": q, "replicate_angles_q": angles_q,
        "replicated": replication.words(best[0], q, mutual, None if bases is None else angles_q),
    }, float(np.mean(said)) if said else None  # fmt: skip


def _z(r: Array) -> Array:
    """Fisher's arctanh, of which differences have about one spread whatever the correlation."""
    found: Array = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return found


def compare(paths: Sequence[Path], draws: int) -> tuple[pd.DataFrame, list[str]]:
    """Look for the clusters of the first run among those of each other one, of other SAEs.

    Parameters
    ----------
    paths : sequence of Path
        Folders of at least two runs.
    draws : int
        As of `replicate`.

    Returns
    -------
    DataFrame
        ``run_a``, ``run_b`` and `replicated.COLUMNS`, a row a cluster of the first run for each other one.
    list of str
        What there is to say of each pair.

    Raises
    ------
    StoreError, MemoryBudgetError
        As `replicate`.
    """
    first, *others = map(Run, paths)
    tables, told = [], []
    for other in others:
        try:
            columns, facts = replicate(first, other, draws)
        except StoreError as error:
            raise StoreError(f"{comparison.different(first, other)}; and over prompts: {error}") from error
        n = len(columns["replicated"])
        label = first.features.loc[feature_table.is_point(first.features), "label"].to_numpy(np.int64)
        found = pd.DataFrame(
            {"run_a": str(first.path), "run_b": str(other.path), "cluster": np.arange(n),
             "size": np.bincount(label[label >= 0]), **columns}
        )  # fmt: skip
        tables.append(found.astype({"replicate_mutual": bool}))
        told += replicated.lines(found, facts)
    return pd.concat(tables, ignore_index=True), told
