"""Which tensors of a network must carry the same channels: its channel spaces.

A linear node opens a space: its outputs. What works channel by channel stays in the space; an Add
of two tensors merges their spaces, so a residual stream is one; a depthwise convolution stays in
the space of its input; a Concat carries several spaces behind one another. A space is *fixed* where
somebody reads it who could not follow a new choice of channels: an output of the network, an
operator that is not known to work channel by channel, a linear node that is not refitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.linear import CONVOLUTIONS, Linear
from fskd_onnx.passes.analysis.segments import reads

# Operators whose output channel j depends on channel j of the first input alone, on any axis.
_ELEMENTWISE = {
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Mish",
    "Neg",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tanh",
}
# The same, where the channels are on axis 1.
_OVER_POSITIONS = {
    "AveragePool",
    "Flatten",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "LpPool",
    "MaxPool",
    "ReduceMean",
    "Reshape",
    "Resize",
    "Squeeze",
    "Upsample",
}
_CHANGES_RANK = {"Flatten", "ReduceMean", "Reshape", "Squeeze"}
_MERGES = {"Add", "Div", "Max", "Mean", "Min", "Mul", "Sub", "Sum"}

Layout = tuple[int, ...]


@dataclass
class CoupledChannels:
    """The channel spaces of a network.

    Attributes:
        layouts: the spaces that a tensor carries, in order, by the tensor's name. A tensor that is
            not listed carries the channels of the network's input, or nothing that can be told.
        last: names of the tensors whose channels are on the last axis (MatMul), not on axis 1.
    """

    layouts: dict[str, Layout] = field(default_factory=dict)
    last: set[str] = field(default_factory=set)
    _parents: list[int] = field(default_factory=list)
    _fixed: set[int] = field(default_factory=set)

    def layout(self, tensor: str) -> Layout | None:
        """Return the spaces of a tensor, as they are after all merges."""
        spaces = self.layouts.get(tensor)
        return None if spaces is None else tuple(map(self.root, spaces))

    def free(self, space: int) -> bool:
        """Whether all readers of a space could follow a new choice of its channels."""
        return self.root(space) not in {self.root(fixed) for fixed in self._fixed}

    def open(self) -> int:
        """Make a new space."""
        self._parents.append(len(self._parents))
        return len(self._parents) - 1

    def root(self, space: int) -> int:
        """Return the space that stands for all that were merged with a space."""
        while self._parents[space] != space:
            space = self._parents[space]
        return space

    def merge(self, spaces: Layout, others: Layout) -> None:
        """Make the spaces of two layouts the same, one by one."""
        for one, other in zip(spaces, others, strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            self._parents[high] = low

    def fix(self, tensor: str) -> None:
        """Fix all spaces that a tensor carries."""
        self._fixed.update(self.layouts.get(tensor, ()))


def find_coupled_channels(graph: gs.Graph, refitted: Mapping[str, Linear]) -> CoupledChannels:
    """Find the channel spaces of a canonical graph.

    Args:
        graph: the network.
        refitted: the linear nodes that can follow a new choice of channels, by their name.
    """
    spaces = CoupledChannels()
    blocks = {id(linear.node): linear for linear in refitted.values()}
    biases = {id(linear.bias_node) for linear in refitted.values()}
    for node in graph.nodes:
        if id(node) in blocks:
            _read_block(spaces, blocks[id(node)])
        elif id(node) not in biases:
            _read_node(spaces, node)
    for output in graph.outputs:
        spaces.fix(output.name)
    return spaces


def _read_block(spaces: CoupledChannels, linear: Linear) -> None:
    source = linear.input.name
    if linear.op == "MatMul":
        spaces.last.add(linear.output.name)
    if linear.groups > 1:
        layout = spaces.layouts.get(source)
        if is_follower(linear) and layout is not None:
            spaces.layouts[linear.output.name] = layout
            return
        # Channels of a group are tied to the group; a choice would have to respect that.
        spaces.fix(source)
        spaces.layouts[linear.output.name] = (spaces.open(),)
        spaces.fix(linear.output.name)
        return
    spaces.layouts[linear.output.name] = (spaces.open(),)


def is_follower(linear: Linear) -> bool:
    """Whether a block is depthwise: output channel j sees input channel j alone."""
    return linear.op == "Conv" and linear.groups > 1 and linear.groups == linear.width


def _read_node(spaces: CoupledChannels, node: gs.Node) -> None:
    inputs = [tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant)]
    layouts = [spaces.layouts.get(tensor.name) for tensor in inputs]
    on_last = {tensor.name in spaces.last for tensor in inputs}
    result: Layout | None = None
    if node.op in _ELEMENTWISE or (
        node.op in _OVER_POSITIONS and on_last == {False} and _keeps_channels(node)
    ):
        result = layouts[0] if layouts else None
    elif node.op in _MERGES and len(on_last) == 1 and all(map(_is_scalar, node.inputs)):
        known = [layout for layout in layouts if layout is not None]
        if len(known) == len(inputs) and len({len(layout) for layout in known}) == 1:
            for layout in known[1:]:
                spaces.merge(known[0], layout)
            result = known[0]
    elif (
        node.op == "Concat"
        and on_last == {node.attrs.get("axis") == -1}
        and node.attrs.get("axis") in (1, -1)
        and len(inputs) == len(node.inputs)
        and None not in layouts
    ):
        result = tuple(space for layout in layouts if layout is not None for space in layout)
    if result is None:
        for tensor in reads(node):
            spaces.fix(tensor.name)
    else:
        names = [tensor.name for tensor in node.outputs]
        spaces.layouts |= dict.fromkeys(names, result)
        spaces.last.update(names if True in on_last else ())


def _keeps_channels(node: gs.Node) -> bool:
    """Whether a node leaves batch and channels apart, as far as its axes say."""
    if node.op == "Flatten":
        return bool(node.attrs.get("axis", 1) == 1)
    if node.op not in ("ReduceMean", "Squeeze"):
        return True
    # The axes were an attribute before opset 13 or 18, and are an input since.
    axes = node.attrs.get("axes")
    if len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
        axes = node.inputs[1].values.reshape(-1).tolist()
    rank = _rank(node.inputs[0])
    return bool(axes) and all(axis + rank * (axis < 0) > 1 for axis in axes)


def _rank(tensor: gs.Tensor) -> int:
    """Return the rank of what a convolution made; 0 where that is not to be seen."""
    for node in tensor.inputs:
        if node.op in CONVOLUTIONS:
            return len(node.inputs[1].shape or ())
        if node.op in (_ELEMENTWISE | _MERGES | _OVER_POSITIONS) - _CHANGES_RANK:
            return next(filter(None, map(_rank, node.inputs)), 0)
    return 0


def _is_scalar(tensor: gs.Tensor) -> bool:
    """Whether a tensor is no constant that differs from channel to channel."""
    return not isinstance(tensor, gs.Constant) or all(extent == 1 for extent in tensor.shape)
