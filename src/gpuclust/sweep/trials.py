"""The tasks of a sweep: moments of all subsets in one pass, embeddings, trees, trials.

Each reads what earlier ones wrote under a name that says what it depends on, and writes its own file atomically, so
that settings share what they can and a killed sweep goes on. A *trial* is a setting with a seed: the clusters of all
its prompts and of each half.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.compute import agreement, communities, consensus, dbscan, duplicates, measures, methods, neighbors
from gpuclust.compute.clustering import Clustering, embedding_tree, exact_edges
from gpuclust.compute.feature_filter import select
from gpuclust.compute.reductions import MOMENTS, State, moments_empty
from gpuclust.compute.validity import found_again
from gpuclust.config import Config
from gpuclust.config_sections import SelectConfig
from gpuclust.engine.views import read_errors, read_neighbors
from gpuclust.hardware.backend import on_host, resolve
from gpuclust.storage import atomic, checksums, row_blocks
from gpuclust.storage.record import versions
from gpuclust.sweep.sharing import PARTS
from gpuclust.types import AnyArray, Array

BETWEEN = ("found_again", "ari", "ami", "common")  # of two trials on different prompts


def pass_task(
    run: Path, first: int, stop: int, rows: int, codes: Sequence[Array], n_atoms: Sequence[int],
    thresholds: Sequence[float], device: str = "cpu",
) -> list[list[State]]:  # fmt: skip
    """Read a range of prompts once, and accumulate the moments of every atom; on a GPU they are computed there.

    Parameters
    ----------
    run : Path
        Folder with the store.
    first, stop : int
        Prompts of this share.
    rows : int
        Prompts read at a time.
    codes : sequence of array, (prompt,), int
        Atom of every prompt of the store by layer, -1 none.
    n_atoms : sequence of int
        By layer.
    thresholds : sequence of float
        Activation thresholds for which ``n_active`` is counted.
    device : {"cpu", "cuda"}

    Returns
    -------
    list of list of dict
        By layer and atom, over all features, with ``n_active`` by threshold, (threshold, feature), and the ``sketch``
        by which duplicates are found, (feature, `duplicates.SIZE`).
    """
    backend = resolve(device)
    xp = backend.xp
    moments: list[list[State]] = []
    for start, block in row_blocks.rows(run / schema.ACTIVATIONS, rows, backend, first, stop):
        sketched = neighbors.sketch_rows(start, start + len(block), duplicates.SIZE, duplicates.SEED)
        moments = moments or [[_no_moments(block.shape[1], len(thresholds))] * count for count in n_atoms]
        for layer, code in enumerate(codes):
            own = code[start : start + len(block)]
            for atom in np.unique(own[own >= 0]):
                inside = np.flatnonzero(own == atom)
                part = block if len(inside) == len(block) else xp.take(block, xp.asarray(inside), axis=0)
                state = on_host(moments_of(part, thresholds, sketched[inside], xp))
                moments[layer][atom] = _combined([moments[layer][atom], state])
    return moments


def _no_moments(n_features: int, n_thresholds: int) -> State:
    more = {
        "n_active": np.zeros((n_thresholds, n_features), dtype=np.int64),
        "sketch": np.zeros((n_features, duplicates.SIZE)),
    }
    return moments_empty(n_features) | more


def _combined(states: Iterable[State]) -> State:
    """Merge moments, sketches included."""
    first, *rest = states
    for state in rest:
        first = MOMENTS.combine(first, state) | {"sketch": first["sketch"] + state["sketch"]}
    return first


def moments_of(block: AnyArray, thresholds: Sequence[float], projection: Array, xp: Any = np) -> State:
    """Moments of a chunk, with ``n_active`` for several thresholds, (threshold, feature), and the sketch of its rows.

    Parameters
    ----------
    block : array, (prompt, feature), host or device
    thresholds : as in `pass_task`
    projection : array, (prompt, `duplicates.SIZE`), float64
        Of its prompts, in host memory.
    xp : module
        numpy, or cupy for a device array.
    """
    state = MOMENTS.chunk(block, thresholds[0], xp)
    magnitude = xp.abs(block)
    state["n_active"] = xp.stack([(magnitude > threshold).sum(axis=0) for threshold in thresholds])
    state["sketch"] = block.astype(xp.float64).T @ xp.asarray(projection)
    return state


def partial_moments(partial: list[list[State]], layer: int, atoms: Sequence[int]) -> list[State]:
    """Moments of some atoms, where the partial is: small enough to travel.

    Parameters
    ----------
    partial : list of list of dict
        As from `pass_task`.
    layer, atoms : int and sequence of int
    """
    return [partial[layer][atom] for atom in atoms]


def moments_task(path: Path, thresholds: Sequence[float], *parts: list[State]) -> None:
    """Merge the moments of a subset's atoms over workers, and write them.

    Parameters
    ----------
    path : Path
    thresholds : as in `pass_task`
    *parts : list of dict
        As from `partial_moments`, a list a worker.
    """
    merged = _combined(state for part in parts for state in part)
    write_arrays(path, thresholds=np.asarray(thresholds, dtype=np.float64), **merged)


def read_statistics(path: Path, threshold: float) -> dict[str, Array]:
    """Statistics of every feature over a subset, as from ``MOMENTS.finalize``."""
    with np.load(path) as file:
        state = dict(file)
    del state["made_by"]
    at = int(np.flatnonzero(state.pop("thresholds") == threshold)[0])
    return MOMENTS.finalize(state | {"n_active": state["n_active"][at]})


def kept_task(
    path: Path, threshold: float, config: SelectConfig, needed: int, copies_by: str | None
) -> tuple[Array, Array]:
    """Numbers of the features that a filter keeps on a subset, and of the one that each is clustered as: its point.

    Parameters
    ----------
    path, threshold : Path and float
        The moments of the subset, and the threshold of activation.
    config : SelectConfig
    needed, copies_by
        As in `duplicates.mark`, and ``by`` in `duplicates.find`.
    """
    table, _ = select(read_statistics(path, threshold), config, needed)
    kept: Array = table.loc[table["kept"], "feature"].to_numpy()
    point = kept
    if copies_by is not None:
        with np.load(path) as file:
            sketched, squares, fires = (file[name][kept] for name in ("sketch", "u0", "n_nonzero"))
        point = kept[duplicates.points(sketched, squares, fires, copies_by)]
    duplicates.refuse_few(len(kept), len(np.unique(point)), needed)
    return kept, point


def embed_task(source: Path, target: Path, config: Config, n_prompts: int, number: int, device: str) -> None:
    """Embed the features of one part of a subset, for one member of the consensus.

    Parameters
    ----------
    source, target : Path
        Neighbours that are read, and where the embedding goes.
    config : Config
    n_prompts, number : int
        As in `consensus.member_embedding`.
    device : {"cpu", "cuda"}
    """
    _, indices, distances = (values[..., : config.n_neighbors] for values in read_neighbors(source))
    backend = resolve(device).name
    errors = _errors(source, config)
    embedding = consensus.member_embedding(indices, distances, n_prompts, config, number, backend, errors)
    write_arrays(target, embedding=embedding)


def tree_task(source: Path, min_samples: int, device: str, after: Any) -> Array:
    """Spanning tree of mutual reachability on an embedding; settings that differ further on share it.

    Parameters
    ----------
    source : Path
        An embedding.
    min_samples, device : int and {"cpu", "cuda"}
    after : object
        Not read: the task that makes the embedding, which is then waited for.
    """
    with np.load(source) as file:
        return embedding_tree(file["embedding"], min_samples, backend=resolve(device).name)


def points_task(source: Path, after: Any) -> Array:
    """An embedding, for a clustering that needs no tree of it.

    Parameters
    ----------
    source : Path
    after : object
        As in `tree_task`.
    """
    with np.load(source) as file:
        points: Array = file["embedding"]
    return points


def saved_tree(source: Path, metric: str | None) -> Array:
    """Exact spanning tree that came with the neighbours, of cosine or of euclidean distances (`exact_edges`)."""
    return exact_edges(np.load(source), metric)


def trial_task(
    target: Path, near: Sequence[Path], n_prompts: Sequence[int], moments: Path, threshold: float, config: Config,
    allowed: int, features: Array, point: Array, trees: Sequence[Sequence[Array]] | None, device: str = "cpu",
) -> None:  # fmt: skip
    """Cluster the three parts of a trial, measure, and write labels and facts.

    Parameters
    ----------
    target : Path
    near, n_prompts : sequence of Path and of int
        Neighbours of the kept features over each part of the subset in the order of `PARTS`, and its prompts.
    moments : Path
        Moments of the subset.
    threshold : float
        Of activation, for the statistics.
    config : Config
        Sections cluster, communities, dbscan, hdbscan and, with several members, consensus.
    allowed : int
        Bytes of host memory that a consensus may use.
    features, point : array, (kept,), int
        The kept features, and the one that each is clustered as: duplicates count once in all that is measured.
    trees : sequence of sequence of array, (edge, 3)
        In the order of `PARTS`, a tree a member of the consensus; None of communities. Of DBSCAN on the embedding the
        embeddings themselves.
    device : {"cpu", "cuda"}
        Of DBSCAN on the embedding.
    """
    if config.used_dbscan and trees is not None:
        whole, *halves = _dbscan(near, config, allowed, [made for (made,) in trees], device)
    elif trees is None:
        whole, *halves = _communities(near, n_prompts, config, allowed)
    else:
        whole, *halves = [consensus.of_trees(edges, config, allowed) for edges in trees]
    labels = [result.labels.astype(np.int64) for result in (whole, *halves)]
    kept, indices, _ = read_neighbors(near[0])
    statistics = read_statistics(moments, threshold)
    facts = {
        "n_kept": len(features),
        "duplicates": len(features) - len(kept),
        **measures.of_clustering(
            labels[0],
            whole.persistence,
            indices[:, : config.n_neighbors],
            {name: statistics[name][kept] for name in measures.SHARED},
        ),
        **{f"{name}_halves": value for name, value in measures.of_halves(labels[1], labels[2]).items()},
    }
    place = np.searchsorted(kept, point)
    packed = {part: label.astype(np.int32)[place] for part, label in zip(PARTS, labels, strict=True)}
    write_arrays(target, kept=features.astype(np.int32), facts=np.array(json.dumps(facts)), **packed)


def _communities(near: Sequence[Path], n_prompts: Sequence[int], config: Config, allowed: int) -> list[Clustering]:
    """Cluster the parts at the resolution that is best on the whole, as a run does."""
    resolution = None
    found = []
    for path, n in zip(near, n_prompts, strict=True):
        _, indices, distances = (values[..., : config.n_neighbors] for values in read_neighbors(path))
        errors = _errors(path, config)
        if resolution is None:
            resolution, _ = communities.choose_resolution(indices, distances, n, config, errors)
        found.append(methods.of_communities(indices, distances, n, config, allowed, resolution, errors)[0])
    return found


def _errors(path: Path, config: Config) -> Array | None:
    """Standard errors of as many neighbours as a configuration uses."""
    errors = read_errors(path)
    return None if errors is None else errors[:, : config.n_neighbors]


def _dbscan(near: Sequence[Path], config: Config, allowed: int, made: Sequence[Array], device: str) -> list[Clustering]:
    """Cluster the parts, from trees or embeddings, at the eps that is the whole's, as a run does."""
    found = []
    for path, data in zip(near, made, strict=True):
        if config.tree_samples is None:
            part = dbscan.of_embedding(data, config, resolve(device).name, allowed)
        else:
            _, indices, distances = read_neighbors(path)
            part = dbscan.of_tree(data, indices, distances, config)
        config = dbscan.with_eps(config, part.eps)
        found.append(part.clustering)
    return found


