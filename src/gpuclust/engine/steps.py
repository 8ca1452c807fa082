"""What the driver does in each stage: hand tasks to workers, and return the facts that the record keeps.

A step is given all that it uses in a `Context`: the configuration, the keys, and the entries of the stages before it.
It returns its facts and the memory plan that it computed under, None where none is made.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpuclust import schema, stage_table
from gpuclust.compute import row_errors
from gpuclust.compute.dbscan import with_eps
from gpuclust.compute.halves import half_of
from gpuclust.config import Config
from gpuclust.config_sections import ClusterConfig
from gpuclust.engine import analyse_task, exact_pass, failures, prompt_rows, quality_task, tasks, token_rows
from gpuclust.engine.progress import Progress
from gpuclust.engine.quality_task import HDBSCAN
from gpuclust.engine.scheduler import Scheduler
from gpuclust.engine.views import PromptGroups, View, view_path
from gpuclust.errors import StoreError
from gpuclust.extraction import extract_shard
from gpuclust.hardware import budget
from gpuclust.storage import disk, markers, store, token_store
from gpuclust.tables import feature_table
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

MANY = 0.05  # share of the features
Facts = dict[str, Any]
Step = Callable[["Context"], tuple[Facts, budget.Plan | None]]


@dataclass(frozen=True, eq=False)
class Context:
    """What a step may use.

    Attributes
    ----------
    stage : str
        Its name.
    config : Config
    out : Path
        The run's folder, absolute.
    key : str
        The stage's.
    done : mapping
        The record's entries of the stages that are done, by name.
    scheduler : Scheduler
    progress : Progress
    lost : bool
        The record was lost: what is there has to be compared with what is asked for.
    """

    stage: str
    config: Config
    out: Path
    key: str
    done: Mapping[str, Facts]
    scheduler: Scheduler
    progress: Progress
    lost: bool = False

    @property
    def on(self) -> str:
        """Where the workers compute: cpu or cuda."""
        return self.scheduler.device

    @property
    def n_prompts(self) -> int:
        """Prompts of the run."""
        return int(self.done["prompts"]["rows"])

    def observed(self, view: str) -> int:
        """Prompts of a view; of windows and tokens as many as leave as much by chance."""
        found = self.done["neighbors"]
        return row_errors.effective(found["observed"][view], found["observed_prompts"][view], self.config.used_window)

    @property
    def n_clusters(self) -> int:
        """Clusters that were found, at least 1."""
        return max(1, int(self.done["cluster"]["clusters"]))

    def kept(self) -> Array:
        """Numbers of the features that are clustered, sorted: the kept ones, of copies the first."""
        table = pd.read_parquet(self.out / schema.SELECTED, columns=["feature", "kept", "duplicate_of"])
        kept: Array = table.loc[feature_table.is_point(table), "feature"].to_numpy()
        return kept

    def plan(self, facts: Mapping[str, Any], n_kept: int = 0, n_clusters: int = 0) -> budget.Plan:
        """Plan the memory: from the facts of the stage prompts, and kept features and clusters where known.

        Parameters
        ----------
        facts : mapping
            Of the stage prompts.
        n_kept, n_clusters : int
            0 where not known.
        """
        halved = self.config.halved
        shapes = budget.Shapes(
            facts["rows"], facts["d_sae"], n_kept or facts["d_sae"], facts["d_in"], facts["model_bytes"],
            sae_bytes=facts.get("sae_bytes", 0), whole_bytes=facts.get("whole_bytes", 0), n_clusters=n_clusters,
            n_groups=2 if halved else 1, n_views=3 if halved else 1, n_tokens=facts.get("tokens", 0),
        )  # fmt: skip
        allowed = budget.budget(self.config, len(self.scheduler.workers), self.on)
        # Before the filter the number of kept features is not known, and then not that of clusters.
        held = stage_table.PLANNED if n_clusters else budget.TO_CLUSTERS if n_kept else ("extract",)
        if self.stage != "extract":  # it is done: here, by another run, or by whom activations are imported from
            held = tuple(name for name in held if name != "extract")
        return budget.plan(self.config, shapes, allowed, held, self.scheduler.memory)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run one task on a worker and return its result; the driver's copy of an error is the worker's.

        Parameters
        ----------
        function : callable
        *args
            What it is called with.
        """
        return failures.submit(self.scheduler.client, self.stage, function, *args).result()

    def each(
        self, function: Callable[..., Any], items: list[tuple[Any, ...]], what: str, numbers: Sequence[int] = ()
    ) -> Iterator[Any]:
        """Run one task an item, yield results as they come, and stop all at the first error.

        Parameters
        ----------
        function : callable
        items : list of tuple
            What it is called with, a tuple a task.
        what : str
            What is counted, for the progress: a plural in s.
        numbers : sequence of int, optional
            What each is called; default from 0.
        """
        from distributed import as_completed

        client = self.scheduler.client
        futures = [
            failures.submit(client, self.stage, function, *item, label=f"{what.removesuffix('s')} {number}")
            for number, item in zip(numbers or range(len(items)), items, strict=True)
        ]
        with self.progress.counting(what, len(futures)) as advance:
            try:
                for future in as_completed(futures):
                    result = future.result()
                    future.release()
                    advance()
                    yield result
            except BaseException:
                client.cancel(futures)
                raise

    def members(self, jobs: list[tuple[Any, ...]]) -> list[Any]:
        """Cluster once a job, as tasks, and return the labels in the order of the jobs.

        On the host a clustering takes one core, and a task makes `budget.AT_ONCE` where there are more than workers.
        """
        groups: list[list[int]] = []
        for embeds in (True, False):
            own = [number for number, (_, config, *_) in enumerate(jobs) if _embeds(config) == embeds]
            on_host = self.on == "cpu" or not embeds
            together = budget.AT_ONCE if on_host and len(own) > len(self.scheduler.workers) else 1
            groups += [own[at : at + together] for at in range(0, len(own), together)]
        items = [(number, tasks.members_task, [jobs[job] for job in own], self.on) for number, own in enumerate(groups)]
        found = sorted(self.each(tasks.numbered, items, "clustering tasks"), key=_number)
        places = [job for own in groups for job in own]
        labels = dict(zip(places, (one for _, several in found for one in several), strict=True))
        return [labels[job] for job in range(len(jobs))]


