"""Which sums of branches of a teacher the student has as one linear node.

A network that was trained with several branches of one input (RepVGG, MobileOne, YOLOv7) is
deployed with these merged, and a student may be made of either form. Where it is made of the merged
one, its block stands for the sum, so the sum is merged in the teacher as well. Where the student
has the branches too, or a sum that is no more than a shortcut around one node, each node has a
partner of its own, and nothing is merged.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fskd_onnx.matching.pairing import pair_blocks
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.branch_sums import find_sums
from fskd_onnx.passes.merge_branches import MergeBranches


def sums_to_merge(teacher: gs.Graph, student: gs.Graph) -> frozenset[str]:
    """Return the sums of branches of a teacher that the student does not have.

    Where both networks have some, all are merged in both, and what is paired then tells: a merged
    node of the teacher whose partner is a node of the student's own is a sum that the student does
    not have. One without a partner stays as it is.

    Args:
        teacher: the original network, canonical. It may be rewritten.
        student: the compressed network, canonical. It may be rewritten.

    Returns:
        Names of the sums, see ``MergeBranches``.
    """
    theirs = frozenset(branches.name for branches in find_sums(teacher))
    mine = frozenset(branches.name for branches in find_sums(student)) if theirs else theirs
    if not mine:
        return theirs
    for graph in (teacher, student):
        MergeBranches().run(graph)
    outputs = {v.name: v.output.name for v in find_linear(student) if isinstance(v, Linear)}
    return frozenset(
        partner.teacher
        for partner in pair_blocks(teacher, student)
        if partner.teacher in theirs and outputs[partner.student] not in mine
    )
