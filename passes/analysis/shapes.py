"""The shapes of a graph's tensors, without a copy of its weights.

Shape inference in ONNX works on a serialized model, and most of that would be weights, of which it
needs the shapes alone. So weights go in as inputs of their shape; what may hold a shape itself (the
target of a Reshape, the axes of a Squeeze) stays a constant, and where the shapes of the inputs are
given, what is computed from them becomes one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from fskd_onnx.passes.analysis.computed_extents import ComputedExtents, Values
from fskd_onnx.passes.analysis.nodes import is_dense

# Shapes, axes and sizes have a value per dimension; weights of interest have more.
_MOST_VALUES_OF_A_SHAPE = 64

Shape = tuple[int | None, ...]


def infer_shapes(
    graph: gs.Graph, inputs: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Shape]:
    """Return the shape of every tensor that ONNX can infer, by the tensor's name.

    Args:
        graph: any graph; it stays as it is.
        inputs: shapes of inputs, to be taken instead of those that the graph states.

    Returns:
        An extent that depends on the input (the number of samples) is None.
    """
    return {
        name: tuple(extent if isinstance(extent, int) else None for extent in shape)
        for name, shape in infer_named_shapes(graph, inputs).items()
    }


def infer_named_shapes(
    graph: gs.Graph, inputs: Mapping[str, Sequence[int]] | None = None
) -> dict[str, tuple[int | str | None, ...]]:
    """Return the same as ``infer_shapes``, with the names of extents that the graph names.

    Args:
        graph: any graph; it stays as it is.
        inputs: shapes of inputs, to be taken instead of those that the graph states.

    Returns:
        Extents of the same name are equal.
    """
    model = _without_weights(graph)
    for value in model.graph.input:
        if (shape := (inputs or {}).get(value.name)) is not None:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, shape))
    dims, known = _inferred(model), 0
    if inputs is None or not ComputedExtents.may_be_in(graph):
        return dims
    made = [tensor.name for node in graph.nodes for tensor in node.outputs if tensor.name]
    # ONNX's inference follows few operators from extents to extents. What is computed makes more
    # shapes known, and these more of what is computed.
    values: dict[str, Values] = {}
    while not all(isinstance(extent, int) for name in made for extent in dims.get(name, (None,))):
        values = ComputedExtents(graph, dims, values).values
        if len(values) == known:
            break
        known = len(values)
        _write_out(model.graph, values)
        dims |= _inferred(model)
    return dims


def _write_out(graph: onnx.GraphProto, values: Mapping[str, Values]) -> None:
    """Make initializers of outputs of nodes whose values are known."""
    computed = [node for node in graph.node if set(node.output) & values.keys()]
    for node in computed:
        [name] = node.output
        graph.node.remove(node)
        graph.initializer.append(onnx.numpy_helper.from_array(values[name], name))


def _inferred(model: onnx.ModelProto) -> dict[str, tuple[int | str | None, ...]]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in value.type.tensor_type.shape.dim
        )
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


class KnownShapes(Mapping[str, Shape]):
    """The shapes of tensors; inferred when the first is asked for that is not set."""

    def __init__(self, graph: gs.Graph) -> None:
        """Know nothing yet."""
        self._graph = graph
        self._set: dict[str, Shape] = {}

    @cached_property
    def _inferred(self) -> dict[str, Shape]:
        return infer_shapes(self._graph)

    def __getitem__(self, name: str) -> Shape:
        """Return the shape of a tensor."""
        return self._set[name] if name in self._set else self._inferred[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the tensors."""
        return iter(self._inferred | self._set)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._inferred | self._set)

    def set(self, name: str, shape: Shape) -> None:
        """Set a shape that needs no inference."""
        self._set[name] = shape


def _without_weights(graph: gs.Graph) -> onnx.ModelProto:
    constants = {
        tensor.name: tensor
        for node in graph.nodes
        for tensor in node.inputs
        if isinstance(tensor, gs.Constant)
    }
    kept = {
        name
        for name, tensor in constants.items()
        if is_dense(tensor) and math.prod(tensor.shape) <= _MOST_VALUES_OF_A_SHAPE
    }
    weights = [tensor for name, tensor in constants.items() if name not in kept]
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes=[OnnxExporter.export_node(node) for node in graph.nodes],
            name="shapes",
            inputs=[_describe(tensor) for tensor in (*graph.inputs, *weights)],
            outputs=[onnx.ValueInfoProto(name=tensor.name) for tensor in graph.outputs],
            initializer=[OnnxExporter.export_tensor_proto(constants[name]) for name in kept],
        ),
        opset_imports=graph.import_domains,
        functions=[OnnxExporter.export_function(function) for function in graph.functions],
    )


def _describe(tensor: gs.Tensor) -> onnx.ValueInfoProto:
    description: onnx.ValueInfoProto = OnnxExporter.export_value_info_proto(
        tensor, do_type_check=False
    )
    return description
