"""What stands around the linear nodes of a teacher where other residual blocks are left out.

::

    x ─▶ a ─┬─▶ b ─▶ Relu ─▶ c ─▶ + ─▶ d     a is read by b and by a sum; without b and c,
            └─────────────────────┘          d alone reads it, and a and d are a chain

A student that lost blocks has such surroundings, and whose they are cannot be told without a look
at all blocks that it may have lost. A block goes as a whole, so what is in one is looked at with
that block in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from fskd_onnx.matching.block_graph import BlockContext, BlockGraph, find_block_graph
from fskd_onnx.passes import DropBlocks
from fskd_onnx.passes.analysis.residual_blocks import ResidualBlock, find_residual_blocks


def droppable_blocks(graph: gs.Graph) -> list[ResidualBlock]:
    """Return the residual blocks of a canonical graph that may be left out."""
    return [block for block in find_residual_blocks(graph) if block.linears and not block.reason]


def with_dropped_blocks(
    teacher: BlockGraph, graph: gs.Graph, blocks: Sequence[ResidualBlock]
) -> BlockGraph:
    """Return the nodes of a teacher, each with its surroundings where others are left out.

    Args:
        teacher: the nodes.
        graph: that they are in, canonical.
        blocks: its residual blocks that may be left out.
    """
    kept = {
        linear.output.name: frozenset(b.name for b in blocks if linear.name in b.linears)
        for linear in (block.linear for block in teacher.blocks)
    }
    bare: dict[str, BlockContext] = {}
    for own in set(kept.values()):
        dropped = [block.name for block in blocks if block.name not in own]
        if dropped:
            smaller = graph.copy()
            DropBlocks(dropped).apply(smaller)  # all of them may be left out, as was found
            found = {block.linear.output.name: block for block in find_block_graph(smaller).blocks}
            bare |= {name: block for name, block in found.items() if kept.get(name) == own}
    contexts = [(block, bare.get(block.linear.output.name)) for block in teacher.blocks]
    return replace(
        teacher,
        blocks=tuple(
            block if other is None else replace(block, alternatives=tuple(_mixed(block, other)))
            for block, other in contexts
        ),
    )


def _mixed(whole: BlockContext, bare: BlockContext) -> Iterator[BlockContext]:
    """Yield what may stand around a node if blocks are left out in front of it, behind it, both."""
    for front, behind in ((whole, bare), (bare, whole), (bare, bare)):
        yield replace(behind, input_kinds=front.input_kinds, input_field=front.input_field)
