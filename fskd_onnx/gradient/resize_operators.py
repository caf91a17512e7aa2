"""Resize and Upsample, axis by axis: each output position reads one or two input positions.

Where position ``i`` of the output lies in the input (ONNX operator specification, Resize)::

    half_pixel           (i + 1/2) / scale - 1/2
    pytorch_half_pixel   the same; 0 where the output has one position
    asymmetric           i / scale
    align_corners        i (in - 1) / (out - 1); 0 where the output has one position
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fskd_onnx.gradient.operator_table import (
    Function,
    NodeReader,
    axes_of,
    operator,
    whole_numbers,
)

Positions = NDArray[np.float32]

_HALF = np.float32(0.5)


def _half_pixel(at: Positions, scale: np.float32, _: int, __: int) -> Positions:
    return (at + _HALF) / scale - _HALF


def _pytorch_half_pixel(at: Positions, scale: np.float32, extent: int, out: int) -> Positions:
    return _half_pixel(at, scale, extent, out) if out > 1 else np.zeros_like(at)


def _asymmetric(at: Positions, scale: np.float32, _: int, __: int) -> Positions:
    return at / scale


def _align_corners(at: Positions, _: np.float32, extent: int, out: int) -> Positions:
    return at * np.float32(extent - 1) / np.float32(out - 1) if out > 1 else np.zeros_like(at)


_COORDINATES: Mapping[str, Callable[[Positions, np.float32, int, int], Positions]] = {
    "half_pixel": _half_pixel,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "asymmetric": _asymmetric,
    "align_corners": _align_corners,
}
_NEAREST: Mapping[str, Callable[[Positions], Positions]] = {
    "round_prefer_floor": lambda at: np.ceil(at - _HALF),
    "round_prefer_ceil": lambda at: np.floor(at + _HALF),
    "floor": np.floor,
    "ceil": np.ceil,
}


@operator("Resize", "Upsample")
def _resize(node: NodeReader) -> Function:
    mode = node.only("mode", node.text("mode", "nearest"), "nearest", "linear")
    old = node.op == "Upsample" or node.version < 11  # without the attributes of coordinates
    coordinates = node.text("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    node.only("coordinate_transformation_mode", coordinates, *_COORDINATES)
    nearest = node.text("nearest_mode", "floor" if old else "round_prefer_floor")
    node.only("nearest_mode", nearest, *_NEAREST)
    node.only("antialias", node.whole("antialias", 0), 0)
    node.only("exclude_outside", node.whole("exclude_outside", 0), 0)
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    node.only("keep_aspect_ratio_policy", policy, "stretch")
    for ignored in ("cubic_coeff_a", "extrapolation_value"):  # of the modes that are refused
        node.given(ignored)
    given_axes, given_scales = node.wholes("axes"), node.given("scales")
    place = _COORDINATES[coordinates]

    def along_axis(x: Tensor, axis: int, out: int, scale: float) -> Tensor:
        extent = x.shape[axis]
        # In single precision, as ONNX Runtime has it: a position may be whole by rounding.
        at = place(np.arange(out, dtype=np.float32), np.float32(scale), extent, out)

        def at_index(where: Positions) -> Tensor:
            index = np.clip(where, 0, extent - 1).astype(np.int64)
            return x.index_select(axis, torch.from_numpy(index).to(x.device))

        if mode == "nearest":
            return at_index(_NEAREST[nearest](at))
        at = np.clip(at, 0, extent - 1)
        below = np.floor(at)
        shape = [1] * axis + [out] + [1] * (x.ndim - axis - 1)
        share = torch.from_numpy(at - below).to(x.device, x.dtype).reshape(shape)
        return at_index(below) * (1 - share) + at_index(below + 1) * share

    def resize(x: Tensor, *others: Tensor | None) -> Tensor:
        scales, sizes = _wanted(others, given_scales, old)
        for number, axis in enumerate(axes_of(given_axes, x.ndim)):
            extent = x.shape[axis]
            if sizes is not None:
                out = sizes[number]
                scale = out / extent
            else:
                scale = float((scales or [])[number])
                out = math.floor(extent * scale)
            if out != extent or scale != 1:
                x = along_axis(x, axis, out, scale)
        return x

    return resize


def _wanted(
    others: Sequence[Tensor | None], given: Sequence[float] | None, old: bool
) -> tuple[Sequence[float] | None, list[int] | None]:
    """Return scales and sizes, of which one is given: as an attribute or by an input.

    Args:
        others: inputs behind the first: scales, from opset 11 on the region, scales, sizes.
        given: the attribute.
        old: whether the inputs are those before opset 11.
    """
    if given is not None:
        return given, None
    inputs = [None, *others] if old else list(others)
    scales = inputs[1] if len(inputs) > 1 else None
    sizes = whole_numbers(inputs[2]) if len(inputs) > 2 else None
    if scales is not None and scales.numel():
        return scales.reshape(-1).tolist(), None
    return None, sizes
