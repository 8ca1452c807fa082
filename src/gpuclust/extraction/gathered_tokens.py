"""What the SAE fires on every token of a shard, gathered prompt by prompt as batches come, in whatever order."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclust.config import Config
from gpuclust.storage import store
from gpuclust.storage.token_store import Tokens
from gpuclust.types import Array


class GatheredTokens:
    """The tokens of one shard.

    Only what is not zero leaves the device; a batch that is begun again, when memory runs out, replaces what was there.

    Parameters
    ----------
    config : Config
    first : int
        Number of the shard's first prompt.
    """

    def __init__(self, config: Config, first: int) -> None:
        self._dtype, self._first = config.store.dtype, first
        self._places: dict[int, tuple[Array, Array]] = {}
        self._entries: dict[int, list[tuple[Array, Array, Array]]] = {}

    def begin(self, prompt: int, positions: Array, tokens: Array) -> None:
        """Begin a prompt, or begin it again.

        Parameters
        ----------
        prompt : int
            Its place in the shard.
        positions, tokens : array, (token,), int
            Of the tokens that count: places in the prompt's `tokens` (-1 for the BOS before them), and their ids.
        """
        self._places[prompt] = positions.astype(np.int32), tokens.astype(np.int32)
        self._entries[prompt] = []

    def put(self, prompt: int, activations: Any, start: int) -> None:
        """Keep what is not zero of some of a prompt's tokens.

        Parameters
        ----------
        prompt : int
        activations : tensor, (token, feature), float32
        start : int
            The first of them, among those that count.

        Raises
        ------
        ActivationError
            On NaN, infinity, or values that do not fit the stored dtype.
        """
        at, column, values = _entries(activations)
        where = f"prompt {self._first + prompt}, tokens {start} and on"
        stored = store.to_stored(values[:, None], self._dtype, where)[:, 0]
        self._entries[prompt].append(((at + start).astype(np.int32), column.astype(np.int32), stored))

    def gather(self, n_prompts: int) -> Tokens:
        """Return all tokens in order; every prompt has been begun.

        Parameters
        ----------
        n_prompts : int
            Of the shard.
        """
        lengths = [len(self._places[prompt][0]) for prompt in range(n_prompts)]
        begins = np.cumsum([0, *lengths])
        parts = [
            (at + begins[prompt], column, values)
            for prompt in range(n_prompts)
            for at, column, values in self._entries[prompt]
        ]  # each ascends by row and column, and they follow one another
        row, indices, stored = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        counts = np.bincount(row, minlength=begins[-1])
        places = [self._places[prompt] for prompt in range(n_prompts)]
        return Tokens(
            indptr=np.concatenate([[0], np.cumsum(counts)]),
            indices=indices,
            values=stored,
            prompt=np.repeat(np.arange(self._first, self._first + n_prompts, dtype=np.int32), lengths),
            position=np.concatenate([position for position, _ in places]),
            token=np.concatenate([token for _, token in places]),
        )


def _entries(activations: Any) -> tuple[Array, Array, Array]:
    """Token, feature and value of what is not zero; on the host by NumPy, in a third of PyTorch's time."""
    if activations.device.type == "cpu":
        flat = np.ascontiguousarray(activations.numpy()).reshape(-1)
        place = np.flatnonzero(flat != 0)
        at, column = np.divmod(place, activations.shape[1])
        return at, column, flat[place]
    rows, features = activations.nonzero(as_tuple=True)
    return rows.cpu().numpy(), features.cpu().numpy(), activations[rows, features].cpu().numpy()
