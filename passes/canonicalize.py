"""Bring a graph into the form that the other passes read: constants as initializers, no foldable BN.

An inference BatchNormalization behind a linear node is an affine map per channel, so it merges into
the node exactly (in exact arithmetic)::

    y = gamma * (W p + b - mean) / sqrt(var + eps) + beta
    W' = s W,  b' = s (b - mean) + beta,   with s = gamma / sqrt(var + eps)

The adapter of a block has to sit behind its BatchNormalization: one in front of it would have to
pass through s, which scales channels and does not commute with a matrix that mixes them.
A node without a bias needs none put in: ``Linear.bias`` reads zeros and ``Linear.write`` adds one.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from fskd_onnx.passes.base import Pass, PostconditionError
from fskd_onnx.passes.linear import LINEAR_OPS, Linear, node_name, remove, view
from numpy.typing import NDArray

_CONSTANT_SCALARS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


class Canonicalize(Pass):
    """Constant nodes become initializers; BatchNormalization is folded into the linear node before it.

    A BatchNormalization that cannot be folded (statistics that are computed, a weight or an output
    that somebody else reads) stays as it is.
    """

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per node that went away."""
        return _constants_to_initializers(graph) + _fold_batch_normalization(graph)

    def ensures(self, graph: gs.Graph) -> None:
        """Check that no foldable node is left over."""
        outputs = {id(tensor) for tensor in graph.outputs}
        for node in graph.nodes:
            if _foldable(node, outputs) is not None:
                msg = f"BatchNormalization '{node_name(node)}' was left unfolded"
                raise PostconditionError(msg)


def _constants_to_initializers(graph: gs.Graph) -> list[str]:
    notes = []
    outputs = {id(tensor) for tensor in graph.outputs}
    for node in list(graph.nodes):
        values = _constant_values(node)
        # The output of a graph has to come from a node in old opsets, so such a Constant stays.
        if values is None or id(node.outputs[0]) in outputs:
            continue
        name = node.outputs[0].name
        _replace_reads(node.outputs[0], gs.Constant(name, values))
        remove(graph, node)
        notes.append(f"Constant '{name}' became an initializer")
    return notes


def _constant_values(node: gs.Node) -> NDArray[np.generic] | None:
    if node.op != "Constant" or node.domain not in (None, "", "ai.onnx"):
        return None
    if isinstance(node.attrs.get("value"), gs.Constant):
        return node.attrs["value"].values.copy()
    for attribute, dtype in _CONSTANT_SCALARS.items():
        if attribute in node.attrs:
            return np.array(node.attrs[attribute], dtype=dtype)
    return None


def _fold_batch_normalization(graph: gs.Graph) -> list[str]:
    notes = []
    outputs = {id(tensor) for tensor in graph.outputs}
    for node in list(graph.nodes):
        linear = _foldable(node, outputs)
        if linear is None:
            continue
        gamma, beta, mean, variance = (
            np.asarray(constant.values, dtype=np.float64) for constant in node.inputs[1:5]
        )
        scale = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
        matrix = linear.matrix * scale.reshape(linear.groups, -1, 1)
        bias = scale * (linear.bias - mean) + beta
        # The folded node takes the name of the BatchNormalization's output, so no reader changes.
        result = node.outputs[0]
        remove(graph, node)
        linear.node.outputs = [result]
        Linear(linear.node).write(graph, matrix, bias)
        notes.append(f"BatchNormalization '{node_name(node)}' folded into '{linear.name}'")
    return notes


def _foldable(node: gs.Node, graph_outputs: set[int]) -> Linear | None:
    """Return the linear node that a BatchNormalization can be folded into."""
    if node.op != "BatchNormalization" or node.attrs.get("training_mode", 0):
        return None
    if len(node.outputs) != 1 or not all(isinstance(t, gs.Constant) for t in node.inputs[1:5]):
        return None
    source = node.inputs[0]
    if len(source.inputs) != 1 or len(source.outputs) != 1 or id(source) in graph_outputs:
        return None
    producer = source.inputs[0]
    # BatchNormalization counts channels on axis 1, MatMul on the last: the same only for matrices.
    if producer.op not in LINEAR_OPS or producer.op == "MatMul":
        return None
    linear = view(producer)
    return linear if isinstance(linear, Linear) and linear.shared_with is None else None


def _replace_reads(old: gs.Tensor, new: gs.Tensor) -> None:
    for reader in list(old.outputs):
        for slot, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[slot] = new
