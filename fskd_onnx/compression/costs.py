"""Multiply-adds and parameters of every node of a graph, for one sample.

A multiply-add is one product that is added up: of a convolution, one for each output element and
each element of the kernel that it sees, padding included::

    Conv, DeformConv          output elements * p                  p: channels of a group * taps
    ConvTranspose             input elements * n                   n: outputs of a group * taps
    Gemm, MatMul              output elements * inner extent
    RNN, GRU, LSTM            input vectors * (elements of W + elements of R)

Additions of biases, activations and poolings count nothing, as usual. Parameters are the
floating-point numbers of the initializers that a node reads; one that several nodes read counts
once in the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import onnx_graphsurgeon as gs

from fskd_onnx.errors import ModelError
from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.linear import Linear, Refusal, find_linear
from fskd_onnx.passes.analysis.nodes import is_standard
from fskd_onnx.passes.analysis.shapes import Shape, infer_shapes
from fskd_onnx.printable import shortened
from fskd_onnx.serialization.interface import InputSpec, fixed_batch_size

Extents = tuple[int, ...]

_OPEN = "its extents depend on the data"


@dataclass(frozen=True)
class NodeCost:
    """What a node costs.

    Attributes:
        macs: multiply-adds for one sample.
        parameters: numbers that it reads.
    """

    macs: int
    parameters: int

    def __add__(self, other: NodeCost) -> NodeCost:
        """Return what both cost."""
        return NodeCost(self.macs + other.macs, self.parameters + other.parameters)


@dataclass(frozen=True)
class WidthCost:
    """What a linear node costs, by the numbers of its channels.

    Attributes:
        inputs: number of input channels.
        outputs: number of output channels.
        groups: number of groups.
        taps: number of positions that the kernel sees; 1 for Gemm and MatMul.
        positions: how many times the kernel is applied for one sample: output positions, of a
            transposed convolution input positions. What all samples share counts as the share of
            one, rounded up; 0 where it depends on the data.
        has_bias: whether there is a bias.
    """

    inputs: int
    outputs: int
    groups: int
    taps: int
    positions: int
    has_bias: bool

    def cost(self, inputs: int | None = None, outputs: int | None = None) -> NodeCost:
        """Return what the node costs with other numbers of channels.

        The channels of a group stay as many where there is one of them (depthwise), and the groups
        where there are more.

        Args:
            inputs: number of input channels; None for what it is.
            outputs: number of output channels, likewise.
        """
        read, made = inputs or self.inputs, outputs or self.outputs
        per_group = 1 if self.inputs == self.groups else read // self.groups
        weights = per_group * self.taps * made
        return NodeCost(self.positions * weights, weights + (made if self.has_bias else 0))


@dataclass(frozen=True)
class NetworkCosts:
    """What the nodes of a network cost, and the network.

    Attributes:
        linears: of each linear node that can be viewed, by its name.
        others: of each other node that costs anything, by the name of its first output.
        by_width: what each linear node that can be viewed costs by the numbers of its channels, by
            its name.
        not_counted: nodes whose multiply-adds are not in the sum, with the reason, by name.
        total: of the network.
    """

    linears: Mapping[str, NodeCost]
    others: Mapping[str, NodeCost]
    by_width: Mapping[str, WidthCost]
    not_counted: Mapping[str, str]
    total: NodeCost

    @property
    def why_incomplete(self) -> str:
        """Name a node that is not in the sum, with the reason, and how many more; "" for none."""
        if not self.not_counted:
            return ""
        (name, reason), *rest = self.not_counted.items()
        more = f" and of {len(rest)} more" if rest else ""
        return f"multiply-adds are not known of '{shortened(name)}' ({reason}){more}"


def run_shapes(
    specs: Sequence[InputSpec], samples: Mapping[str, Sequence[int]] | None = None
) -> tuple[dict[str, Extents], int]:
    """Return the shapes of the inputs in a run of as few samples as a network takes.

    Args:
        specs: the inputs.
        samples: shape of one sample for each input, by name, where the network leaves extents open.

    Returns:
        The shapes by name, and the number of samples.

    Raises:
        ModelError: an extent is open.
    """
    count = fixed_batch_size(specs) or 1
    found = {}
    for spec in specs:
        sample = (samples or {}).get(spec.name, spec.sample_shape)
        known = tuple(size for size in sample if size is not None)
        if len(known) < len(sample):
            raise ModelError(
                f"the network's input {spec} leaves extents open, so what it costs is not known; "
                "give samples"
            )
        found[spec.name] = spec.with_samples(known, count)
    return found, count


def count_costs(
    graph: gs.Graph, inputs: Mapping[str, Sequence[int]] | None = None, samples: int = 1
) -> NetworkCosts:
    """Return what each node of a graph and the graph cost for one sample.

    Args:
        graph: any graph.
        inputs: shapes of its inputs in a run, see `run_shapes`; None for those that it states.
        samples: how many samples such a run has.
    """
    extents = _Extents(infer_shapes(graph, inputs))
    linears: dict[str, NodeCost] = {}
    others: dict[str, NodeCost] = {}
    by_width: dict[str, WidthCost] = {}
    not_counted: dict[str, str] = {}
    viewed = find_linear(graph)
    refused = {id(view.node): view.name for view in viewed if isinstance(view, Refusal)}
    parts: set[int] = set()
    for view in viewed:
        if isinstance(view, Refusal):
            continue
        nodes = [view.node] if view.bias_node is None else [view.node, view.bias_node]
        parts.update(map(id, nodes))
        positions = 0
        try:
            positions = -(-_positions(view, extents) // samples)
        except _OpenError:
            not_counted[view.name] = _OPEN
        by_width[view.name] = _width_cost(view, positions)
        linears[view.name] = NodeCost(by_width[view.name].cost().macs, _parameters(nodes))
    for node in graph.nodes:
        if id(node) in parts or any(map(constants.cast_of, node.outputs)):
            continue
        key = next((tensor.name for tensor in node.outputs if tensor.name), "")
        macs = 0
        try:
            if is_standard(node, *_FORMULAS):
                macs = -(-_FORMULAS[node.op](node, extents) // samples)
            elif id(node) in refused:
                not_counted[refused[id(node)]] = f"those of '{node.op}' are not counted"
        except _OpenError:
            not_counted[refused.get(id(node), key)] = _OPEN
        if (cost := NodeCost(macs, _parameters([node]))) != NodeCost(0, 0):
            others[key] = cost
    total = sum(cost.macs for cost in (*linears.values(), *others.values()))
    return NetworkCosts(
        linears, others, by_width, not_counted, NodeCost(total, _parameters(graph.nodes))
    )


def _width_cost(view: Linear, positions: int) -> WidthCost:
    """Return what a linear node costs by the numbers of its channels."""
    taps = math.prod(view.kernel_shape)
    groups, n, p = view.shape
    has_bias = view.bias_constant is not None
    return WidthCost(groups * p // taps, groups * n, groups, taps, positions, has_bias)


def _positions(view: Linear, extents: _Extents) -> int:
    """Return how many times a linear node applies its kernel in a run."""
    groups, n, p = view.shape
    if view.operator.transposed:
        return extents.elements(view.input) * math.prod(view.kernel_shape) // (groups * p)
    return extents.elements(view.node.outputs[0]) // (groups * n)


def _parameters(nodes: Sequence[gs.Node]) -> int:
    """Return how many numbers nodes read, each once."""
    found = {
        id(constant): math.prod(constant.shape)
        for node in nodes
        for tensor in node.inputs
        if (constant := constants.parameter(tensor)) is not None
    }
    return sum(found.values())


class _OpenError(Exception):
    """An extent depends on the data."""


@dataclass(frozen=True)
class _Extents:
    """Extents of tensors, by the tensor.

    Attributes:
        shapes: those that are inferred.
    """

    shapes: Mapping[str, Shape]

    def __call__(self, tensor: gs.Tensor) -> Extents:
        """Return the shape of a tensor."""
        shape = tensor.shape if isinstance(tensor, gs.Constant) else self.shapes.get(tensor.name)
        if shape is None or None in shape:
            raise _OpenError
        return tuple(int(extent) for extent in shape if extent is not None)

    def elements(self, tensor: gs.Tensor) -> int:
        """Return the number of elements of a tensor."""
        return math.prod(self(tensor))


def _convolution(node: gs.Node, extents: _Extents, weight: int = 1) -> int:
    return extents.elements(node.outputs[0]) * math.prod(extents(node.inputs[weight])[1:])


def _transposed(node: gs.Node, extents: _Extents) -> int:
    return extents.elements(node.inputs[0]) * math.prod(extents(node.inputs[1])[1:])


def _product(node: gs.Node, extents: _Extents) -> int:
    inner = extents(node.inputs[0])[0 if node.attrs.get("transA", 0) else -1]
    return extents.elements(node.outputs[0]) * inner


def _recurrent(node: gs.Node, extents: _Extents) -> int:
    *leading, _ = extents(node.inputs[0])  # time and samples, in either order
    return math.prod(leading) * sum(extents.elements(weight) for weight in node.inputs[1:3])


_FORMULAS: Mapping[str, Callable[[gs.Node, _Extents], int]] = MappingProxyType(
    {
        "Conv": _convolution,
        "ConvInteger": _convolution,
        "DeformConv": _convolution,
        "QLinearConv": partial(_convolution, weight=3),
        "ConvTranspose": _transposed,
        **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"), _product),
        **dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent),
        "Gather": lambda node, extents: 0,  # an embedding holds weights, and multiplies nothing
    }
)
"""Multiply-adds of a run of a node, by operator; others have none."""
