"""One view of every linear node: Conv, ConvTranspose, Gemm, and MatMul with the Add of its bias.

The view is a stack of matrices, one per group, that map input patches to outputs::

    output[g] = matrix[g] @ patches[g] + bias[g]          matrix: (groups, n, p)

Everything that solves, fuses or counts speaks of this view only. How each operator stores its
weights stands in ``linear_operators.py``; ``write_weights.py`` among the passes writes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.linear_operators import (
    CONVOLUTIONS,
    LINEAR_OPERATORS,
    LinearOperator,
    is_linear_op,
)
from fskd_onnx.passes.analysis.nodes import (
    has_input,
    input_dependent,
    is_standard,
    is_vector,
    node_name,
    nodes_in_bodies,
    sole_reader,
)
from fskd_onnx.passes.analysis.refusals import Refusal, why_left_alone, why_not_linear

T = TypeVar("T")

__all__ = ["CONVOLUTIONS", "Linear", "Refusal", "find_linear"]


@dataclass(frozen=True)
class Linear:
    """A linear node of a graph, see the module's docstring.

    Attributes:
        node: the node of one of the ``LINEAR_OPERATORS``.
        bias_node: the Add that holds its bias, if there is one (MatMul).
        own_name: whether the node's name tells it from all others that are listed, see
            ``find_linear``.
    """

    node: gs.Node
    bias_node: gs.Node | None = None
    own_name: bool = True

    @property
    def name(self) -> str:
        """Name of the node, or of the block output where that is no name of its own.

        No other node that ``find_linear`` lists has it.
        """
        return str((self.own_name and self.node.name) or self.output.name)

    @property
    def op(self) -> str:
        """Name of the node's operator."""
        return str(self.node.op)

    @property
    def operator(self) -> LinearOperator:
        """How nodes of the operator store and apply their weights."""
        return LINEAR_OPERATORS[self.op]

    @property
    def input(self) -> gs.Tensor:
        """The tensor that the patches are cut from."""
        return self.node.inputs[0]

    @property
    def output(self) -> gs.Tensor:
        """The block output: what comes out once the bias is added."""
        return self.last_node.outputs[0]

    @property
    def last_node(self) -> gs.Node:
        """The node that computes the block output: the Add of the bias, if there is one."""
        return self.bias_node or self.node

    @property
    def tensors(self) -> list[gs.Tensor]:
        """What it computes: the block output, and the product in front of it if they differ."""
        return [*self.node.outputs, *(self.bias_node.outputs if self.bias_node else [])]

    @property
    def is_convolution(self) -> bool:
        """Whether it moves a kernel over positions."""
        return self.operator.convolves

    @property
    def channels_last(self) -> bool:
        """Whether channels are on the last axis of input and output, not on axis 1."""
        return self.operator.channels_last

    @property
    def channel_axis(self) -> int:
        """Axis of input and output that counts channels."""
        return -1 if self.channels_last else 1

    @property
    def columns_last(self) -> bool:
        """Whether a column of its input and output lies on the last axis, not on axis 1.

        Both are the same axis of a Gemm's matrices, but not once the rows of a sample have an axis
        of their own, between samples and channels.
        """
        return not self.is_convolution

    def spatial_shape(self, shape: Sequence[T]) -> tuple[T, ...]:
        """Return the extents of the positions in the shape of an input or output, () for none."""
        return tuple(shape[1:-1] if self.columns_last else shape[2:])

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Spatial extent of the kernel; empty for Gemm and MatMul."""
        return tuple(self.weight.shape[2:])

    @property
    def weight(self) -> gs.Constant:
        """The constant that stores the weights, be it behind a Cast."""
        return constants.parameter(self.node.inputs[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type that the node computes in."""
        kind = constants.computed_type(self.node.inputs[1])
        return onnx.helper.tensor_dtype_to_np_dtype(kind)

    @property
    def bias_slot(self) -> tuple[gs.Node, int] | None:
        """The node that reads the bias, and at which of its inputs; None without an Add for it."""
        if self.bias_node is not None:
            return self.bias_node, 1 if self.bias_node.inputs[0] is self.node.outputs[0] else 0
        index = self.operator.bias_input
        return None if index is None else (self.node, index)

    @property
    def bias_constant(self) -> gs.Constant | None:
        """The constant that stores the bias, or None while the node has no bias."""
        if self.bias_slot is None or not has_input(*self.bias_slot):
            return None
        node, index = self.bias_slot
        return constants.parameter(node.inputs[index])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the matrix, (groups, n, p)."""
        return self.operator.shape(self.node, self.weight.shape)

    @property
    def groups(self) -> int:
        """Number of groups; 1 for all but grouped convolutions."""
        return self.operator.groups(self.node)

    @property
    def width(self) -> int:
        """Number of output channels over all groups."""
        groups, n, _ = self.shape
        return groups * n

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The weights as (groups, n, p), scaled by the operator's factor (Gemm: ``alpha``)."""
        return np.asarray(self.native, np.float64)

    @property
    def native(self) -> NDArray[np.floating]:
        """The matrix in the type that stores it, to be read and not written.

        Scaled, it comes in float64.
        """
        matrix = self.operator.matrix(self.node, constants.native(self.weight))
        factor = float(self.node.attrs.get(self.operator.weight_factor, 1.0))
        return matrix if factor == 1 else factor * matrix.astype(np.float64)

    @property
    def bias(self) -> NDArray[np.float64]:
        """The bias as (groups * n,), zeros where there is none, scaled by Gemm's ``beta``."""
        if self.bias_constant is None:
            return np.zeros(self.width)
        values = constants.read(self.bias_constant)
        factor = float(self.node.attrs.get(self.operator.bias_factor, 1.0))
        return factor * np.broadcast_to(values.reshape(-1), (self.width,))

    @property
    def affine(self) -> AffineMap:
        """What the node computes of its input patches: ``matrix`` and ``bias``."""
        return AffineMap(self.matrix, self.bias.reshape(self.shape[:2]))

    def stored(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a matrix of the shape ``shape`` in the order and shape of the stored weight."""
        return self.operator.stored(self.node, matrix, self.kernel_shape)

    @property
    def shared_with(self) -> str | None:
        """Another node that reads the same weights, which a rewrite would change as well."""
        readers = (node for node in constants.readers(self.weight) if node is not self.node)
        return next(map(node_name, readers), None)

    def sole_reader(self, graph: gs.Graph, in_bodies: Collection[int]) -> gs.Node | None:
        """Return the node that alone reads the block output, see ``nodes.sole_reader``."""
        return sole_reader(graph, self.output, in_bodies)

    def renewed(self, graph: gs.Graph, in_bodies: Collection[int]) -> Linear:
        """Return the view of the same node after a rewrite of what stands behind it.

        Args:
            graph: the graph of the node.
            in_bodies: see ``nodes.nodes_in_bodies``.
        """
        return replace(self, bias_node=_bias_add(graph, self.node, in_bodies))


def find_linear(graph: gs.Graph) -> list[Linear | Refusal]:
    """View every node of a graph that has weights, in the order of its nodes.

    A product of two activations (attention) has none and is not listed.

    The names of the views are keys: no two are the same. Names of nodes are optional in ONNX and
    may repeat, those of tensors may not; so a view goes by the name of its node where no other
    listed node has that name, or an output of that name, and else by that of its block output.
    """
    facts = _GraphFacts(graph)
    reasons = [(node, _reason(node, facts)) for node in graph.nodes]
    listed = [(node, reason) for node, reason in reasons if reason is not None]
    views = [
        Refusal(node, reason) if reason else Linear(node, _bias_add(graph, node, facts.in_bodies))
        for node, reason in listed
    ]
    names = Counter(node.name for node, _ in listed)
    for view in views:
        names.update({tensor.name for tensor in view.tensors} - {view.node.name})
    return [replace(view, own_name=names[view.node.name] == 1) for view in views]


@dataclass(frozen=True)
class _GraphFacts:
    """What the view of a node needs to know of the whole graph, each found when first asked."""

    graph: gs.Graph

    @cached_property
    def outputs(self) -> set[int]:
        """Outputs of the graph, by identity."""
        return {id(tensor) for tensor in self.graph.outputs}

    @cached_property
    def in_bodies(self) -> set[int]:
        """See ``nodes.nodes_in_bodies``."""
        return nodes_in_bodies(self.graph)

    @cached_property
    def input_dependent(self) -> set[int]:
        """See ``nodes.input_dependent``."""
        return input_dependent(self.graph)


def _reason(node: gs.Node, facts: _GraphFacts) -> str | None:
    """Return why a node is left alone: "" where it is not, None where it has no weights."""
    if not is_linear_op(node):
        return why_left_alone(node, facts.graph.functions) or None
    if LINEAR_OPERATORS[node.op].multiplies_activations and all(
        id(tensor) in facts.input_dependent for tensor in node.inputs
    ):
        return None
    return why_not_linear(node, facts.outputs)


def _bias_add(graph: gs.Graph, node: gs.Node, in_bodies: Collection[int]) -> gs.Node | None:
    """Return the Add of a constant vector that alone reads the product of a linear node."""
    operator = LINEAR_OPERATORS[node.op]
    if operator.bias_input is not None:
        return None
    add = sole_reader(graph, node.outputs[0], in_bodies)
    if add is None or not is_standard(add, "Add"):
        return None
    addends = [c for t in add.inputs if (c := constants.parameter(t)) is not None]
    weight = constants.parameter(node.inputs[1])
    if len(addends) != 1 or weight is None or not is_vector(addends[0].shape):
        return None
    groups, n, _ = operator.shape(node, weight.shape)
    return add if list(addends[0].shape[-1:]) == [groups * n] else None
