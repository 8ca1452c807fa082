"""What a sweep computes, as Dask tasks: each thing that settings share once, then every setting with every seed.

- moments of all subsets of prompts and their halves, in one pass over the store;
- neighbours, by subset, kept features and metric, for the largest number of neighbours that is asked for, by the pass
  that a run has, in as many passes as memory asks for;
- embeddings, by neighbours and UMAP's settings; spanning trees, by embedding and min_samples.

The driver submits and waits. A task that fails makes every trial that needs it a row with its error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.compute import row_errors
from gpuclust.compute.halves import half_of
from gpuclust.config_sections import ClusterConfig
from gpuclust.engine import failures, token_rows
from gpuclust.engine.exact_pass import exact_neighbors
from gpuclust.engine.progress import Progress
from gpuclust.engine.prompt_rows import prompt_lengths
from gpuclust.engine.scheduler import Scheduler
from gpuclust.engine.views import PromptGroups, View, neighbors_held
from gpuclust.formatting import gigabytes
from gpuclust.hardware import budget
from gpuclust.storage import store
from gpuclust.storage.checksums import seal, sealed
from gpuclust.storage.keys import content_key
from gpuclust.sweep import trials
from gpuclust.sweep.sharing import (
    TREE,
    Counts,
    Extraction,
    Request,
    Trial,
    member_names,
    moments_name,
    n_features,
    near_names,
    tree_name,
    trial_name,
)
from gpuclust.sweep.subsets import Layer, Subset, group_prompts, layers
from gpuclust.types import Array

log = logging.getLogger("gpuclust")


CACHE, TRIALS = "cache", "trials"
MOMENT_BYTES = 256 << 20  # of a block of prompts and its copies in float64, whose moments are taken


class Computation:
    """The computing part of a sweep.

    Parameters
    ----------
    scheduler : Scheduler
    progress : Progress
    out : Path
        Folder of the sweep, absolute.
    counts : Counts
        Added to.
    """

    def __init__(self, scheduler: Scheduler, progress: Progress, out: Path, counts: Counts) -> None:
        self.client = scheduler.client
        self.said = scheduler.said
        self.workers = scheduler.workers
        self.device, self.memory = scheduler.device, scheduler.memory
        self.progress = progress
        self.out = out
        self.counts = counts
        self._counted: dict[Any, Array] = {}  # rows of every prompt, by activations and kind of rows
        if self.device != "cpu":
            log.info("sweep: clusters are cut out of the trees on the host")

    def path(self, name: str) -> Path:
        """File of a shared thing."""
        return self.out / CACHE / f"{name}.npz"

    def near_path(self, name: str) -> Path:
        """Neighbours, or a spanning tree that came with them."""
        return self.out / CACHE / (f"{name}.npy" if TREE in name else f"{name}.zarr")

    def trial_path(self, trial: Trial) -> Path:
        """File of a trial."""
        return self.out / TRIALS / f"{trial.key}.npz"

    def _submit(self, function: Any, *args: Any, **options: Any) -> Any:
        return failures.submit(self.client, "sweep", function, *args, **options)

    def compute(self, found: Sequence[Trial]) -> None:
        """Compute all trials that have no error and no file yet; what fails gets its error."""
        extractions = {id(t.extraction): t.extraction for t in found if t.error is None and t.extraction is not None}
        for extraction in extractions.values():
            self._shared(extraction, [t for t in found if t.error is None and t.extraction is extraction])
        self._cluster([trial for trial in found if trial.error is None])

    # ------------------------------------------------------------ moments, Gram matrices, neighbours

    def _shared(self, extraction: Extraction, own: Sequence[Trial]) -> None:
        """Moments, kept features and neighbours of all subsets of one store."""
        thresholds = sorted({trial.config.extract.activation_threshold for trial in own})
        for trial in own:
            trial.moments = moments_name(trial, thresholds)
        cut: list[Layer] = []
        for pattern in sorted({trial.pattern for trial in own}):
            used = {t.subset for t in own if t.pattern == pattern and t.subset}
            cut += layers(used, extraction.prompts, pattern, extraction.config.seed)
        missing = {t.moments: t.subset for t in own if t.subset and not sealed(self.path(t.moments))}
        if missing:
            self._moments(extraction, cut, missing, thresholds)
        requests = self._requests(own)
        passes: dict[Any, list[Request]] = {}  # counts of active rows, sums of products, and each kind of rows apart
        for request in requests:
            passes.setdefault((request.active_above, request.rows), []).append(request)
        for together in passes.values():
            self._neighbors(extraction, cut, together)

    def _moments(
        self, extraction: Extraction, cut: Sequence[Layer], missing: Mapping[str, Subset], thresholds: Sequence[float]
    ) -> None:
        """Write the moments of subsets, by the name of their file, from one pass over the store."""
        self.counts.store_reads += 1
        plan = self._plan(extraction, extraction.d_sae, 1, 0, held=())
        rows = max(1, min(plan.rows, MOMENT_BYTES // (extraction.d_sae * 16)))
        ranges = store.shard_ranges(extraction.run / schema.ACTIVATIONS)
        shares = [share for share in np.array_split(np.asarray(ranges), len(self.workers)) if len(share)]
        partials = [
            self._submit(
                trials.pass_task, extraction.run, int(share[0][0]), int(share[-1][1]), rows,
                [layer.codes for layer in cut], [layer.n_atoms for layer in cut], thresholds, self.device,
            )
            for share in shares
        ]  # fmt: skip
        places = _places(cut)
        written = []
        for name, subset in missing.items():
            number, (first, second) = places[subset]
            parts = [self._submit(trials.partial_moments, partial, number, [*first, *second]) for partial in partials]
            written.append(self._submit(trials.moments_task, self.path(name), thresholds, *parts))
        self.client.gather(written)

    def _neighbors(self, extraction: Extraction, cut: Sequence[Layer], requests: Sequence[Request]) -> None:
        """Write neighbours of subsets and their halves, by the pass that runs have; of one `active_above` and rows."""
        places = _places(cut)
        used = sorted({places[request.subset][0] for request in requests})
        first_group = dict(zip(used, np.cumsum([0, *(cut[number].n_atoms for number in used)]).tolist(), strict=False))
        n_groups = sum(cut[number].n_atoms for number in used)
        codes = np.stack([np.where(cut[n].codes < 0, -1, cut[n].codes + first_group[n]) for n in used])
        views = []
        for request in requests:
            number, halves = places[request.subset]
            chosen = [[first_group[number] + atom for atom in atoms] for atoms in halves]
            for near, groups in zip(request.near, ([*chosen[0], *chosen[1]], *chosen), strict=True):
                weights = np.zeros(n_groups, dtype=np.int64)
                weights[groups] = 1
                trees = {m: self.near_path(tree_name(near, m)) for m in sorted(request.min_samples)}
                views.append(View(weights, self.near_path(near), request.metric, request.k, request.kept, trees))
        features = np.unique(np.concatenate([request.kept for request in requests]))
        dense = sum(bool(view.trees) for view in views)
        lengths = prompt_lengths(extraction.run, {request.metric for request in requests})
        grouped = PromptGroups(codes, n_groups, None, lengths, requests[0].active_above, requests[0].rows)
        plan = self._plan(extraction, len(features), n_groups, dense, metric=requests[0].metric)
        facts = exact_neighbors(
            self.client, self.workers, extraction.run, features, grouped, views, plan, self.progress, self.device
        )
        if facts["passes"] > 1:
            log.warning(
                "sweep: the store is read %d times: Gram matrices of %d groups of prompts over %d features do not fit "
                "into what device.memory allows a worker, %s, at once", facts["passes"], n_groups, len(features),
                gigabytes(plan.budget if plan.device_budget is None else plan.device_budget),
            )  # fmt: skip
        for view in views:
            for path in (view.path, *view.trees.values()):
                seal(path)
        self.counts.store_reads += facts["passes"]
        self.counts.neighbors += len(requests)
        failures.everywhere(self.client, trials.release_memory)

    def _plan(
        self,
        extraction: Extraction,
        n_features: int,
        n_groups: int,
        dense: int,
        held: tuple[str, ...] = ("neighbors",),
        metric: str | None = None,
    ) -> budget.Plan:
        """Plan a pass as a run's is planned, and hold it to `held`; `dense` views have distances of all pairs.

        Raises
        ------
        MemoryBudgetError
            If not even one tile of every group fits.
        """
        c = extraction.config
        planned = c.model_copy(
            update={
                "cluster": ClusterConfig(method="distances" if dense else "umap"),
                "neighbors": c.neighbors.model_copy(update={"method": "exact", "metric": metric}),
            }
        )
        shapes = budget.Shapes(
            len(extraction.prompts), extraction.d_sae, n_features, n_groups=n_groups, n_views=max(dense, 1)
        )
        allowed = budget.budget(c, len(self.workers), self.device)
        return budget.plan(planned, shapes, allowed, held, self.memory)

    def _keep(self, own: Sequence[Trial]) -> None:
        """Find the kept features of trials; a filter that keeps too few is their error."""
        futures: dict[str, Any] = {}
        keys = []
        for trial in own:
            name, needed = trial.moments, trial.config.fewest_features
            threshold, select = trial.config.extract.activation_threshold, trial.config.select
            copies_by = trial.config.copies_by
            key = content_key(name, threshold, select.model_dump(), needed, copies_by)
            if key not in futures:
                futures[key] = self._submit(trials.kept_task, self.path(name), threshold, select, needed, copies_by)
            keys.append(key)
        for trial, key in zip(own, keys, strict=True):
            error = _error(futures[key])
            if error is not None:
                trial.error = self.said(error)
            else:
                trial.kept, trial.point = futures[key].result()

    def _requests(self, own: Sequence[Trial]) -> list[Request]:
        """Name the neighbours of trials, and list those that have no file yet."""
        self._keep(own)
        requests: dict[tuple[str, ...], Request] = {}
        for trial in own:
            if trial.error is not None or trial.point is None or trial.subset is None:
                continue
            c = trial.config
            if c.neighbors.method == "sketch":
                trial.error = "neighbors.method=sketch has no Gram matrix to share: compute it with gpuclust.run"
                continue
            trial.near = near_names(trial)
            points = np.unique(trial.point)
            request = requests.setdefault(
                trial.near, Request(trial.subset, points, c.metric, trial.near, c.active_above, _rows_of(trial))
            )
            request.k = min(max(request.k, c.n_neighbors), len(points))
            if c.tree_samples is not None:
                request.min_samples.add(c.tree_samples)
        return [request for request in requests.values() if not self._have(request)]

    def _have(self, request: Request) -> bool:
        if not all(sealed(self.near_path(near)) for near in request.near):
            return False
        if any(neighbors_held(self.near_path(near)) < request.k for near in request.near):
            return False
        trees = [tree_name(near, m) for near in request.near for m in request.min_samples]
        return all(sealed(self.near_path(tree)) for tree in trees)

    # ------------------------------------------------------------ embeddings, trees, trials

    def _cluster(self, found: Sequence[Trial]) -> None:
        """Embed and cluster: all tasks are submitted at once, and results arrive in any order."""
        from distributed import as_completed

        embeddings: dict[str, Any] = {}
        trees: dict[Any, Any] = {}
        waiting: dict[Any, list[Trial]] = {}
        futures: dict[str, Any] = {}
        for trial in found:
            c = trial.config
            parts = [member_names(c, near) for near in trial.near]
            threshold = c.extract.activation_threshold
            trial.key = trial_name(trial)
            if sealed(self.trial_path(trial)):
                continue
            if trial.key not in futures:
                edges = None
                if c.cluster.method != "communities":
                    edges = [
                        [self._tree(trial, part, number, name, embeddings, trees) for number, name in enumerate(names)]
                        for part, names in enumerate(parts)
                    ]
                near = [self.near_path(name) for name in trial.near]
                futures[trial.key] = self._submit(
                    trials.trial_task, self.trial_path(trial), near, self._observed(trial), self.path(trial.moments),
                    threshold, c, budget.budget(c, len(self.workers), self.device), trial.kept, trial.point, edges,
                    self.device,
                )  # fmt: skip
            waiting.setdefault(trial.key, []).append(trial)
        self.counts.embeddings += len(embeddings)
        self.counts.trees += sum(key[1] is not None for key in trees)
        named = {future.key: name for name, future in futures.items()}
        del embeddings, trees
        with self.progress.counting("trials", len(futures)) as advance:
            for future in as_completed(list(futures.values())):
                error = _error(future)
                name = named[future.key]
                del futures[name]
                if error is None:
                    self.counts.trials += 1
                else:
                    log.warning("sweep: setting %d fails: %s", waiting[name][0].setting.number, self.said(error))
                    for trial in waiting[name]:
                        trial.error = self.said(error)
                advance()

    def _tree(
        self, trial: Trial, part: int, number: int, name: str, embeddings: dict[str, Any], trees: dict[Any, Any]
    ) -> Any:
        """The spanning tree of one part and member, from its embedding or exact distances; of DBSCAN the embedding."""
        c, near = trial.config, trial.near[part]
        samples = None if c.used_dbscan and c.tree_samples is None else c.hdbscan.min_samples
        metric = None if c.used_dbscan else c.hdbscan.metric
        key = (name, samples, metric)
        if key in trees:
            return trees[key]
        if c.tree_samples is not None:
            trees[key] = self._submit(trials.saved_tree, self.near_path(name), metric)
            return trees[key]
        after = embeddings.get(name)
        if after is None and not sealed(self.path(name)):
            after = self._submit(
                trials.embed_task, self.near_path(near), self.path(name), c, self._observed(trial)[part], number,
                self.device,
            )  # fmt: skip
            embeddings[name] = after
        if samples is None:
            trees[key] = self._submit(trials.points_task, self.path(name), after)
        else:
            trees[key] = self._submit(trials.tree_task, self.path(name), samples, self.device, after)
        return trees[key]

    def _observed(self, trial: Trial) -> list[int]:
        """Prompts of each part of a trial, all and each half; of rows of tokens what leaves as much by chance."""
        assert trial.subset is not None
        assert trial.extraction is not None
        n, of = trial.subset.n, trial.extraction
        half = half_of(n, trial.config.seed)
        prompts = [n, *np.bincount(half, minlength=2).tolist()]
        if (rows := _rows_of(trial)) is None:
            return prompts
        if (of.key, rows) not in self._counted:
            counted = np.bincount(token_rows.prompts_of(of.run, rows), minlength=len(of.prompts))
            self._counted[of.key, rows] = counted
        chosen = group_prompts(of.prompts, trial.pattern, trial.subset.source, trial.subset.length)[:n]
        own = self._counted[of.key, rows][chosen]
        held = [own.sum(), *np.bincount(half, own, minlength=2)]
        return [row_errors.effective(int(a), b, rows.window) for a, b in zip(held, prompts, strict=True)]

    # ------------------------------------------------------------ what the tables need

    def facts(self, found: Sequence[Trial]) -> dict[tuple[int, int], dict[str, Any]]:
        """Facts of every trial that has no error, by setting and seed."""
        by_setting: dict[int, list[Trial]] = {}
        for trial in found:
            if trial.error is None:
                by_setting.setdefault(trial.setting.number, []).append(trial)
        reference = {trial.seed: self.trial_path(trial) for trial in by_setting.get(0, [])}
        futures = [
            self._submit(
                trials.agreement_task, [self.trial_path(trial) for trial in own],
                [reference.get(trial.seed) for trial in own], n_features(own[0]),
            )
            for own in by_setting.values()
        ]  # fmt: skip
        facts: dict[tuple[int, int], dict[str, Any]] = {}
        for own, rows in zip(by_setting.values(), self.client.gather(futures), strict=True):
            facts |= {(trial.setting.number, trial.seed): row for trial, row in zip(own, rows, strict=True)}
        return facts

    def between(self, pairs: Iterable[tuple[Trial, Trial]]) -> list[dict[str, float]]:
        """Agreement of trials on different prompts."""
        futures = [
            self._submit(trials.between_task, self.trial_path(a), self.trial_path(b), n_features(a)) for a, b in pairs
        ]
        gathered: list[dict[str, float]] = self.client.gather(futures)
        return gathered

    def gather_labels(self, target: Path, done: Sequence[Trial]) -> None:
        """Write the labels of all trials."""
        paths = [self.trial_path(trial) for trial in done]
        numbers = [(trial.setting.number, trial.seed) for trial in done]
        self._submit(trials.labels_task, target, paths, numbers, n_features(done[0])).result()


def _error(future: Any) -> BaseException | None:
    """The error of a task, None where it is done; one that was cancelled, as by a lost scheduler, ends the sweep."""
    error: BaseException | None = future.exception()
    if future.cancelled():
        future.result()  # raises why
    return error


def _rows_of(trial: Trial) -> token_rows.Rows | None:
    assert trial.extraction is not None
    return token_rows.rows_of(trial.config, trial.extraction.run)


def _places(cut: Sequence[Layer]) -> dict[Subset, tuple[int, tuple[list[int], list[int]]]]:
    """The layer of every subset, and the atoms of its halves."""
    return {subset: (number, halves) for number, layer in enumerate(cut) for subset, halves in layer.atoms.items()}
