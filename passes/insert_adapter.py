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
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.linear import CONVOLUTIONS, Linear, find_linear
from fskd_onnx.passes.analysis.nodes import index_of, unused_name
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
    name, output = linear.name + ADAPTER_SUFFIX, linear.output
    last = output.inputs[0]
    raw = gs.Variable(unused_name(graph, f"{output.name}/unadapted"), output.dtype)
    last.outputs = [raw]
    dtype = linear.dtype
    weight = gs.Constant(unused_name(graph, f"{name}/weight"), _stored(linear, adapter, dtype))
    bias = gs.Constant(unused_name(graph, f"{name}/bias"), adapter.shift.reshape(-1).astype(dtype))
    at = index_of(graph, last) + 1
    if linear.op in CONVOLUTIONS:
        kernel = [1] * len(linear.kernel_shape)
        attrs = {"group": linear.groups, "kernel_shape": kernel}
        graph.nodes.insert(at, gs.Node("Conv", name, attrs, [raw, weight, bias], [output]))
        return
    product = gs.Variable(unused_name(graph, f"{name}/product"), output.dtype)
    graph.nodes.insert(at, gs.Node("MatMul", name, {}, [raw, weight], [product]))
    graph.nodes.insert(at + 1, gs.Node("Add", f"{name}/add", {}, [product, bias], [output]))


def _stored(linear: Linear, adapter: AffineMap, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the adapter's matrix as the weight of a 1x1 Conv, or of a MatMul."""
    if linear.op not in CONVOLUTIONS:
        return np.ascontiguousarray(adapter.matrix[0].T, dtype=dtype)
    kernel = (1,) * len(linear.kernel_shape)
    return adapter.matrix.reshape(linear.width, -1, *kernel).astype(dtype)
