"""Samples: files -> named batches, images -> tensors; labels; moved copies."""