def _number(pair: tuple[int, Any]) -> int:
    return pair[0]


def _embeds(config: Config) -> bool:
    """Whether a member is clustered on an embedding of its own."""
    return config.cluster.method != "communities" and config.tree_samples is None


def prompts_step(x: Context) -> tuple[Facts, budget.Plan | None]:
    facts, warnings = x.submit(tasks.prompts_task, x.config, x.out, x.on, x.lost)
    plan = x.plan(facts)  # what cannot be extracted is refused while the model may still be another
    return {**facts, "warnings": warnings}, plan


def extract_step(x: Context) -> tuple[Facts, budget.Plan | None]:
    facts = x.done["prompts"]
    plan = x.plan(facts)
    path, shards = x.out / schema.ACTIVATIONS, x.out / schema.SHARDS
    attributes = {
        **facts["attributes"],
        "aggregate": x.config.extract.aggregate,
        "exclude_special_tokens": x.config.extract.exclude_special_tokens,
        "extraction_key": x.key,
    }
    linked = _is_linked(path, shards, x.key)
    tokens = pd.read_parquet(x.out / schema.PROMPTS, columns=["tokens"])["tokens"].tolist()
    if path.exists() and markers.begun_with(path, shards) not in (None, x.key):
        log.warning("extract: %s was begun with other settings, has no shards yet, and is made anew", path)
        shutil.rmtree(path)
        shutil.rmtree(x.out / schema.TOKENS, ignore_errors=True)
    for target, make in _templates(x, tokens, attributes):
        if not target.exists():
            make(target)
        elif not linked and (restored := store.restore(target, make)):
            log.warning("extract: %s of %s are not what is written now, and are put back", ", ".join(restored[:3]),
                        target)  # fmt: skip
    items = []
    again: dict[str, int] = {}
    for index, (first, stop) in enumerate(store.shard_ranges(path)):
        reason = markers.shard_done(path, shards, index, x.key)
        if reason is not None:
            again[reason] = again.get(reason, 0) + 1
            items.append((index, first, tokens[first:stop]))
    n_shards = len(store.shard_ranges(path))
    for reason, count in again.items():
        log.info("extract: %d of %d shards to compute: %s", count, n_shards, reason)
    jobs = [(x.config, x.out, index, first, part, x.key, x.on) for index, first, part in items]
    left = sum(len(part) for _, _, part in items)
    disk.check(x.out, x.config, left, facts["d_sae"])
    computed = {index for index, *_ in items}
    kept = [index for index in range(n_shards) if index not in computed]
    there, held = facts["rows"] - left, sum(markers.stored_bytes(path, shards, index) for index in kept)
    total = {"prompts": 0, "tokens": 0, "bytes": 0}
    for done in x.each(extract_shard.run_shard, jobs, "shards", [index for index, *_ in items]):
        total = {name: total[name] + done[name] for name in total}
        there, held = there + done["prompts"], held + done["stored"]
        if left > total["prompts"]:
            disk.check(x.out, x.config, left - total["prompts"], facts["d_sae"], held, there)
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    more: Facts = {}
    if x.config.keeps_tokens:
        more = x.submit(tasks.coordinates_task, x.out)
    return {
        "rows": facts["rows"], "tokens": facts["tokens"], "computed": total, "stored_bytes": stored,
        "shards": n_shards, "shards_computed": len(items), **more,
    }, plan  # fmt: skip


