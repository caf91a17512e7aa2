"""Operators that move windows over positions, and that change the resolution.

Padding is explicit where PyTorch has no form of it: pads may differ between the ends of an axis,
and ``auto_pad`` and ``ceil_mode`` depend on the extent of the input::

    SAME:       total = max((ceil(in / stride) - 1) * stride + (k - 1) * dilation + 1 - in, 0)
    ceil_mode:  out   = ceil((in + pads - (k - 1) * dilation - 1) / stride) + 1, less one where
                the last window would begin behind the input and the pad in front of it
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fskd_onnx.gradient.operator_table import Function, NodeReader, UnsupportedError, operator

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONVOLVE_BACK = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MOST_AXES = 3
_AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Windows:
    """How windows are placed.

    Attributes:
        kernel: extents; None where they are those of the weight.
        strides: between windows; None: 1.
        dilations: between the positions of a window; None: 1.
        pads: in front of each axis, then behind each; None: 0.
        auto_pad: how the pads are found instead.
        ceil_mode: whether a window may reach over the end.
    """

    kernel: list[int] | None
    strides: list[int] | None
    dilations: list[int] | None
    pads: list[int] | None
    auto_pad: str
    ceil_mode: bool

    @staticmethod
    def read(node: NodeReader) -> Windows:
        """Read the attributes of a node."""
        kernel = node.wholes("kernel_shape")
        if kernel is not None and len(kernel) > _MOST_AXES:
            raise UnsupportedError(f"it has {len(kernel)} axes of positions")
        auto_pad = node.only("auto_pad", node.text("auto_pad", "NOTSET"), *_AUTO_PADS)
        return Windows(
            kernel,
            node.wholes("strides"),
            node.wholes("dilations"),
            node.wholes("pads"),
            auto_pad,
            bool(node.whole("ceil_mode", 0)),
        )

    def steps(self, axes: int) -> tuple[list[int], list[int]]:
        """Return strides and dilations."""
        return self.strides or [1] * axes, self.dilations or [1] * axes

    def padding(self, extents: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
        """Return what stands in front of and behind each axis, ``ceil_mode`` aside."""
        axes = len(extents)
        strides, dilations = self.steps(axes)
        if self.auto_pad == "NOTSET":
            pads = self.pads or [0] * 2 * axes
            return list(zip(pads[:axes], pads[axes:], strict=True))
        if self.auto_pad == "VALID":
            return [(0, 0)] * axes
        found = []
        for extent, size, stride, dilation in zip(extents, kernel, strides, dilations, strict=True):
            seen = (math.ceil(extent / stride) - 1) * stride + (size - 1) * dilation + 1
            total = max(seen - extent, 0)
            less = total // 2
            ends = (less, total - less)
            found.append(ends if self.auto_pad == "SAME_UPPER" else ends[::-1])
        return found

    def overhang(
        self, extents: Sequence[int], kernel: Sequence[int], pads: Sequence[tuple[int, int]]
    ) -> list[int]:
        """Return how far behind the padded input of each axis the last window ends."""
        found = []
        strides, dilations = self.steps(len(extents))
        for extent, size, stride, dilation, (front, behind) in zip(
            extents, kernel, strides, dilations, pads, strict=True
        ):
            padded, window = extent + front + behind, (size - 1) * dilation + 1
            more = 0
            if self.ceil_mode:
                last = math.ceil((padded - window) / stride)
                last -= last * stride >= extent + front
                more = max(last * stride + window - padded, 0)
            found.append(more)
        return found


def _padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Return a tensor with more positions around it."""
    if not any(map(any, pads)):
        return x
    return F.pad(x, [end for ends in reversed(pads) for end in ends], value=value)


@operator("Conv")
def _conv(node: NodeReader) -> Function:
    windows, groups = Windows.read(node), node.whole("group", 1)

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        kernel, extents = weight.shape[2:], x.shape[2:]
        strides, dilations = windows.steps(len(kernel))
        pads = windows.padding(extents, kernel)
        same = all(front == behind for front, behind in pads)
        ends = [front for front, _ in pads] if same else [0] * len(pads)
        x = x if same else _padded(x, pads)
        return _CONVOLVE[len(kernel)](x, weight, bias, strides, ends, dilations, groups)

    return conv


