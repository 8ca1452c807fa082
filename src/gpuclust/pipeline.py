"""The stages of a run, in order, on a Dask client; each is skipped when its key and files say it is done.

The driver only orchestrates: whatever computes is a task on a worker. `Pipeline.run` is what ``gpuclust.run`` calls.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust import checks, device, duplicates, extract, measure, memory, models, schema, stages, store, tiles
from gpuclust.config import DEMO, Config
from gpuclust.errors import StoreError
from gpuclust.folder import Folder, content_key, fingerprint
from gpuclust.halves import RULE
from gpuclust.progress import Progress
from gpuclust.scheduler import Scheduler, check_places

log = logging.getLogger("gpuclust")


class Pipeline:
    """One run, stage by stage.

    Parameters
    ----------
    config : Config
    folder : Folder
    scheduler : callable
        Gives the `Scheduler`; called when the first stage has something to compute, so that a run with nothing to do
        starts no workers.
    progress : Progress
    report : bool
        Make ``report.html``.
    """

    def __init__(
        self, config: Config, folder: Folder, scheduler: Callable[[], Scheduler], progress: Progress, report: bool
    ) -> None:
        self.config = config
        self.folder = folder
        self.out = folder.path.resolve()
        self._scheduler = scheduler
        self.progress = progress
        self.report = report
        self.plan: memory.Plan | None = None
        self.current = ""

    @property
    def client(self) -> Any:
        return self._scheduler().client

    def run(self, imported: bool = False) -> None:
        """Compute what is missing, in order; from the reductions on, where the activations were imported."""
        c = self.config
        self.extract_key = self._facts()["key"] if imported else self.activations(c)
        self._clusters(c, self.extract_key)
        if self.report:
            self.stage("report", content_key("report", self.extract_key), [schema.REPORT], self.write_report)

    def activations(self, c: Config) -> str:
        """Compute prompts and activations where they are missing; return the key that they have."""
        key = content_key(
            "prompts", c.model.name, c.model.revision, [_source_state(source) for source in c.prompts], c.n_prompts,
            c.min_tokens, c.max_tokens, c.seed, c.deduplicate, c.extract.prepend_bos,
        )  # fmt: skip
        self._refuse_other_prompts(c, key)
        self.stage("prompts", key, [schema.PROMPTS], self.prompts)
        weights = [_weights_state("model", c.model.name), _weights_state("sae", c.sae.path)]
        extraction = c.extract.model_dump(exclude={"batch_tokens", "activation_threshold"})
        read = self._facts()["attributes"]["prompts_sha256"]
        key = content_key(
            "extract", key, read, weights, c.model.model_dump(), c.sae.model_dump(), extraction, c.store.model_dump()
        )
        self.extract_key = key
        self._refuse_other_extraction(key)
        self.stage("extract", key, [schema.ACTIVATIONS, schema.SHARDS], self.extract)
        return key

    def _refuse_other_prompts(self, c: Config, key: str) -> None:
        """Leave a folder alone whose activations are of prompts that are not there any more."""
        known, done = self.folder.record["stages"].get("prompts"), store.shards_done(self.out / schema.SHARDS)
        if known is None or known["key"] == key or not done:
            return
        files = [source.path for source in c.prompts if source.path is not None and source.path != "demo"]
        missing = [path for path in files if not Path(path).exists()]
        why = f"{', '.join(missing)} is not there" if missing else f"{', '.join(files) or 'a source'} has changed"
        raise StoreError(
            f"{self.out} holds {done} shards that were computed with other prompts: {why}. Restore it, give another "
            "--out, or delete that folder; nothing in it was changed"
        )

    def _refuse_other_extraction(self, key: str) -> None:
        """Leave a store alone that holds activations of something else."""
        path, done = self.out / schema.ACTIVATIONS, store.shards_done(self.out / schema.SHARDS)
        if done and path.exists() and store.attributes(path).get("extraction_key") != key:
            raise StoreError(
                f"{path} holds {done} shards that were computed with other settings, prompts or weights. Give "
                "another --out, restore what was changed, or delete that folder; nothing in it was changed"
            )

    def _clusters(self, c: Config, key: str) -> None:
        key = content_key("reduce", key, c.extract.activation_threshold)
        self.stage("reduce", key, [schema.MOMENTS, schema.EXAMPLES], self.reduce)
        key = content_key("select", key, c.select.model_dump(), c.fewest_features, [duplicates.rule(c)])
        self.stage("select", key, [schema.SELECTED], self.select)
        tree = None if c.umap.enabled else c.hdbscan.min_samples
        halves = [RULE, c.seed] if self._halves() else None
        key = content_key("neighbors", key, c.neighbors.model_dump(), c.n_neighbors, c.metric, tree, halves)
        views = [str(tiles.view_path(Path(), half, schema.NEIGHBORS)) for half in tiles.HALVES if halves]
        self.stage("neighbors", key, [schema.NEIGHBORS, *views], self.neighbors)
        key = content_key("embed", key, c.umap.model_dump())
        self.stage("embed", key, [schema.MAP, *([schema.EMBEDDING] if c.umap.enabled else [])], self.embed)
        key = content_key("cluster", key, c.hdbscan.model_dump(), c.consensus.model_dump(), c.quality.duplicates)
        self.stage("cluster", key, [schema.FEATURES, schema.CONDENSED_TREE, schema.PERSISTENCE], self.cluster)
        key = content_key("quality", key, c.quality.model_dump(), c.seed)
        self.stage("quality", key, [schema.QUALITY], self.quality)
        key = content_key("analyse", key, c.analyse.model_dump())
        tables = [schema.CLUSTERS, schema.CLUSTER_ACTIVATIONS, schema.CLUSTER_SIMILARITY, schema.EXAMPLE_SPANS]
        self.stage("analyse", key, tables, self.analyse)

    # ------------------------------------------------------------ how a stage runs

    def stage(self, name: str, key: str, files: list[str], compute: Callable[[], dict[str, Any]]) -> None:
        """Run one stage unless it is done, with its time and peak memory recorded."""
        if self.folder.done(name, key, files):
            self.progress.skipped(name)
            return
        self.folder.begin(name)
        scheduler = self._scheduler()
        check_places(scheduler, self.config, self.out)
        if scheduler.device == "cuda" and name not in ("prompts", "extract"):  # these need the room of the weights
            self.client.run(models.release)
        self.client.run(measure.reset_peak)
        self.client.run(device.reset_peak)
        measure.reset_peak()
        started = time.perf_counter()
        with self.progress.stage(name):
            self.current = name
            facts = compute()
        peaks = self.client.run(measure.peak_bytes)
        facts |= {
            "seconds": round(time.perf_counter() - started, 3),
            "peak_bytes": {"driver": measure.peak_bytes(), **dict(sorted(peaks.items()))},
            "projected_bytes": self._projected(name, "peak"),
            "scheduler": scheduler.name,
        }
        if scheduler.device == "cuda":
            facts["device_peak_bytes"] = dict(sorted(self.client.run(device.peaks).items()))
            facts["device_projected_bytes"] = self._projected(name, "device_peak")
        self.folder.record["scheduler"] = {"name": scheduler.name, "reason": scheduler.reason}
        self.folder.record["device"] = scheduler.device
        self.folder.complete(name, key, **facts)

    def _projected(self, name: str, what: str) -> int | None:
        if self.plan is None:
            return None
        return next((getattr(stage, what) for stage in self.plan.stages if stage.stage == name), None)

    def _submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run one task on a worker and return its result; the driver's copy of an error is the worker's."""
        return self.client.submit(device.guarded, self.current, function, *args, pure=False, **kwargs).result()

    def _tasks(self, function: Callable[..., Any], items: list[tuple[Any, ...]], what: str) -> Iterator[Any]:
        """Run one task an item, yield results as they come, and stop all at the first error."""
        from distributed import as_completed

        futures = [self.client.submit(device.guarded, self.current, function, *item, pure=False) for item in items]
        with self.progress.counting(what, len(futures)) as advance:
            try:
                for future in as_completed(futures):
                    result = future.result()
                    future.release()
                    advance()
                    yield result
            except BaseException:
                self.client.cancel(futures)
                raise

    # ------------------------------------------------------------ stages

    def prompts(self) -> dict[str, Any]:
        facts, warnings = self._submit(stages.prompts_task, self.config, self.out, self._scheduler().device)
        self._make_plan(facts)
        return {**facts, "warnings": warnings}

    def _make_plan(self, facts: dict[str, Any], n_kept: int | None = None, n_clusters: int = 0) -> memory.Plan:
        shapes = memory.Shapes(
            facts["rows"], facts["d_sae"], n_kept or facts["d_sae"], facts["d_in"], facts["model_bytes"],
            sae_bytes=facts.get("sae_bytes", 0), whole_bytes=facts.get("whole_bytes", 0), n_clusters=n_clusters,
            n_groups=2 if self._halves() else 1, n_views=3 if self._halves() else 1,
        )  # fmt: skip
        scheduler = self._scheduler()
        allowed = memory.budget(self.config, len(scheduler.workers), scheduler.device)
        # Before the filter the number of kept features is not known, and then not that of clusters.
        held = memory.PLANNED if n_clusters else memory.TO_CLUSTERS if n_kept else ("extract",)
        self.plan = memory.plan(self.config, shapes, allowed, held, scheduler.memory)
        return self.plan

    def _facts(self) -> dict[str, Any]:
        entry: dict[str, Any] = self.folder.record["stages"]["prompts"]
        return entry

    def extract(self) -> dict[str, Any]:
        facts = self._facts()
        self._make_plan(facts)
        path, shards = self.out / schema.ACTIVATIONS, self.out / schema.SHARDS
        if path.exists() and store.attributes(path).get("extraction_key") != self.extract_key:
            log.warning("extract: %s was begun with other settings, has no shards yet, and is made anew", path)
            shutil.rmtree(path)
        if not path.exists():
            attributes = {
                **facts["attributes"],
                "aggregate": self.config.extract.aggregate,
                "exclude_special_tokens": self.config.extract.exclude_special_tokens,
                "extraction_key": self.extract_key,
            }
            store.create(path, facts["rows"], facts["d_sae"], self.config.store, attributes)
        tokens = pd.read_parquet(self.out / schema.PROMPTS, columns=["tokens"])["tokens"].tolist()
        items = []
        again: dict[str, int] = {}
        for index, (first, stop) in enumerate(store.shard_ranges(path)):
            reason = store.shard_done(path, shards, index, self.extract_key)
            if reason is not None:
                again[reason] = again.get(reason, 0) + 1
                items.append((index, first, tokens[first:stop]))
        n_shards = len(store.shard_ranges(path))
        for reason, count in again.items():
            log.info("extract: %d of %d shards to compute: %s", count, n_shards, reason)
        on = self._scheduler().device
        jobs = [(self.config, self.out, index, first, part, self.extract_key, on) for index, first, part in items]
        total = {"prompts": 0, "tokens": 0, "bytes": 0}
        for done in self._tasks(extract.run_shard, jobs, "shards"):
            total = {name: total[name] + done[name] for name in total}
        stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return {
            "rows": facts["rows"], "tokens": facts["tokens"], "computed": total, "stored_bytes": stored,
            "shards": n_shards, "shards_computed": len(items),
        }  # fmt: skip

    def reduce(self) -> dict[str, Any]:
        options, on = self.config.extract, self._scheduler().device
        facts = self._submit(
            stages.reduce_task, self.out, options.activation_threshold, self._rows(), options.top_examples, on
        )
        return dict(facts)

    def _rows(self) -> int:
        return (self.plan or self._make_plan(self._facts())).rows

    def select(self) -> dict[str, Any]:
        c, rows = self.config, self._rows()
        copies_by = duplicates.rule(c)
        return dict(self._submit(stages.select_task, self.out, c.select, c.fewest_features, copies_by, rows))

    def neighbors(self) -> dict[str, Any]:
        kept = self.kept()
        plan = self._make_plan(self._facts(), len(kept))
        log.info("neighbors: %d features kept, blocks of %d prompts, tiles of %d features, %s a pass",
                 len(kept), plan.rows, plan.tile, plan.tiles_per_pass)  # fmt: skip
        workers, on = self._scheduler().workers, self._scheduler().device
        method = "exact" if self.config.neighbors.method == "auto" else self.config.neighbors.method
        if method == "sketch":
            if on == "cuda":
                log.info("neighbors: the sketch is computed on the host")
            facts = self._submit(stages.sketch_task, self.out, kept, self.config, plan)
        else:
            groups = tiles.halves(self._facts()["rows"], self.config.seed) if self._halves() else None
            facts = tiles.exact_neighbors(
                self.client, workers, self.out, kept, self.config, plan, self.progress, groups, device=on
            )
        return {"method": method, "metric": self.config.metric, **facts}

    def _halves(self) -> bool:
        """Whether each half of the prompts has neighbours of its own: two Grams from the one pass."""
        return self.config.quality.halves and self.config.neighbors.method != "sketch"

    def kept(self) -> np.ndarray[Any, Any]:
        """Numbers of the features that are clustered, sorted: the kept ones, of copies the first."""
        table = pd.read_parquet(self.out / schema.SELECTED, columns=["feature", "kept", "duplicate_of"])
        kept: np.ndarray[Any, Any] = table.loc[duplicates.is_point(table), "feature"].to_numpy()
        return kept

    def embed(self) -> dict[str, Any]:
        return dict(self._submit(stages.embed_task, self.out, self.config, self._scheduler().device))

    def cluster(self) -> dict[str, Any]:
        rows = self._facts()["rows"]
        jobs = [(self.out, self.config, tiles.WHOLE, rows, number) for number in range(1, self.config.n_members)]
        allowed = self._make_plan(self._facts(), len(self.kept())).budget
        return dict(
            self._submit(
                stages.cluster_task, self.out, self.config, self._members(jobs), allowed, self._scheduler().device
            )
        )

    def _members(self, jobs: list[tuple[Any, ...]]) -> list[Any]:
        """Cluster once a job, as tasks, and return the labels in the order of the jobs."""
        items = [(number, stages.member_task, *job, self._scheduler().device) for number, job in enumerate(jobs)]
        return [labels for _, labels in sorted(self._tasks(stages.numbered, items, "clusterings"), key=_number)]

    def quality(self) -> dict[str, Any]:
        c, rows, kept = self.config, self._facts()["rows"], self.kept()
        plan = self._make_plan(self._facts(), len(kept))
        views: list[tuple[str, Config, str, int]] = []
        skipped: list[str] = []
        exact = c.neighbors.method != "sketch"
        if self._halves():
            sizes = np.bincount(tiles.halves(rows, c.seed).groups, minlength=2)
            views += [(half, c, half, int(size)) for half, size in zip(tiles.HALVES, sizes, strict=True)]
        if c.quality.null and exact:
            groups = tiles.PromptGroups(np.zeros(rows, np.int64), {tiles.NULL: np.ones(1)}, permute=c.seed)
            workers = self._scheduler().workers
            tiles.exact_neighbors(
                self.client, workers, self.out, kept, c, plan, self.progress, groups, device=self._scheduler().device
            )
            views.append((tiles.NULL, c, tiles.NULL, rows))
        if c.umap.enabled:
            for seed in range(1, c.quality.seeds + 1):
                umap = c.umap.model_copy(update={"random_state": c.umap.random_state + 1000 * seed})
                views.append((f"seed{seed}", c.model_copy(update={"umap": umap}), tiles.WHOLE, rows))
        elif c.quality.seeds:
            skipped.append("seeds: nothing is random without UMAP")
        if not exact and (c.quality.halves or c.quality.null):
            skipped.append("halves and null: neighbors.method=sketch has no Gram matrix")
        members = [1 if name == tiles.NULL else c.n_members for name, *_ in views]  # see checks.quality_task
        jobs = [
            (self.out, config, view, n, m)
            for (_, config, view, n), count in zip(views, members, strict=True)
            for m in range(count)
        ]
        labels = iter(self._members(jobs))
        found = {name: [next(labels) for _ in range(count)] for (name, *_), count in zip(views, members, strict=True)}
        most = max((int(one.max(initial=0)) + 1 for several in found.values() for one in several), default=1)
        plan = self._make_plan(self._facts(), len(kept), max(most, self._n_clusters()))
        return dict(self._submit(checks.quality_task, self.out, c, plan, found, skipped))

    def analyse(self) -> dict[str, Any]:
        plan = self._make_plan(self._facts(), len(self.kept()), self._n_clusters())
        return dict(self._submit(stages.analyse_task, self.out, self.config, plan.rows))

    def _n_clusters(self) -> int:
        return max(1, int(self.folder.record["stages"]["cluster"]["clusters"]))

    def write_report(self) -> dict[str, Any]:
        return dict(self._submit(stages.report_task, self.out))


def _number(pair: tuple[int, Any]) -> int:
    return pair[0]


def _weights_state(part: str, name: str | None) -> Any:
    """What a local folder of weights holds; None for a hub's, whose commit the store keeps."""
    if name is None:
        return None
    return fingerprint(DEMO / part if name == "demo" else Path(name).expanduser())


def _source_state(source: Any) -> Any:
    """A source of prompts and, for a local file, its content: an edited file is another input."""
    data = source.model_dump()
    if source.path is not None:
        data["file"] = fingerprint(DEMO / "prompts.jsonl" if source.path == "demo" else Path(source.path))
    return data
