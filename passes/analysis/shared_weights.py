"""Which linear nodes are the uses of one block: nodes that apply the same weights.

A head that runs on every level of a pyramid, the branches of a siamese network and tied layers read
one initializer::

    x1 ──▶ Conv (w, b) ──▶ y1
    x2 ──▶ Conv (w, b) ──▶ y2        two uses of one block

They are rewritten together or not at all: new weights are new for each of them. Strides, padding
and dilation may differ, for what a linear node applies to each of its patches does not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.nodes import node_name

Uses = Mapping[str, tuple[Linear, ...]]
"""All uses of the block of a linear node, itself included, by the node's name."""


def find_uses(linears: Sequence[Linear]) -> Uses:
    """Find the linear nodes that are rewritten together.

    Args:
        linears: all linear nodes of a graph, in the order of its nodes.

    Returns:
        The uses of each block. A node is not listed where its weights are also read by what is no
        use of the block, see ``who_else_reads``.
    """
    by_weight: defaultdict[int, list[Linear]] = defaultdict(list)
    for linear in linears:
        by_weight[id(linear.weight)].append(linear)
    found: dict[str, tuple[Linear, ...]] = {}
    for uses in by_weight.values():
        readers = {id(node) for node in constants.readers(uses[0].weight)}
        alike = len({_reading(use) for use in uses}) == 1
        if alike and readers == {id(use.node) for use in uses}:
            found |= dict.fromkeys((use.name for use in uses), tuple(uses))
    return found


def who_else_reads(linear: Linear, linears: Iterable[Linear]) -> str:
    """Return what keeps a node that ``find_uses`` does not list from being rewritten.

    It is what is to be said of its weights: they "are also those of" another node.

    Args:
        linear: the node.
        linears: all linear nodes of its graph.
    """
    views = {id(view.node): view for view in linears}
    others = [node for node in constants.readers(linear.weight) if node is not linear.node]
    for node in others:
        if id(node) not in views:
            return f"are also those of '{node_name(node)}'"
    other = next(v for n in others if _reading(v := views[id(n)]) != _reading(linear))
    how = "whose bias is another" if _bias(other) != _bias(linear) else "in another way"
    return f"are also those of '{other.name}', {how}"


def _reading(linear: Linear) -> tuple[object, ...]:
    """Return what nodes that read one constant have in common if they apply the same map."""
    operator, attributes = linear.operator, linear.node.attrs
    return (
        linear.op,
        linear.shape,
        linear.dtype,
        bool(attributes.get(operator.swapped_by, 0)),
        float(attributes.get(operator.weight_factor, 1.0)),
        *_bias(linear),
    )


def _bias(linear: Linear) -> tuple[int | None, float]:
    """Return which constant a node reads as its bias, and what it multiplies it with."""
    constant = linear.bias_constant
    factor = float(linear.node.attrs.get(linear.operator.bias_factor, 1.0))
    return None if constant is None else id(constant), factor
