"""What is known of each block before anything runs: what it reads, and where its error is seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.epilogue import NO_EPILOGUE, Epilogue, find_epilogue
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import nodes_in_bodies
from fskd_onnx.passes.analysis.segments import ancestors
from fskd_onnx.passes.analysis.shapes import KnownShapes
from fskd_onnx.passes.analysis.shared_weights import find_uses
from fskd_onnx.results import BlockPair, Matching
from fskd_onnx.runtime.collector import ColumnRequest
from fskd_onnx.runtime.column_sampling import RandomSampling


@dataclass(frozen=True)
class BlockUse:
    """One node of a block: the only one, or one of several that use the same weights.

    Attributes:
        name: of the student's node.
        block_input: the student's tensor that the node reads.
        columns_last: whether a column of it lies on the last axis, see ``Linear``.
        partner: the teacher's block.
        epilogue: where the student's error is seen.
        teacher_sum: the teacher's sum behind its block output; None where the error is not seen
            there.
        sampling: which columns are looked at.
    """

    name: str
    block_input: str
    columns_last: bool
    partner: Linear
    epilogue: Epilogue
    teacher_sum: str | None
    sampling: RandomSampling

    @property
    def student_tensors(self) -> list[str]:
        """The student's tensors that have to exist for the columns."""
        shortcut = self.epilogue.shortcut
        return [self.block_input, *([shortcut] if shortcut else [])]

    @property
    def teacher_columns(self) -> ColumnRequest:
        """The teacher's columns that are fitted to: of its block output and its sum."""
        tensors = self.partner.output.name, *([self.teacher_sum] if self.teacher_sum else [])
        return ColumnRequest(tensors, self.partner.columns_last, self.sampling)

    def bytes(self, elements: Mapping[str, int]) -> int:
        """Return the size of the teacher's columns, roughly and at most.

        Args:
            elements: of the teacher's tensors for all samples, where that is known.
        """
        name, width = self.partner.output.name, self.partner.width
        columns = min(self.sampling.columns, elements.get(name, math.inf) // width)
        return int(4 * width * columns * len(self.teacher_columns.tensors))


@dataclass(frozen=True)
class BlockPlan:
    """What is known of a block before anything runs.

    Attributes:
        index: its number among the blocks that are fitted.
        unknowns: of its regression.
        uses: the nodes that use its weights; the columns of all of them are fitted to together.
        gives_scores: whether it gives an output of the network, a row of scores per sample.
    """

    index: int
    unknowns: int
    uses: tuple[BlockUse, ...]
    gives_scores: bool = False

    @property
    def name(self) -> str:
        """Name of the student's node, the first one of several."""
        return self.uses[0].name

    @property
    def student_tensors(self) -> list[str]:
        """The student's tensors that have to exist for the block."""
        return [name for use in self.uses for name in use.student_tensors]

    def bytes(self, elements: Mapping[str, int]) -> int:
        """Return the size of the teacher's columns, see ``BlockUse.bytes``."""
        return sum(use.bytes(elements) for use in self.uses)


_SeenAt = tuple[Epilogue, str | None]
"""An epilogue of the student, and the teacher's sum if it has one."""


def common_epilogue(epilogues: Sequence[Epilogue]) -> Epilogue:
    """Return where the error of several uses is seen alike: behind what follows each of them."""
    if any(epilogue.sum_output is None for epilogue in epilogues):
        epilogues = [epilogue.without_sum() for epilogue in epilogues]
    alike = len({(epilogue.low, epilogue.high) for epilogue in epilogues}) == 1
    return epilogues[0] if alike else NO_EPILOGUE


def plan_blocks(
    matching: Matching, student: gs.Graph, teacher: gs.Graph, needs_patches: bool, seed: int
) -> list[BlockPlan]:
    """Find where each block's columns come from and where its error is seen.

    The plans are in the order of the teacher's nodes, as far as data flow in the student allows: in
    which order a file lists the student's nodes changes nothing. Nodes that use the same weights
    are one block; their columns are as many as those of a single one, divided evenly.

    Args:
        matching: pairs of blocks.
        student: the compressed network.
        teacher: the original network.
        needs_patches: whether the regressors are patches, not outputs, of which as many count as
            there are dimensions.
        seed: for the choice of columns.
    """
    partners = {v.output.name: v for v in find_linear(teacher) if isinstance(v, Linear)}
    views = {v.name: v for v in find_linear(student) if isinstance(v, Linear)}
    order = {name: number for number, name in enumerate(partners)}
    blocks = _in_order(_blocks(matching.usable, views), views, order)
    in_bodies = [nodes_in_bodies(graph) for graph in (student, teacher)]
    shapes = [KnownShapes(graph) for graph in (student, teacher)]
    tensors = {t.name: t for node in student.nodes for t in node.outputs}
    later = {id(views[pair.student].last_node) for pair in matching.usable}

    def seen_at(linear: Linear, partner: Linear) -> _SeenAt:
        """Return where the error of a use is seen, in both networks."""
        epilogue = find_epilogue(student, linear, in_bodies[0], shapes[0])
        theirs = find_epilogue(teacher, partner, in_bodies[1], shapes[1])
        if epilogue.sum_output is None:
            return epilogue, None
        shortcut = [tensors[name] for name in (epilogue.shortcut,) if name in tensors]
        # A shortcut that is corrected later would be repaired twice.
        if theirs.sum_output is None or any(id(node) in later for node in ancestors(shortcut)):
            return epilogue.without_sum(), None
        return epilogue, theirs.sum_output

    plans = []
    for index, block in enumerate(blocks):
        linears = [views[pair.student] for pair in block]
        teachers = [partners[str(pair.teacher)] for pair in block]
        seen = list(map(seen_at, linears, teachers))
        if not all(teacher_sum for _, teacher_sum in seen):
            seen = [(epilogue.without_sum(), None) for epilogue, _ in seen]
        _, n, p = linears[0].shape
        unknowns = p if needs_patches else min(n, p)
        all_columns = RandomSampling.of_unknowns(unknowns, (seed, index))
        share = math.ceil(all_columns.columns / len(block))
        uses = tuple(
            BlockUse(
                name=linear.name,
                block_input=linear.input.name,
                columns_last=linear.columns_last,
                partner=partner,
                epilogue=epilogue,
                teacher_sum=teacher_sum,
                sampling=RandomSampling(share, (*all_columns.seed, *([use] if use else []))),
            )
            for use, (linear, partner, (epilogue, teacher_sum)) in enumerate(
                zip(linears, teachers, seen, strict=True)
            )
        )
        scores = {id(t) for t in student.outputs if t.shape is not None and len(t.shape) == 2}
        gives_scores = any(id(linear.output) in scores for linear in linears)
        plans.append(BlockPlan(index, unknowns, uses, gives_scores))
        later -= {id(linear.last_node) for linear in linears}
    return plans


def _blocks(pairs: Sequence[BlockPair], views: Mapping[str, Linear]) -> list[list[BlockPair]]:
    """Put the pairs of nodes that use the same weights together."""
    uses = find_uses(list(views.values()))
    blocks: dict[str, list[BlockPair]] = {}
    for pair in pairs:
        blocks.setdefault(uses[pair.student][0].name, []).append(pair)
    return list(blocks.values())


def _in_order(
    blocks: Sequence[Sequence[BlockPair]], views: Mapping[str, Linear], order: Mapping[str, int]
) -> list[Sequence[BlockPair]]:
    """Put blocks in the order of their partners, and each behind those that it depends on.

    Args:
        blocks: the pairs of each. None depends on itself (``matching.shared_blocks``).
        views: the student's linear nodes, by name.
        order: numbers of the teacher's block outputs.
    """
    waiting = sorted(blocks, key=lambda block: max(order[str(pair.teacher)] for pair in block))
    ends = {id(views[p.student].last_node): block[0] for block in blocks for p in block}
    needed = {
        block[0].student: {
            ends[id(node)].student
            for node in ancestors([views[pair.student].input for pair in block])
            if id(node) in ends
        }
        for block in blocks
    }
    ordered: list[Sequence[BlockPair]] = []
    while waiting:
        left = {block[0].student for block in waiting}
        ready = next(block for block in waiting if not needed[block[0].student] & left)
        waiting.remove(ready)
        ordered.append(ready)
    return ordered
