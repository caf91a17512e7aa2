"""Products of a stored matrix that are written as Einsum, or with the matrix on the left.

A matrix W that is applied to the last axis is a MatMul. One that is applied to the axis behind the
samples is a convolution with a kernel of one position, as it is when channels are on axis 1::

    Einsum "btc,cd->btd" (x, W)        MatMul (x, W)
    Einsum "btc,dc->btd" (x, W)        MatMul (x, W')
    MatMul (W, x), x (N, C, T)         Conv (x, W), W (D, C, 1)
    Einsum "bct,dc->bdt" (x, W)        the same

Between two Transposes of the last two axes, the matrix goes to the right instead, and both of them
away: (W x' + b)' = x W' + b'.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.nodes import (
    input_dependent,
    is_dense,
    is_output,
    is_standard,
    node_name,
    nodes_in_bodies,
    sole_reader,
    unused_name,
)
from fskd_onnx.passes.analysis.shapes import KnownShapes
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.edit import remove


@dataclass(frozen=True)
class _Product:
    """A matrix and what it is applied to.

    Attributes:
        node: the product.
        data: number of the input that it is applied to.
        turned: whether the matrix is stored as (outputs, inputs).
        last: whether it is applied to the last axis; else to axis 1 of three.
    """

    node: gs.Node
    data: int
    turned: bool
    last: bool


class RewriteProducts(Pass):
    """Write products of a stored matrix as MatMul or Conv. The function stays, to rounding.

    A node stays as it is where its matrix is not stored as such, has to be stored in another order
    and something else reads it, or where it would be a Conv and is not of type float32, the one
    that ONNX Runtime convolves everywhere.
    """

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per node."""
        candidates = [node for node in graph.nodes if is_standard(node, "Einsum", "MatMul")]
        shapes, dependent = KnownShapes(graph), input_dependent(graph) if candidates else set()
        in_bodies, notes = nodes_in_bodies(graph), []
        for node in candidates:
            if _is_between_transposes(graph, node, in_bodies):
                _turn(graph, node)
                notes.append(f"the matrix of '{node_name(node)}' put on the right")
                continue
            product = _product(node, shapes)
            if product is None or id(node.inputs[product.data]) not in dependent:
                continue
            if _rewrite(graph, product):
                notes.append(f"'{node_name(node)}' written as {node.op}")
        return notes


def _is_between_transposes(graph: gs.Graph, node: gs.Node, in_bodies: Collection[int]) -> bool:
    """Whether a matrix stands on the left, and what it is applied to and gives is transposed."""
    if node.op != "MatMul" or not _is_matrix(node.inputs[0]) or not node.inputs[1].inputs:
        return False
    first = node.inputs[1].inputs[0]
    behind = sole_reader(graph, node.outputs[0], in_bodies)
    if behind is not None and is_standard(behind, "Add"):
        columns = [t for t in behind.inputs if is_dense(t)]
        width = node.inputs[0].shape[0]
        if len(columns) != 1 or tuple(columns[0].shape) not in ((width, 1), (1, width, 1)):
            return False
        if len(columns[0].shape) > len(first.attrs.get("perm", ())):
            return False  # the sum has more axes than the product
        behind = sole_reader(graph, behind.outputs[0], in_bodies)
    ends = first, behind
    is_read_alone = [id(reader) for reader in node.inputs[0].outputs] == [id(node)]
    return is_read_alone and all(end is not None and _swaps_last_axes(end) for end in ends)


def _swaps_last_axes(node: gs.Node) -> bool:
    order = list(node.attrs.get("perm", ()))
    front = list(range(len(order) - 2))
    return is_standard(node, "Transpose") and order == [*front, len(front) + 1, len(front)] != []


def _turn(graph: gs.Graph, node: gs.Node) -> None:
    """Put a matrix between Transposes on the right, and these away."""
    first, last = node.inputs[1].inputs[0], node.outputs[0].outputs[0]
    weight = node.inputs[0]
    turned = gs.Constant(unused_name(graph, f"{weight.name}/turned"), weight.values.T.copy())
    node.inputs = [first.inputs[0], turned]
    if is_standard(last, "Add"):
        slot = next(n for n, tensor in enumerate(last.inputs) if is_dense(tensor))
        column = last.inputs[slot]
        row = gs.Constant(unused_name(graph, f"{column.name}/turned"), column.values.reshape(-1))
        last.inputs[slot] = row
        end, last = last, last.outputs[0].outputs[0]
    else:
        end = node
    result = last.outputs[0]
    remove(graph, last)
    end.outputs = [result]
    if not (first.outputs[0].outputs or is_output(graph, first.outputs[0])):
        remove(graph, first)


def _is_matrix(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a stored matrix of numbers that a fit computes in."""
    if not is_dense(tensor) or len(tensor.shape) != 2 or 0 in tensor.shape:
        return False
    return constants.element_type(tensor) in constants.COMPUTED


def _product(node: gs.Node, shapes: KnownShapes) -> _Product | None:
    """Read a node as the product of a stored matrix, if it is one that is rewritten."""
    matrices = [slot for slot, tensor in enumerate(node.inputs) if _is_matrix(tensor)]
    if len(node.inputs) != 2 or len(matrices) != 1:
        return None
    data = 1 - matrices[0]
    if node.op == "MatMul":
        is_left = data == 1 and len(shapes.get(node.inputs[1].name, ())) == 3
        return _Product(node, 1, turned=True, last=False) if is_left else None
    text = str(node.attrs.get("equation", "")).replace(" ", "")
    parts = re.fullmatch(r"((?:\.\.\.)?[a-zA-Z]+),((?:\.\.\.)?[a-zA-Z]+)->(.*)", text)
    if parts is None:
        return None
    x, w, y = parts.group(1 + data), parts.group(2 - data), parts.group(3)
    letters = x.removeprefix("...")
    summed = (set(letters) & set(w)) - set(y)
    if not w.isalpha() or len(set(w)) != 2 or len(w) != 2 or len(summed) != 1:
        return None
    (inner,) = summed
    outer = w.replace(inner, "")
    if outer in x or len(set(letters)) != len(letters) or y != x.replace(inner, outer):
        return None
    last = letters.endswith(inner) and len(x) > 1
    if last or (len(x) == 3 and x[1] == inner and letters == x):
        return _Product(node, data, turned=w[0] == outer, last=last)
    return None


def _rewrite(graph: gs.Graph, product: _Product) -> bool:
    """Rewrite a node in place; return whether it could be."""
    node, data = product.node, product.node.inputs[product.data]
    weight: gs.Constant = node.inputs[1 - product.data]
    stays = product.last and not product.turned
    read_elsewhere = [id(reader) for reader in weight.outputs] != [id(node)]
    if not stays and (read_elsewhere or is_output(graph, weight)):
        return False
    if not product.last and constants.element_type(weight) != onnx.TensorProto.FLOAT:
        return False
    if not stays:
        matrix = weight.values if product.turned != product.last else weight.values.T
        stored = np.ascontiguousarray(matrix if product.last else matrix[..., np.newaxis])
        weight = gs.Constant(unused_name(graph, f"{weight.name}/stored"), stored)
    node.op, node.attrs = ("MatMul", {}) if product.last else ("Conv", {"kernel_shape": [1]})
    node.inputs = [data, weight]
    return True
