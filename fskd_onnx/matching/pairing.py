"""Which block of the teacher a block of the student stands for, or why none does.

Names count last: an exporter, an optimizer or a pruning tool may have given new ones. Evidence is
taken in this order:

* what is possible at all: outputs of the same extent, reached from the same inputs of the network,
  reaching the same outputs of it;
* weights that are slices of the teacher's (``fskd_onnx.matching.weight_overlap``), or kernels of
  chains that are composed to the teacher's (``fskd_onnx.matching.block_evidence``);
* the kind of the node and of the nodes around it, and with it the order of data flow, which the
  alignment keeps (``fskd_onnx.matching.alignment``). Where the student has fewer nodes, the
  teacher is looked at with residual blocks left out as well, and only as a whole
  (``fskd_onnx.matching.dropped_blocks``, ``fskd_onnx.matching.torn_blocks``);
* where that leaves several candidates: how alike activations are, then names in common.

The last linear node of a decomposed block is the one in front of the block's activation, so it is
paired with the teacher's block; the inner nodes have no partner.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.matching.alignment import Alignment
from fskd_onnx.matching.block_evidence import likeness, may_be_partners, names_of, overlaps
from fskd_onnx.matching.block_graph import find_block_graph
from fskd_onnx.matching.dropped_blocks import droppable_blocks, with_dropped_blocks
from fskd_onnx.matching.interchangeable import interchangeable_pair
from fskd_onnx.matching.torn_blocks import Place, TornBlocks
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.results import Evidence

Floats = NDArray[np.float64]

Similarity = Callable[[Mapping[str, Sequence[str]]], Mapping[tuple[str, str], float]]
"""Tells how alike activations are, 0..1, for some tensors of the student and the teacher's in
question for each."""

# A slice outweighs all likeness in structure along a stretch of a few nodes.
_SLICE = 2.0
# Nodes less alike than this are rather left out.
_LEAST_ALIKE = 0.5
# How much less alike a place counts where it would tear a residual block.
_TORN = 0.2
# Where no activations are more alike than this (linear CKA), they do not tell: a student that has
# lost much is like none of several.
_LEAST_ALIKE_ACTIVATIONS = 0.5
# Of evidence that only counts among candidates that are as good as each other.
_ALIKE_ACTIVATIONS = 2.0
_SAME_NAME = 1.0


@dataclass(frozen=True)
class Partner:
    """A block of the student and its partner.

    Attributes:
        student: name of the student's linear node.
        teacher: the teacher's block output, or None where the block has no partner.
        evidence: what it was found by.
        confidence: 0..1, its share among all candidates.
        reason: why it has no partner; empty where it has one.
        channels: teacher channel of each student channel, where that is given from outside.
    """

    student: str
    teacher: str | None
    evidence: Evidence = Evidence.NONE
    confidence: float = 0.0
    reason: str = ""
    channels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse a block without a partner and without a reason: it would count as paired."""
        if self.teacher is None and not self.reason:
            raise ValueError(f"'{self.student}' has no partner, and no reason says why")


def inner_node_of(end: str) -> str:
    """Return the reason of a node of a decomposed block, of which ``end`` is the last one."""
    return f"it is an inner node of the block that ends at '{end}'"


def pair_blocks(
    teacher: gs.Graph,
    student: gs.Graph,
    given: Mapping[str, Partner] | None = None,
    similarity: Similarity | None = None,
) -> tuple[Partner, ...]:
    """Pair the blocks of two canonical graphs.

    Args:
        teacher: the original network.
        student: the compressed network.
        given: pairs that are not to be questioned, by the name of the student's node.
        similarity: asked where weights and structure leave several candidates.

    Returns:
        One for each linear node of the student, in the order of its nodes.
    """
    return _Pairing(teacher, student, given or {}).run(student, similarity)


