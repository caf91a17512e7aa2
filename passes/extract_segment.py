"""Take a segment out of a graph, as a model of its own; large weights are not copied."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, update_import_domains

from fskd_onnx.passes.analysis.nodes import is_dense
from fskd_onnx.passes.analysis.segments import Segment, ancestors
from fskd_onnx.passes.base import IR_OF_FREE_INITIALIZERS
from fskd_onnx.passes.separate_weights import Separated, separate_constants


def extract(graph: gs.Graph, segment: Segment, types: Mapping[str, onnx.TypeProto]) -> Separated:
    """Take a segment out of a graph as a model of its own; large weights are not copied.

    The nodes are found anew between the segment's borders, so what a pass has changed or inserted
    there since the plan was made is part of it.

    Args:
        graph: the graph that was planned.
        segment: the stretch to copy.
        types: type of each of the segment's inputs.
    """
    tensors = {t.name: t for node in graph.nodes for t in node.outputs}
    border = set(segment.inputs)
    wanted = {
        id(node) for node in ancestors([tensors[name] for name in segment.outputs], border=border)
    }
    part = gs.Graph(
        nodes=[node for node in graph.nodes if id(node) in wanted],
        opset=graph.opset,
        # A copy: graphsurgeon adds what it misses, and this list is that of the imported model.
        import_domains=list(graph.import_domains),
        functions=graph.functions,
    )
    constants = [t for t in part.tensors().values() if isinstance(t, gs.Constant)]
    initializers, weights = separate_constants([t for t in constants if is_dense(t)])
    model = onnx.helper.make_model(
        # Types and shapes recorded in the file may be stale or absent; the runtime infers its own.
        onnx.helper.make_graph(
            nodes=[OnnxExporter.export_node(node) for node in part.nodes],
            name="segment",
            inputs=[onnx.helper.make_value_info(name, types[name]) for name in segment.inputs],
            outputs=[onnx.ValueInfoProto(name=name) for name in segment.outputs],
            initializer=initializers,
            sparse_initializer=[t._values.tensor for t in constants if not is_dense(t)],
        ),
        opset_imports=update_import_domains(part),
        functions=[OnnxExporter.export_function(function) for function in part.functions],
        ir_version=max(graph.ir_version, IR_OF_FREE_INITIALIZERS),
    )
    return Separated(model, weights)
