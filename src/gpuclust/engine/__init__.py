"""A run, stage by stage, on Dask.

    pipeline       the loop over the stages, resumed where they were left
    steps          what the driver does in each stage
    tasks          what a worker does for each; quality_task: for quality
    gram_pass      the Gram matrix over workers, and neighbours from it, for any groups of prompts
    prompt_rows    what a pass reads of the prompts
    execute        a run on a scheduler that starts when it is needed; planning: what it would take
    imported       activations of a file, as the first stages of a run
    reuse          a run on activations that another folder has
    scheduler      starting or joining a cluster; progress: what is shown meanwhile

May import: everything below, `results` included.
"""
