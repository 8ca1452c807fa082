"""What a configuration's sections `model` and `sae` name: found, refused before anything is downloaded, and loaded.

Everything is loaded on the host; `encoders` cuts it to what encoding needs and moves it to the device.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import logging
import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpuclust.config_sections import DEMO, DEMO_SAES, ModelConfig, SaeConfig
from gpuclust.errors import ModelError
from gpuclust.hardware.device import is_out_of_memory

log = logging.getLogger("gpuclust")

LOADING = threading.Lock()  # one at a time in a process
_PROCESSING = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")


def load_model(config: ModelConfig, kwargs: dict[str, Any], loader: str) -> Any:
    """Load a HookedTransformer or a TransformerBridge, on the host: both have the same hooks and the same call.

    Parameters
    ----------
    config : ModelConfig
    kwargs : dict
        What the SAE was trained with (``model_from_pretrained_kwargs``).
    loader : {"hooked", "bridge"}
        As from `choose_loader`.

    Raises
    ------
    ModelError
        If the loader cannot do what the configuration or the SAE asks for.
    """
    import torch
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge

    source, dtype = locate(config)[0], getattr(torch, config.dtype)
    if loader == "hooked":
        if why := _why_not_hooked(config):
            raise ModelError(f"model.loader is hooked, but {why}: set model.loader=bridge")
        revision = {"revision": config.revision} if config.revision else {}
        ours = {"device": "cpu", "dtype": dtype, "n_devices": 1, **revision}
        if config.processed:
            return HookedTransformer.from_pretrained(source, **ours)
        return HookedTransformer.from_pretrained_no_processing(source, **{**kwargs, **ours})
    kwargs = dict.fromkeys(_PROCESSING, True) if config.processed else kwargs
    if unknown := {key: value for key, value in kwargs.items() if key not in _PROCESSING}:
        raise ModelError(f"the SAE asks for {unknown}, which model.loader=bridge cannot do: set model.loader=hooked")
    lean = {"use_cache": False, "output_attentions": False}  # the bridge keeps every layer's attention otherwise
    net = TransformerBridge.boot_transformers(
        source, lean, device="cpu", dtype=dtype, revision=config.revision, trust_remote_code=False
    )
    if any(kwargs.values()):
        net.enable_compatibility_mode(disable_warnings=True, **{**dict.fromkeys(_PROCESSING, False), **kwargs})
    return net


def choose_loader(config: ModelConfig) -> tuple[str, str]:
    """Return the loader, ``hooked`` or ``bridge``, and the reason for it."""
    if config.loader != "auto":
        return config.loader, "model.loader says so"
    why = _why_not_hooked(config)
    return ("bridge", why) if why else ("hooked", "HookedTransformer knows this model")


def _why_not_hooked(config: ModelConfig) -> str | None:
    source, kind = locate(config)
    if kind == "folder":
        return f"{source} is a local folder, and HookedTransformer takes only hub ids"
    from transformer_lens.loading_from_pretrained import NEED_REMOTE_CODE_MODELS

    if source.startswith(NEED_REMOTE_CODE_MODELS):
        return f"for {source} HookedTransformer would run code of the repository"
    return None if kind == "known" else f"HookedTransformer does not know {source}"


def locate(config: ModelConfig) -> tuple[str, str]:
    """Return what to load from, and what it is.

    A ``folder``, an id ``known`` to HookedTransformer (aliases resolved), or an id ``unknown`` to it.

    Raises
    ------
    ModelError
        If it can only be a folder, and no model is there.
    """
    folder = DEMO / "model" if config.name == "demo" else Path(config.name)
    if (folder / "config.json").is_file():
        return str(folder), "folder"
    if folder.is_dir() or folder.is_absolute() or config.name.startswith("."):
        raise ModelError(f"model.name is {config.name}, but there is no {(folder / 'config.json').absolute()}")
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    official = make_model_alias_map().get(config.name.lower())
    return (official, "known") if official else (config.name, "unknown")


def load_sae(config: SaeConfig) -> tuple[Any, dict[str, Any]]:
    """Load the SAE in float32, on the host, and its metadata as plain data.

    Raises
    ------
    ModelError
        If it cannot be had, or it does not encode token by token what the hook holds.
    """
    folder = sae_folder(config)
    with explained(f"the SAE {sae_name(config)}", "sae.path"), quiet():
        from sae_lens import SAE

        if folder is not None:
            sae = SAE.load_from_disk(str(folder), device="cpu", dtype="float32")
        else:
            sae = SAE.from_pretrained(config.release, config.sae_id, device="cpu", dtype="float32")
    if (scaling := sae.cfg.normalize_activations) in ("expected_average_only_in", "covariance_whitening"):
        raise ModelError(
            f"the SAE {sae_name(config)} was trained on scaled activations (normalize_activations={scaling}), but the "
            "scale is neither in its weights nor beside them: fold it with sae.fold_activation_norm_scaling_factor or "
            "sae.fold_activation_whitening of SAELens, and save the SAE again"
        )
    if sae.cfg.architecture() == "temporal":
        raise ModelError(f"the SAE {sae_name(config)} is temporal: it reads whole sequences, not token by token")
    sae.turn_off_forward_pass_hook_z_reshaping()  # heads arrive joined
    return sae.eval().requires_grad_(False), json.loads(json.dumps(sae.cfg.metadata.to_dict(), default=str))


def sae_folder(config: SaeConfig) -> Path | None:
    """Return the SAE's folder, or None for a release and id that SAELens lists.

    Raises
    ------
    ModelError
        If the folder lacks a file, or SAELens does not list the release or id; before anything is downloaded.
    """
    if config.path is not None:
        folder = DEMO / DEMO_SAES[config.path] if config.path in DEMO_SAES else Path(config.path)
        for name in ("cfg.json", "sae_weights.safetensors"):
            if not (folder / name).is_file():
                raise ModelError(f"sae.path is {config.path}, but there is no {(folder / name).absolute()}")
        return folder
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release, sae_id, known = config.release, config.sae_id, get_pretrained_saes_directory()
    if release is None or sae_id is None:
        raise ModelError("no SAE is named: set sae.path, or sae.release and sae.sae_id")
    if release not in known and "/" not in release:
        raise ModelError(f"sae.release is {release}, which SAELens does not list{did_you_mean(release, known)}")
    if release in known and sae_id not in known[release].saes_map:
        near = did_you_mean(sae_id, known[release].saes_map)
        raise ModelError(f"sae.sae_id is {sae_id}, which is not in the release {release}{near}")
    return None


def commits(model: ModelConfig, sae: SaeConfig) -> dict[str, str | None]:
    """Return the commits that ``model_commit`` and ``sae_commit`` of a hub have in this machine's cache.

    None where there is none: of a local folder, or before it is loaded. SAELens reads the branch ``main``.
    """
    repository: str | None = None
    if sae.release is not None and sae.sae_id is not None:
        from sae_lens.loading.pretrained_saes_directory import get_repo_id_and_folder_name

        repository, _ = get_repo_id_and_folder_name(sae.release, sae.sae_id)
    source, kind = locate(model)
    return {
        "model_commit": None if kind == "folder" else _commit(source, model.revision or "main"),
        "sae_commit": None if repository is None else _commit(repository, "main"),
    }


def _commit(repository: str, revision: str) -> str | None:
    """Return the commit of a revision, as the hub's cache has it."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    reference = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "refs" / revision
    return reference.read_text(encoding="utf8").strip() if reference.is_file() else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest names like one that is not known, as the end of a sentence; empty where none is."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    return f": did you mean {', '.join(near)}?" if near else ""