@operator("ConvTranspose")
def _conv_transpose(node: NodeReader) -> Function:
    windows, groups = Windows.read(node), node.whole("group", 1)
    more = node.wholes("output_padding")

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        kernel, extents = weight.shape[2:], x.shape[2:]
        axes = len(kernel)
        strides, dilations = windows.steps(axes)
        extra = more or [0] * axes
        ends = windows.padding(extents, kernel)
        if windows.auto_pad.startswith("SAME"):  # as many positions as the strides make
            sizes = zip(kernel, strides, dilations, extra, strict=True)
            totals = [(size - 1) * d + 1 + behind - stride for size, stride, d, behind in sizes]
            ends = [(total // 2, total - total // 2) for total in totals]
            if windows.auto_pad == "SAME_LOWER":
                ends = [(behind, front) for front, behind in ends]
        y = _CONVOLVE_BACK[axes](x, weight, None, strides, 0, 0, groups, dilations)
        # Output padding adds positions that no kernel reaches; what is cut off may take them.
        y = _padded(y, [(-f, e - b) for (f, b), e in zip(ends, extra, strict=True)])
        return y if bias is None else y + bias.reshape(-1, *[1] * axes)

    return conv


@operator("MaxPool")
def _max_pool(node: NodeReader) -> Function:
    node.one_output()
    node.only("storage_order", node.whole("storage_order", 0), 0)
    windows = Windows.read(node)

    def pool(x: Tensor) -> Tensor:
        kernel, extents = windows.kernel or [], x.shape[2:]
        pads = windows.padding(extents, kernel)
        more = windows.overhang(extents, kernel, pads)
        ends = [(front, behind + o) for (front, behind), o in zip(pads, more, strict=True)]
        strides, dilations = windows.steps(len(kernel))
        return _MAX_POOL[len(kernel)](_padded(x, ends, -math.inf), kernel, strides, 0, dilations)

    return pool


@operator("AveragePool")
def _average_pool(node: NodeReader) -> Function:
    windows, whole = Windows.read(node), bool(node.whole("count_include_pad", 0))
    if any(step != 1 for step in windows.dilations or ()):
        raise UnsupportedError("it averages over positions that are apart (dilations)")

    def pool(x: Tensor) -> Tensor:
        kernel, extents = windows.kernel or [], x.shape[2:]
        pads = windows.padding(extents, kernel)
        more = windows.overhang(extents, kernel, pads)
        counted = x.new_ones(1, 1, *extents)
        counted = _padded(counted, pads, 1.0 if whole else 0.0)
        overhang = [(0, o) for o in more]
        x = _padded(_padded(x, pads), overhang)
        counted = _padded(counted, overhang)
        strides, _ = windows.steps(len(kernel))

        def average(values: Tensor) -> Tensor:
            if len(kernel) == 1:
                return F.avg_pool1d(values, kernel, strides)
            function = F.avg_pool2d if len(kernel) == 2 else F.avg_pool3d
            return function(values, kernel, strides)

        return average(x) / average(counted)

    return pool


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: NodeReader) -> Function:
    reduce = torch.mean if node.op == "GlobalAveragePool" else torch.amax
    return lambda x: reduce(x, dim=tuple(range(2, x.ndim)), keepdim=True)


@operator("DepthToSpace")
def _depth_to_space(node: NodeReader) -> Function:
    size = node.whole("blocksize", 1)
    mode = node.only("mode", node.text("mode", "DCR"), "DCR", "CRD")

    def rearrange(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if mode == "DCR":
            parts = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            parts = x.reshape(n, c // size**2, size, size, h, w).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(n, c // size**2, h * size, w * size)

    return rearrange


@operator("SpaceToDepth")
def _space_to_depth(node: NodeReader) -> Function:
    size = node.whole("blocksize", 1)

    def rearrange(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * size**2, h // size, w // size)

    return rearrange
