"""The reference networks for 28 x 28 grey images and ten classes.

VGG-16 is configuration D of K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks for
Large-Scale Image Recognition" (2015), with batch normalisation and a single linear classifier, as
is usual for CIFAR. ResNet-20 is the CIFAR network of K. He et al., "Deep Residual Learning for
Image Recognition" (2016), section 4.2, with a projection (option B) where a shortcut changes shape.
DenseNet-22 is the plain CIFAR network of G. Huang et al., "Densely Connected Convolutional
Networks" (2017), growth 12, no bottlenecks and no compression, with 6 layers in a block in place of
12. MobileNetV2 is that of M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear
Bottlenecks" (2018), with fewer blocks, since 28 x 28 pixels are few to halve. The stems of both
have stride 2, as both papers have for large images, and four times fewer operations to train.

Every width is an argument, so that a pruned network is the same class with smaller numbers, and all
submodule names - hence the tensor names of the exported file - are the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.data import CLASSES

VGG16_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
"""Output channels of the 13 convolutions at full width."""

VGG16_STAGES = (2, 2, 3, 3, 3)
"""How many convolutions each stage of VGG-16 has."""

RESNET20_STREAM = (16, 32, 64)
"""Channels of the residual stream in the three stages."""

RESNET20_BLOCKS = 3
"""Basic blocks per stage."""

DENSENET22_STEM = 16
"""Channels that enter the first dense block."""

DENSENET22_GROWTH = 12
"""Channels that every layer of a dense block adds."""

DENSENET22_LAYERS = (6, 6, 6)
"""Layers of each dense block."""

MOBILENETV2_STEM = 16
"""Channels that enter the first inverted residual."""

MOBILENETV2_BLOCKS = ((16, 1), (24, 2), (24, 1), (32, 1), (32, 1), (64, 1), (64, 1))
"""Output channels and stride of each inverted residual."""

MOBILENETV2_EXPANSION = 6
"""How many times wider than its input an inverted residual is inside."""

MOBILENETV2_HEAD = 256
"""Channels of the last convolution."""

# After the first three stages: 28 -> 14 -> 7 -> 3. A fourth pooling would leave 1 x 1 maps, on
# which eight of the nine taps of a filter only ever see padding; a mean over the maps ends instead.
_VGG16_POOLINGS = 3


class ConvNorm(nn.Module):
    """A bias-free convolution, its batch normalisation, and optionally ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, relu: bool = True
    ) -> None:
        """Build the layer.

        Args:
            inputs: input channels.
            outputs: output channels.
            kernel: side of the odd square kernel, in pixels; the padding keeps the size.
            stride: in pixels.
            relu: whether ReLU follows.
        """
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu: nn.Module = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map N x inputs x H x W to N x outputs x H/stride x W/stride."""
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


class Vgg16(nn.Module):
    """VGG-16: 13 convolutions in five stages and one linear classifier."""

    def __init__(self, widths: Sequence[int] = VGG16_WIDTHS) -> None:
        """Build the network.

        Args:
            widths: output channels of the 13 convolutions.
        """
        super().__init__()
        if len(widths) != sum(VGG16_STAGES):
            raise ValueError(f"VGG-16 has {sum(VGG16_STAGES)} convolutions, not {len(widths)}.")
        self.widths = tuple(widths)
        remaining = iter(self.widths)
        inputs = 1
        stages = []
        for length in VGG16_STAGES:
            layers = []
            for _ in range(length):
                outputs = next(remaining)
                layers.append(ConvNorm(inputs, outputs))
                inputs = outputs
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in range(_VGG16_POOLINGS))
        self.classifier = nn.Linear(inputs, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map normalised images, N x 1 x 28 x 28, to logits, N x 10."""
        x = image
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number < _VGG16_POOLINGS:
                x = self.pools[number](x)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Two convolutions around which a shortcut leads."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        """Build the block.

        Args:
            inputs: channels of the stream that enters.
            inner: output channels of the first convolution.
            outputs: channels of the stream that leaves.
            stride: of the first convolution, in pixels; above 1 the shortcut is a projection.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, relu=False) if stride > 1 else None
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map N x inputs x H x W to N x outputs x H/stride x W/stride."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(y + (x if self.shortcut is None else self.shortcut(x)))
        return out


