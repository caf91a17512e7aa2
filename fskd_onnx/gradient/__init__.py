"""Gradient steps from a fitted student, in PyTorch. Importing any of its modules needs PyTorch."""
