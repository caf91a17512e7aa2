"""Products of a stored matrix that are written as Einsum, or with the matrix on the left.

A matrix W that is applied to the last axis is a MatMul. One that is applied to the axis behind the
samples is a convolution with a kernel of one position, as it is when channels are on axis 1::

    Einsum "btc,cd->btd" (x, W)        MatMul (x, W)
    Einsum "btc,dc->btd" (x, W)        MatMul (x, W')
    MatMul (W, x), x (N, C, T)         Conv (x, W), W (D, C, 1)
    Einsum "bct,dc->bdt" (x, W)        the same
"""

from __future__ import annotations

import re
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
    unused_name,
)
from fskd_onnx.passes.analysis.shapes import KnownShapes
from fskd_onnx.passes.base import Pass


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
        notes = []
        for node in candidates:
            product = _product(node, shapes)
            if product is None or id(node.inputs[product.data]) not in dependent:
                continue
            if _rewrite(graph, product):
                notes.append(f"'{node_name(node)}' written as {node.op}")
        return notes


def _product(node: gs.Node, shapes: KnownShapes) -> _Product | None:
    """Read a node as the product of a stored matrix, if it is one that is rewritten."""
    matrices = [n for n, t in enumerate(node.inputs) if is_dense(t) and len(t.shape) == 2]
    if len(node.inputs) != 2 or len(matrices) != 1 or 0 in node.inputs[matrices[0]].shape:
        return None
    data = 1 - matrices[0]
    if constants.element_type(node.inputs[matrices[0]]) not in constants.COMPUTED:
        return None
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
