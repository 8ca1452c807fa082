"""Controls that embarrass: do the same pipeline and the same tests find clusters where no model learned anything?

    python -m benchmarks.controls CONFIG --texts FILE.jsonl --work FOLDER [--tokens 400000] [--passes 2500]
        [--out FILE.json]

CONFIG is a run's. Three kinds of features go through the same run, over tokens and over prompts, and the same tests
(`gpuclust validate`, with ``--cause`` where there is a model):

- model: the language model and the SAE of CONFIG;
- re-initialised: the model's architecture with fresh random weights (`from_config` of transformers, one seed), and a
  BatchTopK SAE of as many features and as many active ones, trained by SAELens on its activations of FILE.jsonl
  (a JSON object with ``text`` a line; texts that are no prompts of CONFIG), at the same hook;
- words: no model at all, a feature is a token of the vocabulary, 1 on the tokens that are it.

Prints, for both kinds of rows, how many clusters pass each test. What is there in FOLDER is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gpuclust import Run
from gpuclust.config import Config
from gpuclust.configfile import load
from gpuclust.engine import token_rows
from gpuclust.extraction import encoders, weights

SEED = 20
BATCH = 2048  # tokens a step of the SAE's training
EPOCHS = 3
ROWS = ("token", "prompt")


def gpuclust(*given: object) -> None:
    """Run the command; its errors end this script."""
    print("gpuclust", *given, flush=True)
    subprocess.run([sys.executable, "-m", "gpuclust", *map(str, given)], check=True)


def reinitialised(config: Config, folder: Path) -> Path:
    """The model's architecture and tokenizer with fresh weights, in a folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").exists():
        source, _ = weights.locate(config.model)
        torch.manual_seed(SEED)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def activations(config: Config, texts: Path, n_tokens: int) -> Any:
    """Activations of the hook on the first `n_tokens` tokens of texts, (token, d_in), without the BOS token."""
    import torch

    tokenizer, n_bos = encoders.load_tokenizer(config), int(config.extract.prepend_bos)
    encoder = encoders.load_encoder(config)  # with the SAE of CONFIG: only what comes before it is used
    found, total, batch = [], 0, []

    def lines() -> Iterator[list[int]]:
        with texts.open(encoding="utf8") as file:
            for line in file:
                ids = tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"][: config.max_tokens]
                if ids:
                    yield [tokenizer.bos_token_id] * n_bos + ids

    def run(rows: list[list[int]]) -> Any:
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        kept = mask.bool()
        kept[:, :n_bos] = False
        return encoder.residual(ids, mask)[kept].half()

    for ids in lines():
        batch.append(ids)
        if len(batch) == 32:
            found.append(run(batch))
            total, batch = total + len(found[-1]), []
            if total >= n_tokens:
                break
    found += [run(batch)] if batch else []
    encoders.release()
    return torch.cat(found)[:n_tokens]


