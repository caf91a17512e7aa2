"""Operators that move elements, and arithmetic on shapes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fskd_onnx.gradient.operator_table import (
    Function,
    NodeReader,
    UnsupportedError,
    along,
    axes_of,
    constant,
    operator,
    whole_numbers,
)


@operator("Constant")
def _constant(node: NodeReader) -> Function:
    values = {
        name: node.given(name)
        for name in ("value", "value_float", "value_floats", "value_int", "value_ints")
    }
    found = next((value for value in values.values() if value is not None), None)
    if found is None:
        raise UnsupportedError("it holds no tensor of numbers")
    floats = values["value_float"] is not None or values["value_floats"] is not None
    kind = torch.float32 if floats else torch.int64
    stored = (
        constant(found) if isinstance(found, onnx.TensorProto) else torch.tensor(found, dtype=kind)
    )
    return lambda: stored


@operator("ConstantOfShape")
def _constant_of_shape(node: NodeReader) -> Function:
    value = node.given("value")
    fill = torch.zeros(1) if value is None else constant(value)

    def full(shape: Tensor) -> Tensor:
        return fill.to(shape.device).expand(whole_numbers(shape) or [])

    return full


@operator("Shape")
def _shape(node: NodeReader) -> Function:
    start, end = node.whole("start", 0), node.given("end")
    return lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64, device=x.device)


@operator("Size")
def _size(node: NodeReader) -> Function:
    return lambda x: torch.tensor(x.numel(), device=x.device)


@operator("Range")
def _range(node: NodeReader) -> Function:
    def count(start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
        ends = (value.item() for value in (start, limit, step))
        return torch.arange(*ends, dtype=start.dtype, device=start.device)

    return count


@operator("Reshape")
def _reshape(node: NodeReader) -> Function:
    zeros, stated = bool(node.whole("allowzero", 0)), node.wholes("shape")  # before opset 5

    def reshape(x: Tensor, given: Tensor | None = None) -> Tensor:
        shape = (whole_numbers(given) if stated is None else stated) or []
        if not zeros:
            shape = [x.shape[at] if size == 0 else size for at, size in enumerate(shape)]
        return x.reshape(shape)

    return reshape


@operator("Flatten")
def _flatten(node: NodeReader) -> Function:
    axis = node.whole("axis", 1)

    def flatten(x: Tensor) -> Tensor:
        at = along(axis, x.ndim)
        return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))

    return flatten


@operator("Transpose")
def _transpose(node: NodeReader) -> Function:
    order = node.wholes("perm")
    return lambda x: x.permute(order or list(range(x.ndim))[::-1])


@operator("Squeeze")
def _squeeze(node: NodeReader) -> Function:
    stated = node.wholes("axes")

    def squeeze(x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = stated if given is None else whole_numbers(given)
        return x.squeeze() if axes is None else x.squeeze(tuple(axes))

    return squeeze


@operator("Unsqueeze")
def _unsqueeze(node: NodeReader) -> Function:
    stated = node.wholes("axes")

    def unsqueeze(x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = (stated if given is None else whole_numbers(given)) or []
        for axis in sorted(along(axis, x.ndim + len(axes)) for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return unsqueeze


@operator("Concat")
def _concat(node: NodeReader) -> Function:
    axis = node.whole("axis", 1)
    return lambda *inputs: torch.cat(inputs, axis)


@operator("Split")
def _split(node: NodeReader) -> Function:
    axis, stated = node.whole("axis", 0), node.wholes("split")
    parts = node.whole("num_outputs", node.all_outputs)

    def split(x: Tensor, given: Tensor | None = None) -> Any:
        sizes = stated if given is None else whole_numbers(given)
        each = math.ceil(x.shape[axis] / parts)
        return torch.split(x, each if sizes is None else sizes, axis)

    return split


@operator("Slice")
def _slice(node: NodeReader) -> Function:
    old = [node.wholes(name) for name in ("starts", "ends", "axes")]  # before opset 10

    def cut(x: Tensor, *inputs: Tensor | None) -> Tensor:
        found = [whole_numbers(tensor) for tensor in inputs] if inputs else list(old)
        starts, ends, axes, steps = (*found, None, None)[:4]
        for number, (start, end) in enumerate(zip(starts or [], ends or [], strict=True)):
            axis = along(number if axes is None else axes[number], x.ndim)
            step = 1 if steps is None else steps[number]
            kept = range(x.shape[axis])[_bounds(start, end, step, x.shape[axis])]
            if step > 0:
                x = x[(slice(None),) * axis + (slice(kept.start, kept.stop, step),)]
            else:
                x = x.index_select(axis, torch.tensor(list(kept), dtype=torch.int64).to(x.device))
        return x

    return cut


def _bounds(start: int, end: int, step: int, extent: int) -> slice:
    """Return a slice as Python has it: there -1 counts from the end, here it may be in front."""
    begin = along(start, extent)
    stop = along(end, extent)
    if step > 0:
        return slice(max(begin, 0), max(stop, 0), step)
    return slice(min(begin, extent - 1), None if stop < 0 else stop, step)


@operator("Gather")
def _gather(node: NodeReader) -> Function:
    axis = node.whole("axis", 0)

    def gather(x: Tensor, indices: Tensor) -> Tensor:
        at = along(axis, x.ndim)
        flat = indices.reshape(-1).long()
        taken = x.index_select(at, torch.where(flat < 0, flat + x.shape[at], flat))
        return taken.reshape((*x.shape[:at], *indices.shape, *x.shape[at + 1 :]))

    return gather


@operator("GatherElements")
def _gather_elements(node: NodeReader) -> Function:
    axis = node.whole("axis", 0)

    def gather(x: Tensor, indices: Tensor) -> Tensor:
        found = indices.long()
        return torch.gather(x, axis, torch.where(found < 0, found + x.shape[axis], found))

    return gather


@operator("Expand")
def _expand(node: NodeReader) -> Function:
    def expand(x: Tensor, shape: Tensor) -> Tensor:
        return x.expand(np.broadcast_shapes(x.shape, tuple(whole_numbers(shape) or [])))

    return expand


@operator("Tile")
def _tile(node: NodeReader) -> Function:
    return lambda x, repeats: x.repeat(whole_numbers(repeats))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


@operator("Pad")
def _pad(node: NodeReader) -> Function:
    mode = node.only("mode", node.text("mode", "constant"), *_PAD_MODES)
    stated, value = node.wholes("pads"), node.number("value", 0.0)  # before opset 11

    def pad(
        x: Tensor,
        given: Tensor | None = None,
        fill: Tensor | None = None,
        axes: Tensor | None = None,
    ) -> Tensor:
        pads = (stated if given is None else whole_numbers(given)) or []
        half = len(pads) // 2
        ends = dict.fromkeys(range(x.ndim), (0, 0))
        for number, axis in enumerate(axes_of(whole_numbers(axes), x.ndim)):
            ends[axis] = pads[number], pads[half + number]
        flat = [end for axis in reversed(range(x.ndim)) for end in ends[axis]]
        while flat and mode != "constant" and not any(flat[-2:]):
            flat = flat[:-2]  # PyTorch repeats along the last axes only
        if mode == "constant":
            return F.pad(x, flat, value=value if fill is None else float(fill))
        return F.pad(x, flat, mode=_PAD_MODES[mode])

    return pad
