"""Extract: prompts of one shard through the language model and the SAE, aggregated over tokens.

A shard is one task: it loads, computes, writes and frees inside the task, and returns only a few numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust import store
from gpuclust.config import Config
from gpuclust.errors import ActivationError
from gpuclust.reductions import EXAMPLES, MOMENTS

log = logging.getLogger("gpuclust")

ENCODE_BYTES = 256 << 20  # float32 activations of all features that are in memory at a time


def run_shard(
    config: Config, out: Path, index: int, first: int, tokens: list[np.ndarray[Any, Any]], key: str, device: str
) -> dict[str, int]:
    """Compute one shard of prompts and write it, with its moments and top examples.

    Parameters
    ----------
    config : Config
    out : Path
        The run's folder; its store must exist as a template.
    index, first : int
        Number of the shard, and of its first prompt.
    tokens : list of int arrays
        Token ids of the shard's prompts, special tokens not included.
    key : str
        What the shard depends on, for its marker.
    device : str
        torch device of model and SAE.

    Returns
    -------
    dict
        ``prompts``, ``tokens`` and ``bytes`` of the shard.

    Raises
    ------
    ActivationError
        On NaN, infinity, or values that do not fit the stored dtype. Shards already written stay.
    """
    from gpuclust import models, schema

    encoder = models.load_encoder(config, device)
    activations, positions = aggregate_prompts(encoder, tokens, config)
    data = store.to_stored(activations, config.store.dtype, f"shard {index} (prompts {first} and on)")
    states = {f"moments.{k}": v for k, v in MOMENTS.chunk(data, config.extract.activation_threshold).items()}
    states["threshold"] = np.float64(config.extract.activation_threshold)
    examples = EXAMPLES.chunk(data, positions, first, config.extract.top_examples)
    states.update({f"examples.{k}": v for k, v in examples.items()})
    store.write_shard(out / schema.ACTIVATIONS, out / schema.SHARDS, index, first, data, states, key)
    return {"prompts": len(tokens), "tokens": sum(map(len, tokens)), "bytes": data.nbytes}


def aggregate_prompts(
    encoder: Any, tokens: list[np.ndarray[Any, Any]], config: Config
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Run prompts through model and SAE and aggregate every feature over the tokens of its prompt.

    Parameters
    ----------
    encoder : models.Encoder
    tokens : list of int arrays
        Token ids of each prompt, special tokens not included.
    config : Config

    Returns
    -------
    activations : array, (prompt, feature), float32
    positions : array, (prompt, feature), int16
        Index into the prompt's tokens of the largest abs(activation); -1 stands for the BOS token before them.
    """
    import torch

    tokenizer = encoder.tokenizer
    n_bos = bos_tokens(tokenizer, config)
    padding = tokenizer.pad_token_id or 0  # masked by length, so any id will do
    special = torch.tensor(sorted(tokenizer.all_special_ids), dtype=torch.long)
    activations = np.zeros((len(tokens), encoder.d_sae), dtype=np.float32)
    positions = np.zeros((len(tokens), encoder.d_sae), dtype=np.int16)
    with torch.inference_mode():
        for batch in batches([len(t) + n_bos for t in tokens], config.extract.batch_tokens):
            longest = max(len(tokens[i]) for i in batch) + n_bos
            ids = torch.full((len(batch), longest), padding, dtype=torch.long)
            mask = torch.zeros((len(batch), longest), dtype=torch.long)
            for row, i in enumerate(batch):
                stop = n_bos + len(tokens[i])
                if n_bos:
                    ids[row, 0] = tokenizer.bos_token_id
                ids[row, n_bos:stop] = torch.from_numpy(tokens[i].astype(np.int64))
                mask[row, :stop] = 1
            residual = encoder.residual(ids, mask)
            _check_finite(residual, mask, batch)
            for row, i in enumerate(batch):
                used = _used_positions(ids[row, : n_bos + len(tokens[i])], n_bos, special, config)
                value, position = _aggregate(encoder, residual[row, used.to(residual.device)], config)
                activations[i] = value.cpu().numpy()
                positions[i] = used.numpy()[position.cpu().numpy()] - n_bos
    return activations, positions


def batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Group prompts of similar length so that prompts x longest stays within `budget` tokens.

    A prompt longer than the budget makes a batch of its own.

    Examples
    --------
    >>> list(batches([5, 1, 4, 9], budget=10))
    [[1, 2], [0], [3]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[index] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def bos_tokens(tokenizer: Any, config: Config) -> int:
    """Return how many BOS tokens go before each prompt: 1 or 0."""
    return int(config.extract.prepend_bos and tokenizer.bos_token_id is not None)


def _used_positions(ids: Any, n_bos: int, special: Any, config: Config) -> Any:
    """Positions of the aggregate: all, or all that are no special tokens (every token, where all are special)."""
    import torch

    everything = torch.arange(len(ids))
    if not config.extract.exclude_special_tokens:
        return everything
    leave_out = torch.isin(ids, special)
    leave_out[:n_bos] = True
    used = everything[~leave_out]
    return used if len(used) else everything[n_bos:]


def _aggregate(encoder: Any, residual: Any, config: Config) -> tuple[Any, Any]:
    """Aggregate one prompt: its value and the position of its largest abs(activation), both (feature,)."""
    import torch

    how = config.extract.aggregate
    step = max(1, ENCODE_BYTES // (4 * encoder.d_sae))
    total: Any = None
    peak: Any = None
    where: Any = None
    for start in range(0, len(residual), step):
        acts = encoder.features(residual[start : start + step])
        largest, at = acts.abs().max(dim=0)
        if peak is None:
            peak, where = largest, at + start
        else:
            newer = largest > peak
            peak, where = torch.where(newer, largest, peak), torch.where(newer, at + start, where)
        part = {"max": acts.max(dim=0).values, "last": acts[-1]}.get(how)
        if part is None:
            part = acts.double().sum(dim=0)
        if total is not None and how != "last":
            part = torch.maximum(total, part) if how == "max" else total + part
        total = part
    return (total / len(residual) if how == "mean" else total).float(), where


def _check_finite(residual: Any, mask: Any, batch: list[int]) -> None:
    import torch

    bad = ~torch.isfinite(residual).all(dim=2) & mask.bool().to(residual.device)
    if bad.any():
        row = int(bad.any(dim=1).nonzero()[0])
        raise ActivationError(
            f"the language model gives NaN or infinity for {int(bad.any(dim=1).sum())} of {len(batch)} prompts of a "
            f"batch, first at row {batch[row]} of the shard. Set model.dtype=float32, and check the model's weights"
        )
