"""Extraction against the bare model and SAE: how much of its speed is left, for prompts and with tokens kept.

    python -m benchmarks.extraction CONFIG [--prompts 256] [--repeat 3] [--out FILE.json]

CONFIG is a run's. The same batches of prompts go through the language model and the SAE alone, and through a whole
shard as a run writes it (aggregate, moments, encode, write) with `extract.rows` prompt and token; in turn, in one
process. Medians, and ratios of bare to whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust import schema
from gpuclust.configfile import load
from gpuclust.extraction import encoders, extract_shard
from gpuclust.extraction.prompts import build
from gpuclust.storage import store, token_store


def bare(encoder: Any, tokens: list[np.ndarray], config: Any) -> None:
    """Model and SAE on all tokens, and nothing else."""
    import torch

    n_bos = extract_shard.bos_tokens(encoder.tokenizer, config)
    step = max(1, extract_shard.ENCODE_BYTES["cpu"] // (4 * encoder.d_sae))
    with torch.inference_mode():
        for batch in extract_shard.batches([len(one) + n_bos for one in tokens], config.extract.batch_tokens):
            longest = max(len(tokens[i]) for i in batch) + n_bos
            ids, mask = (torch.zeros((len(batch), longest), dtype=torch.long) for _ in range(2))
            for row, i in enumerate(batch):
                stop = n_bos + len(tokens[i])
                ids[row, n_bos:stop] = torch.from_numpy(tokens[i].astype(np.int64))
                mask[row, :stop] = 1
            rows = encoder.residual(ids, mask)[mask.bool()]
            for start in range(0, len(rows), step):
                encoder.features(rows[start : start + step])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    plain = load(args.config).model_copy(update={"n_prompts": args.prompts})
    encoder = encoders.load_encoder(plain, "cpu")
    tokens = list(build(plain, encoder.tokenizer)[0]["tokens"])
    settings = [f"n_prompts={args.prompts}", "neighbors.metric=correlation"]
    kinds = {rows: load(args.config, [*settings, f"extract.rows={rows}"]) for rows in ("prompt", "token")}

    def whole(config: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            options = config.store.model_copy(update={"shard_prompts": len(tokens)})
            store.create(out / schema.ACTIVATIONS, len(tokens), encoder.d_sae, options, {})
            if config.keeps_tokens:
                longest = sum(len(one) + 1 for one in tokens)
                token_store.create(out / schema.TOKENS, [longest], encoder.d_sae, options, {})
            extract_shard.run_shard(config, out, 0, 0, tokens, "key", "cpu")

    calls: dict[str, Callable[[], None]] = {
        "bare": lambda: bare(encoder, tokens, plain),
        **{name: partial(whole, one) for name, one in kinds.items()},
    }
    calls["bare"]()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.repeat):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    median = {name: round(statistics.median(times), 2) for name, times in seconds.items()}
    facts = {
        "date": time.strftime("%Y-%m-%d"), "prompts": len(tokens), "tokens": int(sum(map(len, tokens))),
        "features": encoder.d_sae, "seconds": median,
        "all": {name: [round(one, 2) for one in own] for name, own in seconds.items()},
        "of bare speed": {name: round(median["bare"] / median[name], 3) for name in kinds},
    }  # fmt: skip
    print(json.dumps(facts, indent=1))
    if args.out:
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
