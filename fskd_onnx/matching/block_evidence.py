"""What speaks for each pair of blocks: weights, and the likeness of what stands around them.

Weights are compared node by node first. Where that tells little, the kernels of chains are: nodes
with nothing between them are one linear map (``fskd_onnx.passes.analysis.composed_kernels``), and
where the composed kernel is the other network's kernel, or near it, the end of the chain is the
partner and the others are inner nodes of its block. Chains that both networks have are found node
by node, and stay so.

Whatever the weights, a node that only linear nodes read is no partner of one that something else
reads, an activation or a sum, unless the two are equal: it is an inner node of a block, and its
rows may look like the partner's, as singular vectors do. A node with another one directly behind it
has a partner that is alike in that. A branch of a sum is no partner of a node that is none: only
the sum would be. And a first operand is none of a second, where their order counts, unless their
weights are the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.matching.block_graph import BlockContext, BlockGraph, BlockSignature
from fskd_onnx.matching.surroundings import Path
from fskd_onnx.matching.weight_overlap import (
    ROWS_THAT_CLAIM,
    KernelIndex,
    KernelWeights,
    KeyFilter,
    approximation,
    overlap,
)
from fskd_onnx.passes.analysis.composed_kernels import Kernel, chains
from fskd_onnx.passes.analysis.linear import Linear

Floats = NDArray[np.float64]

# Where weights have this much in common, no other comparison says more.
_CONCLUSIVE = 0.95
# Below this chance may have found a slice.
_CHANCE = 0.3
# A composed kernel that is so near to another makes its chain one block.
_ONE_BLOCK = 0.2
# More multiply-adds than that are not spent on a composed kernel.
_MOST_WORK = 2**32
_WIDER = -1.0
# Of nodes that are never the same operand, and of ones in front of other activations. Those that it
# is behind tell less: a residual block may be left out with its activation, or without.
_OTHER_PATHS = 0.1
_OTHER_ACTIVATION = 0.2


def overlaps(student: BlockGraph, teacher: BlockGraph) -> Floats:
    """Return how much of a node's weights is found in another's, 1 at most.

    Returns:
        (nodes of the student, nodes of the teacher), -inf where they cannot be partners.
    """
    return _Overlaps(student, teacher).scores


class _Overlaps:
    """The comparison of all weights."""

    def __init__(self, student: BlockGraph, teacher: BlockGraph) -> None:
        self._student, self._teacher = student, teacher
        self._weights = [KernelWeights.of(block.linear) for block in student.blocks]
        key_filter = KeyFilter(self._weights)

        @cache
        def index(number: int) -> KernelIndex:
            return KernelIndex(KernelWeights.of(teacher.blocks[number].linear), key_filter)

        self._index = index
        self.scores = self._node_by_node()
        among_others = [
            (i, j)
            for i, j in np.argwhere(np.isfinite(self.scores) & (self.scores < _CONCLUSIVE))
            if _is_somewhere_in_a_chain(student.blocks[i], teacher.blocks[j])
        ]
        # A factor of few rows may look like a few of another's, but only equal ones are the same.
        for pair in among_others:
            self.scores[pair] = 0.0
        self._compare_chains()
        for pair in among_others:
            if self.scores[pair] == 0:
                self.scores[pair] = -np.inf

    def _score(self, one: int, other: int) -> float:
        return _above_chance(overlap(self._weights[one], self._index(other)))

    def _node_by_node(self) -> Floats:
        student, teacher = self._student.blocks, self._teacher.blocks

        @cache
        def candidates_for(signature: BlockSignature) -> list[int]:
            return [j for j, block in enumerate(teacher) if signature.agrees(block.signature)]

        names = [names_of(block.linear) for block in teacher]
        scores = np.full((len(student), len(teacher)), -np.inf)
        for i, one in enumerate(student):
            candidates = candidates_for(one.signature)
            # Names only say where to look first; weights decide.
            own = names_of(one.linear)
            namesakes = [j for j in candidates if own & names[j]]
            known: dict[int, float] = {}
            if len(namesakes) == 1:
                best = self._score(i, namesakes[0])
                if best >= _CONCLUSIVE:
                    known = {**dict.fromkeys(candidates, 0.0), namesakes[0]: best}
            for j in candidates:
                score = known[j] if known else self._score(i, j)
                if _is_part_of_a_sum(one, teacher[j]):
                    continue
                if score < _CONCLUSIVE and _is_another_operand(one, teacher[j]):
                    continue
                if may_be_partners(one, teacher[j]) or _are_equal(one, teacher[j], score):
                    scores[i, j] = score
        return scores

    def _compare_chains(self) -> None:
        """Compare composed kernels, and rule out the inner nodes of the blocks that they make."""
        node_by_node = self.scores.max(axis=1, initial=0.0)
        open_ends = [i for i, best in enumerate(node_by_node) if best < _CONCLUSIVE]
        mine, theirs = chains(self._student.chained), chains(self._teacher.chained)
        if not open_ends or not self._teacher.blocks or not (mine or theirs):
            return
        composed = {j: list(_composed(self._teacher, chain)) for j, chain in theirs.items()}
        inner: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        for i in open_ends:
            ones = [([], self._weights[i]), *_composed(self._student, mine.get(i, []), True)]
            for j in np.flatnonzero(np.isfinite(self.scores[i])).tolist():
                others = [([], self._index(j).weights), *composed.get(j, [])]
                for (my_inner, one), (their_inner, other) in itertools.product(ones, others):
                    if not (my_inner or their_inner):
                        continue
                    score = _above_chance(approximation(one, other))
                    if score > self.scores[i, j]:
                        self.scores[i, j], inner[i, j] = score, (my_inner, their_inner)
        # The best first: what is an inner node of one block is no end of another.
        mine_best, theirs_best = self.scores.max(axis=1), self.scores.max(axis=0)
        for i in sorted(open_ends, key=lambda i: -float(mine_best[i])):
            j = int(self.scores[i].argmax())
            if (i, j) in inner and (score := self.scores[i, j]) >= _ONE_BLOCK:
                my_inner, their_inner = inner[i, j]
                if self._have_one_form(my_inner, their_inner):
                    continue
                self.scores[[k for k in my_inner if mine_best[k] < score]] = -np.inf
                self.scores[:, [k for k in their_inner if theirs_best[k] < score]] = -np.inf

    def _have_one_form(self, mine: Sequence[int], theirs: Sequence[int]) -> bool:
        """Whether chains are made alike, so that their nodes pair one by one."""
        return [_form(self._student.blocks[i]) for i in mine] == [
            _form(self._teacher.blocks[j]) for j in theirs
        ]


def _form(block: BlockContext) -> tuple[tuple[int, ...], str]:
    return block.kernel_shape, block.grouping


def _composed(
    graph: BlockGraph, chain: Sequence[int], sampled: bool = False
) -> Iterator[tuple[list[int], KernelWeights]]:
    """Yield the kernels of a chain's last two nodes, three, and so on.

    Args:
        graph: holds the nodes.
        chain: their numbers; none for no chain.
        sampled: whether some rows are enough.

    Yields:
        The numbers of the inner nodes, and the kernel.
    """
    composed: Kernel | None = None
    for start in reversed(range(len(chain))):
        kernel = Kernel.of(graph.blocks[chain[start]].linear)
        if kernel is None:
            return
        kernel = replace(kernel, weights=kernel.weights.astype(np.float32, copy=False))
        if composed is None:
            composed = kernel.sampled(ROWS_THAT_CLAIM) if sampled else kernel
            continue
        if len(composed.rows) * kernel.weights.size * math.prod(composed.kernel_shape) > _MOST_WORK:
            return
        composed = composed.behind(kernel)
        yield list(chain[start:-1]), KernelWeights.composed(composed)


def _above_chance(found: float) -> float:
    return max(0.0, found - _CHANCE) / (1 - _CHANCE)


def may_be_partners(one: BlockContext, other: BlockContext) -> bool:
    """Whether neither is an inner node of a block where the other is the end of one.

    A student's node in a chain is an inner node unless the teacher has such a chain as well, or
    would have it without some of its residual blocks.
    """
    return any(_are_alike_ends(one, context) for context in (other, *other.alternatives))


def _are_alike_ends(one: BlockContext, other: BlockContext) -> bool:
    if one.end_of_chain and one.end_of_chain.isdisjoint(other.end_of_chain):
        return False
    # A shortcut that is seen around one of the two only is no part of the comparison.
    are_ends = (one.summed_with == ()) == (other.summed_with == ())
    mine, theirs = (c.end_kinds if are_ends else c.output_kinds for c in (one, other))
    return not (
        (mine == {"linear"} and "linear" not in theirs)
        or (theirs == {"linear"} and "linear" not in mine)
    )


def _is_somewhere_in_a_chain(one: BlockContext, other: BlockContext) -> bool:
    """Whether a node is one of several of which any may be the partner, for all but its weights.

    In a chain of another length than the teacher's, only the end has its place, and a term of a sum
    where both chains have as many.
    """
    if not one.end_of_chain:
        return False
    contexts = (other, *other.alternatives)
    if "sum" in one.output_kinds and "sum" in other.output_kinds:
        return one.chain_terms not in {context.chain_terms for context in contexts}
    return one.chain_length not in {context.chain_length for context in contexts}


def _is_part_of_a_sum(one: BlockContext, other: BlockContext) -> bool:
    """Whether a student's node is a branch of a sum that the teacher's node is not part of.

    Of two nodes, both or none have a shortcut around them, which may be read from the kind of their
    readers as well.
    """
    if one.summed_with:
        return not other.summed_with
    return _has_a_shortcut_alone(one, other) or _has_a_shortcut_alone(other, one)


def _has_a_shortcut_alone(one: BlockContext, other: BlockContext) -> bool:
    return one.summed_with == () and other.summed_with is None and "sum" not in other.output_kinds


def _is_another_operand(one: BlockContext, other: BlockContext) -> bool:
    """Whether two nodes are different operands of one operator, whichever way they go on."""
    ways = one.operand_paths, other.operand_paths
    return ways[0].isdisjoint(ways[1]) and all(_part(*pair) for pair in itertools.product(*ways))


def _part(one: Path, other: Path) -> bool:
    """Whether two paths part at different operands of the same operator."""
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            return mine._replace(place=theirs.place) == theirs
    return False


def _are_equal(one: BlockContext, other: BlockContext, overlap_of_weights: float) -> bool:
    return one.width == other.width and overlap_of_weights >= _CONCLUSIVE


def likeness(student: BlockGraph, teacher: BlockGraph) -> Floats:
    """Return how alike nodes and their surroundings are, (nodes, nodes of the teacher), 1 at most.

    Those of nodes that cannot be partners are 0.
    """
    found = np.zeros((len(student.blocks), len(teacher.blocks)))
    # In a narrower network nodes have any width, and are as wide as others by chance.
    width_tells = {b.width for b in student.blocks} <= {b.width for b in teacher.blocks}
    for i, one in enumerate(student.blocks):
        for j, other in enumerate(teacher.blocks):
            if one.signature.agrees(other.signature):
                contexts = (other, *other.alternatives)
                found[i, j] = max(_alike(one, context, width_tells) for context in contexts)
    return found


def _alike(one: BlockContext, other: BlockContext, width_tells: bool) -> float:
    """Return how alike two nodes and their surroundings are, 1 at most.

    Args:
        one: the student's.
        other: the teacher's.
        width_tells: whether nodes of equal width are more alike than others.
    """
    ratio = one.width / other.width
    less = ratio / 2 if width_tells else min(1.0, 2 * ratio)
    width = 1.0 if ratio == 1 else less if ratio < 1 else _WIDER
    same_fields = (one.input_field == other.input_field) + (one.output_field == other.output_field)
    fields = (0.5 * (one.kernel_shape == other.kernel_shape), 0.8, 1.0)[same_fields]
    return (
        0.3 * _in_common(one.output_kinds, other.output_kinds)
        + 0.25 * fields
        + 0.2 * width
        + 0.1 * (one.op == other.op)
        + 0.07 * _in_common(one.input_kinds, other.input_kinds)
        + 0.05 * (one.operand_paths == other.operand_paths)
        - _OTHER_PATHS * one.operand_paths.isdisjoint(other.operand_paths)
        - _OTHER_ACTIVATION * _differ(one.activations, other.activations)
        + 0.03 * (one.grouping == other.grouping)
    )


def _differ(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether both nodes are in front of activations, of which none is the same."""
    return bool(one and other) and one.isdisjoint(other)


def _in_common(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(len(one | other), 1)


def names_of(linear: Linear) -> set[tuple[str, str]]:
    """Return what a node is called by, each with what it is the name of."""
    return {
        ("output", linear.output.name),
        ("node", linear.name),
        ("weight", linear.weight.name),
    }
