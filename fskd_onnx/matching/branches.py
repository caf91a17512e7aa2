"""Which sums of branches one network has, and the other has as one linear node.

A network that was trained with several branches of one input (RepVGG, MobileOne, YOLOv7) is
deployed with these merged, and teacher and student may be of either form. Where one has a sum of
branches and the other one node, the node stands for the sum, so the sum is merged before anything
is paired. Where both have the branches, or a sum that is no more than a shortcut around one node,
each node has a partner of its own, and nothing is merged.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import onnx_graphsurgeon as gs

from fskd_onnx.matching.block_graph import find_block_graph
from fskd_onnx.matching.pairing import pair_blocks
from fskd_onnx.passes.analysis.composed_kernels import chains, next_in_chain
from fskd_onnx.passes.analysis.factored_blocks import chain_of, find_chains
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import is_standard, nodes_in_bodies, sole_reader
from fskd_onnx.passes.analysis.segments import reads
from fskd_onnx.passes.branch_sums import BranchSum, find_sums
from fskd_onnx.passes.compose_chains import ComposeChains
from fskd_onnx.passes.merge_branches import MergeBranches

Names = frozenset[str]


def sums_to_merge(teacher: gs.Graph, student: gs.Graph) -> tuple[Names, Names]:
    """Return the sums of branches that only one of two networks has.

    Where the student has any, those of both are merged, and what is paired then tells: two merged
    nodes are a sum that both have. One without a partner stays as it is. Where it has none, its
    number of sums tells whether the teacher's are gone, or have branches of another form.

    Args:
        teacher: the original network, canonical. It may be rewritten.
        student: the compressed network, canonical. It may be rewritten.

    Returns:
        Names of the teacher's sums and of the student's, see ``MergeBranches``; of the student's
        only those that their largest branch spans, since its weights are to stand for the sum.
    """
    composed = set()
    for graph in (teacher, student):
        chains = chains_in_sums(graph)
        ComposeChains(chains).run(graph)
        composed = {chain[-1] for chain in chains}
    theirs = {branches.name: branches for branches in find_sums(teacher)}
    mine = {branches.name: branches for branches in find_sums(student)}
    if not mine and not theirs:
        return frozenset(), frozenset()
    if not mine:
        return _gone(teacher, student, theirs), frozenset()
    spanned = {
        name
        for name, branches in mine.items()
        # Of chains, each is solved for; what the sum can be is a matter of all of them.
        if branches.is_spanned or composed & {linear.name for linear in branches.linears}
    }
    alone = {name for name, branches in mine.items() if len(branches.linears) == 1}
    # A teacher with as many sums has those shortcuts too, be it in a form that is no such sum.
    if _count_sums(student) <= _count_sums(teacher):
        spanned -= alone
    MergeBranches().run(teacher)
    MergeBranches().run(student)
    blocks = find_block_graph(teacher).blocks
    # A shortcut that is no part of a sum for us, behind a Dropout or a scale, is one nevertheless.
    added = {b.linear.output.name for b in blocks if "sum" in b.output_kinds}
    outputs = {v.name: v.output.name for v in find_linear(student) if isinstance(v, Linear)}
    pairs = [
        (outputs[partner.student], partner.teacher)
        for partner in pair_blocks(teacher, student)
        if partner.teacher is not None
    ]
    of_teacher = {output for own, output in pairs if output in theirs and own not in mine}
    of_student = {
        own
        for own, output in pairs
        if own in spanned and output not in theirs and not (own in alone and output in added)
    }
    return frozenset(of_teacher), frozenset(of_student)


def chains_in_sums(graph: gs.Graph) -> list[tuple[str, ...]]:
    """Return the chains that are branches of one input beside others, by the names of their nodes.

    Chains around which the input alone is added are none.
    """
    views = [view for view in find_linear(graph) if isinstance(view, Linear)]
    in_bodies = nodes_in_bodies(graph)
    longest = find_chains(graph, views, in_bodies)
    branches: dict[int, list[Linear]] = {}
    for view in views:
        reader = sole_reader(graph, view.output, in_bodies)
        if reader is not None and is_standard(reader, "Add", "Sum"):
            branches.setdefault(_end_of_sum(graph, reader, in_bodies), []).append(view)
    found = []
    for ends in branches.values():
        if len(ends) < 2:
            continue
        chains = [longest[end.name].chains[0] if end.name in longest else (end,) for end in ends]
        common = set.intersection(*({id(v.input) for v in chain} for chain in chains))
        for chain in chains:
            starts = [at for at, view in enumerate(chain) if id(view.input) in common]
            part = chain[starts[0] :] if starts else ()
            if len(part) > 1 and chain_of(part) is not None:
                found.append(tuple(view.name for view in part))
    return found


def _end_of_sum(graph: gs.Graph, node: gs.Node, in_bodies: Collection[int]) -> int:
    """Return which node adds last, of those that add one behind the other."""
    while (reader := sole_reader(graph, node.outputs[0], in_bodies)) is not None:
        if not is_standard(reader, "Add", "Sum"):
            break
        node = reader
    return id(node)


def _gone(teacher: gs.Graph, student: gs.Graph, sums: Mapping[str, BranchSum]) -> Names:
    """Return the teacher's sums of branches that a student without any no longer has.

    A shortcut around a single node is in many networks, and rarely merged: where it is, the merged
    node gives as many channels as it reads. Else it was dropped together with its node.
    """
    missing = _count_sums(teacher) - _count_sums(student)
    several = {name: s for name, s in sums.items() if len(s.linears) > 1}
    of_several = sum(len(s.sums) for s in several.values())
    may_be_merged = _count_of_equal_width(student) >= len(sums) - len(several)
    if missing == sum(len(s.sums) for s in sums.values()) and may_be_merged:
        return frozenset(sums)
    return frozenset(several) if missing >= of_several else frozenset()


def _count_of_equal_width(graph: gs.Graph) -> int:
    """Return how many nodes, or chains up to them, give as many channels as they read."""
    views = [view for view in find_linear(graph) if isinstance(view, Linear)]
    chained = chains(next_in_chain(graph, views))
    return sum(
        any(_reads(views[start]) == view.width for start in chained.get(number, [number]))
        for number, view in enumerate(views)
    )


def _reads(view: Linear) -> int:
    """Return how many channels a node reads."""
    groups, _, columns = view.shape
    return groups * columns // math.prod(view.kernel_shape)


def _count_sums(graph: gs.Graph) -> int:
    """Return how many nodes of a graph add two or more tensors that are computed."""
    return sum(
        is_standard(node, "Add", "Sum") and len(list(reads(node))) > 1 for node in graph.nodes
    )
