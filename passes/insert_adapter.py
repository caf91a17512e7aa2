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
from fskd_onnx.passes.base import Pass, PreconditionError
from fskd_onnx.passes.linear import Linear, find_linear, index_of
from numpy.typing import NDArray

ADAPTER_SUFFIX = "/adapter"


@dataclass(frozen=True)
class Adapter:
    """A linear map of a block's output channels: ``y' = Q y + c``, group by group.

    Attributes:
        matrix: Q as (groups, n, n).
        shift: c as (groups * n,).
    """

    matrix: NDArray[np.float64]
    shift: NDArray[np.float64]

    @staticmethod
    def identity(groups: int, width: int) -> Adapter:
        """Return the adapter that changes nothing, for ``width`` channels over all groups."""
        n = width // groups
        return Adapter(np.tile(np.eye(n), (groups, 1, 1)), np.zeros(width))


class InsertAdapter(Pass):
    """Insert one adapter behind each of the named linear nodes.

    Args:
        adapters: adapter for each node, by the node's name (its output's, where it has none).
    """

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        self.adapters = dict(adapters)

    def requires(self, graph: gs.Graph) -> None:
        """Check that every named node is there, is linear, and has the adapter's groups and width."""
        linears = {
            linear.name: linear for linear in find_linear(graph) if isinstance(linear, Linear)
        }
        for name, adapter in self.adapters.items():
            linear = linears.get(name)
            if linear is None:
                msg = f"the graph has no linear node '{name}' to insert an adapter behind"
                raise PreconditionError(msg)
            n = linear.width // linear.groups
            if adapter.matrix.shape != (linear.groups, n, n) or adapter.shift.shape != (
                linear.width,
            ):
                msg = (
                    f"the adapter of '{name}' is {adapter.matrix.shape} with a shift of "
                    f"{adapter.shift.shape}; the node needs {(linear.groups, n, n)} and "
                    f"{(linear.width,)}"
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


def _insert(graph: gs.Graph, linear: Linear, adapter: Adapter) -> None:
    output = linear.output
    last = output.inputs[0]
    raw = gs.Variable(f"{output.name}/unadapted", output.dtype, output.shape)
    last.outputs = [raw]
    name = linear.name + ADAPTER_SUFFIX
    dtype = linear.weight.dtype
    bias = gs.Constant(f"{name}/bias", adapter.shift.astype(dtype))
    at = index_of(graph, last) + 1
    if linear.op == "Conv":
        kernel = (1,) * len(linear.kernel_shape)
        matrix = adapter.matrix.reshape(linear.width, -1, *kernel)
        weight = gs.Constant(f"{name}/weight", matrix.astype(dtype))
        attrs = {"group": linear.groups, "kernel_shape": list(kernel)}
        graph.nodes.insert(at, gs.Node("Conv", name, attrs, [raw, weight, bias], [output]))
        return
    weight = gs.Constant(f"{name}/weight", np.ascontiguousarray(adapter.matrix[0].T, dtype=dtype))
    product = gs.Variable(f"{name}/product", output.dtype, output.shape)
    graph.nodes.insert(at, gs.Node("MatMul", name, {}, [raw, weight], [product]))
    graph.nodes.insert(at + 1, gs.Node("Add", f"{name}/add", {}, [product, bias], [output]))
