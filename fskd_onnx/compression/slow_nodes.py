"""Which nodes are no faster for having fewer multiply-adds.

Kernels work on blocks of channels, so a width between two multiples of a block costs as much as the
larger one, and one that is no multiple of four may cost twice as much; a chain of small nodes may
wait for memory where one large node computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fskd_onnx.compression.costs import NodeCost
from fskd_onnx.compression.linear_case import LinearCase
from fskd_onnx.compression.node_latency import NodeLatency

# Fractions of what the teacher's node takes: fewer multiply-adds, and yet no less time.
_FEWER, _NO_LESS = 0.85, 0.95


@dataclass(frozen=True)
class ReducedNode:
    """A linear node of a teacher, and what became of it.

    Attributes:
        name: of the node.
        before: the node.
        after: the nodes in its place.
        macs_ratio: what is left of its multiply-adds.
    """

    name: str
    before: LinearCase
    after: tuple[LinearCase, ...]
    macs_ratio: float


def reduced_nodes(
    before: Mapping[str, LinearCase],
    after: Mapping[str, LinearCase],
    costs: tuple[Mapping[str, NodeCost], Mapping[str, NodeCost]],
) -> list[ReducedNode]:
    """Return the nodes of a teacher that have fewer multiply-adds in a student, the largest first.

    Args:
        before: the teacher's nodes, by name.
        after: the student's, in the order of data; those of a chain come before the node that has
            the name of the teacher's.
        costs: of the nodes of both.
    """
    found: list[ReducedNode] = []
    chain: list[str] = []
    for name in after:
        chain.append(name)
        if name not in before:
            continue
        whole = costs[0][name].macs
        left = sum(costs[1][part].macs for part in chain)
        if left < whole:
            cases = tuple(after[part] for part in chain)
            found.append(ReducedNode(name, before[name], cases, left / whole))
        chain = []
    return sorted(found, key=lambda node: -costs[0][node.name].macs)


def find_slow_nodes(reduced: Sequence[ReducedNode], nodes: NodeLatency) -> dict[str, str]:
    """Return which nodes take as long as before, each with a clause that says so.

    Args:
        reduced: nodes of which something went, those that matter most first.
        nodes: measures them; what its limit of time leaves out is not listed.

    Raises:
        ModelError: ONNX Runtime cannot run one of them.
    """
    cases = [case for node in reduced for case in (node.before, *node.after)]
    seconds: Mapping[LinearCase, float | None] = dict(zip(cases, nodes.seconds(cases), strict=True))
    found = {}
    for node in reduced:
        before, after = seconds[node.before], [seconds[case] for case in node.after]
        known = [one for one in after if one is not None]
        if before is None or len(known) < len(after) or node.macs_ratio > _FEWER:
            continue
        ratio = sum(known) / before
        if ratio >= _NO_LESS:
            found[node.name] = (
                f"it has {node.macs_ratio:.0%} of its multiply-adds and takes {ratio:.0%} of its "
                "time"
            )
    return found
