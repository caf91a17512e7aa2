"""Where operators that move elements move the labels of their channels.

Each function gives the labels of all outputs of a node, None where they are not known. Shapes come
from ``fskd_onnx.passes.analysis.shapes``; the numbers that say where elements go (a permutation,
the sizes of a Split) have to be attributes or constants.

How to add an operator: a function of the type ``Move`` here, its name in ``MOVES``, and the line in
``fskd_onnx.passes.analysis.operators``. A Concat merges several tensors; see
``fskd_onnx.passes.analysis.propagation``. Channels in front of it can be pruned once
``fskd_onnx.passes.analysis.held_channels`` lists it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.labels import Labels
from fskd_onnx.passes.analysis.nodes import has_input
from fskd_onnx.passes.analysis.shapes import Shape

Shapes = Mapping[str, Shape]
Move = Callable[[gs.Node, Labels, Shapes], Sequence[Labels | None]]
"""Gives the labels of a node's outputs from those of its first input and the known shapes."""


def stated_numbers(node: gs.Node, name: str, slot: int) -> list[int] | None:
    """Return integers that a node states as an attribute or, in newer opsets, as an input.

    None where it states none, or they are computed.
    """
    if name in node.attrs:
        value = node.attrs[name]
        return [int(v) for v in np.asarray(value).reshape(-1)]
    if has_input(node, slot) and isinstance(node.inputs[slot], gs.Constant):
        return [int(v) for v in node.inputs[slot].values.reshape(-1)]
    return None


def normal(axes: Sequence[int], rank: int) -> list[int]:
    """Count axes from the first, not from the last."""
    return [axis % rank for axis in axes]


def _reshape(node: gs.Node, labels: Labels, shapes: Shapes) -> Sequence[Labels | None]:
    old, new = shapes.get(node.inputs[0].name), shapes.get(node.outputs[0].name)
    if old is None or new is None:
        return [None]
    target = stated_numbers(node, "shape", 1) or []
    copied = 0  # a zero stands for the extent as it was
    while target[copied : copied + 1] == [0] and not node.attrs.get("allowzero", 0):
        copied += 1
    return [labels.reshaped(old, new, copied)]


def _flatten(node: gs.Node, labels: Labels, shapes: Shapes) -> Sequence[Labels | None]:
    old = shapes.get(node.inputs[0].name)
    axis = node.attrs.get("axis", 1) % (labels.rank + 1)
    if old is None:
        return [None]
    parts = (old[:axis], old[axis:])
    new = tuple(None if None in part else math.prod(map(int, filter(None, part))) for part in parts)
    return [labels.reshaped(old, new, same=axis == 1)]


def _transpose(node: gs.Node, labels: Labels, shapes: Shapes) -> Sequence[Labels | None]:
    order = node.attrs.get("perm", list(range(labels.rank))[::-1])
    return [labels.transposed(order) if len(order) == labels.rank else None]


def _squeeze(node: gs.Node, labels: Labels, shapes: Shapes) -> Sequence[Labels | None]:
    axes = stated_numbers(node, "axes", 1)
    if axes is None:
        return _reshape(node, labels, shapes)
    return [labels.without_axes(normal(axes, labels.rank))]


def _unsqueeze(node: gs.Node, labels: Labels, shapes: Shapes) -> Sequence[Labels | None]:
    axes = stated_numbers(node, "axes", 1)
    return [None if axes is None else labels.with_axes(normal(axes, labels.rank + len(axes)))]


