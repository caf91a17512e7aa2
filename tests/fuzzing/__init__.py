"""Fuzzing of all that reads files: ``python -m tests.fuzzing --minutes 60``.

Valid files are mutated, and what reaches new lines of the package or gives a new answer is mutated
further. Whatever is in a file, it is read, or refused in a sentence that names the file; see
`tests.fuzzing.worker` for what counts as a fault.
"""
