import pytest
import torch

from models.networks import Network, resnet20, vgg16


@pytest.fixture(scope="session", params=["vgg16", "resnet20"])
def network(request: pytest.FixtureRequest) -> Network:
    """An untrained narrow network, with statistics as if it had been trained; not to be changed."""
    torch.manual_seed(0)
    narrow: Network = vgg16((8,) * 13) if request.param == "vgg16" else resnet20((4, 8, 12))
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
