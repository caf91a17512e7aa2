"""Which block of the teacher a block of the student stands for, or why for none.

Names say nothing here until all else has been heard: an exporter, an optimizer or a pruning tool
may have given new ones. What counts is, in this order,

* what is possible at all: outputs of the same extent, reached from the same inputs of the network,
  reaching the same outputs of it;
* weights that are slices of the teacher's (``fskd_onnx.matching.weight_overlap``);
* the kind of the node and what stands in front of it and behind it
  (``fskd_onnx.matching.block_graph``), and so its place among all others, since the
  alignment keeps the order of data flow (``fskd_onnx.matching.alignment``);
* and where that leaves several places: how alike activations are, then names in common.

The last linear node of a decomposed block is the one that the block's activation follows, so that
is where the teacher's block output comes to lie; its inner nodes have no partner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.matching.alignment import Alignment
from fskd_onnx.matching.block_graph import (
    BlockContext,
    BlockGraph,
    BlockSignature,
    find_block_graph,
)
from fskd_onnx.matching.weight_overlap import KernelIndex, KernelWeights, KeyFilter, overlap
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.results import Evidence

Floats = NDArray[np.float64]

Similarity = Callable[[Mapping[str, Sequence[str]]], Mapping[tuple[str, str], float]]
"""Tells how alike activations are, 0..1, for some tensors of the student and the teacher's in
question for each."""

# Where the node of the same name has this much in common, nobody looks further.
_CONCLUSIVE = 0.95
# Below this chance may have found a slice.
_CHANCE = 0.3
# A slice outweighs all likeness in structure along a stretch of a few nodes.
_SLICE = 2.0
# Nodes less alike than this are rather left out.
_LEAST_ALIKE = 0.5
_WIDER = -1.0
# Of evidence that is only heard among places that are as good as each other.
_ALIKE_ACTIVATIONS = 2.0
_SAME_NAME = 1.0


@dataclass(frozen=True)
class Partner:
    """A block of the student and its partner.

    Attributes:
        student: name of the student's linear node.
        teacher: the teacher's block output, or None where the block has no partner.
        evidence: what it was found by.
        confidence: 0..1, its share among all places that it could have.
        reason: why it has no partner; empty where it has one.
        channels: teacher channel of each student channel, where that is given from outside.
    """

    student: str
    teacher: str | None
    evidence: Evidence = Evidence.NONE
    confidence: float = 0.0
    reason: str = ""
    channels: tuple[int, ...] | None = None


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
        similarity: asked where weights and structure leave several places.

    Returns:
        One for each linear node of the student, in the order of its nodes.
    """
    return _Pairing(find_block_graph(teacher), find_block_graph(student), given or {}).run(
        student, similarity
    )


