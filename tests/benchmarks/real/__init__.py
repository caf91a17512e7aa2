"""Trained networks of others, inputs for them, and what their answers decide."""
