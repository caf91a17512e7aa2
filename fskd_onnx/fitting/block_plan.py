"""What is known of each block before anything runs: what it reads, and where its error is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.epilogue import Epilogue, find_epilogue
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import nodes_in_bodies
from fskd_onnx.passes.analysis.segments import ancestors
from fskd_onnx.results import BlockPair, Matching
from fskd_onnx.runtime.collector import ColumnRequest
from fskd_onnx.runtime.column_sampling import RandomSampling


@dataclass(frozen=True)
class BlockPlan:
    """What is known of a block before anything runs.

    Attributes:
        index: its number among the blocks that are fitted.
        name: of the student's node.
        block_input: the student's tensor that the block reads.
        partner: the teacher's block.
        epilogue: where the student's error is seen.
        teacher_sum: the teacher's sum behind its block output; None where the error is not seen
            there.
        unknowns: of its regression.
        sampling: which columns are looked at.
    """

    index: int
    name: str
    block_input: str
    partner: Linear
    epilogue: Epilogue
    teacher_sum: str | None
    unknowns: int
    sampling: RandomSampling

    @property
    def student_tensors(self) -> list[str]:
        """The student's tensors that have to exist for the block."""
        shortcut = self.epilogue.shortcut
        return [self.block_input, *([shortcut] if shortcut else [])]

    @property
    def teacher_columns(self) -> ColumnRequest:
        """The teacher's columns that the block is fitted to: of its block output and its sum."""
        tensors = self.partner.output.name, *([self.teacher_sum] if self.teacher_sum else [])
        return ColumnRequest(tensors, self.partner.columns_last, self.sampling)

    @property
    def bytes(self) -> int:
        """Size of the teacher's columns, roughly and at most."""
        tensors = len(self.teacher_columns.tensors)
        return 4 * self.partner.width * self.sampling.columns * tensors


def plan_blocks(
    matching: Matching, student: gs.Graph, teacher: gs.Graph, needs_patches: bool, seed: int
) -> list[BlockPlan]:
    """Find where each block's columns come from and where its error is seen.

    The plans are in the order of the teacher's nodes, as far as data flow in the student allows: in
    which order a file lists the student's nodes changes nothing.

    Args:
        matching: pairs of blocks.
        student: the compressed network.
        teacher: the original network.
        needs_patches: whether the regressors are patches, not outputs, of which as many count as
            there are dimensions.
        seed: for the choice of columns.
    """
    partners = {v.output.name: v for v in find_linear(teacher) if isinstance(v, Linear)}
    tensors = {t.name: t for node in student.nodes for t in node.outputs}
    views = {v.name: v for v in find_linear(student) if isinstance(v, Linear)}
    order = {name: number for number, name in enumerate(partners)}
    pairs = _in_order(matching.usable, views, order)
    linears = [views[pair.student] for pair in pairs]
    in_bodies = [nodes_in_bodies(graph) for graph in (student, teacher)]
    plans = []
    for index, (pair, linear) in enumerate(zip(pairs, linears, strict=True)):
        partner = partners[str(pair.teacher)]
        epilogue = find_epilogue(student, linear, in_bodies[0])
        theirs = find_epilogue(teacher, partner, in_bodies[1])
        if epilogue.sum_output is not None:
            later = {id(v.bias_node or v.node) for v in linears[index:]}
            shortcut = [tensors[name] for name in (epilogue.shortcut,) if name in tensors]
            # A shortcut that is corrected later would be repaired twice.
            if theirs.sum_output is None or any(id(node) in later for node in ancestors(shortcut)):
                epilogue = epilogue.without_sum()
        _, n, p = linear.shape
        unknowns = p if needs_patches else min(n, p)
        plans.append(
            BlockPlan(
                index=index,
                name=pair.student,
                block_input=linear.input.name,
                partner=partner,
                epilogue=epilogue,
                teacher_sum=None if epilogue.sum_output is None else theirs.sum_output,
                unknowns=unknowns,
                sampling=RandomSampling.of_unknowns(unknowns, (seed, index)),
            )
        )
    return plans


def _in_order(
    pairs: Sequence[BlockPair], views: Mapping[str, Linear], order: Mapping[str, int]
) -> list[BlockPair]:
    """Put pairs in the order of their partners, and each behind those that it depends on."""
    waiting = sorted(pairs, key=lambda pair: order[str(pair.teacher)])
    ends = {id(views[p.student].output.inputs[0]): p.student for p in pairs}
    needed = {
        pair.student: {
            ends[id(node)] for node in ancestors([views[pair.student].input]) if id(node) in ends
        }
        for pair in pairs
    }
    ordered: list[BlockPair] = []
    while waiting:
        left = {pair.student for pair in waiting}
        ready = next(pair for pair in waiting if not needed[pair.student] & left)
        waiting.remove(ready)
        ordered.append(ready)
    return ordered
