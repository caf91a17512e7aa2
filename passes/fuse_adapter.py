"""Merge explicit adapters into the linear nodes in front of them. The function must not change.

With y = W p + b, the adapter's Q y + c is again linear in the patch p, group by group::

    W' = Q W,   b' = Q b + c

computed in float64 and cast once. The paper merges the weights the same way (Li et al. 2020,
section 3.2); the bias is ours to carry along.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fskd_onnx.passes.base import Pass, PostconditionError, PreconditionError
from fskd_onnx.passes.insert_adapter import ADAPTER_SUFFIX
from fskd_onnx.passes.linear import CONVOLUTIONS, Linear, find_linear
from fskd_onnx.passes.nodes import remove


class FuseAdapter(Pass):
    """Merge every adapter that ``InsertAdapter`` put into the graph, and take it out again."""

    def requires(self, graph: gs.Graph) -> None:
        """Check that each adapter is the only reader of a linear node whose weights are its own."""
        for adapter in _adapters(graph):
            _host(graph, adapter)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Merge in place; return one note per adapter."""
        notes = []
        for adapter in _adapters(graph):
            host = _host(graph, adapter)
            matrix = adapter.matrix @ host.matrix
            bias = (adapter.matrix @ host.bias.reshape(host.groups, -1, 1)).reshape(-1)
            bias += adapter.bias
            name, output = adapter.name, adapter.output
            for node in filter(None, (adapter.node, adapter.bias_node)):
                remove(graph, node)
            (host.bias_node or host.node).outputs = [output]
            host.write(graph, matrix, bias)
            notes.append(f"adapter '{name}' fused into the node in front of it")
        return notes

    def ensures(self, graph: gs.Graph) -> None:
        """Check that no adapter is left."""
        if left := _adapters(graph):
            msg = f"adapter '{left[0].name}' was left in the graph"
            raise PostconditionError(msg)


def _adapters(graph: gs.Graph) -> list[Linear]:
    return [
        linear
        for linear in find_linear(graph)
        if isinstance(linear, Linear) and linear.name.endswith(ADAPTER_SUFFIX)
    ]


def _host(graph: gs.Graph, adapter: Linear) -> Linear:
    """Return the linear node that an adapter can be merged into."""
    raw = adapter.input
    producers = [
        linear
        for linear in find_linear(graph)
        if isinstance(linear, Linear) and linear.output is raw
    ]
    if not producers:
        msg = f"adapter '{adapter.name}' has no linear node in front of it"
        raise PreconditionError(msg)
    host = producers[0]
    if len(raw.outputs) != 1 or any(output is raw for output in graph.outputs):
        msg = f"the output of '{host.name}' is read by more than its adapter"
        raise PreconditionError(msg)
    if host.shared_with is not None:
        msg = f"the weights of '{host.name}' are also those of '{host.shared_with}'"
        raise PreconditionError(msg)
    if not _is_pointwise(adapter) or (adapter.op == "Conv") != (host.op in CONVOLUTIONS):
        msg = f"adapter '{adapter.name}' is not a 1x1 layer for '{host.name}'"
        raise PreconditionError(msg)
    n = host.width // host.groups
    if adapter.matrix.shape != (host.groups, n, n):
        msg = (
            f"adapter '{adapter.name}' has the shape {adapter.matrix.shape}; "
            f"'{host.name}' needs {(host.groups, n, n)}"
        )
        raise PreconditionError(msg)
    return host


def _is_pointwise(adapter: Linear) -> bool:
    attrs = adapter.node.attrs
    ones = (*adapter.kernel_shape, *attrs.get("strides", ()))
    return all(extent == 1 for extent in ones) and not any(attrs.get("pads", ()))
