"""A table of bad inputs: what a command says of each, and that it leaves everything as it was.

``python -m tests.bad_inputs [NAME ...]`` runs rows, each in a process of its own, and prints what
was said; ``tests/cli/test_bad_inputs.py`` runs all of them in forks of one process.
"""
