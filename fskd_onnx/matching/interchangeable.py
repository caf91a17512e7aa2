"""Nodes that nothing tells apart, since an operator's operands may be exchanged."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fskd_onnx.matching.alignment import Alignment, Pair
from fskd_onnx.matching.block_graph import BlockContext, BlockGraph


def interchangeable_pair(
    alignment: Alignment, student: BlockGraph, teacher: BlockGraph
) -> Pair | None:
    """Return a pair of one of several nodes that nothing tells apart and one of as many candidates.

    They have to go the same way to an operator whose operands may be exchanged, in both networks;
    any others have a place of their own, that the evidence does not tell.

    Args:
        alignment: what is paired, and what is open.
        student: the student's nodes.
        teacher: the teacher's.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, rivals in alignment.rivals().items():
        groups.setdefault(tuple(rivals), []).append(i)
    for candidates, nodes in groups.items():
        unordered = not (
            student.before[np.ix_(nodes, nodes)].any()
            or teacher.before[np.ix_(candidates, candidates)].any()
        )
        joined = _are_joined(student.blocks[i] for i in nodes) and _are_joined(
            teacher.blocks[j] for j in candidates
        )
        if len(candidates) == len(nodes) > 1 and unordered and joined:
            i = min(nodes, key=lambda node: _content(student.blocks[node]))
            j = min(candidates, key=lambda node: _content(teacher.blocks[node]))
            return Pair(i, j, 1 / len(candidates))
    return None


def _are_joined(blocks: Iterable[BlockContext]) -> bool:
    """Whether the outputs of some nodes go the same way to an operator that commutes."""
    ways = {block.joined for block in blocks}
    return len(ways) == 1 and None not in ways


def _content(block: BlockContext) -> bytes:
    """Return what orders nodes without a look at names or at the order in a file."""
    return block.linear.matrix.tobytes() + block.linear.bias.tobytes()
