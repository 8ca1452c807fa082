"""Python functions: open a finished run, or cluster the features of activations in hand."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpuclust import schema, stage_table
from gpuclust.config import Config
from gpuclust.configfile import validate, without_effect
from gpuclust.errors import ActivationError, GpuclustError, InputError, ParameterError, StoreError
from gpuclust.formatting import shown
from gpuclust.places import place
from gpuclust.results.feature_clusters import FeatureClusters, Halves, by_dbscan, by_distances, compare_halves, gram_of
from gpuclust.results.inputs import as_activations, as_lengths, refuse_larger_than_memory
from gpuclust.results.parameters import merged
from gpuclust.storage import reading

if TYPE_CHECKING:
    import xarray as xr
    from anndata import AnnData
    from plotly.graph_objects import Figure

    from gpuclust.results.cards import Card

log = logging.getLogger("gpuclust")


class Run:
    """A finished run, read from its folder when asked.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    StoreError
        If the folder is no run. An unfinished run opens; what it lacks is refused when asked for.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = place(path)
        self._files = reading.Files(self.path)
        if not (self.path / schema.CONFIG).exists() and not self._files.knows_its_settings():
            raise StoreError(
                f"{self.path} is no gpuclust run: it has no {schema.CONFIG}. Give the --out folder of a run"
            )

    def __repr__(self) -> str:
        try:
            stages = self.record["stages"]
        except GpuclustError as error:  # what only shows a run does not fail of its damage
            return f"Run({str(self.path)!r}, {error})"
        counts = [
            ("prompts", "rows", "{:,} prompts"), ("reduce", "rows", "{:,} features"), ("select", "kept", "{:,} kept"),
            ("cluster", "clusters", "{:,} clusters"),
        ]  # fmt: skip
        known = [text.format(stages[name][key]) for name, key, text in counts if key in stages.get(name, {})]
        left = [name for name in stage_table.NAMES if name not in stages and name != "report"]
        return f"Run({', '.join([repr(str(self.path)), *known, *([f'to be done: {left[0]}'] if left else [])])})"

    @cached_property
    def config(self) -> Config:
        """The resolved configuration."""
        return validate(self._files.settings(), where=str(self.path / schema.CONFIG))

    @cached_property
    def record(self) -> dict[str, Any]:
        """``run.json``: versions, device, scheduler, and per stage time, rows, bytes and memory."""
        return self._files.record()

    @cached_property
    def activations(self) -> xr.DataArray:
        """Stored activations, (prompt, feature), float32, lazy.

        Of a store in float16, whose sums and squares would leave its range (65,504), every chunk becomes float32 as it
        is read. ``.astype("float16")`` is what is stored, bit by bit, in half the memory.
        """
        return self._dataset(schema.ACTIVATIONS)["activations"].astype(np.float32, copy=False)

    @cached_property
    def tokens(self) -> xr.Dataset:
        """What fires on every token, (row, feature), lazy, with `prompt`, `position` and `token` of each row.

        Of a run whose ``extract.rows`` are tokens or windows; float32, as `activations`.
        """
        whole = self._dataset(schema.TOKENS)
        rows = whole.isel(row=np.flatnonzero(whole["prompt"].values >= 0))  # what is past a shard's tokens is none
        return rows.assign(activations=rows["activations"].astype(np.float32, copy=False))

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """What is known of the activations: model, SAE, hook and how they were aggregated."""
        found: dict[str, Any] = self.record["stages"].get("prompts", {}).get("attributes", {})
        return found

    @cached_property
    def features(self) -> pd.DataFrame:
        """A row per SAE feature, columns of ``schema.FEATURE_COLUMNS``."""
        return self._files.table(schema.FEATURES)

    @cached_property
    def clusters(self) -> pd.DataFrame:
        """A row per cluster and one for noise, columns of ``schema.CLUSTER_COLUMNS``."""
        return self._files.table(schema.CLUSTERS)

    @cached_property
    def quality(self) -> pd.DataFrame:
        """A row per cluster: how far it is found again, and the nulls; columns of ``schema.QUALITY_COLUMNS``."""
        return self._files.table(schema.QUALITY)

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """A row per prompt, columns of ``schema.PROMPT_COLUMNS``."""
        return self._files.table(schema.PROMPTS)

    @cached_property
    def examples(self) -> pd.DataFrame:
        """The strongest prompts of every feature, columns of ``schema.EXAMPLE_COLUMNS``."""
        return self._files.table(schema.EXAMPLES)

    @cached_property
    def example_spans(self) -> pd.DataFrame:
        """Where in its prompt each example peaks, columns of ``schema.SPAN_COLUMNS``; a row per row of `examples`."""
        return self._files.table(schema.EXAMPLE_SPANS)

    @cached_property
    def cluster_similarity(self) -> pd.DataFrame:
        """A row per pair of clusters, columns of ``schema.SIMILARITY_COLUMNS``."""
        return self._files.table(schema.CLUSTER_SIMILARITY)

    @cached_property
    def themes(self) -> pd.DataFrame:
        """A row per theme, clusters that rise and fall together; columns of ``schema.THEME_COLUMNS``."""
        return self._files.table(schema.THEMES)

    @cached_property
    def contexts(self) -> pd.DataFrame:
        """Where most features of each cluster fire at once, best first; columns of ``schema.CONTEXT_COLUMNS``.

        Of a run whose ``extract.rows`` are tokens or windows, with ``analyse.top_contexts`` above 0.
        """
        return self._files.table(schema.CONTEXTS)

    @cached_property
    def validation(self) -> pd.DataFrame:
        """A row per cluster: what was tried on it, and the word for all of it; ``schema.VALIDATION_COLUMNS``."""
        return self._files.table(schema.VALIDATION)

    @property
    def validation_facts(self) -> dict[str, Any]:
        """What each test of the validation was made of, ``validation.json``; empty of a run without."""
        return self._files.facts(schema.VALIDATION_FACTS)

    @cached_property
    def neighbors(self) -> xr.Dataset:
        """``indices`` and ``distances``, (feature, k), in the SAE's feature numbers; of copies only the first."""
        return self._dataset(schema.NEIGHBORS)

    @cached_property
    def embedding(self) -> xr.DataArray:
        """The embedding, (feature, component), of copies only the first; a run without UMAP has none."""
        return self._dataset(schema.EMBEDDING)["embedding"]

    @cached_property
    def cluster_activations(self) -> xr.DataArray:
        """Mean abs(a) of each cluster's features, (prompt, cluster)."""
        return self._dataset(schema.CLUSTER_ACTIVATIONS)["activation"]

    @property
    def neuronpedia_id(self) -> str | None:
        """The SAE's id on Neuronpedia, such as ``gpt2-small/6-res-jb``, or None."""
        found: str | None = self.attributes.get("neuronpedia_id")
        return found

    def map(self) -> Figure:
        """Draw the 2-D map of the kept features, coloured by cluster; see `figures.feature_map`."""
        from gpuclust.results.figures import feature_map

        return feature_map(self.features, self.clusters)

    def explore(self) -> Any:
        """Show the map as a notebook's widget, whose points open cards when clicked; see `explorer.explore`."""
        from gpuclust.results import explorer

        return explorer.explore(self)

    def write_map(self, path: str | Path, dark: bool = False) -> list[int]:
        """Write the map as a picture, .svg, .pdf or .png; the clusters that are named on it: `static_map.write`."""
        from gpuclust.results import pictures, static_map

        pictures.check(place(path))  # before tables are read
        themes = self.themes if schema.THEMES in self._files else None
        what = self.attributes
        names = (Path(str(what[name])).name for name in ("model", "sae") if what.get(name))
        about = " · ".join(dict.fromkeys(names))
        told = self.record["stages"].get("quality", {}).get("headline", "")
        observed = self.record["stages"].get("neighbors", {}).get("observed", {}).get(schema.WHOLE)
        over = f", over {observed:,} {self.config.extract.rows}s" if observed else ""
        caption = f"{about} · {what.get('hook_name', '')}{over}: {told}." if about and told else about
        return static_map.write(self.features, self.clusters, place(path), dark, themes, caption)

    def write_evidence(self, path: str | Path, dark: bool = False) -> None:
        """Write what was tried on each cluster, beside its controls, as a picture: `evidence_figure.write`."""
        from gpuclust.results import evidence_figure, pictures

        pictures.check(place(path))
        evidence_figure.write(self.clusters, place(path), dark)

    def entropy_plot(self, x: str = "entropy", y: str = "varentropy") -> Figure:
        """Plot two of entropy, varentropy and sparsity by quadrant; see `figures.entropy_plot`."""
        from gpuclust.results.figures import entropy_plot

        return entropy_plot(self.features, x, y)

    def cluster(self, number: int) -> Card:
        """Describe a cluster: statistics, words, prompts with peak tokens marked, features, a Neuronpedia quick list.

        Raises
        ------
        InputError
            If there is no such cluster.
        """
        from gpuclust.results.cards import cluster_card

        return cluster_card(self, number)

    def feature(self, number: int, n_prompts: int = 5) -> Card:
        """Describe a feature: statistics, cluster, strongest prompts with the peak token marked, nearest features.

        Raises
        ------
        InputError
            If there is no such feature.
        """
        from gpuclust.results.cards import feature_card

        return feature_card(self, number, n_prompts)

    def to_anndata(self) -> AnnData:
        """Return the kept features as observations and the prompts as variables of an AnnData.

        Returns
        -------
        AnnData, (feature, prompt)
            ``X`` : sparse activations; ``obs`` : the feature table; ``var`` : prompt, text, source, n_tokens;
            ``obsm["X_umap"]`` : the map, and ``obsm["X_embedding"]`` : what was clustered, where there is an embedding;
            ``obsp["distances"]`` : neighbours.

        Raises
        ------
        InputError
            If anndata is not installed.

        Notes
        -----
        Memory: the non-zero activations of the kept features, 8 bytes each for float32 and an index, twice.
        """
        try:
            from anndata import AnnData
        except ImportError as error:
            raise InputError("to_anndata needs the package anndata: pip install anndata") from error
        from scipy.sparse import csc_array, csr_array, hstack

        from gpuclust.hardware import budget
        from gpuclust.storage import store
        from gpuclust.tables import feature_table

        kept = self.features[self.features["kept"]].reset_index(drop=True)
        columns = kept["feature"].to_numpy()
        place = feature_table.point_rows(self.features)
        blocks = store.read_rows(self._files.path(schema.ACTIVATIONS), budget.MAX_ROWS)
        x = hstack([csc_array(block[:, columns].T.astype(np.float32)) for _, block in blocks], format="csr")
        indices = self.neighbors["indices"].values[place, 1:]  # a copy has the neighbours of its point
        width = indices.shape[1]
        rows = np.arange(len(kept) + 1) * width
        places = np.searchsorted(columns, indices).ravel()
        near = csr_array(
            (self.neighbors["distances"].values[place, 1:].ravel(), places, rows), shape=(len(kept), len(kept))
        )
        obsm = {"X_umap": kept[["x", "y"]].to_numpy()}
        if (self.path / schema.EMBEDDING).exists():
            obsm["X_embedding"] = self.embedding.values[place]
        obs = kept.assign(label=pd.Categorical(kept["label"].astype(str))).set_axis(columns.astype(str))
        var = self.prompts[["prompt", "text", "source", "n_tokens"]].set_axis(self.prompts["prompt"].astype(str))
        return AnnData(x, obs=obs, var=var, obsm=obsm, obsp={"distances": near})

    def _dataset(self, name: str) -> xr.Dataset:
        import xarray as xr

        opened: xr.Dataset = xr.open_zarr(self._files.path(name))
        return opened