def sae_name(config: SaeConfig) -> str:
    """Name the SAE in messages: its folder, or release and id."""
    return config.path or f"{config.release} {config.sae_id}"


@contextlib.contextmanager
def explained(what: str, key: str) -> Iterator[None]:
    """Turn what a library raises into a ModelError that names the way out; the library's own error stays chained."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ModelError) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"cannot load {what} ({type(error).__name__}: {reason}). Without a connection to the hub, set {key} to a "
            "local folder, HF_HOME to a cache that holds it, or HF_ENDPOINT to a mirror"
        ) from error


def out_of_reach(error: BaseException | None) -> bool:
    """Whether an error comes of a hub that cannot be reached, and a cache that does not hold what is asked for."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Leave out what the hub's client says of every try, of which the error at last says enough."""
    from huggingface_hub.utils import logging as hub_logging  # sets its level when it is imported

    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what TransformerLens prints to the log; leave out SAELens's warnings about what is seen to or refused."""
    from transformers.utils import logging as hf_logging

    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty model_from_pretrained_kwargs")
        warnings.filterwarnings("ignore", message=r"norm_scaling_factor not found for")
        hf_logging.disable_progress_bar()  # of loading, not of downloading
        yield
    for line in printed.getvalue().splitlines():
        log.debug("%s", line)
