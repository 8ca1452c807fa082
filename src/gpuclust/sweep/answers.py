"""From a sweep's table to answers: per question, which effects are clear, what to set, and what it costs not to.

Sentences are templates with measured numbers; whether something is clear is decided by intervals (see `effects`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.formatting import percent, score, written
from gpuclust.sweep import effects
from gpuclust.sweep.effects import OUTCOME, Effect, Estimate

TITLES = {
    "filters": "How do entropy and activation filters affect the clustering?",
    "prompts": "How do the number and the length of prompts affect it?",
    "umap": "How useful is UMAP, and with which parameters?",
    "hdbscan": "How good is HDBSCAN, and with which parameters?",
    "dataset": "How does the clustering change with the data set?",
    "consensus": "Is a consensus of several clusterings more stable than one?",
}
COMMON = "What do features of a cluster have in common, and does it vary?"
GROUPS = ("source", "length")
METHOD = "cluster.method"
NOISE_GAP = 0.1  # share of features: a gain in agreement with so much more noise needs a caveat
STATISTICS = {"shared_entropy": "entropy", "shared_sparsity": "sparsity", "shared_mean": "mean activation"}


@dataclass(eq=False)
class Part:
    """One thing asked: what was varied, whether the answer is clear, the estimate behind it, and of what.

    `noisier`: the better level leaves much more noise, so its better agreement answers nothing.
    """

    name: str
    clear: bool
    estimate: Estimate
    outcome: str
    noisier: bool = False


@dataclass(eq=False)
class Answer:
    """What a sweep says on one question."""

    name: str
    title: str
    sentences: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    pairs: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Whether all, some or none of the parts are clear."""
        known = [part.clear for part in self.parts]
        if not known:
            return "not answered"
        return "clear" if all(known) else ("partly clear" if any(known) else "not clear")


def answers(table: pd.DataFrame, pairs: pd.DataFrame, record: Mapping[str, Any]) -> list[Answer]:
    """Answer every question of a sweep, and what clusters have in common.

    Parameters
    ----------
    table, pairs : DataFrame
        ``sweep.parquet`` and ``pairs.parquet``.
    record : mapping
        ``sweep.json``.
    """
    good = table[table["error"].isna()]
    found = [_answer(name, grids, good, pairs) for name, grids in record["questions"].items()]
    for answer in found:
        own = table[table["questions"].str.contains(rf"(?:^| ){answer.name}:", regex=True)]
        failed = own[own["error"].notna()].drop_duplicates("setting")
        for error, rows in failed.groupby("error", sort=False):
            answer.notes.append(f"{len(rows)} of {own['setting'].nunique()} settings failed: {error}")
    return [*found, common(good)]


def _answer(name: str, grids: Sequence[Mapping[str, Any]], good: pd.DataFrame, pairs: pd.DataFrame) -> Answer:
    """Answer one question; one that has a section's name is about its fields, and others are only crossed with them."""
    answer = Answer(name, TITLES.get(name, name))
    own = good[good["questions"].str.contains(rf"(?:^| ){name}:", regex=True)]
    candidates = []
    for number, vary in enumerate(grids):
        rows = good[good["questions"].str.split().map(lambda ids, key=f"{name}:{number}": key in ids)]
        fields = [key for key in vary if rows[key].nunique() > 1] if len(rows) else []
        groups = [key for key in fields if key in GROUPS]
        for key in groups:
            _groups(answer, key, rows, pairs[(pairs["question"] == name) & (pairs["grid"] == number)])
        settings = [key for key in fields if key not in GROUPS]
        asked = [key for key in settings if key.startswith(f"{name}.")] or settings
        for key in asked:
            rest = [name for name in fields if name != key]
            if (found := effects.effect(rows, key, others=rest)) is None:
                answer.notes.append(
                    f"{short(key)} is not judged: no two of its values have an outcome with all else equal."
                )
                continue
            answer.effects.append(found)
            if found.left_out:
                answer.notes.append(
                    f"{found.left_out} settings do not count for {short(key)}: they failed or have no clusters, or "
                    "what they would be compared with."
                )
        answer.sentences += _special(asked, rows)
        rest = [name for name in fields if name != METHOD]
        noise = effects.effect(rows, METHOD, "noise", rest) if METHOD in asked else None
        if noise is not None:
            answer.parts.append(Part(METHOD, noise.difference.clear, noise.difference, "share of noise"))
        answer.notes += interaction_notes(rows, settings) + cliff_notes(rows, settings)
        if settings and "n_prompts" not in settings and not groups:
            candidates.append(rows)
    if answer.effects:
        answer.parts += [
            Part(found.field, found.difference.clear and not noisier(found), found.difference, OUTCOME, noisier(found))
            for found in answer.effects
        ]
        answer.sentences.append(effects_sentence(answer.effects))
    if candidates:
        tried = pd.concat(candidates).drop_duplicates(["setting", "seed"])
        answer.sentences.append(recommendation(tried, good[good["setting"] == 0]))
    doubtful = effects.unsteady(own)
    if len(doubtful):
        worst = doubtful.assign(ratio=(doubtful["most"] + 1) / (doubtful["fewest"] + 1)).nlargest(1, "ratio").iloc[0]
        answer.notes.append(
            f"From one seed to another the number of clusters at least doubles in {len(doubtful)} of the settings, at "
            f"worst in setting {worst['setting']:.0f}: {worst['fewest']:.0f} to {worst['most']:.0f}."
        )
    return answer