def _templates(
    x: Context, tokens: list[Array], attributes: Mapping[str, Any]
) -> list[tuple[Path, Callable[[Path], None]]]:
    """The stores that an extraction fills, and what makes an empty one: of prompts, and where asked of tokens."""
    facts, config = x.done["prompts"], x.config.store
    n, width = facts["rows"], facts["d_sae"]
    stores: list[tuple[Path, Callable[[Path], None]]] = [
        (x.out / schema.ACTIVATIONS, lambda path: store.create(path, n, width, config, attributes))
    ]
    if x.config.keeps_tokens:
        step = store.layout(n, width, config)[1][0]
        longest = [len(own) + 1 for own in tokens]  # with a BOS
        rows = [sum(longest[first : first + step]) for first in range(0, n, step)]
        stores.append((x.out / schema.TOKENS, lambda path: token_store.create(path, rows, width, config, attributes)))
    return stores


def _is_linked(path: Path, shards: Path, key: str) -> bool:
    """Whether activations are another run's (`reuse.link`), which is only read: they have to be whole.

    Raises
    ------
    StoreError
        If they are not.
    """
    if not (path.is_symlink() or shards.is_symlink()):
        return False
    reason = markers.not_whole(path, shards, key)
    if reason is None:
        return True
    raise StoreError(
        f"{path.parent} only reads the activations of {path.resolve().parent}, which are not whole ({reason}). Put "
        f"that run back or run its own command, or delete {path.parent}, which holds links and what was made of them"
    )


def reduce_step(x: Context) -> tuple[Facts, budget.Plan | None]:
    options, plan = x.config.extract, x.plan(x.done["prompts"])
    facts = x.submit(
        tasks.reduce_task, x.out, options.activation_threshold, plan.rows, options.top_examples, x.on,
        options.aggregate,
    )  # fmt: skip
    return dict(facts), plan


def select_step(x: Context) -> tuple[Facts, budget.Plan | None]:
    c, rows = x.config, x.plan(x.done["prompts"]).rows
    facts = dict(x.submit(tasks.select_task, x.out, c.select, c.fewest_features, c.copies_by, rows))
    dense = facts["removed"].get(f"sparsity < {c.select.sparsity_max:g}", 0)
    if c.extract.rows != "prompt" and dense > MANY * facts["rows"]:
        text = (
            f"the filter counts prompts, also where rows are {c.extract.rows}s: {dense:,} of {facts['rows']:,} "
            f"features fire in {c.select.sparsity_max:g} of the prompts or more and are left out, on however few "
            "tokens they fire. select.sparsity_max=1.01 keeps them"
        )
        log.warning("select: %s", text)
        facts["warnings"] = [text]
    return facts, None


