"""Effects in a sweep's table: levels with intervals over seeds, interactions, cliffs, and what to recommend.

The unit is a seed: what all settings of a level have on average with one seed is one number. Seeds are blocks, so a
level's interval and a difference's come from the residual of level and seed, ``y[s, l] - y[s] - y[l] + y``, with
(seeds - 1)(levels - 1) degrees of freedom (two-way analysis of variance, Student's t, 95%). Such intervals speak of the
randomness of UMAP and of communities, not of other prompts: those are the outcome itself, the share of the features in
clusters that the other half of the prompts finds again (`validity.found_again`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import pandas as pd

from gpuclust.formatting import written
from gpuclust.types import Array

OUTCOME = "found_again_halves"
LEVEL = 0.95
LEAST = 0.02  # share of the features: a smaller difference is none worth a setting
# What is found again may be bought: one cluster of everything is found again to 100% and says nothing. With none above
# a tenth, half of the features cannot be found again in fewer than five clusters.
LARGEST = 0.1  # share of the features in the largest cluster, above which more found again answers nothing
NOTHING = 0.2  # share of the features: where the best has less found again, nothing is stable
SHARE, SIGNIFICANT = 0.1, 0.05  # an interaction matters above this share of the variance, below this p
CLIFF, LEAST_CLUSTERS = 2.0, 5  # times as many clusters, and clusters more, after one step
SHOWN = (
    "clusters", "noise", "largest", "n_kept", "ari_halves", "ami_halves", "recovered_halves", "ari_seeds",
    "ari_default", "purity",
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A share, or a difference of two, with its interval, written in percent; the interval is NaN with one seed."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0 and the value is worth naming."""
        return bool((self.low > 0 or self.high < 0) and abs(self.value) >= LEAST)

    def __str__(self) -> str:
        known = np.isfinite(self.low)
        interval = f" [{100 * self.low:+.1f}, {100 * self.high:+.1f}]" if known else " (one seed: no interval)"
        return f"{100 * self.value:+.1f} points{interval}"


@dataclass(frozen=True, eq=False)
class Effect:
    """What one varied field does to an outcome.

    Attributes
    ----------
    field : str
    levels : DataFrame
        ``level`` (text), ``mean``, ``low``, ``high`` of the outcome, and means of ``clusters``, ``largest`` and more.
    best, worst : str
        Levels with the largest and the smallest mean; `best` is one without a large cluster where there is one that is
        not the worst.
    difference : Estimate
        Best less worst, its interval corrected for the choice of the pair (Bonferroni).
    left_out : int
        Settings that are not counted, because not every level has an outcome beside them (`matched`).
    large : bool
        Whether the best level's largest cluster holds more than `LARGEST` of the features: it is not better.
    aside : tuple of str
        Levels with more than the best, passed over for such a cluster.
    """

    field: str
    levels: pd.DataFrame
    best: str
    worst: str
    difference: Estimate
    left_out: int = 0
    large: bool = False
    aside: tuple[str, ...] = ()

    @property
    def clear(self) -> bool:
        """Whether the difference is clear, and not that of one large cluster."""
        return self.difference.clear and not self.large


def matched(table: pd.DataFrame, field: str, others: Sequence[str] = (), outcome: str = OUTCOME) -> pd.DataFrame:
    """Choose the rows in which levels of a field are compared with all else equal.

    A setting that failed, or has no outcome, would leave its level a mean over other values of the other fields than
    the rest. So only those values of `others` count beside which every level has an outcome with
    every seed; levels that would cost more rows than they bring are left out.

    Parameters
    ----------
    table, field, outcome
        As in `effect`.
    others : sequence of str
        The other fields that vary.
    """
    known = table[table[field].notna() & table[outcome].notna()]
    if not others or known.empty:
        return known
    place = known.groupby(list(others), sort=False, dropna=False).ngroup()
    seeds = known.groupby([place, known[field]], sort=False)["seed"].nunique().unstack(fill_value=0)
    full = seeds == table["seed"].nunique()
    best: tuple[int, pd.DataFrame] = (0, full.iloc[:0])
    while full.shape[1]:
        kept = full[full.all(axis=1)]
        best = max(best, (kept.size, kept), key=lambda found: found[0])
        full = full.drop(columns=full.sum().idxmin())
    return known[place.isin(best[1].index) & known[field].isin(best[1].columns)]


