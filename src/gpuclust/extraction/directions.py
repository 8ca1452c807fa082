"""What an SAE writes, and what the language model reads of it: decoder directions and the unembedding, on the host."""

from __future__ import annotations

from typing import Any

from gpuclust.config import Config
from gpuclust.config_sections import SaeConfig
from gpuclust.errors import ModelError
from gpuclust.extraction import weights
from gpuclust.extraction.encoders import load_tokenizer
from gpuclust.types import Array

# Hooks whose values are added to the residual stream, or are it
RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "hook_attn_out")


def load_directions(config: Config, unembedding: bool = True) -> tuple[Array, Array | None, str]:
    """Load the SAE's decoder and the language model's unembedding, on the host.

    Parameters
    ----------
    config : Config; with `model.processed` the final norm is folded into the unembedding
    unembedding : bool, whether to load the language model for it

    Returns
    -------
    array, (d_sae, d_out), float32: W_dec
    array, (d_out, vocabulary of the tokenizer), float32: W_U, or None where it cannot read what the decoder writes
    str: why there is none

    Raises
    ------
    ModelError
        If the model or the SAE cannot be had.

    Notes
    -----
    Memory: the weights of the SAE, and the whole language model in `model.dtype` with a float32 copy of W_U.
    """
    with weights.LOADING:
        decoder, hook_name, metadata = _decoder(config.sae)
        if hook_name.rpartition(".")[2] not in RESIDUAL:
            return decoder, None, f"the decoder writes to {hook_name}, not to the residual stream that W_U reads"
        if not unembedding:
            return decoder, None, "analyse.promoted_tokens is 0"
        loader, _ = weights.choose_loader(config.model)
        with weights.explained(f"the language model {config.model.name}", "model.name"), weights.quiet():
            net = weights.load_model(config.model, metadata.get("model_from_pretrained_kwargs") or {}, loader)
    w_u: Array = net.W_U.detach().float().numpy()[:, : len(load_tokenizer(config))]
    if w_u.shape[0] != decoder.shape[1]:
        return decoder, None, f"the decoder writes {decoder.shape[1]} values a token, and W_U reads {w_u.shape[0]}"
    return decoder, w_u, ""


def load_decoder(config: SaeConfig) -> tuple[Array, str]:
    """Load the SAE's decoder alone, on the host, without the language model.

    Returns
    -------
    array, (d_sae, d_out), float32: W_dec
    str: the hook that it writes to, in TransformerLens's words; ``?`` where the SAE does not say

    Raises
    ------
    ModelError
        If the SAE cannot be had, or has no decoder.
    """
    with weights.LOADING:
        decoder, hook_name, _ = _decoder(config)
    return decoder, hook_name


def _decoder(config: SaeConfig) -> tuple[Array, str, dict[str, Any]]:
    """W_dec, the hook that it writes to, and the SAE's metadata."""
    sae, metadata = weights.load_sae(config)
    if getattr(sae, "W_dec", None) is None:
        raise ModelError(f"the SAE {weights.sae_name(config)} has no decoder (W_dec)")
    decoder: Array = sae.W_dec.detach().float().numpy()
    return decoder, metadata.get("hook_name_out") or config.hook_name or metadata.get("hook_name") or "?", metadata
