"""One view of every linear node: Conv, ConvTranspose, Gemm, and MatMul with the Add of its bias.

The view is a stack of matrices, one per group, that map input patches to outputs::

    output[g] = matrix[g] @ patches[g] + bias[g]          matrix: (groups, n, p)

with ``n`` output channels and ``p`` unknowns (input channels of the group x kernel size) in each of
``groups`` groups. Everything that solves, fuses or counts speaks of this view only; the storage
axes of each operator are known here and nowhere else:

=============  ===========================================  ==========================
op             weight as stored                             channels of the output on
=============  ===========================================  ==========================
Conv           (groups * n, p / kernel size, kernel...)     axis 1
ConvTranspose  (groups * p / kernel size, n, kernel...)     axis 1
Gemm           (p, n), or (n, p) with ``transB``            axis 1
MatMul         (p, n)                                       the last axis
=============  ===========================================  ==========================
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.nodes import (
    has_input,
    index_of,
    inner_nodes,
    is_output,
    is_standard,
    is_vector,
    node_name,
    sole_reader,
    unused_name,
    varying,
)
from fskd_onnx.passes.analysis.refusals import (
    CONVOLUTIONS,
    LINEAR_OPS,
    Refusal,
    is_linear_op,
    why_left_alone,
    why_not_linear,
)

T = TypeVar("T")

__all__ = ["CONVOLUTIONS", "LINEAR_OPS", "Linear", "Refusal", "find_linear"]


@dataclass(frozen=True)
class Linear:
    """A linear node of a graph, see the module's docstring.

    Attributes:
        node: the Conv, ConvTranspose, Gemm or MatMul.
        bias_node: the Add that holds a MatMul's bias, if there is one.
        own_name: whether no other linear node has the node's name.
    """

    node: gs.Node
    bias_node: gs.Node | None = None
    own_name: bool = True

    @property
    def name(self) -> str:
        """Name of the node, or of the block output where that names no node or several."""
        return str((self.own_name and self.node.name) or self.output.name)

    @property
    def op(self) -> str:
        """Operator of the node."""
        return str(self.node.op)

    @property
    def input(self) -> gs.Tensor:
        """The tensor that the patches are cut from."""
        return self.node.inputs[0]

    @property
    def output(self) -> gs.Tensor:
        """The block output: what comes out once the bias is added."""
        return (self.bias_node or self.node).outputs[0]

    @property
    def groups(self) -> int:
        """Number of groups; 1 for all but grouped convolutions."""
        return int(self.node.attrs.get("group", 1))

    @property
    def is_convolution(self) -> bool:
        """Whether it moves a kernel over positions."""
        return self.op in CONVOLUTIONS

    @property
    def channels_last(self) -> bool:
        """Whether channels are on the last axis of input and output, not on axis 1."""
        return self.op == "MatMul"

    @property
    def channel_axis(self) -> int:
        """Axis of input and output that counts channels."""
        return -1 if self.channels_last else 1

    def spatial_shape(self, shape: Sequence[T]) -> tuple[T, ...]:
        """Return the extents of the positions in the shape of an input or output, () for none."""
        return tuple(shape[1:-1] if self.channels_last else shape[2:])

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Spatial extent of the kernel; empty for Gemm and MatMul."""
        return tuple(self.weight.shape[2:]) if self.op in CONVOLUTIONS else ()

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
    def bias_constant(self) -> gs.Constant | None:
        """The constant that stores the bias, or None while the node has no bias."""
        node, slot = self._bias_slot
        return constants.parameter(node.inputs[slot]) if has_input(node, slot) else None

    @property
    def width(self) -> int:
        """Number of output channels over all groups."""
        axis = 0 if self.op == "Conv" or self._transposed else 1
        repeated = self.groups if self.op == "ConvTranspose" else 1
        return repeated * int(self.weight.shape[axis])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the matrix, (groups, n, p)."""
        return self.groups, self.width // self.groups, math.prod(self.weight.shape) // self.width

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The weights as (groups, n, p), scaled by Gemm's ``alpha``."""
        return np.asarray(self.native, np.float64)

    @property
    def native(self) -> NDArray[np.floating]:
        """The matrix in the type that stores it, to be read and not written.

        Scaled, it comes in float64.
        """
        values = constants.native(self.weight)
        groups, n, p = self.shape
        if self.op == "Conv":
            return values.reshape(groups, n, p)
        if self.op == "ConvTranspose":
            taps = values.reshape(groups, -1, n, math.prod(self.kernel_shape))
            return np.moveaxis(taps, 1, 2).reshape(groups, n, p)
        alpha = float(self.node.attrs.get("alpha", 1.0))
        only = (values if self._transposed else values.T)[np.newaxis]
        return only if alpha == 1 else alpha * only.astype(np.float64)

    @property
    def bias(self) -> NDArray[np.float64]:
        """The bias as (groups * n,), zeros where there is none, scaled by Gemm's ``beta``."""
        if self.bias_constant is None:
            return np.zeros(self.width)
        values = constants.read(self.bias_constant)
        beta = float(self.node.attrs.get("beta", 1.0))
        return beta * np.broadcast_to(values.reshape(-1), (self.width,))

    @property
    def affine(self) -> AffineMap:
        """What the node computes of its input patches: ``matrix`` and ``bias``."""
        return AffineMap(self.matrix, self.bias.reshape(self.groups, -1))

    def write(
        self, graph: gs.Graph, matrix: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> None:
        """Replace weights and bias, cast once to the node's type.

        What has these values already is left as it is, to the byte.

        Args:
            graph: the graph of the node; a MatMul that has no bias yet gets an Add in it.
            matrix: (groups, n, p), as ``self.matrix``.
            bias: (groups * n,), as ``self.bias``.
        """
        if not np.array_equal(matrix, self.native):
            values = self._store(matrix).reshape(self.weight.shape)
            self._replace(graph, self.node, 1, values, "weight")
            self._reset("alpha")
        if np.array_equal(bias, self.bias):
            return
        node, slot = self._bias_slot
        if self.op == "MatMul" and self.bias_node is None:
            self._append_add(graph, bias)
        else:
            self._replace(graph, node, slot, bias, "bias")
            self._reset("beta")

    @property
    def shared_with(self) -> str | None:
        """Another node that reads the same weights, which a rewrite would change as well."""
        read = self.node.inputs[1]
        readers = [reader for reader in read.outputs if reader is not self.node]
        if (cast := constants.cast_of(read)) is not None:
            readers += [reader for reader in self.weight.outputs if reader is not cast]
        return node_name(readers[0]) if readers else None

    def again(self, graph: gs.Graph, inner: set[int]) -> Linear:
        """Return the view of the same node in a graph that was rewritten around it.

        Args:
            graph: the graph of the node.
            inner: see ``nodes.inner_nodes``.
        """
        return replace(self, bias_node=_bias_add(graph, self.node, inner))

    def _store(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bring a matrix into the order of the stored weight."""
        if self.op == "Conv":
            return matrix
        if self.op == "ConvTranspose":
            taps = math.prod(self.kernel_shape)
            return matrix.reshape(*matrix.shape[:2], -1, taps).swapaxes(1, 2)
        only: NDArray[np.float64] = matrix[0]
        return only if self._transposed else only.T

    @property
    def _transposed(self) -> bool:
        return self.op == "Gemm" and bool(self.node.attrs.get("transB", 0))

    @property
    def _bias_slot(self) -> tuple[gs.Node, int]:
        """The node that reads the bias, and at which of its inputs."""
        if self.bias_node is None:
            return self.node, 2
        return self.bias_node, 1 if self.bias_node.inputs[0] is self.node.outputs[0] else 0

    def _reset(self, factor: str) -> None:
        """Make a factor one that the values just written include."""
        if factor in self.node.attrs:
            self.node.attrs[factor] = 1.0

    def _replace(
        self, graph: gs.Graph, node: gs.Node, slot: int, values: NDArray[np.float64], kind: str
    ) -> None:
        """Put values into an input slot, in place where nobody else reads the old ones.

        The shape stays as well where it can: an Add may owe the rank of its output to it, and a
        graph input of the same name may state it.
        """
        old = _own_constant(graph, node.inputs[slot]) if has_input(node, slot) else None
        if old is not None and np.prod(old.shape) == values.size:
            constants.write(old, values)
            return
        name = unused_name(graph, f"{self.output.name}/{kind}")
        new = gs.Constant(name, np.asarray(values, self.dtype, order="C"))
        if slot < len(node.inputs):
            node.inputs[slot] = new
        else:
            node.inputs.append(new)

    def _append_add(self, graph: gs.Graph, bias: NDArray[np.float64]) -> None:
        name, output = self.name, self.node.outputs[0]
        product = gs.Variable(unused_name(graph, f"{output.name}/product"), output.dtype)
        values = bias.astype(self.dtype)
        constant = gs.Constant(unused_name(graph, f"{output.name}/bias"), values)
        self.node.outputs = [product]
        add = gs.Node("Add", f"{name}/bias", inputs=[product, constant], outputs=[output])
        graph.nodes.insert(index_of(graph, self.node) + 1, add)


def find_linear(graph: gs.Graph) -> list[Linear | Refusal]:
    """View every node of a graph that has weights, in the order of its nodes.

    A product of two activations (attention) has none and is not listed.
    """
    around = _Surroundings(graph)
    reasons = [(node, _reason(node, around)) for node in graph.nodes]
    listed = [(node, reason) for node, reason in reasons if reason is not None]
    names = Counter(node.name for node, _ in listed)
    views: list[Linear | Refusal] = []
    for node, reason in listed:
        own_name = names[node.name] == 1
        if reason:
            views.append(Refusal(node, reason, own_name))
        else:
            add = _bias_add(graph, node, around.inner) if node.op == "MatMul" else None
            views.append(Linear(node, add, own_name))
    return views


@dataclass(frozen=True)
class _Surroundings:
    """What has to be known of a graph to view one of its nodes; walks are made when first asked."""

    graph: gs.Graph

    @cached_property
    def outputs(self) -> set[int]:
        """Outputs of the graph, by identity."""
        return {id(tensor) for tensor in self.graph.outputs}

    @cached_property
    def inner(self) -> set[int]:
        """See ``nodes.inner_nodes``."""
        return inner_nodes(self.graph)

    @cached_property
    def fed(self) -> set[int]:
        """See ``nodes.varying``."""
        return varying(self.graph)


def _reason(node: gs.Node, around: _Surroundings) -> str | None:
    """Return why a node is left alone: "" where it is not, None where it has no weights."""
    if not is_linear_op(node):
        return why_left_alone(node, around.graph.functions) or None
    if node.op == "MatMul" and all(id(tensor) in around.fed for tensor in node.inputs):
        return None
    return why_not_linear(node, around.outputs)


def _own_constant(graph: gs.Graph, read: gs.Tensor) -> gs.Constant | None:
    """Return the constant that stores an input, if no other node reads it."""
    constant = constants.parameter(read)
    path = (read, constant)
    own = all(len(t.outputs) == 1 and not is_output(graph, t) for t in path if t is not None)
    return constant if own else None


def _bias_add(graph: gs.Graph, node: gs.Node, inner: set[int]) -> gs.Node | None:
    """Return the Add of a constant vector that is the only reader of a MatMul's product."""
    product = node.outputs[0]
    add = sole_reader(graph, product, inner) if node.op == "MatMul" else None
    if add is None or not is_standard(add, "Add"):
        return None
    addends = [c for t in add.inputs if (c := constants.parameter(t)) is not None]
    weight = constants.parameter(node.inputs[1])
    if len(addends) != 1 or weight is None or not is_vector(addends[0].shape):
        return None
    return add if list(addends[0].shape[-1:]) == [weight.shape[1]] else None
