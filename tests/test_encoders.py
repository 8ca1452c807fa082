"""Models and SAEs from folders, against plain transformers and SAELens, and every refusal."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpuclust.config import Config
from gpuclust.config_sections import ModelConfig
from gpuclust.configfile import load, validate
from gpuclust.errors import ModelError
from gpuclust.extraction import encoders, weights
from tests.hub import build_tokenizer

WIDTH, LAYERS, D_SAE, VOCAB = 64, 4, 48, 400
HOOKS = ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z")
CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny GPT-NeoX (parallel residual) and Llama (grouped queries, gated MLP), weights large enough to matter."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    shape = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(0)
    made = {
        "neox": GPTNeoXForCausalLM(GPTNeoXConfig(**shape, tie_word_embeddings=True)),
        "llama": LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2)),
    }
    root = tmp_path_factory.mktemp("models")
    for name, net in made.items():
        net.save_pretrained(root / name)
        write_tokenizer(root / name)
    return {name: root / name for name in made}


def write_tokenizer(folder: Path, **special: str) -> None:
    build_tokenizer(folder, vocab=VOCAB)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**about, **special}))


def write_sae(folder: Path, hook_name: str | None, d_in: int = WIDTH, kind: str = "standard", **settings: Any) -> Path:
    """Save a random SAE with SAELens."""
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

    classes = {
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig),
        "transcoder": (sae_lens.Transcoder, sae_lens.TranscoderConfig),
        "temporal": (sae_lens.TemporalSAE, sae_lens.TemporalSAEConfig),
    }
    sae_class, config_class = classes[kind]
    about = {"hook_name": hook_name, "model_name": "tiny", "prepend_bos": True, "context_size": 32}
    metadata = SAEMetadata(**{key: value for key, value in about.items() if value is not None})
    torch.manual_seed(1)
    sae = sae_class(config_class(d_in=d_in, d_sae=D_SAE, metadata=metadata, **settings))
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sae.save_model(folder)
    return folder


def config_for(
    model: Path | str, sae: Path, *, prepend_bos: bool = True, hook: str | None = None, **model_: Any
) -> Config:
    data = {"model": {"name": str(model), **model_}, "sae": {"path": str(sae), "hook_name": hook}}
    return validate({**data, "extract": {"prepend_bos": prepend_bos}})


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows of 12, 7 and 1 tokens, padded on the right with arbitrary ids."""
    tokens = torch.randint(1, VOCAB - 50, (3, 12), generator=torch.Generator().manual_seed(2))
    return tokens, torch.arange(12)[None] < torch.tensor([12, 7, 1])[:, None]


def plain(folder: Path, hook_name: str, tokens: torch.Tensor) -> torch.Tensor:
    """What a forward hook of plain transformers sees; the reference."""
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    _, layer, hook = hook_name.split(".", 2)
    block = net.base_model.layers[int(layer)]
    attention = getattr(block, "attention", None) or block.self_attn
    out = getattr(attention, "dense", None) or attention.o_proj
    seen: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        value = {"hook_resid_pre": args[0], "attn.hook_z": args[0]}.get(hook, output)
        seen.append(value[0] if isinstance(value, tuple) else value)

    {"hook_mlp_out": block.mlp, "attn.hook_z": out}.get(hook, block).register_forward_hook(keep)
    with torch.no_grad():
        net(input_ids=tokens)
    return seen[0]


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    return write_sae(tmp_path / "sae", "blocks.1.hook_resid_post")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    encoders.release()
    yield
    encoders.release()


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("hook_name", HOOKS)
@pytest.mark.parametrize("name", ["neox", "llama"])
def test_bridge_equals_plain_transformers(folders: dict[str, Path], tmp_path: Path, name: str, hook_name: str) -> None:
    from sae_lens import SAE

    settings = {"reshape_activations": "hook_z"} if hook_name.endswith("hook_z") else {}
    path = write_sae(tmp_path / "sae", hook_name, **settings)
    tokens, mask = batch()
    encoder = encoders.load_encoder(config_for(folders[name], path))
    reference = plain(folders[name], hook_name, tokens)
    sae = SAE.load_from_disk(str(path))
    sae.turn_off_forward_pass_hook_z_reshaping()
    assert (encoder.loader, encoder.hook_name, encoder.d_in, encoder.d_sae) == ("bridge", hook_name, WIDTH, D_SAE)
    torch.testing.assert_close(encoder.residual(tokens, mask)[mask], reference[mask], atol=1e-5, rtol=0)
    features = encoder.encode(tokens, mask)
    assert features.shape == (3, 12, D_SAE)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features[mask], sae.encode(reference)[mask].detach(), atol=1e-5, rtol=0)
    assert 0.2 < (features[mask] > 0).float().mean() < 0.8
    assert not features[~mask].any()