def neighbors_step(x: Context) -> tuple[Facts, budget.Plan | None]:
    c, kept = x.config, x.kept()
    plan = x.plan(x.done["prompts"], len(kept))
    log.info("neighbors: %d features kept, blocks of %d prompts, tiles of %d features, %s a pass",
             len(kept), plan.rows, plan.tile, plan.tiles_per_pass)  # fmt: skip
    method = "exact" if c.neighbors.method == "auto" else c.neighbors.method
    half, seen = half_of(x.n_prompts, c.seed), token_rows.rows_of(c, x.out)
    if method == "sketch":
        if x.on == "cuda":
            log.info("neighbors: the sketch is computed on the host")
        facts = x.submit(tasks.sketch_task, x.out, kept, c, plan)
    else:
        lengths = prompt_rows.prompt_lengths(x.out, {c.metric})
        if c.halved:
            groups = PromptGroups(half, 2, None, lengths, c.active_above, seen)
            weights = dict(zip((schema.WHOLE, *schema.HALVES), ([1, 1], [1, 0], [0, 1]), strict=True))
        else:
            groups = PromptGroups(np.zeros(x.n_prompts, np.int64), 1, None, lengths, c.active_above, seen)
            weights = {schema.WHOLE: [1]}
        facts = _exact(x, kept, plan, groups, weights)
    sizes = np.bincount(half if seen is None else half[token_rows.prompts_of(x.out, seen)], minlength=2).tolist()
    observed, prompts = (
        {schema.WHOLE: sum(count), **dict(zip(schema.HALVES, count, strict=True))}
        for count in (sizes, np.bincount(half, minlength=2).tolist())
    )
    return {"method": method, "metric": c.metric, "observed": observed, "observed_prompts": prompts, **facts}, plan


def _exact(x: Context, kept: Any, plan: budget.Plan, groups: PromptGroups, weights: Mapping[str, list[int]]) -> Facts:
    """Neighbours of views by name: the run's own, or in the folder of views; for exact distances their trees."""
    c, on = x.config, x.scheduler

    def view(name: str) -> View:
        tree = {} if c.tree_samples is None else {c.tree_samples: view_path(x.out, name, schema.SPANNING_TREE)}
        near = view_path(x.out, name, schema.NEIGHBORS)
        return View(np.array(weights[name]), near, c.metric, c.n_neighbors, trees=tree)

    views = [view(name) for name in weights]
    return exact_pass.exact_neighbors(
        on.client, on.workers, x.out, kept, groups, views, plan, x.progress, device=on.device
    )  # fmt: skip


def embed_step(x: Context) -> tuple[Facts, budget.Plan | None]:
    plan = x.plan(x.done["prompts"], len(x.kept()))
    return dict(x.submit(tasks.embed_task, x.out, x.config, x.on)), plan


def cluster_step(x: Context) -> tuple[Facts, budget.Plan | None]:
    plan, c = x.plan(x.done["prompts"], len(x.kept())), x.config
    found: Facts = {}
    if c.cluster.method == "communities":
        resolution, shares = x.submit(tasks.resolution_task, x.out, c, x.observed(schema.WHOLE))
        found = {"resolution": resolution, "resolutions": [list(tried) for tried in shares.items()]}
        c = _with_resolution(c, resolution)
    begin = 0 if c.cluster.method == "communities" else 1  # the embedding's clustering is the first of UMAP's
    jobs = [(x.out, c, schema.WHOLE, x.observed(schema.WHOLE), number) for number in range(begin, c.n_members)]
    return dict(x.submit(tasks.cluster_task, x.out, c, x.members(jobs), plan.budget, x.on)) | found, plan