def trained(config: Config, texts: Path, n_tokens: int, active: float, folder: Path) -> dict[str, float]:
    """Train an SAE on a model's activations, and say how well it does on tokens that it was not trained on."""
    import torch
    from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    measured = folder / "measured.json"
    if measured.exists():
        return dict(json.loads(measured.read_text()))
    known = encoders.describe(config)
    found = activations(config, texts, n_tokens)
    test, train = found[: len(found) // 20], found[len(found) // 20 :]
    torch.manual_seed(SEED)

    def batches() -> Iterator[Any]:
        generator = torch.Generator().manual_seed(SEED)
        while True:
            order = torch.randperm(len(train), generator=generator)
            for start in range(0, len(order) - BATCH + 1, BATCH):
                yield train[order[start : start + BATCH]].float()

    steps = EPOCHS * (len(train) // BATCH)
    options = BatchTopKTrainingSAEConfig(
        d_in=known["d_in"], d_sae=known["d_sae"], k=round(active), dtype="float32", device="cpu",
        normalize_activations="expected_average_only_in",
        metadata=SAEMetadata(model_name="re-initialised", hook_name=known["hook_name"],
                             context_size=config.max_tokens, prepend_bos=config.extract.prepend_bos),
    )  # fmt: skip
    trainer: Any = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, lr=1e-3, lr_end=1e-5,
            lr_warm_up_steps=min(200, steps // 10), lr_decay_steps=steps // 3, dead_feature_window=100,
            n_batches_for_norm_estimate=50, logger=LoggingConfig(log_to_wandb=False),
        ),
        BatchTopKTrainingSAE(options),
        batches(),
    )  # fmt: skip
    trainer.fit().save_inference_model(folder)
    sae = SAE.load_from_disk(str(folder), device="cpu", dtype="float32")
    rest = test.float()
    with torch.no_grad():
        acts = sae.encode(rest)
        error = (rest - sae.decode(acts)).double().pow(2).sum()
    said = {
        "explained variance": float(1 - error / (rest - rest.mean(0)).double().pow(2).sum()),
        "active a token": float((acts > 0).sum() / len(rest)),
        "features never active": int((acts == 0).all(0).sum()),
        "training tokens": steps * BATCH,
    }
    measured.write_text(json.dumps(said))
    return said


def bag(run: Run, file: Path) -> Path:
    """A feature a token of the vocabulary: what `gpuclust import` takes, of the prompts of a run."""
    if not file.exists():
        tokens = [np.asarray(own, np.int64) for own in run.prompts["tokens"]]
        length = np.array([len(own) for own in tokens])
        ids = np.concatenate(tokens)
        np.savez(
            file, format=np.bytes_("csr"), shape=np.array([len(ids), int(ids.max()) + 1]), token=ids,
            indptr=np.arange(len(ids) + 1), indices=ids.astype(np.int32), data=np.ones(len(ids), np.float32),
            prompt=np.repeat(np.arange(len(tokens)), length), position=np.concatenate([np.arange(n) for n in length]),
        )  # fmt: skip
    return file


def both(name: str, first: list[Any], work: Path, passes: int = 0) -> dict[str, Path]:
    """Run over tokens, then over prompts from the same activations; with so many passes of the model for causes."""
    folders = {rows: work / f"{name}-{rows}" for rows in ROWS}
    gpuclust(*first, "--out", folders["token"], "--set", "extract.rows=token")
    gpuclust("run", "--reuse", folders["token"], "--out", folders["prompt"], "--set", "extract.rows=prompt")
    for folder in folders.values():
        if passes and "cause" not in Run(folder).validation_facts:
            gpuclust("validate", folder, "--cause", "--budget", passes)
    return folders


def passed(folder: Path) -> dict[str, Any]:
    """How many clusters of a run pass each test, and the means of what the tests measure."""
    run = Run(folder)
    table = run.validation
    said: dict[str, Any] = {
        "features kept": int(run.features["kept"].sum()),
        "clusters": len(table),
        "noise": round(float((run.features.loc[run.features["kept"], "label"] < 0).mean()), 3),
        "found again": int((run.clusters["verdict"] == "stable").sum()),
    }
    mean = table.mean(numeric_only=True)
    names = [name for name in mean.index if name.startswith(("prediction", "token_e", "near_e", "prompt_e"))]
    said["level"] = table["level"].value_counts().to_dict()
    said["predicts"] = int((table["prediction_q"] <= 0.05).sum())
    said["without controls"] = int(table["prediction_q"].isna().sum())
    said["means"] = {name: round(float(mean[name]), 3) for name in names}
    if table["cause_kl"].notna().any():
        some = table[table["cause_kl"].notna()]
        names = [f"cause_{name}" for name in ("kl", "kl_random", "kl_flipped", "kl_noise", "excess", "same_direction")]
        said["cause"] = {
            "tried": len(some),
            "more than random sets": int((some["cause_q"] <= 0.05).sum()),
            "medians": {name: round(float(some[name].median()), 4) for name in names},
        }
    said["evidence"] = table["evidence"].value_counts().to_dict()
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=400_000, help="that the control's SAE is trained on")
    parser.add_argument("--passes", type=int, default=2500, help="of the model, for what clusters cause")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config, work = load(options.config), options.work
    work.mkdir(parents=True, exist_ok=True)
    real = both("model", ["run", "--config", options.config], work, options.passes)
    run = Run(real["token"])
    every = token_rows.shards(real["token"], run.features["feature"].to_numpy(), token_rows.Rows(None, "max"))
    counts = [(fired.nnz, fired.shape[0]) for _, fired in every]
    active = sum(entries for entries, _ in counts) / sum(tokens for _, tokens in counts)
    fresh = reinitialised(config, work / "fresh-model")
    own = config.model_copy(update={"model": config.model.model_copy(update={"name": str(fresh.resolve())})})
    sae = work / "fresh-sae"
    training = trained(own, options.texts, options.tokens, active, sae)
    said = yaml.safe_load(options.config.read_text(encoding="utf8")) or {}
    said["model"] = {**(said.get("model") or {}), "name": str(fresh.resolve())}
    said["sae"] = {"path": str(sae.resolve())}
    (work / "fresh.yaml").write_text(yaml.safe_dump(said), encoding="utf8")
    folders = {
        "model": real,
        "re-initialised": both("fresh", ["run", "--config", work / "fresh.yaml"], work, options.passes),
    }
    texts = work / "prompts.jsonl"
    run.prompts[["text", "source"]].to_json(texts, orient="records", lines=True, force_ascii=False)
    tokenizer = weights.locate(config.model)[0]
    imported = ["import", bag(run, work / "words.npz"), "--prompts", texts, "--tokenizer", tokenizer]
    folders["words"] = both("words", imported, work)
    result = {
        "config": options.config.name,
        "fresh SAE": training,
        "active a token": round(active, 1),
        **{kind: {rows: passed(folder) for rows, folder in of.items()} for kind, of in folders.items()},
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
