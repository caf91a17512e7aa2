"""Give linear nodes new weights and biases of the shape they have. This changes the function.

A fit writes its result with this pass: the map ``W' x + b'`` of a block with its adapter in it, in
float64, is cast once to the types that are stored. A 1x1 adapter ``Q y + c`` gives what
``InsertAdapter`` and ``FuseAdapter`` give, with one rounding instead of two::

    (Q, c) after (W, b):    W' = Q W,   b' = Q b + c

A kernel adapter has no explicit form: its solution *is* the new matrix, over the whole kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.errors import PreconditionError
from fskd_onnx.passes.write_weights import write_weights


@dataclass(frozen=True)
class ReplaceWeights(Pass):
    """Replace the weights of the named linear nodes.

    Attributes:
        weights: new map of the input patches of each node, by the node's name (its output's, where
            it has none of its own).
    """

    weights: Mapping[str, AffineMap]

    def requires(self, graph: gs.Graph) -> None:
        """Check that every named node is there, has weights of its own, and of that shape."""
        linears = {view.name: view for view in find_linear(graph) if isinstance(view, Linear)}
        for name, weights in self.weights.items():
            linear = linears.get(name)
            if linear is None:
                msg = f"the graph has no linear node '{name}' to give new weights"
                raise PreconditionError(msg)
            if linear.shared_with is not None:
                msg = f"the weights of '{name}' are also those of '{linear.shared_with}'"
                raise PreconditionError(msg)
            if weights.shape != linear.shape:
                msg = f"the new weights of '{name}' are {weights.shape}; it has {linear.shape}"
                raise PreconditionError(msg)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Replace in place; return one note per node."""
        notes = []
        for linear in find_linear(graph):
            if isinstance(linear, Linear) and linear.name in self.weights:
                weights = self.weights[linear.name]
                before = linear.native, linear.bias
                write_weights(graph, linear, weights)
                if not all(map(np.array_equal, before, (linear.native, linear.bias))):
                    notes.append(f"weights of '{linear.name}' replaced")
        return notes