def release_memory() -> None:
    """Give the freed Gram matrices back to the system (glibc keeps arrays of some MB for itself)."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


# ---------------------------------------------------------------- files of trials


def read_trial(path: Path, d_sae: int) -> tuple[dict[str, Any], Array]:
    """Return the facts of a trial and its labels of all features: (part, feature), absent where not kept."""
    with np.load(path) as file:
        facts = json.loads(str(file["facts"]))
        labels = np.full((len(PARTS), d_sae), agreement.ABSENT, dtype=np.int32)
        labels[:, file["kept"]] = np.stack([file[part] for part in PARTS])
    return facts, labels


def agreement_task(trials: Sequence[Path], references: Sequence[Path | None], d_sae: int) -> list[dict[str, Any]]:
    """Facts of every seed of a setting, with its agreement with the default and with the other seeds.

    Parameters
    ----------
    trials : sequence of Path
        By seed.
    references : sequence of Path or None
        The default's trials with the same seeds; None where that failed.
    d_sae : int
        Features of the SAE.
    """
    own = {path: read_trial(path, d_sae) for path in dict.fromkeys(trials)}
    rows = []
    for number, path in enumerate(trials):
        facts, labels = own[path]
        others = [own[other][1][0] for place, other in enumerate(trials) if place != number]
        row = dict(facts)
        clustered = facts["clusters"] > 0
        row["ari_seeds"] = float(
            np.mean([agreement.agreement(labels[0], other)["ari"] for other in others if clustered] or [np.nan])
        )
        reference = references[number]
        if reference is not None:
            found = agreement.agreement(labels[0], read_trial(reference, d_sae)[1][0])
            row |= {f"{name}_default": found[name] for name in ("ari", "ami", "ari_clustered", "common")}
        rows.append(row)
    return rows


def between_task(a: Path, b: Path, d_sae: int) -> dict[str, float]:
    """Agreement of two trials on different prompts: mean of one's half with the other's other half.

    Halves are compared with halves, so that the number of prompts is that of the halves of one trial, and on the
    features that both trials keep.

    Parameters
    ----------
    a, b : Path
        The trials.
    d_sae : int
    """
    first, second = read_trial(a, d_sae)[1], read_trial(b, d_sae)[1]
    common = (first[0] != agreement.ABSENT) & (second[0] != agreement.ABSENT)
    halves = [(one[common], other[common]) for one, other in ((first[1], second[2]), (first[2], second[1]))]
    pairs = [agreement.agreement(*pair) | found_again(*pair) for pair in halves]
    return {name: float(np.mean([pair[name] for pair in pairs])) for name in BETWEEN}


def labels_task(target: Path, trials: Sequence[Path], numbers: Sequence[tuple[int, int]], d_sae: int) -> None:
    """Gather the labels of all trials in one Zarr group: labels(trial, part, feature), int32.

    Parameters
    ----------
    target : Path
    trials, numbers : sequence of Path and of (int, int)
        The trials, and setting and seed of each.
    d_sae : int
    """
    import zarr

    with atomic.replacing(target) as partial:
        group = zarr.create_group(partial, attributes={"parts": list(PARTS), "absent": agreement.ABSENT})
        array = group.create_array(
            "labels", shape=(len(trials), len(PARTS), d_sae), dtype="int32", chunks=(1, len(PARTS), d_sae),
            dimension_names=("trial", "part", "feature"),
        )  # fmt: skip
        for row, path in enumerate(trials):
            array[row] = read_trial(path, d_sae)[1]
        for index, name in enumerate(("setting", "seed")):
            values = np.asarray([pair[index] for pair in numbers], dtype=np.int64)
            group.create_array(name, data=values, dimension_names=("trial",))


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays, and the packages that made them."""
    atomic.write_arrays(path, {"made_by": np.array(json.dumps(versions())), **arrays})
    checksums.seal(path)
