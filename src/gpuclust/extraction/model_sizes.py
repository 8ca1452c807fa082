"""What ``--plan`` knows of model and SAE without reading weights: their widths and bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gpuclust import schema
from gpuclust.config import Config
from gpuclust.errors import ModelError
from gpuclust.extraction import encoders, weights
from gpuclust.section import parse_bytes

STATED = (
    "set plan.d_in (width of the hook), plan.d_sae (features) and plan.model_bytes (weights up to the hook, with a "
    "unit or as a number of bytes), such as --set plan.d_in=768 plan.d_sae=24576 plan.model_bytes=0.5GB"
)


def facts(config: Config) -> dict[str, Any]:
    """Return ``model``, ``source`` (what the figures are of), ``d_in``, ``d_sae``, ``model_bytes`` and ``sae_bytes``.

    From the section `plan` of the configuration where it is given; else from the configurations of model and SAE, in
    their folders or on the hub.

    Raises
    ------
    ModelError
        If they are out of reach and `plan` is not given.
    """
    stated = config.plan
    if stated.d_in and stated.d_sae and stated.model_bytes:
        found = {"d_in": stated.d_in, "d_sae": stated.d_sae, "model_bytes": parse_bytes(stated.model_bytes)}
        source = "shapes as stated in the configuration's plan"
    elif config.model.name == schema.IMPORTED:
        raise ModelError(
            f"these are settings of activations that were imported from {config.sae.path}, without a model: --reuse of "
            "that run plans what would follow from them"
        )
    else:
        try:
            with weights.quiet_hub():
                about = encoders.describe(config)
                found = {name: about[name] for name in ("d_in", "d_sae")}
                found["model_bytes"] = model_bytes(config, about["hook_name"])
        except ModelError as error:
            what = str(error)
            if weights.out_of_reach(error):
                what = f"{what.partition(' (')[0]}: the hub is out of reach. Set HF_HOME to a cache that holds it, or "
                what += "HF_ENDPOINT to a mirror"
            raise ModelError(f"{what}. --plan also does with stated shapes: {STATED}") from error
        source = str(about["hook_name"])
    return {"model": config.model.name, "source": source, "sae_bytes": 4 * found["d_in"] * found["d_sae"], **found}


def recorded(prompts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same of activations that are there, as the record of their stage `prompts` says it.

    Of imported ones there is neither model nor SAE, so that ``d_in`` and ``model_bytes`` are 0.

    Parameters
    ----------
    prompts : mapping
        ``d_in``, ``d_sae``, ``model_bytes`` and ``attributes`` of the store.
    """
    found = {name: int(prompts[name]) for name in ("d_in", "d_sae", "model_bytes")}
    about = prompts["attributes"]
    source = about["sae"] if about["model"] == schema.IMPORTED else about["hook_name"]
    return {"model": about["model"], "source": source, "sae_bytes": 4 * found["d_in"] * found["d_sae"], **found}


def model_bytes(config: Config, hook_name: str | None) -> int:
    """Bound the bytes of a language model's weights up to a hook's layer, embedding included, in ``model.dtype``.

    The weights are counted, and a fifth added for what TransformerLens keeps beside them: attention masks, rotary
    tables, split copies of joint attention weights.
    """
    import torch

    source, _ = weights.locate(config.model)
    with weights.explained(f"the configuration of {config.model.name}", "model.name"):
        from transformers import AutoConfig, AutoModelForCausalLM

        about = AutoConfig.from_pretrained(source, revision=config.model.revision, trust_remote_code=False)
        with torch.device("meta"):
            net = AutoModelForCausalLM.from_config(about)
    layer = re.match(r"blocks\.(\d+)\.", hook_name or "")
    unused: set[int] = set()
    if layer:
        lists = [part for part in net.modules() if isinstance(part, torch.nn.ModuleList)]
        blocks = next((part for part in lists if len(part) == about.num_hidden_layers), ())
        head = net.get_output_embeddings()
        beyond = [*list(blocks)[int(layer[1]) + 1 :], *([] if head is None else [head])]
        unused = {id(weight) for part in beyond for weight in part.parameters()}
        unused -= {id(weight) for weight in net.get_input_embeddings().parameters()}  # tied to the head
    width = 4 if config.model.dtype == "float32" else 2
    return int(1.2 * width * sum(weight.numel() for weight in net.parameters() if id(weight) not in unused))
