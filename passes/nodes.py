"""What passes ask of any node or tensor of a graph, and what they do to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import SparseValues


def node_name(node: gs.Node) -> str:
    """Name of a node, or of its first output where it has none (names are optional in ONNX)."""
    return str(node.name or node.outputs[0].name)


def index_of(graph: gs.Graph, node: gs.Node) -> int:
    """Position of a node in the graph's list, by identity (node equality compares contents)."""
    return next(i for i, candidate in enumerate(graph.nodes) if candidate is node)


def remove(graph: gs.Graph, node: gs.Node) -> None:
    """Take a node out of its graph; what it read and wrote stays behind, unconnected."""
    del graph.nodes[index_of(graph, node)]
    node.outputs.clear()
    node.inputs.clear()


def replace_reads(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let all that read one tensor read another."""
    for reader in list(old.outputs):
        for slot, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[slot] = new


def is_standard(node: gs.Node, *ops: str) -> bool:
    """Whether a node is one of some ONNX operators, not its namesake of another domain."""
    return bool(node.op in ops) and node.domain in (None, "", "ai.onnx")


def is_dense(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant that is stored in full (reading a sparse one unpacks it)."""
    return isinstance(tensor, gs.Constant) and not isinstance(tensor._values, SparseValues)


def has_input(node: gs.Node, slot: int) -> bool:
    """Whether a node has an input at a slot; trailing and inner ones may be left out."""
    return slot < len(node.inputs) and not node.inputs[slot].is_empty()


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether a tensor is an output of the graph."""
    return any(output is tensor for output in graph.outputs)


def sole_reader(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """Return the node that alone reads a tensor, in the graph itself and not in a body of it."""
    if len(tensor.outputs) != 1 or is_output(graph, tensor):
        return None
    reader = tensor.outputs[0]
    return reader if any(node is reader for node in graph.nodes) else None


def stays_inside(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether nobody but nodes of the graph itself reads a tensor: no body, no output."""
    inside = {id(node) for node in graph.nodes}
    return not is_output(graph, tensor) and all(id(node) in inside for node in tensor.outputs)


def varies(tensor: gs.Tensor) -> bool:
    """Whether a tensor depends on anything that is fed to the graph."""
    pending, seen = [tensor], set()
    while pending:
        tensor = pending.pop()
        if id(tensor) in seen or isinstance(tensor, gs.Constant) or tensor.is_empty():
            continue
        if not tensor.inputs:
            return True
        seen.add(id(tensor))
        pending.extend(source for node in tensor.inputs for source in node.inputs)
        if any(True for node in tensor.inputs for _ in bodies(node)):
            return True  # a body reads what it likes of the graph outside
    return False


def bodies(node: gs.Node) -> Iterator[gs.Graph]:
    """Yield the subgraphs of a control flow node (If, Loop, Scan)."""
    yield from (value for value in node.attrs.values() if isinstance(value, gs.Graph))


def unused_name(graph: gs.Graph, name: str) -> str:
    """Return the name, or one made from it, that no tensor of the graph or its bodies has."""
    taken = {tensor.name for tensor in _tensors(graph)}
    while name in taken:
        name += "_"
    return name


def is_vector(shape: Iterable[int]) -> bool:
    """Whether a shape has values along its last axis only."""
    return all(extent == 1 for extent in tuple(shape)[:-1])


def _tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    yield from graph.inputs
    yield from graph.outputs
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs
        for body in bodies(node):
            yield from _tensors(body)
