"""What 48 settings of UMAP and HDBSCAN cost, against one run and against 48.

    python -m benchmarks.sweep --run runs/demo [--json FILE]

The activations of a finished run are reused by all. Measured, one after the other, as separate processes: one run from
the activations on (its own record says what UMAP and HDBSCAN took), and one sweep of 6 embeddings x 8 clusterings with
one seed, halves of the prompts and report included. Both cluster once a setting, without a consensus, and the run is
made without the checks of its quality stage. CPU seconds are of all processes of a command.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from gpuclust.sweep.experiment import link

VARY = {
    "umap.n_neighbors": [10, 15, 30],
    "umap.min_dist": [0.0, 0.1],
    "hdbscan.min_cluster_size": [5, 10, 20, 40],
    "hdbscan.cluster_selection_method": ["eom", "leaf"],
}
FIXED = ("consensus.members=1", "quality.halves=false", "quality.null=false", "quality.decoder=false",
         "quality.random_sets=0")  # fmt: skip


def timed(*command: str) -> dict[str, float]:
    """Wall and CPU seconds of a command and the processes that it starts."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"wall": time.perf_counter() - started, "cpu": cpu}


def main() -> None:
    """Print the times and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    stages = json.loads((args.run / "run.json").read_text())["stages"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "base.yaml"
        config.write_text((args.run / "config.yaml").read_text())
        link(args.run, folder / "one")
        one = timed("gpuclust.run", "--config", str(config), "--out", str(folder / "one"), "--quiet", "--set", *FIXED)
        record = json.loads((folder / "one" / "run.json").read_text())["stages"]
        sweep = folder / "sweep.yaml"
        sweep.write_text(
            yaml.safe_dump({"base": str(config), "fixed": {"consensus.members": 1}, "vary": VARY, "seeds": 1})
        )
        many = timed(
            "gpuclust.sweep", str(sweep), "--out", str(folder / "many"), "--reuse", str(args.run), "--quiet"
        )  # fmt: skip
        computed = json.loads((folder / "many" / "sweep.json").read_text())
    cluster = record["embed"]["seconds"] + record["cluster"]["seconds"]
    made = stages["prompts"]["seconds"] + stages["extract"]["seconds"]
    figures = {
        "settings": computed["settings"], "failed": computed["failed"], "computed": computed["computed"],
        "sweep": many, "run_from_activations": one, "umap_and_hdbscan_of_the_run": cluster,
        "extraction_of_the_reused_run": made,
        "sweep_over_umap_and_hdbscan": many["wall"] / cluster,
        "runs_from_activations_over_sweep": 48 * one["wall"] / many["wall"],
        "runs_from_activations_over_sweep_cpu": 48 * one["cpu"] / many["cpu"],
        "runs_over_sweep_with_one_extraction_each": 48 * (one["wall"] + made) / (many["wall"] + made),
    }  # fmt: skip
    for key, value in figures.items():
        print(f"{key:<42} {value if not isinstance(value, float) else round(value, 2)}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
