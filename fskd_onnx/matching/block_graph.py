"""The linear nodes of a network and what stands between them: what pairing sees besides weights.

Nothing here depends on names, or on the order in which a file lists its nodes::

    x ─▶ Conv ─▶ BN ─▶ Relu ─▶ Conv ─┬─▶ Add ─▶       one: behind an input, ahead an activation
          (one)               (other)└─▶ Concat ─▶    other: ahead a sum and a Concat

What only moves values about or scales channels (Identity, Reshape, BatchNormalization, a Mul by a
constant) is looked through: exporters and optimizers disagree on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.matching.receptive_field import ReceptiveField, widest
from fskd_onnx.passes.analysis.linear import CONVOLUTIONS, Linear, find_linear
from fskd_onnx.passes.analysis.segments import reads
from fskd_onnx.passes.analysis.shapes import infer_shapes

T = TypeVar("T")

_LOOKED_THROUGH = {
    "BatchNormalization",
    "Cast",
    "Dropout",
    "Flatten",
    "Identity",
    "Pad",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
_SCALES = {"Add", "Div", "Mul", "Sub"}
_POOLS = {
    "AveragePool",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "LpPool",
    "MaxPool",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
}
_ACTIVATIONS = {
    *("Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "LogSoftmax"),
    *("Mish", "PRelu", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Swish", "Tanh"),
}
_KINDS = {
    **dict.fromkeys(("Add", "Sub", "Sum", "Mean"), "sum"),
    **dict.fromkeys(("Mul", "Div"), "product"),
    **dict.fromkeys(_POOLS, "pool"),
    **dict.fromkeys(_ACTIVATIONS, "activation"),
}


@dataclass(frozen=True)
class BlockSignature:
    """Where in a network a linear node stands, as far as partners have to agree on it.

    Attributes:
        convolves: whether it is a convolution.
        inputs: positions of the network's inputs that it depends on.
        outputs: positions of the network's outputs that depend on it.
        extent: of the block output without samples and channels; None where that is not known.
    """

    convolves: bool
    inputs: frozenset[int]
    outputs: frozenset[int]
    extent: tuple[int | None, ...] | None

    def agrees(self, other: BlockSignature) -> bool:
        """Whether nodes at both may be partners."""
        if self.convolves != other.convolves:
            return False
        if self.inputs != other.inputs or self.outputs != other.outputs:
            return False
        if self.extent is None or other.extent is None:
            return True
        return len(self.extent) == len(other.extent) and all(
            a == b or a is None or b is None for a, b in zip(self.extent, other.extent, strict=True)
        )


@dataclass(frozen=True)
class BlockContext:
    """A linear node and its surroundings.

    Attributes:
        linear: the node.
        behind: kinds of what its input comes from: "input", "linear", "activation", "sum", ...
        ahead: kinds of what reads its output; "output" for an output of the network.
        slots: places in Concats that its output takes before another linear node reads it.
        sees: receptive field, how many positions of the network's input it sees along each axis.
        seen: how many of its positions an output of the network, or a global pool, sees.
        site: what has to agree with a partner's.
    """

    linear: Linear
    behind: frozenset[str]
    ahead: frozenset[str]
    slots: frozenset[int]
    sees: tuple[float, ...]
    seen: tuple[float, ...]
    site: BlockSignature

    @cached_property
    def op(self) -> str:
        """Operator of the node."""
        return self.linear.op

    @cached_property
    def width(self) -> int:
        """Number of its output channels."""
        return self.linear.width

    @cached_property
    def kernel_shape(self) -> tuple[int, ...]:
        """Spatial extent of its kernel."""
        return self.linear.kernel_shape

    @cached_property
    def grouping(self) -> str:
        """How its channels are connected: "dense", "grouped" or "depthwise"."""
        if self.linear.groups == 1:
            return "dense"
        return "depthwise" if self.linear.groups == self.width else "grouped"


@dataclass(frozen=True)
class BlockGraph:
    """The linear nodes of a network.

    Attributes:
        bones: in a topological order.
        before: (n, n) whether the first's output reaches the second's input.
    """

    bones: tuple[BlockContext, ...]
    before: NDArray[np.bool_]


def find_block_graph(graph: gs.Graph) -> BlockGraph:
    """Look at a canonical graph, its nodes in a topological order."""
    views = [view for view in find_linear(graph) if isinstance(view, Linear)]
    up, down = _Upstream(graph, views), _Downstream(graph, views)
    shapes = infer_shapes(graph)
    bones = tuple(
        BlockContext(
            linear=view,
            behind=up.kinds[id(view.input)],
            ahead=down.kinds[id(view.output)],
            slots=down.slots[id(view.output)],
            sees=up.fields[id(view.output)].size,
            seen=down.fields[id(view.output)].size,
            site=BlockSignature(
                convolves=view.op in CONVOLUTIONS,
                inputs=up.ends[id(view.input)],
                outputs=down.ends[id(view.output)],
                extent=_extent(view, shapes.get(view.output.name)),
            ),
        )
        for view in views
    )
    before = np.zeros((len(views), len(views)), dtype=bool)
    for number, view in enumerate(views):
        before[list(up.linears[id(view.input)]), number] = True
    return BlockGraph(bones, before)


class _Upstream:
    """What tensors come from, by the identity of the tensor.

    Attributes:
        kinds: of the nearest nodes that count.
        ends: positions of the graph's inputs.
        linears: numbers of the linear nodes, near and far.
        fields: what they see of the graph's inputs.
    """

    def __init__(self, graph: gs.Graph, views: Sequence[Linear]) -> None:
        number_of = {id(view.bias_node or view.node): n for n, view in enumerate(views)}
        inner = {id(view.node) for view in views if view.bias_node is not None}
        self.kinds: dict[int, frozenset[str]] = {}
        self.ends: dict[int, frozenset[int]] = {}
        self.linears: dict[int, frozenset[int]] = {}
        self.fields: dict[int, ReceptiveField] = {}
        for position, tensor in enumerate(graph.inputs):
            self._set(
                tensor, frozenset({"input"}), frozenset({position}), frozenset(), ReceptiveField()
            )
        for node in graph.nodes:
            sources = [id(tensor) for tensor in reads(node) if id(tensor) in self.kinds]
            linears = _union(self.linears[source] for source in sources)
            ends = _union(self.ends[source] for source in sources)
            if id(node) in number_of:
                linears, kinds = linears | {number_of[id(node)]}, frozenset({"linear"})
            elif id(node) in inner or _is_looked_through(node):
                kinds = _union(self.kinds[source] for source in sources)
            else:
                kinds = frozenset({_kind(node)})
            field = widest(self.fields[source] for source in sources).forward(node)
            for tensor in node.outputs:
                self._set(tensor, kinds, ends, linears, field)

    def _set(
        self,
        tensor: gs.Tensor,
        kinds: frozenset[str],
        ends: frozenset[int],
        linears: frozenset[int],
        field: ReceptiveField,
    ) -> None:
        self.kinds[id(tensor)], self.ends[id(tensor)] = kinds, ends
        self.linears[id(tensor)], self.fields[id(tensor)] = linears, field


class _Downstream:
    """What tensors go to, by the identity of the tensor.

    Attributes:
        kinds: of the nearest nodes that count.
        ends: positions of the graph's outputs.
        slots: places in Concats on the way to the nearest linear nodes.
        fields: how much of them the graph's outputs see.
    """

    def __init__(self, graph: gs.Graph, views: Sequence[Linear]) -> None:
        linear = {id(view.node) for view in views}
        biases = {id(view.bias_node) for view in views}
        self.kinds: dict[int, frozenset[str]] = {}
        self.ends: dict[int, frozenset[int]] = {}
        self.slots: dict[int, frozenset[int]] = {}
        self.fields: dict[int, ReceptiveField] = {}
        for position, tensor in enumerate(graph.outputs):
            self._add(
                tensor, frozenset({"output"}), frozenset({position}), frozenset(), ReceptiveField()
            )
        for node in reversed(graph.nodes):
            results = [id(tensor) for tensor in node.outputs]
            kinds = _union(self.kinds.get(result, frozenset()) for result in results)
            ends = _union(self.ends.get(result, frozenset()) for result in results)
            slots = _union(self.slots.get(result, frozenset()) for result in results)
            if id(node) in linear:
                kinds, slots = frozenset({"linear"}), frozenset()
            elif id(node) not in biases and not _is_looked_through(node):
                kinds = frozenset({_kind(node)})
            field = widest(self.fields[r] for r in results if r in self.fields).backward(node)
            for slot, tensor in enumerate(reads(node)):
                taken = slots | {slot} if node.op == "Concat" else slots
                self._add(tensor, kinds, ends, taken, field)
            for tensor in node.outputs:
                self._add(tensor, frozenset(), frozenset(), frozenset(), ReceptiveField())

    def _add(
        self,
        tensor: gs.Tensor,
        kinds: frozenset[str],
        ends: frozenset[int],
        slots: frozenset[int],
        field: ReceptiveField,
    ) -> None:
        key = id(tensor)
        self.kinds[key] = self.kinds.get(key, frozenset()) | kinds
        self.ends[key] = self.ends.get(key, frozenset()) | ends
        self.slots[key] = self.slots.get(key, frozenset()) | slots
        self.fields[key] = widest((self.fields.get(key, ReceptiveField()), field))


def _is_looked_through(node: gs.Node) -> bool:
    if node.op in _SCALES:
        return any(isinstance(tensor, gs.Constant) for tensor in node.inputs)
    return node.op in _LOOKED_THROUGH


def _kind(node: gs.Node) -> str:
    return _KINDS.get(node.op, str(node.op))


def _extent(linear: Linear, shape: tuple[int | None, ...] | None) -> tuple[int | None, ...] | None:
    if shape is None:
        return None
    return shape[1:-1] if linear.channel_axis == -1 else shape[2:]


def _union(sets: Iterable[frozenset[T]]) -> frozenset[T]:
    return frozenset().union(*sets)
