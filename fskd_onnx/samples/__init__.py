"""Files to named batches; images to tensors; labels."""
