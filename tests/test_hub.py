"""Release, id and hub names through a hub on loopback, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.hub import (
    Hub,
    build_gpt2,
    build_gpt2_sae,
    build_pythia,
    build_pythia_sae,
    build_wikitext,
    commit_of,
    wikitext_rows,
)

PYTHIA = {"release": "pythia-70m-deduped-mlp-sm", "sae_id": "blocks.3.hook_mlp_out"}
GPT2 = {"release": "gpt2-small-res-jb", "sae_id": "blocks.8.hook_resid_pre"}
IGNORED = (
    "The 'utils' module has been deprecated",  # SAELens imports it from TransformerLens
    "HookedTransformer is deprecated",
    "HookedTransformer.from_pretrained is deprecated",
)
STRICT = ["-W", "error", *(part for text in IGNORED for part in ("-W", f"ignore:{text}:DeprecationWarning"))]
LOADS = {
    "pythia": {"model": {"name": "pythia-70m-deduped"}, "sae": PYTHIA},
    "pythia-bridge": {"model": {"name": "EleutherAI/pythia-70m-deduped", "loader": "bridge"}, "sae": PYTHIA},
    "pythia-processed": {"model": {"name": "pythia-70m-deduped", "processed": True}, "sae": PYTHIA},
    "pythia-revision": {"model": {"name": "pythia-70m-deduped", "revision": "main"}, "sae": PYTHIA},
    "gpt2": {"model": {"name": "gpt2-small"}, "sae": GPT2},
    "no-model": {"model": {"name": "EleutherAI/pythia-160m"}, "sae": PYTHIA},
    "no-revision": {"model": {"name": "pythia-70m-deduped", "revision": "step7"}, "sae": PYTHIA},
    "no-sae": {"model": {"name": "pythia-70m-deduped"}, "sae": {**PYTHIA, "sae_id": "blocks.0.hook_mlp_out"}},
}
TEXT = "The telescope measured the planet in 1904 , and a comet eclipsed distant stars . The crew sailed ."
SCRIPT = """
import json, pathlib, sys
import numpy, torch
from gpuclust.extraction import encoders
from gpuclust.configfile import validate
from gpuclust.errors import ModelError

torch.set_num_threads(1)
loads, text, out = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
told, arrays = {}, {}
for name, data in loads.items():
    config = validate(data)
    try:
        encoder = encoders.load_encoder(config)
    except ModelError as error:
        told[name] = {"error": str(error), "cause": type(error.__cause__).__name__}
        continue
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[encoder.tokenizer.bos_token_id, *ids]])
    mask = torch.ones_like(tokens)
    arrays[name + "/tokens"] = tokens.numpy()
    arrays[name + "/residual"] = encoder.residual(tokens, mask).numpy()
    arrays[name + "/features"] = encoder.encode(tokens, mask).numpy()
    fields = ("loader", "hook_name", "d_in", "d_sae", "n_ctx", "n_ids", "sae_metadata", "model_bytes", "sae_bytes")
    fields = (*fields, "commits")
    told[name] = {field: getattr(encoder, field) for field in fields} | {"described": encoders.describe(config)}
numpy.savez(out + "/arrays.npz", **arrays)
pathlib.Path(out, "told.json").write_text(json.dumps(told))
"""
DATASETS = """
import json, pathlib, sys
from datasets import load_dataset
from huggingface_hub import HfApi

out = {}
for streaming in (True, False):
    rows = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="train", streaming=streaming)
    out[str(streaming)] = [row["text"] for row in rows]
api = HfApi()
info = api.dataset_info("wikitext")
out["id"], out["files"] = info.id, sorted(api.list_repo_files("Salesforce/wikitext", repo_type="dataset"))
(entry,) = api.get_paths_info("Salesforce/wikitext", ["README.md", "none"], repo_type="dataset")
out["size"] = entry.size
pathlib.Path(sys.argv[1]).write_text(json.dumps(out))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    build_pythia(folder, width=64, heads=4, vocab=2000)
    build_pythia_sae(folder, d_sae=256)
    build_gpt2(folder)
    build_gpt2_sae(folder)
    build_wikitext(folder, articles=20)
    return folder


@pytest.fixture(scope="module")
def hub(root: Path) -> Iterator[Hub]:
    with Hub(root) as served:
        yield served


