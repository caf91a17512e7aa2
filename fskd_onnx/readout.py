"""Where a block's error is seen: at its output, behind the Add of a shortcut, behind a clipping.

::

    block ──▶ output ──▶ Add ──▶ total ──▶ Relu ──▶
                          ▲
    shortcut ─────────────┘
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.linear import Linear


@dataclass(frozen=True)
class Readout:
    """What is behind a block's output, as far as it is the only thing that reads it.

    Attributes:
        shortcut: the tensor that is added to the output, if one is.
        total: the sum; None where nothing is added.
        low: lower bound of the clipping activation behind it, -inf where there is none.
        high: upper bound, inf where there is none.
    """

    shortcut: str | None = None
    total: str | None = None
    low: float = -math.inf
    high: float = math.inf

    @property
    def clips(self) -> bool:
        """Whether an activation hides part of the output."""
        return math.isfinite(self.low) or math.isfinite(self.high)

    def without_sum(self) -> Readout:
        """Return the readout at the block's own output; what follows the sum is out of sight."""
        return Readout() if self.total is not None else self


def read_out(graph: gs.Graph, linear: Linear) -> Readout:
    """Look behind a block's output."""
    output = linear.output
    shortcut = total = None
    add = _only_reader(graph, output)
    if add is not None and add.op in ("Add", "Sum") and len(add.inputs) == 2:
        other = add.inputs[1] if add.inputs[0] is output else add.inputs[0]
        if not isinstance(other, gs.Constant) and other is not output:
            output = add.outputs[0]
            shortcut, total = other.name, output.name
    low, high = _bounds(_only_reader(graph, output))
    return Readout(shortcut, total, low, high)


def _only_reader(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    if len(tensor.outputs) != 1 or any(output is tensor for output in graph.outputs):
        return None
    return tensor.outputs[0]


def _bounds(node: gs.Node | None) -> tuple[float, float]:
    if node is not None and node.op == "Relu":
        return 0.0, math.inf
    if node is not None and node.op == "Clip":
        # The bounds were attributes before opset 11, and are inputs since.
        low, high = node.attrs.get("min", -math.inf), node.attrs.get("max", math.inf)
        given = [None if t.is_empty() else t for t in node.inputs[1:]]
        if all(t is None or isinstance(t, gs.Constant) for t in given):
            values = [None if t is None else float(np.asarray(t.values).item()) for t in given]
            low, high = (
                old if new is None else new
                for old, new in zip((low, high), [*values, None, None], strict=False)
            )
            return float(low), float(high)
    return -math.inf, math.inf
