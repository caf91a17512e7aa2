"""Make constants of what a graph computes from extents that are the same for all inputs.

Exporters write a size that they know as a computation, so that it would follow if it changed::

    x (N, 16, H, W) ──▶ Shape ──▶ Gather (1) ──▶ Div (2) ──▶ end of a Slice         8 ──▶ Slice

What nodes read of it as a whole becomes a constant, and so do integers that are computed from
others that are written out, such as pads that an exporter puts in order. The target of a Reshape
becomes one even if the network's input decides on some of its extents: such an extent is stated as
the one that the tensor has at that place (0), or as what is left (-1)::

    (N, 16, H * W)  of  (N, 16, H, W)        becomes        (0, 16, -1)

The function stays. Channels can be followed through nodes that state what they do, and taken out.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.computed_extents import ComputedExtents
from fskd_onnx.passes.analysis.nodes import is_output, is_standard, nodes_in_bodies, unused_name
from fskd_onnx.passes.analysis.segments import ancestors
from fskd_onnx.passes.analysis.shapes import infer_named_shapes
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.edit import remove


class FoldExtents(Pass):
    """Make constants of numbers that are computed from known extents. The function stays.

    What an output of the graph or a body of a node reads stays as it is computed.
    """

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per tensor that became a constant."""
        notes: list[str] = []
        # A target that is known makes more shapes known, and these more targets.
        while new := _fold(graph):
            notes += new
        return notes


def _fold(graph: gs.Graph) -> list[str]:
    if not ComputedExtents.may_be_in(graph):
        return []
    found = ComputedExtents(graph, infer_named_shapes(graph))
    in_bodies = nodes_in_bodies(graph)
    made: dict[str, gs.Constant] = {}
    before: list[gs.Node] = []
    for node in graph.nodes:
        for slot, tensor in enumerate(node.inputs):
            if not tensor.inputs or id(node) in in_bodies:
                continue
            value = found.values.get(tensor.name)
            if value is None and slot == 1 and is_standard(node, "Reshape"):
                value = found.target(node)
            elif all(output.name in found.values for output in node.outputs):
                continue  # it goes as well
            if value is not None:
                key = f"{tensor.name} {value.tolist()}"
                if key not in made:
                    name = unused_name(graph, f"{tensor.name}/value")
                    made[key] = gs.Constant(name, np.array(value))
                before += ancestors([tensor])
                node.inputs[slot] = made[key]
    gone = {id(node) for node in before}
    for node in reversed(list(graph.nodes)):
        if id(node) in gone and not any(
            tensor.outputs or is_output(graph, tensor) for tensor in node.outputs
        ):
            remove(graph, node)
    return [f"'{constant.name}' is the same for all inputs" for constant in made.values()]
