"""Names, dimensions, dtypes and units of everything that a run stores.

One place that stages, readers and tests agree on; it computes nothing.
"""

from __future__ import annotations

from typing import Final

# Where a run computes, by name; besides, the address of a running scheduler
SCHEDULERS: Final = ("auto", "local-cuda", "local", "threads")

# The model's name where activations are of a file
IMPORTED: Final = "imported"

# Files of a run's folder
CONFIG: Final = "config.yaml"
RECORD: Final = "run.json"
SWEEP: Final = "sweep.yaml"  # in the folder of a sweep
LOCK: Final = ".lock"  # held by the process that computes in the folder
ACTIVATIONS: Final = "activations.zarr"
TOKENS: Final = "tokens.zarr"  # activations of every token, where rows are not prompts
PROMPTS: Final = "prompts.parquet"
FEATURES: Final = "features.parquet"
EXAMPLES: Final = "examples.parquet"
EXAMPLE_SPANS: Final = "example_spans.parquet"
NEIGHBORS: Final = "neighbors.zarr"
ERRORS: Final = "errors"  # in it: standard errors of the similarities, of metrics that have them
SPANNING_TREE: Final = "state/spanning_tree.npy"
EMBEDDING: Final = "embedding.zarr"
CLUSTERS: Final = "clusters.parquet"
CONDENSED_TREE: Final = "condensed_tree.parquet"
CLUSTER_ACTIVATIONS: Final = "cluster_activations.zarr"
CLUSTER_SIMILARITY: Final = "cluster_similarity.parquet"
THEMES: Final = "themes.parquet"
CONTEXTS: Final = "contexts.parquet"  # where rows are tokens or windows
VALIDATION: Final = "validation.parquet"  # of `gpuclust validate`
VALIDATION_FACTS: Final = "validation.json"
REPORT: Final = "report.html"
SHARDS: Final = "shards"  # states and markers of the extraction
# What one stage hands to the next
MOMENTS: Final = "state/moments.npz"
SELECTED: Final = "state/selected.parquet"
MAP: Final = "state/map.npy"
PERSISTENCE: Final = "state/persistence.npy"
MEMBERS: Final = "state/members.npy"  # labels of every member of the consensus, (member, feature)
HALF_LABELS: Final = "state/half_labels.npy"  # clusters of either half of the prompts, (half, feature)
QUALITY: Final = "quality.parquet"
VIEWS: Final = "state/views"  # a folder a view of the prompts: its neighbours and spanning tree

# Views of the prompts, each with neighbours of its own
WHOLE: Final = "whole"  # all prompts
HALVES: Final = ("half0", "half1")
NULL: Final = "null"  # activations permuted over prompts

NOISE: Final = -1

# Why a feature is noise
ALONE: Final = "no mutual neighbour"  # nothing that is among its nearest has it among its own
SMALL: Final = "small group"  # of fewer than min_cluster_size features
CHANCE: Final = "chance"  # it has no more in common with any group than with its nearest by chance
SPARSE: Final = "no dense region"  # HDBSCAN or DBSCAN leaves it out
DISAGREE: Final = "members disagree"  # of the consensus
NOISE_REASONS: Final = (ALONE, SMALL, CHANCE, SPARSE, DISAGREE)

# Quadrants over the kept features, split at the medians of entropy (H) and varentropy (V); at the median is low.
FLOWING: Final = "Flowing"  # low H, low V
CAREFUL: Final = "Careful"  # high H, low V
EXPLORING: Final = "Exploring"  # low H, high V
RESAMPLING: Final = "Resampling"  # high H, high V