def open_run(path: str | Path) -> Run:
    """Open the folder of a run.

    Raises
    ------
    StoreError
        If the folder is no run.
    """
    return Run(path)


def cluster_features(
    activations: Any, config: Config | Mapping[str, Any] | None = None, *, method: str | None = None,
    resolution: float | None = None, n_neighbors: int | None = None, check_halves: bool | None = None,
    lengths: Any = None,
) -> FeatureClusters:  # fmt: skip
    """Filter, embed and cluster the features of activations in memory.

    Parameters
    ----------
    activations : array, (prompt, feature)
        Of NumPy, PyTorch (any dtype, layout and device), CuPy or SciPy (also sparse), lists, a DataFrame, a DataArray;
        names of axes go before order (`inputs.as_activations`). Integers become floats. A sparse matrix is written out
        whole: see below.
    config : Config or mapping, optional
        Sections extract.activation_threshold, select, neighbors, cluster, communities, dbscan, umap, hdbscan and
        consensus apply, and seed, quality.duplicates, quality.halves and quality.stable.
    method : {"communities", "umap", "distances", "dbscan"}, optional
        As ``cluster.method``. This and the two that follow go before `config`.
    resolution : float, optional
        Of communities: larger finds more and smaller clusters; default where they are found again most.
    n_neighbors : int, optional
        Of a feature, itself included: in the graph of communities, and in UMAP's.
    check_halves : bool, optional
        Cluster two halves of the prompts apart, too, for `FeatureClusters.stability` and `found_again`. Default: by
        communities, where that takes little beside the map, unless quality.halves is off.
    lengths : array, (prompt,), numbers, optional
        Lengths of the prompts, in tokens for example, which partial correlations take out; without them, and where all
        are equal, these are correlations.

    Returns
    -------
    FeatureClusters

    Warns
    -----
    In the log ``gpuclust``, and in ``notes``, where the halves find fewer than a fifth of the clusters again.

    Raises
    ------
    ActivationError
        If it is no array of numbers (prompt, feature), or holds NaN or infinity; or `lengths` is not one number a
        prompt.
    SelectionError
        If the filter keeps too few features.
    MemoryBudgetError
        If the activations, or the Gram matrix of the kept features, are larger than the memory of this machine.

    Notes
    -----
    Memory: the Gram matrix of the kept features, 8 bytes an entry, and a copy of the kept columns in blocks. A sparse
    matrix takes prompts x features x 4 bytes beside itself (float32, and integers of up to 16 bits; float16 2, float64
    and larger integers 8), zeros included, and is refused with that number where it is more than this machine has: a
    run, which reads activations in blocks, has no such limit.
    """
    from gpuclust.compute import communities, consensus, dbscan, duplicates, methods, neighbors
    from gpuclust.compute.clustering import cluster_embedding
    from gpuclust.compute.embedding import embed
    from gpuclust.compute.feature_filter import select
    from gpuclust.compute.reductions import MOMENTS
    from gpuclust.hardware import budget
    from gpuclust.tables import feature_table

    named: dict[str, dict[str, Any]] = {"cluster": {"method": method}, "communities": {"resolution": resolution}}
    c = validate(merged(config, n_neighbors, named), where="config")
    if not isinstance(check_halves, bool | None):
        raise ParameterError(f"check_halves is {shown(check_halves)}: True, False, or None for what the method has")
    if c.neighbors.method == "sketch":
        raise ActivationError("cluster_features computes exact neighbours; set neighbors.method=exact or auto")
    if c.keeps_tokens:
        raise ParameterError(
            f"extract.rows is {c.extract.rows}, but rows are what the array has: leave it at prompt, and set "
            "neighbors.metric=correlation where they are tokens"
        )
    data = as_activations(activations)
    long = None if lengths is None else as_lengths(lengths, len(data))
    if long is not None:  # an offset changes nothing, and would take the digits of small differences
        long -= long.mean()
    if long is None and c.metric == "partial_correlation":
        log.info("cluster_features: no lengths of the prompts are given; the metric is correlation")
    idle = ""
    if long is not None and c.metric != "partial_correlation":
        idle = f"lengths have no effect with the metric {c.metric}: only partial_correlation takes them out"
    blocks = [data[start : start + budget.MAX_ROWS] for start in range(0, len(data), budget.MAX_ROWS)]
    moments = MOMENTS.merge(MOMENTS.chunk(block, c.extract.activation_threshold) for block in blocks)
    table, _ = select(MOMENTS.finalize(moments), c.select, c.fewest_features, len(data))
    starts = range(0, len(data), budget.MAX_ROWS)
    features = table.loc[table["kept"], "feature"].to_numpy()
    point = duplicates.find(zip(starts, blocks, strict=True), moments, features, c.copies_by)
    table, n_copies = duplicates.mark(table, point, c.fewest_features)
    mask = feature_table.is_point(table)
    n_kept = int(mask.sum())
    refuse_larger_than_memory(
        (n_kept, n_kept), 16, "the cosines of the kept features", "Keep fewer (select), or run the command, in tiles"
    )
    matrix = gram_of((block[:, mask] for block in blocks), n_kept, long, c.active_above)
    indices, distances = neighbors.exact(matrix, min(c.n_neighbors, n_kept), c.metric)
    errors = neighbors.errors_of(matrix, indices, distances, c.metric)
    embedding, notes = embed(indices, distances, c.umap)
    flat, _ = (embedding, ()) if embedding.shape[1] == 2 else embed(indices, distances, c.umap, n_components=2)
    embedded = cluster_embedding(embedding, c.hdbscan)
    taken = None
    if c.cluster.method == "communities":
        taken, _ = communities.choose_resolution(indices, distances, len(data), c, errors)
        result, members = methods.of_communities(indices, distances, len(data), c, budget.budget(c), taken, errors)
        reasons = communities.why_noise(result.labels, members[0], indices, distances, c)
    elif c.cluster.method == "dbscan":
        if c.tree_samples is None:
            found = dbscan.of_embedding(embedding, c, allowed=budget.budget(c))
        else:
            found = by_dbscan(matrix, indices, distances, c)
        result, reasons, c = found.clustering, found.reasons, dbscan.with_eps(c, found.eps)
    else:
        if c.cluster.method == "umap":
            more = [
                methods.member(indices, distances, len(data), c, number, errors=errors)
                for number in range(1, c.n_members)
            ]
            result = consensus.of_members(embedded, more, c, budget.budget(c))
            reasons = consensus.why_noise(result.labels, embedded.labels)
        else:
            result = by_distances(matrix, c)
            reasons = consensus.why_noise(result.labels, result.labels)
    del matrix
    checked = Halves(None, None, ())
    if (c.cluster.method == "communities" and c.quality.halves) if check_halves is None else check_halves:
        checked = compare_halves(data, mask, result.labels, c, taken, long)
    place = feature_table.point_rows(table)
    if n_copies:
        notes = (f"{n_copies} of {len(place)} kept features are exact duplicates, clustered as what they copy", *notes)
    indices, distances = duplicates.spread_neighbors(indices, distances, place)
    return FeatureClusters(
        feature_table.with_clusters(table, result, flat, hdbscan_label=embedded.labels, noise_reason=reasons),
        result.labels[place], result.probabilities[place], result.persistence, embedding[place], indices, distances,
        (*filter(None, [without_effect(c), idle]), *notes, *result.notes, *checked.notes), c.cluster.method,
        checked.stability, checked.found_again,
    )  # fmt: skip
