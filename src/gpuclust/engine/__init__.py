"""A run, stage by stage, on Dask.

    pipeline       the loop over the stages, resumed where they were left
    steps          what the driver does in each stage
    tasks          what a worker does for each; quality_task: for quality
    gram_pass      the Gram matrix over workers, and neighbours from it, for any groups of prompts
    scheduler      starting or joining a cluster; progress: what is shown meanwhile

May import: everything below, `results` included.
"""
