"""The rows on which a set of features is tried, and what it writes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuclust.errors import ModelError
from gpuclust.extraction import extract_shard, patched
from gpuclust.results.run import Run
from gpuclust.types import Array

PROMPTS = 5  # of a set
OFF = 0.1  # relative error of activations above which the model or the SAE is another than the run's


@dataclass(frozen=True, eq=False)
class Subject:
    """A run with its model.

    Attributes
    ----------
    run : Run
    model : Patched
    feature, label, times : array, (kept feature,), int64
        The SAE's numbers, clusters, and on how many prompts each fires.
    norm : array, (kept feature,), float64
        Norm of what each writes where it fires, mean over prompts.
    top : tuple of arrays, (example,)
        Of the strongest prompts of every feature: its place among the kept ones, the prompt, and the norm of what it
        writes where it is strongest.
    """

    run: Run
    model: patched.Patched
    feature: Array
    label: Array
    times: Array
    norm: Array
    top: tuple[Array, Array, Array]


def subject(run: Run, model: patched.Patched) -> Subject:
    """Gather what is known of a run's features.

    Parameters
    ----------
    run : Run
    model : Patched
    """
    kept = run.features[run.features["kept"].to_numpy(bool)]
    feature = kept["feature"].to_numpy(np.int64)
    share = np.maximum(kept["sparsity"].to_numpy(np.float64), np.finfo(np.float64).tiny)
    length = np.linalg.norm(model.directions(feature), axis=1)
    norm = kept["mean"].to_numpy(np.float64) / share * length
    label, times = (kept[name].to_numpy(np.int64) for name in ("label", "n_active"))
    examples = run.examples[run.examples["feature"].isin(feature)]
    place = np.searchsorted(feature, examples["feature"].to_numpy(np.int64))
    top = (place, examples["prompt"].to_numpy(np.int64), examples["value"].abs().to_numpy(np.float64) * length[place])
    return Subject(run, model, feature, label, times, norm, top)


@dataclass(frozen=True, eq=False)
class Row:
    """A prompt on which a set of features is active.

    Attributes
    ----------
    ids : tensor, (position,), int64
        With the BOS, where the run has one.
    at : array, (active,), int64
        Positions on which one of them is active at least, and another kept feature.
    written : array, (active, d_out), float32
        By all of them.
    residual : tensor, (active, width)
    acts : array, (active, feature), float32
        Of the set.
    others : scipy.sparse.csr_array, (active, kept feature), float32
        Of all kept features that are not of the set.
    """

    ids: Any
    at: Array
    written: Array
    residual: Any
    acts: Array
    others: Any

    def placed(self, changes: Sequence[Array]) -> Array:
        """Put changes of the active positions where they belong, (change, position, d_out), float32; 0 elsewhere."""
        found = np.zeros((len(changes), len(self.ids), self.written.shape[1]), np.float32)
        found[:, self.at] = changes
        return found


def rows(x: Subject, own: Array, meter: patched.Meter, check: bool = False) -> list[Row]:
    """Find the prompts on which features write most, of the strongest of each, and what they write there.

    Parameters
    ----------
    x : Subject
    own : array, (feature,), int
        Places among the kept features.
    meter : Meter
        A pass a prompt.
    check : bool
        Whether to hold the activations against those of the run.

    Returns
    -------
    list of Row
        PROMPTS at most; none where no feature is active.

    Raises
    ------
    OverspentError
    ModelError
        If activations are not those of the run.
    """
    import torch
    from scipy.sparse import csr_array

    place, prompt_of, norm = x.top
    ours = np.isin(place, own)
    strength = np.bincount(prompt_of[ours], norm[ours], minlength=len(x.run.prompts))
    prompts = np.argsort(-strength, kind="stable")[:PROMPTS]
    prompts = prompts[strength[prompts] > 0]
    config, tokenizer = x.run.config, x.model.tokenizer
    n_bos = extract_shard.bos_tokens(tokenizer, config)
    special = torch.tensor(sorted(tokenizer.all_special_ids), dtype=torch.long)
    found, peaks = [], []
    with torch.inference_mode():
        for prompt in prompts.tolist():
            tokens = np.asarray(x.run.prompts["tokens"].iat[prompt], np.int64)
            if tokens.max(initial=0) >= x.model.n_ids or len(tokens) + n_bos > x.model.n_ctx:
                raise ModelError(
                    f"prompt {prompt} of {x.run.path} has {len(tokens)} tokens with ids up to {tokens.max()}, and the "
                    f"model reads {x.model.n_ctx} tokens of {x.model.n_ids} ids: it is not the model of the run"
                )
            ids = torch.from_numpy(np.concatenate([[tokenizer.bos_token_id] * n_bos, tokens]).astype(np.int64))
            meter.spend(1)
            used = extract_shard.used_positions(ids, n_bos, special, config)
            residual = x.model.residual(ids)[used.to(x.model.device)]
            everything = x.model.encode(residual)[:, x.feature.tolist()].float().cpu().numpy()
            everything[np.abs(everything) <= config.extract.activation_threshold] = 0
            acts = everything[:, own]
            peaks.append(_aggregated(acts, config.extract.aggregate))
            everything[:, own] = 0
            active = np.flatnonzero(acts.any(axis=1) & everything.any(axis=1))
            if len(active):
                residual = residual[torch.from_numpy(active).to(residual.device)]
                written = x.model.written(residual, x.feature[own])
                at, others = used.numpy()[active], csr_array(everything[active])
                found.append(Row(ids, at, written, residual, acts[active], others))
    if check and len(prompts):
        _check(x.run, prompts, x.feature[own], np.stack(peaks))
    return found


def _aggregated(acts: Array, how: str) -> Array:
    """One prompt's activations over its tokens, (feature,), as the run has them."""
    peak = np.take_along_axis(acts, np.abs(acts).argmax(axis=0)[None], axis=0)[0]
    found: Array = {"max": peak, "last": acts[-1], "sum": acts.sum(axis=0), "mean": acts.mean(axis=0)}[how]
    return found


def _check(run: Run, prompts: Array, features: Array, found: Array) -> None:
    stored = run.activations.isel(prompt=prompts, feature=features).values
    off = float(np.linalg.norm(found - stored) / max(np.linalg.norm(stored), np.finfo(np.float32).tiny))
    if not off <= OFF:
        raise ModelError(
            f"the activations of prompt {prompts[0]} and others are off those of {run.path} by {off:.0%} (at most "
            f"{OFF:.0%} is rounding): {run.config.model.name} or its SAE is not what the run was made with"
        )
