"""Networks of real shapes with random weights, and students of half their inner width.

ResNet-50 (K. He et al., 2016), MobileNetV2 (M. Sandler et al., 2018), EfficientNet-Lite0 (M. Tan
and Q. Le, 2019, without gates) and Inception v1 (C. Szegedy et al., 2015) at 224 x 224, VGG-16 (K.
Simonyan and A. Zisserman, 2015, of half its width) at 28 x 28, batch normalisation folded, and a
plain chain of any depth. Weights have the variance that keeps that of activations, so the networks
compute something; how fast they run does not depend on what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

INPUT, OUTPUT = "image", "logits"
SIDE, SMALL_SIDE = 224, 28
CLASSES = 1000
# Of each stage convolutions and channels; pooling behind the first three.
_VGG16 = ((2, 32), (2, 64), (3, 128), (3, 256), (3, 256))
_RESNET50 = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
# Of each stage of inverted residuals: expansion, channels, blocks, stride, kernel.
_MOBILENET = (
    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3)),
    *((6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)),
)
_EFFICIENTNET = (
    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)),
    *((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
)
# Of each module the widths of its branches: 1x1, 3x3 with what reduces it, 5x5 likewise, pooled.
_INCEPTION = (
    ((64, (96, 128), (16, 32), 32), (128, (128, 192), (32, 96), 64)),
    (
        *((192, (96, 208), (16, 48), 64), (160, (112, 224), (24, 64), 64)),
        *((128, (128, 256), (24, 64), 64), (112, (144, 288), (32, 64), 64)),
        (256, (160, 320), (32, 128), 128),
    ),
    ((256, (160, 320), (32, 128), 128), (384, (192, 384), (48, 128), 128)),
)

Pair = tuple[onnx.ModelProto, onnx.ModelProto]


def vgg16() -> Pair:
    """A teacher, and a student that is half as wide."""

    def build(net: _Net) -> None:
        x = INPUT
        for stage, (convolutions, width) in enumerate(_VGG16):
            for number in range(convolutions):
                x = net.relu(net.conv(f"conv{stage}.{number}", x, net.part(width), kernel=3))
            if stage < 3:
                x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        net.classify(x, classes=10)

    return _pair(build, SMALL_SIDE)


def resnet50() -> Pair:
    """A teacher, and a student whose bottlenecks are half as wide inside."""

    def build(net: _Net) -> None:
        x = net.relu(net.conv("stem", INPUT, 64, kernel=7, stride=2))
        x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        for stage, (blocks, inner, first) in enumerate(_RESNET50):
            for block in range(blocks):
                name, stride = f"stage{stage}.{block}", first if block == 0 else 1
                y = net.relu(net.conv(f"{name}.reduce", x, net.part(inner)))
                y = net.relu(net.conv(f"{name}.spatial", y, net.part(inner), 3, stride))
                y = net.conv(f"{name}.expand", y, 4 * inner, gain=0.3)
                if block == 0:
                    x = net.conv(f"{name}.shortcut", x, 4 * inner, stride=stride)
                x = net.relu(net.node("Add", y, x))
        net.classify(x)

    return _pair(build, SIDE)


def mobilenet_v2() -> Pair:
    """A teacher, and a student whose inverted residuals are half as wide inside."""
    return _inverted_residuals(_MOBILENET)


def efficientnet_lite0() -> Pair:
    """A teacher, and a student whose inverted residuals are half as wide inside."""
    return _inverted_residuals(_EFFICIENTNET)


def _inverted_residuals(stages: Sequence[tuple[int, int, int, int, int]]) -> Pair:
    def build(net: _Net) -> None:
        x = net.relu6(net.conv("stem", INPUT, 32, kernel=3, stride=2))
        width, number = 32, 0
        for factor, out, blocks, first, kernel in stages:
            for block in range(blocks):
                name, stride, number = f"block{number}", first if block == 0 else 1, number + 1
                inner, y = net.part(factor * width) if factor > 1 else width, x
                if factor > 1:
                    y = net.relu6(net.conv(f"{name}.expand", y, inner))
                depth = net.conv(f"{name}.depth", y, inner, kernel, stride, depthwise=True)
                y = net.relu6(depth)
                y = net.conv(f"{name}.project", y, out)
                x = net.node("Add", x, y) if stride == 1 and width == out else y
                width = out
        net.classify(net.relu6(net.conv("head", x, 1280)))

    return _pair(build, SIDE)


def inception_v1() -> Pair:
    """A teacher, and a student that is half as wide."""

    def build(net: _Net) -> None:
        pool = {"kernel_shape": [3, 3], "pads": [1] * 4}
        x = net.relu(net.conv("stem", INPUT, net.part(64), kernel=7, stride=2))
        x = net.node("MaxPool", x, strides=[2, 2], **pool)
        x = net.relu(net.conv("reduce", x, net.part(64)))
        x = net.relu(net.conv("spatial", x, net.part(192), kernel=3))
        for stage, modules in enumerate(_INCEPTION):
            x = net.node("MaxPool", x, strides=[2, 2], **pool)
            for number, (plain, three, five, pooled) in enumerate(modules):
                name = f"inception{stage}.{number}"
                branches = [net.relu(net.conv(f"{name}.plain", x, net.part(plain)))]
                for kernel, (inner, out) in ((3, three), (5, five)):
                    y = net.relu(net.conv(f"{name}.reduce{kernel}", x, net.part(inner)))
                    y = net.conv(f"{name}.spatial{kernel}", y, net.part(out), kernel)
                    branches.append(net.relu(y))
                y = net.node("MaxPool", x, **pool)
                branches.append(net.relu(net.conv(f"{name}.pooled", y, net.part(pooled))))
                x = net.concat(f"{name}.output", branches)
        net.classify(x)

    return _pair(build, SIDE)


def chain(depth: int, width: int = 32, side: int = 14) -> Pair:
    """A teacher of equal convolutions, and a student of half its width."""

    def build(net: _Net) -> None:
        x = INPUT
        for index in range(depth):
            x = net.relu(net.conv(f"conv{index}", x, net.part(width), kernel=3))
        net.classify(x, classes=10)

    return _pair(build, side)


def images(count: int, side: int, channels: int = 3) -> NDArray[np.float32]:
    """Random images, smooth enough for neighbouring pixels to be alike as those of photos are."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((count, channels, side // 7 + 1, side // 7 + 1)).astype(np.float32)
    fine = coarse.repeat(7, axis=2).repeat(7, axis=3)[:, :, :side, :side]
    return fine + np.float32(0.3) * rng.standard_normal(fine.shape, dtype=np.float32)


