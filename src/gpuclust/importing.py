"""Activations that are there already, as a run: `import_activations`, which the command ``gpuclust import`` calls."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gpuclust import schema
from gpuclust.config import Config
from gpuclust.config_sections import ModelConfig, PromptSource, SaeConfig
from gpuclust.configfile import validate
from gpuclust.errors import InputError, ModelError, PromptsError
from gpuclust.hardware import process
from gpuclust.places import place
from gpuclust.results.run import Run, open_run
from gpuclust.storage import store
from gpuclust.storage.run_folder import Folder, claim

if TYPE_CHECKING:
    from gpuclust.extraction.row_places import Activations

log = logging.getLogger("gpuclust")


def import_activations(
    path: str | Path, out: str | Path | None = None, config: Config | Mapping[str, Any] | None = None,
    scheduler: str = "threads", *, prompts: str | Path | None = None, column: str = "text",
    tokenizer: str | Path | None = None, n_features: int | None = None, console: Console | None = None,
) -> Run:  # fmt: skip
    """Turn a file or folder of activations into a run, and compute everything that follows from activations.

    Parameters
    ----------
    path : str or Path
        A ``.npy`` or ``.npz`` (dense, or `scipy.sparse.save_npz`), ``.h5ad``, Zarr folder, ``.safetensors`` or folder
        of delphi's cache, or the ``.pt`` of the notebook. Rows are prompts, or tokens where the file says which prompt
        each is of.
    out : str or Path, optional
        Folder of the run; default ``runs/`` and the file's name. The same call again goes on with it.
    config : Config or mapping, optional
        What comes after extraction; model and SAE are not used. Of tokens `extract.aggregate` makes prompts, and
        `extract.rows` says what is clustered over.
    scheduler : str
        As ``--scheduler``.
    prompts : str or Path, optional
        Texts of the prompts, in order: a .txt file with one a line, or .jsonl, .csv or .parquet.
    column : str
        Of all but .txt.
    tokenizer : str or Path, optional
        Folder or hub id of the tokenizer that the file's token ids are of: with it the words at which features peak
        are known, and the texts of prompts where `prompts` does not give them.
    n_features : int, optional
        Features of the SAE, where the file does not say it.
    console : Console, optional
        Where progress and the summary are printed; by default nothing is.

    Returns
    -------
    Run
        Where rows are prompts, these have no tokens (``n_tokens`` is -1), and its examples no positions (-1). Texts
        that are not known are empty.

    Raises
    ------
    StoreError
        If the file is not there, of no known kind or cannot be read without running code, or `out` holds another run.
    ActivationError
        If it holds no activations, or such as cannot be stored.
    PromptsError
        If the texts cannot be read, or are not as many as the prompts.
    InputError
        If `extract.rows` are tokens or windows, and the file has prompts.

    Notes
    -----
    The file is read twice: once before anything is written. Memory: the tokens or prompts of one shard
    (`store.shard_prompts`), sparse and for prompts dense; the arrays of a sparse ``.npz``, and all of a ``.pt``.
    """
    from gpuclust import notebook_cache
    from gpuclust.extraction import activation_files

    path = place(path)
    kind = notebook_cache if path.suffix.lower() == ".pt" and not path.is_dir() else activation_files
    return run_of(path, kind.opened(path, n_features), out, config, scheduler, prompts, column, tokenizer, console)


def import_cache(
    path: str | Path, out: str | Path | None = None, config: Config | Mapping[str, Any] | None = None,
    scheduler: str = "threads",
) -> Run:  # fmt: skip
    """Turn the notebook's cache into a run, as `import_activations` does, whatever the file is called.

    Parameters
    ----------
    path : str or Path
        A file that ``torch.save`` wrote: ``acts``, a tensor (prompt, feature), and ``prompts``, a list of str.
    out : str or Path, optional
        Folder of the run; default ``runs/`` and the file's name.
    config : Config or mapping, optional
        What comes after extraction; model and SAE are not used.
    scheduler : str
        As ``--scheduler``.

    Returns
    -------
    Run
        Its prompts have no tokens (``n_tokens`` is -1), and its examples no token positions (-1).

    Raises
    ------
    StoreError
        If the file cannot be read without running code from it, or is no such cache.
    ActivationError
        If the activations cannot be stored.
    """
    from gpuclust.notebook_cache import opened

    path = place(path)
    return run_of(path, opened(path), out, config, scheduler)


def run_of(
    path: Path, opening: AbstractContextManager[Activations], out: str | Path | None,
    config: Config | Mapping[str, Any] | None, scheduler: str, prompts: str | Path | None = None,
    column: str = "text", tokenizer: str | Path | None = None, console: Console | None = None,
) -> Run:  # fmt: skip
    """Make the run of activations.

    Parameters
    ----------
    path, out, config, scheduler, prompts, column, tokenizer, console
        As of `import_activations`.
    opening : context manager
        Opens the activations.

    Returns
    -------
    Run
    """
    from gpuclust.engine import imported
    from gpuclust.engine.execute import execute
    from gpuclust.engine.progress import Progress
    from gpuclust.engine.scheduler import choose

    process.check_room()
    c = config if isinstance(config, Config) else validate(config or {}, where="config")
    name = path.name or path.resolve().name
    target = place(out) if out is not None else Path("runs") / Path(name).stem
    model = ModelConfig(name=schema.IMPORTED if tokenizer is None else _absolute(tokenizer))
    quiet, shown = console is None, console or Console(quiet=True)
    with opening as found:
        c = c.model_copy(
            update={"model": model, "sae": SaeConfig(path=name), "prompts": (PromptSource(path=name),),
                    "n_prompts": found.n_prompts}
        )  # fmt: skip
        if c.keeps_tokens and found.places is None:
            raise InputError(
                f"extract.rows is {c.extract.rows}, but {path} has prompts, not tokens: leave it at prompt, or say in "
                "the file which prompt each row is of (`prompt`, a number a row)"
            )
        texts = _texts(path, found, prompts, column, c)
        choose(scheduler)
        looked = imported.look(found, texts, c)
        for text in store.underflow(looked.underflowed, looked.entries, c.store.dtype):
            log.warning("%s: %s", path, text)
        with claim(target):
            imported.refuse_other(target, path, looked.key)  # a `Folder` writes its settings
            folder = Folder(target, c)
            imported.write(found, texts, c, folder, looked, Progress(shown, quiet))
            execute(c, folder, scheduler, shown, quiet=quiet, report=True, imported=True)
    return open_run(target)


def _absolute(tokenizer: str | Path) -> str:
    """A folder's whole path; an id of a hub as it stands."""
    folder = place(tokenizer)
    return str(folder.absolute() if folder.is_dir() else tokenizer)


def _texts(path: Path, found: Activations, prompts: str | Path | None, column: str, c: Config) -> list[str]:
    """The texts of the prompts, what a tokenizer makes of their tokens, or empty where they are not known."""
    decoded: list[str] | None = None
    if c.model.name != schema.IMPORTED:
        from gpuclust.extraction.encoders import load_tokenizer

        if found.places is None:
            raise InputError(f"{path} has prompts, not tokens, so that there is nothing for a tokenizer: leave it out")
        ids = found.places.ids(path)
        try:
            decoded = load_tokenizer(c).batch_decode(ids, clean_up_tokenization_spaces=False)
        except ModelError as error:
            raise ModelError(f"--tokenizer {c.model.name} cannot be had: {error}") from error
    if prompts is None and decoded is not None:
        return decoded
    if prompts is None:
        return found.texts if found.texts is not None else [""] * found.n_prompts
    from gpuclust.extraction.prompts import read_texts

    texts = read_texts(place(prompts), column)
    if len(texts) != found.n_prompts:
        raise PromptsError(
            f"{prompts} has {len(texts):,} texts, and {path} {found.n_prompts:,} prompts: one text a prompt is "
            "expected, in the same order (of a .txt file, one a line)"
        )
    return texts
