"""Students: teachers without the filters of smallest L1 norm.

The criterion is that of H. Li et al., "Pruning Filters for Efficient ConvNets" (2017), on the
filters with batch normalisation folded in, weight * gamma / sqrt(variance + epsilon), since
normalisation leaves the scale of the bare filters without meaning; in a DenseNet it comes before
the convolutions, so their filters are taken bare. The norms are the teacher's:
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

from models.networks import (
    RESNET20_BLOCKS,
    BasicBlock,
    ConvNorm,
    DenseLayer,
    DenseNet22,
    InvertedResidual,
    MobileNetV2,
    Network,
    ResNet20,
    Transition,
    Vgg16,
)

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

DENSENET22_RECIPES = {"growth50": 50}
"""Per cent to remove of the channels that each dense layer adds and each transition gives."""

MOBILENETV2_RECIPES = {"expansion50": 50}
"""Per cent to remove of the channels inside every inverted residual."""


def recipes(network: Network) -> tuple[str, ...]:
    """Name the pruning recipes for a network."""
    match network:
        case Vgg16():
            return tuple(VGG16_RECIPES)
        case ResNet20():
            return tuple(RESNET20_RECIPES)
        case DenseNet22():
            return tuple(DENSENET22_RECIPES)
        case MobileNetV2():
            return tuple(MOBILENETV2_RECIPES)


def prune(network: Network, recipe: str) -> Network:
    """Make a student.

    Args:
        network: the teacher in eval mode; it stays as it is.
        recipe: one of `recipes`.

    Returns:
        A narrower network of the same class in eval mode.
    """
    match network:
        case Vgg16():
            return prune_vgg16(network, VGG16_RECIPES[recipe])
        case ResNet20():
            return prune_resnet20(network, RESNET20_RECIPES[recipe])
        case DenseNet22():
            return prune_densenet22(network, DENSENET22_RECIPES[recipe])
        case MobileNetV2():
            return prune_mobilenetv2(network, MOBILENETV2_RECIPES[recipe])


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


def prune_densenet22(network: DenseNet22, percent: int) -> DenseNet22:
    """Remove channels that layers add to the features and that transitions give.

    Args:
        network: the teacher in eval mode.
        percent: per cent of the filters to remove, the stem's excepted.

    Returns:
        The student in eval mode.
    """
    layers = _dense_layers(network)
    kept = [strongest(filter_norms(layer.conv), percent) for layer in layers]
    widths: dict[type[nn.Module], list[int]] = {DenseLayer: [], Transition: []}
    for layer, outputs in zip(layers, kept, strict=True):
        widths[type(layer)].append(len(outputs))
    student = DenseNet22(widths[DenseLayer], widths[Transition])
    inputs = torch.arange(network.stem.out_channels)
    _slice_conv(student.stem, network.stem, inputs, torch.arange(1))
    for target, source, outputs in zip(_dense_layers(student), layers, kept, strict=True):
        _slice_norm(target.bn, source.bn, inputs)
        _slice_conv(target.conv, source.conv, outputs, inputs)
        if isinstance(source, DenseLayer):
            outputs = torch.cat((inputs, source.conv.in_channels + outputs))
        inputs = outputs
    _slice_norm(student.bn, network.bn, inputs)
    _slice_classifier(student.classifier, network.classifier, inputs)
    return student.eval()


def prune_mobilenetv2(network: MobileNetV2, percent: int) -> MobileNetV2:
    """Remove channels inside the inverted residuals: those of the weakest expansion filters.

    Args:
        network: the teacher in eval mode.
        percent: per cent of the channels inside each block to remove.

    Returns:
        The student in eval mode.
    """
    blocks = _inverted_residuals(network)
    kept = [strongest(filter_norms(block.conv1, block.bn1), percent) for block in blocks]
    student = MobileNetV2([len(indices) for indices in kept])
    student.stem.load_state_dict(network.stem.state_dict())
    student.head.load_state_dict(network.head.state_dict())
    student.classifier.load_state_dict(network.classifier.state_dict())
    for target, source, inner in zip(_inverted_residuals(student), blocks, kept, strict=True):
        inputs = torch.arange(source.conv1.in_channels)
        outputs = torch.arange(source.conv3.out_channels)
        _slice(target.conv1, target.bn1, source.conv1, source.bn1, inner, inputs)
        # Each filter of a depthwise convolution reads one channel, its own.
        _slice(target.conv2, target.bn2, source.conv2, source.bn2, inner, torch.arange(1))
        _slice(target.conv3, target.bn3, source.conv3, source.bn3, outputs, inner)
    return student.eval()


def filter_norms(conv: nn.Conv2d, bn: nn.BatchNorm2d | None = None) -> Tensor:
    """Give the L1 norm of each filter with its batch normalisation folded in.

    Args:
        conv: weight, outputs x inputs x height x width.
        bn: the batch normalisation that follows, in its eval form, if one follows.

    Returns:
        The norms, float64, outputs.
    """
    with torch.no_grad():
        norms = conv.weight.double().abs().sum((1, 2, 3))
        if bn is None:
            return norms
        assert bn.running_var is not None  # only a normalisation without statistics has none
        gain = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        return norms * gain.abs()


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


def _dense_layers(network: DenseNet22) -> list[DenseLayer | Transition]:
    """Give the layers and transitions in the order in which data passes them."""
    layers: list[DenseLayer | Transition] = []
    for number, stage in enumerate(network.stages):
        layers += [module for module in stage.modules() if isinstance(module, DenseLayer)]
        if number < len(network.transitions):
            transition = network.transitions[number]
            assert isinstance(transition, Transition)
            layers.append(transition)
    return layers


def _inverted_residuals(network: MobileNetV2) -> list[InvertedResidual]:
    return [module for module in network.modules() if isinstance(module, InvertedResidual)]


def _slice(
    conv: nn.Conv2d,
    bn: nn.BatchNorm2d,
    wide_conv: nn.Conv2d,
    wide_bn: nn.BatchNorm2d,
    outputs: Tensor,
    inputs: Tensor,
) -> None:
    """Fill a convolution and its normalisation with slices of wider ones."""
    _slice_conv(conv, wide_conv, outputs, inputs)
    _slice_norm(bn, wide_bn, outputs)


def _slice_conv(narrow: nn.Conv2d, wide: nn.Conv2d, outputs: Tensor, inputs: Tensor) -> None:
    narrow.load_state_dict({"weight": wide.weight[outputs][:, inputs]})


def _slice_norm(narrow: nn.BatchNorm2d, wide: nn.BatchNorm2d, channels: Tensor) -> None:
    # The count of batches seen is one number, not one per channel.
    state = {key: v[channels] if v.ndim else v for key, v in wide.state_dict().items()}
    narrow.load_state_dict(state)


def _slice_classifier(narrow: nn.Linear, wide: nn.Linear, inputs: Tensor) -> None:
    narrow.load_state_dict({"weight": wide.weight[:, inputs], "bias": wide.bias})
