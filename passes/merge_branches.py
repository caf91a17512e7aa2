"""Merge sums of linear branches of one input into one linear node (``branch_sums``).

The merged node has the sum of the kernels, each at its place, and the sum of the biases; it takes
over the output of the sum, so no reader changes, and the name of the largest branch.

The way back keeps the branches: what a fit has changed of the merged node is added to its largest
branch, where that sees all that the sum sees, so that the sum is what was fitted::

    largest' = largest + (merged' - merged)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.branch_sums import BranchSum, find_sums
from fskd_onnx.passes.composed_node import put_composed
from fskd_onnx.passes.errors import PostconditionError
from fskd_onnx.passes.replace_weights import ReplaceWeights


@dataclass(frozen=True)
class MergeBranches(Pass):
    """Put one linear node in the place of a sum of branches. The function stays, to rounding.

    A sum stays as it is where its branches read different inputs, differ in stride, extent, width
    or type, or where anything else reads what is between its input and its output.

    Attributes:
        outputs: names of the sums to merge; None for all of them.
    """

    outputs: Collection[str] | None = None

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per sum."""
        notes = []
        for branches in self._chosen(graph):
            notes.append(f"the branches of '{branches.name}' merged into one node")
            _merge(graph, branches)
        return notes

    def ensures(self, graph: gs.Graph) -> None:
        """Check that no chosen sum is left over."""
        for branches in self._chosen(graph):
            msg = f"the branches of '{branches.name}' were left unmerged"
            raise PostconditionError(msg)

    def _chosen(self, graph: gs.Graph) -> list[BranchSum]:
        wanted = self.outputs
        return [s for s in find_sums(graph) if wanted is None or s.name in wanted]


def give_back(
    graph: gs.Graph,
    merged: gs.Graph,
    fitted: gs.Graph,
    factors: Mapping[str, AffineMap] = MappingProxyType({}),
) -> list[str]:
    """Give the nodes of a graph the weights that were fitted to what stood for them.

    Args:
        graph: with branches and chains, rewritten in place.
        merged: the same with some of its sums merged, each of which its largest branch spans, and
            some of its chains composed.
        fitted: that graph with new weights.
        factors: new weights of the nodes of chains, by their names.

    Returns:
        One note per node that changed.
    """
    before = {view.output.name: view for view in _linears(merged)}
    own = {view.output.name: view for view in _linears(graph)}
    sums = {branches.name: branches for branches in find_sums(graph)}
    weights = dict(factors)
    for new in _linears(fitted):
        output, old = new.output.name, before[new.output.name]
        if np.array_equal(new.matrix, old.matrix) and np.array_equal(new.bias, old.bias):
            continue
        if output in own and own[output].input.name == new.input.name:
            weights[own[output].name] = new.affine
        if output in own or output not in sums:
            continue
        largest = sums[output].largest
        matrix = largest.matrix + (new.matrix - old.matrix)
        bias = largest.bias + (new.bias - old.bias)
        weights[largest.name] = AffineMap(matrix, bias.reshape(largest.shape[:2]))
    return ReplaceWeights(weights).run(graph)


def _linears(graph: gs.Graph) -> list[Linear]:
    return [view for view in find_linear(graph) if isinstance(view, Linear)]


def _merge(graph: gs.Graph, branches: BranchSum) -> None:
    put_composed(
        graph,
        branches.largest,
        branches.nodes,
        branches.kernel,
        branches.window,
        branches.bias,
        branches.source,
        branches.output,
    )