# ---------------------------------------------------------------- sentences


def short(name: str) -> str:
    """Name a field without its section where that is enough."""
    return name if name == METHOD else name.split(".", 1)[-1]


def effects_sentence(measured: Sequence[Effect]) -> str:
    """Say which fields change the agreement of halves clearly, and which do not."""
    clear = "; ".join(
        f"{effect.field} ({effect.best} rather than {effect.worst}: {effect.difference}{_caveat(effect)})"
        for effect in measured
        if effect.difference.clear
    )
    unclear = "; ".join(
        f"{effect.field} (at most {effect.difference}, {effect.best} against {effect.worst})"
        for effect in measured
        if not effect.difference.clear
    )
    said = "Agreement of the halves (ARI)"
    if not clear:
        return f"{said} does not change clearly with {unclear}."
    return f"{said} changes clearly with {clear}" + (f", not clearly with {unclear}." if unclear else ".")


def noisier(effect: Effect) -> bool:
    """Whether the better level leaves much more noise: two halves easily agree on that."""
    noise = effect.levels.set_index("level")["noise"]
    return bool(noise[effect.best] - noise[effect.worst] > NOISE_GAP)


def _caveat(effect: Effect) -> str:
    if not noisier(effect):
        return ""
    noise = effect.levels.set_index("level")["noise"]
    return f", but with {noise[effect.best]:.0%} noise against {noise[effect.worst]:.0%}, and agreement on noise counts"


def recommendation(rows: pd.DataFrame, default: pd.DataFrame) -> str:
    """Say which setting to prefer, and what the default loses."""
    found = effects.recommend(rows, default)
    if found is None:
        return "The default has no clusters that could be compared, so no setting is recommended."
    setting, gain = found
    tried = pd.concat([rows, default])["setting"].nunique()
    before = default[OUTCOME].mean()
    rule = "of those that cluster about as many features about as finely as the default"
    if setting == 0:
        return f"The default is the most stable of {tried} settings ({rule}): ARI {score(before)} between halves."
    own = rows[rows["setting"] == setting]
    changed = [
        f"{name}={written(own[name].iloc[0])}"
        for name in own.columns
        if name in default and name.count(".") and written(own[name].iloc[0]) != written(default[name].iloc[0])
    ]
    lost = "the default loses" if gain.clear else "whether the default loses is not clear:"
    return (
        f"Recommended, the most stable of {tried} settings ({rule}): {', '.join(changed)}, with ARI "
        f"{score(own[OUTCOME].mean())} between halves, {own['clusters'].mean():.0f} clusters and "
        f"{percent(own['noise'].mean())} noise against {score(before)}, {default['clusters'].mean():.0f} and "
        f"{percent(default['noise'].mean())}; {lost} {str(gain).removeprefix('+')}, an upper estimate as it is the "
        "best of many."
    )


def _varied(rows: pd.DataFrame, field: str) -> list[str]:
    """The other settings that vary in rows."""
    named = [str(name) for name in rows if "." in str(name) or name in ("n_prompts", *GROUPS)]
    return [name for name in named if name != field and rows[name].nunique(dropna=False) > 1]


def _special(fields: Sequence[str], rows: pd.DataFrame) -> list[str]:
    """Sentences that only one question has."""
    if METHOD in fields:
        equal = effects.matched(rows, METHOD, _varied(rows, METHOD), "noise")
        found = [
            f"{method}: {own['clusters'].mean():.0f} clusters, {percent(own['noise'].mean())} noise, "
            f"{percent(own['found_again_halves'].mean())} of the features in clusters that the other half finds again, "
            f"ARI of halves {score(own[OUTCOME].mean())}"
            for method, own in equal.groupby(METHOD, sort=False)
        ]
        return [f"By method: {'; '.join(found)}."]
    if any(name.startswith("hdbscan.") for name in fields):
        return [
            f"Over {rows['setting'].nunique()} settings HDBSCAN leaves {percent(rows['noise'].min())} to "
            f"{percent(rows['noise'].max())} of the features as noise; {percent(rows['recovered_halves'].mean())} of "
            "the clusters of a half come back in the other (Jaccard at least 0.5), and "
            f"{percent(rows['purity'].mean())} of a clustered feature's ten nearest neighbours are in its cluster."
        ]
    if "n_prompts" in fields:
        equal = effects.matched(rows, "n_prompts", _varied(rows, "n_prompts"), "ari_default")
        cells = effects.by_seed(equal, "n_prompts", "ari_default").mean()
        most = max(cells.index)
        with_all = ", ".join(f"{score(cells[n])} with {n:,}" for n in sorted(cells.index) if n != most)
        return [f"The clustering of all {most:,} prompts is reached to ARI {with_all} prompts."]
    return []


