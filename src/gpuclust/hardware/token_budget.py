"""Bytes that stages hold where rows are tokens or windows, beside what prompts take: arithmetic on shapes."""

from __future__ import annotations

from gpuclust.config import Config

# Features that fire on a token, before activations say how many: real SAEs have 20 to 300, of 6,144 to 131,072
SHARE, FEWEST = 0.005, 64
# Bytes an entry (an activation of a token that is not zero), measured: gathered, put together and encoded; unpacked;
# permuted; with what contexts of clusters are found by
GATHERED, READ, PERMUTED, CONTEXTS = 64, 24, 90, 80
ENTRIES = 1 << 22  # of a block of sparse rows
BLOCK = 60 * ENTRIES  # while it is added to a Gram matrix or put into an index


def entries(config: Config, n_prompts: int, n_features: int, n_tokens: int = 0) -> float:
    """Return about how many activations of tokens are not zero.

    Parameters
    ----------
    config : Config
    n_prompts, n_features : int
    n_tokens : int
        Of all prompts; 0 where not known: as many as they may have.
    """
    return (n_tokens or n_prompts * config.max_tokens) * max(SHARE * n_features, FEWEST)


def bytes_of_stages(
    config: Config, n_prompts: int, n_features: int, n_tokens: int, permuted_prompts: int
) -> dict[str, int]:
    """Return what stages hold more where tokens are kept.

    Parameters
    ----------
    config, n_prompts, n_features, n_tokens
        As of `entries`.
    permuted_prompts : int
        Prompts of a block within which activations are permuted.

    Returns
    -------
    dict of str to int
        Bytes by stage; empty where tokens are not kept.
    """
    if not config.keeps_tokens:
        return {}
    each = entries(config, n_prompts, n_features, n_tokens) / max(n_prompts, 1)
    shard = int(min(config.store.shard_prompts, n_prompts) * each)
    mixed = int(min(permuted_prompts, n_prompts) * each) if config.permuted else 0
    return {
        "extract": GATHERED * shard,
        "neighbors": READ * shard + BLOCK,
        "quality": READ * shard + BLOCK + PERMUTED * mixed,
        "analyse": (READ + CONTEXTS) * shard,
    }
