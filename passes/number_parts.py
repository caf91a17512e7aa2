"""A network whose outputs say where their numbers come from.

Every part of an output (``fskd_onnx.passes.analysis.output_parts``) is replaced by its number among
all parts of the network; what moves and joins them stays::

    y = Concat (boxes, scores)        y = Concat (0 0 0 ..., 1 1 1 ...)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.nodes import index_of, unused_name
from fskd_onnx.passes.analysis.output_parts import all_parts, reads_of_parts
from fskd_onnx.passes.base import Pass

_CONSTANT_OF_SHAPE = 9  # the first opset that has it


@dataclass(frozen=True)
class NumberParts(Pass):
    """Put the number of each part in the place of its values, where outputs have several.

    The function becomes that of the numbers (those of `all_parts`, in order), of the same shapes
    and types as before. Outputs of one part stay, as do all nodes in front of parts, and a network
    of an opset before 9.
    """

    def apply(self, graph: gs.Graph) -> list[str]:
        """Replace what the nodes behind parts read."""
        parts = all_parts(graph) if graph.opset >= _CONSTANT_OF_SHAPE else []
        if all(part.inputs and part.inputs[0].op == "ConstantOfShape" for part in parts):
            return []
        numbers = {id(part): number for number, part in enumerate(parts)}
        reads = {o.name: reads_of_parts(o) for o in graph.outputs}
        made: dict[int, gs.Variable] = {}
        for output in graph.outputs:
            for read in reads[output.name]:
                number = numbers[id(read.tensor)]
                if number not in made:
                    made[number] = _filled(graph, read.tensor, np.dtype(output.dtype), number)
                read.reader.inputs[read.slot] = made[number]
        return [f"{len(parts)} parts of outputs numbered"]


def _filled(graph: gs.Graph, like: gs.Tensor, dtype: np.dtype[Any], number: int) -> gs.Variable:
    """Return a tensor of the shape of another one, all of whose elements are a number."""
    extents = gs.Variable(unused_name(graph, f"{like.name}/shape"), dtype=np.int64)
    filled = gs.Variable(unused_name(graph, f"{like.name}/number"), dtype=dtype)
    value = gs.Constant("value", np.array([number], dtype=dtype))
    place = index_of(graph, like.inputs[0]) + 1 if like.inputs else 0
    graph.nodes[place:place] = [
        gs.Node("Shape", inputs=[like], outputs=[extents]),
        gs.Node("ConstantOfShape", attrs={"value": value}, inputs=[extents], outputs=[filled]),
    ]
    return filled
