"""What clusters have in common, as tables: no file, no Zarr, no Dask.

    feature_table   which features take part, and what clustering found for each
    cluster_table   a row per cluster; profiles: clusters over prompts
    keywords        words of prompts and peaks; words: cut by Unicode; prompt_text: where in a text a token lies
    decoder         decoder directions of a cluster; labeller: names from a function of yours

May import: the vocabulary only.
"""
