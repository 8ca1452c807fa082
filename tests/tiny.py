"""A tiny random language model, SAE and prompts, as local folders: a whole run takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import hub

WIDTH, D_SAE, N_PROMPTS = 16, 96, 60
HOOK = "blocks.1.hook_resid_post"
# What would run, load or break out if a report took it for anything but text
HOSTILE = (
    """</script><script>window.hurt = 1</script><img src="x" onerror="window.hurt = 1">\u2028'"&amp; <b>@@data@@</b>"""
)


def label(clusters: Any) -> dict[int, str]:
    """Name every second cluster, with markup."""
    return {cluster: f"<img src=x onerror='window.hurt=1'>{cluster}" for cluster in clusters["cluster"] if cluster % 2}


def build(root: Path) -> dict[str, Any]:
    """Write model, SAE and prompts under `root`; return the configuration of a run on them."""
    import torch
    from safetensors.torch import save_file
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = root / "model"
    hub.build_tokenizer(model, vocab=600)
    token = "<|endoftext|>"
    PreTrainedTokenizerFast(
        tokenizer_file=str(model / "tokenizer.json"), bos_token=token, eos_token=token, pad_token=token
    ).save_pretrained(model)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=600, max_position_embeddings=128, initializer_range=0.3, **shape)
    ).save_pretrained(model)
    sae = root / "sae"
    sae.mkdir()
    encoder = torch.randn(WIDTH, D_SAE)
    weights = {
        "W_enc": encoder, "W_dec": encoder.T.contiguous() / WIDTH, "b_enc": torch.linspace(-9, -4, D_SAE),
        "b_dec": torch.zeros(WIDTH),
    }  # fmt: skip
    save_file(weights, sae / "sae_weights.safetensors")
    about = {
        "architecture": "standard", "d_in": WIDTH, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12", "model_name": "tiny", "hook_name": HOOK, "context_size": 128,
            "prepend_bos": True,
        },
    }  # fmt: skip
    (sae / "cfg.json").write_text(json.dumps(about))
    prompts = root / "prompts.jsonl"
    rows = [{"text": text, "source": "ab"[i % 2]} for i, text in enumerate(hub.texts(N_PROMPTS))]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"name": str(model)},
        "sae": {"path": str(sae)},
        "prompts": [{"path": str(prompts), "source_column": "source"}],
        "n_prompts": N_PROMPTS,
        "max_tokens": 40,
        "store": {"shard_prompts": 16, "chunk_prompts": 8, "chunk_features": 40},
        "select": {"sparsity_max": 1.01},
        "umap": {"n_components": 3, "n_neighbors": 6, "n_epochs": 50},
        "hdbscan": {"min_cluster_size": 4, "min_samples": 3},
        "consensus": {"members": 2, "n_epochs": 20},
        "quality": {"null": False, "decoder": False},
    }
