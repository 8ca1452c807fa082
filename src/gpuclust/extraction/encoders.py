"""A language model and a sparse autoencoder, from the hub or from folders: tokens in, features out.

The forward pass ends at the SAE's hook: nothing after it runs, and the layers above it are dropped from memory.
PyTorch, transformers, TransformerLens and SAELens are imported inside the functions that need them.
"""

from __future__ import annotations

import gc
import json
import logging
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuclust.config import Config
from gpuclust.config_sections import ModelConfig, SaeConfig
from gpuclust.errors import ModelError
from gpuclust.extraction import weights

if TYPE_CHECKING:
    import torch

log = logging.getLogger("gpuclust")


_OPTIONAL = {"mlp_in": "hook_mlp_in", "attn_in": "attn_in", "_result": "attn_result", "_input": "split_qkv_input"}


class _StopForwardError(Exception):
    """Ends a forward pass at the hook and carries what the hook saw."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """A language model, cut off at a hook, with the SAE that reads it.

    `hook_name` is in TransformerLens's words; `d_in` is the hook's width (for ``hook_z``: heads times head width),
    `d_sae` the number of features, `n_ctx` the longest row in tokens, `n_ids` the rows of the token embedding;
    `loader` is what loaded the model; `sae_metadata` holds ``model_name``, ``hook_name``, ``neuronpedia_id``,
    ``context_size``, ``prepend_bos`` … where the SAE has them; `model_bytes` and `sae_bytes` count the weights and
    buffers that are kept, `whole_bytes` those of the whole language model, and its copies while it is loaded;
    `commits` are `weights.commits`.
    """

    tokenizer: Any
    hook_name: str
    d_in: int
    d_sae: int
    n_ctx: int
    n_ids: int
    loader: str
    device: str
    sae_metadata: dict[str, Any]
    model_bytes: int
    sae_bytes: int
    whole_bytes: int
    commits: dict[str, str | None]
    _net: Any = field(repr=False)
    _sae: Any = field(repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def encode(self, tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encode every token into SAE features: ``features(residual(tokens, attention_mask))``, 0 where padded.

        Parameters
        ----------
        tokens : tensor, (batch, position), int64; padded on the right with any id
        attention_mask : tensor, (batch, position), bool or int; 1 for tokens (one a row at least), then 0 for padding

        Returns
        -------
        tensor, (batch, position, d_sae), float32, on `device`

        Raises
        ------
        ModelError
            If the shapes disagree, padding is not on the right, or a row is longer than `n_ctx`.

        Notes
        -----
        Memory: up to 12 x batch x position x d_sae bytes; `features` on parts of `residual` needs less. Thread-safe.
        """
        acts = self.features(self.residual(tokens, attention_mask))
        return acts.masked_fill_(~attention_mask.to(acts.device).bool()[..., None], 0.0)

    def residual(self, tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Run the model up to the hook; parameters and errors as `encode`.

        Returns
        -------
        tensor, (batch, position, d_in), in the model's dtype, without meaning where padded
        """
        mask, shape = attention_mask.bool(), tuple(tokens.shape)
        if len(shape) != 2 or mask.shape != shape:
            raise ModelError(f"tokens are {shape}, attention_mask {tuple(mask.shape)}: both must be (batch, position)")
        if shape[1] > self.n_ctx:
            raise ModelError(f"a row of {shape[1]} tokens, but the model reads {self.n_ctx}: lower max_tokens")
        if not bool(mask[:, 0].all()) or bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise ModelError("attention_mask: every row needs 1s for its tokens first, then 0s for its padding")
        with self._lock:
            return _activation(self._net, tokens.to(self.device), mask.to(self.device).long())

    def features(self, residual: torch.Tensor) -> torch.Tensor:
        """Encode activations of the hook, token by token; the SAE does its own scaling.

        Parameters
        ----------
        residual : tensor, (..., d_in), any float dtype; cast to the SAE's, float32

        Returns
        -------
        tensor, (..., d_sae), float32
        """
        with self._lock:
            acts: torch.Tensor = self._sae.encode(residual.to(self.device))
        return acts


_kept: dict[tuple[str, str], Encoder] = {}  # at most one


def load_encoder(config: Config, device: str = "cpu") -> Encoder:
    """Load what `config.model` and `config.sae` name; the process keeps the last one.

    Parameters
    ----------
    config : Config; `extract.prepend_bos` is only checked against the tokenizer and the SAE
    device : str, ``cpu``, ``cuda``, ``cuda:1`` …

    Raises
    ------
    ModelError
        If the model or the SAE cannot be had, or the hook is missing, does not fire or is not as wide as the SAE.

    Notes
    -----
    Memory on the device: the weights up to the hook's layer and the embedding, in `model.dtype`, and 4 x d_in x d_sae
    bytes of SAE (8 where encoding reads the decoder). The whole model and SAE pass through host memory.
    Code that a model's repository holds is never run.
    """
    sections = {name: getattr(config, name).model_dump(mode="json") for name in ("model", "sae")}
    with weights.LOADING:
        key = (json.dumps({**sections, "bos": config.extract.prepend_bos}, sort_keys=True), str(device))
        if key not in _kept:
            release()  # before another is loaded: both may not fit
            _kept[key] = _load(*key)
        return _kept[key]


def load_tokenizer(config: Config) -> Any:
    """Load the tokenizer of `config.model`, as its folder or hub id has it; ModelError if it cannot be had.

    A folder by its whole path need hold no model, as where activations were imported.
    """
    folder = Path(config.model.name)
    alone = folder.is_absolute() and (folder / "tokenizer_config.json").is_file()
    source = str(folder) if alone else weights.locate(config.model)[0]
    with weights.explained(f"the tokenizer of {config.model.name}", "model.name"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(source, revision=config.model.revision, trust_remote_code=False)


def describe(config: Config) -> dict[str, Any]:
    """Say what `load_encoder` would load, without reading weights: loader and reason, SAE, hook, widths, metadata."""
    loader, reason = weights.choose_loader(config.model)
    folder = weights.sae_folder(config.sae)
    with weights.explained(f"the configuration of the SAE {weights.sae_name(config.sae)}", "sae.path"):
        from sae_lens.loading import pretrained_sae_loaders as loaders

        if folder is not None:
            data = loaders.handle_config_defaulting(loaders.get_sae_lens_config_from_disk(folder))
        else:
            data = loaders.load_sae_config_from_huggingface(config.sae.release, config.sae.sae_id)
    metadata = dict(data.get("metadata") or {})
    hook_name = config.sae.hook_name or metadata.get("hook_name")
    names = {"model": config.model.name, "loader": loader, "reason": reason, "sae": weights.sae_name(config.sae)}
    return {**names, "hook_name": hook_name, "d_in": data["d_in"], "d_sae": data["d_sae"], "sae_metadata": metadata}


def _load(key: str, device: str) -> Encoder:
    sections = json.loads(key)
    model, config = ModelConfig(**sections["model"]), SaeConfig(**sections["sae"])
    sae, metadata = weights.load_sae(config)
    _drop_decoder(sae)
    sae.to(device)
    hook = hook_name(config, metadata)
    loader, reason = weights.choose_loader(model)
    log.info("loading the language model %s with %s, because %s", model.name, loader, reason)
    with (
        weights.explained(f"the language model {model.name} with model.loader={loader}", "model.name"),
        weights.quiet(),
    ):
        net = weights.load_model(model, metadata.get("model_from_pretrained_kwargs") or {}, loader)
        whole = _cut(net, hook, model.name, device) * (2 if loader == "hooked" else 1)  # it copies the weights
    tokenizer = load_tokenizer(Config(model=model))
    n_ids = embedding_rows(net)
    _check_bos(tokenizer, metadata, sections["bos"], model.name, n_ids)
    probe = tokenizer("a", return_tensors="pt", add_special_tokens=False)["input_ids"][:, :1].to(device)
    width = _activation(net, probe, probe.new_ones(1, 1)).shape[-1]
    if width != sae.cfg.d_in:
        raise ModelError(
            f"the SAE {weights.sae_name(config)} reads {sae.cfg.d_in} values a token, but {hook} of {model.name} "
            f"has {width}: they do not belong together. The SAE names the model {metadata.get('model_name')} and the "
            f"hook {metadata.get('hook_name')}; correct model.name, sae or sae.hook_name"
        )
    sizes = (width, sae.cfg.d_sae, net.cfg.n_ctx, n_ids)
    kept, commits = (_size(net), _size(sae), whole), weights.commits(model, config)
    return Encoder(tokenizer, hook, *sizes, loader, device, metadata, *kept, commits, net, sae)


def hook_name(config: SaeConfig, metadata: Mapping[str, Any]) -> str:
    """Return the hook that an SAE reads, from the configuration or the SAE's metadata; ModelError where none says."""
    found = config.hook_name or metadata.get("hook_name")
    if found is None:
        raise ModelError(f"the SAE {weights.sae_name(config)} does not say which hook it reads: set sae.hook_name")
    return str(found)


def prepare_hook(net: Any, hook_name: str, name: str) -> None:
    """Switch on what makes a hook fire that is off by default.

    Parameters
    ----------
    net : HookedTransformer or TransformerBridge
    hook_name, name : str
        The hook, and what messages call the model.

    Raises
    ------
    ModelError
        If the model has no such hook.
    """
    if hook_name not in net.hook_dict:
        near = weights.did_you_mean(hook_name, net.hook_dict)
        raise ModelError(f"sae.hook_name is {hook_name}, which {name} does not have{near}")
    for ending, switch in _OPTIONAL.items():
        if hook_name.endswith(ending):
            getattr(net, f"set_use_{switch}")(True)


def _stop(activation: torch.Tensor | None, hook: object = None) -> None:
    raise _StopForwardError(activation)


def _cut(net: Any, hook_name: str, name: str, device: str) -> int:
    """Stop at the hook from now on, drop what lies after it, and move the rest to the device; bytes it had before."""
    prepare_hook(net, hook_name, name)
    net.hook_dict[hook_name].add_hook(_stop)
    before = _size(net.eval())
    if layer := re.match(r"blocks\.(\d+)\.", hook_name):
        unused = [*net.blocks[int(layer[1]) + 1 :], net.unembed]
        _empty(net, unused)
        for part in unused:  # reached only if the hook does not fire
            part.register_forward_pre_hook(lambda module, args: _stop(None))
    log.info("up to %s, %d of %d kB of weights are kept", hook_name, _size(net) >> 10, before >> 10)
    net.to(device)
    return before


def activation(net: Any, point: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Run a model that is not cut off up to a hook.

    Parameters
    ----------
    net : HookedTransformer or TransformerBridge
    point : HookPoint
    tokens : tensor, (batch, position), int64, without padding

    Returns
    -------
    tensor, (batch, position, width), heads joined

    Raises
    ------
    ModelError
        If the hook does not fire.
    """
    point.add_hook(_stop)
    try:
        return _activation(net, tokens, None)
    finally:
        point.remove_hooks("fwd")


def _activation(net: Any, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Run up to the hook; (batch, position, width), heads joined."""
    import torch

    seen: torch.Tensor | None = None
    try:
        with torch.no_grad():
            net(tokens, attention_mask=mask, return_type=None)
    except _StopForwardError as stop:
        stop.__traceback__ = None  # its frames hold the tensors of the forward pass
        seen = stop.args[0]
    if seen is None:
        raise ModelError("the hook did not fire in a forward pass: set sae.hook_name or model.loader")
    return seen.flatten(2)


def embedding_rows(net: Any) -> int:
    """Return how many ids the token embedding of a HookedTransformer or TransformerBridge knows."""
    return next(int(t.shape[0]) for t in _tensors(net.embed.modules()) if t.ndim == 2)


def _tensors(modules: Iterable[torch.nn.Module]) -> Iterator[torch.Tensor]:
    for part in modules:
        yield from (t for t in (*part._parameters.values(), *part._buffers.values()) if t is not None)


def _size(module: torch.nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones counted once."""
    return sum({t.data_ptr(): t.nbytes for t in _tensors(module.modules())}.values())


def _empty(module: torch.nn.Module, unused: Iterable[torch.nn.Module]) -> None:
    """Empty the tensors of modules that never run, but for those tied to tensors still in use."""
    inside = {part for top in unused for part in top.modules()}
    used = {t.data_ptr() for t in _tensors(part for part in module.modules() if part not in inside)}
    for tensor in _tensors(inside):
        if tensor.data_ptr() not in used:
            tensor.data = tensor.data.new_empty(0)


def _check_bos(tokenizer: Any, metadata: dict[str, Any], prepend_bos: bool, name: str, n_ids: int) -> None:
    if prepend_bos and (tokenizer.bos_token_id or 0) >= n_ids:
        raise ModelError(
            f"the tokenizer of {name} has the BOS token {tokenizer.bos_token!r} with the id {tokenizer.bos_token_id}, "
            f"but the model's embedding has {n_ids} rows: they do not belong together. Set extract.prepend_bos=false, "
            "or enlarge the embedding (transformers' resize_token_embeddings) and train it"
        )
    if prepend_bos and tokenizer.bos_token_id is None:
        way_out = "set extract.prepend_bos=false, or bos_token in the tokenizer_config.json of a local folder"
        log.warning("extract.prepend_bos is true, but the tokenizer of %s has no BOS token: %s", name, way_out)
    if (trained := metadata.get("prepend_bos")) not in (None, prepend_bos):
        log.warning("the SAE was trained with prepend_bos=%s, but extract.prepend_bos is %s", trained, prepend_bos)


def _drop_decoder(sae: Any) -> None:
    """Let go of the decoder, half of the weights, where encoding does not read it (most architectures)."""
    import torch

    decoder = sae.W_dec
    del sae.W_dec
    try:
        sae.encode(torch.ones(1, sae.cfg.d_in))
    except AttributeError:
        log.info("the SAE's decoder is kept: %s reads it to encode", type(sae).__name__)
        sae.W_dec = decoder


def release() -> None:
    """Let go of the model and SAE that this process keeps."""
    _kept.clear()
    gc.collect()  # hooks and modules refer to each other
