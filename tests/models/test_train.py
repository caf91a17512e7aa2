import copy

import numpy as np
import pytest
import torch

from models.data import Split, normalise
from models.networks import Network, vgg16
from models.train import Recipe, accuracy, train


@pytest.fixture
def data() -> Split:
    """Two classes that differ in brightness."""
    labels = np.arange(512) % 2
    images = np.random.default_rng(0).integers(0, 60, (512, 28, 28), np.uint8)
    images += (labels * 150).astype(np.uint8)[:, None, None]
    return Split(images, labels)


def small() -> Network:
    torch.manual_seed(0)
    return vgg16((4,) * 13)


def test_training_learns_and_is_repeatable(data: Split) -> None:
    network = small()
    again = copy.deepcopy(network)
    for each in (network, again):
        train(each, data, Recipe(epochs=4, peak_rate=0.05, batch=32))
        assert not each.training
    assert accuracy(network, data) > 0.9
    expected = network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_a_teacher_is_learnt_from_beside_the_labels(data: Split) -> None:
    teacher = small()
    train(teacher, data, Recipe(epochs=4, peak_rate=0.05, batch=32))
    with torch.no_grad():
        teacher.classifier.bias.add_(torch.arange(10.0))  # classes that no label tells of
    images = torch.from_numpy(normalise(data.images))
    errors = []
    for taught_by in (None, teacher):
        network = small()
        train(network, data, Recipe(epochs=4, peak_rate=0.05, batch=32), teacher=taught_by)
        with torch.no_grad():
            scores = [one(images).log_softmax(1) for one in (network, teacher)]
        errors.append(float((scores[0] - scores[1]).square().mean()))
    assert errors[1] < 0.5 * errors[0]