def by_seed(table: pd.DataFrame, field: str, outcome: str) -> pd.DataFrame:
    """Mean outcome of every level with every seed: rows seeds, columns levels in order, those with every seed.

    Parameters
    ----------
    table, field, outcome
        As in `effect`.
    """
    cells = table.pivot_table(index="seed", columns=field, values=outcome, aggfunc="mean", sort=False)
    order = [value for value in table[field].unique() if value in cells.columns]
    if pd.api.types.is_numeric_dtype(table[field]) and not pd.api.types.is_bool_dtype(table[field]):
        order.sort()
    return cells.reindex(columns=order).dropna(axis="columns")  # columns may be truth values


def effect(table: pd.DataFrame, field: str, outcome: str = OUTCOME, others: Sequence[str] = ()) -> Effect | None:
    """Measure a field's main effect in the rows of one grid; None where fewer than two levels have an outcome.

    Parameters
    ----------
    table : DataFrame
        Rows of the grid without errors: ``seed``, the varied fields, outcomes, ``largest``.
    field, outcome : str
        Columns.
    others : sequence of str
        The other fields that vary in the grid.
    """
    asked = table.loc[table[field].notna(), "setting"].nunique()
    table = matched(table, field, others, outcome)
    cells = by_seed(table, field, outcome)
    if cells.shape[1] < 2:
        return None
    means = cells.mean()
    more = table.groupby(field, sort=False)[[name for name in SHOWN if name in table]].mean()
    large = more["largest"].reindex(means.index).to_numpy() > LARGEST
    best, worst = _ends(means.to_numpy(), large)
    names = [written(value) for value in means.index]
    pairs = cells.shape[1] * (cells.shape[1] - 1) // 2
    error, df = residual(cells.to_numpy())
    half = quantile(LEVEL, df) * error / np.sqrt(len(cells))
    gap = float(means.iloc[best] - means.iloc[worst])
    wide = quantile(1 - (1 - LEVEL) / pairs, df) * error * np.sqrt(2 / len(cells))
    levels = pd.DataFrame({"mean": means, "low": means - half, "high": means + half}).join(more)
    levels.insert(0, "level", names)
    aside = tuple(name for name, mean in zip(names, means, strict=True) if mean > means.iloc[best])
    return Effect(
        field, levels.reset_index(drop=True), names[best], names[worst], Estimate(gap, gap - wide, gap + wide),
        asked - table["setting"].nunique(), bool(large[best]), aside,
    )  # fmt: skip


def _ends(means: Array, large: Array) -> tuple[int, int]:
    """Places of the best and the worst level; one with a large cluster is best only where no other beats the worst."""
    worst = int(means.argmin())
    fit = int(np.where(large, -np.inf, means).argmax())
    beats = not large[fit] and means[fit] > means[worst]
    return fit if beats else int(means.argmax()), worst


def residual(cells: Array) -> tuple[float, int]:
    """Standard deviation of level and seed beyond both, and its degrees of freedom; NaN with one seed."""
    seeds, levels = cells.shape
    df = (seeds - 1) * (levels - 1)
    if df < 1:
        return np.nan, 0
    rest = cells - cells.mean(axis=1, keepdims=True) - cells.mean(axis=0, keepdims=True) + cells.mean()
    return float(np.sqrt((rest**2).sum() / df)), df


def quantile(level: float, df: int) -> float:
    """Two-sided quantile of Student's t; NaN without degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, df)) if df > 0 else np.nan


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of one number a seed, with a t interval."""
    known = np.asarray([value for value in values if np.isfinite(value)], dtype=float)
    if not len(known):
        return Estimate(np.nan, np.nan, np.nan)
    mean = float(known.mean())
    if len(known) < 2:
        return Estimate(mean, np.nan, np.nan)
    half = quantile(LEVEL, len(known) - 1) * float(known.std(ddof=1)) / np.sqrt(len(known))
    return Estimate(mean, mean - half, mean + half)


