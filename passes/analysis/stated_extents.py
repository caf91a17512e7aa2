"""Extents as values: which elements of shape vectors are extents of tensors, and which are stored.

Exporters compute the target of a Reshape and the sizes of a Resize from shapes::

    x ──▶ Shape ──▶ Gather (0) ──▶ Unsqueeze ──┐
                                               ├──▶ Concat ──▶ target of a Reshape
                             512 (stored) ─────┘

Here element 0 of the target is the extent of axis 0 of ``x``, and element 1 is a number in the
file. Where channels go, an extent follows on its own, and a number is rewritten. Of what is
computed in any other way nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.moves import stated_numbers
from fskd_onnx.passes.analysis.nodes import has_input, is_dense, is_output, is_standard
from fskd_onnx.passes.analysis.shapes import Shape


@dataclass(frozen=True)
class Extent:
    """The value is the extent of a tensor along an axis."""

    tensor: str
    axis: int


@dataclass(frozen=True, eq=False)
class Number:
    """The value stands in the file: in what a node reads at a slot, or in an attribute.

    Attributes:
        node: the node.
        slot: its input; None for the attribute ``shape`` of old Reshapes.
        index: of the element.
        value: of the element.
    """

    node: gs.Node
    slot: int | None
    index: int
    value: int


Entry = Extent | Number | None
"""None where nothing is known."""


def find_extents(
    graph: gs.Graph, shapes: Mapping[str, Shape]
) -> dict[str, Sequence[Extent | None]]:
    """Find the elements that are extents, of all integer scalars and vectors that hold any.

    Args:
        graph: the graph, its nodes in a topological order.
        shapes: of its tensors, see ``shapes.infer_shapes``.
    """
    found: dict[str, Sequence[Extent | None]] = {}
    for node in graph.nodes:
        if is_standard(node, "Shape") or any(tensor.name in found for tensor in node.inputs):
            entries = _entries(node, found, shapes)
            if entries is not None:
                found[node.outputs[0].name] = entries
    return found


def passes_extents_on(
    node: gs.Node, slot: int, extents: Mapping[str, Sequence[Extent | None]]
) -> bool:
    """Whether all that a node does with an input is to give elements of it.

    Args:
        node: any node.
        slot: its input.
        extents: see ``find_extents``.
    """
    takes = slot == 0 or is_standard(node, "Concat")
    return takes and len(node.outputs) == 1 and node.outputs[0].name in extents


def shape_slot(node: gs.Node) -> int | None:
    """Return which input of a node states the shape of its output; None for none.

    An old Reshape has an attribute in its place.
    """
    if is_standard(node, "Reshape"):
        return 1
    # Of some axes alone, sizes say nothing of channels.
    is_sized = is_standard(node, "Resize") and has_input(node, 3) and "axes" not in node.attrs
    return 3 if is_sized else None


def target_entries(
    graph: gs.Graph,
    node: gs.Node,
    slot: int,
    extents: Mapping[str, Sequence[Extent | None]],
    shapes: Mapping[str, Shape],
) -> Sequence[Entry] | None:
    """Return what the elements of a shape that a node reads are; None if not even their number.

    Args:
        graph: the graph of the node.
        node: a Reshape or a Resize.
        slot: its input of the shape.
        extents: see ``find_extents``.
        shapes: of tensors.
    """
    if "shape" in node.attrs:
        return [Number(node, None, i, int(v)) for i, v in enumerate(node.attrs["shape"])]
    tensor = node.inputs[slot]
    if is_dense(tensor):
        return _numbers(node, slot)
    [*source] = tensor.inputs
    if not source or not is_standard(source[0], "Concat"):
        return extents.get(tensor.name)
    [concat] = source
    # What another node reads as well has to stay.
    own = len(tensor.outputs) == 1 and not is_output(graph, tensor)
    entries: list[Entry] = []
    for index, part in enumerate(concat.inputs):
        if is_dense(part):
            numbers = _numbers(concat, index)
            entries += numbers if own else [None] * len(numbers)
            continue
        known = _of(part, extents, shapes)
        if known is None:
            return None
        entries += known
    return entries


def _numbers(node: gs.Node, slot: int) -> list[Number]:
    values = node.inputs[slot].values.reshape(-1)
    return [Number(node, slot, i, int(value)) for i, value in enumerate(values)]


def _of(
    tensor: gs.Tensor,
    found: Mapping[str, Sequence[Extent | None]],
    shapes: Mapping[str, Shape],
) -> Sequence[Extent | None] | None:
    """Return the elements of a scalar or vector; None if not even their number is known."""
    if tensor.name in found:
        return found[tensor.name]
    shape = tensor.shape if isinstance(tensor, gs.Constant) else shapes.get(tensor.name)
    if shape is None or len(shape) > 1 or None in shape:
        return None
    return [None] * (int(shape[0] or 0) if shape else 1)


def _entries(
    node: gs.Node, found: Mapping[str, Sequence[Extent | None]], shapes: Mapping[str, Shape]
) -> Sequence[Extent | None] | None:
    """Return the elements of a node's output, if it takes extents or passes them on."""
    if is_standard(node, "Shape"):
        name = node.inputs[0].name
        shape = shapes.get(name)
        if shape is None:
            return None
        whole = [Extent(name, axis) for axis in range(len(shape))]
        return whole[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))]
    if is_standard(node, "Concat"):
        parts = [_of(tensor, found, shapes) for tensor in node.inputs]
        known = [part for part in parts if part is not None]
        return [entry for part in known for entry in part] if len(known) == len(parts) else None
    if not node.inputs or (entries := found.get(node.inputs[0].name)) is None:
        return None
    if is_standard(node, "Cast", "Identity", "Squeeze", "Unsqueeze"):
        return entries
    if is_standard(node, "Gather"):
        indices = node.inputs[1]
        if is_dense(indices) and len(indices.shape) < 2:
            return [entries[index] for index in indices.values.reshape(-1)]
    if is_standard(node, "Slice"):
        starts, ends = stated_numbers(node, "starts", 1), stated_numbers(node, "ends", 2)
        steps = stated_numbers(node, "steps", 4) or [1]
        if starts and ends:
            return entries[slice(starts[0], ends[0], steps[0])]
    return None
