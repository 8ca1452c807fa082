"""A Hugging Face hub on loopback, and repositories with random weights in true shapes to put on it.

`Hub` serves folders with the part of the hub's protocol that huggingface_hub, transformers, datasets, TransformerLens
and SAELens use. huggingface_hub reads its endpoint when it is imported, so the code under test runs in a process of its
own, with `Hub.environment`::

    root = tmp_path / "hub"
    build_pythia(root, width=64, heads=4, vocab=2000)
    build_pythia_sae(root, d_sae=256)
    with Hub(root) as hub:
        subprocess.run([sys.executable, "-c", code], env=hub.environment(tmp_path / "home"), check=True)

The folders are ``root/models/OWNER/NAME`` and ``root/datasets/OWNER/NAME``. Without arguments the builders make the
true shapes: pythia-70m-deduped (70 million parameters) and its SAE of 32,768 features.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import threading
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

ALIASES = {"models": {"gpt2": "openai-community/gpt2"}, "datasets": {"wikitext": "Salesforce/wikitext"}}
DATE = "2024-01-01T00:00:00.000Z"


class Hub:
    """Serves `root` on a free port of 127.0.0.1 while its context lasts; `requests` records method and path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[tuple[str, str]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: Path) -> dict[str, str]:
        """The variables of this process, but with this hub as the only one, and an empty cache in `home`."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE", "TRANSFORMERS_"))}
        proxies = {name: "127.0.0.1" for name in ("NO_PROXY", "no_proxy")}
        return {
            **keep,
            **proxies,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `Hub.requests` has it."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.requests.append((self.command, self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        api = parts[0] == "api"
        kind = parts[1] if api and len(parts) > 1 else "datasets" if parts[0] == "datasets" else "models"
        start = 2 if api else int(kind == "datasets")
        repo_id, tail = "/".join(parts[start : start + 2]), parts[start + 2 :]
        if parts[start : start + 1] and parts[start] in ALIASES.get(kind, {}):
            name = parts[start]
            location = self.path.replace(f"/{name}", f"/{ALIASES[kind][name]}", 1)
            self._send(HTTPStatus.TEMPORARY_REDIRECT, headers={"Location": location})
            return
        repo = self.hub.root / kind / repo_id
        if kind not in ALIASES or not repo.is_dir() or not repo_id:
            self._error("RepoNotFound", "Repository not found")
            return
        commit = commit_of(repo)
        action, rest = (tail[0], tail[1:]) if tail else ("revision", ["main"])
        if action in ("revision", "tree", "paths-info", "resolve") and rest[0] not in ("main", commit):
            self._error("RevisionNotFound", f"Invalid rev id: {rest[0]}")
        elif not api and action == "resolve":
            self._file(repo, "/".join(rest[1:]), commit)
        elif api and action == "revision":
            self._json(_info(repo, repo_id, commit))
        elif api and action == "tree":
            folder = repo / "/".join(rest[1:])
            if folder.is_dir():
                self._json(_tree(repo, folder, query.get("recursive", "").lower() in ("1", "true")))
            else:
                self._error("EntryNotFound", f"{'/'.join(rest[1:])} does not exist on {rest[0]!r}")
        elif api and action == "paths-info":
            is_json = "json" in self.headers.get("Content-Type", "")
            paths = json.loads(body)["paths"] if is_json else parse_qs(body.decode())["paths"]
            self._json([_entry(repo, repo / path) for path in paths if (repo / path).exists()])
        elif api and action == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
            self._json({"branches": [main], "converts": [], "tags": []})
        else:
            self._error("EntryNotFound", f"no such page: {self.path}")

    def _file(self, repo: Path, path: str, commit: str) -> None:
        file = (repo / path).resolve()
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not file.is_relative_to(repo.resolve()) or not file.is_file():
            self._error("EntryNotFound", "Entry not found", headers)
            return
        size = file.stat().st_size
        headers |= {"ETag": f'"{_digest(file)}"', "Content-Disposition": f'inline; filename="{file.name}"'}
        first, last, status = 0, size - 1, HTTPStatus.OK
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(match[1]) if match[1] else size - int(match[2])
            last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._head(status, last - first + 1, {"Content-Type": "application/octet-stream", **headers})
        if self.command != "HEAD":
            with file.open("rb") as stream:
                stream.seek(first)
                left = last - first + 1
                while left and (block := stream.read(min(left, 1 << 20))):
                    self.wfile.write(block)
                    left -= len(block)

    def _json(self, data: Any) -> None:
        self._send(HTTPStatus.OK, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _error(self, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}
        self._send(HTTPStatus.NOT_FOUND, json.dumps({"error": message}).encode(), {**named, **(headers or {})})

    def _send(self, status: HTTPStatus, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self._head(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def commit_of(repo: Path) -> str:
    """Return the commit that the hub says a repository is at."""
    listing = [(str(p.relative_to(repo)), p.stat().st_size, p.stat().st_mtime_ns) for p in _files(repo)]
    return hashlib.sha1(json.dumps(listing).encode()).hexdigest()


def _digest(file: Path) -> str:
    stat = file.stat()
    return _digest_of(file, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _digest_of(file: Path, size: int, mtime: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _info(repo: Path, repo_id: str, commit: str) -> dict[str, Any]:
    return {
        "_id": commit[:24],
        "id": repo_id,
        "modelId": repo_id,
        "author": repo_id.split("/")[0],
        "sha": commit,
        "lastModified": DATE,
        "createdAt": DATE,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [{"rfilename": path.relative_to(repo).as_posix()} for path in _files(repo)],
    }


def _tree(repo: Path, folder: Path, recursive: bool) -> list[dict[str, Any]]:
    return [_entry(repo, path) for path in sorted(folder.rglob("*") if recursive else folder.iterdir())]


def _entry(repo: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(repo).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
    return {"type": "file", "oid": _digest(path)[:40], "size": path.stat().st_size, "path": name}


# ---------------------------------------------------------------- text

# subjects, actions, objects: enough for prompts that differ by topic
_TOPICS = {
    "Astronomy": ("the telescope|a comet|the observatory", "measured|followed|eclipsed", "distant stars|the planet"),
    "Cooking": ("the baker|a cook|the recipe", "kneaded|simmered|seasoned", "fresh bread|onion soup"),
    "Football": ("the striker|a goalkeeper|the team", "scored against|defended|passed to", "the visitors|a rival club"),
    "Law": ("the court|a judge|the senate", "ruled on|appealed|amended", "the treaty|a new statute"),
    "Medicine": ("the surgeon|a nurse|the clinic", "treated|diagnosed|vaccinated", "sick children|an infection"),
    "Music": ("the orchestra|a violinist|the choir", "performed|rehearsed|composed", "a symphony|two quartets"),
    "Ornithology": ("the warbler|a falcon|the flock", "nested beside|hunted|migrated over", "the marsh|small rodents"),
    "Programming": ("the compiler|a function|the server", "parsed|returned|allocated", "an array|the pointer"),
    "Railways": ("the locomotive|a signalman|the express", "hauled|delayed|crossed", "coal wagons|the viaduct"),
    "Sailing": ("the captain|a schooner|the crew", "anchored near|charted|sailed past", "the harbour|rocky islands"),
    "Volcanoes": ("the volcano|a geologist|the eruption", "buried|mapped|shook", "the village|layers of ash"),
    "Weaving": ("the loom|a weaver|the workshop", "dyed|spun|embroidered", "silk thread|woollen cloth"),
}
_WHEN = ("in 1904", "before the war", "during the winter", "at dawn", "for the first time", "after long debate")


def paragraph(topic: str, sentences: int, rng: random.Random) -> str:
    """Sentences about one of the topics, spaced like wikitext: `Word , word .`"""
    subjects, actions, objects = (part.split("|") for part in _TOPICS[topic])
    made = []
    for _ in range(sentences):
        when = rng.choice(_WHEN)
        said = f"{rng.choice(subjects)} {rng.choice(actions)} {rng.choice(objects)} {when}"
        if rng.random() < 0.4:
            said += f" , and {rng.choice(subjects)} {rng.choice(actions)} {rng.choice(objects)}"
        made.append(said[0].upper() + said[1:] + " .")
    return " ".join(made)


def texts(count: int = 60, seed: int = 0) -> list[str]:
    """Paragraphs of one to eight sentences, topics in turn."""
    rng = random.Random(seed)
    topics = list(_TOPICS)
    return [paragraph(topics[i % len(topics)], rng.randint(1, 8), rng) for i in range(count)]


def wikitext_rows(articles: int, seed: int) -> list[str]:
    """Rows as wikitext-2-raw-v1 has them: a line a row, blanks between, ` = Heading = ` and ` = = Section = = `."""
    rng = random.Random(seed)
    rows = [""]
    for number in range(articles):
        topic = rng.choice(list(_TOPICS))
        rows += [f" = {topic} {number} = \n", ""]
        for section in range(rng.randint(1, 3)):
            if section:
                rows += [f" = = {rng.choice(('History', 'Reception', 'Description'))} = = \n", ""]
            for _ in range(rng.randint(1, 3)):
                rows += [f" {paragraph(topic, rng.randint(2, 12), rng)} \n", ""]
    return rows


def build_wikitext(root: Path, articles: int = 60, seed: int = 0) -> Path:
    """Make ``Salesforce/wikitext``, configuration ``wikitext-2-raw-v1``, as parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    repo = root / "datasets" / "Salesforce" / "wikitext"
    folder = repo / "wikitext-2-raw-v1"
    folder.mkdir(parents=True)
    sizes = {"test": max(articles // 10, 1), "train": articles, "validation": max(articles // 10, 1)}
    for number, (split, size) in enumerate(sizes.items()):
        table = pa.table({"text": pa.array(wikitext_rows(size, seed + number), pa.string())})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    files = "".join(f"  - split: {split}\n    path: wikitext-2-raw-v1/{split}-*\n" for split in sizes)
    card = f"---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n{files}---\n"
    (repo / "README.md").write_text(card)
    return repo


# ---------------------------------------------------------------- models


def build_tokenizer(folder: Path, special_first: bool = True, vocab: int = 2000) -> None:
    """Train a byte-level BPE tokenizer on `texts` and write ``tokenizer.json`` into `folder`.

    ``<|endoftext|>`` has the first id, as for GPT-NeoX, or else the last, as for GPT-2.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    special = ["<|endoftext|>", "<|padding|>"] if special_first else []
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - 1, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def build_pythia(
    root: Path, *, layers: int = 6, width: int = 512, heads: int = 8, vocab: int = 50304, seed: int = 0
) -> Path:
    """Make ``EleutherAI/pythia-70m-deduped`` with random weights: the files and the float16 of the hub."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    repo = root / "models" / "EleutherAI" / "pythia-70m-deduped"
    build_tokenizer(repo, vocab=min(vocab, 2000))
    token = "<|endoftext|>"
    about = {"add_prefix_space": False, "bos_token": token, "eos_token": token, "unk_token": token}
    _write(repo / "tokenizer_config.json", {**about, "tokenizer_class": "GPTNeoXTokenizer"})
    _write(repo / "special_tokens_map.json", {"bos_token": token, "eos_token": token, "unk_token": token})
    config = {
        "architectures": ["GPTNeoXForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "gelu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": 4 * width,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "model_type": "gpt_neox",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.24.0",
        "use_cache": True,
        "use_parallel_residual": True,
        "vocab_size": vocab,
    }
    torch.manual_seed(seed)
    _save_model(GPTNeoXForCausalLM(GPTNeoXConfig(**config)).half(), repo)
    _write(repo / "config.json", config)
    return repo


def build_gpt2(
    root: Path, *, layers: int = 9, width: int = 64, heads: int = 4, vocab: int = 1000, seed: int = 0
) -> Path:
    """Make ``openai-community/gpt2`` with random weights, small unless told otherwise (true: 12, 768, 12, 50257)."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    repo = root / "models" / "openai-community" / "gpt2"
    build_tokenizer(repo, special_first=False, vocab=min(vocab, 2000))
    last = json.loads((repo / "tokenizer.json").read_text())["added_tokens"][0]["id"]
    _write(repo / "tokenizer_config.json", {"model_max_length": 1024, "tokenizer_class": "GPT2Tokenizer"})
    config = {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": last,
        "embd_pdrop": 0.1,
        "eos_token_id": last,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": width,
        "n_head": heads,
        "n_layer": layers,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "vocab_size": vocab,
    }
    torch.manual_seed(seed)
    _save_model(GPT2LMHeadModel(GPT2Config(**config)), repo)
    _write(repo / "config.json", config)
    return repo


# ---------------------------------------------------------------- sparse autoencoders


def build_pythia_sae(root: Path, *, layer: int = 3, d_sae: int = 32768, seed: int = 0) -> Path:
    """Make the SAE ``blocks.LAYER.hook_mlp_out`` of ``pythia-70m-deduped-mlp-sm``, for the model already in `root`."""
    model = root / "models" / "EleutherAI" / "pythia-70m-deduped"
    activations = _activations(model, lambda net: net.gpt_neox.layers[layer].mlp.register_forward_hook, last=True)
    repo = root / "models" / "ctigges" / "pythia-70m-deduped__mlp-sm_processed"
    about = {
        "model_name": "pythia-70m-deduped",
        "hook_point": f"blocks.{layer}.hook_mlp_out",
        "hook_point_layer": layer,
        "dataset_path": "EleutherAI/the_pile_deduplicated",
    }
    _save_sae(repo / f"{layer}-mlp-sm", activations, about, d_sae, seed)
    return repo


def build_gpt2_sae(root: Path, *, layer: int = 8, d_sae: int = 256, seed: int = 0) -> Path:
    """Make the SAE ``blocks.LAYER.hook_resid_pre`` of ``gpt2-small-res-jb`` (true: 24,576 features)."""
    model = root / "models" / "openai-community" / "gpt2"
    activations = _activations(model, lambda net: net.transformer.h[layer].register_forward_pre_hook, last=False)
    repo = root / "models" / "jbloom" / "GPT2-Small-SAEs-Reformatted"
    about = {
        "model_name": "gpt2-small",
        "hook_point": f"blocks.{layer}.hook_resid_pre",
        "hook_point_layer": layer,
        "dataset_path": "Skylion007/openwebtext",
    }
    centred = activations - activations.mean(-1, keepdim=True)
    _save_sae(repo / f"blocks.{layer}.hook_resid_pre", centred, about, d_sae, seed)
    return repo


def _activations(folder: Path, register: Any, last: bool) -> Any:
    """What a hook sees on `texts`: (token, width) float32. `last` takes a hook's output, else its input."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen: list[Any] = []
    register(net)(lambda module, args, *output: seen.append(output[0] if last else args[0]))
    with torch.no_grad():
        for text in texts(seed=1):
            net.base_model(input_ids=torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]]))
    return torch.cat([part[0] for part in seen])


