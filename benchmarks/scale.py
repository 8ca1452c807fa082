"""What more prompts cost: the whole command on the demo model with ever more prompts, seconds and peak memory a stage.

    python -m benchmarks.scale [--prompts 2000 20000 200000] [--memory 3.5GB] [--json FILE]

The prompts are sentences of the demo's prompts, put together anew by chance: as real as the demo's word by word, but
not as texts. Time may grow with the prompts; the memory of every stage must stay under ``--memory``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpuclust.config_sections import DEMO

SENTENCES = 3  # of a prompt


def write_prompts(path: Path, n: int) -> None:
    """Write `n` made-up prompts, one JSON object a line."""
    rng = random.Random(0)
    lines = (DEMO / "prompts.jsonl").read_text(encoding="utf8").splitlines()
    sentences = [s for line in lines for s in re.split(r"(?<=[.;]) ", json.loads(line)["text"]) if len(s) > 20]
    with path.open("w", encoding="utf8") as file:
        for _ in range(n):
            file.write(json.dumps({"text": " ".join(rng.sample(sentences, SENTENCES))}) + "\n")


def run(folder: Path, n: int, allowed: str) -> dict[str, Any]:
    """Run the command on `n` prompts and return its record."""
    prompts, out = folder / f"{n}.jsonl", folder / str(n)
    write_prompts(prompts, n)
    sources = json.dumps([{"path": str(prompts)}])
    settings = [f"prompts={sources}", f"n_prompts={n}", "max_tokens=64", f"device.memory={allowed}"]
    command = [sys.executable, "-m", "gpuclust.run", "--quiet", "--scheduler", "local", "--out", str(out)]
    subprocess.run([*command, "--set", *settings], check=True)
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def main() -> None:
    """Run every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[2000, 20_000, 200_000])
    parser.add_argument("--memory", default="3.5GB")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; default a temporary folder")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for n in args.prompts:
            found[n] = run(folder, n, args.memory)
    print(f"{'seconds / peak GB':<18}" + "".join(f"{n:>18,}" for n in found))
    for name in next(iter(found.values()))["stages"]:
        stages = [record["stages"][name] for record in found.values()]
        cells = [f"{stage['seconds']:.1f} / {max(stage['peak_bytes'].values()) / 1e9:.2f}" for stage in stages]
        print(f"{name:<18}" + "".join(f"{cell:>18}" for cell in cells))
    for n, record in found.items():
        kept, clusters = record["stages"]["select"]["kept"], record["stages"]["cluster"]["clusters"]
        print(f"{n:,} prompts: {kept:,} features kept, {clusters} clusters")
    if args.json:
        about = {"date": time.strftime("%Y-%m-%d"), "machine": platform.platform(), "cores": os.cpu_count()}
        args.json.write_text(json.dumps({**about, "memory": args.memory, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
