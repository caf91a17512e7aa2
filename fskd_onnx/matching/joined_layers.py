"""Which matrices of a teacher have to be joined into one node, or split, to be those of a student.

Exporters and simplifiers write queries, keys and values of attention as three linear nodes or as
one (``fskd_onnx.passes.analysis.joined_layers``). The student stays as it is, so the teacher is
rewritten before anything is paired. What a matrix is for, its *role*, is told by the ways from its
output to the next linear nodes: a query is the first operand of a product whose second is the key.
Where roles are not told apart by them, or a network has both forms, nothing is rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import onnx_graphsurgeon as gs

from fskd_onnx.matching.surroundings import Downstream, Path
from fskd_onnx.passes.analysis.joined_layers import JoinedLayer, find_joined, find_siblings
from fskd_onnx.passes.analysis.linear import Linear, Refusal, find_linear
from fskd_onnx.passes.join_layers import JoinLayers, SplitLayers, can_be_split

Role: TypeAlias = frozenset[Path]
Roles: TypeAlias = tuple[Role, ...]
"""Those of the parts of one layer, in the order of its channels."""


class _Layers:
    """The joined layers and the siblings of a network, by what their matrices are for."""

    def __init__(self, graph: gs.Graph, siblings: Sequence[tuple[Linear, ...]]) -> None:
        views = find_linear(graph)
        linears = [view for view in views if isinstance(view, Linear)]
        self.joined: dict[frozenset[Role], list[tuple[Roles, JoinedLayer]]] = {}
        self.siblings: dict[frozenset[Role], list[tuple[Roles, tuple[Linear, ...]]]] = {}
        joined = find_joined(graph, linears)
        refused = {id(view.node) for view in views if isinstance(view, Refusal)}
        paths: Mapping[int, Role] = Downstream(graph, linears, refused).paths
        for layer in joined:
            roles = tuple(paths[id(part)] for part in layer.parts)
            if len(set(roles)) == len(roles):
                self.joined.setdefault(frozenset(roles), []).append((roles, layer))
        for group in siblings:
            roles = tuple(paths[id(linear.output)] for linear in group)
            if len(set(roles)) == len(roles):
                self.siblings.setdefault(frozenset(roles), []).append((roles, group))


def rewrites_of_teacher(teacher: gs.Graph, student: gs.Graph) -> list[JoinLayers | SplitLayers]:
    """Return what gives a teacher's matrices the form of the student's.

    Args:
        teacher: the original network, canonical.
        student: the compressed network, canonical.
    """
    graphs = teacher, student
    siblings = [find_siblings([v for v in find_linear(g) if isinstance(v, Linear)]) for g in graphs]
    if not any(siblings):
        return []
    theirs, mine = map(_Layers, graphs, siblings)
    groups: list[tuple[str, ...]] = []
    names: list[str] = []
    for key, found in theirs.siblings.items():
        orders = {roles for roles, _ in mine.joined.get(key, ())}
        if len(orders) == 1 and key not in theirs.joined and key not in mine.siblings:
            groups += [_in_order(roles, group, *orders) for roles, group in found]
    for key, layers in theirs.joined.items():
        is_other = key in mine.siblings and key not in mine.joined
        if is_other and key not in theirs.siblings:
            names += [layer.linear.name for _, layer in layers if can_be_split(layer)]
    rewrites: list[JoinLayers | SplitLayers] = []
    if groups:
        rewrites.append(JoinLayers(tuple(groups)))
    if names:
        rewrites.append(SplitLayers(tuple(names)))
    return rewrites


def _in_order(roles: Roles, group: Sequence[Linear], order: Roles) -> tuple[str, ...]:
    return tuple(group[roles.index(role)].name for role in order)
