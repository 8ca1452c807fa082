"""Hold a run's stored activations against plain transformers and ``SAE.encode``, prompt by prompt.

    python -m benchmarks.check_activations RUN [--prompts 50]

For runs on local folders whose hook is ``hook_mlp_out`` or ``hook_resid_post`` and whose aggregate is the maximum over
all tokens but BOS. No batching, no padding, none of our model code. An entry agrees when it differs by float16
rounding (one part in 1,024 of itself, or 2**-24). Entries that are zero on one side only lie on the SAE's threshold,
where the last bit of a sum decides: they are counted apart, and one in 100,000 is allowed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from gpuclust import open_run
from gpuclust.config_sections import DEMO


def main() -> int:
    """Print how many entries agree; exit code 1 if any does not."""
    import torch
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=50)
    args = parser.parse_args()
    run = open_run(args.run)
    model_path = DEMO / "model" if run.config.model.name == "demo" else Path(run.config.model.name)
    sae_path = DEMO / "sae" if run.config.sae.path == "demo" else Path(str(run.config.sae.path))
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    sae = SAE.load_from_disk(str(sae_path), device="cpu")
    _, layer, kind = run.record["stages"]["prompts"]["attributes"]["hook_name"].split(".")
    inner = model.base_model
    block = (inner.layers if hasattr(inner, "layers") else inner.h)[int(layer)]
    module = block.mlp if kind == "hook_mlp_out" else block
    seen: list[torch.Tensor] = []
    module.register_forward_hook(lambda m, i, o: seen.append(o[0] if isinstance(o, tuple) else o))
    chosen = np.linspace(0, len(run.prompts) - 1, args.prompts).astype(int)
    stored = run.activations.isel(prompt=chosen).values.astype(np.float64)
    special = torch.tensor(tokenizer.all_special_ids)
    rounding = threshold = wrong = 0
    for row, prompt in zip(stored, chosen, strict=True):
        ids = tokenizer(run.prompts["text"][prompt], add_special_tokens=False)["input_ids"][: run.config.max_tokens]
        with_bos = torch.tensor([[tokenizer.bos_token_id, *ids]] if run.config.extract.prepend_bos else [ids])
        with torch.no_grad():
            model(with_bos)
            used = ~torch.isin(with_bos[0], special)
            acts = sae.encode(seen.pop()[0, used])
        expected = acts.max(dim=0).values.double().numpy()
        off = np.abs(row - expected) > np.maximum(np.abs(expected) * 2**-10, 2**-24)
        edge = off & ((row == 0) | (expected == 0))
        rounding, threshold, wrong = rounding + (~off).sum(), threshold + edge.sum(), wrong + (off & ~edge).sum()
    print(f"{len(chosen)} prompts x {stored.shape[1]} features: {rounding} entries agree to float16,")
    print(f"{threshold} lie on the SAE's threshold, {wrong} differ")
    return int(wrong > 0 or threshold > stored.size * 1e-5)


if __name__ == "__main__":
    sys.exit(main())
