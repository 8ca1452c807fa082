"""What a run would take, printed before anything runs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from gpuclust.compute import feature_filter
from gpuclust.config import Config
from gpuclust.engine import plan_time
from gpuclust.engine.scheduler import choose
from gpuclust.errors import ConfigError
from gpuclust.extraction import model_sizes
from gpuclust.formatting import gigabytes
from gpuclust.hardware import budget
from gpuclust.hardware.backend import cuda_status
from gpuclust.hardware.device import free_bytes
from gpuclust.results.run import Run
from gpuclust.storage import disk


def show_plan(
    config: Config, console: Console, scheduler: str = "auto", extracted: bool = False, earlier: Path | None = None
) -> None:
    """Print what a run would do, with every feature kept (the most it can take).

    A plan is arithmetic: ``--scheduler local-cuda`` plans for GPU workers on any machine, given ``device.memory``.

    Parameters
    ----------
    config : Config
    console : Console
    scheduler : str
        As ``--scheduler``.
    extracted : bool
        The activations are there: neither the language model nor the disk that they take is counted.
    earlier : Path, optional
        Folder of a run whose record says how long such a run takes.
    """
    there = Run(earlier).record["stages"]["prompts"] if extracted and earlier else None
    facts = model_sizes.facts(config) if there is None else model_sizes.recorded(there)
    feature_filter.check_size(facts["d_sae"], config.fewest_features)
    name = "local-cuda" if scheduler == "local-cuda" else choose(scheduler)[0]
    device = "cuda" if name == "local-cuda" else "cpu"
    on_device = None
    if device == "cuda" and (on_device := config.device_bytes) is None:
        if not cuda_status().usable:
            raise ConfigError(
                "--plan for GPU workers needs a budget where there is no GPU: --set device.memory=6GB, say"
            )
        on_device = free_bytes()
    n_prompts = config.n_prompts if there is None else there["rows"]
    whole = budget.Shapes(
        n_prompts,
        facts["d_sae"],
        facts["d_sae"],
        facts["d_in"],
        facts["model_bytes"],
        sae_bytes=facts["sae_bytes"],
    )
    allowed = budget.budget(config, device=device)
    plan = budget.plan(config, whole, allowed, held=() if extracted else ("extract",), device_allowed=on_device)
    bounds = f"memory of a worker: {gigabytes(allowed)}"
    if on_device is not None:
        bounds += f" of the host, {gigabytes(on_device)} of its GPU"
    console.print(
        f"{n_prompts:,} prompts × {facts['d_sae']:,} features ({facts['model']}, {facts['source']}), {bounds}",
        markup=False,
    )
    console.print(
        f"blocks of {plan.rows:,} prompts, Gram tiles of {plan.tile:,} features, {plan.tiles_per_pass} a pass"
    )
    rows = [row for row in budget.table(plan) if not (extracted and row["stage"] == "extract")]
    if not extracted:
        least, most = disk.needed(config, config.n_prompts, facts["d_sae"])
        console.print(f"disk: {gigabytes(least)} at least, {gigabytes(most)} if no activation were zero")
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    console.print(plan_time.estimate(config, earlier, extracted, device), markup=False)
    bounds = "all features kept, as many clusters as hdbscan.min_cluster_size allows"
    if facts["model_bytes"]:
        bounds += f"; {gigabytes(facts['model_bytes'])} of language model up to the hook counted in"
    console.print(f"[dim]upper bounds: {bounds}[/dim]")
    for stage in (stage for stage in plan.stages if not (extracted and stage.stage == "extract")):
        for needed, of, bound in ((stage.peak, "host", allowed), (stage.device_peak, "GPU", on_device)):
            if needed is not None and bound is not None and needed > bound:
                console.print(
                    f"[yellow]! {stage.stage} would not fit the {of}'s memory at these bounds: change "
                    f"{stage.setting}[/yellow]"
                )
