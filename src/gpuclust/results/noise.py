"""Why a feature is noise, in words."""

from __future__ import annotations

from gpuclust import schema


def explained(min_cluster_size: int) -> dict[str, str]:
    """Say what each of `schema.NOISE_REASONS` means.

    Parameters
    ----------
    min_cluster_size : int
        ``hdbscan.min_cluster_size`` of the run.

    Returns
    -------
    dict of str to str

    Examples
    --------
    >>> explained(10)["small group"]
    'small group: it is together with too few others; a cluster has 10 features or more (hdbscan.min_cluster_size)'
    """
    words = {
        schema.ALONE: "no feature that is among its nearest has it among its own",
        schema.SMALL: f"it is together with too few others; a cluster has {min_cluster_size:,} features or more "
        "(hdbscan.min_cluster_size)",
        schema.CHANCE: "it has no more in common with any group than with its nearest by chance",
        schema.SPARSE: "HDBSCAN finds nothing dense around it",
        schema.DISAGREE: "clusterings of redrawn similarities put it with now these and now those",
    }
    return {reason: f"{reason}: {why}" for reason, why in words.items()}
