"""What a machine gives: CPU or GPU, its memory and cores, what stages will need of it, and where kernels are kept.

    backend       NumPy or CuPy, behind one name
    device        GPUs: the one memory pool, peaks, failures told apart
    process       cores and peak memory of this process
    budget        the plan of a run: bytes of every stage from shapes alone
    jit           a folder for compiled kernels

May import: the vocabulary (`errors`, `schema`, `config`, `configfile`, `stage_table`, `terminal`).
"""
