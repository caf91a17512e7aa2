"""The ranks that a node may be factorized at, and what the chain of each costs.

Costs are those of the weights: a bias stays as it is and is not counted. Along each axis a node of
a chain runs at the positions of the output once one in front of it, or itself, has moved along the
axis, else at those of the input (``passes.analysis.factorizable``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, Rank, full_rank, links
from fskd_onnx.passes.analysis.linear import Linear

# What is left of a node's multiply-adds, from level to level.
_FIRST, _STEP, _LEVELS = 0.9, 0.8, 12
_WIDE, _NARROW = 32, 16
# As many halve a share until it tells all ranks apart.
_BISECTIONS = 24


class ChainCosts(NamedTuple):
    """What a chain costs.

    Attributes:
        multiply_adds: of one sample.
        parameters: number of weights.
    """

    multiply_adds: int
    parameters: int


def chain_costs(
    form: Form, shape: LinearShape, rank: Rank, inputs: Sequence[int], outputs: Sequence[int]
) -> ChainCosts:
    """Return what the chain of a node costs.

    Args:
        form: of the chain.
        shape: of the node.
        rank: of the chain.
        inputs: extents of the positions of the node's input, () for one.
        outputs: those of its output; of a matrix the same.
    """
    extents = list(inputs)
    multiply_adds = parameters = 0
    for link in links(form, shape, rank):
        for axis in link.axes:
            extents[axis] = outputs[axis]
        multiply_adds += link.parameters * math.prod(extents)
        parameters += link.parameters
    return ChainCosts(multiply_adds, parameters)


def candidate_ranks(form: Form, linear: Linear, round_to: int = 8) -> list[Rank]:
    """Return ranks of chains that cost less than the node, the largest one first, 12 at most.

    The chain of each takes about 0.8 times the multiply-adds of the one before, 0.9 times those of
    the node being the most. Strides count: what is in front of one runs at more positions.

    Args:
        form: of the chains.
        linear: a node that can be factorized in the form, see ``factorizable.why_not``.
        round_to: ranks are multiples of this, finer in narrow layers (``step_of``). Numbers of
            depthwise kernels are any.
    """
    shape = LinearShape.of(linear)
    strides = [int(s) for s in linear.node.attrs.get("strides") or [1] * len(shape.kernel)]
    whole = shape.outputs * shape.inputs * shape.taps
    full = full_rank(form, shape)
    steps = [1 if form == Form.DECOUPLE else step_of(width, round_to) for width in full]
    if form == Form.SPATIAL_SVD:
        steps = [step_of(min(shape.outputs, shape.inputs), round_to)]

    def cost(rank: Rank) -> int:
        return chain_costs(form, shape, rank, strides, [1] * len(strides)).multiply_adds

    found: list[Rank] = []
    for level in range(_LEVELS):
        part = _largest_part(full, steps, cost, _FIRST * _STEP**level * whole)
        if part is not None and part not in found:
            found.append(part)
    return found


def step_of(width: int, round_to: int) -> int:
    """Return what numbers of channels are multiples of.

    Kernels work on blocks of channels, and a number that they do not divide may take longer than
    the next larger one that they do. But few channels need fine steps.

    Args:
        width: number of channels.
        round_to: the step of wide layers.
    """
    if width >= _WIDE:
        return round_to
    return max(1, round_to // (4 if width < _NARROW else 2))


def _largest_part(
    full: Rank, steps: Sequence[int], cost: Callable[[Rank], int], budget: float
) -> Rank | None:
    """Return the largest equal part of a full rank within a budget, in multiples of steps.

    Returns:
        None where no rank below the full one is within it.
    """

    def part(share: float) -> Rank:
        return tuple(
            min(max(int(share * most) // step * step, step), most - 1)
            for most, step in zip(full, steps, strict=True)
        )

    within, above = 0.0, 1.0
    for _ in range(_BISECTIONS):
        share = (within + above) / 2
        within, above = (share, above) if cost(part(share)) <= budget else (within, share)
    found = part(within)
    return found if cost(found) <= budget else None