def _as_clustered(c: Config, facts: Facts) -> Config:
    """The same with what the stage cluster chose: views of the prompts are clustered by it, too."""
    return with_eps(_with_resolution(c, facts.get("resolution")), facts.get("eps"))


def _with_resolution(c: Config, resolution: float | None) -> Config:
    """The same with the resolution of communities that was chosen, if one was."""
    if resolution is None:
        return c
    return c.model_copy(update={"communities": c.communities.model_copy(update={"resolution": resolution})})


def quality_step(x: Context) -> tuple[Facts, budget.Plan | None]:
    c, rows, kept = _as_clustered(x.config, x.done["cluster"]), x.observed(schema.WHOLE), x.kept()
    views: list[tuple[str, Config, str, int]] = []
    skipped: list[str] = []
    if c.halved:
        halves = [(half, x.observed(half)) for half in schema.HALVES]
        views += [(half, c, half, size) for half, size in halves]
        if c.quality.hdbscan and c.cluster.method != "umap":
            once = c.model_copy(update={"cluster": ClusterConfig(method="umap")})
            views += [(f"{HDBSCAN}{half}", once, half, size) for half, size in halves]
    plan = x.plan(x.done["prompts"], len(kept))
    if c.permuted:
        lengths = prompt_rows.prompt_lengths(x.out, {c.metric})
        seen = token_rows.rows_of(c, x.out)
        groups = PromptGroups(np.zeros(x.n_prompts, np.int64), 1, c.seed, lengths, c.active_above, seen)
        _exact(x, kept, plan, groups, {schema.NULL: [1]})
        views.append((schema.NULL, c, schema.NULL, rows))
    if c.tree_samples is None:
        for seed in range(1, c.quality.seeds + 1):
            umap = c.umap.model_copy(update={"random_state": c.umap.random_state + 1000 * seed})
            views.append((f"seed{seed}", c.model_copy(update={"umap": umap}), schema.WHOLE, rows))
    elif c.quality.seeds:
        skipped.append(f"seeds: nothing is random in cluster.method={c.cluster.method} on exact distances")
    if c.neighbors.method == "sketch" and (c.quality.halves or c.quality.null):
        skipped.append("halves and null: neighbors.method=sketch has no Gram matrix")
    # One of UMAP and HDBSCAN to compare with; of permuted activations see quality_task
    members = [1 if name == schema.NULL or name.startswith(HDBSCAN) else c.n_members for name, *_ in views]
    jobs = [
        (x.out, config, view, n, m)
        for (_, config, view, n), count in zip(views, members, strict=True)
        for m in range(count)
    ]
    labels = iter(x.members(jobs))
    found = {name: [next(labels) for _ in range(count)] for (name, *_), count in zip(views, members, strict=True)}
    plan = x.plan(x.done["prompts"], len(kept), x.n_clusters)
    return dict(x.submit(quality_task.quality_task, x.out, c, plan, found, skipped)), plan


def validate_step(x: Context) -> tuple[Facts, budget.Plan | None]:
    from gpuclust.engine import validating

    own = x.config.validation
    parts = [part for part in validating.PARTS if getattr(own, part)]
    facts = dict(x.submit(validating.validate, x.out, parts, validating.Asked(own.draws), True))
    return {"evidence": facts["evidence"], "left_out": facts["left_out"]}, None


def analyse_step(x: Context) -> tuple[Facts, budget.Plan | None]:
    plan = x.plan(x.done["prompts"], len(x.kept()), x.n_clusters)
    return dict(x.submit(analyse_task.analyse_task, x.out, x.config, plan.rows)), plan


def report_step(x: Context) -> tuple[Facts, budget.Plan | None]:
    return dict(x.submit(tasks.report_task, x.out)), None


STEPS: dict[str, Step] = {
    "prompts": prompts_step, "extract": extract_step, "reduce": reduce_step, "select": select_step,
    "neighbors": neighbors_step, "embed": embed_step, "cluster": cluster_step, "quality": quality_step,
    "validate": validate_step, "analyse": analyse_step, "report": report_step,
}  # fmt: skip
