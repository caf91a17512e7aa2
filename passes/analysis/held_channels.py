"""Why channels cannot go: what a node does to them that a smaller network could not do.

A clause says it of "them", the channels. Where a node knows channels by their number but stores
all that it knows (a constant per channel, the sizes of a Split), it is rewritten with them, and
there is no reason; ``fskd_onnx.passes.prune_channels`` does so. An operator that moves elements
holds its channels unless it is listed here as one that is followed.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.labels import Labels
from fskd_onnx.passes.analysis.linear_operators import is_linear_op
from fskd_onnx.passes.analysis.moves import normal, stated_numbers
from fskd_onnx.passes.analysis.nodes import bodies, has_input, is_dense, is_standard, node_name
from fskd_onnx.passes.analysis.operators import Axes, operator_of

_PER_CHANNEL = ("BatchNormalization", "InstanceNormalization")
"""They read one number per channel of axis 1, and no channel reads those of another."""

_FOLLOWED = (
    *("Concat", "DepthToSpace", "Flatten", "Gather", "Pad", "Reshape", "Slice", "SpaceToDepth"),
    *("Split", "Squeeze", "Transpose", "Unsqueeze"),
)
"""They move what is left of their input in the same way, or are rewritten to do so."""


def place(node: gs.Node) -> str:
    """Return what to call a node in a clause."""
    return f"'{node_name(node)}' ({node.op})"


def is_stored(tensor: gs.Tensor) -> bool:
    """Whether the values of a tensor stand in the file, in full, so that some can be taken out."""
    return is_dense(tensor) or constants.parameter(tensor) is not None


def why_lost(node: gs.Node) -> str:
    """Return why the channels that a node reads cannot go, if its output does not tell of them."""
    axes = operator_of(node).axes
    if bodies(node):
        what = "reads them in a body"
    elif is_linear_op(node) and not is_stored(node.inputs[1]):
        what = "multiplies them with what is not stored"
    elif axes is Axes.REDUCED:
        what = "reduces over them"
    elif axes is Axes.UNKNOWN:
        what = "may use any of them for any of its values"
    else:
        what = "cannot be followed for every one of them"
    return f"they pass through {place(node)}, which {what}"


def why_held(node: gs.Node, labels: Labels) -> str:
    """Return why the channels of a node's first input cannot go, or nothing.

    Args:
        node: of an operator that is not ``BROADCAST`` and lets labels go on.
        labels: of its first input.
    """
    what = ""
    if operator_of(node).axes is Axes.MIXED:
        what = _why_mixed(node, labels)
    elif operator_of(node).axes is Axes.MOVED and not is_standard(node, *_FOLLOWED):
        what = "cannot be rewritten for fewer"
    elif is_standard(node, "Slice"):
        what = _why_sliced(node, labels)
    elif is_standard(node, "Pad"):
        what = _why_padded(node, labels)
    elif is_standard(node, "Squeeze") and stated_numbers(node, "axes", 1) is None:
        what = "removes an axis of one channel"
    elif is_standard(node, "Resize") and _names_channels(node, labels):
        what = "states what it does along the axis of channels"
    return f"they pass through {place(node)}, which {what}" if what else ""


def _why_mixed(node: gs.Node, labels: Labels) -> str:
    if not is_standard(node, *_PER_CHANNEL):
        return "computes each of them from others"
    if labels.axes != {1} or sum(not tensor.is_empty() for tensor in node.outputs) > 1:
        return "does not read them along axis 1 alone"
    if not all(map(is_stored, node.inputs[1:])):
        return "computes its parameters"
    return ""


def _names_channels(resize: gs.Node, labels: Labels) -> bool:
    has_region = has_input(resize, 1) and tuple(resize.inputs[1].shape or ()) != (0,)
    return has_region or 1 in normal(resize.attrs.get("axes", ()), labels.rank)


def _why_sliced(node: gs.Node, labels: Labels) -> str:
    starts = stated_numbers(node, "starts", 1) or []
    axes = normal(stated_numbers(node, "axes", 3) or range(len(starts)), labels.rank)
    steps = stated_numbers(node, "steps", 4) or [1] * len(axes)
    several = any(step != 1 and axis in labels.axes for axis, step in zip(axes, steps, strict=True))
    return "takes only some of them, at a step" if several else ""


def _why_padded(node: gs.Node, labels: Labels) -> str:
    pads = stated_numbers(node, "pads", 1) or []
    axes = normal(stated_numbers(node, "axes", 3) or range(labels.rank), labels.rank)
    cut = any(
        axis in labels.axes and min(ends) < 0
        for axis, *ends in zip(axes, pads, pads[len(axes) :], strict=False)
    )
    return "takes some of them away" if cut else ""
