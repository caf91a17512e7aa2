"""One view of every linear node: Conv, Gemm, and MatMul with or without the Add of its bias.

The view is a stack of matrices, one per group, that map input patches to outputs::

    output[g] = matrix[g] @ patches[g] + bias[g]          matrix: (groups, n, p)

with ``n`` output channels and ``p`` unknowns (input channels of the group x kernel size) in each of
``groups`` groups. Everything that solves, fuses or counts speaks of this view only; the storage
axes of each operator are known here and nowhere else:

=======  ===========================================  ==========================
op       weight as stored                             channels of the output on
=======  ===========================================  ==========================
Conv     (groups * n, p / kernel size, kernel...)     axis 1
Gemm     (p, n), or (n, p) with ``transB``            axis 1
MatMul   (p, n)                                       the last axis
=======  ===========================================  ==========================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

LINEAR_OPS = ("Conv", "Gemm", "MatMul")
_FLOATS = (np.float32, np.float64, np.float16)


@dataclass(frozen=True)
class Refusal:
    """Why a node that looks linear cannot be viewed as one; a value, not an error."""

    node: str
    reason: str


@dataclass(frozen=True)
class Linear:
    """A linear node of a graph, see the module's docstring.

    Attributes:
        node: the Conv, Gemm or MatMul.
        bias_node: the Add that holds a MatMul's bias, if there is one.
    """

    node: gs.Node
    bias_node: gs.Node | None = None

    @property
    def name(self) -> str:
        """Name of the node, or of its output where the node has none."""
        return node_name(self.node)

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
    def channel_axis(self) -> int:
        """Axis of input and output that counts channels."""
        return -1 if self.op == "MatMul" else 1

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Spatial extent of the kernel; empty for Gemm and MatMul."""
        return tuple(self.weight.shape[2:]) if self.op == "Conv" else ()

    @property
    def weight(self) -> gs.Constant:
        """The constant that holds the weights."""
        return self.node.inputs[1]

    @property
    def bias_constant(self) -> gs.Constant | None:
        """The constant that holds the bias, or None while the node has no bias."""
        if self.bias_node is not None:
            return next(t for t in self.bias_node.inputs if isinstance(t, gs.Constant))
        has_bias = len(self.node.inputs) > 2 and not self.node.inputs[2].is_empty()
        return self.node.inputs[2] if has_bias else None

    @property
    def width(self) -> int:
        """Number of output channels over all groups."""
        axis = 0 if self.op == "Conv" or self._transposed else 1
        return int(self.weight.shape[axis])

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The weights as (groups, n, p), scaled by Gemm's ``alpha``."""
        stored = np.asarray(self.weight.values, dtype=np.float64)
        if self.op == "Conv":
            return stored.reshape(self.groups, self.width // self.groups, -1)
        alpha = float(self.node.attrs.get("alpha", 1.0))
        return alpha * (stored if self._transposed else stored.T)[np.newaxis]

    @property
    def bias(self) -> NDArray[np.float64]:
        """The bias as (groups * n,), zeros where there is none, scaled by Gemm's ``beta``."""
        if self.bias_constant is None:
            return np.zeros(self.width)
        stored = np.asarray(self.bias_constant.values, dtype=np.float64)
        beta = float(self.node.attrs.get("beta", 1.0)) if self.op == "Gemm" else 1.0
        return beta * np.broadcast_to(stored.reshape(-1), (self.width,))

    def write(
        self, graph: gs.Graph, matrix: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> None:
        """Replace weights and bias, cast once to the node's type.

        Args:
            graph: the graph of the node; a MatMul that has no bias yet gets an Add in it.
            matrix: (groups, n, p), as ``self.matrix``.
            bias: (groups * n,), as ``self.bias``.
        """
        stored = matrix[0] if self.op != "Conv" else matrix
        if self.op != "Conv" and not self._transposed:
            stored = stored.T
        self._replace(self.node, 1, stored.reshape(self.weight.shape), "weight")
        if self.op == "Gemm":
            self.node.attrs.update({"alpha": 1.0, "beta": 1.0})
        if self.bias_node is not None:
            slot = next(
                i for i, t in enumerate(self.bias_node.inputs) if isinstance(t, gs.Constant)
            )
            self._replace(self.bias_node, slot, bias, "bias")
        elif self.bias_constant is not None or bias.any():
            if self.op == "MatMul":
                self._append_add(graph, bias)
            else:
                self._replace(self.node, 2, bias, "bias")

    @property
    def shared_with(self) -> str | None:
        """Another node that reads the same weights, which a rewrite would change as well."""
        readers = [reader for reader in self.weight.outputs if reader is not self.node]
        return node_name(readers[0]) if readers else None

    @property
    def _transposed(self) -> bool:
        return self.op == "Gemm" and bool(self.node.attrs.get("transB", 0))

    def _replace(self, node: gs.Node, slot: int, values: NDArray[np.float64], kind: str) -> None:
        """Put a constant into an input slot, in place where nobody else reads the old one."""
        values = np.ascontiguousarray(values, dtype=self.weight.dtype)
        old = node.inputs[slot] if slot < len(node.inputs) else None
        if isinstance(old, gs.Constant) and len(old.outputs) == 1:
            old.values = values
            return
        name = f"{self.output.name}/{kind}"
        if slot < len(node.inputs):
            node.inputs[slot] = gs.Constant(name, values)
        else:
            node.inputs.append(gs.Constant(name, values))

    def _append_add(self, graph: gs.Graph, bias: NDArray[np.float64]) -> None:
        output = self.node.outputs[0]
        product = gs.Variable(f"{output.name}/product", output.dtype, output.shape)
        constant = gs.Constant(f"{output.name}/bias", bias.astype(self.weight.dtype))
        self.node.outputs = [product]
        add = gs.Node("Add", f"{self.name}/bias", inputs=[product, constant], outputs=[output])
        graph.nodes.insert(index_of(graph, self.node) + 1, add)


def node_name(node: gs.Node) -> str:
    """Name of a node, or of its first output where it has none (names are optional in ONNX)."""
    return str(node.name or node.outputs[0].name)


def index_of(graph: gs.Graph, node: gs.Node) -> int:
    """Position of a node in the graph's list, by identity (node equality compares contents)."""
    return next(i for i, candidate in enumerate(graph.nodes) if candidate is node)


def remove(graph: gs.Graph, node: gs.Node) -> None:
    """Take a node out of its graph; what it read and wrote stays behind, unconnected."""
    del graph.nodes[index_of(graph, node)]
    node.outputs.clear()
    node.inputs.clear()


def find_linear(graph: gs.Graph) -> list[Linear | Refusal]:
    """View every Conv, Gemm and MatMul of a graph, in the order of its nodes.

    A product of two activations (attention) is not a linear node and is not listed.
    """
    outputs = {id(tensor) for tensor in graph.outputs}
    nodes = (node for node in graph.nodes if node.op in LINEAR_OPS and not _foreign(node))
    return [view(node, outputs) for node in nodes if not _is_activation_product(node)]


def view(node: gs.Node, graph_outputs: set[int] | None = None) -> Linear | Refusal:
    """View one Conv, Gemm or MatMul node, or say why it cannot be.

    Args:
        node: the node.
        graph_outputs: ``id`` of each tensor that is an output of the graph; a MatMul whose product
            is one of them keeps it, so an Add behind it is not taken for its bias.
    """
    name = node_name(node)
    weight = node.inputs[1]
    if not isinstance(weight, gs.Constant):
        return Refusal(name, f"its weight '{weight.name}' is not an initializer")
    if weight.dtype not in _FLOATS:
        return Refusal(name, f"its weight '{weight.name}' has type {weight.dtype}, not a float")
    if node.op != "Conv" and len(weight.shape) != 2:
        return Refusal(name, f"its weight '{weight.name}' is not a matrix")
    if node.attrs.get("transA", 0):
        return Refusal(name, "its input is transposed (transA), so it has no sample axis")
    bias_node = _bias_add(node, graph_outputs or set()) if node.op == "MatMul" else None
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        bias = node.inputs[2]
        if not isinstance(bias, gs.Constant):
            return Refusal(name, f"its bias '{bias.name}' is not an initializer")
        if not _is_vector(bias.shape):
            return Refusal(name, f"its bias '{bias.name}' is not one value per channel")
    return Linear(node, bias_node)


def _foreign(node: gs.Node) -> bool:
    return node.domain not in (None, "", "ai.onnx")


def _is_activation_product(node: gs.Node) -> bool:
    return node.op == "MatMul" and not isinstance(node.inputs[1], gs.Constant)


def _is_vector(shape: tuple[int, ...]) -> bool:
    return all(extent == 1 for extent in shape[:-1])


def _bias_add(node: gs.Node, graph_outputs: set[int]) -> gs.Node | None:
    """Return the Add of a constant vector that is the only reader of a MatMul's product."""
    product = node.outputs[0]
    if id(product) in graph_outputs or len(product.outputs) != 1:
        return None
    add = product.outputs[0]
    constants = [t for t in add.inputs if isinstance(t, gs.Constant)]
    if add.op != "Add" or len(constants) != 1 or not _is_vector(constants[0].shape):
        return None
    return add if list(constants[0].shape[-1:]) == [node.inputs[1].shape[1]] else None
