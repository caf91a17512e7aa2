"""Merge explicit adapters into the linear nodes in front of them. The function must not change.

With y = W p + b, the adapter's Q y + c is again linear in the patch p, group by group::

    W' = Q W,   b' = Q b + c

computed in float64 and cast once. The paper merges the weights the same way (Li et al. 2020,
section 3.2); the bias is ours to carry along.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.geometry import is_pointwise
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import node_name
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.edit import remove
from fskd_onnx.passes.errors import PostconditionError, PreconditionError
from fskd_onnx.passes.insert_adapter import ADAPTER_SUFFIX
from fskd_onnx.passes.write_weights import write_weights


class FuseAdapter(Pass):
    """Merge every adapter that ``InsertAdapter`` put into the graph, and take it out again."""

    def requires(self, graph: gs.Graph) -> None:
        """Check that each adapter is the only reader of a linear node whose weights are its own."""
        for adapter, front in _adapters(graph):
            _block(graph, adapter, front)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Merge in place; return one note per adapter."""
        notes = []
        # An adapter may follow another one, so the rest is viewed anew once one is merged.
        while found := _adapters(graph):
            adapter, front = found[0]
            notes.append(f"adapter '{adapter.name}' fused into the node in front of it")
            _merge(graph, adapter, _block(graph, adapter, front))
        return notes

    def ensures(self, graph: gs.Graph) -> None:
        """Check that no adapter is left."""
        if found := _adapters(graph):
            msg = f"adapter '{found[0][0].name}' was left in the graph"
            raise PostconditionError(msg)


def _adapters(graph: gs.Graph) -> list[tuple[Linear, Linear | None]]:
    """Return the adapters of a graph, each with the linear node in front of it, if that is one."""
    if not any(node_name(node).endswith(ADAPTER_SUFFIX) for node in graph.nodes):
        return []
    views = [view for view in find_linear(graph) if isinstance(view, Linear)]
    producers = {id(view.output): view for view in views}
    return [
        (view, producers.get(id(view.input)))
        for view in views
        if view.name.endswith(ADAPTER_SUFFIX)
    ]


def _merge(graph: gs.Graph, adapter: Linear, block: Linear) -> None:
    """Put an adapter into the linear node in front of it."""
    merged = adapter.affine.after(block.affine)
    output = adapter.output
    remove(graph, *filter(None, (adapter.node, adapter.bias_node)))
    block.last_node.outputs = [output]
    write_weights(graph, block, merged)


def _block(graph: gs.Graph, adapter: Linear, front: Linear | None) -> Linear:
    """Return the linear node in front of an adapter, if the adapter can be merged into it."""
    if front is None:
        msg = f"adapter '{adapter.name}' has no linear node in front of it"
        raise PreconditionError(msg)
    # The adapter is a reader, and not in a body.
    if front.sole_reader(graph, in_bodies=()) is None:
        msg = f"the output of '{front.name}' is read by more than its adapter"
        raise PreconditionError(msg)
    if front.shared_with is not None:
        msg = f"the weights of '{front.name}' are also those of '{front.shared_with}'"
        raise PreconditionError(msg)
    if not is_pointwise(adapter) or adapter.op != front.operator.adapter:
        msg = f"adapter '{adapter.name}' is not a 1x1 layer for '{front.name}'"
        raise PreconditionError(msg)
    n = front.width // front.groups
    if adapter.shape != (front.groups, n, n):
        msg = (
            f"adapter '{adapter.name}' has the shape {adapter.shape}; "
            f"'{front.name}' needs {(front.groups, n, n)}"
        )
        raise PreconditionError(msg)
    return front
