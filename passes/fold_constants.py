"""Make initializers of what a graph computes from initializers alone and reads as parameters.

Exporters and converters store a weight in other forms than a node reads it in: as a Constant,
behind Identity, transposed, reshaped, cast, normalised, or as a shape to be filled with a value::

    w ──▶ Transpose ──▶ Reshape ──▶ Conv            w' ──▶ Conv

Only parameters are folded: weights, biases, statistics of BatchNormalization, one value per
channel beside an Add, Sub, Mul or Div, and numbers that say where elements move, such as the pads
of a Pad. All else stays as it is written. A weight that is stored in half precision behind a Cast
keeps both: folding would double the file.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.linear_operators import LINEAR_OPERATORS
from fskd_onnx.passes.analysis.nodes import (
    bodies,
    index_of,
    input_dependent,
    is_dense,
    is_output,
    is_standard,
    is_vector,
    name_of_new,
    nodes_in_bodies,
    only_nodes_read,
    unused_name,
)
from fskd_onnx.passes.analysis.operators import Axes, operator_of
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.edit import detach, remove, replace_reads

# There are two numbers for each axis, at most.
_MOST_NUMBERS = 64
_CONSTANT_SCALARS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


class FoldConstants(Pass):
    """Make initializers of Constant nodes, and of parameters that are computed from initializers.

    1. A Constant stays whose output leaves the graph, or is read in the body of an If or Loop.
    2. A parameter stays as it is computed if an operator that does not fold (``Operator.folds``),
       or one that is not of ONNX, or one with a body takes part, or if ONNX's own implementation
       cannot compute it.
    3. A computed weight stays if another node reads what it is computed from: a copy of its own
       would untie weights that are meant to be the same.
    4. A computed weight stays if it is computed from integers: as floats they take more bytes.
    5. A parameter that half precision holds is stored in it, behind a Cast, if its source is.
    """

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per tensor that became an initializer."""
        return _constants_to_initializers(graph) + _fold_parameters(graph)


def _constants_to_initializers(graph: gs.Graph) -> list[str]:
    gone, in_bodies = [], nodes_in_bodies(graph)
    for node in graph.nodes:
        constant = _constant(node)
        # The output of a graph has to come from a node in old opsets. What a body reads has to
        # keep its name in the outer graph, which forgets an initializer that only bodies read.
        if constant is not None and only_nodes_read(graph, node.outputs[0], in_bodies):
            replace_reads(node.outputs[0], constant)
            gone.append((node, constant.name))
    remove(graph, *(node for node, _ in gone))
    return [f"Constant '{name}' became an initializer" for _, name in gone]


def _constant(node: gs.Node) -> gs.Constant | None:
    """Return what a Constant node holds; None for strings and types that no weight has."""
    if not is_standard(node, "Constant"):
        return None
    name, value = node.outputs[0].name, node.attrs.get("value")
    if value is not None and is_dense(value):
        if _is_native(value.dtype):
            return gs.Constant(name, np.array(value.values))
        if constants.element_type(value) in constants.FLOATS:
            return constants.make(name, constants.read(value), constants.element_type(value))
    for attribute, dtype in _CONSTANT_SCALARS.items():
        if attribute in node.attrs:
            return gs.Constant(name, np.array(node.attrs[attribute], dtype=dtype))
    return None


def _is_native(dtype: object) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "biufc"


def _fold_parameters(graph: gs.Graph) -> list[str]:
    notes = []
    in_bodies = nodes_in_bodies(graph)
    order = {id(node): index for index, node in enumerate(graph.nodes)}
    for tensor, kind in list(_parameters(graph)):
        nodes = sorted(_computing_nodes(tensor), key=lambda node: order[id(node)])
        if (
            not nodes
            or not only_nodes_read(graph, tensor, in_bodies)
            or constants.parameter(tensor) is not None
        ):
            continue
        if _is_renaming(nodes):
            folded: gs.Tensor = nodes[0].inputs[0]
        else:
            if kind == "weight" and (_is_tied(nodes) or _is_quantized(nodes)):
                continue
            value = _evaluate(graph, nodes, tensor)
            if value is None or not _may_be(kind, value):
                continue
            folded = _store(graph, nodes, tensor.name, value)
        _replace(graph, nodes, tensor, folded)
        notes.append(f"'{tensor.name}' is computed from constants and became an initializer")
    return notes


def _parameters(graph: gs.Graph) -> Iterator[tuple[gs.Tensor, str]]:
    """Yield the computed tensors that nodes read as parameters, each once, and what as."""
    from_inputs = input_dependent(graph)
    done = set(from_inputs)
    for node in graph.nodes:
        if not any(id(output) in from_inputs for output in node.outputs):
            continue
        for slot, tensor in enumerate(node.inputs):
            kind = _kind(node, slot)
            if kind and tensor.inputs and id(tensor) not in done:
                done.add(id(tensor))
                yield tensor, kind