def _save_sae(folder: Path, activations: Any, about: dict[str, Any], d_sae: int, seed: int) -> None:
    """Write a ReLU SAE whose features fire on 0.2% to 10% of the tokens (2.5% on average), one in twenty on none.

    Each encoder direction lies near one token's activation, several features to a token, so there are clusters to find;
    the bias is minus the projection's quantile. The files are those of SAELens before version 6, as on the hub.
    """
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    n, d_in = activations.shape
    mean = activations.mean(0)
    centred = activations - mean
    scale = centred.norm(dim=1).mean() / d_in**0.5
    prototype = torch.randint(0, n, (max(d_sae // 16, 2),), generator=generator)
    owner = torch.randint(0, len(prototype), (d_sae,), generator=generator)
    noise = 0.5 * scale * torch.randn(d_sae, d_in, generator=generator)
    directions = torch.nn.functional.normalize(centred[prototype[owner]] + noise, dim=1)
    density = 0.002 * 50 ** torch.rand(d_sae, generator=generator)
    rank = (density * n).long().clamp(1, n // 10 + 1)
    threshold = torch.empty(d_sae)
    for part in torch.arange(d_sae).split(4096):
        top = (centred @ directions[part].T).topk(n // 10 + 2, dim=0).values
        k = rank[part][None]
        threshold[part] = (top.gather(0, k - 1) + top.gather(0, k))[0] / 2
    dead = torch.rand(d_sae, generator=generator) < 0.05
    threshold[dead] = 2 * centred.norm(dim=1).max()
    weights = {
        "W_enc": directions.T / scale,
        "b_enc": -threshold / scale,
        "W_dec": directions * scale,
        "b_dec": mean,
    }
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.float().contiguous() for name, tensor in weights.items()}, folder / "sae_weights.safetensors"
    )
    save_file({"sparsity": torch.where(dead, -10.0, density.log10())}, folder / "sparsity.safetensors")
    config = {
        **about,
        "hook_point_head_index": None,
        "context_size": 128,
        "d_in": d_in,
        "d_sae": d_sae,
        "device": "cuda",
        "dtype": "torch.float32",
        "expansion_factor": d_sae // d_in,
        "is_dataset_tokenized": False,
        "seed": 42,
    }
    _write(folder / "cfg.json", config)


def _save_model(model: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    shared: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in shared:  # tied weights are stored once
            tensors[name] = tensor.contiguous()
            shared.add(tensor.data_ptr())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n")
