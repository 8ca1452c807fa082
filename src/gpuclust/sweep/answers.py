"""From a sweep's table to answers: per question, which effects are clear, what to set, and what it costs not to.

Sentences are templates with measured numbers; whether something is clear is decided by intervals (see `effects`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from gpuclust.formatting import counted, percent, score, written
from gpuclust.sweep import effects
from gpuclust.sweep.effects import LARGEST, NOTHING, OUTCOME, Effect, Estimate

TITLES = {
    "filters": "How do entropy and activation filters affect the clustering?",
    "prompts": "How do the number and the length of prompts affect it?",
    "rows": "What should a row be: prompts, windows or tokens?",
    "umap": "How useful is UMAP, and with which parameters?",
    "communities": "How are communities best set?",
    "hdbscan": "How good is HDBSCAN, and with which parameters?",
    "dataset": "How does the clustering change with the data set?",
    "consensus": "Does a consensus of several clusterings hold better than one?",
}
COMMON = "Beside what was asked: what do features of a cluster have in common, and does it vary?"
GROUPS = ("source", "length")
METHOD, ROWS = "cluster.method", "extract.rows"
ASKED = {"umap": ("umap.", METHOD), "communities": ("communities.", "neighbors.")}  # beyond the section of its name
WITHIN = "found again within less across"
STATISTICS = {"shared_entropy": "entropy", "shared_sparsity": "sparsity", "shared_mean": "mean activation"}


@dataclass(eq=False)
class Part:
    """One thing asked: what was varied, whether the answer is clear, the estimate behind it, and of what.

    `large`: what is found again more is one large cluster, which answers nothing. `aside`: levels passed over for that.
    """

    name: str
    clear: bool
    estimate: Estimate
    outcome: str
    large: bool = False
    aside: tuple[str, ...] = ()


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
        asked = [key for key in settings if key.startswith(ASKED.get(name, (f"{name}.",)))] or settings
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
                    f"{found.left_out} settings do not count for {short(key)}: they failed, or what they would be "
                    "compared with."
                )
        answer.sentences += _special(asked, rows)
        answer.notes += interaction_notes(rows, settings) + cliff_notes(rows, settings)
        if settings and not {"n_prompts", ROWS, "extract.window"} & set(settings) and not groups:
            candidates.append(rows)
    if answer.effects:
        answer.parts += [
            Part(found.field, found.clear, found.difference, OUTCOME, found.large, found.aside)
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
    """Say which fields clearly change how much is found again, and which do not."""
    clear = "; ".join(
        f"{effect.field} ({effect.best} rather than {effect.worst}: {effect.difference}{_caveat(effect)})"
        for effect in measured
        if effect.difference.clear
    )
    unclear = "; ".join(
        f"{effect.field} (at most {effect.difference}, {effect.best} against {effect.worst}{_caveat(effect)})"
        for effect in measured
        if not effect.difference.clear
    )
    said = "The share of features found again"
    if not clear:
        return f"{said} does not change clearly with {unclear}."
    return f"{said} changes clearly with {clear}" + (f", not clearly with {unclear}." if unclear else ".")


def _caveat(effect: Effect) -> str:
    """What one large cluster has bought."""
    largest = effect.levels.set_index("level")["largest"]
    if effect.large:
        return f", but with {percent(largest[effect.best])} of the features in one cluster, so it is not called better"
    if effect.aside:
        named = ", ".join(f"{level} with {percent(largest[level])}" for level in effect.aside)
        return f", passing over {named} of the features in one cluster"
    return ""


def recommendation(rows: pd.DataFrame, default: pd.DataFrame) -> str:
    """Say which setting to prefer, and what the default loses."""
    if default.empty:
        return "The default failed, so there is nothing to compare a setting with, and none is recommended."
    found = effects.recommend(rows, default)
    alike = "half to twice as many clusters as the default" if default["clusters"].mean() else "clusters"
    rule = f"of those with {alike}, none with more than {percent(LARGEST)} of the features"
    if found is None:
        return f"No setting is recommended: there is none {rule}."
    setting, gain = found
    if unstable := nothing_stable(pd.concat([rows, default])):
        return f"Keep the default: {unstable}."
    tried = counted(pd.concat([rows, default])["setting"].nunique(), "setting")
    bought = default["largest"].mean() > LARGEST
    if setting == 0:
        return f"Keep the default: most is found again by it, of {tried} ({rule}): {_said(default)}."
    own = rows[rows["setting"] == setting]
    changed = [
        f"{name}={written(own[name].iloc[0])}"
        for name in own.columns
        if name in default and name.count(".") and written(own[name].iloc[0]) != written(default[name].iloc[0])
    ]
    if bought:
        lost = "the default's large cluster is found again easily, so that no difference is told"
    else:
        lost = "the default loses" if gain.clear else "whether the default loses is not clear:"
        lost += f" {str(gain).removeprefix('+')}, an upper estimate as it is the best of many"
    better = "Recommended, with" if gain.clear or bought else "Keep the default, nothing is clearly better;"
    return (
        f"{better} most found again of {tried} ({rule}): {', '.join(changed)}, with {_said(own)}; the default has "
        f"{_said(default)}; {lost}."
    )


def nothing_stable(rows: pd.DataFrame) -> str | None:
    """Say how little is found again where that is too little to compare settings by; None where it is not.

    Parameters
    ----------
    rows : DataFrame
        Settings, of which those without a large cluster count.
    """
    means = rows.groupby("setting")[[OUTCOME, "largest", "prompts"]].mean()
    most = means.loc[means["largest"] <= LARGEST, OUTCOME].max()
    if not most < NOTHING:
        return None
    of = "" if len(means) == 1 else f" at most, by any of {len(means)} settings"
    prompts = f"{means['prompts'].max():,.0f} prompts" if means["prompts"].notna().any() else "these prompts"
    return f"found again {percent(most)}{of}: nothing is stable at {prompts}. Take more prompts before you set anything"


def about_base(table: pd.DataFrame, record: Mapping[str, Any]) -> str:
    """Say what the sweep calls the default, and how much of it is found again.

    Parameters
    ----------
    table, record
        As in `answers`.
    """
    changed = [
        f"{key}={written(value)}"
        + (" (one clustering, no consensus)" if (key, value) == ("consensus.members", 1) else "")
        for key, value in record.get("base", {}).items()
    ]
    but = f" but for {', '.join(changed)}" if changed else ""
    named = f"“The default” is this sweep's base: gpuclust's defaults{but}." if "base" in record else ""
    default = table[(table["setting"] == 0) & table["error"].isna()]
    if default.empty:
        return f"{named} It failed.".strip()
    level = f"By the default, {_said(default)}."
    unstable = nothing_stable(default)
    return f"{named} {level}{f' {unstable[0].upper()}{unstable[1:]}.' if unstable else ''}".strip()


def _said(rows: pd.DataFrame) -> str:
    """What is found again, in how many clusters, and what is not clustered."""
    return (
        f"{percent(rows[OUTCOME].mean())} of the features found again, "
        f"{counted(round(rows['clusters'].mean()), 'cluster')}, the largest with {rows['largest'].mean():.1%} of the "
        f"features, and {percent(rows['noise'].mean())} noise"
    )


def _varied(rows: pd.DataFrame, field: str) -> list[str]:
    """The other settings that vary in rows."""
    named = [str(name) for name in rows if "." in str(name) or name in ("n_prompts", *GROUPS)]
    return [name for name in named if name != field and rows[name].nunique(dropna=False) > 1]


def _special(fields: Sequence[str], rows: pd.DataFrame) -> list[str]:
    """Sentences that only one question has."""
    if METHOD in fields:
        equal = effects.matched(rows, METHOD, _varied(rows, METHOD))
        found = [
            f"{method}: {_said(own)} (ARI of halves {score(own['ari_halves'].mean())})"
            for method, own in equal.groupby(METHOD, sort=False)
        ]
        return [f"By method, {'; '.join(found)}.", *_against_umap(equal)]
    if ROWS in fields:
        return _by_rows(effects.matched(rows, ROWS, _varied(rows, ROWS)))
    if any(name.startswith("select.") for name in fields):
        kept = rows.assign(found=rows[OUTCOME] * (rows["n_kept"] - rows["duplicates"]))
        means = [(name, level, own) for name in fields for level, own in kept.groupby(name)]
        each = "; ".join(
            f"{own['found'].mean():,.0f} of {own['n_kept'].mean():,.0f} kept at {short(name)}={written(level)}"
            for name, level, own in means
        )
        return [f"In numbers of features, found again are {each}."]
    if any(name.startswith("hdbscan.") for name in fields):
        return [
            f"Over {counted(rows['setting'].nunique(), 'setting')} HDBSCAN leaves {percent(rows['noise'].min())} to "
            f"{percent(rows['noise'].max())} of the features as noise; on average {percent(rows[OUTCOME].mean())} of "
            "the features lie in clusters that the other half of the prompts finds again, and "
            f"{percent(rows['purity'].mean())} of a clustered feature's ten nearest neighbours are in its cluster."
        ]
    if "n_prompts" in fields:
        equal = effects.matched(rows, "n_prompts", _varied(rows, "n_prompts"), "ari_default")
        cells = effects.by_seed(equal, "n_prompts", "ari_default").mean()
        most = max(cells.index)
        with_all = ", ".join(f"{score(cells[n])} with {n:,}" for n in sorted(cells.index) if n != most)
        return [f"The clustering of all {most:,} prompts is reached to ARI {with_all} prompts."]
    return []


def _by_rows(rows: pd.DataFrame) -> list[str]:
    """What is found again over each kind of rows, and how far its clusters are the default's."""
    levels = {str(name): own for name, own in rows.groupby(ROWS, sort=False)}
    told = "; ".join(f"{name}: {_said(own)}" for name, own in levels.items())
    agreed = [
        f"{score(own['ari_default'].mean())} by {name} (AMI {score(own['ami_default'].mean())})"
        for name, own in levels.items()
        if not (own["setting"] == 0).any()
    ]
    sentences = [f"By row, {told}."]
    if agreed:
        sentences.append(f"The clusters agree with the default's to ARI {', '.join(agreed)}.")
    return [*sentences, "What a row is decides what clusters are of: none is recommended."]


