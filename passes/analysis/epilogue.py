"""What follows a block's output: the Add of a shortcut, and an activation that cuts off values.

::

    block ──▶ output ──▶ Add ──▶ sum ──▶ Relu ──▶
                          ▲
    shortcut ─────────────┘

The error of a fit counts where the rest of the network reads it, so behind these two. A Reshape
that leaves channels on the last axis is no step of its own: the rows of (M, C) are the positions of
(N, T, C), in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.nodes import is_standard, sole_reader
from fskd_onnx.passes.analysis.operators import activation_bounds
from fskd_onnx.passes.analysis.shapes import Shape


@dataclass(frozen=True)
class Epilogue:
    """The nodes behind a block's output, as far as each is the only reader of what it reads.

    Attributes:
        shortcut: name of the tensor that is added to the output; None where nothing is added.
        sum_output: name of the sum; None where nothing is added.
        low: lower bound of the activation behind them, -inf where there is none.
        high: its upper bound, inf where there is none.
    """

    shortcut: str | None = None
    sum_output: str | None = None
    low: float = -math.inf
    high: float = math.inf

    @property
    def clips(self) -> bool:
        """Whether an activation cuts off values."""
        return math.isfinite(self.low) or math.isfinite(self.high)

    def without_sum(self) -> Epilogue:
        """Return what is left if the sum is not looked behind: the error counts at the output."""
        return NO_EPILOGUE if self.sum_output is not None else self


NO_EPILOGUE = Epilogue()
"""The error counts at the block output."""


def find_epilogue(
    graph: gs.Graph, linear: Linear, inner: Collection[int], shapes: Mapping[str, Shape]
) -> Epilogue:
    """Find what follows a block's output.

    Args:
        graph: the network.
        linear: one of its linear nodes.
        inner: see ``nodes.nodes_in_bodies``; nodes in bodies of an If or Loop are no epilogue.
        shapes: of the network's tensors, as far as they are known.
    """

    def with_other_rows(tensor: gs.Tensor) -> gs.Tensor:
        reader = sole_reader(graph, tensor, inner) if linear.columns_last else None
        if reader is None or not is_standard(reader, "Reshape"):
            return tensor
        result = reader.outputs[0]
        return result if shapes.get(result.name, ())[-1:] == (linear.width,) else tensor

    output = with_other_rows(linear.output)
    shortcut = sum_output = None
    add = sole_reader(graph, output, inner)
    if add is not None and is_standard(add, "Add", "Sum") and len(add.inputs) == 2:
        other = add.inputs[1] if add.inputs[0] is output else add.inputs[0]
        if not isinstance(other, gs.Constant) and other is not output:
            output = add.outputs[0]
            shortcut, sum_output = other.name, output.name
            output = with_other_rows(output)
    activation = sole_reader(graph, output, inner)
    low, high = (-math.inf, math.inf) if activation is None else activation_bounds(activation)
    return Epilogue(shortcut, sum_output, low, high)
