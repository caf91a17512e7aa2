"""Which pairs would leave a part of a residual block of the teacher without any node of a student.

::

    teacher  x ─▶ a ─▶ Relu ─┬─▶ b ─▶ Relu ─▶ c ─▶ + ─▶ d      student  x ─▶ s ─▶ Relu ─▶ d
                             └─────────────────────┘

A residual block that goes, goes as a whole: its shortcut stays, and whatever was narrowed inside of
it fits nowhere else. So s is a, and b and c are gone. Were s a narrower b, then c would be gone
alone, which leaves no sum that b could be a part of; still b may look more like s than a does, by
its width or by what stands around it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fskd_onnx.matching.alignment import Alignment
from fskd_onnx.matching.block_evidence import may_be_partners
from fskd_onnx.matching.block_graph import BlockGraph
from fskd_onnx.passes.analysis.residual_blocks import ResidualBlock

Place = tuple[int, int]
"""A student's node and the teacher's that it may stand for, as numbers."""


class TornBlocks:
    """The residual blocks of a teacher, and what would tear one of them."""

    def __init__(
        self, blocks: Iterable[ResidualBlock], teacher: BlockGraph, student: BlockGraph
    ) -> None:
        """Begin.

        Args:
            blocks: the residual blocks that may be left out.
            teacher: the teacher's linear nodes.
            student: those of the student.
        """
        numbers = {block.linear.name: j for j, block in enumerate(teacher.blocks)}
        self._blocks = [frozenset(numbers[name] for name in block.linears) for block in blocks]
        self._teacher, self._student = teacher, student

    def places(self, alignment: Alignment, certain: Collection[int]) -> set[Place]:
        """Return the pairs of an alignment, and those it leaves open, that tear a residual block.

        Args:
            alignment: the pairs so far.
            certain: the teacher's nodes that more than their surroundings speak for. A block that
                one of them is in was not left out.
        """
        pairs = [(pair.student, pair.teacher) for pair in alignment.pairs.values()]
        open_places = [(i, j) for i, rivals in alignment.rivals().items() for j in rivals]
        doubtful = [block for block in self._blocks if block.isdisjoint(certain)]
        return {
            place
            for place in (*pairs, *open_places)
            if any(place[1] in block and self._tears(alignment, place, block) for block in doubtful)
        }

    def _tears(self, alignment: Alignment, place: Place, block: frozenset[int]) -> bool:
        taken = {pair.teacher for pair in alignment.pairs.values()} | {place[1]}
        gone = [inner for inner in self._blocks if inner < block and inner.isdisjoint(taken)]
        left = block.difference(taken, *gone)
        return any(not self._may_be_there(alignment, place, other) for other in left)

    def _may_be_there(self, alignment: Alignment, place: Place, other: int) -> bool:
        """Whether a node without a partner may stand for one of the teacher, beside a pair."""
        own, theirs = place
        mine, before = self._student.before, self._teacher.before
        of_other = self._teacher.blocks[other]
        return any(
            one != own
            and mine[one, own] == before[other, theirs]
            and mine[own, one] == before[theirs, other]
            and alignment.fits(one, other)
            and block.signature.agrees(of_other.signature)
            and may_be_partners(block, of_other)
            for one, block in enumerate(self._student.blocks)
            if one not in alignment.pairs
        )
