"""Tree: where each node of the condensed tree is drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gpuclust.types import Array


def layout(condensed: pd.DataFrame, nodes: dict[int, int]) -> dict[str, Array]:
    """Place the nodes of HDBSCAN's condensed tree as rectangles: a width for its features, a height for distances.

    Parameters
    ----------
    condensed : DataFrame
        Columns ``parent``, ``child``, ``lambda_val`` (1 / distance), ``child_size``.
    nodes : dict of int to int
        Node of each cluster: node to cluster.

    Returns
    -------
    dict of arrays, (node,)
        ``tree_left`` and ``tree_size`` in features, ``tree_far`` and ``tree_near`` the distances at which the node
        begins and at which its last feature leaves it (float32; the root begins where it first splits or loses a
        feature), and ``tree_cluster``, int32, -1 where no cluster was selected.
    """
    branches = condensed[condensed["child_size"] > 1].sort_values("child")
    finite = condensed["lambda_val"].replace([np.inf, 0], np.nan)
    densest = float(finite.max()) if finite.notna().any() else 1.0
    last = finite.fillna(densest).groupby(condensed["parent"]).max()
    root = int(condensed["parent"].min())
    size = {root: int(condensed.loc[condensed["parent"] == root, "child_size"].sum())}
    begin = {root: float(finite.fillna(densest)[condensed["parent"] == root].min())}
    left = {root: 0}
    used: dict[int, int] = {}
    columns = (branches[name].tolist() for name in ("parent", "child", "lambda_val", "child_size"))
    for parent, child, lam, n in zip(*columns, strict=True):  # parents come before their children
        left[child] = left[parent] + used.get(parent, 0)
        used[parent] = used.get(parent, 0) + n
        size[child], begin[child] = n, min(lam, densest)
    order = list(left)
    return {
        "tree_left": np.array([left[node] for node in order], np.int32),
        "tree_size": np.array([size[node] for node in order], np.int32),
        "tree_far": np.array([1 / begin[node] for node in order], np.float32),
        "tree_near": np.array([1 / last[node] for node in order], np.float32),
        "tree_cluster": np.array([nodes.get(node, -1) for node in order], np.int32),
    }
