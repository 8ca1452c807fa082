"""Two clusterings of the same features: how far they agree, which clusters correspond, and what became of each.

Labels are integers per feature: 0 and up a cluster, `NOISE` (-1) clustered as noise, `ABSENT` (-2) not kept by the
filter. Rules, as shares of features:

- *common* features are kept in both clusterings. Sizes, overlaps and Jaccard indices count common features only.
- Two clusters *match* where they are paired by the assignment that maximises the sum of Jaccard indices (Hungarian
  method) and overlap at all.
- B is a *part* of A when at least half of B lies in A, and at least a tenth of A lies in B.
- A **vanished** when more than half of its features, common or not, are noise or not kept in the other clustering;
  else it **split** when at least two parts hold at least half of it; else it **merged** when it is one of at least
  two parts that hold at least half of a cluster of the other; else it is the **same** when its match has a Jaccard
  index of at least one half; else it **changed**. Seen from the second clustering: appeared, merged, split, same,
  changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from gpuclust.schema import NOISE
from gpuclust.types import Array

ABSENT = -2
HALF, TENTH = 0.5, 0.1
FATES = ("same", "split", "merged", "changed", "vanished")
BACKWARD = {"vanished": "appeared", "split": "merged", "merged": "split"}  # the same event, seen from the second


@dataclass(frozen=True, eq=False)
class Relation:
    """How the clusters of two labellings relate.

    Attributes
    ----------
    clusters : DataFrame
        A row per cluster: ``side`` ("a" or "b"), ``cluster``, ``size`` (all its features), ``common``, ``match``
        (cluster of the other side or null), ``jaccard`` (0 without a match), ``fate``, ``others`` (list: the parts or
        the other side of a split or merger), ``noise`` and ``not_kept`` (share of the features that are so there).
    features : DataFrame
        A row per feature that moved: ``feature`` (position in the labels), ``label_a``, ``label_b``, ``move``.
    """

    clusters: pd.DataFrame
    features: pd.DataFrame


def agreement(a: Array, b: Array) -> dict[str, float]:
    """Compare two labellings by the adjusted Rand index and adjusted mutual information.

    Parameters
    ----------
    a, b : array, (feature,), int

    Returns
    -------
    dict
        ``common``: features kept in both. ``ari``, ``ami``: over those, noise counted as one more cluster.
        ``ari_clustered``, ``ami_clustered``: over the features that are in a cluster on both sides; NaN where there
        are none. ``clustered_both``: their share of the common features. NaN without common features.

    Notes
    -----
    Both indices are 1 for equal partitions and 0 on average for unrelated ones (Hubert and Arabie, 1985; Vinh et al.,
    2010). Noise as one cluster asks also whether the same features are noise; without it only what is left is asked.

    Examples
    --------
    >>> import numpy as np
    >>> agreement(np.array([0, 0, 1, 1, -1]), np.array([1, 1, 0, 0, 0]))["ari_clustered"]
    1.0
    """
    common = (a != ABSENT) & (b != ABSENT)
    a, b = a[common], b[common]
    both = (a >= 0) & (b >= 0)
    return {
        "common": int(common.sum()),
        **_indices(a, b, ""),
        **_indices(a[both], b[both], "_clustered"),
        "clustered_both": float(both.mean()) if len(both) else np.nan,
    }


def agreement_of_halves(a: Array, b: Array) -> dict[str, float]:
    """Compare the clusterings of two halves of the prompts: `agreement`, NaN where neither has a cluster.

    Two halves that are all noise agree, but there is nothing that could be stable.
    """
    found = agreement(a, b)
    if (a < 0).all() and (b < 0).all():
        return {name: value if name == "common" else np.nan for name, value in found.items()}
    return found


def _indices(a: Array, b: Array, suffix: str) -> dict[str, float]:
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    if not len(a):
        return {f"ari{suffix}": np.nan, f"ami{suffix}": np.nan}
    return {
        f"ari{suffix}": float(adjusted_rand_score(a, b)),
        f"ami{suffix}": float(adjusted_mutual_info_score(a, b)),
    }


def relate(a: Array, b: Array) -> Relation:
    """Match the clusters of two labellings and say what became of each cluster and feature.

    The rules are in the module's docstring. A feature *moved* when it is in a cluster on at least one side and what
    became of that cluster does not explain where it is now: it went ``to another cluster``, ``into noise``, ``out of
    noise``, is ``no longer kept`` or ``newly kept``. Features that follow a match, a split or a merger did not move.

    Parameters
    ----------
    a, b : array, (feature,), int
        Cluster, `NOISE` or `ABSENT` of the same features.

    Returns
    -------
    Relation
    """
    from scipy.optimize import linear_sum_assignment

    names_a, names_b = np.unique(a[a >= 0]), np.unique(b[b >= 0])
    overlap = np.zeros((len(names_a), len(names_b)), dtype=np.int64)
    both = (a >= 0) & (b >= 0)
    np.add.at(overlap, (np.searchsorted(names_a, a[both]), np.searchsorted(names_b, b[both])), 1)
    common_a = np.array([((a == name) & (b != ABSENT)).sum() for name in names_a], dtype=np.int64)
    common_b = np.array([((b == name) & (a != ABSENT)).sum() for name in names_b], dtype=np.int64)
    union = common_a[:, None] + common_b[None, :] - overlap
    jaccard = overlap / np.maximum(union, 1)
    rows, columns = linear_sum_assignment(-jaccard)
    matched = np.zeros(overlap.shape, dtype=bool)
    matched[rows, columns] = jaccard[rows, columns] > 0
    forward, backward = _parts(overlap, common_a, common_b), _parts(overlap.T, common_b, common_a)
    sides = [
        _side("a", names_a, a, b, names_b, matched, jaccard, forward, backward),
        _side("b", names_b, b, a, names_a, matched.T, jaccard.T, backward, forward),
    ]
    sides[1]["fate"] = sides[1]["fate"].replace(BACKWARD)
    explained = matched | forward | backward.T
    return Relation(pd.concat(sides, ignore_index=True), _moved(a, b, names_a, names_b, explained))


def _parts(overlap: Array, whole: Array, piece: Array) -> Array:
    """Where a column is a part of a row that has at least two, which together hold half of it: bool, (row, column)."""
    part = (overlap >= HALF * piece[None, :]) & (overlap >= TENTH * whole[:, None]) & (overlap > 0)
    held = np.where(part, overlap, 0).sum(axis=1)
    falls_apart = (part.sum(axis=1) >= 2) & (held >= HALF * whole)
    result: Array = part & falls_apart[:, None]
    return result


def _side(
    side: str, names: Array, own: Array, other: Array, other_names: Array, matched: Array, jaccard: Array,
    split: Array, merged: Array,
) -> pd.DataFrame:  # fmt: skip
    """One row per cluster of one side, with its fate seen from that side."""
    rows = []
    for index, name in enumerate(names):
        there = other[own == name]
        noise, absent = float((there == NOISE).mean()), float((there == ABSENT).mean())
        at = np.flatnonzero(matched[index])
        best = float(jaccard[index, at[0]]) if len(at) else 0.0
        others: list[int] = []
        if noise + absent > HALF:
            fate = "vanished"
        elif split[index].any():
            fate, others = "split", other_names[split[index]].tolist()
        elif merged[:, index].any():
            fate, others = "merged", other_names[merged[:, index]].tolist()
        else:
            fate = "same" if best >= HALF else "changed"
        rows.append(
            {
                "side": side, "cluster": int(name), "size": len(there), "common": int((there != ABSENT).sum()),
                "match": int(other_names[at[0]]) if len(at) else None, "jaccard": best, "fate": fate, "others": others,
                "noise": noise, "not_kept": absent,
            }
        )  # fmt: skip
    table = pd.DataFrame(rows, columns=list(RELATION_COLUMNS))
    return table.astype({name: kind for name, kind in RELATION_COLUMNS.items() if kind != "object"})


RELATION_COLUMNS = {
    "side": "str", "cluster": "int64", "size": "int64", "common": "int64", "match": "Int64", "jaccard": "float64",
    "fate": "str", "others": "object", "noise": "float64", "not_kept": "float64",
}  # fmt: skip


def _moved(a: Array, b: Array, names_a: Array, names_b: Array, explained: Array) -> pd.DataFrame:
    both = (a >= 0) & (b >= 0)
    elsewhere = np.zeros(len(a), dtype=bool)
    elsewhere[both] = ~explained[np.searchsorted(names_a, a[both]), np.searchsorted(names_b, b[both])]
    kinds = [
        (elsewhere, "to another cluster"),
        ((a >= 0) & (b == NOISE), "into noise"),
        ((a == NOISE) & (b >= 0), "out of noise"),
        ((a >= 0) & (b == ABSENT), "no longer kept"),
        ((a == ABSENT) & (b >= 0), "newly kept"),
    ]
    parts = [
        pd.DataFrame({"feature": np.flatnonzero(mask), "label_a": a[mask], "label_b": b[mask], "move": name})
        for mask, name in kinds
    ]
    return pd.concat(parts, ignore_index=True)
