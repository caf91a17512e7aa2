"""Put explicit 1x1 adapters behind linear nodes. This changes the function of the graph.

::

    before:  x ──▶ Conv ──▶ y ──▶ readers
    after:   x ──▶ Conv ──▶ y/unadapted ──▶ Conv 1x1 (Q, c) ──▶ y ──▶ readers

The adapter takes over the name of the block output, so no reader, and no output of the graph, has
to change. FSKD calls it the added 1x1 convolution ("pointwise", Li et al. 2020, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.linear_operators import LINEAR_OPERATORS
from fskd_onnx.passes.analysis.nodes import index_of, name_of_new, unused_name
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.errors import PreconditionError

# Not just "/adapter": networks have layers of their own that are called so.
ADAPTER_SUFFIX = "/fskd_adapter"


@dataclass(frozen=True)
class InsertAdapter(Pass):
    """Insert one adapter behind each of the named linear nodes.

    Attributes:
        adapters: map of the block output for each node, by the node's name (its output's, where it
            has none of its own).
    """

    adapters: Mapping[str, AffineMap]

    def requires(self, graph: gs.Graph) -> None:
        """Check that every named node is there, linear, and of the adapter's groups and width."""
        linears = {
            linear.name: linear for linear in find_linear(graph) if isinstance(linear, Linear)
        }
        for name, adapter in self.adapters.items():
            linear = linears.get(name)
            if linear is None:
                msg = f"the graph has no linear node '{name}' to insert an adapter behind"
                raise PreconditionError(msg)
            n = linear.width // linear.groups
            if adapter.shape != (linear.groups, n, n):
                msg = (
                    f"the adapter of '{name}' is {adapter.shape}; "
                    f"the node needs {(linear.groups, n, n)}"
                )
                raise PreconditionError(msg)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Insert in place; return one note per adapter."""
        notes = []
        for linear in find_linear(graph):
            if isinstance(linear, Linear) and linear.name in self.adapters:
                _insert(graph, linear, self.adapters[linear.name])
                notes.append(f"adapter inserted behind '{linear.name}'")
        return notes


def _insert(graph: gs.Graph, linear: Linear, adapter: AffineMap) -> None:
    name, output, dtype = linear.name + ADAPTER_SUFFIX, linear.output, linear.dtype
    last = linear.last_node
    raw = gs.Variable(unused_name(graph, f"{output.name}/unadapted"), output.dtype)
    last.outputs = [raw]
    op, spatial_axes = linear.operator.adapter, len(linear.kernel_shape)
    operator = LINEAR_OPERATORS[op]
    attributes = operator.pointwise_attributes(linear.groups, spatial_axes)
    node = gs.Node(op, name_of_new(graph, name), attributes)
    stored = operator.stored(node, adapter.matrix, (1,) * spatial_axes)
    values = np.asarray(stored, dtype, order="C")
    weight = gs.Constant(unused_name(graph, f"{name}/weight"), values)
    shift = adapter.shift.reshape(-1).astype(dtype)
    bias = gs.Constant(unused_name(graph, f"{name}/bias"), shift)
    at = index_of(graph, last) + 1
    graph.nodes.insert(at, node)
    if operator.bias_input is not None:
        node.inputs, node.outputs = [raw, weight, bias], [output]
        return
    product = gs.Variable(unused_name(graph, f"{name}/product"), output.dtype)
    node.inputs, node.outputs = [raw, weight], [product]
    name = name_of_new(graph, f"{name}/add")
    graph.nodes.insert(at + 1, gs.Node("Add", name, {}, [product, bias], [output]))
