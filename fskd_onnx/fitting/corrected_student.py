"""A student whose blocks get new weights, one after another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fskd_onnx.fitting.block_fit import BlockFit
from fskd_onnx.fitting.block_plan import BlockPlan
from fskd_onnx.fitting.factored import DecomposedBlocks
from fskd_onnx.linalg.factorization import Factorization
from fskd_onnx.passes import AffineMap, ReplaceWeights
from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.write_weights import write_weights

FusedBlock = tuple[AffineMap, Factorization | None]
"""New weights of the node of a block; the factors, where it is several nodes of the student."""


class CorrectedStudent:
    """A graph, and the factors of its decomposed blocks, with what has become of them so far.

    Attributes:
        graph: the graph.
        linears: its linear nodes as they were at the beginning, by name.
        decomposed: the blocks that are several nodes of the student and one of the graph.
    """

    def __init__(
        self,
        graph: gs.Graph,
        decomposed: DecomposedBlocks,
        weights: Mapping[str, AffineMap],
    ) -> None:
        """Start from a student with other weights.

        Args:
            graph: the student, which is changed in place.
            decomposed: its decomposed blocks, which are changed as well.
            weights: to start from, by the name of the node; other nodes keep theirs. Decomposed
                blocks have theirs already.
        """
        self.graph = graph
        self.decomposed = decomposed
        if weights:
            ReplaceWeights(weights).run(graph)
        self.linears = self.views()
        self._unbiased = {n for n, view in self.linears.items() if view.bias_slot is None}

    def views(self) -> dict[str, Linear]:
        """Return the linear nodes as they are now, by name."""
        views = (view for view in find_linear(self.graph) if isinstance(view, Linear))
        return {view.name: view for view in views}

    def fused(self, plan: BlockPlan, block: BlockFit, adapter: AffineMap) -> FusedBlock | None:
        """Return a block with an adapter in it; None where a type that stores weights overflows.

        Args:
            plan: the block, which was not corrected yet.
            block: its fit.
            adapter: of the family of the fit.
        """
        linears = [self.linears[use.name] for use in plan.uses]
        factors = self.decomposed.get(plan.name)
        if factors is None:
            fused = block.family.fused(adapter, linears[0].matrix)
        else:
            factors = block.family.fused_factors(adapter, factors)
            fused = AffineMap(factors.kernel[np.newaxis], adapter.shift)
        return (fused, factors) if all(_fit_into(linear, fused) for linear in linears) else None

    def take(self, plan: BlockPlan, fused: FusedBlock) -> list[str]:
        """Write new weights of a block.

        Args:
            plan: the block, which was not corrected yet.
            fused: what it is to be.

        Returns:
            Of a decomposed block, its other nodes that have new weights.
        """
        block, factors = fused
        linear, *others = (self.linears[use.name] for use in plan.uses)
        changed = []
        if factors is not None:
            changed = self.decomposed.take(plan.name, factors, block.shift)
        write_weights(self.graph, linear, block, others)  # cast once, to the types that are stored
        return changed

    def with_added_nodes(self, views: Mapping[str, Linear]) -> set[str]:
        """Return the blocks that an Add was put behind, for a bias.

        Args:
            views: the linear nodes as they are now.
        """
        added = {name for name in self._unbiased if views[name].bias_slot is not None}
        return added | self.decomposed.with_added_nodes()


def _fit_into(linear: Linear, fused: AffineMap) -> bool:
    """Whether new weights are finite in the types in which a block stores its own."""
    computed = onnx.helper.np_dtype_to_tensor_dtype(linear.dtype)
    return all(
        constants.fits(values, computed if stored is None else constants.element_type(stored))
        for values, stored in ((fused.matrix, linear.weight), (fused.shift, linear.bias_constant))
    )