class _Pairing:
    """The search for partners."""

    def __init__(
        self, teacher: BlockGraph, student: BlockGraph, given: Mapping[str, Partner]
    ) -> None:
        self._teacher, self._student, self._given = teacher, student, given
        self._overlaps = _overlaps(student, teacher)
        likeness = np.zeros(self._overlaps.shape)
        for i, j in np.argwhere(np.isfinite(self._overlaps)):
            likeness[i, j] = _likeness(student.bones[i], teacher.bones[j])
        evidence = _SLICE * self._overlaps + likeness - _LEAST_ALIKE
        self._alignment = Alignment(evidence, student.before, teacher.before)
        self._evidence: dict[int, Evidence] = {}

    def run(self, graph: gs.Graph, similarity: Similarity | None) -> tuple[Partner, ...]:
        """Hear all evidence in its order."""
        self._take_given()
        for pair in self._alignment.settle():
            found = self._overlaps[pair.student, pair.teacher] > 0
            self._evidence[pair.student] = Evidence.WEIGHTS if found else Evidence.STRUCTURE
        if similarity is not None:
            self._settle(_ALIKE_ACTIVATIONS * self._alikeness(similarity), Evidence.ACTIVATIONS)
        self._settle(_SAME_NAME * self._names_in_common(), Evidence.NAMES)
        while self._settle_twins():
            self._settle(np.zeros(self._overlaps.shape), Evidence.STRUCTURE)
        found = {
            bone.linear.name: self._partner(number)
            for number, bone in enumerate(self._student.bones)
        }
        views = find_linear(graph)
        return tuple(
            found[view.name]
            if isinstance(view, Linear)
            else Partner(view.name, None, reason=view.reason)
            for view in views
        )

    def _take_given(self) -> None:
        outputs = {bone.linear.output.name: j for j, bone in enumerate(self._teacher.bones)}
        for number, bone in enumerate(self._student.bones):
            partner = self._given.get(bone.linear.name)
            if partner is not None and partner.teacher is not None:
                self._alignment.fix(number, outputs[partner.teacher], 1.0)
            elif partner is not None:
                self._alignment.leave_out(number)

    def _settle(self, bonus: Floats, evidence: Evidence) -> None:
        for pair in self._alignment.settle(bonus):
            self._evidence[pair.student] = evidence

    def _alikeness(self, similarity: Similarity) -> Floats:
        """Return how alike activations are where several places are as good as each other."""
        mine, theirs = self._student.bones, self._teacher.bones
        rivals = {i: found for i, found in self._alignment.rivals().items() if len(found) > 1}
        alike = np.zeros(self._overlaps.shape)
        if rivals:
            name = {j: theirs[j].linear.output.name for found in rivals.values() for j in found}
            asked = {
                mine[i].linear.output.name: [name[j] for j in found] for i, found in rivals.items()
            }
            answers = similarity(asked)
            for i, found in rivals.items():
                for j in found:
                    alike[i, j] = answers[mine[i].linear.output.name, name[j]]
        return alike

    def _names_in_common(self) -> Floats:
        shared = np.zeros(self._overlaps.shape)
        names = [_names(bone.linear) for bone in self._teacher.bones]
        for i, rivals in self._alignment.rivals().items():
            own = _names(self._student.bones[i].linear)
            for j in rivals:
                shared[i, j] = bool(own & names[j])
        return shared

    def _settle_twins(self) -> bool:
        """Give one of several nodes that nothing tells apart one of as many places."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, rivals in self._alignment.rivals().items():
            groups.setdefault(tuple(rivals), []).append(i)
        for places, nodes in groups.items():
            apart = not (
                self._student.before[np.ix_(nodes, nodes)].any()
                or self._teacher.before[np.ix_(places, places)].any()
            )
            if len(places) == len(nodes) > 1 and apart:
                i = min(nodes, key=lambda node: _content(self._student.bones[node]))
                j = min(places, key=lambda place: _content(self._teacher.bones[place]))
                self._alignment.fix(i, j, 1 / len(places))
                self._evidence[i] = Evidence.STRUCTURE
                return True
        return False

    def _partner(self, number: int) -> Partner:
        name = self._student.bones[number].linear.name
        if name in self._given:
            return self._given[name]
        pair = self._alignment.pairs.get(number)
        if pair is None:
            return Partner(name, None, reason=self._why_alone(number))
        output = self._teacher.bones[pair.teacher].linear.output.name
        return Partner(name, output, self._evidence[number], pair.certainty)

    def _why_alone(self, number: int) -> str:
        rivals = self._alignment.rivals()
        places = rivals.get(number, [])
        others = [i for i, found in rivals.items() if i != number and set(found) & set(places)]
        if len(places) == 1 and others:
            bones = (self._student.bones[i].linear.name for i in others)
            names = ", ".join(f"'{name}'" for name in bones)
            place = self._teacher.bones[places[0]].linear.name
            return f"the teacher's '{place}' fits it as well as others of the student ({names})"
        if len(places) > 1:
            names = ", ".join(f"'{self._teacher.bones[j].linear.name}'" for j in places)
            return f"{len(places)} places in the teacher fit it as well as each other ({names})"
        end = self._end_of_block(number)
        if end is not None:
            return f"it is an inner node of the block that ends at '{end}'"
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
                return str(self._student.bones[i].linear.name)
        return None


def _overlaps(student: BlockGraph, teacher: BlockGraph) -> Floats:
    """Return how much of a node's weights is found in another's; -inf where they cannot pair."""
    imprints = [KernelWeights.of(bone.linear) for bone in student.bones]
    sieve = KeyFilter(imprints)

    @cache
    def register(number: int) -> KernelIndex:
        return KernelIndex(KernelWeights.of(teacher.bones[number].linear), sieve)

    @cache
    def places_at(site: BlockSignature) -> list[int]:
        return [j for j, bone in enumerate(teacher.bones) if site.agrees(bone.site)]

    def score(one: int, other: int) -> float:
        sure = overlap(imprints[one], register(other))
        return max(0.0, sure - _CHANCE) / (1 - _CHANCE)

    names = [_names(bone.linear) for bone in teacher.bones]
    found = np.full((len(student.bones), len(teacher.bones)), -np.inf)
    for i, one in enumerate(student.bones):
        places = places_at(one.site)
        # Names only say where to look first; what is seen there decides.
        own = _names(one.linear)
        namesakes = [j for j in places if own & names[j]]
        if len(namesakes) == 1:
            there = score(i, namesakes[0])
            if there >= _CONCLUSIVE:
                found[i, places] = 0.0
                found[i, namesakes] = there
                continue
        for j in places:
            found[i, j] = score(i, j)
    return found


def _likeness(one: BlockContext, other: BlockContext) -> float:
    """Return how alike two nodes and their surroundings are, 1 at most."""
    narrower = one.width / other.width
    width = 1.0 if narrower == 1 else narrower / 2 if narrower < 1 else _WIDER
    kernel = one.kernel_shape == other.kernel_shape
    reach = max(0.5 * kernel, 0.8 * (one.sees == other.sees), 0.8 * (one.seen == other.seen))
    if one.sees == other.sees and one.seen == other.seen:
        reach = 1.0
    return (
        0.3 * _in_common(one.ahead, other.ahead)
        + 0.25 * reach
        + 0.2 * width
        + 0.1 * (one.op == other.op)
        + 0.07 * _in_common(one.behind, other.behind)
        + 0.05 * (one.slots == other.slots)
        + 0.03 * (one.grouping == other.grouping)
    )


def _in_common(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(len(one | other), 1)


def _names(linear: Linear) -> set[tuple[str, str]]:
    return {
        ("output", linear.output.name),
        ("node", linear.name),
        ("weight", linear.weight.name),
    }


def _content(bone: BlockContext) -> bytes:
    """Return what orders nodes without a look at names or at the order in a file."""
    return bone.linear.matrix.tobytes() + bone.linear.bias.tobytes()
