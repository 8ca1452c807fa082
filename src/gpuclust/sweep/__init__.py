"""Many settings at little more than the cost of one: ``python -m gpuclust.sweep``.

    grid          settings from a file; subsets: which prompts a setting uses
    experiment    the sweep's folder and order; computation, sharing, trials: the work that settings share
    trial_list    which trials there are; opened: a finished sweep in Python, report: told at its end
    effects       which settings matter; answers and answers_page: told to a person

May import: everything below, `engine` included. The command is `__main__`.
"""
