"""Extract: prompts of one shard through the language model and the SAE, aggregated over tokens.

A shard is one task: it loads, computes, writes and frees inside the task, and returns only a few numbers. On a GPU,
results are copied back on a second stream while the next batch computes. When memory runs out, the batch is halved,
then the slice of tokens that the SAE encodes at a time, and the shard goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpuclust.compute.reductions import EXAMPLES, MOMENTS, State
from gpuclust.config import Config
from gpuclust.errors import ActivationError, ModelError
from gpuclust.extraction.gathered_tokens import GatheredTokens
from gpuclust.hardware import device as gpu
from gpuclust.hardware.backend import Backend, on_host, resolve
from gpuclust.storage import markers, store, token_store
from gpuclust.types import Array

log = logging.getLogger("gpuclust")

# float32 activations of all features that are in memory at a time, by device; memory.py counts three times as much
ENCODE_BYTES = {"cpu": 256 << 20, "cuda": 128 << 20}
BACK_BYTES = 128 << 20  # aggregated values and positions of a batch
SLICE_BYTES = 128 << 20  # stored activations that are on the GPU at a time for their moments


def run_shard(
    config: Config, out: Path, index: int, first: int, tokens: list[Array], key: str, device: str
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
        ``prompts``, ``tokens`` and ``bytes`` of the shard, and ``stored``: bytes of its file.

    Raises
    ------
    ActivationError
        On NaN, infinity, or values that do not fit the stored dtype. Shards already written stay.
    ModelError
        If the hub's weights on this machine are not those that the run began with.
    """
    from gpuclust import schema
    from gpuclust.extraction import encoders

    backend = resolve(device)
    encoder = encoders.load_encoder(config, device)
    same_weights(encoder.commits, store.attributes(out / schema.ACTIVATIONS), config)
    kept = GatheredTokens(config, first) if config.keeps_tokens else None
    activations, positions = aggregate_prompts(encoder, tokens, config, f"shard {index}", kept)
    data = store.to_stored(activations, config.store.dtype, f"shard {index} (prompts {first} and on)")
    states = shard_states(data, positions, first, config, backend)
    states["negative"] = np.int64((activations < 0).sum())
    states["underflowed"] = np.int64(np.count_nonzero(activations) - np.count_nonzero(data))
    if kept is not None:
        found = kept.gather(len(tokens))
        states |= found.states()
        token_store.write_shard(out / schema.TOKENS, index, found)
    markers.write_shard(out / schema.ACTIVATIONS, out / schema.SHARDS, index, first, data, states, key)
    stored = markers.stored_bytes(out / schema.ACTIVATIONS, out / schema.SHARDS, index)
    return {"prompts": len(tokens), "tokens": sum(map(len, tokens)), "bytes": data.nbytes, "stored": stored}


def same_weights(commits: Mapping[str, str | None], begun: Mapping[str, Any], config: Config) -> None:
    """Refuse weights of a hub that changed since the run began, or that are others on another machine.

    Parameters
    ----------
    commits : mapping
        `weights.commits` of what is loaded.
    begun : mapping
        Attributes of the run's activations.
    config : Config

    Raises
    ------
    ModelError
    """
    names = {"model_commit": config.model.name, "sae_commit": f"{config.sae.release} {config.sae.sae_id}"}
    for name, commit in commits.items():
        known = begun.get(name)
        if known is not None and commit != known:
            raise ModelError(
                f"{names[name]} is at commit {commit} of the hub in this machine's cache, but the run began with "
                f"{known}: restore that cache (HF_HOME), or give another --out; what is computed stays"
            )


