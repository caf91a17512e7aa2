"""Take channels out of a network: the smaller network computes what the others leave.

Where channels K of a unit stay (``fskd_onnx.passes.analysis.prunable_channels``), a linear node
that writes them keeps the rows K of its weights and bias, one that reads them the columns of K, and
nothing else changes::

    y = W x + b,  z = V f(y)      becomes      y' = W[K] x + b[K],  z' = V[:, K] f(y')

for whatever f computes channel by channel. So z' is z without the contribution of the channels that
went, and equal to it where V has zero columns for them. A flattened channel is a column per
position; of a grouped convolution rows and columns are those of each group; a depthwise one has as
many groups as channels stay. Beside the linear nodes, everything that knows channels by their
number is rewritten: constants per channel (of Add, Mul, PRelu, BatchNormalization,
InstanceNormalization ...), the sizes of a Split, the bounds of a Slice, the indices of a Gather,
the numbers in the target of a Reshape and in the sizes of a Resize.

Which channels should stay is a question of its own: by their weights (Li et al., "Pruning Filters
for Efficient ConvNets", 2017), by the scale of a BatchNormalization (Liu et al., "Learning
Efficient Convolutional Networks through Network Slimming", 2017), by what readers lose (Luo et al.,
"ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression", 2017). Coupled channels
go together as in Fang et al., "DepGraph: Towards Any Structural Pruning", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.held_channels import is_stored
from fskd_onnx.passes.analysis.labels import Indices, Labels
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.moves import normal, stated_numbers
from fskd_onnx.passes.analysis.nodes import has_input, is_standard, unused_name
from fskd_onnx.passes.analysis.operators import Axes, operator_of
from fskd_onnx.passes.analysis.prunable_channels import PrunableChannels
from fskd_onnx.passes.analysis.pruning_constraints import input_channels, input_count
from fskd_onnx.passes.analysis.shapes import KnownShapes, infer_shapes
from fskd_onnx.passes.analysis.stated_extents import (
    Number,
    find_extents,
    shape_slot,
    target_entries,
)
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.cut_constants import (
    ConstantCuts,
    Cut,
    put,
    stored_constant,
    take,
    weight_cut,
)
from fskd_onnx.passes.errors import PostconditionError, PreconditionError

T = TypeVar("T")

_SPLIT_WITH_INPUT = 13
"""The opset from which the sizes of a Split are an input."""


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Let some channels of some units stay, and take away the others.

    The function changes, unless what reads the channels that go has no use for them. Interface and
    nodes stay as they are.

    Attributes:
        kept: by the name of a unit, its channels that stay, ascending; units that are not named
            stay whole.
    """

    kept: Mapping[str, Sequence[int]]

    def requires(self, graph: gs.Graph) -> None:
        """Check that there are such units, and that these channels can be the ones that stay."""
        units = {unit.name: unit for unit in PrunableChannels(graph).units}
        for name, kept in self.kept.items():
            if name not in units:
                msg = f"no linear node '{name}' of the graph '{graph.name}' opens a channel unit"
                raise PreconditionError(msg)
            reason = units[name].why_not(kept)
            if reason:
                msg = f"the channels of '{name}' cannot be cut down as asked: {reason}"
                raise PreconditionError(msg)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per unit that lost channels."""
        channels = PrunableChannels(graph)
        cut = [u for u in channels.units if len(self.kept.get(u.name, ())) not in (0, u.width)]
        if cut:
            _Pruning(graph, channels, self.kept).carry_out()
        return [f"'{u.name}' keeps {len(self.kept[u.name])} of {u.width} channels" for u in cut]

    def ensures(self, graph: gs.Graph) -> None:
        """Check that every linear node reads as many channels as there are."""
        views = [view for view in find_linear(graph) if isinstance(view, Linear)]
        shapes = infer_shapes(graph)
        for linear in views:
            shape = shapes.get(linear.input.name)
            if shape is not None and shape[linear.channel_axis] not in (None, input_count(linear)):
                msg = f"'{linear.name}' does not read as many channels as there are"
                raise PostconditionError(msg)


class _Pruning:
    """One graph, and the channels that stay."""

    def __init__(
        self, graph: gs.Graph, channels: PrunableChannels, kept: Mapping[str, Sequence[int]]
    ) -> None:
        self._graph = graph
        self._flow = channels.flow
        self._linears = list(channels.linears.values())
        self._marks = channels.kept(kept)
        self._cuts = ConstantCuts(graph)
        self._shapes = KnownShapes(graph)
        self._extents = find_extents(graph, self._shapes)

    def carry_out(self) -> None:
        """Rewrite the graph."""
        own = {id(node) for li in self._linears for node in (li.node, li.last_node)}
        for linear in self._linears:
            self._cut_linear(linear)
        for node in self._graph.nodes:
            if id(node) not in own:
                self._cut_node(node)
        self._cuts.carry_out()
        self._correct_shapes()

    def _stays(self, labels: Labels, axis: int) -> Indices:
        """Return the elements of an axis that stay."""
        marks = self._marks[labels.channels]
        others = tuple(a for a in range(labels.rank) if a != axis)
        return np.flatnonzero(marks.any(axis=others))

    def _loses(self, labels: Labels | None) -> bool:
        return labels is not None and not bool(self._marks[labels.channels].all())

    def _cut_linear(self, linear: Linear) -> None:
        groups, n, p = linear.shape
        taps = math.prod(linear.kernel_shape)
        rows = self._marks[self._flow.of_block(linear.output.name)].reshape(groups, n)
        read = input_channels(self._flow, linear)
        columns = np.ones((groups, p // taps), bool)
        if read is not None:
            columns = self._marks[read].reshape(groups, -1)
        if rows.all() and columns.all():
            return
        self._cuts.add(linear.node, 1, weight_cut(linear, rows, columns))
        slot = linear.bias_slot
        if slot is not None and has_input(*slot) and not rows.all():
            self._cut_last_axis(*slot, np.flatnonzero(rows))
        if groups > 1:
            linear.node.attrs["group"] = int(rows.any(axis=1).sum())

    def _cut_last_axis(self, node: gs.Node, slot: int, kept: Indices) -> None:
        shape = stored_constant(node.inputs[slot]).shape
        if shape and shape[-1] > 1:
            self._cuts.add(node, slot, take({len(shape) - 1: kept}))

    def _cut_node(self, node: gs.Node) -> None:
        operator = operator_of(node)
        made = [self._flow.labels.get(tensor.name) for tensor in node.outputs]
        if not any(map(self._loses, made)) and not (
            node.inputs and self._loses(self._flow.labels.get(node.inputs[0].name))
        ):
            return
        slot = shape_slot(node)
        if operator.axes is Axes.BROADCAST or is_standard(node, "Concat"):
            self._cut_operands(node, made[0])
        elif operator.axes is Axes.MIXED:
            for index in range(1, len(node.inputs)):
                self._cuts.add(node, index, take({0: self._stays(_known(made[0]), 1)}))
        elif is_standard(node, "Split"):
            self._resize_split(node, made)
        elif is_standard(node, "Slice"):
            self._move_slice(node)
        elif is_standard(node, "Gather"):
            self._renumber_gather(node)
        if slot is not None and made[0] is not None:
            self._state_shape(node, slot, made[0])

    def _cut_operands(self, node: gs.Node, made: Labels | None) -> None:
        """Cut constants per channel beside channels."""
        if made is None:
            return
        for slot, tensor in enumerate(node.inputs):
            if tensor.name in self._flow.labels or not is_stored(tensor):
                continue
            shape = stored_constant(tensor).shape
            before = made.rank - len(shape)  # axes that broadcasting inserts
            indices = {
                axis - before: self._stays(made, axis)
                for axis in sorted(made.axes)
                if axis >= before and shape[axis - before] > 1
            }
            is_appended = is_standard(node, "Concat") and self._axis(node, made) in made.axes
            if indices and not is_appended:
                self._cuts.add(node, slot, take(indices))

    def _resize_split(self, node: gs.Node, made: Sequence[Labels | None]) -> None:
        axis = self._axis(node, _known(made[0]))
        if axis not in _known(made[0]).axes:
            return
        sizes = [len(self._stays(_known(labels), axis)) for labels in made]
        node.attrs.pop("num_outputs", None)
        self._state(node, "split", 1, sizes, _SPLIT_WITH_INPUT)

    def _move_slice(self, node: gs.Node) -> None:
        """Move the bounds along axes of channels."""
        labels = _known(self._flow.labels.get(node.inputs[0].name))
        starts, ends = (
            _known(stated_numbers(node, name, slot)) for name, slot in (("starts", 1), ("ends", 2))
        )
        axes = stated_numbers(node, "axes", 3) or range(len(starts))
        for index, axis in enumerate(normal(axes, labels.rank)):
            if axis in labels.axes:
                bounds = slice(starts[index], ends[index]).indices(labels.shape[axis])[:2]
                stays = self._stays(labels, axis)
                starts[index], ends[index] = np.searchsorted(stays, bounds).tolist()
        self._state(node, "starts", 1, starts)
        self._state(node, "ends", 2, ends)

    def _renumber_gather(self, node: gs.Node) -> None:
        labels = _known(self._flow.labels.get(node.inputs[0].name))
        made = _known(self._flow.labels.get(node.outputs[0].name))
        axis = self._axis(node, labels)
        if axis not in labels.axes:
            return
        old = node.inputs[1].values % labels.shape[axis]
        new = np.searchsorted(self._stays(labels, axis), old[self._stays(made, axis)])
        self._cuts.add(
            node, 1, Cut(("new", new.tobytes()), lambda values: new.astype(values.dtype))
        )

    def _state_shape(self, node: gs.Node, slot: int, made: Labels) -> None:
        """State the number of channels in the target of a Reshape or the sizes of a Resize."""
        entries = target_entries(self._graph, node, slot, self._extents, self._shapes)
        numbers: dict[tuple[int, int | None], tuple[gs.Node, dict[int, int]]] = {}
        for axis, entry in enumerate(entries or ()):
            if axis in made.axes and isinstance(entry, Number) and entry.value > 0:
                key = id(entry.node), entry.slot
                place = numbers.setdefault(key, (entry.node, {}))[1]
                place[entry.index] = len(self._stays(made, axis))
        for (_, place_slot), (holder, new) in numbers.items():
            if place_slot is None:
                shape = [*holder.attrs["shape"]]
                holder.attrs["shape"] = [new.get(i, value) for i, value in enumerate(shape)]
            else:
                self._cuts.add(holder, place_slot, put(new))

    def _state(
        self, node: gs.Node, name: str, slot: int, numbers: Sequence[int], since: int = 0
    ) -> None:
        """State integers in the place where a node has them: an attribute, or an input."""
        new = np.array(numbers, np.int64)
        if name in node.attrs or self._graph.opset < since:
            node.attrs[name] = [int(number) for number in numbers]
        elif has_input(node, slot):
            self._cuts.add(
                node, slot, Cut(("new", new.tobytes()), lambda values: new.astype(values.dtype))
            )
        else:
            own = gs.Constant(unused_name(self._graph, f"{node.outputs[0].name}/{name}"), new)
            if slot < len(node.inputs):
                node.inputs[slot] = own
            else:
                node.inputs.append(own)

    def _correct_shapes(self) -> None:
        """Correct the extents that the graph states."""
        products = {li.node.outputs[0].name: li.output.name for li in self._linears}
        for name, tensor in self._graph.tensors().items():
            labels = self._flow.labels.get(products.get(name, name))
            if labels is None or tensor.shape is None or len(tensor.shape) != labels.rank:
                continue
            tensor.shape = [
                len(self._stays(labels, axis))
                if axis in labels.axes and isinstance(extent, int)
                else extent
                for axis, extent in enumerate(tensor.shape)
            ]

    @staticmethod
    def _axis(node: gs.Node, labels: Labels) -> int:
        return int(node.attrs.get("axis", 0)) % labels.rank


def _known(value: T | None) -> T:
    assert value is not None  # else the channels could not go
    return value
