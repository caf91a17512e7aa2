"""How channels go through a network: one walk over its nodes, for all that ask.

Every linear node that is given opens new channels, numbered through the network, and labels its
output with them (``fskd_onnx.passes.analysis.labels``). What each operator then does to the labels
of its inputs says the table (``fskd_onnx.passes.analysis.operators``)::

    Conv ─▶ 0 1 2 3 ─▶ Relu ─▶ 0 1 2 3 ─▶ Add ─▶ 0 1 2 3        4 is tied to 0, 5 to 1, ...
    Conv ─▶ 4 5 6 7 ─▶ Split ─▶ 4 5      ▲
                             └▶ 6 7      Conv ─▶ ...

Labels end at whatever is not in the table, or moves elements in a way that cannot be told. There,
and where channels are not told apart by their number alone (a constant per channel, a Softmax over
them), they are *fixed*: nobody may choose others for them.

Fewer of them are *held*: none of these can go. A channel that is fixed can go where what knows it
by its number stands in the file, such as a constant per channel, and can be rewritten.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.held_channels import is_stored, place, why_held, why_lost
from fskd_onnx.passes.analysis.labels import UNKNOWN, Indices, Labels
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.moves import MOVES, normal, stated_numbers
from fskd_onnx.passes.analysis.nodes import is_standard
from fskd_onnx.passes.analysis.operators import Axes, operator_of
from fskd_onnx.passes.analysis.segments import reads
from fskd_onnx.passes.analysis.shapes import KnownShapes, Shape


@dataclass(frozen=True)
class ChannelFlow:
    """The channels of a network's linear nodes, and where they are carried.

    Attributes:
        labels: of tensors, by name. A tensor that is not listed carries the channels of the
            network's input, or nothing that can be told.
        starts: number of the first channel of each block, and of all channels; ascending.
        blocks: index in ``starts`` by the name of the block output.
        ties: pairs of tensors' labels, of the same shape, that have to be the same channels.
        fixed: labels of which no others can be chosen.
        held: labels of which none can go, each with a clause that says why.
    """

    labels: dict[str, Labels] = field(default_factory=dict)
    starts: list[int] = field(default_factory=lambda: [0])
    blocks: dict[str, int] = field(default_factory=dict)
    ties: list[tuple[Labels, Labels]] = field(default_factory=list)
    fixed: list[Labels] = field(default_factory=list)
    held: list[tuple[Labels, str]] = field(default_factory=list)

    def of_block(self, output: str) -> Indices:
        """Return the numbers of a block's own channels."""
        block = self.blocks[output]
        return np.arange(self.starts[block], self.starts[block + 1])


def propagate(graph: gs.Graph, linears: Iterable[Linear]) -> ChannelFlow:
    """Follow channels through a canonical graph.

    Args:
        graph: the network, its nodes in a topological order.
        linears: the linear nodes whose channels to follow; all others are unknown operators.
    """
    walk = _Walk(KnownShapes(graph))
    blocks = {id(linear.node): linear for linear in linears}
    biases = {id(linear.bias_node) for linear in blocks.values()}
    for node in graph.nodes:
        if id(node) in blocks:
            walk.open_channels(blocks[id(node)])
        elif id(node) not in biases:
            walk.go_through(node)
    walk.end("an output of the network carries them", *(tensor.name for tensor in graph.outputs))
    return walk.found


def is_depthwise(linear: Linear) -> bool:
    """Whether output channel j depends on input channel j alone."""
    one_input = linear.shape[2] == math.prod(linear.kernel_shape)
    return linear.groups > 1 and linear.groups == linear.width and one_input


