"""Students: teachers without the filters of smallest L1 norm.

The criterion is that of H. Li et al., "Pruning Filters for Efficient ConvNets" (2017), on the
filters with batch normalisation folded in, weight * gamma / sqrt(variance + epsilon), since
normalisation leaves the scale of the bare filters without meaning. The norms are the teacher's:
what is removed in one layer does not change the choice in the next. Nothing is retrained; every
parameter of a student, batch normalisation included, is a slice of the teacher's.

Rounding: of ``w`` channels, ``p`` per cent are ``w * p // 100``, rounded down, so that at least one
channel remains below 100 per cent. Of equal norms the channel of the lower index stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.networks import RESNET20_BLOCKS, BasicBlock, ConvNorm, Network, ResNet20, Vgg16

VGG16_RECIPES = {
    "A": (50, *(0,) * 6, *(50,) * 6),
    "D": (50,) * 13,
    "C": (60, *(50,) * 6, *(75,) * 6),
}
"""Per cent of the filters to remove in each of the 13 convolutions of VGG-16."""


@dataclass(frozen=True)
class ResNetRecipe:
    """What to remove from a ResNet-20.

    Attributes:
        inner: per cent of the filters of the first convolution of every basic block.
        stream: per cent of the channels of each stage's residual stream.
    """

    inner: int
    stream: int = 0


RESNET20_RECIPES = {
    "inner50": ResNetRecipe(inner=50),
    "inner75": ResNetRecipe(inner=75),
    "stream50": ResNetRecipe(inner=50, stream=50),
}


def recipes(network: Network) -> tuple[str, ...]:
    """Name the pruning recipes for a network."""
    return tuple(VGG16_RECIPES if isinstance(network, Vgg16) else RESNET20_RECIPES)


def prune(network: Network, recipe: str) -> Network:
    """Make a student.

    Args:
        network: the teacher in eval mode; it stays as it is.
        recipe: a key of `VGG16_RECIPES` or `RESNET20_RECIPES`.

    Returns:
        A narrower network of the same class in eval mode.
    """
    if isinstance(network, Vgg16):
        return prune_vgg16(network, VGG16_RECIPES[recipe])
    return prune_resnet20(network, RESNET20_RECIPES[recipe])


def prune_vgg16(network: Vgg16, percents: Sequence[int]) -> Vgg16:
    """Remove filters of a VGG-16.

    Args:
        network: the teacher in eval mode.
        percents: per cent of the filters to remove in each of the 13 convolutions.

    Returns:
        The student in eval mode.
    """
    layers = _layers(network)
    kept = [
        strongest(filter_norms(layer.conv, layer.bn), percent)
        for layer, percent in zip(layers, percents, strict=True)
    ]
    student = Vgg16([len(indices) for indices in kept])
    inputs = torch.arange(1)
    for target, source, outputs in zip(_layers(student), layers, kept, strict=True):
        _slice(target.conv, target.bn, source.conv, source.bn, outputs, inputs)
        inputs = outputs
    _slice_classifier(student.classifier, network.classifier, inputs)
    return student.eval()


def prune_resnet20(network: ResNet20, recipe: ResNetRecipe) -> ResNet20:
    """Remove channels of a ResNet-20.

    All that writes to the residual stream of a stage - the stem or the projection, and the second
    convolution of every block - loses the same channels: those of the smallest sum of the norms of
    their filters in all writers.

    Args:
        network: the teacher in eval mode.
        recipe: what to remove.

    Returns:
        The student in eval mode.
    """
    stages = _blocks(network)
    streams = []
    for number, blocks in enumerate(stages):
        entry = network.stem if number == 0 else blocks[0].shortcut
        assert entry is not None  # the first block of the later stages has a stride
        norms = filter_norms(entry.conv, entry.bn)
        for block in blocks:
            norms = norms + filter_norms(block.conv2, block.bn2)
        streams.append(strongest(norms, recipe.stream))
    inners = [
        [strongest(filter_norms(block.conv1, block.bn1), recipe.inner) for block in blocks]
        for blocks in stages
    ]
    student = ResNet20(
        [len(indices) for indices in streams],
        [len(indices) for stage in inners for indices in stage],
    )
    inputs = streams[0]
    _slice(
        student.stem.conv,
        student.stem.bn,
        network.stem.conv,
        network.stem.bn,
        inputs,
        torch.arange(1),
    )
    for number, (targets, sources) in enumerate(zip(_blocks(student), stages, strict=True)):
        outputs = streams[number]
        for position in range(RESNET20_BLOCKS):
            target, source, inner = targets[position], sources[position], inners[number][position]
            _slice(target.conv1, target.bn1, source.conv1, source.bn1, inner, inputs)
            _slice(target.conv2, target.bn2, source.conv2, source.bn2, outputs, inner)
            if target.shortcut is not None and source.shortcut is not None:
                narrow, wide = target.shortcut, source.shortcut
                _slice(narrow.conv, narrow.bn, wide.conv, wide.bn, outputs, inputs)
            inputs = outputs
    _slice_classifier(student.classifier, network.classifier, inputs)
    return student.eval()


def filter_norms(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
    """Give the L1 norm of each filter with its batch normalisation folded in.

    Args:
        conv: weight, outputs x inputs x height x width.
        bn: the batch normalisation that follows, in its eval form.

    Returns:
        The norms, float64, outputs.
    """
    assert bn.running_var is not None  # only a normalisation without statistics has none
    with torch.no_grad():
        gain = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        return conv.weight.double().abs().sum((1, 2, 3)) * gain.abs()


def strongest(norms: Tensor, percent: int) -> Tensor:
    """Choose the channels that stay.

    Args:
        norms: one number per channel; the smallest go.
        percent: how many go, 0..99 per cent, rounded down to whole channels.

    Returns:
        The indices that stay, ascending, int64.
    """
    if not 0 <= percent < 100:
        raise ValueError(f"Cannot remove {percent} % of the channels.")
    count = len(norms) - len(norms) * percent // 100
    order = torch.argsort(norms, descending=True, stable=True)
    return order[:count].sort().values


def _layers(network: Vgg16) -> list[ConvNorm]:
    return [module for module in network.modules() if isinstance(module, ConvNorm)]


def _blocks(network: ResNet20) -> list[list[BasicBlock]]:
    return [
        [module for module in stage.modules() if isinstance(module, BasicBlock)]
        for stage in network.stages
    ]


def _slice(
    conv: nn.Conv2d,
    bn: nn.BatchNorm2d,
    wide_conv: nn.Conv2d,
    wide_bn: nn.BatchNorm2d,
    outputs: Tensor,
    inputs: Tensor,
) -> None:
    """Fill a convolution and its normalisation with slices of wider ones."""
    state = wide_bn.state_dict()
    conv.load_state_dict({"weight": wide_conv.weight[outputs][:, inputs]})
    # The count of batches seen is one number, not one per channel.
    bn.load_state_dict({key: v[outputs] if v.ndim else v for key, v in state.items()})


def _slice_classifier(narrow: nn.Linear, wide: nn.Linear, inputs: Tensor) -> None:
    narrow.load_state_dict({"weight": wide.weight[:, inputs], "bias": wide.bias})