def test_padding_does_not_change_real_tokens(folders: dict[str, Path], sae: Path) -> None:
    encoder = encoders.load_encoder(config_for(folders["neox"], sae))
    tokens, mask = batch()
    together = encoder.encode(tokens, mask)
    for row, length in enumerate([12, 7, 1]):
        alone = encoder.encode(tokens[row : row + 1, :length], torch.ones(1, length))
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=0)
    other = torch.where(mask, tokens, 0)  # padded with the BOS, EOS and pad token: ids do not matter
    assert torch.equal(encoder.encode(other, mask), together)


@pytest.mark.parametrize("hook_name", ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"])
def test_nothing_after_the_hook_runs_or_stays(folders: dict[str, Path], tmp_path: Path, hook_name: str) -> None:
    encoder = encoders.load_encoder(config_for(folders["llama"], write_sae(tmp_path / "sae", hook_name)))
    ran: list[str] = []
    for name, part in encoder._net.named_modules():
        if name in ("blocks.0", "blocks.1", "blocks.2", "blocks.3", "unembed"):
            part.register_forward_pre_hook(lambda module, args, name=name: ran.append(name))
    encoder.encode(*batch())
    assert ran == ["blocks.0", "blocks.1"]
    assert {p.numel() for p in encoder._net.blocks[2].original_component.parameters()} == {0}
    whole = sum(file.stat().st_size for file in folders["llama"].glob("*.safetensors"))
    assert 0.3 * whole < encoder.model_bytes < 0.65 * whole
    assert encoder.sae_bytes == 4 * (WIDTH * D_SAE + WIDTH + D_SAE)  # without the decoder


def test_tied_embedding_survives_the_cut(folders: dict[str, Path], sae: Path) -> None:
    encoder = encoders.load_encoder(config_for(folders["neox"], sae))
    assert encoder._net.embed.weight.shape == (VOCAB, WIDTH)
    assert encoder._net.unembed.weight.shape == (VOCAB, WIDTH)


def test_processed_weights_centre_the_residual_stream(folders: dict[str, Path], sae: Path) -> None:
    tokens, mask = batch()
    raw = plain(folders["neox"], "blocks.1.hook_resid_post", tokens)[mask]
    encoder = encoders.load_encoder(config_for(folders["neox"], sae, processed=True))
    processed = encoder.residual(tokens, mask)[mask]
    torch.testing.assert_close(processed, raw - raw.mean(-1, keepdim=True), atol=2e-5, rtol=0)


def test_the_saes_own_processing_is_applied(folders: dict[str, Path], sae: Path) -> None:
    cfg = json.loads((sae / "cfg.json").read_text())
    cfg["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    (sae / "cfg.json").write_text(json.dumps(cfg))
    tokens, mask = batch()
    raw = plain(folders["neox"], "blocks.1.hook_resid_post", tokens)[mask]
    encoder = encoders.load_encoder(config_for(folders["neox"], sae))
    centred = encoder.residual(tokens, mask)[mask]
    torch.testing.assert_close(centred, raw - raw.mean(-1, keepdim=True), atol=2e-5, rtol=0)


def test_dtype_is_the_models_and_features_are_float32(folders: dict[str, Path], sae: Path) -> None:
    tokens, mask = batch()
    exact = encoders.load_encoder(config_for(folders["llama"], sae)).encode(tokens, mask)
    encoder = encoders.load_encoder(config_for(folders["llama"], sae, dtype="bfloat16"))
    assert encoder.residual(tokens, mask).dtype == torch.bfloat16
    features = encoder.encode(tokens, mask)
    assert features.dtype == torch.float32
    assert 0 < (features - exact).abs().max() < 0.1 * exact.max()


def test_the_sae_normalises_by_itself(folders: dict[str, Path], tmp_path: Path) -> None:
    from sae_lens import SAE

    path = write_sae(tmp_path / "sae", "blocks.1.hook_resid_post", normalize_activations="layer_norm")
    encoder = encoders.load_encoder(config_for(folders["llama"], path))
    residual = torch.randn(5, WIDTH)
    assert torch.equal(encoder.features(residual), SAE.load_from_disk(str(path)).encode(residual).detach())


def test_a_transcoder_is_read_at_its_input(folders: dict[str, Path], tmp_path: Path) -> None:
    settings = {"d_out": WIDTH, "apply_b_dec_to_input": False}
    path = write_sae(tmp_path / "sae", "blocks.1.hook_mlp_in", kind="transcoder", **settings)
    tokens, mask = batch()
    encoder = encoders.load_encoder(config_for(folders["neox"], path))
    entering = plain(folders["neox"], "blocks.1.hook_resid_pre", tokens)  # parallel residual: the MLP reads the same
    torch.testing.assert_close(encoder.residual(tokens, mask)[mask], entering[mask], atol=1e-5, rtol=0)


def test_demo_names_the_embedded_folders(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(folders["neox"])
    write_sae(tmp_path / "sae", "blocks.2.hook_resid_post")
    monkeypatch.setattr(weights, "DEMO", tmp_path)
    encoder = encoders.load_encoder(Config())
    assert (encoder.hook_name, encoder.n_ctx, encoder.tokenizer.bos_token_id) == ("blocks.2.hook_resid_post", 32, 0)


# ---------------------------------------------------------------- loading


def test_a_process_loads_once(folders: dict[str, Path], sae: Path) -> None:
    config = config_for(folders["neox"], sae)
    first = encoders.load_encoder(config)
    assert encoders.load_encoder(config.model_copy(update={"n_prompts": 7})) is first
    assert encoders.load_encoder(config_for(folders["neox"], sae, dtype="bfloat16")) is not first


def test_threads_share_an_encoder(folders: dict[str, Path], sae: Path) -> None:
    tokens, mask = batch()
    expected = encoders.load_encoder(config_for(folders["neox"], sae)).encode(tokens, mask)
    encoders.release()
    seen: list[tuple[encoders.Encoder, torch.Tensor]] = []

    def work() -> None:
        encoder = encoders.load_encoder(config_for(folders["neox"], sae))
        seen.extend((encoder, encoder.encode(tokens, mask)) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 15
    assert len({id(encoder) for encoder, _ in seen}) == 1
    assert all(torch.equal(features, expected) for _, features in seen)


def test_describe_agrees_with_the_encoder(folders: dict[str, Path], sae: Path) -> None:
    config = config_for(folders["neox"], sae)
    told, encoder = encoders.describe(config), encoders.load_encoder(config)
    for name in ("loader", "hook_name", "d_in", "d_sae"):
        assert told[name] == getattr(encoder, name)
    assert told["sae_metadata"] == encoder.sae_metadata
    assert encoder.sae_metadata["context_size"] == 32
    assert "local folder" in told["reason"]


@pytest.mark.parametrize(
    ("name", "loader", "source", "reason"),
    [
        ("gpt2-small", "hooked", "gpt2", "knows this model"),
        ("EleutherAI/pythia-70m-deduped", "hooked", "EleutherAI/pythia-70m-deduped", "knows this model"),
        ("microsoft/phi-2", "bridge", "microsoft/phi-2", "would run code of the repository"),
        ("somebody/something", "bridge", "somebody/something", "does not know"),
    ],
)
def test_auto_chooses_a_loader_and_says_why(name: str, loader: str, source: str, reason: str) -> None:
    config = ModelConfig(name=name)
    chosen, why = weights.choose_loader(config)
    assert chosen == loader
    assert reason in why
    assert weights.locate(config)[0] == source


def test_the_choice_is_logged_with_its_reason(
    folders: dict[str, Path], sae: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="gpuclust"):
        encoders.load_encoder(config_for(folders["neox"], sae))
    assert (
        f"loading the language model {folders['neox']} with bridge, because {folders['neox']} is a local" in caplog.text
    )
    assert "up to blocks.1.hook_resid_post" in caplog.text
    assert capsys.readouterr().out == ""


def test_importing_is_quick() -> None:
    code = (
        "import sys, gpuclust.extraction.encoders\n"
        "print(sorted({'torch', 'transformers', 'sae_lens'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("model", "sae_", "words"),
    [
        ({"name": "/nowhere/model"}, {}, ["model.name is /nowhere/model", "config.json"]),
        ({"name": "./nowhere"}, {}, ["model.name is ./nowhere", "config.json"]),
        ({"loader": "hooked"}, {}, ["takes only hub ids", "model.loader=bridge"]),
        ({"loader": "hooked", "name": "microsoft/phi-2"}, {}, ["would run code", "model.loader=bridge"]),
        ({"loader": "hooked", "name": "somebody/something"}, {}, ["does not know", "model.loader=bridge"]),
        ({}, {"hook_name": "blocks.1.hook_resid_pots"}, ["hook_resid_pots", "did you mean blocks.1.hook_resid_post"]),
        ({}, {"hook_name": "blocks.9.hook_resid_post"}, ["blocks.9.hook_resid_post", "did you mean blocks."]),
        ({}, {"hook_name": "blocks.1.attn.hook_rot_q"}, ["the hook did not fire", "sae.hook_name", "model.loader"]),
        ({}, {"hook_name": "blocks.1.mlp.hook_post"}, ["reads 64 values", "has 96", "names the model tiny"]),
        ({}, {"path": "/nowhere/sae"}, ["sae.path is /nowhere/sae", "cfg.json"]),
        ({}, {"path": None}, ["no SAE is named", "sae.release"]),
        (
            {},
            {"path": None, "release": "pythia-70m-mlp-sm", "sae_id": "x"},
            ["sae.release is pythia-70m-mlp-sm", "pythia-70m-deduped-mlp-sm"],
        ),
        (
            {},
            {"path": None, "release": "pythia-70m-deduped-mlp-sm", "sae_id": "blocks.7.hook_mlp_out"},
            ["blocks.7.hook_mlp_out", "did you mean blocks."],
        ),
    ],
)
def test_refusals(
    folders: dict[str, Path], sae: Path, model: dict[str, Any], sae_: dict[str, Any], words: list[str]
) -> None:
    config = validate({"model": {"name": str(folders["neox"]), **model}, "sae": {"path": str(sae), **sae_}})
    with pytest.raises(ModelError) as refused:
        encoders.load_encoder(config)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda sae: write_sae(sae, None), ["does not say which hook", "sae.hook_name"]),
        (
            lambda sae: write_sae(sae, HOOKS[1], normalize_activations="expected_average_only_in"),
            ["expected_average_only_in", "fold_activation_norm_scaling_factor"],
        ),
        (
            lambda sae: write_sae(sae, HOOKS[1], kind="temporal", n_heads=1, bottleneck_factor=1, kval_topk=4),
            ["is temporal"],
        ),
        (lambda sae: (sae / "sae_weights.safetensors").write_bytes(b"broken"), ["cannot load the SAE", "sae.path"]),
    ],
    ids=["no hook", "unfolded scaling", "temporal", "broken weights"],
)
def test_saes_that_are_refused(
    folders: dict[str, Path], sae: Path, spoil: Callable[[Path], object], words: list[str]
) -> None:
    spoil(sae)
    with pytest.raises(ModelError) as refused:
        encoders.load_encoder(config_for(folders["neox"], sae))
    for word in words:
        assert word in str(refused.value)
    assert (refused.value.__cause__ is not None) == str(refused.value).startswith("cannot load")


def test_processing_that_the_bridge_cannot_do_is_refused(folders: dict[str, Path], sae: Path) -> None:
    cfg = json.loads((sae / "cfg.json").read_text())
    cfg["metadata"]["model_from_pretrained_kwargs"] = {"n_ctx": 16}
    (sae / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(ModelError, match=r"n_ctx.*model\.loader=hooked"):
        encoders.load_encoder(config_for(folders["neox"], sae))


def test_without_a_hub_the_way_out_is_a_folder(sae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot load the language model somebody/something") as refused:
        encoders.load_encoder(config_for("somebody/something", sae))
    assert "set model.name to a local folder, HF_HOME" in str(refused.value)
    assert refused.value.__cause__ is not None
    with pytest.raises(ModelError, match=r"cannot load the SAE somebody/saes layer.*set sae\.path to a local folder"):
        encoders.load_encoder(validate({"sae": {"release": "somebody/saes", "sae_id": "layer"}}))


def test_running_out_of_memory_is_not_blamed_on_the_model() -> None:
    with pytest.raises(torch.OutOfMemoryError), weights.explained("x", "model.name"):
        raise torch.OutOfMemoryError("full")


def test_a_tokenizer_without_bos_is_told(
    folders: dict[str, Path], sae: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folders["neox"].iterdir():
        (bare / file.name).symlink_to(file)
    (bare / "tokenizer_config.json").unlink()
    (bare / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    encoders.load_encoder(config_for(bare, sae))
    assert "has no BOS token: set extract.prepend_bos=false, or bos_token in the tokenizer_config.json" in caplog.text
    caplog.clear()
    encoders.load_encoder(config_for(bare, sae, prepend_bos=False))
    assert "no BOS token" not in caplog.text
    assert "the SAE was trained with prepend_bos=True, but extract.prepend_bos is False" in caplog.text


@pytest.mark.parametrize(
    ("tokens", "mask", "words"),
    [
        (torch.ones(2, 3).long(), torch.ones(2, 4), r"\(2, 3\).*\(2, 4\)"),
        (torch.ones(3).long(), torch.ones(3), r"\(3,\)"),
        (torch.ones(1, 33).long(), torch.ones(1, 33), "33 tokens, but the model reads 32"),
        (torch.ones(1, 3).long(), torch.tensor([[0, 1, 1]]), "first"),
        (torch.ones(1, 3).long(), torch.tensor([[1, 0, 1]]), "first"),
        (torch.ones(2, 2).long(), torch.tensor([[1, 1], [0, 0]]), "first"),
    ],
)
def test_batches_that_are_refused(
    folders: dict[str, Path], sae: Path, tokens: torch.Tensor, mask: torch.Tensor, words: str
) -> None:
    encoder = encoders.load_encoder(config_for(folders["neox"], sae))
    with pytest.raises(ModelError, match=words):
        encoder.encode(tokens, mask)


def test_remote_code_is_never_trusted(folders: dict[str, Path], sae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    asked: list[Any] = []

    def boot(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["trust_remote_code"])
        raise RuntimeError("enough")

    monkeypatch.setattr(TransformerBridge, "boot_transformers", boot)
    with pytest.raises(ModelError, match="RuntimeError: enough"):
        encoders.load_encoder(config_for(folders["neox"], sae))
    assert asked == [False]


# ---------------------------------------------------------------- configurations that ship


OTHERS = {CONFIGS / f"{name}.yaml" for name in ("local", "questions", "questions-local")}  # no names, or sweeps


@pytest.mark.parametrize("file", sorted(set(CONFIGS.glob("*.yaml")) - OTHERS), ids=lambda file: file.stem)
def test_shipped_configurations_name_what_exists(file: Path) -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
    from transformer_lens.loading_from_pretrained import get_official_model_name

    config = load(file)
    release = get_pretrained_saes_directory()[config.sae.release or ""]
    assert config.sae.sae_id in release.saes_map
    assert get_official_model_name(release.model) == get_official_model_name(config.model.name)
    assert weights.sae_folder(config.sae) is None
    assert weights.choose_loader(config.model)[0] in ("hooked", "bridge")


def test_notebook_settings() -> None:
    config = load(CONFIGS / "notebook.yaml")
    told = SimpleNamespace(**config.resolved())
    assert told.model["processed"]
    assert told.extract["aggregate"] == "mean"
    assert not told.extract["exclude_special_tokens"]
    assert told.extract["activation_threshold"] == 0.005
    assert (config.n_prompts, config.min_tokens, config.max_tokens) == (1000, 25, 250)
    assert (config.prompts[0].dataset, config.prompts[0].name) == ("Salesforce/wikitext", "wikitext-2-raw-v1")
    assert [told.select[key] for key in ("entropy_low", "entropy_high", "sparsity_min", "sparsity_max")] == [
        0,
        15,
        0.005,
        1,
    ]
    assert [told.umap[key] for key in ("n_components", "n_neighbors", "min_dist", "metric")] == [50, 15, 0.1, "cosine"]
    keys = ("min_cluster_size", "min_samples", "cluster_selection_epsilon")
    assert [told.hdbscan[key] for key in keys] == [10, 10, 0.01]
    assert config.store == Config().store


@pytest.mark.parametrize("needed", [False, True])
def test_decoder_is_let_go_of_where_encoding_does_not_read_it(needed: bool) -> None:
    class Sae(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cfg = SimpleNamespace(d_in=3)
            self.W_enc = torch.nn.Parameter(torch.ones(3, 5))
            self.W_dec = torch.nn.Parameter(2 * torch.ones(5, 3))

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.W_enc * (self.W_dec.norm(dim=-1) if needed else 1)

    sae = Sae()
    expected = sae.encode(torch.ones(2, 3))
    encoders._drop_decoder(sae)
    assert hasattr(sae, "W_dec") == needed
    assert torch.equal(sae.encode(torch.ones(2, 3)), expected)