class _Walk:
    """What is found so far."""

    def __init__(self, shapes: KnownShapes) -> None:
        self.found = ChannelFlow()
        self._labels = self.found.labels
        self._shapes = shapes

    def fix(self, *tensors: str) -> None:
        """Fix all channels that some tensors carry."""
        self.found.fixed.extend(self._labels[name] for name in tensors if name in self._labels)

    def end(self, why: str, *tensors: str) -> None:
        """Fix and hold all channels that some tensors carry."""
        self.fix(*tensors)
        self._hold(why, *(self._labels[name] for name in tensors if name in self._labels))

    def _hold(self, why: str, *labels: Labels) -> None:
        if why:
            self.found.held.extend((part, why) for part in labels)

    def open_channels(self, linear: Linear) -> None:
        """Give a block its channels, and label its output."""
        source, start = linear.input.name, self.found.starts[-1]
        self.found.blocks[linear.output.name] = len(self.found.starts) - 1
        self.found.starts.append(start + linear.width)
        rank = self._rank(linear)
        numbers = np.arange(start, start + linear.width)
        if rank is None:
            why = f"the rank of '{linear.output.name}' cannot be told"
            self.end(why, source)
            self._hold(why, Labels.along(numbers, 1, 0))
            return
        axis = linear.channel_axis % rank
        own = Labels.along(numbers, rank, axis)
        self._labels[linear.output.name] = own
        if linear.groups > 1:
            # Channels of a group are bound to the group, but for groups of one channel.
            read = self._labels.get(source)
            if read is not None and is_depthwise(linear) and read.shape == own.shape:
                self.found.ties.append((read, own))
            else:
                self.fix(source, linear.output.name)

    def go_through(self, node: gs.Node) -> None:
        """Label the outputs of a node that has no channels of its own."""
        results = self._results(node)
        if all(labels is None for labels in results):
            if operator_of(node).axes is not Axes.SHAPE:
                self.end(why_lost(node), *(tensor.name for tensor in reads(node)))
            return
        for tensor, labels in zip(node.outputs, results, strict=False):
            if labels is not None and not tensor.is_empty():
                self._labels[tensor.name] = labels

    def _results(self, node: gs.Node) -> Sequence[Labels | None]:
        axes = operator_of(node).axes
        if axes is Axes.BROADCAST:
            return [self._broadcast(node)]
        if axes is Axes.MOVED and is_standard(node, "Concat"):
            return [self._concatenated(node)]
        first, *others = (tensor.name for tensor in node.inputs) if node.inputs else ("",)
        labels = self._labels.get(first)
        if labels is None or axes in (Axes.UNKNOWN, Axes.SHAPE):
            return []
        self.end(f"{place(node)} computes with their values", *others)
        self._hold(why_held(node, labels), labels)
        if axes is Axes.MOVED:
            return MOVES[str(node.op)](node, labels, self._shapes)
        if axes is Axes.REDUCED:
            return [_reduced(node, labels)]
        if axes is Axes.POSITIONS:
            if operator_of(node).is_global:
                ones = (1,) * (labels.rank - 2)
                self._shapes.set(node.outputs[0].name, (None, *labels.shape[1:2], *ones))
            return [labels if labels.axes == {1} else None] * len(node.outputs)
        if axes is Axes.MIXED:
            self.fix(first)
            return [labels]
        return [labels] * len(node.outputs)

    def _broadcast(self, node: gs.Node) -> Labels | None:
        """Tie what is at the same place of several inputs."""
        operands = [self._labels.get(tensor.name) for tensor in node.inputs]
        others = [
            (tensor, self._shape(tensor))
            for tensor, labels in zip(node.inputs, operands, strict=True)
            if labels is None
        ]
        ranks = [len(shape) for _, shape in others if shape is not None]
        rank = max([*ranks, *(labels.rank for labels in operands if labels is not None)], default=0)
        result: Labels | None = None
        for labels in operands:
            if labels is not None:
                aligned = labels.of_rank(rank)
                result = aligned if result is None else self._tied(node, result, aligned)
                if result is None:
                    return None
        if result is None:
            return None
        for tensor, shape in others:
            extents = {_extent(shape, axis - rank) for axis in result.axes}
            if extents - {1} and 1 in (result.shape[axis] for axis in result.axes):
                return None  # one channel may become several
            if extents - {1}:
                self.found.fixed.append(result)
                if not is_stored(tensor):
                    why = f"{place(node)} combines them with '{tensor.name}', which has others"
                    self._hold(why, result)
        return result

    def _tied(self, node: gs.Node, one: Labels, other: Labels) -> Labels | None:
        """Return the labels of two tensors that are merged; None where that cannot be told."""
        if one is other:
            return one
        if one.axes != other.axes:
            return None
        if one.shape == other.shape:
            if not np.array_equal(one.positions, other.positions):
                return None  # flattened in another order
            self.found.ties.append((one, other))
            if (one.channels >= 0).all():
                return one
            channels = np.where(one.channels >= 0, one.channels, other.channels)
            return Labels(channels, one.positions, one.axes)
        try:
            shape = np.broadcast_shapes(one.shape, other.shape)
        except ValueError:
            return None
        # A gate of one channel scales all channels of the other.
        wide, narrow = (one, other) if shape == one.shape else (other, one)
        self.found.fixed.append(narrow)
        why = f"{place(node)} combines each of them with several channels"
        self._hold(why, *([narrow] if narrow.channels.size == 1 else [narrow, wide]))
        return wide if wide.shape == shape else None

    def _concatenated(self, node: gs.Node) -> Labels | None:
        operands = [self._labels.get(tensor.name) for tensor in node.inputs]
        known = [labels for labels in operands if labels is not None]
        if not known or "axis" not in node.attrs or len({labels.rank for labels in known}) > 1:
            return None
        axis = node.attrs["axis"] % known[0].rank
        if all(axis not in labels.axes for labels in known):
            # At other positions, so the same channels.
            return self._broadcast(node)
        parts: list[Labels] = []
        for tensor, labels in zip(node.inputs, operands, strict=True):
            if labels is None:
                extent = _extent(self._shape(tensor), axis - known[0].rank)
                if extent is None:
                    return None
                labels = Labels.along(np.full(extent, UNKNOWN), known[0].rank, axis)
            parts.append(labels)
        result = parts[0].concatenated(parts[1:], axis)
        if result is not None and len(known) < len(parts):
            self.found.fixed.append(result)
        return result

    def _shape(self, tensor: gs.Tensor) -> Shape | None:
        if isinstance(tensor, gs.Constant):
            return tuple(tensor.shape)
        return self._shapes.get(tensor.name)

    def _rank(self, linear: Linear) -> int | None:
        """Return the rank of a block output."""
        if not linear.channels_last:
            return 2 + len(linear.kernel_shape)
        for name in (linear.input.name, linear.output.name):
            if name in self._shapes:
                return len(self._shapes[name])
        labels = self._labels.get(linear.input.name)
        return None if labels is None else labels.rank


def _extent(shape: Shape | None, axis: int) -> int | None:
    """Return an extent, the axis counted from the last; 1 where broadcasting inserts the axis."""
    if shape is None:
        return None
    return 1 if -axis > len(shape) else shape[axis]


def _reduced(node: gs.Node, labels: Labels) -> Labels | None:
    axes = stated_numbers(node, "axes", 1)
    if not axes:
        return None
    axes = normal(axes, labels.rank)
    if labels.axes & set(axes):
        return None
    return labels if node.attrs.get("keepdims", 1) else labels.without_axes(axes)
