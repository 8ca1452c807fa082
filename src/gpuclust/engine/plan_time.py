"""How long a run would take, as far as an earlier run's record says; nothing is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpuclust import stage_table
from gpuclust.config import Config
from gpuclust.errors import GpuclustError
from gpuclust.formatting import percent
from gpuclust.results.run import Run

UNKNOWN = "time is not estimated: "
# What seconds a token depend on, beside the machine
LEAST = 0.5  # share of the tokens that has to be computed at once: of fewer, seconds are those of loading
RATED = ("model", "sae", "max_tokens", "extract.aggregate", "extract.batch_tokens")


def estimate(config: Config, earlier: Path | None, extracted: bool = False, device: str = "cpu") -> str:
    """Say in a line what an earlier run's record says of the time of this one.

    The extraction grows with the tokens: the rate there times the tokens here, of prompts as long as there. Other
    stages are told as they were, where settings, their own and those of what they read, and the number of prompts are
    the same, and else not at all.

    Parameters
    ----------
    config : Config
    earlier : Path, optional
        Folder of the run.
    extracted : bool
        The activations are there, so that their time does not count.
    device : {"cpu", "cuda"}
        That this run's workers have.
    """
    if earlier is None:
        return (
            f"{UNKNOWN}give --out or --reuse of a run of this model and SAE, made on this machine, to take rates from"
        )
    try:
        run = Run(earlier)
        if (other := run.record.get("device")) != device:
            return f"{UNKNOWN}{earlier} was computed by workers of {other}, and this would be by those of {device}"
        return _told(config, run.config, run.record["stages"], earlier, extracted)
    # None yet, or a record that is damaged or edited: the run itself says so
    except (GpuclustError, KeyError, TypeError, ValueError, AttributeError):
        return f"{UNKNOWN}{earlier} holds no run to take rates from"


def _told(config: Config, there: Config, stages: dict[str, Any], earlier: Path, extracted: bool) -> str:
    parts = [] if extracted else [_extraction(config, there, stages, earlier)]
    if config.n_prompts == there.n_prompts:
        same = [
            name
            for name in stage_table.NAMES
            if name in stages and name != "extract" and _same(name, config, there, extracted)
        ]
        same = [name for name in same if not (extracted and name in stage_table.ACTIVATIONS)]
        if same:
            seconds = sum(stages[name].get("seconds", 0.0) for name in same)
            parts.append(f"{duration(seconds)} for {', '.join(same)}, which took as long there")
    left = [name for name in stage_table.NAMES if name in stages and name not in stage_table.ACTIVATIONS]
    if left and config.n_prompts != there.n_prompts:
        seconds = sum(stages[name].get("seconds", 0.0) for name in left)
        parts.append(
            f"what follows is not estimated: it took {duration(seconds)} there, with {there.n_prompts:,} prompts"
        )
    elif others := [name for name in left if not _same(name, config, there, extracted)]:
        parts.append(f"not estimated, because set otherwise there or not done: {', '.join(others)}")
    return (
        f"time, by {earlier} on the machine that made it: {'; '.join(parts)}"
        if parts
        else f"{UNKNOWN}{earlier} has none"
    )


def duration(seconds: float) -> str:
    """Write a time with its unit.

    Examples
    --------
    >>> duration(0.44), duration(75), duration(5400), duration(180_000)
    ('0.4 s', '75 s', '90 min', '50 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _extraction(config: Config, there: Config, stages: dict[str, Any], earlier: Path) -> str:
    """Seconds of the extraction, from what was computed by its last command."""
    entry = stages.get("extract", {})
    tokens, seconds = entry.get("computed", {}).get("tokens", 0), entry.get("seconds", 0.0)
    if not tokens or not seconds or not entry.get("rows"):
        return "the extraction is not estimated: nothing was extracted there"
    if tokens < LEAST * entry["tokens"]:
        return f"the extraction is not estimated: the last command there did {percent(tokens / entry['tokens'])} of it"
    if differ := [name for name in RATED if stage_table.value(config, name) != stage_table.value(there, name)]:
        return f"the extraction is not estimated: {', '.join(differ)} differ there"
    rate = tokens / seconds
    needed = entry["tokens"] / entry["rows"] * config.n_prompts
    return f"{duration(needed / rate)} to extract {config.n_prompts:,} prompts, at {rate:,.0f} tokens a second"


def _same(name: str, config: Config, there: Config, extracted: bool) -> bool:
    """Whether a stage, and all it reads, is set as it was there; activations that are taken from there are."""
    if extracted and name in stage_table.ACTIVATIONS:
        return True
    stage = stage_table.get(name)
    own = stage_table.values(stage, config) == stage_table.values(stage, there)
    return own and all(_same(read, config, there, extracted) for read in stage.reads)
