"""A run, stage by stage, on Dask.

    pipeline       the loop over the stages, resumed where they were left
    steps          what the driver does in each stage
    tasks          what a worker does for each; quality_task: for quality
    exact_pass     neighbours for any views of the prompts: gram_pass by tiles, inverted_pass by an index of sparse rows
    views          groups and views of the prompts, what a pass reads, and the files of neighbours
    prompt_rows    what a pass reads of the prompts
    execute        a run on a scheduler that starts when it is needed; planning: what it would take
    imported       activations of a file, as the first stages of a run
    validating     what a finished run's clusters predict, and where they fire together; held_out: its passes;
                   replicating: whether another SAE has them
    causing        what clusters do to the model's output; cause_rows: where; cause_changes: against what
    reuse          a run on activations that another folder has
    scheduler      starting or joining a cluster; progress: what is shown meanwhile

May import: everything below, `results` included.
"""
