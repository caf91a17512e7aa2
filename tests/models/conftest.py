from collections.abc import Callable

import pytest
import torch

from models.networks import Network, densenet22, mobilenetv2, resnet20, vgg16

NARROW: dict[str, Callable[[], Network]] = {
    "vgg16": lambda: vgg16((8,) * 13),
    "resnet20": lambda: resnet20((4, 8, 12)),
    "densenet22": lambda: densenet22((4,) * 18, (8, 12)),
    "mobilenetv2": lambda: mobilenetv2((8,) * 7),
}


@pytest.fixture(scope="session", params=NARROW)
def network(request: pytest.FixtureRequest) -> Network:
    """An untrained narrow network, with statistics as if it had been trained; not to be changed."""
    torch.manual_seed(0)
    narrow = NARROW[request.param]()
    for module in narrow.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                assert value is not None
                torch.nn.init.uniform_(value, low, high)
    return narrow.eval()