class ResNet20(nn.Module):
    """ResNet-20: a stem, three stages of three basic blocks and one linear classifier."""

    def __init__(
        self, stream: Sequence[int] = RESNET20_STREAM, inner: Sequence[int] | None = None
    ) -> None:
        """Build the network.

        Args:
            stream: channels of the residual stream in the three stages.
            inner: output channels of the first convolution of each of the nine blocks; by default
                those of the block's stage.
        """
        super().__init__()
        if inner is None:
            inner = [width for width in stream for _ in range(RESNET20_BLOCKS)]
        if len(stream) != len(RESNET20_STREAM) or len(inner) != len(stream) * RESNET20_BLOCKS:
            raise ValueError(
                f"ResNet-20 has 3 stream widths and 9 inner widths, not {len(stream)} and"
                f" {len(inner)}."
            )
        self.stream = tuple(stream)
        self.inner = tuple(inner)
        remaining = iter(self.inner)
        self.stem = ConvNorm(1, self.stream[0])
        inputs = self.stream[0]
        stages = []
        for number, outputs in enumerate(self.stream):
            blocks = []
            for position in range(RESNET20_BLOCKS):
                stride = 2 if number > 0 and position == 0 else 1
                blocks.append(BasicBlock(inputs, next(remaining), outputs, stride))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Linear(inputs, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map normalised images, N x 1 x 28 x 28, to logits, N x 10."""
        x = self.stem(image)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class DenseLayer(nn.Module):
    """Normalisation, ReLU and a convolution, whose output is put behind the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        """Build the layer.

        Args:
            inputs: input channels.
            growth: channels that the layer adds.
        """
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inputs, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map N x inputs x H x W to N x (inputs + growth) x H x W."""
        return torch.cat((x, self.conv(self.relu(self.bn(x)))), 1)


class Transition(nn.Module):
    """Normalisation, ReLU, a pointwise convolution and a pooling that halves the sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Build the layer.

        Args:
            inputs: input channels.
            outputs: output channels.
        """
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map N x inputs x H x W to N x outputs x H/2 x W/2."""
        out: Tensor = self.pool(self.conv(self.relu(self.bn(x))))
        return out


class DenseNet22(nn.Module):
    """DenseNet-22: a stem, three dense blocks with transitions between, and a linear classifier."""

    def __init__(
        self, growth: Sequence[int] | None = None, transitions: Sequence[int] | None = None
    ) -> None:
        """Build the network.

        Args:
            growth: channels that each of the 18 layers adds; by default 12.
            transitions: output channels of the two transitions; by default those of their input.
        """
        super().__init__()
        count = sum(DENSENET22_LAYERS)
        self.growth = (DENSENET22_GROWTH,) * count if growth is None else tuple(growth)
        ends = len(DENSENET22_LAYERS) - 1
        if len(self.growth) != count or (transitions is not None and len(transitions) != ends):
            raise ValueError(
                f"DenseNet-22 has {count} layers and {ends} transitions, not {len(self.growth)} and"
                f" {ends if transitions is None else len(transitions)}."
            )
        remaining = iter(self.growth)
        self.stem = nn.Conv2d(1, DENSENET22_STEM, 3, 2, 1, bias=False)
        channels = DENSENET22_STEM
        stages, junctions = [], []
        for number, length in enumerate(DENSENET22_LAYERS):
            layers = []
            for _ in range(length):
                layers.append(DenseLayer(channels, next(remaining)))
                channels += layers[-1].conv.out_channels
            stages.append(nn.Sequential(*layers))
            if number < ends:
                outputs = channels if transitions is None else transitions[number]
                junctions.append(Transition(channels, outputs))
                channels = outputs
        self.stages = nn.ModuleList(stages)
        self.transitions = nn.ModuleList(junctions)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map normalised images, N x 1 x 28 x 28, to logits, N x 10."""
        x = self.stem(image)
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number < len(self.transitions):
                x = self.transitions[number](x)
        logits: Tensor = self.classifier(self.relu(self.bn(x)).mean((2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """A pointwise expansion, a depthwise convolution and a linear pointwise projection."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        """Build the block.

        Args:
            inputs: channels of the stream that enters.
            inner: channels between the expansion and the projection.
            outputs: channels of the stream that leaves.
            stride: of the depthwise convolution, in pixels.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU6()
        self.relu2 = nn.ReLU6()
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map N x inputs x H x W to N x outputs x H/stride x W/stride."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        out: Tensor = self.bn3(self.conv3(y))
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """MobileNetV2: a stem, inverted residuals, a pointwise head and a linear classifier."""

    def __init__(self, inner: Sequence[int] | None = None) -> None:
        """Build the network.

        Args:
            inner: channels inside each of the blocks; by default six times those that enter.
        """
        super().__init__()
        if inner is not None and len(inner) != len(MOBILENETV2_BLOCKS):
            raise ValueError(
                f"MobileNetV2 has {len(MOBILENETV2_BLOCKS)} inner widths, not {len(inner)}."
            )
        self.stem = ConvNorm(1, MOBILENETV2_STEM, stride=2)
        self.stem.relu = nn.ReLU6()
        channels = MOBILENETV2_STEM
        blocks = []
        for number, (outputs, stride) in enumerate(MOBILENETV2_BLOCKS):
            width = channels * MOBILENETV2_EXPANSION if inner is None else inner[number]
            blocks.append(InvertedResidual(channels, width, outputs, stride))
            channels = outputs
        self.inner = tuple(block.conv1.out_channels for block in blocks)
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(channels, MOBILENETV2_HEAD, 1)
        self.head.relu = nn.ReLU6()
        self.classifier = nn.Linear(MOBILENETV2_HEAD, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map normalised images, N x 1 x 28 x 28, to logits, N x 10."""
        x = self.head(self.blocks(self.stem(image)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


Network = Vgg16 | ResNet20 | DenseNet22 | MobileNetV2
"""The classes that this folder trains, prunes and exports."""


def vgg16(widths: Sequence[int] = VGG16_WIDTHS) -> Vgg16:
    """Build an untrained VGG-16; see `Vgg16`."""
    return Vgg16(widths)


def resnet20(
    stream: Sequence[int] = RESNET20_STREAM, inner: Sequence[int] | None = None
) -> ResNet20:
    """Build an untrained ResNet-20; see `ResNet20`."""
    return ResNet20(stream, inner)


def densenet22(
    growth: Sequence[int] | None = None, transitions: Sequence[int] | None = None
) -> DenseNet22:
    """Build an untrained DenseNet-22; see `DenseNet22`."""
    return DenseNet22(growth, transitions)


def mobilenetv2(inner: Sequence[int] | None = None) -> MobileNetV2:
    """Build an untrained MobileNetV2; see `MobileNetV2`."""
    return MobileNetV2(inner)


def vgg16_widths(divisor: int) -> tuple[int, ...]:
    """Give the widths of VGG-16 divided by ``divisor``: 2 for the half-width network."""
    return tuple(width // divisor for width in VGG16_WIDTHS)
