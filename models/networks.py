"""The reference networks: VGG-16 and ResNet-20 for 28 x 28 grey images and ten classes.

VGG-16 is configuration D of K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks for
Large-Scale Image Recognition" (2015), with batch normalisation and a single linear classifier, as
is usual for CIFAR. ResNet-20 is the CIFAR network of K. He et al., "Deep Residual Learning for
Image Recognition" (2016), section 4.2, with a projection (option B) where a shortcut changes shape.

Every width is an argument, so that a pruned network is the same class with smaller numbers, and all
submodule names - hence the tensor names of the exported file - are the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        self.relu = nn.ReLU() if relu else nn.Identity()

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


Network = Vgg16 | ResNet20
"""The two classes that this folder trains, prunes and exports."""


def vgg16(widths: Sequence[int] = VGG16_WIDTHS) -> Vgg16:
    """Build an untrained VGG-16; see `Vgg16`."""
    return Vgg16(widths)


def resnet20(
    stream: Sequence[int] = RESNET20_STREAM, inner: Sequence[int] | None = None
) -> ResNet20:
    """Build an untrained ResNet-20; see `ResNet20`."""
    return ResNet20(stream, inner)


def vgg16_widths(divisor: int) -> tuple[int, ...]:
    """Give the widths of VGG-16 divided by ``divisor``: 2 for the half-width network."""
    return tuple(width // divisor for width in VGG16_WIDTHS)
