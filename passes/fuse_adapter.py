"""Merge explicit adapters into the linear nodes in front of them. The function must not change.

With y = W p + b, the adapter's Q y + c is again linear in the patch p, group by group::

    W' = Q W,   b' = Q b + c

computed in float64 and cast once. The paper merges the weights the same way (Li et al. 2020,
section 3.2); the bias is ours to carry along. Nodes that use the same weights have equal adapters,
of which one is merged into these weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.geometry import is_pointwise
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import node_name
from fskd_onnx.passes.analysis.shared_weights import find_uses, who_else_reads
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.edit import remove
from fskd_onnx.passes.errors import PostconditionError, PreconditionError
from fskd_onnx.passes.insert_adapter import ADAPTER_SUFFIX
from fskd_onnx.passes.write_weights import write_weights


class FuseAdapter(Pass):
    """Merge every adapter that ``InsertAdapter`` put into the graph, and take it out again."""

    def requires(self, graph: gs.Graph) -> None:
        """Check that each adapter fits the linear node in front, and all that use its weights."""
        _blocks(graph)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Merge in place; return one note per adapter."""
        notes = []
        # An adapter may follow another one, so the rest is viewed anew once one is merged.
        while blocks := _blocks(graph):
            notes += [
                f"adapter '{adapter.name}' fused into the node in front of it"
                for adapter, _ in blocks[0]
            ]
            _merge(graph, blocks[0])
        return notes

    def ensures(self, graph: gs.Graph) -> None:
        """Check that no adapter is left."""
        if found := _adapters(_linears(graph)):
            msg = f"adapter '{found[0][0].name}' was left in the graph"
            raise PostconditionError(msg)


Adapted = tuple[Linear, Linear]
"""An adapter, and the linear node in front of it."""


def _linears(graph: gs.Graph) -> list[Linear]:
    """Return the linear nodes of a graph with adapters; none of one without."""
    if not any(node_name(node).endswith(ADAPTER_SUFFIX) for node in graph.nodes):
        return []
    return [view for view in find_linear(graph) if isinstance(view, Linear)]


def _adapters(linears: Sequence[Linear]) -> list[tuple[Linear, Linear | None]]:
    """Return the adapters among linear nodes, each with the node in front, if that is one."""
    producers = {id(view.output): view for view in linears}
    return [
        (view, producers.get(id(view.input)))
        for view in linears
        if view.name.endswith(ADAPTER_SUFFIX)
    ]


def _blocks(graph: gs.Graph) -> list[list[Adapted]]:
    """Return the adapters of a graph, those behind all uses of one block together.

    Raises:
        PreconditionError: an adapter cannot be merged.
    """
    linears = _linears(graph)
    uses = find_uses(linears)
    found = [(adapter, _front(graph, adapter, front)) for adapter, front in _adapters(linears)]
    behind = {front.name: adapter for adapter, front in found}
    blocks = []
    for adapter, front in found:
        if front.name not in uses:
            msg = f"the weights of '{front.name}' {who_else_reads(front, linears)}"
            raise PreconditionError(msg)
        for use in uses[front.name]:
            if use.name not in behind or not behind[use.name].affine.equals(adapter.affine):
                msg = (
                    f"the weights of '{front.name}' are also those of '{use.name}', "
                    "which has not the same adapter"
                )
                raise PreconditionError(msg)
        if uses[front.name][0] is front:
            blocks.append([(behind[use.name], use) for use in uses[front.name]])
    return blocks


def _merge(graph: gs.Graph, adapted: Sequence[Adapted]) -> None:
    """Put the equal adapters of a block into the weights that its uses read."""
    (first, front), *_ = adapted
    merged = first.affine.after(front.affine)
    for adapter, use in adapted:
        output = adapter.output
        remove(graph, *filter(None, (adapter.node, adapter.bias_node)))
        use.last_node.outputs = [output]
    write_weights(graph, front, merged, [use for _, use in adapted[1:]])


def _front(graph: gs.Graph, adapter: Linear, front: Linear | None) -> Linear:
    """Return the linear node in front of an adapter, if it is of the adapter's shape."""
    if front is None:
        msg = f"adapter '{adapter.name}' has no linear node in front of it"
        raise PreconditionError(msg)
    # The adapter is a reader, and not in a body.
    if front.sole_reader(graph, in_bodies=()) is None:
        msg = f"the output of '{front.name}' is read by more than its adapter"
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