# Columns: name -> (dtype, meaning). Entropy and its relatives are in nats, over prompts, on |a|.
PROMPT_COLUMNS: Final = {
    "prompt": ("int64", "number of the prompt: the first axis of the activations"),
    "text": ("string", "the whole text, as read; empty where activations were imported without"),
    "n_tokens": ("int64", "tokens that are read, special tokens not counted"),
    "source": ("string", "label of the source, or the value of its source_column"),
    "tokens": ("list<int32>", "the token ids that are read, special tokens not included"),
}
FEATURE_COLUMNS: Final = {
    "feature": ("int64", "the SAE's own number"),
    "entropy": ("float64", "nats"),
    "varentropy": ("float64", "nats^2, variance over prompts of -p ln p (the terms of the entropy)"),
    "sparsity": ("float64", "share of prompts with |a| > activation_threshold; larger is denser"),
    "n_active": ("int64", "prompts with |a| > activation_threshold"),
    "mean": ("float64", "of |a| over all prompts"),
    "std": ("float64", "of |a| over all prompts, divided by n"),
    "max": ("float64", "of |a|"),
    "kept": ("bool", "passes the filter"),
    "quadrant": ("string", "null where not kept"),
    "duplicate_of": (
        "Int64",
        "the feature that this is an exact copy of and is clustered as; null for all others",
    ),
    "label": ("Int64", "cluster, -1 noise, null where not kept"),
    "probability": (
        "float64",
        "mean share of members that put it with the others of its cluster, or HDBSCAN's strength, or of DBSCAN the "
        "features within eps over min_samples, at most 1; null where not kept",
    ),
    "outlier_score": (
        "float64",
        "1 less the largest mean share with any cluster, or GLOSH, or of DBSCAN 1 less the features within eps over "
        "min_samples; null where not kept",
    ),
    "hdbscan_label": ("Int64", "of one UMAP and HDBSCAN, -1 noise, null where not kept"),
    "noise_reason": (
        "string",
        "no mutual neighbour, small group, no dense region or members disagree; null where not noise",
    ),
    "x": ("float64", "2-D map, null where not kept"),
    "y": ("float64", "2-D map, null where not kept"),
}
EXAMPLE_COLUMNS: Final = {
    "feature": ("int64", "the SAE's own number"),
    "rank": ("int64", "0 is the strongest prompt"),
    "prompt": ("int64", "number of the prompt"),
    "value": ("float64", "the stored, aggregated activation"),
    "position": ("int64", "token with the largest |a|, in `tokens` of the prompt; -1 is a special token before them"),
}
SPAN_COLUMNS: Final = {
    "feature": ("int64", "the SAE's own number"),
    "rank": ("int64", "as in the examples"),
    "start": (
        "int64",
        "first character of the peak token in the prompt's text, whole characters only; -1 where not known",
    ),
    "stop": ("int64", "character after its last; -1 where not known"),
}
VALIDATION_COLUMNS: Final = {
    "cluster": ("int64", ""),
    "size": ("int64", "features, of exact duplicates the first"),
    "prediction": (
        "float64",
        "AUROC, mean over its features: on which rows of one half of the prompts a feature fires, told by the features "
        "that share its cluster in a clustering of the other half; 0.5 for features that are noise there",
    ),
    "prediction_random": (
        "float64",
        "the same of controls: clusterings with features exchanged for others that fire as often; null where there are "
        "too few such",
    ),
    "prediction_words": ("float64", "the same told by the row's tokens, its prompt's length and source (naive Bayes)"),
    "prediction_given_words": ("float64", "`prediction` among rows about which these say the same"),
    "prediction_given_words_random": ("float64", "the same of controls"),
    "prediction_low": ("float64", "given words, less the controls': 95% interval, by how far controls lie apart"),
    "prediction_high": ("float64", "its upper end"),
    "prediction_p": ("float64", "chance that another control is as far above the controls (Student's t)"),
    "prediction_q": ("float64", "the same with the false discovery rate controlled over clusters"),
    "token_excess": (
        "float64",
        "pairs of its features on the same token over those by chance within 16 tokens, over the same of random sets",
    ),
    "token_low": ("float64", "95% interval, over prompts"),
    "token_high": ("float64", "its upper end"),
    "near_excess": ("float64", "pairs within 16 tokens over those by chance within the prompt, over random sets"),
    "near_low": ("float64", "95% interval, over prompts"),
    "near_high": ("float64", "its upper end"),
    "prompt_excess": ("float64", "pairs in the same prompt over those by chance, over random sets"),
    "prompt_low": ("float64", "95% interval, over prompts"),
    "prompt_high": ("float64", "its upper end"),
    "level": ("string", "token, near, topic or none: the finest level with an excess of 1.5, surely above 1"),
    "cause_kl": (
        "float64",
        "nats: KL divergence of the next token with what its features write taken out of the hook (or amplified), "
        "summed over a prompt's tokens, per token on which the cluster is active; mean over its strongest prompts",
    ),
    "cause_kl_random": (
        "float64",
        "the same of as many other features that are active on these tokens, what they write scaled to the same norm",
    ),
    "cause_kl_flipped": ("float64", "the same with the change's sign flipped"),
    "cause_kl_noise": ("float64", "the same with the change turned at random, norms and angles kept"),
    "cause_excess": ("float64", "KL over that of the other features, geometric means over prompts"),
    "cause_logprob": ("float64", "nats: change of the following tokens' log-probability, summed and divided likewise"),
    "cause_logprob_random": ("float64", "the same of the other features"),
    "cause_logprob_flipped": ("float64", "the same with the sign flipped"),
    "cause_p": (
        "float64",
        "chance that a random set, of features that fire and write about as much, has as large an excess on its own "
        "prompts (Student's t of the logarithm over the random sets)",
    ),
    "cause_q": ("float64", "the same with the false discovery rate controlled over the clusters that were tried"),
    "cause_same_direction": (
        "float64",
        "cosine of the mean changes of the logits by single features of the cluster, mean over pairs of the strongest",
    ),
    "cause_same_direction_random": (
        "float64",
        "the same of other features' directions, put in their places",
    ),
    "cause_prompts": ("float64", "prompts that it was tried on"),
    "cause_passes": ("float64", "forward passes that it took"),
    "replicate_cluster": ("Int64", "the other SAE's cluster whose activity over prompts correlates with its most"),
    "replicate_mutual": ("boolean", "whether it is that cluster's best match, too"),
    "replicate_r": ("float64", "the correlation, given the prompts' lengths"),
    "replicate_r_random": (
        "float64",
        "the same of controls, each with its own best match: random sets of features that fire as often, of this SAE "
        "or of the other, whichever mean is larger",
    ),
    "replicate_angles": (
        "float64",
        "mean squared cosine of the principal angles between the subspaces of both clusters' decoder rows; null where "
        "the decoders do not write to one space",
    ),
    "replicate_angles_random": ("float64", "the same of these controls"),
    "replicate_prompts": ("float64", "Jaccard index of the prompts on which each is most active"),
    "replicate_prompts_random": ("float64", "the same of these controls"),
    "replicate_p": (
        "float64",
        "share of controls that lie as far above the others as it does, of the kind where that is larger",
    ),
    "replicate_q": ("float64", "the same with the false discovery rate controlled over clusters"),
    "replicate_angles_q": ("float64", "the same of the angles"),
    "replicated": ("string", "replicated, partly or not; null where there are no controls"),
    "evidence": (
        "string",
        "one word for all that was tried: real, supported, topic only, fragile, not found again, no better than "
        "random; null where nothing was",
    ),
    "evidence_reason": ("string", "what it is based on, in words"),
}
CLUSTER_COLUMNS: Final = {
    "cluster": ("int64", "-1 is noise"),
    "size": ("int64", "features, exact duplicates included"),
    "ratio": ("float64", "of the kept features"),
    "persistence": (
        "float64",
        "HDBSCAN's, or mean share of members that put a pair together, or DBSCAN's mean probability; null for noise",
    ),
    "verdict": (
        "string",
        "stable, fragile, not found again or no better than random; null for noise and where not measured",
    ),
    "verdict_reason": ("string", "by which number, in words"),
    "stability": ("float64", "mean best-match Jaccard index in clusterings of the two halves of the prompts"),
    "hdbscan_match": ("float64", "best-match Jaccard index among the clusters of one UMAP and HDBSCAN"),
    "silhouette": ("float64", "cosine, in the input space"),
    "mean_activation": ("float64", "mean of |a| over the features and prompts, null for noise"),
    "max_activation": ("float64", "largest |a|, null for noise"),
    "std_activation": ("float64", "of |a| over features and prompts, null for noise"),
    "sparsity": ("float64", "mean sparsity of the features, null for noise"),
    "features": ("list<int64>", "feature numbers"),
    "top_prompts": (
        "list<struct>",
        "prompt, activation (mean |a| of the cluster's features), n_chars, n_tokens, source, text as it is shown, and "
        "marks: start, stop and features (how many peak there) of the tokens in that text",
    ),
    "distinctive_prompts": ("list<struct>", "the same, by strength relative to the other clusters"),
    "keywords": ("list<string>", "words that mark the prompts of the cluster, in lower case, null for noise"),
    "tokens": ("list<string>", "whole words of the prompts at which the features peak, null for noise"),
    "sources": ("list<struct>", "source, share of the most distinctive prompts, overall (share of all prompts)"),
    "promoted_tokens": ("list<string>", "output tokens that the mean decoder direction promotes, null where unknown"),
    "decoder_cosine": ("float64", "mean over pairs of features, of their decoder directions"),
    "decoder_cosine_random": ("float64", "the same, mean over random sets of as many kept features"),
    "decoder_cosine_p": ("float64", "share of random sets that reach the cluster's, the cluster itself counted"),
    "tree_node": ("Int64", "the cluster's node in the condensed tree, null for noise"),
    "similarity_rank": ("Int64", "place in an order that puts correlated clusters side by side, null for noise"),
    "theme": ("Int64", "clusters that rise and fall together over the prompts; null for noise, and with few clusters"),
    "name": ("string", "from analyse.labeller, null without"),
    **{name: about for name, about in VALIDATION_COLUMNS.items() if name not in ("cluster", "size")},
}
THEME_COLUMNS: Final = {
    "theme": ("int64", "from 0 by features, the largest first"),
    "words": ("list<string>", "a word or name of each of the clusters that go with the others most"),
    "size": ("int64", "features of its clusters"),
    "clusters": ("list<int64>", "those found again first, and of them those that go with the others most"),
    "doubtful": ("int64", "clusters that are not found again or no better than random"),
}
CONTEXT_COLUMNS: Final = {
    "cluster": ("int64", "without noise"),
    "rank": ("int64", "0 is the row, a token or a window, on which most of its features fire"),
    "prompt": ("int64", "number of the prompt; of a cluster's contexts each is of another"),
    "position": ("int64", "place of the row's first token in the prompt's `tokens`, -1 for a BOS before them"),
    "tokens": ("list<int32>", "ids of the row's tokens: one, or those of a window"),
    "n_features": ("int64", "features of the cluster with |a| > activation_threshold on the row; `size` counts all"),
    "score": ("float64", "sum over them of |a| / the feature's largest |a| on any row; decides between equal numbers"),
    "features": ("list<int64>", "the SAE's own numbers of them, nearest to their largest |a| first"),
    "text": ("string", "the row and 10 tokens on either side, as shown: on one line"),
    "start": ("int64", "first character of the row in `text`; -1 where not known, or a special token"),
    "stop": ("int64", "character after its last; -1 where not known"),
}
QUALITY_COLUMNS: Final = {
    "cluster": ("int64", ""),
    "size": ("int64", "features, exact duplicates included; all that follows counts them once"),
    "verdict": ("string", "stable, fragile, not found again or no better than random; null where not measured"),
    "verdict_reason": ("string", "by which number, in words"),
    "stability": ("float64", "mean best-match Jaccard index in clusterings of the two halves of the prompts"),
    "chance_stability": ("float64", "the largest that random relabelling of the halves reached"),
    "hdbscan_match": ("float64", "best-match Jaccard index among the clusters of one UMAP and HDBSCAN"),
    "silhouette": ("float64", "cosine, in the input space"),
    "cohesion": ("float64", "mean cosine between two features of the cluster"),
    "random_z": ("float64", "of cohesion, against random sets matched in size and active prompts"),
    "permutation_z": ("float64", "of cohesion, against each feature's activations permuted over prompts"),
    "permutation_z_null": ("float64", "the largest of a clustering of permuted activations, 0 without clusters"),
}
SIMILARITY_COLUMNS: Final = {
    "cluster_a": ("int64", ""),
    "cluster_b": ("int64", "larger than cluster_a"),
    "correlation": ("float64", "Pearson, of the clusters' activations over prompts"),
}

