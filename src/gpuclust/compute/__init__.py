"""Arrays in, arrays out: the mathematics, which knows no file, no Zarr and no Dask.

    reductions       moments and strongest prompts, as states that add up; topk
    gram             the Gram matrix in tiles; neighbors: exact neighbours from it, or from a sketch
    inverted_index   sparse rows by feature; inverted_pairs and never_together: exact neighbours without all pairs
    feature_filter   which features are kept, and their quadrants
    embedding        UMAP of a neighbour graph; spanning_tree and clustering: HDBSCAN; consensus: of many clusterings
    halves           which prompts are in which half; duplicates: features that are copies of one another
    validity         stability, nulls, silhouette; verdicts; agreement: of two clusterings
    controls         random sets and clusterings of features that fire as often
    replication      clusters of two SAEs, matched by what they do over prompts; angles of their subspaces
    prediction       do mates tell where a feature fires; row_words: what words say; levels: token, near or topic
    causal           what tells a cluster's effect on the output from chance

May import: the vocabulary, `hardware.budget` and `hardware.jit`.
"""