def _split(node: gs.Node, labels: Labels, shapes: Shapes) -> Sequence[Labels | None]:
    axis = node.attrs.get("axis", 0) % labels.rank
    count = len(node.outputs)
    if axis not in labels.axes:
        return [labels] * count
    if has_input(node, 1) and not isinstance(node.inputs[1], gs.Constant):
        return [None] * count
    extent = labels.shape[axis]
    sizes = stated_numbers(node, "split", 1) or [-(-extent // count)] * count
    ends = np.minimum(np.cumsum(sizes), extent)
    starts = [0, *ends[:-1]]
    return [labels.taken(axis, np.arange(*part)) for part in zip(starts, ends, strict=True)]


def _slice(node: gs.Node, labels: Labels, shapes: Shapes) -> Sequence[Labels | None]:
    starts, ends = (stated_numbers(node, name, slot) for name, slot in (("starts", 1), ("ends", 2)))
    computed = any(has_input(node, slot) and not _is_constant(node, slot) for slot in (3, 4))
    if starts is None or ends is None or computed:
        return [None]
    axes = stated_numbers(node, "axes", 3) or list(range(len(starts)))
    steps = stated_numbers(node, "steps", 4) or [1] * len(starts)
    for axis, *bounds in zip(normal(axes, labels.rank), starts, ends, steps, strict=True):
        labels = labels.taken(axis, np.arange(labels.shape[axis])[slice(*bounds)])
    return [labels]


def _gather(node: gs.Node, labels: Labels, shapes: Shapes) -> Sequence[Labels | None]:
    axis = node.attrs.get("axis", 0) % labels.rank
    indices = node.inputs[1]
    shape = indices.shape if isinstance(indices, gs.Constant) else shapes.get(indices.name)
    if shape is None or (axis in labels.axes and not isinstance(indices, gs.Constant)):
        return [None]
    if axis in labels.axes:
        if len(shape) > 1:
            return [None]
        taken = labels.taken(axis, np.atleast_1d(indices.values) % labels.shape[axis])
        return [taken if shape else taken.at_single(axis)]
    rest = labels.without_axes([axis])
    return [None if rest is None else rest.with_axes(range(axis, axis + len(shape)))]


def _pad(node: gs.Node, labels: Labels, shapes: Shapes) -> Sequence[Labels | None]:
    pads = stated_numbers(node, "pads", 1)
    if pads is None or (has_input(node, 3) and not _is_constant(node, 3)):
        return [None]
    axes = normal(stated_numbers(node, "axes", 3) or range(labels.rank), labels.rank)
    repeats = node.attrs.get("mode", "constant") != "constant"
    for axis, front, behind in zip(axes, pads, pads[len(axes) :], strict=False):
        if axis in labels.axes and repeats and (front or behind):
            return [None]
        labels = labels.padded(axis, front, behind)
    return [labels]


def _depth_to_space(node: gs.Node, labels: Labels, shapes: Shapes) -> Sequence[Labels | None]:
    old, size = shapes.get(node.inputs[0].name), int(node.attrs["blocksize"])
    if old is None or len(old) != 4 or None in old[1:]:
        return [None]
    n, c, h, w = old
    assert c is not None and h is not None and w is not None
    few = c // size**2
    if node.attrs.get("mode", "DCR") == "DCR":
        split, order = (n, size, size, few, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (n, few, size, size, h, w), (0, 1, 4, 2, 5, 3)
    return [_by_blocks(labels, old, split, order, (n, few, h * size, w * size))]


def _space_to_depth(node: gs.Node, labels: Labels, shapes: Shapes) -> Sequence[Labels | None]:
    old, size = shapes.get(node.inputs[0].name), int(node.attrs["blocksize"])
    if old is None or len(old) != 4 or None in old[1:]:
        return [None]
    n, c, h, w = old
    assert c is not None and h is not None and w is not None
    split = (n, c, h // size, size, w // size, size)
    new = (n, c * size**2, h // size, w // size)
    return [_by_blocks(labels, old, split, (0, 3, 5, 1, 2, 4), new)]


def _by_blocks(
    labels: Labels, old: Shape, split: Shape, order: Sequence[int], new: Shape
) -> Labels | None:
    """Reshape, transpose and reshape again, as ONNX defines DepthToSpace and its inverse."""
    parts = labels.reshaped(old, split)
    if parts is None:
        return None
    return parts.transposed(order).reshaped(tuple(split[axis] for axis in order), new)


def _is_constant(node: gs.Node, slot: int) -> bool:
    return isinstance(node.inputs[slot], gs.Constant)


MOVES: Mapping[str, Move] = {
    "DepthToSpace": _depth_to_space,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""By operator, all that are ``Axes.MOVED`` but Concat."""