def _groups(answer: Answer, name: str, rows: pd.DataFrame, pairs: pd.DataFrame) -> None:
    """Compare groups of prompts: agreement between them against agreement of the halves within them."""
    pairs = pairs[pairs["field"] == name]
    if pairs.empty:
        return
    inside = rows.set_index(["setting", "seed"])[OUTCOME]
    ends = zip(pairs["setting_a"], pairs["setting_b"], pairs["seed"], strict=True)
    within = pd.DataFrame([[inside.get((s, seed), np.nan) for s in (a, b)] for a, b, seed in ends]).mean(axis=1)
    shown = pairs.assign(within=within.to_numpy(), gap=within.to_numpy() - pairs["ari"].to_numpy())
    gap = effects.over_seeds(shown.groupby("seed")["gap"].mean().tolist())
    answer.pairs = shown if answer.pairs is None else pd.concat([answer.pairs, shown])
    answer.parts.append(Part(name, gap.clear, gap, "ARI within less between"))
    what = "sources" if name == "source" else "lengths"
    levels = rows.groupby(name, sort=False)[["clusters", "noise", "n_kept", OUTCOME]].mean()
    n = int(rows["prompts"].min())
    verdict = f"differs clearly between {what}" if gap.clear and gap.value > 0 else (
        f"does not differ clearly between {what}"
    )  # fmt: skip
    answer.sentences.append(
        f"The clustering {verdict}: halves of {n} prompts agree to ARI {score(shown['ari'].mean())} across {what} and "
        f"{score(shown['within'].mean())} within one, a difference of {gap}."
    )
    each = "; ".join(
        f"{written(level)}: {row['clusters']:.0f} clusters, {percent(row['noise'])} noise, ARI {score(row[OUTCOME])}"
        for level, row in levels.iterrows()
    )
    answer.sentences.append(f"By {name}, {each}.")


def interaction_notes(rows: pd.DataFrame, fields: Sequence[str]) -> list[str]:
    """Sentences on the interactions that matter."""
    found = effects.interactions(rows, fields)
    return [
        f"The effects of {row['a']} and {row['b']} depend on each other: {row['share']:.0%} of the variance between "
        f"their combinations is beyond both (p = {row['p']:.2g})."
        for row in found[found["matters"]].to_dict("records")
    ]


def cliff_notes(rows: pd.DataFrame, fields: Sequence[str], shown: int = 3) -> list[str]:
    """Warnings of small steps with large changes in the number of clusters.

    Parameters
    ----------
    rows : DataFrame
        Rows of one grid without errors.
    fields : sequence of str
        Those that were varied.
    shown : int
        Steps that are told, at most.
    """
    found = effects.cliffs(rows, fields)
    notes = [
        f"Cliff: {row['field']} from {row['from']} to {row['to']}{' at ' + row['at'] if row['at'] else ''} takes "
        f"{row['clusters_from']:.0f} clusters to {row['clusters_to']:.0f}."
        for row in found.head(shown).to_dict("records")
    ]
    if len(found) > shown:
        notes.append(f"{len(found) - shown} more steps at least double or halve the number of clusters.")
    return notes


def common(good: pd.DataFrame) -> Answer:
    """Say which statistics features of a cluster share, and how far that varies over settings."""
    answer = Answer("common", COMMON)
    default = good[good["setting"] == 0]
    parts, ranges = [], []
    for column, name in STATISTICS.items():
        own = effects.over_seeds(default[column].tolist())
        known = good.groupby("setting")[column].mean().dropna()
        if not np.isfinite(own.value) or known.empty:
            continue
        answer.parts.append(Part(name, own.clear, own, "share of rank variance"))
        low, high = np.percentile(known, [10, 90])
        between = "" if np.isnan(own.low) or np.isnan(own.high) else f" [{own.low:.0%}, {own.high:.0%}]"
        parts.append(f"{own.value:.0%} of that of {name}{between}")
        ranges.append(f"{name} {low:.0%} to {high:.0%}")
    if parts:
        answer.sentences.append(
            "Beside firing together, features of a cluster are alike in these: of the variance of ranks over clustered "
            f"features, clusters account in the default for {', '.join(parts)}, where chance gives 0%."
        )
        answer.sentences.append(f"Over {len(known)} settings it varies (tenth to ninetieth percentile): "
                                f"{', '.join(ranges)}.")  # fmt: skip
    return answer