def _against_umap(rows: pd.DataFrame) -> list[str]:
    """What every other method finds again beyond UMAP and HDBSCAN, with all else equal."""
    cells = effects.by_seed(rows, METHOD, OUTCOME)
    if "umap" not in cells or cells.shape[1] < 2:
        return []
    more = [
        f"{method} {effects.over_seeds((cells[method] - cells['umap']).tolist())}"
        for method in cells.columns
        if method != "umap" and rows.loc[rows[METHOD] == method, "largest"].mean() <= LARGEST
    ]
    return [f"Found again, compared with umap: {'; '.join(more)}."] if more else []


def _groups(answer: Answer, name: str, rows: pd.DataFrame, pairs: pd.DataFrame) -> None:
    """Compare groups of prompts: what halves of two of them find again against what the halves of one do."""
    pairs = pairs[pairs["field"] == name]
    if pairs.empty:
        return
    inside = rows.set_index(["setting", "seed"])[OUTCOME]
    ends = zip(pairs["setting_a"], pairs["setting_b"], pairs["seed"], strict=True)
    within = pd.DataFrame([[inside.get((s, seed), np.nan) for s in (a, b)] for a, b, seed in ends]).mean(axis=1)
    shown = pairs.assign(within=within.to_numpy(), gap=within.to_numpy() - pairs["found_again"].to_numpy())
    gap = effects.over_seeds(shown.groupby("seed")["gap"].mean().tolist())
    answer.pairs = shown if answer.pairs is None else pd.concat([answer.pairs, shown])
    answer.parts.append(Part(name, gap.clear, gap, WITHIN))
    what = "sources" if name == "source" else "lengths"
    half = int(rows["prompts"].min()) // 2
    clearly = "differs clearly" if gap.clear and gap.value > 0 else "does not differ clearly"
    answer.sentences.append(
        f"The clustering {clearly} between {what}: of two halves of {half:,} prompts, one finds "
        f"the clusters of {percent(shown['found_again'].mean())} of the features again where the other is of other "
        f"{what}, and of {percent(shown['within'].mean())} where it is of the same, a difference of {gap}."
    )
    each = "; ".join(f"{written(level)}: {_said(own)}" for level, own in rows.groupby(name, sort=False))
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
        more = counted(len(found) - shown, "more step")
        notes.append(f"The number of clusters at least doubles or halves in {more}.")
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
