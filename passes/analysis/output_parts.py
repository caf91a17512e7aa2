"""The parts of an output: the tensors that a network joins last, and only moves from there.

A detector joins boxes in pixels with scores of 0..1 in one output::

    Mul ─▶ boxes (N, 4, 8400) ──▶ Concat ─▶ Transpose ─▶ (N, 8400, 84)
    Sigmoid ─▶ scores (N, 80, 8400) ─▶ ┘

What is computed apart has a scale of its own, so that a sum of squares over all of such an output
says nothing of its smaller parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.moves import MOVES
from fskd_onnx.passes.analysis.nodes import is_standard

# What an output of more tensors holds is one thing, written out piece by piece.
_MOST_PARTS = 32
# These also move, but a Pad puts in elements that come from nowhere.
_MOVE = tuple({*MOVES, "Identity"} - {"Pad"})


@dataclass(frozen=True, eq=False)
class PartRead:
    """Where a part of an output is read on its way there.

    Attributes:
        tensor: the part.
        reader: the first node on the way.
        slot: which of its inputs.
    """

    tensor: gs.Tensor
    reader: gs.Node
    slot: int


def reads_of_parts(output: gs.Tensor) -> list[PartRead]:
    """Return where the parts of an output are read, in the order in which they are joined.

    Empty where the output is of one part, or of a great many, or holds no numbers.
    """
    if not isinstance(output.dtype, np.dtype | type) or np.dtype(output.dtype).kind not in "fiu":
        return []
    found = list(_reads(output))
    parts = {id(read.tensor) for read in found}
    return found if 1 < len(parts) <= _MOST_PARTS else []


def parts_of(output: gs.Tensor) -> list[gs.Tensor]:
    """Return the parts of an output, each once; the output itself where it is of one part."""
    return list({id(r.tensor): r.tensor for r in reads_of_parts(output)}.values()) or [output]


def all_parts(graph: gs.Graph) -> list[gs.Tensor]:
    """Return the parts of all outputs that have several, each once."""
    reads = (read for output in graph.outputs for read in reads_of_parts(output))
    return list({id(read.tensor): read.tensor for read in reads}.values())


def _reads(tensor: gs.Tensor) -> Iterator[PartRead]:
    """Yield where parts are read in front of a tensor that nodes only move and join."""
    (node,) = tensor.inputs or (None,)
    if node is None or not is_standard(node, "Concat", *_MOVE):
        return
    for slot, source in enumerate(node.inputs if node.op == "Concat" else node.inputs[:1]):
        behind = list(_reads(source))
        yield from behind or [PartRead(source, node, slot)]
