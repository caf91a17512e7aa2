"""What has to hold of the channels that stay where some go: a list of constraints.

* *ties*: channels that go together. Operands of an Add, both sides of a depthwise convolution, the
  uses of one weight; and channels that a Reshape lays out along several axes, for what is left of
  them has to be a grid::

      8 channels ──▶ Reshape ──▶ 0 1 2 3      0 goes with 4, 1 with 5, ...
                                 4 5 6 7

* *held*: channels that cannot go, with a clause that says why.
* *runs*: groups of channels of which equally many stay: those of a grouped convolution.

They come from one walk through the network (``fskd_onnx.passes.analysis.propagation``), from the
linear nodes and from the extents that the network computes with
(``fskd_onnx.passes.analysis.stated_extents``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.held_channels import place
from fskd_onnx.passes.analysis.labels import UNKNOWN, Indices, Labels
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.nodes import all_nodes, is_standard, nodes_in_bodies
from fskd_onnx.passes.analysis.operators import Axes, operator_of
from fskd_onnx.passes.analysis.propagation import ChannelFlow
from fskd_onnx.passes.analysis.shapes import KnownShapes
from fskd_onnx.passes.analysis.shared_weights import find_uses, who_else_reads
from fskd_onnx.passes.analysis.stated_extents import (
    Entry,
    Extent,
    Number,
    find_extents,
    passes_extents_on,
    shape_slot,
    target_entries,
)

_FROM_CHANNELS_TO_POSITIONS = ("DepthToSpace", "SpaceToDepth")
"""They count on axis 1 alone to have fewer elements."""

# More channels than a network has.
_MANY = 2**31


@dataclass
class Constraints:
    """See the module's docstring; channels are numbered through the network, -1 for none.

    Attributes:
        ties: pairs of equally many channels.
        held: channels that cannot go, and why.
        runs: (groups, channels of each) and the name of the node that wants them equal.
    """

    ties: list[tuple[Indices, Indices]] = field(default_factory=list)
    held: list[tuple[Indices, str]] = field(default_factory=list)
    runs: list[tuple[Indices, str]] = field(default_factory=list)

    def tie(self, one: Indices, other: Indices) -> None:
        """Let channels go together; those that meet none of the network's cannot go."""
        one, other = (part.reshape(-1) for part in np.broadcast_arrays(one, other))
        known = (one >= 0) & (other >= 0)
        pairs = np.unique(one[known] * _MANY + other[known])
        self.ties.append((pairs // _MANY, pairs % _MANY))
        alone = np.maximum(one, other)[~known]
        if len(alone):
            self.hold(alone, "they are merged with what is no channel of a linear node")

    def hold(self, channels: Indices, why: str) -> None:
        """Let channels stay."""
        self.held.append((channels.reshape(-1), why))


def input_channels(flow: ChannelFlow, linear: Linear) -> Indices | None:
    """Return the channel of each input of a linear node, -1 for none.

    Where several channels are one input, at several positions, it is the first of them; all go
    together. None where it reads no channels, or not along its channel axis.
    """
    labels = flow.labels.get(linear.input.name)
    if labels is None or _slicing_axis(labels) != linear.channel_axis % labels.rank:
        return None
    channels = _line(labels, linear.channel_axis % labels.rank)
    return channels if len(channels) == input_count(linear) else None


def input_count(linear: Linear) -> int:
    """Return the number of input channels of a linear node, over all groups."""
    groups, _, p = linear.shape
    return groups * p // math.prod(linear.kernel_shape)


def find_constraints(graph: gs.Graph, linears: Sequence[Linear], flow: ChannelFlow) -> Constraints:
    """Find all constraints of a canonical graph.

    Args:
        graph: the graph.
        linears: all of its linear nodes.
        flow: the channels of these.
    """
    found = Constraints()
    for one, other in flow.ties:
        found.tie(one.channels, other.channels)
    for labels, why in reversed(flow.held):  # what an output carries first
        found.hold(labels.channels, why)
    for labels in {id(labels): labels for labels in flow.labels.values()}.values():
        if len(labels.axes) > 1:
            _tie_slices(found, labels, _slicing_axis(labels))
    for node in graph.nodes:
        if is_standard(node, *_FROM_CHANNELS_TO_POSITIONS):
            for tensor in (node.inputs[0], node.outputs[0]):
                if tensor.name in flow.labels:
                    _tie_slices(found, flow.labels[tensor.name], 1)
    for linear in linears:
        _add_groups(found, flow, linear)
    _tie_uses(found, flow, linears)
    _hold_extents(found, graph, flow)
    return found


def _tie_slices(found: Constraints, labels: Labels, axis: int) -> None:
    """Let channels go as whole slices along one axis: so what is left of a tensor is a grid."""
    slices = np.moveaxis(labels.channels, axis, 0).reshape(labels.shape[axis], -1)
    found.tie(slices[:, :1], slices)


def _slicing_axis(labels: Labels) -> int:
    """Return the axis along which channels go: the one that tells the most of them apart."""
    return max(
        sorted(labels.axes), key=lambda axis: len(np.unique(_line(labels, axis))), default=UNKNOWN
    )


def _add_groups(found: Constraints, flow: ChannelFlow, linear: Linear) -> None:
    own = flow.of_block(linear.output.name).reshape(linear.shape[:2])
    read = input_channels(flow, linear)
    carried = flow.labels.get(linear.input.name)
    if read is None and carried is not None:
        why = f"'{linear.name}' ({linear.op}) reads them, but not one channel for each"
        found.hold(carried.channels, why)
    if linear.groups == 1:
        return
    per_group = linear.shape[2] // math.prod(linear.kernel_shape)
    if per_group > 1:
        found.runs.append((own, linear.name))
        if read is not None:
            found.runs.append((read.reshape(linear.groups, -1), linear.name))
    elif read is None:
        why = f"'{linear.name}' ({linear.op}) filters one by one what is no channel that could go"
        found.hold(own, why)
    else:
        found.tie(read[:, np.newaxis], own)


def _tie_uses(found: Constraints, flow: ChannelFlow, linears: Sequence[Linear]) -> None:
    """Let nodes of the same weights read and give the same channels."""
    uses = find_uses(linears)
    for linear in linears:
        own, read = flow.of_block(linear.output.name), flow.labels.get(linear.input.name)
        if linear.name not in uses:
            why = f"the weights of '{linear.name}' {who_else_reads(linear, linears)}"
            found.hold(own, why)
            if read is not None:
                found.hold(read.channels, why)
            continue
        first = uses[linear.name][0]
        if first is linear:
            continue
        found.tie(flow.of_block(first.output.name), own)
        sides = [read, flow.labels.get(first.input.name)]
        known = [side for side in sides if side is not None]
        if len(known) == 2 and known[0].channels.size == known[1].channels.size:
            found.tie(known[0].channels.reshape(-1), known[1].channels.reshape(-1))
        else:
            why = f"'{first.name}' reads them by the weights of '{linear.name}', which reads others"
            for side in known:
                found.hold(side.channels, why)


def _hold_extents(found: Constraints, graph: gs.Graph, flow: ChannelFlow) -> None:
    """Hold channels whose number the network computes with, but for the shapes of tensors."""
    shapes = KnownShapes(graph)
    extents = find_extents(graph, shapes)
    in_bodies = nodes_in_bodies(graph)
    for node in all_nodes(graph.nodes):
        if _counts(node, extents):
            labels = flow.labels.get(node.inputs[0].name)
            if labels is not None:
                found.hold(labels.channels, f"{place(node)} computes their number")
        slot = None if id(node) in in_bodies else shape_slot(node)
        for index, tensor in enumerate(node.inputs):
            if id(node) in in_bodies or not (
                index == slot or passes_extents_on(node, index, extents)
            ):
                _hold(found, flow, extents.get(tensor.name, ()), place(node))
        if slot is not None:
            entries = target_entries(graph, node, slot, extents, shapes)
            _hold_target(found, flow, node, entries)
    for output in graph.outputs:
        _hold(found, flow, extents.get(output.name, ()), f"the output '{output.name}'")


def _counts(node: gs.Node, extents: Mapping[str, object]) -> bool:
    """Whether a node computes numbers of elements that ``find_extents`` does not tell of."""
    is_known = is_standard(node, "Shape") and node.outputs[0].name in extents
    return operator_of(node).axes is Axes.SHAPE and not is_known


def _hold(found: Constraints, flow: ChannelFlow, entries: Iterable[Entry], reader: str) -> None:
    """Hold the channels whose number is among some elements of a shape."""
    for entry in entries:
        if isinstance(entry, Extent):
            labels = flow.labels.get(entry.tensor)
            if labels is not None and entry.axis in labels.axes:
                found.hold(labels.channels, f"{reader} computes with their number")


def _hold_target(
    found: Constraints, flow: ChannelFlow, node: gs.Node, entries: Sequence[Entry] | None
) -> None:
    """Hold channels whose number a Reshape or a Resize is told in a way that cannot follow."""
    read, made = (flow.labels.get(t.name) for t in (node.inputs[0], node.outputs[0]))
    if made is None:
        _hold(found, flow, entries or (), place(node))
        return
    why = f"{place(node)} computes with their number"
    if entries is None or len(entries) != made.rank:
        found.hold(made.channels, why)
        _hold(found, flow, entries or (), place(node))
        return
    for axis, entry in enumerate(entries):
        if axis not in made.axes:
            _hold(found, flow, [entry], place(node))
            continue
        source = read if isinstance(entry, Number) else None
        at = axis
        if isinstance(entry, Number) and entry.value != 0:
            continue
        if isinstance(entry, Extent):
            source, at = flow.labels.get(entry.tensor), entry.axis
        if source is None or not np.array_equal(_line(source, at), _line(made, axis)):
            found.hold(made.channels, why)
            _hold(found, flow, [entry], place(node))


def _line(labels: Labels, axis: int) -> Indices:
    """Return the first channel of each slice along an axis."""
    if axis >= labels.rank:
        return np.empty(0, np.intp)
    return np.moveaxis(labels.channels, axis, 0).reshape(labels.shape[axis], -1)[:, 0]
