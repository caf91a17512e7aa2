"""How far a block reaches: which linear nodes are factors of one block, which has one partner.

Where a student's node has a partner and the ones directly in front of it have none, all of them
stand for the partner together: the teacher has one node there.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from fskd_onnx.matching.pairing import Partner
from fskd_onnx.passes.analysis.factored_blocks import chain_of, find_chains
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import nodes_in_bodies


def find_decomposed(student: gs.Graph, partners: Sequence[Partner]) -> list[tuple[str, ...]]:
    """Return the chains of nodes that are one block, by name, in the order of data.

    Args:
        student: the compressed network, canonical.
        partners: of its linear nodes.
    """
    views = [view for view in find_linear(student) if isinstance(view, Linear)]
    chains = find_chains(student, views, nodes_in_bodies(student))
    alone = {partner.student for partner in partners if partner.teacher is None}
    found = []
    for partner in partners:
        block = chains.get(partner.student)
        if block is None or partner.teacher is None or partner.reason:
            continue
        (chain,) = block.chains
        first = len(chain) - 1
        while first and chain[first - 1].name in alone:
            first -= 1
        if first < len(chain) - 1 and chain_of(chain[first:]) is not None:
            found.append(tuple(linear.name for linear in chain[first:]))
    return found
