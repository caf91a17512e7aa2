"""What is asked of any node or tensor of a graph."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence

import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import SparseValues


def node_name(node: gs.Node) -> str:
    """Name of a node, or of its first output where it has none (names are optional in ONNX)."""
    return str(node.name or node.outputs[0].name)


def index_of(graph: gs.Graph, node: gs.Node) -> int:
    """Position of a node in the graph's list, by identity (node equality compares contents)."""
    return next(i for i, candidate in enumerate(graph.nodes) if candidate is node)


def is_standard(node: gs.Node, *ops: str) -> bool:
    """Whether a node is one of some ONNX operators, not its namesake of another domain."""
    return bool(node.op in ops) and node.domain in (None, "", "ai.onnx")


def is_dense(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant that is stored in full (reading a sparse one unpacks it)."""
    return isinstance(tensor, gs.Constant) and not isinstance(tensor._values, SparseValues)


def has_input(node: gs.Node, slot: int) -> bool:
    """Whether a node has an input at a slot; optional ones may be left out, trailing or not."""
    return slot < len(node.inputs) and not node.inputs[slot].is_empty()


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether a tensor is an output of the graph."""
    return any(output is tensor for output in graph.outputs)


def sole_reader(graph: gs.Graph, tensor: gs.Tensor, in_bodies: Collection[int]) -> gs.Node | None:
    """Return the node that alone reads a tensor, in the graph itself and not in a body of it.

    Args:
        graph: the graph.
        tensor: one of its tensors.
        in_bodies: see ``nodes_in_bodies``.
    """
    if len(tensor.outputs) != 1 or is_output(graph, tensor):
        return None
    reader = tensor.outputs[0]
    return None if id(reader) in in_bodies else reader


def only_nodes_read(graph: gs.Graph, tensor: gs.Tensor, in_bodies: Collection[int]) -> bool:
    """Whether no body and no output of the graph reads a tensor.

    Args:
        graph: the graph.
        tensor: one of its tensors.
        in_bodies: see ``nodes_in_bodies``.
    """
    return not (is_output(graph, tensor) or any(id(node) in in_bodies for node in tensor.outputs))


def nodes_in_bodies(graph: gs.Graph) -> set[int]:
    """Return the nodes in bodies of a graph, at any depth, by identity; no pass touches them."""
    found = (body for node in graph.nodes for body in bodies(node))
    return {id(node) for body in found for node in all_nodes(body.nodes)}


def all_nodes(nodes: Iterable[gs.Node]) -> Iterator[gs.Node]:
    """Yield nodes and those of their bodies, at any depth."""
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from all_nodes(body.nodes)


def input_dependent(graph: gs.Graph) -> set[int]:
    """Return the tensors that depend on an input of a graph, by identity.

    All that a node with bodies computes counts among them, since a body may read any tensor of the
    graph, and so does a tensor that no node of the graph computes.
    """
    found = {id(tensor) for tensor in graph.inputs}
    for node in graph.nodes:
        depends = any(id(t) in found or _has_no_source(t) for t in node.inputs)
        if depends or bodies(node):
            found.update(id(tensor) for tensor in node.outputs)
            found.update(id(t) for t in node.inputs if _has_no_source(t))
    return found


def _has_no_source(tensor: gs.Tensor) -> bool:
    return not (isinstance(tensor, gs.Constant) or tensor.inputs or tensor.is_empty())


def bodies(node: gs.Node) -> list[gs.Graph]:
    """Return the subgraphs of a control flow node (If, Loop, Scan)."""
    return [value for value in node.attrs.values() if isinstance(value, gs.Graph)]


def unused_name(graph: gs.Graph, name: str) -> str:
    """Return the name, or one made from it, that no tensor of the graph or its bodies has."""
    taken = {tensor.name for tensor in _tensors(graph)}
    while name in taken:
        name += "_"
    return name


def name_of_new(graph: gs.Graph, name: str, gone: Collection[gs.Node] = ()) -> str:
    """Return a name for a new node; "" where another node has it.

    Names of nodes are optional, but no two may be the same: ONNX Runtime refuses such a graph.

    Args:
        graph: where the node is put.
        name: what it would be called.
        gone: nodes that leave the graph for it.
    """
    away = set(map(id, gone))
    taken = any(node.name == name for node in graph.nodes if id(node) not in away)
    return "" if taken else name


def is_vector(shape: Sequence[int]) -> bool:
    """Whether a shape has values along its last axis only."""
    return math.prod(shape[:-1]) == 1


def _tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    yield from graph.inputs
    yield from graph.outputs
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs
        for body in bodies(node):
            yield from _tensors(body)
