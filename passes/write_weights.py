"""Write weights and bias of a linear node: the only place where the numbers of one change.

Values are cast once, from float64 to the type that is stored. The order of storage is the
operator's (``analysis/linear_operators.py``); constants that other nodes read are not overwritten
but replaced by one of the node's own.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.nodes import has_input, index_of, is_output, unused_name
from fskd_onnx.passes.edit import overwrite


def write_weights(graph: gs.Graph, linear: Linear, new: AffineMap) -> None:
    """Let a linear node compute another map of its input patches.

    1. A part, weights or bias, that has the new values already stays as it is, to the byte.
    2. A part that is written takes in its factor (Gemm's alpha or beta), which becomes 1.
    3. A node without a bias gets one only where it is not zero: as an input, or as an Add behind a
       MatMul.

    Args:
        graph: the graph of the node.
        linear: the node. The view is stale once an Add was put behind it; see ``Linear.renewed``.
        new: of the shape ``linear.shape``.
    """
    operator, bias = linear.operator, new.shift.reshape(-1)
    if not np.array_equal(new.matrix, linear.native):
        _write(graph, linear, (linear.node, 1), linear.stored(new.matrix), "weight")
        _reset(linear.node, operator.weight_factor)
    if np.array_equal(bias, linear.bias):
        return
    slot = linear.bias_slot
    if slot is None:
        _append_add(graph, linear, bias)
    else:
        _write(graph, linear, slot, bias, "bias")
        _reset(linear.node, operator.bias_factor)


def _write(
    graph: gs.Graph,
    linear: Linear,
    slot: tuple[gs.Node, int],
    values: NDArray[np.float64],
    kind: str,
) -> None:
    """Put values into an input of a node, in place where no other node reads the old ones.

    The shape stays as well where it can: an Add may owe the rank of its output to it, and a
    graph input of the same name may state it.
    """
    node, index = slot
    old = _own_constant(graph, node.inputs[index]) if has_input(node, index) else None
    if old is not None and np.prod(old.shape) == values.size:
        overwrite(old, values)
        return
    name = unused_name(graph, f"{linear.output.name}/{kind}")
    new = gs.Constant(name, np.asarray(values, linear.dtype, order="C"))
    if index < len(node.inputs):
        node.inputs[index] = new
    else:
        node.inputs.append(new)


def _own_constant(graph: gs.Graph, read: gs.Tensor) -> gs.Constant | None:
    """Return the constant that stores an input, if no other node reads it."""
    constant = constants.parameter(read)
    path = (read, constant)
    own = all(len(t.outputs) == 1 and not is_output(graph, t) for t in path if t is not None)
    return constant if own else None


def _reset(node: gs.Node, factor: str) -> None:
    """Make a factor one that the values just written include."""
    if factor in node.attrs:
        node.attrs[factor] = 1.0


def _append_add(graph: gs.Graph, linear: Linear, bias: NDArray[np.float64]) -> None:
    name, output = linear.name, linear.output
    product = gs.Variable(unused_name(graph, f"{output.name}/product"), output.dtype)
    constant = gs.Constant(unused_name(graph, f"{output.name}/bias"), bias.astype(linear.dtype))
    linear.node.outputs = [product]
    add = gs.Node("Add", f"{name}/bias", inputs=[product, constant], outputs=[output])
    graph.nodes.insert(index_of(graph, linear.node) + 1, add)
