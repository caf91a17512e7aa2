"""Fold what scales and shifts the parts of a divided block output into the linear node.

Simplifiers join queries, keys and values of attention into one MatMul and leave the bias of each
behind the Split. Parts are consecutive channels, and each part has an affine map per channel of its
own, or none, so together they are one affine map per channel::

    x ─▶ MatMul ─▶ Split ─┬─▶ Add ─▶ q         x ─▶ MatMul ─▶ Add ─▶ Split ─┬─▶ q
                          ├─▶ Add ─▶ k                                     ├─▶ k
                          └─▶ v                                            └─▶ v
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.moves import stated_numbers
from fskd_onnx.passes.analysis.nodes import is_standard, node_name, nodes_in_bodies, sole_reader
from fskd_onnx.passes.analysis.shapes import KnownShapes
from fskd_onnx.passes.analysis.shared_weights import find_uses
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.edit import remove
from fskd_onnx.passes.fold_affine import affine_of, quiet, scaled_and_shifted
from fskd_onnx.passes.write_weights import write_weights


class FoldBehindSplit(Pass):
    """Fold affine maps per channel behind a Split into the linear node in front of it.

    The function stays, to rounding. A node is folded where it alone reads its part, the Split
    divides channels and alone reads the block output, nothing else reads the weights, and the types
    that store these hold the new values.
    """

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per node that went away."""
        notes = []
        views = [view for view in find_linear(graph) if isinstance(view, Linear)]
        alone = {name for name, uses in find_uses(views).items() if len(uses) == 1}
        in_bodies, shapes = nodes_in_bodies(graph), KnownShapes(graph)
        for linear in views:
            split = sole_reader(graph, linear.output, in_bodies)
            if linear.name in alone and split is not None and is_standard(split, "Split"):
                with quiet():
                    notes += _fold(graph, linear, split, shapes, in_bodies)
        return notes


def _fold(
    graph: gs.Graph, linear: Linear, split: gs.Node, shapes: KnownShapes, in_bodies: set[int]
) -> list[str]:
    widths = _widths(linear, split, shapes)
    if widths is None:
        return []
    rank = 1 if linear.channels_last else len(linear.kernel_shape) + 2
    scale, shift = np.ones(linear.width), np.zeros(linear.width)
    folded = []
    for start, width, part in zip(np.cumsum([0, *widths]), widths, split.outputs, strict=False):
        node = None if part.is_empty() else sole_reader(graph, part, in_bodies)
        if node is None:
            continue
        affine = affine_of(graph, node, part, width, rank, linear.channel_axis)
        if affine is not None:
            rows = slice(start, start + width)
            scale[rows], shift[rows] = affine.matrix.reshape(-1), affine.shift.reshape(-1)
            folded.append((node, part))
    if not folded:
        return []
    merged = scaled_and_shifted(linear, AffineMap.per_channel(scale, shift))
    if merged is None:
        return []
    notes = [f"{node.op} '{node_name(node)}' folded into '{linear.name}'" for node, _ in folded]
    for node, part in folded:
        result = node.outputs[0]
        remove(graph, node)
        split.outputs[split.outputs.index(part)] = result
    write_weights(graph, linear, merged)
    return notes


def _widths(linear: Linear, split: gs.Node, shapes: KnownShapes) -> Sequence[int] | None:
    """Return how many channels each part has; None where something else than these is divided."""
    axis, channels = int(split.attrs.get("axis", 0)), linear.channel_axis
    rank = len(shapes.get(linear.output.name, ()))
    if axis != channels and (not rank or axis % rank != channels % rank):
        return None
    sizes = stated_numbers(split, "split", 1)
    if sizes is None and len(split.inputs) > 1:
        return None
    if sizes is None:
        each = -(-linear.width // len(split.outputs))
        sizes = np.diff(np.minimum(np.arange(len(split.outputs) + 1) * each, linear.width)).tolist()
    return sizes if sum(sizes) == linear.width else None
