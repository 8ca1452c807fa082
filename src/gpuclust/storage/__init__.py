"""What lies on disk: the Zarr store of activations, its codec, tables, and the folder of a run.

    store              the template, whole shards with their markers, blocks of rows; datasets and tables
    shards             shards of the bitmap codec, read and written as they lie
    row_blocks         blocks of rows where they are computed on, on the host or a GPU
    sparse_rows        blocks of rows as compressed sparse rows, and shards written from them
    codec              the bitmap codec; codec_packed is its layout of very sparse chunks; codec_kernels,
                       codec_packed_kernels and codec_cuda are its loops
    run_folder         the configuration and record of a run, and which stages are done
    keys               what results depend on, as digests
    markers            states and done-markers beside the store; reading: a run's files, compared before they are used
    atomic             the one way to write; checksums: whether files are what was written; verifying: of a whole run
    validated          what `gpuclust validate` found, and of which clusters
    export             a store that needs no gpuclust

May import: the vocabulary and `hardware`.
"""
