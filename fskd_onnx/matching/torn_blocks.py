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

from collections.abc import Collection, Iterable, Mapping

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

    def places(
        self, alignment: Alignment, certain: Collection[int], known: Collection[Place]
    ) -> set[Place]:
        """Return the pairs of an alignment, and those it leaves open, that tear a residual block.

        Where all that tear a block are known, a pair elsewhere does: of a node that may as well be
        the one that the block lacks.

        Args:
            alignment: the pairs so far.
            certain: the teacher's nodes that more than their surroundings speak for. A block that
                one of them is in was not left out.
            known: places that are left out of what is returned.
        """
        pairs = {pair.student: pair.teacher for pair in alignment.pairs.values()}
        rivals = alignment.rivals().items()
        places = {*pairs.items(), *((i, j) for i, found in rivals for j in found)}
        tearing = {
            (i, j)
            for i, j in places.difference(known)
            if any(self._lacks({**pairs, i: j}, block) for block in self._around(j, certain))
        }
        return tearing or {
            (i, j)
            for block in self._blocks
            if not block.isdisjoint(pairs.values())
            for other in self._lacks(pairs, block)
            for i, j in places.difference(known)
            if j not in block and j not in certain and self._fits(i, other, pairs)
        }

    def part(self, rivals: Iterable[int], certain: Collection[int]) -> bool:
        """Whether it depends on which residual block was left out where a node belongs.

        Activations do not tell. The student's node reads what the block that is gone would have
        changed, or what it would have been read by, so it is not like its partner either.

        Args:
            rivals: the teacher's nodes in question.
            certain: see ``places``.
        """
        return len({self._around(number, certain) for number in rivals}) > 1

    def _around(self, number: int, certain: Collection[int]) -> frozenset[frozenset[int]]:
        """Return the blocks that a node is in and that may have been left out."""
        return frozenset(
            block for block in self._blocks if number in block and block.isdisjoint(certain)
        )

    def _lacks(self, pairs: Mapping[int, int], block: frozenset[int]) -> set[int]:
        """Return the nodes of a block that no node of the student may stand for, beside pairs."""
        taken = set(pairs.values())
        gone = [inner for inner in self._blocks if inner < block and inner.isdisjoint(taken)]
        free = [i for i in range(len(self._student.blocks)) if i not in pairs]
        return {
            other
            for other in block.difference(taken, *gone)
            if not any(self._fits(i, other, pairs) for i in free)
        }

    def _fits(self, one: int, other: int, pairs: Mapping[int, int]) -> bool:
        """Whether a node may stand for one of the teacher's, beside the pairs of others."""
        mine, theirs = self._student.before, self._teacher.before
        own, partner = self._student.blocks[one], self._teacher.blocks[other]
        return (
            own.signature.agrees(partner.signature)
            and may_be_partners(own, partner)
            and all(
                mine[one, i] == theirs[other, j] and mine[i, one] == theirs[j, other]
                for i, j in pairs.items()
                if i != one
            )
        )
