"""Leave residual blocks out: what reads the sum of a branch and its shortcut reads the shortcut.

::

    y = x + f(x)      becomes      y = x

A residual network resembles an ensemble of paths of many lengths, so one block among many can be
missed (Veit et al., "Residual Networks Behave Like Ensembles of Relatively Shallow Networks",
2016), and what is left is repaired from few samples better than thinner blocks are (Wang and Wu,
"Practical Network Acceleration with Tiny Sets", PRACTISE, 2023). Which blocks are the ones to go is
a question of its own; which there are, says ``fskd_onnx.passes.analysis.residual_blocks``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.nodes import is_output
from fskd_onnx.passes.analysis.residual_blocks import find_branches, find_shortcuts
from fskd_onnx.passes.analysis.segments import ancestors
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.edit import remove, replace_reads
from fskd_onnx.passes.errors import PreconditionError


@dataclass(frozen=True)
class DropBlocks(Pass):
    """Leave out the branches of some residual blocks. The function changes; the interface stays.

    Attributes:
        names: of the blocks.
    """

    names: Collection[str]

    def requires(self, graph: gs.Graph) -> None:
        """Check that there are such blocks, and that they can be left out."""
        branches = {branch.name: branch for branch in find_branches(graph)}
        for name in self.names:
            if name not in branches:
                msg = f"the graph '{graph.name}' has no residual block '{name}'"
                raise PreconditionError(msg)
            if branches[name].reason:
                msg = f"the residual block '{name}' cannot be left out: {branches[name].reason}"
                raise PreconditionError(msg)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per block."""
        sums = [(add, slot) for add, slot, _ in find_shortcuts(graph)]
        sums = [(add, slot) for add, slot in sums if add.outputs[0].name in self.names]
        before = {id(node) for node in ancestors([add.outputs[0] for add, _ in sums])}
        notes = [f"the residual block '{add.outputs[0].name}' is left out" for add, _ in sums]
        # A shortcut may be the sum of a block that went just before.
        for add, slot in sums:
            replace_reads(add.outputs[0], add.inputs[slot])
        for node in reversed(list(graph.nodes)):
            if id(node) in before and not any(
                tensor.outputs or is_output(graph, tensor) for tensor in node.outputs
            ):
                remove(graph, node)
        return notes
