"""Compose chains of linear nodes into one linear node each (``analysis.factored_blocks``).

The node has the composed kernel over the composed window, the name of the last node of the chain
and its output, so no reader changes. It costs more at inference than the chain does: this is a form
to look at and to fit, not one to deploy.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.factored_blocks import FactoredBlock, chain_of
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import nodes_in_bodies, sole_reader
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.composed_node import put_composed
from fskd_onnx.passes.errors import PreconditionError


@dataclass(frozen=True)
class ComposeChains(Pass):
    """Put one node in the place of each of some chains. The function stays, to rounding.

    Attributes:
        chains: names of the linear nodes of each, in the order of data.
    """

    chains: Collection[tuple[str, ...]]

    def requires(self, graph: gs.Graph) -> None:
        """Check that each chain is one linear node."""
        self._find(graph)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per chain."""
        notes = []
        for block in self._find(graph):
            (chain,) = block.chains
            notes.append(f"the chain that ends at '{chain[-1].name}' composed into one node")
            nodes = [n for v in chain for n in (v.node, v.bias_node) if n is not None]
            put_composed(
                graph,
                chain[-1],
                nodes,
                block.kernel,
                block.window,
                block.bias,
                block.source,
                block.output,
            )
        return notes

    @staticmethod
    def _is_read_alone(graph: gs.Graph, block: FactoredBlock) -> bool:
        """Whether each node of a chain alone reads the one in front of it."""
        in_bodies = nodes_in_bodies(graph)
        return all(
            sole_reader(graph, one.output, in_bodies) is other.node
            for one, other in itertools.pairwise(block.factors)
        )

    def _find(self, graph: gs.Graph) -> list[FactoredBlock]:
        views = {view.name: view for view in find_linear(graph) if isinstance(view, Linear)}
        found = []
        for chain in self.chains:
            missing = next((name for name in chain if name not in views), None)
            block = None if missing else chain_of([views[name] for name in chain])
            if block is not None and not self._is_read_alone(graph, block):
                block = None
            if block is None:
                names = "', '".join(chain)
                what = f"'{missing}' is no linear node" if missing else f"'{names}' are not one"
                raise PreconditionError(f"a chain cannot be composed: {what}")
            found.append(block)
        return found
