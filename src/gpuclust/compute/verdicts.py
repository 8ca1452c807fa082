"""Verdicts: is a cluster found again in other prompts, and is it more than chance? In words, with the numbers."""

from __future__ import annotations

import numpy as np

from gpuclust.types import Array

Z_MIN = 3.0  # standard deviations above a null
NULL_MARGIN = 2.0  # the largest z of permuted activations is one draw of many: as large again is asked for
SEVERAL = 4  # clusters: of so many fewer are no way out
FEW = 0.2  # share of the clusters: where fewer are found again, a warning
LITTLE = 0.05  # share of the features in clusters found again: where there are fewer, a warning
VERDICTS = STABLE, FRAGILE, LOST, RANDOM = "stable", "fragile", "not found again", "no better than random"
DOUBTFUL = LOST, RANDOM


def judge(table: dict[str, Array], threshold: float) -> tuple[Array, Array]:
    """Judge every cluster, and say by which number.

    - no better than random: the z-score of its cohesion is not NULL_MARGIN times that of the most cohesive cluster of
      permuted activations, or below Z_MIN against degree-matched random sets
    - not found again: halves of the prompts find it no better than random labels
    - stable: halves find it with a mean Jaccard index of `threshold` or more
    - fragile: they find it in part

    Parameters
    ----------
    table : dict of str to array, (cluster,)
        ``stability``, ``chance_stability``, ``permutation_z``, ``permutation_z_null``, ``random_z``; what was not
        measured is NaN and decides nothing.
    threshold : float

    Returns
    -------
    verdicts : array, (cluster,), object
        Of VERDICTS; None where stability was not measured and no null speaks against the cluster.
    reasons : array, (cluster,), object
        A sentence each; None where there is no verdict.
    """
    stability, chance = table["stability"], table["chance_stability"]
    reached = np.maximum(NULL_MARGIN * table["permutation_z_null"], Z_MIN)
    permuted, random = table["permutation_z"] <= reached, table["random_z"] < Z_MIN
    lost = stability <= chance
    found = np.where(stability >= threshold, STABLE, FRAGILE).astype(object)
    found[np.isnan(stability)] = None
    found[lost] = LOST
    found[permuted | random] = RANDOM
    why = np.full(len(found), None, object)
    for at, verdict in enumerate(found):
        match = "halves of the prompts find it with a Jaccard index of"
        above = "its cohesion is {} standard deviations above"
        if permuted[at]:
            z, asked = _apart(table["permutation_z"][at], reached[at], 1)
            why[at] = f"{above.format(z)} permuted activations; more than {asked} is asked for"
        elif random[at]:
            z, asked = _apart(table["random_z"][at], Z_MIN, 1)
            why[at] = f"{above.format(z)} random features that fire as often; {asked} are asked for"
        elif verdict == LOST:
            index, reach = _apart(stability[at], chance[at], 2)
            why[at] = f"{match} {index}, random labels with up to {reach}"
        elif verdict is not None:
            index, asked = _apart(stability[at], threshold, 2)
            why[at] = f"{match} {index}" + ("" if verdict == STABLE else f"; {asked} is asked for")
    return found, why


def explained(threshold: float) -> dict[str, str]:
    """Say what each of VERDICTS means.

    Parameters
    ----------
    threshold : float
        ``quality.stable`` of the run.

    Returns
    -------
    dict of str to str

    Examples
    --------
    >>> explained(0.5)["stable"]
    'halves of the prompts have it (mean Jaccard index 0.5 or more)'
    """
    return {
        STABLE: f"halves of the prompts have it (mean Jaccard index {threshold:g} or more)",
        FRAGILE: "halves have it in part, more than random labels would",
        LOST: "halves have it no better than random labels would",
        RANDOM: "no more cohesive than random sets or permutations",
    }


def headline(counts: dict[str, int], n_clusters: int, measured: bool = True) -> str:
    """Say in a line how many clusters the halves of the prompts, clustered apart, find again.

    Parameters
    ----------
    counts : dict of str to int
        Clusters by verdict.
    n_clusters : int
    measured : bool
        Whether halves of the prompts were clustered.

    Returns
    -------
    str

    Examples
    --------
    >>> headline({"stable": 8, "fragile": 6, "not found again": 4, "no better than random": 0}, 18)
    '8 of 18 clusters are found again in halves of the prompts, 6 in part'
    >>> headline({}, 0)
    'no clusters: every feature is noise'
    """
    if not n_clusters:
        return "no clusters: every feature is noise"
    if not measured:
        random = f", {counts[RANDOM]:,} of them {RANDOM}" if counts.get(RANDOM) else ""
        clusters = f"{n_clusters:,} cluster{'' if n_clusters == 1 else 's'}"
        return f"{clusters}{random}; whether halves of the prompts find them again was not measured"
    parts = f", {counts[FRAGILE]:,} in part" if counts.get(FRAGILE) else ""
    return f"{_of(counts.get(STABLE, 0), n_clusters)} found again in halves of the prompts{parts}"


def doubt(
    n_found: int, n_clusters: int, n_prompts: int, share: float | None = None, over_tokens: bool = True
) -> str | None:
    """Return a warning where too little is found again, None where it is not so.

    That is: fewer than FEW of the clusters, or clusters that hold less than LITTLE of the features.

    Parameters
    ----------
    n_found, n_clusters, n_prompts : int
    share : float, optional
        Of the features, that lie in clusters of one half which the other finds again.
    over_tokens : bool
        Whether features could be compared over tokens instead, which is then advised.

    Returns
    -------
    str or None
    """
    little = share is not None and share < LITTLE
    if not n_clusters or (n_found >= FEW * n_clusters and not little):
        return None
    ways = ["Take more prompts"]
    if n_clusters > SEVERAL:
        ways.append("or fewer, larger clusters (a lower communities.resolution, a higher hdbscan.min_cluster_size)")
    elif over_tokens:
        ways.append("or compare features over tokens (extract.rows=token)")
    held = "" if share is None else f", and {_percent(share)} of the features lie in clusters that both halves have"
    return (
        f"{_of(n_found, n_clusters)} found again in two halves of the {n_prompts:,} prompts, clustered apart{held}: "
        f"{'the others' if n_found else 'nothing here'} {'cannot' if n_found else 'can'} be told from chance. "
        f"{', '.join(ways)}"
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share == 0 or share >= 0.005 else "less than 1%"


def _of(n_found: int, n_clusters: int) -> str:
    verb = "is" if 1 in (n_found, n_clusters) else "are"
    return f"{n_found:,} of {n_clusters:,} cluster{'' if n_clusters == 1 else 's'} {verb}"


def _apart(value: float, other: float, digits: int) -> tuple[str, str]:
    """Write two numbers with as many decimals as tell them apart, where they differ."""
    while digits < 6 and value != other and f"{value:.{digits}f}" == f"{other:.{digits}f}":
        digits += 1
    return f"{value:.{digits}f}", f"{other:.{digits}f}"