def _kind(node: gs.Node, slot: int) -> str:
    """Return what a node reads an input as: weight, vector, scale, numbers, or none of these."""
    if is_standard(node, *LINEAR_OPERATORS):
        bias_input = LINEAR_OPERATORS[node.op].bias_input
        return "weight" if slot == 1 else "vector" if slot == bias_input else ""
    if is_standard(node, "BatchNormalization"):
        return "vector" if slot else ""
    if operator_of(node).axes is Axes.MOVED and not is_standard(node, "Concat"):
        return "numbers" if slot else ""
    return "scale" if operator_of(node).scales else ""


def _may_be(kind: str, value: NDArray[np.generic]) -> bool:
    """Whether a computed value is a parameter of some kind."""
    if kind == "numbers":
        return value.dtype.kind == "i" and value.size <= _MOST_NUMBERS
    computed = [onnx.helper.tensor_dtype_to_np_dtype(kind) for kind in constants.COMPUTED]
    return value.dtype in computed and (kind != "scale" or _is_per_channel(value.shape))


def _computing_nodes(tensor: gs.Tensor) -> list[gs.Node]:
    """Return the nodes that compute a tensor from constants; none where one must not fold."""
    found: dict[int, gs.Node] = {}
    pending = [tensor]
    while pending:
        for node in pending.pop().inputs:
            if id(node) in found:
                continue
            if not is_standard(node, str(node.op)) or not operator_of(node).folds or bodies(node):
                return []
            found[id(node)] = node
            pending.extend(node.inputs)
    if not all(is_dense(t) or t.inputs or t.is_empty() for n in found.values() for t in n.inputs):
        return []
    return list(found.values())


def _is_renaming(nodes: list[gs.Node]) -> bool:
    return all(node.op == "Identity" for node in nodes)


def _is_tied(nodes: list[gs.Node]) -> bool:
    """Whether any other node reads a matrix or kernel that some nodes read."""
    inside = {id(node) for node in nodes}
    return any(
        id(reader) not in inside
        for source in _sources(nodes)
        if not is_vector(source.shape)
        for reader in source.outputs
    )


def _is_quantized(nodes: list[gs.Node]) -> bool:
    """Whether some nodes read a matrix or kernel of integers, which take more bytes as floats."""
    return any(
        constants.element_type(source) not in constants.FLOATS
        for source in _sources(nodes)
        if not is_vector(source.shape)
    )


def _is_per_channel(shape: tuple[int, ...]) -> bool:
    return sum(extent > 1 for extent in shape) < 2


def _evaluate(
    graph: gs.Graph, nodes: list[gs.Node], tensor: gs.Tensor
) -> NDArray[np.generic] | None:
    """Compute a tensor by its nodes; None where ONNX's own implementation cannot."""
    part = onnx.helper.make_graph(
        [OnnxExporter.export_node(node) for node in nodes],
        "constants",
        [],
        [onnx.ValueInfoProto(name=tensor.name)],
        [OnnxExporter.export_tensor_proto(constant) for constant in _sources(nodes)],
    )
    opset = onnx.helper.make_opsetid("", graph.opset)
    try:
        evaluator = ReferenceEvaluator(onnx.helper.make_model(part, opset_imports=[opset]))
        [value] = evaluator.run(None, {})
    except Exception:  # whatever it lacks, the graph can do itself
        return None
    return value if isinstance(value, np.ndarray) else None


def _sources(nodes: list[gs.Node]) -> list[gs.Constant]:
    """Return the constants that some nodes read, each once."""
    found = {id(t): t for node in nodes for t in node.inputs if isinstance(t, gs.Constant)}
    return list(found.values())


def _store(
    graph: gs.Graph, nodes: list[gs.Node], name: str, value: NDArray[np.generic]
) -> gs.Tensor:
    """Make an initializer of a value, behind a Cast where a source holds it in fewer bytes."""
    for kind in map(constants.element_type, _sources(nodes)):
        if kind in constants.HALVES and value.itemsize > 2 and constants.survives(value, kind):
            constant = constants.make(unused_name(graph, f"{name}/stored"), value, kind)
            cast = gs.Variable(name, value.dtype)
            attrs = {"to": onnx.helper.np_dtype_to_tensor_dtype(value.dtype)}
            at = index_of(graph, nodes[-1])
            called = name_of_new(graph, nodes[-1].name, gone=nodes)
            graph.nodes.insert(at, gs.Node("Cast", called, attrs, [constant], [cast]))
            return cast
    return gs.Constant(name, value)


def _replace(graph: gs.Graph, nodes: list[gs.Node], tensor: gs.Tensor, folded: gs.Tensor) -> None:
    """Let readers of a computed tensor read another, and remove nodes that nothing reads."""
    replace_reads(tensor, folded)
    gone = []
    for node in reversed(nodes):
        if not any(output.outputs or is_output(graph, output) for output in node.outputs):
            detach(node)
            gone.append(node)
    remove(graph, *gone)