class _Pairing:
    """The search for partners."""

    def __init__(self, teacher: gs.Graph, student: gs.Graph, given: Mapping[str, Partner]) -> None:
        self._teacher, self._student = find_block_graph(teacher), find_block_graph(student)
        self._given = given
        mine, theirs = (
            (sum(not block.is_inner for block in network.blocks), len(network.blocks))
            for network in (self._student, self._teacher)
        )
        # Inner nodes may be those of a decomposition, where the teacher has no such nodes.
        lacks_nodes = mine[0] < theirs[1] and mine != theirs
        droppable = droppable_blocks(teacher) if lacks_nodes else []
        self._teacher = with_dropped_blocks(self._teacher, teacher, droppable)
        self._torn_blocks = TornBlocks(droppable, self._teacher, self._student)
        self._overlaps = overlaps(self._student, self._teacher)
        alike = likeness(self._student, self._teacher)
        evidence = _SLICE * self._overlaps + alike - _LEAST_ALIKE
        self._alignment = self._settled(evidence)
        self._evidence: dict[int, Evidence] = {}

    def run(self, graph: gs.Graph, similarity: Similarity | None) -> tuple[Partner, ...]:
        """Pair nodes by one kind of evidence after another."""
        for pair in self._alignment.pairs.values():
            if self._given.get(self._student.blocks[pair.student].linear.name) is not None:
                continue
            found = self._overlaps[pair.student, pair.teacher] > 0
            self._evidence[pair.student] = Evidence.WEIGHTS if found else Evidence.STRUCTURE
        if similarity is not None:
            self._settle(
                _ALIKE_ACTIVATIONS * self._activation_similarity(similarity), Evidence.ACTIVATIONS
            )
        self._settle(_SAME_NAME * self._names_in_common(), Evidence.NAMES)
        while twins := interchangeable_pair(self._alignment, self._student, self._teacher):
            self._alignment.fix(twins.student, twins.teacher, twins.certainty)
            self._evidence[twins.student] = Evidence.STRUCTURE
            self._settle(np.zeros(self._overlaps.shape), Evidence.STRUCTURE)
        found = {
            block.linear.name: self._partner(number)
            for number, block in enumerate(self._student.blocks)
        }
        views = find_linear(graph)
        return tuple(
            found[view.name]
            if isinstance(view, Linear)
            else Partner(view.name, None, reason=view.reason)
            for view in views
        )

    def _settled(self, evidence: Floats) -> Alignment:
        """Return the alignment that weights and surroundings give, beside the given pairs.

        Inner nodes of chains that only their surroundings speak for are partners where the nodes
        behind them are. Where weights speak for one and the nodes behind it have no partner, as
        when those only scale its channels, the end of the chain is the partner. What would tear a
        residual block has to be more alike than what would not.
        """
        torn: set[Place] = set()
        while True:
            alignment = Alignment(evidence, self._student.before, self._teacher.before)
            self._take_given(alignment)
            apart = []
            for pair in alignment.settle():
                at = pair.student, pair.teacher
                end = self._end_without_partner(alignment, *at)
                if end is not None:
                    evidence[end], self._overlaps[end] = evidence[at], self._overlaps[at]
                    apart.append(at)
                elif self._overlaps[at] <= 0 and self._part_behind(alignment, *at):
                    apart.append(at)
            if apart:
                evidence[tuple(zip(*apart, strict=True))] = -np.inf
            elif found := self._torn_blocks.places(alignment, self._certain(alignment), torn):
                evidence[tuple(zip(*found, strict=True))] -= _TORN
                torn |= found
            else:
                return alignment

    def _certain(self, alignment: Alignment) -> set[int]:
        """Return the teacher's nodes whose partners are given, or found by their weights."""
        return {
            pair.teacher
            for pair in alignment.pairs.values()
            if self._student.blocks[pair.student].linear.name in self._given
            or self._overlaps[pair.student, pair.teacher] > 0
        }

    def _end_without_partner(
        self, alignment: Alignment, one: int, other: int
    ) -> tuple[int, int] | None:
        """Return the pair of ends where one of two nodes is inner, and none behind it has one."""
        if may_be_partners(self._student.blocks[one], self._teacher.blocks[other]):
            return None
        mine = _end_of_chain(self._student.chained, one, set(alignment.pairs))
        theirs = _end_of_chain(
            self._teacher.chained, other, {pair.teacher for pair in alignment.pairs.values()}
        )
        if mine is None or theirs is None or (mine, theirs) == (one, other):
            return None
        return mine, theirs

    def _part_behind(self, alignment: Alignment, one: int, other: int) -> bool:
        """Whether two nodes are read by nodes that are no partners, or sums that they are in."""
        mine, block = self._student.blocks[one].read_by, self._teacher.blocks[other]
        theirs = {context.read_by for context in (block, *block.alternatives)} - {None}
        if mine is None or not theirs:
            return False
        partners = {
            self._student.blocks[pair.student].linear.output.name: (
                self._teacher.blocks[pair.teacher].linear.output.name
            )
            for pair in alignment.pairs.values()
        }
        if mine in partners:
            return partners[mine] not in theirs
        return theirs <= set(partners.values())

    def _take_given(self, alignment: Alignment) -> None:
        outputs = {block.linear.output.name: j for j, block in enumerate(self._teacher.blocks)}
        for number, block in enumerate(self._student.blocks):
            partner = self._given.get(block.linear.name)
            if partner is not None and partner.teacher is not None:
                alignment.fix(number, outputs[partner.teacher], 1.0)
            elif partner is not None:
                alignment.leave_out(number)

    def _settle(self, bonus: Floats, evidence: Evidence) -> None:
        for pair in self._alignment.settle(bonus):
            self._evidence[pair.student] = evidence

    def _activation_similarity(self, similarity: Similarity) -> Floats:
        """Return how alike activations are, where several candidates are as good as each other."""
        outputs = {j: block.linear.output.name for j, block in enumerate(self._teacher.blocks)}
        certain = self._certain(self._alignment)
        rivals = {
            i: found
            for i, found in self._alignment.rivals().items()
            if len(found) > 1 and not self._torn_blocks.part(found, certain)
        }
        alike = np.zeros(self._overlaps.shape)
        own = {i: self._student.blocks[i].linear.output.name for i in rivals}
        if rivals:
            answers = similarity(
                {own[i]: [outputs[j] for j in found] for i, found in rivals.items()}
            )
            for i, found in rivals.items():
                each = [answers[own[i], outputs[j]] for j in found]
                if max(each) >= _LEAST_ALIKE_ACTIVATIONS:
                    alike[i, found] = each
        return alike

    def _names_in_common(self) -> Floats:
        shared = np.zeros(self._overlaps.shape)
        names = [names_of(block.linear) for block in self._teacher.blocks]
        for i, rivals in self._alignment.rivals().items():
            own = names_of(self._student.blocks[i].linear)
            for j in rivals:
                shared[i, j] = bool(own & names[j])
        return shared

    def _partner(self, number: int) -> Partner:
        name = self._student.blocks[number].linear.name
        if name in self._given:
            return self._given[name]
        pair = self._alignment.pairs.get(number)
        if pair is None:
            return Partner(name, None, reason=self._why_alone(number))
        output = self._teacher.blocks[pair.teacher].linear.output.name
        return Partner(name, output, self._evidence[number], pair.certainty)

    def _why_alone(self, number: int) -> str:
        end = self._end_of_block(number)
        if end is not None and self._student.blocks[number].is_inner:
            return inner_node_of(end)
        rivals = self._alignment.rivals()
        candidates = rivals.get(number, [])
        summed = self._student.blocks[number].summed_with
        if summed is not None and not candidates:
            added = ", ".join(f"'{name}'" for name in summed) or "its input"
            return f"it is summed with {added}, and the teacher has no such sum"
        others = [i for i, found in rivals.items() if i != number and set(found) & set(candidates)]
        names = [self._teacher.blocks[j].linear.name for j in candidates]
        if len(candidates) == 1 and others:
            quoted = ", ".join(f"'{self._student.blocks[i].linear.name}'" for i in others)
            return f"the teacher's '{names[0]}' fits it as well as others of the student ({quoted})"
        if len(candidates) > 1:
            quoted = ", ".join(f"'{name}'" for name in names)
            why = f"{len(names)} places in the teacher fit it as well as each other ({quoted})"
            if self._torn_blocks.part(candidates, self._certain(self._alignment)):
                why += ", depending on which residual block the student lacks"
            return why
        if end is not None:
            return inner_node_of(end)
        return "no place in the teacher fits it"

    def _end_of_block(self, number: int) -> str | None:
        """Return the node behind one that has no partner, if the teacher has nothing between.

        That is: between the partners of the nodes around it.
        """
        pairs, order = self._alignment.pairs, self._student.before
        in_front = [i for i in np.flatnonzero(order[:, number]).tolist() if i in pairs]
        behind = [i for i in np.flatnonzero(order[number]).tolist() if i in pairs]
        for i in behind:
            if order[behind, i].any():
                continue  # another one is nearer
            between = self._teacher.before[:, pairs[i].teacher].copy()
            for j in in_front:
                between &= self._teacher.before[pairs[j].teacher]
            if not between.any():
                return str(self._student.blocks[i].linear.name)
        return None


def _end_of_chain(chained: Mapping[int, int], number: int, paired: Collection[int]) -> int | None:
    """Return the last node of the chain that a node is in, None if one behind it is paired."""
    while number in chained:
        number = chained[number]
        if number in paired:
            return None
    return number