def aggregate_prompts(
    encoder: Any, tokens: list[Array], config: Config, where: str = "extract", kept: GatheredTokens | None = None
) -> tuple[Array, Array]:
    """Run prompts through model and SAE and aggregate every feature over the tokens of its prompt.

    Parameters
    ----------
    encoder : models.Encoder
    tokens : list of int arrays
        Token ids of each prompt, special tokens not included.
    config : Config
    where : str
        For messages.
    kept : GatheredTokens, optional
        What fires on each token is put there, too.

    Returns
    -------
    activations : array, (prompt, feature), float32
    positions : array, (prompt, feature), int32
        Index into the prompt's tokens of the largest abs(activation); -1 stands for the BOS token before them.

    Raises
    ------
    DeviceError
        If memory runs out for one prompt and one token at a time.
    """
    import torch

    n_bos = bos_tokens(encoder.tokenizer, config)
    lengths = [len(t) + n_bos for t in tokens]
    activations = np.zeros((len(tokens), encoder.d_sae), dtype=np.float32)
    positions = np.zeros((len(tokens), encoder.d_sae), dtype=np.int32)
    most = max(1, BACK_BYTES // (8 * encoder.d_sae))
    encode_bytes = ENCODE_BYTES[encoder.device.partition(":")[0]]
    budget, step = config.extract.batch_tokens, max(1, encode_bytes // (4 * encoder.d_sae))
    waiting = list(batches(lengths, budget, most=most))
    back = _Back(activations, positions, overlap=encoder.device.startswith("cuda"))
    with torch.inference_mode():
        while waiting:
            batch, failure = waiting.pop(0), ""
            try:
                back.put(batch, *_run_batch(encoder, [tokens[i] for i in batch], batch, n_bos, step, config, kept))
            except (MemoryError, RuntimeError) as error:
                if not gpu.is_out_of_memory(error):
                    raise
                failure = f"{type(error).__name__}: {gpu.first_line(error)}"
            if not failure:
                continue
            back.drain()
            if len(batch) > 1:  # out of the except block: its traceback held the batch's tensors
                budget = max(1, len(batch) * max(lengths[i] for i in batch) // 2)
                most = min(most, len(batch) // 2)
                waiting = list(batches(lengths, budget, [*batch, *(i for other in waiting for i in other)], most))
                log.warning("%s: out of memory with a batch of %d prompts (%s); going on with batches of %d tokens",
                            where, len(batch), failure, budget)  # fmt: skip
            elif step > 1:
                waiting, step = [batch, *waiting], step // 2
                log.warning("%s: out of memory for one prompt (%s); going on with %d tokens at a time in the SAE",
                            where, failure, step)  # fmt: skip
            else:
                raise gpu.out_of_memory("extract", failure)
        back.drain()
    return activations, positions


def _run_batch(
    encoder: Any,
    tokens: list[Array],
    batch: list[int],
    n_bos: int,
    step: int,
    config: Config,
    kept: GatheredTokens | None,
) -> tuple[Any, Any]:
    """Values and positions of a batch of prompts, (prompt, feature), float32 and int32, on the device."""
    import torch

    tokenizer = encoder.tokenizer
    special = torch.tensor(sorted(tokenizer.all_special_ids), dtype=torch.long)
    longest = max(map(len, tokens)) + n_bos
    ids = torch.zeros((len(tokens), longest), dtype=torch.long)  # padding is masked: any id that the model has will do
    mask = torch.zeros((len(tokens), longest), dtype=torch.long)
    for row, text in enumerate(tokens):
        stop = n_bos + len(text)
        if n_bos:
            ids[row, 0] = tokenizer.bos_token_id
        ids[row, n_bos:stop] = torch.from_numpy(text.astype(np.int64))
        mask[row, :stop] = 1
    residual = encoder.residual(ids, mask)
    _check_finite(residual, mask, batch)
    values = torch.empty((len(tokens), encoder.d_sae), dtype=torch.float32, device=residual.device)
    positions = torch.empty(values.shape, dtype=torch.int32, device=residual.device)
    for row, text in enumerate(tokens):
        used = used_positions(ids[row, : n_bos + len(text)], n_bos, special, config).to(residual.device)
        put = None
        if kept is not None:
            kept.begin(batch[row], used.cpu().numpy() - n_bos, ids[row, used.cpu()].numpy())
            put = partial(kept.put, batch[row])
        values[row], position = _aggregate(encoder, residual[row, used], step, config, put)
        positions[row] = used[position] - n_bos
    return values, positions


class _Back:
    """Brings a batch's results to the host; with `overlap` one batch behind, on a CUDA stream of its own."""

    def __init__(self, activations: Any, positions: Any, *, overlap: bool) -> None:
        self.targets = (activations, positions)
        self.coming: Any = None
        self.stream: Any = None
        if overlap:
            import torch

            self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def put(self, batch: list[int], *results: Any) -> None:
        """Take over a batch's results, tensors of (prompt, feature)."""
        if self.stream is None:
            self._write(batch, results)
            return
        import torch

        self.drain()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in results]
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self.stream)
        self.coming = (batch, host, done, results)  # the results must outlive their copy

    def drain(self) -> None:
        """Wait for what is still on its way."""
        if self.coming is not None:
            batch, host, done, _ = self.coming
            done.synchronize()
            self._write(batch, host)
            self.coming = None

    def _write(self, batch: list[int], results: Any) -> None:
        for target, result in zip(self.targets, results, strict=True):
            target[batch] = result.numpy()


def shard_states(data: Array, positions: Array, first: int, config: Config, backend: Backend) -> State:
    """Reduce a shard to moments and top examples; on a GPU a slice of prompts at a time, halved when memory runs out.

    Parameters
    ----------
    data : array, (prompt, feature), in the stored dtype
    positions : array, (prompt, feature), int32
        Token with the largest abs(activation); -1 where it is not known.
    first : int
        Number of the first prompt.
    config : Config
    backend : Backend

    Returns
    -------
    dict of arrays
        What a shard's states hold, for `markers.write_shard`.
    """
    options = config.extract

    def compute(step: int) -> State:
        xp = backend.xp
        moments, examples = [], []
        for start in range(0, len(data), step):
            part, where = (xp.asarray(array[start : start + step]) for array in (data, positions))
            moments.append(on_host(MOMENTS.chunk(part, options.activation_threshold, xp)))
            examples.append(on_host(EXAMPLES.chunk(part, where, first + start, options.top_examples, xp)))
        states = {f"moments.{name}": value for name, value in MOMENTS.merge(moments).items()}
        return states | {f"examples.{name}": value for name, value in EXAMPLES.merge(examples).items()}

    step = len(data) if backend.name == "cpu" else max(1, SLICE_BYTES // (data.itemsize * data.shape[1]))
    states: State = gpu.halving("extract", min(step, len(data)), compute)
    states["threshold"] = np.float64(options.activation_threshold)
    return states


def batches(
    lengths: list[int], budget: int, prompts: list[int] | None = None, most: int | None = None
) -> Iterator[list[int]]:
    """Group prompts (default all) of similar length so that prompts x longest stays within `budget` tokens.

    A prompt longer than the budget makes a batch of its own; a batch has at most `most` prompts.

    Parameters
    ----------
    lengths : list of int
        Tokens of every prompt.
    budget : int
        Tokens of a batch, padding counted.
    prompts : list of int, optional
        Places in `lengths`.
    most : int, optional

    Examples
    --------
    >>> list(batches([5, 1, 4, 9], budget=10))
    [[1, 2], [0], [3]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)) if prompts is None else prompts, key=lambda i: (lengths[i], i)):
        if batch and ((len(batch) + 1) * lengths[index] > budget or len(batch) == most):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def bos_tokens(tokenizer: Any, config: Config) -> int:
    """Return how many BOS tokens go before each prompt: 1 or 0."""
    return int(config.extract.prepend_bos and tokenizer.bos_token_id is not None)


def used_positions(ids: Any, n_bos: int, special: Any, config: Config) -> Any:
    """Return the positions of the aggregate: all, or all but special tokens (every token, where all are special).

    Parameters
    ----------
    ids : tensor, (position,), int64
        With the BOS.
    n_bos : int
    special : tensor, (id,), int64
    config : Config

    Returns
    -------
    tensor, (position,), int64
    """
    import torch

    everything = torch.arange(len(ids))
    if not config.extract.exclude_special_tokens:
        return everything
    leave_out = torch.isin(ids, special)
    leave_out[:n_bos] = True
    used = everything[~leave_out]
    return used if len(used) else everything[n_bos:]


def _aggregate(
    encoder: Any, residual: Any, step: int, config: Config, put: Callable[[Any, int], None] | None = None
) -> tuple[Any, Any]:
    """Aggregate one prompt, `step` tokens at a time: value and position of the largest abs(activation), (feature,).

    `max` is the value at that position, with its sign: SAEs without ReLU (AbsTopK) have negative activations, and all
    else here is of abs(a). `mean` and `sum` are of the signed values, which may cancel.
    """
    import torch

    how = config.extract.aggregate
    total: Any = None
    peak: Any = None
    where: Any = None
    for start in range(0, len(residual), step):
        acts = encoder.features(residual[start : start + step])
        if put is not None:
            put(acts, start)
        largest, at = acts.abs().max(dim=0)
        part = {"max": acts.gather(0, at[None])[0], "last": acts[-1]}.get(how)
        if part is None:
            part = acts.sum(dim=0, dtype=torch.float64)
        if peak is None:
            peak, where, total = largest, at + start, part
            continue
        newer = largest > peak
        peak, where = torch.where(newer, largest, peak), torch.where(newer, at + start, where)
        if how != "last":
            part = torch.where(newer, part, total) if how == "max" else total + part
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
