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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.ir.tensor import SparseValues

CONVOLUTIONS = ("Conv", "ConvTranspose")
LINEAR_OPS = (*CONVOLUTIONS, "Gemm", "MatMul")
_FLOATS = (np.float32, np.float64, np.float16)


@dataclass(frozen=True)
class Refusal:
    """Why a node that looks linear cannot be viewed as one; a value, not an error.

    Attributes:
        node: what looked like a linear node.
        reason: half a sentence about "it".
        own_name: whether no other linear node has the node's name.
    """

    node: gs.Node
    reason: str
    own_name: bool = True

    @property
    def name(self) -> str:
        """Name of the node, or of its output where that names no node or several."""
        return str((self.own_name and self.node.name) or self.node.outputs[0].name)


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
    def channel_axis(self) -> int:
        """Axis of input and output that counts channels."""
        return -1 if self.op == "MatMul" else 1

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Spatial extent of the kernel; empty for Gemm and MatMul."""
        return tuple(self.weight.shape[2:]) if self.op in CONVOLUTIONS else ()

    @property
    def weight(self) -> gs.Constant:
        """The constant that holds the weights."""
        return self.node.inputs[1]

    @property
    def bias_constant(self) -> gs.Constant | None:
        """The constant that holds the bias, or None while the node has no bias."""
        node, slot = self._bias_slot
        return node.inputs[slot] if _has_input(node, slot) else None

    @property
    def width(self) -> int:
        """Number of output channels over all groups."""
        axis = 0 if self.op == "Conv" or self._transposed else 1
        repeated = self.groups if self.op == "ConvTranspose" else 1
        return repeated * int(self.weight.shape[axis])

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The weights as (groups, n, p), scaled by Gemm's ``alpha``."""
        stored = np.asarray(self.weight.values, dtype=np.float64)
        groups, n = self.groups, self.width // self.groups
        if self.op == "Conv":
            return stored.reshape(groups, n, -1)
        if self.op == "ConvTranspose":
            taps = stored.reshape(groups, -1, n, math.prod(self.kernel_shape))
            return np.moveaxis(taps, 1, 2).reshape(groups, n, -1)
        alpha = float(self.node.attrs.get("alpha", 1.0))
        return alpha * (stored if self._transposed else stored.T)[np.newaxis]

    @property
    def bias(self) -> NDArray[np.float64]:
        """The bias as (groups * n,), zeros where there is none, scaled by Gemm's ``beta``."""
        if self.bias_constant is None:
            return np.zeros(self.width)
        stored = np.asarray(self.bias_constant.values, dtype=np.float64)
        beta = float(self.node.attrs.get("beta", 1.0))
        return beta * np.broadcast_to(stored.reshape(-1), (self.width,))

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
        if not np.array_equal(matrix, self.matrix):
            stored = self._store(matrix).reshape(self.weight.shape)
            self._replace(graph, self.node, 1, stored, "weight")
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
        readers = [reader for reader in self.weight.outputs if reader is not self.node]
        return node_name(readers[0]) if readers else None

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
        first = self.bias_node.inputs[0]
        return self.bias_node, 0 if isinstance(first, gs.Constant) else 1

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
        dtype = self.weight.dtype
        old = node.inputs[slot] if _has_input(node, slot) else None
        if old is not None and _is_sole_reader(graph, old) and np.prod(old.shape) == values.size:
            old.values = np.asarray(values.reshape(old.shape), dtype, order="C")
            return
        name = unused_name(graph, f"{self.output.name}/{kind}")
        new = gs.Constant(name, np.asarray(values, dtype, order="C"))
        if slot < len(node.inputs):
            node.inputs[slot] = new
        else:
            node.inputs.append(new)

    def _append_add(self, graph: gs.Graph, bias: NDArray[np.float64]) -> None:
        name, output = self.name, self.node.outputs[0]
        product = gs.Variable(unused_name(graph, f"{output.name}/product"), output.dtype)
        values = bias.astype(self.weight.dtype)
        constant = gs.Constant(unused_name(graph, f"{output.name}/bias"), values)
        self.node.outputs = [product]
        add = gs.Node("Add", f"{name}/bias", inputs=[product, constant], outputs=[output])
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


