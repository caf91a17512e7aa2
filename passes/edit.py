"""The steps that rewriting a graph consists of: nodes leave, readers change, constants change."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis import constants


def remove(graph: gs.Graph, *nodes: gs.Node) -> None:
    """Take nodes out of their graph; what they read and wrote stays behind, unconnected."""
    gone = {id(node) for node in nodes}
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in gone]
    for node in nodes:
        detach(node)


def detach(node: gs.Node) -> None:
    """Unconnect a node from what it reads and writes; it is still listed in its graph."""
    node.outputs.clear()
    node.inputs.clear()


def replace_reads(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let all that read one tensor read another."""
    for reader in list(old.outputs):
        for slot, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[slot] = new


def overwrite(constant: gs.Constant, values: NDArray[np.float64]) -> None:
    """Store other values of the same number, in the shape and the type that the constant has."""
    kind = constants.element_type(constant)
    new = constants.make(constant.name, values.reshape(constant.shape), kind)
    # Of bfloat16, which NumPy has no type for, these are not loaded.
    constant.values = new._values
