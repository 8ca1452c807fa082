"""Faults on purpose: kills, damaged files, limits and bad inputs, and what the project makes of them.

    make test-faults                                              # all of it: hours
    python -m tests.faults kills damages --every 10               # every tenth try of two kinds
    python -m tests.faults --sample                               # about 25, which `test_sample.py` runs

Every try is a process of its own: a fork of one that has imported everything and compiled numba's kernels, so that a
whole run on the tiny model takes two seconds (`forking`). All tries of one command work in the same folder, which is
wiped before each (`subject`). What came of a try is one word of `outcomes`; the last thing printed is a table.
"""