@pytest.fixture(scope="module")
def loaded(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What LOADS gave in a process that sees only the loopback hub."""
    folder = tmp_path_factory.mktemp("loaded")
    return run_loads(hub, LOADS, folder)


def run_loads(hub: Hub, loads: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    run([SCRIPT, json.dumps(loads), TEXT, str(folder)], hub.environment(folder / "home"), STRICT)
    with np.load(folder / "arrays.npz") as arrays:
        return json.loads((folder / "told.json").read_text()), dict(arrays)


def run(arguments: list[str], environment: dict[str, str], flags: list[str] | None = None) -> None:
    command = [sys.executable, *(flags or []), "-c", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def reference(root: Path, name: str, tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain transformers up to the hook, then the ReLU SAE's own formula on the raw files."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    repo, sae = {
        "pythia": ("EleutherAI/pythia-70m-deduped", "ctigges/pythia-70m-deduped__mlp-sm_processed/3-mlp-sm"),
        "gpt2": ("openai-community/gpt2", "jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre"),
    }[name.split("-")[0]]
    net = AutoModelForCausalLM.from_pretrained(
        root / "models" / repo, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    seen: list[torch.Tensor] = []
    if name == "gpt2":
        net.transformer.h[8].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    else:
        net.gpt_neox.layers[3].mlp.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        net(input_ids=torch.from_numpy(tokens))
    x = seen[0]
    if name in ("gpt2", "pythia-processed"):  # centred writing weights
        x = x - x.mean(-1, keepdim=True)
    w = load_file(root / "models" / sae / "sae_weights.safetensors")
    return x, torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loader"),
    [
        ("pythia", "hooked"),
        ("pythia-bridge", "bridge"),
        ("pythia-processed", "hooked"),
        ("pythia-revision", "hooked"),
        ("gpt2", "hooked"),
    ],
)
def test_hub_names_equal_plain_transformers(root: Path, loaded: Any, name: str, loader: str) -> None:
    told, arrays = loaded[0][name], loaded[1]
    tokens = arrays[f"{name}/tokens"]
    residual, features = reference(root, name, tokens)
    assert told["loader"] == loader
    assert (told["d_in"], told["d_sae"]) == (64, 256)
    assert told["n_ctx"] == {"gpt2": 1024}.get(name, 2048)
    assert 0.002 < (features > 0).float().mean() < 0.1
    np.testing.assert_allclose(arrays[f"{name}/residual"], residual.numpy(), atol=1e-5)
    np.testing.assert_allclose(arrays[f"{name}/features"], features.numpy(), atol=1e-4)


@pytest.mark.slow
def test_the_hubs_commits_are_known(root: Path, loaded: Any) -> None:
    expected = {
        "model_commit": commit_of(root / "models" / "EleutherAI/pythia-70m-deduped"),
        "sae_commit": commit_of(root / "models" / "ctigges/pythia-70m-deduped__mlp-sm_processed"),
    }
    assert loaded[0]["pythia"]["commits"] == loaded[0]["pythia-revision"]["commits"] == expected


@pytest.mark.slow
def test_metadata_from_the_release(loaded: Any) -> None:
    told = loaded[0]["pythia"]
    metadata = told["sae_metadata"]
    assert metadata["neuronpedia_id"] == "pythia-70m-deduped/3-mlp-sm"
    assert (metadata["model_name"], metadata["context_size"], metadata["prepend_bos"]) == (
        "pythia-70m-deduped",
        128,
        True,
    )
    assert told["described"]["d_sae"] == 256
    assert told["described"]["hook_name"] == told["hook_name"] == "blocks.3.hook_mlp_out"
    assert loaded[0]["gpt2"]["sae_metadata"]["model_from_pretrained_kwargs"] == {"center_writing_weights": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-model", ["cannot load the language model EleutherAI/pythia-160m", "local folder"]),
        ("no-revision", ["cannot load the language model pythia-70m-deduped", "step7"]),
        (
            "no-sae",
            ["cannot load the SAE pythia-70m-deduped-mlp-sm blocks.0.hook_mlp_out", "Entry Not Found", "sae.path"],
        ),
    ],
)
def test_what_the_hub_lacks_is_said(loaded: Any, name: str, words: list[str]) -> None:
    told = loaded[0][name]
    assert told["cause"].endswith("Error")
    for word in words:
        assert word in told["error"]


@pytest.mark.slow
def test_datasets_reads_wikitext(hub: Hub, root: Path, tmp_path: Path) -> None:
    run([DATASETS, str(tmp_path / "out.json")], hub.environment(tmp_path / "home"), STRICT)
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["True"] == out["False"] == wikitext_rows(20, seed=1)
    assert out["id"] == "Salesforce/wikitext"
    assert "wikitext-2-raw-v1/train-00000-of-00001.parquet" in out["files"]
    assert out["size"] == (root / "datasets/Salesforce/wikitext/README.md").stat().st_size


@pytest.mark.slow
def test_the_notebooks_configuration_runs_by_its_names(hub: Hub, tmp_path: Path) -> None:
    config = Path(__file__).parents[1] / "configs" / "notebook.yaml"
    small = ["n_prompts=60", "umap.n_components=4", "umap.n_epochs=30", "sae.release=pythia-70m-deduped-mlp-sm"]
    arguments = ["--config", str(config), "--out", str(tmp_path / "run"), "--scheduler", "threads", "--quiet"]
    command = "import sys; from gpuclust.run import main; sys.exit(main(sys.argv[1:]))"
    run([command, *arguments, "--set", *small], hub.environment(tmp_path / "home"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    about = record["stages"]["prompts"]["attributes"]
    assert (about["model"], about["hook_name"]) == ("EleutherAI/pythia-70m-deduped", "blocks.3.hook_mlp_out")
    assert about["loader"] == "hooked"
    assert record["stages"]["prompts"]["rows"] == 60
    assert record["stages"]["reduce"]["rows"] == 256
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_true_shapes(tmp_path: Path) -> None:
    build_pythia(tmp_path / "hub")
    build_pythia_sae(tmp_path / "hub")
    with Hub(tmp_path / "hub") as hub:
        told, arrays = run_loads(hub, {"pythia": LOADS["pythia"]}, tmp_path)
    assert (told["pythia"]["d_in"], told["pythia"]["d_sae"], told["pythia"]["n_ids"]) == (512, 32768, 50304)
    assert told["pythia"]["model_bytes"] == pytest.approx(4 * (50304 * 512 + 4 * 12 * 512**2), rel=0.02)
    assert told["pythia"]["sae_bytes"] == pytest.approx(4 * 512 * 32768, rel=0.01)  # the decoder is let go of
    density = (arrays["pythia/features"] > 0).mean()
    assert 0.005 < density < 0.08


# ---------------------------------------------------------------- the hub itself


def ask(hub: Hub, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection(hub.endpoint.removeprefix("http://"))
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), body


def test_files_and_ranges(hub: Hub, root: Path) -> None:
    path = "/EleutherAI/pythia-70m-deduped/resolve/main/config.json"
    content = (root / "models/EleutherAI/pythia-70m-deduped/config.json").read_bytes()
    status, head, body = ask(hub, "HEAD", path)
    assert (status, body, int(head["Content-Length"])) == (200, b"", len(content))
    assert len(head["X-Repo-Commit"]) == 40
    assert ask(hub, "GET", path)[2] == content
    pinned = path.replace("main", head["X-Repo-Commit"])
    assert ask(hub, "HEAD", pinned)[1]["ETag"] == head["ETag"]
    for asked, expected in (("bytes=5-9", content[5:10]), ("bytes=5-", content[5:]), ("bytes=-7", content[-7:])):
        status, answered, body = ask(hub, "GET", path, Range=asked)
        assert (status, body) == (206, expected)
        assert answered["Content-Range"].endswith(f"/{len(content)}")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/nobody/nothing/resolve/main/config.json", "RepoNotFound"),
        ("/api/models/nobody/nothing", "RepoNotFound"),
        ("/EleutherAI/pythia-70m-deduped/resolve/step9/config.json", "RevisionNotFound"),
        ("/EleutherAI/pythia-70m-deduped/resolve/main/none.json", "EntryNotFound"),
        ("/EleutherAI/pythia-70m-deduped/resolve/main/..%2F..%2F..%2Fpyproject.toml", "EntryNotFound"),
        ("/api/models/EleutherAI/pythia-70m-deduped/tree/main/none", "EntryNotFound"),
    ],
)
def test_what_is_not_there(hub: Hub, path: str, code: str) -> None:
    status, headers, _ = ask(hub, "GET", path)
    assert (status, headers["X-Error-Code"]) == (404, code)


def test_old_names_are_redirected(hub: Hub) -> None:
    status, headers, _ = ask(hub, "HEAD", "/gpt2/resolve/main/config.json")
    assert (status, headers["Location"]) == (307, "/openai-community/gpt2/resolve/main/config.json")
    assert json.loads(ask(hub, "GET", "/api/models/openai-community/gpt2")[2])["id"] == "openai-community/gpt2"


def test_trees(hub: Hub) -> None:
    path = "/api/datasets/Salesforce/wikitext/tree/main"
    flat = json.loads(ask(hub, "GET", f"{path}?recursive=false")[2])
    assert {entry["path"]: entry["type"] for entry in flat} == {"README.md": "file", "wikitext-2-raw-v1": "directory"}
    assert len(json.loads(ask(hub, "GET", f"{path}?recursive=true")[2])) == 5


def test_wikitext_rows_look_like_wikitext() -> None:
    rows = wikitext_rows(30, seed=0)
    assert rows[0] == ""
    assert 0.4 < sum(row == "" for row in rows) / len(rows) < 0.6
    assert sum(row.startswith(" = ") and not row.startswith(" = = ") for row in rows) == 30
    assert any(row.startswith(" = = ") for row in rows)
    assert all(row.startswith(" ") and row.endswith(" \n") for row in rows if row)


def test_sae_features_differ_in_density(root: Path) -> None:
    from safetensors.torch import load_file

    folder = root / "models/ctigges/pythia-70m-deduped__mlp-sm_processed/3-mlp-sm"
    density = 10 ** load_file(folder / "sparsity.safetensors")["sparsity"]
    alive = density[density > 1e-9]
    assert 0.9 < len(alive) / len(density) < 1
    assert alive.max() / alive.min() > 20
    assert 0.01 < alive.mean() < 0.05
