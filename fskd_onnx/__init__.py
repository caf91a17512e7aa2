"""Make compressed neural networks accurate again, without training."""