# Of a sweep. `sweep.parquet` has a column for each setting besides that varies, under the setting's own name.
SWEEP_COLUMNS: Final = {
    "setting": ("int64", "number of the setting; 0 is the default, the base with what is fixed"),
    "seed": ("int64", "umap.random_state"),
    "questions": ("list<string>", "that the setting belongs to"),
    "prompts": ("int64", "prompts used"),
    "n_kept": ("int64", "features that pass the filter"),
    "duplicates": ("int64", "of them exact copies of another; all that follows counts features without copies"),
    "clusters": ("float64", "number of clusters"),
    "noise": ("float64", "share of the features in no cluster"),
    "median_size": ("float64", "features of the median cluster"),
    "largest": ("float64", "share of the features in the largest cluster"),
    "persistence": ("float64", "mean over clusters, as in clusters.parquet"),
    "purity": ("float64", "mean share of a clustered feature's ten nearest neighbours that are in its cluster"),
    "shared_entropy": (
        "float64",
        "share of the variance of ranks of the entropy that lies between clusters, 0 by chance",
    ),
    "shared_sparsity": ("float64", "the same of sparsity"),
    "shared_mean": ("float64", "the same of the mean activation"),
    "ari_halves": ("float64", "adjusted Rand index of the two halves of the prompts, noise as a cluster"),
    "ami_halves": ("float64", "adjusted mutual information of the same"),
    "ari_clustered_halves": ("float64", "adjusted Rand index on the features that both cluster"),
    "ami_clustered_halves": ("float64", "adjusted mutual information on them"),
    "clustered_both_halves": ("float64", "share of the features that both cluster"),
    "recovered_halves": (
        "float64",
        "share of clusters whose match in the other half has a Jaccard index of 0.5 or more",
    ),
    "clusters_halves": ("float64", "number of clusters, mean of the halves"),
    "noise_halves": ("float64", "share of noise, mean of the halves"),
    "found_again_halves": ("float64", "share of the features in clusters found again (Jaccard index of 0.5 or more)"),
    "found_again_75_halves": ("float64", "the same at 0.75"),
    "ari_seeds": ("float64", "mean adjusted Rand index with the setting's other seeds"),
    "ari_default": ("float64", "with the default under the same seed, on the features kept in both"),
    "ami_default": ("float64", "adjusted mutual information of the same"),
    "ari_clustered_default": ("float64", "on the features that both cluster"),
    "common_default": ("float64", "features kept in both"),
    "error": ("string", "why the setting failed; null where it did not"),
}
PAIR_COLUMNS: Final = {
    "question": ("string", ""),
    "grid": ("int64", "number of the grid within the question"),
    "field": ("string", "source or length"),
    "setting_a": ("int64", "as in sweep.parquet"),
    "setting_b": ("int64", "as in sweep.parquet"),
    "level_a": ("string", "source, or range of tokens"),
    "level_b": ("string", "source, or range of tokens"),
    "seed": ("int64", "umap.random_state"),
    "found_again": ("float64", "share of the features in clusters that the other finds again"),
    "ari": ("float64", "adjusted Rand index, on the features kept in both"),
    "ami": ("float64", "adjusted mutual information, on them"),
    "common": ("float64", "features kept in both"),
}


def text_dtype() -> str:
    """Return the dtype of a column of texts that may be missing: before pandas 3, ``str`` writes None as "None"."""
    import pandas as pd

    return "str" if int(pd.__version__.partition(".")[0]) >= 3 else "object"
