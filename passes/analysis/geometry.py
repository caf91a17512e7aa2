"""How the positions of a block's output lie on its input: convolutions as gathered patches.

Along each axis, output position o sees through kernel element k the input position::

    Conv            i = o * stride + k * dilation - pad
    ConvTranspose   i = (o - k * dilation + pad) / stride, where that is a whole number

and nothing (zero) where i lies outside of the input. So both are one matrix applied to patches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.passes.analysis.linear import Linear


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a convolution.

    Attributes:
        size: extent of the input.
        output: extent of the output.
        kernel: extent of the kernel.
        stride: step between outputs, in input positions; of a transposed one, between inputs.
        dilation: step between kernel elements.
        pad: padding in front; of a transposed one, what is cut off the output's front.
        transposed: whether it is a transposed convolution.
    """

    size: int
    output: int
    kernel: int
    stride: int
    dilation: int
    pad: int
    transposed: bool

    @property
    def is_identity(self) -> bool:
        """Whether each output position sees the input at the same position alone."""
        return self.size == self.output and (self.kernel, self.stride, self.pad) == (1, 1, 0)

    def input_of(
        self, position: NDArray[np.intp], tap: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return the input position of each output position and tap, and whether it is one."""
        if not self.transposed:
            at = position * self.stride + tap * self.dilation - self.pad
            return at, (at >= 0) & (at < self.size)
        at, rest = np.divmod(position - tap * self.dilation + self.pad, self.stride)
        return at, (rest == 0) & (at >= 0) & (at < self.size)


@dataclass(frozen=True)
class Geometry:
    """The spatial axes of a block, or just its positions where it has no kernel.

    Attributes:
        output_shape: extent of the output along each spatial axis; () for a matrix.
        axes: of a convolution; () for Gemm and MatMul, whose positions are those of the input.
    """

    output_shape: tuple[int, ...]
    axes: tuple[Axis, ...]

    @staticmethod
    def of(linear: Linear, input_shape: Sequence[int]) -> Geometry:
        """Work out a block's geometry from its attributes and the full shape of its input."""
        sizes = linear.spatial_shape(input_shape)
        if not linear.is_convolution:
            return Geometry(sizes, ())
        read = _transposed_axis if linear.operator.transposed else _axis
        axes = tuple(
            read(linear.node.attrs, index, len(linear.kernel_shape), size, kernel)
            for index, (size, kernel) in enumerate(zip(sizes, linear.kernel_shape, strict=True))
        )
        return Geometry(tuple(axis.output for axis in axes), axes)

    @property
    def positions(self) -> int:
        """Number of output positions of one sample."""
        return math.prod(self.output_shape)

    def patches(self, chosen: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return the input positions that output positions see.

        Args:
            chosen: (k,) flat indices of output positions.

        Returns:
            (kernel size, k) flat indices of input positions, and whether each is inside the input;
            where it is not, the index is a valid one, to be masked.
        """
        if all(axis.is_identity for axis in self.axes):
            return chosen[np.newaxis], np.ones((1, len(chosen)), dtype=bool)
        taps = np.array(list(itertools.product(*(range(axis.kernel) for axis in self.axes))))
        flat = np.zeros((len(taps), len(chosen)), dtype=np.intp)
        inside = np.ones(flat.shape, dtype=bool)
        outputs = np.unravel_index(chosen, self.output_shape)
        for axis, output, tap in zip(self.axes, outputs, taps.T, strict=True):
            at, valid = axis.input_of(output[np.newaxis], tap[:, np.newaxis])
            flat = flat * axis.size + np.clip(at, 0, axis.size - 1)
            inside &= valid
        return flat, inside

    @cached_property
    def taps_inside(self) -> NDArray[np.bool_]:
        """(kernel size,) whether some output position sees the input through a kernel element.

        A 3 x 3 kernel on an image of one pixel is a 1 x 1 kernel.
        """
        _, inside = self.patches(np.arange(self.positions))
        return np.asarray(inside.any(axis=1))


def is_pointwise(linear: Linear) -> bool:
    """Whether each output position sees the input at the same position alone, as a 1x1 layer."""
    attrs = linear.node.attrs
    ones = (*linear.kernel_shape, *attrs.get("strides", ()))
    return all(extent == 1 for extent in ones) and not any(attrs.get("pads", ()))


def sees_whole_patches(linear: Linear) -> bool:
    """Whether no output position sees padding, and all see as much of the input."""
    if linear.operator.transposed:
        return False
    attrs = linear.node.attrs
    auto_pad = attrs.get("auto_pad", "NOTSET")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return all(extent == 1 for extent in linear.kernel_shape)
    return auto_pad == "VALID" or not any(attrs.get("pads", ()))


def _axis(attrs: dict[str, Any], index: int, rank: int, size: int, kernel: int) -> Axis:
    stride, dilation, extent = _steps(attrs, index, kernel)
    auto_pad = attrs.get("auto_pad", "NOTSET")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        output = -(-size // stride)
        total = max(0, (output - 1) * stride + extent - size)
        pad = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
    else:
        pad, behind = _pads(attrs, index, rank)
        output = (size + pad + behind - extent) // stride + 1
    return Axis(size, output, kernel, stride, dilation, pad, transposed=False)


def _transposed_axis(attrs: dict[str, Any], index: int, rank: int, size: int, kernel: int) -> Axis:
    stride, dilation, extent = _steps(attrs, index, kernel)
    more = attrs.get("output_padding", (0,) * rank)[index]
    whole = stride * (size - 1) + more + extent
    auto_pad = attrs.get("auto_pad", "NOTSET")
    if "output_shape" in attrs or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        # Files may state the output's full shape or its spatial part only.
        given = attrs.get("output_shape")
        output = given[-rank:][index] if given else min(size * stride, whole)
        total = max(0, whole - output)
        pad = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
    else:
        pad, behind = _pads(attrs, index, rank)
        output = whole - pad - behind
    return Axis(size, output, kernel, stride, dilation, pad, transposed=True)


def _steps(attrs: dict[str, Any], index: int, kernel: int) -> tuple[int, int, int]:
    """Return stride, dilation, and the extent of the dilated kernel along an axis."""
    stride = attrs["strides"][index] if "strides" in attrs else 1
    dilation = attrs["dilations"][index] if "dilations" in attrs else 1
    return stride, dilation, (kernel - 1) * dilation + 1


def _pads(attrs: dict[str, Any], index: int, rank: int) -> tuple[int, int]:
    if attrs.get("auto_pad", "NOTSET") == "VALID" or "pads" not in attrs:
        return 0, 0
    return attrs["pads"][index], attrs["pads"][rank + index]
