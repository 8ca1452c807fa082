"""Run the notebook's case at its true size without the internet: ``configs/notebook.yaml`` through a hub on loopback.

    python -m benchmarks.notebook --work build/notebook [--json FILE]

pythia-70m-deduped and its SAE of 32,768 features have random weights in the true shapes, and the prompts are rows
shaped like wikitext: the figures are of time and memory, the clusters mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from tests.hub import Hub, build_pythia, build_pythia_sae, build_wikitext

CONFIG = Path(__file__).parent.parent / "configs" / "notebook.yaml"


def main() -> None:
    """Build the hub, run the command, print seconds and peak memory of every stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/notebook"))
    parser.add_argument("--articles", type=int, default=400)
    parser.add_argument("--scheduler", default="local")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", nargs="+", default=[], help="overrides for the command")
    args = parser.parse_args()
    root, out = args.work / "hub", args.work / "run"
    if not root.exists():
        build_pythia(root)
        build_pythia_sae(root)
        build_wikitext(root, articles=args.articles)
    command = [sys.executable, "-m", "gpuclust.run", "--config", str(CONFIG), "--out", str(out)]
    command += ["--scheduler", args.scheduler, "--quiet", *(["--set", *args.set] if args.set else [])]
    with Hub(root) as hub:
        started = time.perf_counter()
        subprocess.run(command, env=hub.environment(args.work / "home"), check=True)
        wall = time.perf_counter() - started
    record = json.loads((out / "run.json").read_text())
    print(f"{'stage':<11}{'seconds':>9}{'peak GB':>9}{'projected GB':>14}")
    for name, stage in record["stages"].items():
        peak, projected = max(stage["peak_bytes"].values()) / 1e9, (stage["projected_bytes"] or 0) / 1e9
        print(f"{name:<11}{stage['seconds']:>9.1f}{peak:>9.2f}{projected:>14.2f}")
    print(f"whole command {wall:.1f} s; {record['stages']['select']['kept']:,} features kept, "
          f"{record['stages']['cluster']['clusters']} clusters")  # fmt: skip
    if args.json:
        about = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": platform.platform(),
            "cores": os.cpu_count(),
            "wall_s": wall,
        }
        args.json.write_text(json.dumps({**about, "run": record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