def interactions(table: pd.DataFrame, fields: Sequence[str], outcome: str = OUTCOME) -> pd.DataFrame:
    """Measure how far the effect of one field depends on another, for every pair of fields of a complete grid.

    Parameters
    ----------
    table, outcome
        As in `effect`.
    fields : sequence of str
        Columns.

    Returns
    -------
    DataFrame
        ``a``, ``b``, ``share`` (of the variance between the pair's cells that is beyond both main effects), ``p`` (F
        test against the residual of cell and seed) and ``matters``. Pairs with missing cells are left out.
    """
    from scipy.stats import f

    rows = []
    for a, b in combinations(fields, 2):
        cells = table.pivot_table(index="seed", columns=[a, b], values=outcome, aggfunc="mean", sort=False)
        shape = (table[a].nunique(), table[b].nunique())
        if min(shape) < 2 or cells.shape[1] != shape[0] * shape[1] or cells.isna().any().any():
            continue
        cells = cells.sort_index(axis="columns")
        mean = cells.mean().to_numpy().reshape(shape)
        beyond = mean - mean.mean(axis=0, keepdims=True) - mean.mean(axis=1, keepdims=True) + mean.mean()
        total = float(((mean - mean.mean()) ** 2).sum())
        share = float((beyond**2).sum()) / total if total > 0 else 0.0
        error, df = residual(cells.to_numpy())
        p = np.nan
        if df > 0 and error > 0:
            free = (shape[0] - 1) * (shape[1] - 1)
            p = float(f.sf(len(cells) * (beyond**2).sum() / free / error**2, free, df))
        rows.append({"a": a, "b": b, "share": share, "p": p, "matters": share >= SHARE and p < SIGNIFICANT})
    return pd.DataFrame(rows, columns=["a", "b", "share", "p", "matters"])


def cliffs(table: pd.DataFrame, fields: Sequence[str]) -> pd.DataFrame:
    """List single steps of one number, all else equal, after which there are at least twice or half as many clusters.

    Returns
    -------
    DataFrame
        ``field``, ``at`` (the other varied fields), ``from``, ``to``, ``clusters_from``, ``clusters_to`` (means over
        seeds); the largest ratio first.
    """
    rows = []
    for field in fields:
        if not pd.api.types.is_numeric_dtype(table[field]) or pd.api.types.is_bool_dtype(table[field]):
            continue
        others = [name for name in fields if name != field]
        for place, own in table.groupby(others, sort=False, dropna=False) if others else [((), table)]:
            means = own.groupby(field)["clusters"].mean()
            for (low, before), (high, after) in pairwise(means.items()):
                ratio = (max(before, after) + 1) / (min(before, after) + 1)
                if ratio >= CLIFF and abs(after - before) >= LEAST_CLUSTERS:
                    at = ", ".join(f"{name}={written(value)}" for name, value in zip(others, place, strict=True))
                    rows.append(
                        {"field": field, "at": at, "from": written(low), "to": written(high),
                         "clusters_from": float(before), "clusters_to": float(after), "ratio": ratio}
                    )  # fmt: skip
    columns = ["field", "at", "from", "to", "clusters_from", "clusters_to", "ratio"]
    return pd.DataFrame(rows, columns=columns).sort_values("ratio", ascending=False, ignore_index=True)


def unsteady(table: pd.DataFrame) -> pd.DataFrame:
    """List settings whose number of clusters at least doubles from one seed to another: setting, fewest, most."""
    counts = table.groupby("setting")["clusters"].agg(["min", "max"])
    ratio = (counts["max"] + 1) / (counts["min"] + 1)
    found = counts[(ratio >= CLIFF) & (counts["max"] - counts["min"] >= LEAST_CLUSTERS)]
    return found.rename(columns={"min": "fewest", "max": "most"}).reset_index()


def recommend(table: pd.DataFrame, default: pd.DataFrame, outcome: str = OUTCOME) -> tuple[int, Estimate] | None:
    """Choose the setting with the best mean outcome that clusters about as finely as the default.

    Eligible are settings with half to twice as many clusters as the default, none of them with more than `LARGEST` of
    the features; so the default itself may not be. Where the default has no cluster, all that have any.

    Parameters
    ----------
    table, default : DataFrame
        Rows of the candidates, and of the default.
    outcome : str
        Column.

    Returns
    -------
    (int, Estimate) or None
        The setting, and its outcome less the default's with an interval over seeds; None where none is eligible, or the
        default has no outcome.
    """
    own = default.set_index("seed")
    if own.empty or not np.isfinite(own[outcome]).any():
        return None
    means = pd.concat([table, default]).groupby("setting")[["largest", "clusters", outcome]].mean()
    clusters = own["clusters"].mean()
    alike = means["clusters"].between(clusters / 2, clusters * 2) if clusters else means["clusters"] > 0
    eligible = means[(means["largest"] <= LARGEST) & alike & means[outcome].notna()]
    if eligible.empty:
        return None
    number = int(eligible.index.to_numpy()[int(eligible[outcome].argmax())])
    if number == int(default["setting"].iloc[0]):
        return number, Estimate(0.0, 0.0, 0.0)
    chosen = table[table["setting"] == number].set_index("seed")[outcome]
    return number, over_seeds((chosen - own[outcome]).dropna().tolist())
