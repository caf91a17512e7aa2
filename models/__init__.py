"""Reference networks: their training, pruning and export, run as ``python -m models.build``."""
