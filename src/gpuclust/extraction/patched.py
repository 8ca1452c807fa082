"""A whole language model with its SAE: what features write at the hook, and the output when that is changed."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclust.config import Config
from gpuclust.errors import ModelError
from gpuclust.extraction import encoders, weights
from gpuclust.hardware.device import halving
from gpuclust.types import Array

if TYPE_CHECKING:
    import torch

log = logging.getLogger("gpuclust")

# Hooks that hold a value for every pair of tokens: a decoder's vector, one a token, has no place there
OF_PAIRS = ("hook_attn_scores", "hook_pattern")
LOGIT_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}  # float32 logits of a batch, by device


@dataclass(frozen=True, eq=False)
class Patched:
    """A language model and its SAE, of which nothing is cut off.

    `reads` and `writes` are the hooks that the SAE encodes and that its decoder writes to (the same but for
    transcoders), in TransformerLens's words; `d_out` is the width of the latter (heads joined), `n_ctx` the longest row
    in tokens, `n_ids` the rows of the token embedding; `commits` are `weights.commits`.
    """

    tokenizer: Any
    reads: str
    writes: str
    d_out: int
    n_ctx: int
    n_ids: int
    device: str
    commits: dict[str, str | None]
    _net: Any = field(repr=False)
    _sae: Any = field(repr=False)

    def residual(self, ids: torch.Tensor) -> torch.Tensor:
        """Run the model up to what the SAE reads.

        Parameters
        ----------
        ids : tensor, (position,), int64

        Returns
        -------
        tensor, (position, width), in the model's dtype, on `device`
        """
        found = encoders.activation(self._net, self._net.hook_dict[self.reads], ids[None].to(self.device))
        return found[0]

    def encode(self, residual: torch.Tensor) -> torch.Tensor:
        """Encode what `residual` gave; the SAE does its own scaling. (position, feature), float32."""
        acts: torch.Tensor = self._sae.encode(residual)
        return acts

    def written(self, residual: torch.Tensor, features: Array) -> Array:
        """What features write at `writes`: ``decode(a) - decode(a without them)``, by the SAE's own decoder.

        In the units of the hook, whatever the SAE scales; what it does not explain of the hook (its error), and its
        bias, are no part of it.

        Parameters
        ----------
        residual : tensor, (position, width)
            Of `residual`.
        features : array, (feature,), int
            The SAE's numbers.

        Returns
        -------
        array, (position, d_out), float32
        """
        parts = []
        for without in (False, True):
            acts = self.encode(residual)  # each time: an SAE that scales forgets the scale as it decodes
            if without:
                acts[:, features.tolist()] = 0
            parts.append(self._sae.decode(acts).float())
        found: Array = (parts[0] - parts[1]).cpu().numpy()
        return found

    def directions(self, features: Array) -> Array:
        """What one unit of each feature writes, but for a scale by which an SAE divides whole tokens.

        Parameters
        ----------
        features : array, (feature,), int

        Returns
        -------
        array, (feature, d_out), float32
        """
        rows = self._sae.W_dec[features.tolist()].detach().float().cpu().numpy()
        if getattr(self._sae.cfg, "rescale_acts_by_decoder_norm", False):  # of TopK: its decoder divides by the norms
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        found: Array = rows
        return found

    def logits(self, ids: torch.Tensor, changes: torch.Tensor) -> torch.Tensor:
        """Run the whole model on one row of tokens, with a change added at `writes` in each of a batch.

        Parameters
        ----------
        ids : tensor, (position,), int64
        changes : tensor, (change, position, d_out), float; 0 leaves the row as it is

        Returns
        -------
        tensor, (change, position, vocabulary), in the model's dtype, on `device`
        """
        import torch

        changes = changes.to(self.device)

        def add(activation: torch.Tensor, hook: object = None) -> torch.Tensor:
            return activation + changes.reshape(activation.shape).to(activation.dtype)

        rows = ids.to(self.device).expand(len(changes), -1)
        point = self._net.hook_dict[self.writes]
        point.add_hook(add)
        try:
            with torch.no_grad():
                found: torch.Tensor = self._net(rows, return_type="logits")
        finally:
            point.remove_hooks("fwd")
        return found

    def at_a_time(self, n_tokens: int) -> int:
        """Return how many changes of a row of tokens go into a batch, next to the row itself."""
        return max(1, LOGIT_BYTES[self.device.partition(":")[0]] // (4 * n_tokens * self.n_ids) - 1)


def load_patched(config: Config, device: str = "cpu") -> Patched:
    """Load the whole of what `config.model` and `config.sae` name, and see that a change at the hook has an effect.

    Parameters
    ----------
    config : Config
    device : str, ``cpu``, ``cuda`` …

    Raises
    ------
    ModelError
        If the model or the SAE cannot be had, the SAE has no decoder, or what it writes has no place at the hook or
        does not reach the output.

    Notes
    -----
    Memory on the device: the language model in `model.dtype`, and 8 x d_in x d_sae bytes of SAE. Nothing is kept.
    """
    encoders.release()
    sae, metadata = weights.load_sae(config.sae)
    name = weights.sae_name(config.sae)
    if getattr(sae, "W_dec", None) is None:
        raise ModelError(f"the SAE {name} has no decoder (W_dec): there is nothing to take out of the hook")
    reads = encoders.hook_name(config.sae, metadata)
    writes = metadata.get("hook_name_out") or reads
    if writes.rpartition(".")[2] in OF_PAIRS:
        raise ModelError(
            f"the SAE {name} writes to {writes}, which holds a value for every pair of tokens, such as attention "
            "scores: a decoder's vector, one a token, has no place there"
        )
    loader, reason = weights.choose_loader(config.model)
    log.info("loading the whole of %s with %s, because %s", config.model.name, loader, reason)
    with weights.explained(f"the language model {config.model.name}", "model.name"), weights.quiet():
        net = weights.load_model(config.model, metadata.get("model_from_pretrained_kwargs") or {}, loader).eval()
        for hook in {reads, writes}:
            encoders.prepare_hook(net, hook, config.model.name)
        net.to(device)
    sae.to(device)
    tokenizer = encoders.load_tokenizer(config)
    sizes = (sae.W_dec.shape[1], net.cfg.n_ctx, encoders.embedding_rows(net))
    found = Patched(
        tokenizer, reads, writes, *sizes, device, weights.commits(config.model, config.sae), net, sae
    )  # fmt: skip
    _check(found, name, config.model.name)
    return found


def _check(patched: Patched, sae: str, model: str) -> None:
    """Refuse an SAE whose decoder does not fit the hook, and a hook that the output does not depend on."""
    import torch

    probe = patched.tokenizer("a", return_tensors="pt", add_special_tokens=False)["input_ids"][0, :1]
    point = patched._net.hook_dict[patched.writes]
    there = encoders.activation(patched._net, point, probe[None].to(patched.device))[0]
    if there.shape[-1] != patched.d_out:
        raise ModelError(
            f"the decoder of the SAE {sae} writes {patched.d_out} values a token, and {patched.writes} of {model} has "
            f"{there.shape[-1]}: what features write has no place there"
        )
    other = torch.randn(there.shape, generator=torch.Generator().manual_seed(0)).to(there)
    changes = torch.stack([torch.zeros_like(other), other * there.norm() / other.norm()])
    clean, changed = patched.logits(probe, changes.float())
    if torch.equal(clean, changed):
        raise ModelError(
            f"a change at {patched.writes} does not reach the output of {model}: nothing can be told of it"
        )


class OverspentError(Exception):
    """More forward passes would be needed than may be spent."""


@dataclass
class Meter:
    """Counts forward passes: one row of tokens, once through the model or up to the hook.

    Attributes
    ----------
    most, spent : int
    """

    most: int
    spent: int = 0

    def spend(self, passes: int) -> None:
        """Count passes that are about to be made; OverspentError, and nothing counted, where they would be too many."""
        if self.spent + passes > self.most:
            raise OverspentError
        self.spent += passes


@dataclass(frozen=True, eq=False)
class Outcome:
    """What changes did to the output of a row of tokens.

    Attributes
    ----------
    kl : array, (change, position), float64
        KL(p ‖ q) in nats of the next token, p without and q with the change.
    logprob : array, (change, position), float64
        ln q - ln p of the token that follows; 0 at the last position, where none does.
    shift : array, (change, vocabulary), float64
        Sum over the change's `where` of the logits' change, its mean over the vocabulary taken out.
    """

    kl: Array
    logprob: Array
    shift: Array


def outcome(patched: Patched, ids: torch.Tensor, changes: Array, where: list[Array | None], meter: Meter) -> Outcome:
    """Run changes of one row of tokens through the model, next to the row as it is in every batch.

    Parameters
    ----------
    patched : Patched
    ids : tensor, (position,), int64
    changes : array, (change, position, d_out), float32
        Added at the hook.
    where : list of int arrays or None
        Positions over which each change's `shift` is summed; None: none is wanted, and it is 0.
    meter : Meter
        A pass a change and one a batch.

    Raises
    ------
    OverspentError
        If more would be spent, before they are.
    DeviceError
        If memory runs out for one change at a time.

    Notes
    -----
    Memory: float32 logits of a batch, LOGIT_BYTES, and what the model keeps of as many rows.
    """

    def compute(size: int) -> list[tuple[Array, ...]]:
        found = []
        for start in range(0, len(changes), size):
            part = slice(start, start + size)
            meter.spend(len(changes[part]) + 1)
            found.append(_batch(patched, ids, changes[part], where[part]))
        return found

    size = min(len(changes), patched.at_a_time(len(ids)))
    kl, logprob, shift = (
        np.concatenate(own) for own in zip(*halving("validate", size, compute), strict=True)
    )  # fmt: skip
    return Outcome(kl, logprob, shift)


def _batch(patched: Patched, ids: torch.Tensor, changes: Array, where: list[Array | None]) -> tuple[Array, ...]:
    import torch

    with torch.inference_mode():
        added = torch.from_numpy(changes)
        logits = patched.logits(ids, torch.cat([torch.zeros_like(added[:1]), added]))
        clean = logits[0].float()
        before = clean.log_softmax(-1)
        p, follows = before.exp(), ids[1:, None].to(clean.device)
        kl, logprob, shift = [], [], []
        for own, row in zip(where, logits[1:], strict=True):
            changed = row.float()
            after = changed.log_softmax(-1)
            kl.append((p * (before - after)).sum(-1).clamp_(min=0))
            told = (after - before)[:-1].gather(1, follows)[:, 0]
            logprob.append(torch.cat([told, told.new_zeros(1)]))
            moved = torch.zeros_like(clean[0]) if own is None else (changed - clean)[own].sum(0)
            shift.append(moved - moved.mean())
        return tuple(torch.stack(some).cpu().numpy().astype(np.float64) for some in (kl, logprob, shift))