def _pair(build: Callable[[_Net], None], side: int) -> Pair:
    teacher, student = _Net(side, 1.0), _Net(side, 0.5)
    for net in (teacher, student):
        build(net)
    return teacher.model(), student.model()


@dataclass(frozen=True)
class _Channels:
    """Channels of a tensor: how many the teacher has, and which of them are here."""

    all: int
    here: tuple[int, ...]

    @staticmethod
    def first(width: int, here: int | None = None) -> _Channels:
        """Return channels of which the first ones are here, by default all."""
        return _Channels(width, tuple(range(width if here is None else here)))


@dataclass
class _Net:
    """Collects nodes; both networks draw the teacher's weights, the student keeps a part."""

    side: int
    keep: float
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    channels: dict[str, _Channels] = field(default_factory=lambda: {INPUT: _Channels.first(3)})

    def part(self, width: int) -> _Channels:
        """Channels of which the student has a part."""
        return _Channels.first(width, int(width * self.keep))

    def conv(
        self,
        name: str,
        source: str,
        channels: _Channels | int,
        kernel: int = 1,
        stride: int = 1,
        gain: float = 1.0,
        depthwise: bool = False,
    ) -> str:
        """Append a convolution with its bias."""
        inputs = _Channels.first(1) if depthwise else self.channels[source]
        outputs = channels if isinstance(channels, _Channels) else _Channels.first(channels)
        shape = (outputs.all, inputs.all, kernel, kernel)
        weight = self.rng.standard_normal(shape, dtype=np.float32)
        weight *= np.float32(gain * (2 / (inputs.all * kernel**2)) ** 0.5)
        weight = weight[list(outputs.here)][:, list(inputs.here)]
        return self._linear(
            *("Conv", name, source, weight, outputs),
            group=len(outputs.here) if depthwise else 1,
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
        )

    def classify(self, source: str, classes: int = CLASSES) -> None:
        """Append the mean over positions and the classifier."""
        inputs = self.channels[source]
        flat = self.node("Flatten", self.node("GlobalAveragePool", source))
        weight = self.rng.standard_normal((classes, inputs.all), dtype=np.float32)
        weight = weight[:, list(inputs.here)] * np.float32(inputs.all**-0.5)
        self._linear("Gemm", OUTPUT, flat, weight, _Channels.first(classes), transB=1)

    def relu(self, source: str) -> str:
        return self.node("Relu", source)

    def relu6(self, source: str) -> str:
        bounds = [np.float32(0), np.float32(6)]
        if not any(tensor.name == "low" for tensor in self.weights):
            self.weights += map(numpy_helper.from_array, map(np.asarray, bounds), ("low", "high"))
        return self.node("Clip", source, "low", "high")

    def node(self, op: str, *sources: str, **attributes: Any) -> str:
        """Append a node that keeps the channels of its first input."""
        output = f"{sources[0]}.{op.lower()}"
        self.nodes.append(onnx.helper.make_node(op, sources, [output], output, **attributes))
        self.channels[output] = self.channels[sources[0]]
        return output

    def concat(self, name: str, sources: Sequence[str]) -> str:
        """Append a node that puts channels behind one another."""
        self.nodes.append(onnx.helper.make_node("Concat", sources, [name], name, axis=1))
        parts = [self.channels[source] for source in sources]
        starts = [sum(part.all for part in parts[:number]) for number in range(len(parts))]
        here = (s + c for s, part in zip(starts, parts, strict=True) for c in part.here)
        self.channels[name] = _Channels(sum(part.all for part in parts), tuple(here))
        return name

    def model(self) -> onnx.ModelProto:
        """Put it all together."""
        float32 = onnx.TensorProto.FLOAT
        inputs = [
            onnx.helper.make_tensor_value_info(INPUT, float32, ["N", 3, self.side, self.side])
        ]
        classes = self.channels[OUTPUT].all
        outputs = [onnx.helper.make_tensor_value_info(OUTPUT, float32, ["N", classes])]
        graph = onnx.helper.make_graph(self.nodes, "benchmark", inputs, outputs, self.weights)
        opset = [onnx.helper.make_opsetid("", 17)]
        return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)

    def _linear(
        self,
        op: str,
        name: str,
        source: str,
        weight: NDArray[np.float32],
        channels: _Channels,
        **attributes: Any,
    ) -> str:
        bias = self.rng.standard_normal(channels.all, dtype=np.float32)[list(channels.here)]
        values = {f"{name}.weight": weight, f"{name}.bias": np.float32(0.1) * bias}
        self.weights += [numpy_helper.from_array(v, k) for k, v in values.items()]
        inputs = [source, *values]
        self.nodes.append(onnx.helper.make_node(op, inputs, [name], name, **attributes))
        self.channels[name] = channels
        return name
