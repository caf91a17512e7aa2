"""Bring a graph into the form that the other passes read: weights as initializers, no foldable BN.

A node without a bias stays without: ``Linear.bias`` is zero then, and ``write_weights`` adds one
where it is needed.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.fold_affine import FoldAffine
from fskd_onnx.passes.fold_behind_split import FoldBehindSplit
from fskd_onnx.passes.fold_constants import FoldConstants
from fskd_onnx.passes.rewrite_products import RewriteProducts

_STEPS: tuple[Pass, ...] = (
    FoldConstants(),
    RewriteProducts(),
    FoldAffine(),
    FoldBehindSplit(),
)


class Canonicalize(Pass):
    """Fold constants, then affine maps per channel beside linear nodes and behind their parts.

    The steps are ``FoldConstants``, ``RewriteProducts``, ``FoldAffine`` and ``FoldBehindSplit``.
    What cannot be folded stays as it is.
    """

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per node that went away."""
        return [note for step in _STEPS for note in step.run(graph)]

    def ensures(self, graph: gs.Graph) -> None:
        """Check that no foldable node is left over."""
        for step in _STEPS:
            step.ensures(graph)
