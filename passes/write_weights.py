"""Write weights and bias of a linear node: the only place where the numbers of one change.

Values are cast once, from float64 to the type that is stored. The order of storage is the
operator's (``analysis/linear_operators.py``); constants that other nodes read are not overwritten
but replaced by one of the node's own. Nodes that use the same weights are written together and go
on reading one constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.nodes import has_input, index_of, is_output, name_of_new, unused_name
from fskd_onnx.passes.edit import overwrite

Slot = tuple[gs.Node, int]


def write_weights(
    graph: gs.Graph, linear: Linear, new: AffineMap, others: Sequence[Linear] = ()
) -> None:
    """Let a linear node compute another map of its input patches.

    1. A part, weights or bias, that has the new values already stays as it is, to the byte.
    2. A part that is written takes in its factor (Gemm's alpha or beta), which becomes 1.
    3. A node without a bias gets one only where it is not zero: as an input, or as an Add behind a
       MatMul.

    Args:
        graph: the graph of the node.
        linear: the node. The view is stale once an Add was put behind it; see ``Linear.renewed``.
        new: of the shape ``linear.shape``.
        others: the other uses of its block, see ``analysis.shared_weights``.
    """
    operator, bias, uses = linear.operator, new.shift.reshape(-1), (linear, *others)
    if not np.array_equal(new.matrix, linear.native):
        _write(graph, [(use.node, 1) for use in uses], linear, linear.stored(new.matrix), "weight")
        _reset(uses, operator.weight_factor)
    if np.array_equal(bias, linear.bias):
        return
    slots = [slot for use in uses if (slot := use.bias_slot) is not None]
    if slots:
        _write(graph, slots, linear, bias, "bias")
        _reset(uses, operator.bias_factor)
    else:
        _append_adds(graph, uses, bias)


def _write(
    graph: gs.Graph,
    slots: Sequence[Slot],
    linear: Linear,
    values: NDArray[np.float64],
    kind: str,
) -> None:
    """Put values into inputs that read one constant, in place where nothing else reads it.

    The shape stays as well where it can: an Add may owe the rank of its output to it, and a
    graph input of the same name may state it.
    """
    old = _own_constant(graph, slots)
    if old is not None and np.prod(old.shape) == values.size:
        overwrite(old, values)
        return
    name = unused_name(graph, f"{linear.output.name}/{kind}")
    new = gs.Constant(name, np.asarray(values, linear.dtype, order="C"))
    for node, index in slots:
        if index < len(node.inputs):
            node.inputs[index] = new
        else:
            node.inputs.append(new)


def _own_constant(graph: gs.Graph, slots: Sequence[Slot]) -> gs.Constant | None:
    """Return the constant that stores some inputs, if nothing else reads it."""
    if not all(has_input(*slot) for slot in slots):
        return None
    reads = [node.inputs[index] for node, index in slots]
    constant = constants.parameter(reads[0])
    if constant is None or any(is_output(graph, tensor) for tensor in (constant, *reads)):
        return None
    readers = sorted(map(id, constants.readers(constant)))
    return constant if readers == sorted(id(node) for node, _ in slots) else None


def _reset(uses: Sequence[Linear], factor: str) -> None:
    """Make a factor one that the values just written include."""
    for use in uses:
        if factor in use.node.attrs:
            use.node.attrs[factor] = 1.0


def _append_adds(graph: gs.Graph, uses: Sequence[Linear], bias: NDArray[np.float64]) -> None:
    """Put an Add of one bias behind each use of a block."""
    first = uses[0]
    name = unused_name(graph, f"{first.output.name}/bias")
    constant = gs.Constant(name, bias.astype(first.dtype))
    for use in uses:
        output = use.output
        product = gs.Variable(unused_name(graph, f"{output.name}/product"), output.dtype)
        use.node.outputs = [product]
        name = name_of_new(graph, f"{use.name}/bias")
        add = gs.Node("Add", name, inputs=[product, constant], outputs=[output])
        graph.nodes.insert(index_of(graph, use.node) + 1, add)
