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
from fskd_onnx.passes.analysis.shared_weights import find_uses, who_else_reads
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.errors import PreconditionError
from fskd_onnx.passes.write_weights import write_weights


@dataclass(frozen=True)
class ReplaceWeights(Pass):
    """Replace the weights of the named linear nodes.

    Attributes:
        weights: new map of the input patches of each node, by the node's name (its output's, where
            it has none of its own). All nodes that use the same weights are named, with one map.
    """

    weights: Mapping[str, AffineMap]

    def requires(self, graph: gs.Graph) -> None:
        """Check that every named node is there, with all that use its weights, and its shape."""
        linears = {view.name: view for view in find_linear(graph) if isinstance(view, Linear)}
        uses = find_uses(list(linears.values()))
        for name, weights in self.weights.items():
            linear = linears.get(name)
            if linear is None:
                msg = f"the graph has no linear node '{name}' to give new weights"
                raise PreconditionError(msg)
            if name not in uses:
                msg = f"the weights of '{name}' {who_else_reads(linear, linears.values())}"
                raise PreconditionError(msg)
            for use in uses[name]:
                theirs = self.weights.get(use.name)
                if theirs is None or not theirs.equals(weights):
                    msg = (
                        f"the weights of '{name}' are also those of '{use.name}', "
                        "which does not get the same"
                    )
                    raise PreconditionError(msg)
            if weights.shape != linear.shape:
                msg = f"the new weights of '{name}' are {weights.shape}; it has {linear.shape}"
                raise PreconditionError(msg)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Replace in place; return one note per node."""
        notes = []
        linears = [view for view in find_linear(graph) if isinstance(view, Linear)]
        for name, (linear, *others) in find_uses(linears).items():
            if linear.name == name and name in self.weights:
                before = linear.native, linear.bias
                write_weights(graph, linear, self.weights[name], others)
                if not all(map(np.array_equal, before, (linear.native, linear.bias))):
                    notes += [f"weights of '{use.name}' replaced" for use in (linear, *others)]
        return notes