def is_standard(node: gs.Node, op: str) -> bool:
    """Whether a node is an ONNX operator, not its namesake of another domain."""
    return bool(node.op == op) and node.domain in (None, "", "ai.onnx")


def is_dense(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant that is stored in full (reading a sparse one unpacks it)."""
    return isinstance(tensor, gs.Constant) and not isinstance(tensor._values, SparseValues)


def bodies(node: gs.Node) -> Iterator[gs.Graph]:
    """Yield the subgraphs of a control flow node (If, Loop, Scan)."""
    yield from (value for value in node.attrs.values() if isinstance(value, gs.Graph))


def unused_name(graph: gs.Graph, name: str) -> str:
    """Return the name, or one made from it, that no tensor of the graph or its bodies has."""
    taken = {tensor.name for tensor in _tensors(graph)}
    while name in taken:
        name += "_"
    return name


def find_linear(graph: gs.Graph) -> list[Linear | Refusal]:
    """View every linear node of a graph, in the order of its nodes.

    A product of two activations (attention) is not a linear node and is not listed.
    """
    nodes = [n for n in graph.nodes if any(is_standard(n, op) for op in LINEAR_OPS)]
    names = Counter(node.name for node in nodes)
    inside = {id(node) for node in graph.nodes}
    outputs = {id(tensor) for tensor in graph.outputs}
    views: list[Linear | Refusal] = []
    for node in nodes:
        if node.op == "MatMul" and not any(isinstance(t, gs.Constant) for t in node.inputs):
            continue
        own_name = names[node.name] == 1
        reason = _why_not(node, outputs)
        if reason:
            views.append(Refusal(node, reason, own_name))
        else:
            views.append(Linear(node, _bias_add(node, inside, outputs), own_name))
    return views


def _why_not(node: gs.Node, graph_outputs: set[int]) -> str:
    """Return why a node cannot be viewed as linear, or nothing."""
    data, weight = node.inputs[:2]
    if isinstance(data, gs.Constant):
        return f"its input '{data.name}' is a constant"
    if not is_dense(weight):
        return f"its weight '{weight.name}' is not an initializer of all its values"
    if weight.dtype not in _FLOATS:
        return f"its weight '{weight.name}' is not of type float16, float32 or float64"
    if node.op not in CONVOLUTIONS and len(weight.shape) != 2:
        return f"its weight '{weight.name}' is not a matrix"
    if id(weight) in graph_outputs:
        return f"its weight '{weight.name}' is also an output of the graph"
    if node.attrs.get("transA", 0):
        return "its input is transposed (transA), so it has no sample axis"
    if _has_input(node, 2):
        bias = node.inputs[2]
        if not is_dense(bias):
            return f"its bias '{bias.name}' is not an initializer of all its values"
        if not _is_vector(bias.shape):
            return f"its bias '{bias.name}' is not one value per channel"
    return ""


def _has_input(node: gs.Node, slot: int) -> bool:
    return slot < len(node.inputs) and not node.inputs[slot].is_empty()


def _is_vector(shape: Iterable[int]) -> bool:
    return all(extent == 1 for extent in tuple(shape)[:-1])


def _is_sole_reader(graph: gs.Graph, constant: gs.Constant) -> bool:
    """Whether a constant that a node reads is read by nobody else."""
    return len(constant.outputs) == 1 and not any(output is constant for output in graph.outputs)


def _bias_add(node: gs.Node, inside: set[int], graph_outputs: set[int]) -> gs.Node | None:
    """Return the Add of a constant vector that is the only reader of a MatMul's product."""
    product = node.outputs[0]
    if node.op != "MatMul" or id(product) in graph_outputs or len(product.outputs) != 1:
        return None
    add = product.outputs[0]
    # The only reader may stand in the body of an If, which is a graph of its own.
    if id(add) not in inside or not is_standard(add, "Add"):
        return None
    constants = [t for t in add.inputs if is_dense(t)]
    if len(constants) != 1 or not _is_vector(constants[0].shape):
        return None
    return add if list(constants[0].shape[-1:]) == [node.inputs[1].shape[1]] else None


def _tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    yield from graph.inputs
    yield from graph.outputs
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs
        for body in bodies(node):
            yield from _tensors(body)
