import copy

import numpy as np
import torch

from models.data import Split
from models.networks import vgg16
from models.train import Recipe, accuracy, train


def test_training_learns_and_is_repeatable() -> None:
    """Two classes that differ in brightness."""
    labels = np.arange(512) % 2
    images = np.random.default_rng(0).integers(0, 60, (512, 28, 28), np.uint8)
    images += (labels * 150).astype(np.uint8)[:, None, None]
    data = Split(images, labels)
    torch.manual_seed(0)
    network = vgg16((4,) * 13)
    again = copy.deepcopy(network)
    for each in (network, again):
        train(each, data, Recipe(epochs=4, peak_rate=0.05, batch=32))
        assert not each.training
    assert accuracy(network, data) > 0.9
    expected = network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
