"""Bring a graph into the form that the other passes read: weights as initializers, no foldable BN.

An inference BatchNormalization behind a linear node is an affine map per channel, so it merges into
the node exactly (in exact arithmetic)::

    y = gamma * (W p + b - mean) / sqrt(var + eps) + beta
    W' = s W,  b' = s (b - mean) + beta,   with s = gamma / sqrt(var + eps)

The adapter of a block has to sit behind its BatchNormalization: one in front of it would have to
pass through s, which scales channels and does not commute with a matrix that mixes them.
A node without a bias needs none put in: ``Linear.bias`` reads zeros and ``Linear.write`` adds one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.base import Pass, PostconditionError
from fskd_onnx.passes.linear import (
    Linear,
    find_linear,
    is_dense,
    is_standard,
    node_name,
    remove,
)

_CONSTANT_SCALARS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
# Older ones had a mode of training as their default.
_OPSET_OF_INFERENCE = 7


class Canonicalize(Pass):
    """Make initializers of Constant nodes; fold BatchNormalization into the linear node before it.

    A BatchNormalization that cannot be folded (statistics that are computed, a weight or an output
    that somebody else reads) stays as it is. So does a Constant whose output leaves the graph, or
    is read in the body of an If or Loop.
    """

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per node that went away."""
        return _constants_to_initializers(graph) + _fold_batch_normalization(graph)

    def ensures(self, graph: gs.Graph) -> None:
        """Check that no foldable node is left over."""
        blocks = _blocks(graph)
        for node in graph.nodes:
            if _foldable(graph, node, blocks) is not None:
                msg = f"BatchNormalization '{node_name(node)}' was left unfolded"
                raise PostconditionError(msg)


def _constants_to_initializers(graph: gs.Graph) -> list[str]:
    notes = []
    outputs = {id(tensor) for tensor in graph.outputs}
    inside = {id(node) for node in graph.nodes}
    for node in list(graph.nodes):
        values = _constant_values(node)
        if values is None:
            continue
        output = node.outputs[0]
        # The output of a graph has to come from a node in old opsets. What a body reads has to
        # keep its name in the outer graph, which forgets an initializer that only bodies read.
        if id(output) in outputs or any(id(reader) not in inside for reader in output.outputs):
            continue
        _replace_reads(output, gs.Constant(output.name, values))
        remove(graph, node)
        notes.append(f"Constant '{output.name}' became an initializer")
    return notes


def _constant_values(node: gs.Node) -> NDArray[np.generic] | None:
    """Return the numbers of a Constant node; None for strings and types that NumPy lacks."""
    if not is_standard(node, "Constant"):
        return None
    value = node.attrs.get("value")
    if value is not None and is_dense(value) and _is_native(value.dtype):
        return np.array(value.values)
    for attribute, dtype in _CONSTANT_SCALARS.items():
        if attribute in node.attrs:
            return np.array(node.attrs[attribute], dtype=dtype)
    return None


def _is_native(dtype: object) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "biufc"


def _fold_batch_normalization(graph: gs.Graph) -> list[str]:
    notes = []
    blocks = _blocks(graph)
    for node in list(graph.nodes):
        linear = _foldable(graph, node, blocks)
        if linear is None:
            continue
        notes.append(f"BatchNormalization '{node_name(node)}' folded into '{linear.name}'")
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
        linear.write(graph, matrix, bias)
        blocks[id(result)] = linear
    return notes


def _blocks(graph: gs.Graph) -> dict[int, Linear]:
    """Return the linear nodes that a BatchNormalization could be folded into, by their outputs.

    BatchNormalization counts channels on axis 1, MatMul on the last: the same only for matrices.
    """
    views = (view for view in find_linear(graph) if isinstance(view, Linear))
    return {id(view.output): view for view in views if view.op != "MatMul"}


def _foldable(graph: gs.Graph, node: gs.Node, blocks: Mapping[int, Linear]) -> Linear | None:
    """Return the linear node that a BatchNormalization can be folded into."""
    if not is_standard(node, "BatchNormalization") or graph.opset < _OPSET_OF_INFERENCE:
        return None
    if node.attrs.get("training_mode", 0) or any(not t.is_empty() for t in node.outputs[1:]):
        return None
    source = node.inputs[0]
    linear = blocks.get(id(source))
    if linear is None or linear.shared_with is not None:
        return None
    if len(source.outputs) != 1 or any(output is source for output in graph.outputs):
        return None
    # One value per channel; before opset 9 (``spatial`` = 0) there could be one per position.
    per_channel = all(
        is_dense(constant) and tuple(constant.shape) == (linear.width,)
        for constant in node.inputs[1:5]
    )
    return linear if per_channel else None


def _replace_reads(old: gs.Tensor, new: gs.Tensor) -> None:
    for reader in list(old.outputs):
        for slot, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[slot] = new
