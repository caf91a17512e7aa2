"""Residual blocks: branches that a network adds to what they read, and that may be left out.

::

    x ─┬─▶ Conv ─▶ Relu ─▶ Conv ─▶ + ─▶ y           without the block: y = x
       └───────────────────────────┘

The shortcut is what the branch reads, or a function of it, element by element, without a linear
node (an activation, a constant factor). It has the shape of the sum, so whatever reads the sum can
read the shortcut. A shortcut with a linear node of its own makes no block: what it computes cannot
be left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import (
    all_nodes,
    is_output,
    is_standard,
    node_name,
    nodes_in_bodies,
)
from fskd_onnx.passes.analysis.operators import Axes, operator_of
from fskd_onnx.passes.analysis.segments import ancestors, reads
from fskd_onnx.passes.analysis.shapes import infer_shapes


@dataclass(frozen=True)
class ResidualBlock:
    """A branch that may be left out, see the module's docstring.

    Attributes:
        name: of the sum of the branch and its shortcut, which is a tensor.
        linears: names of the linear nodes that go with the branch, in the order of the graph.
        reason: why the branch cannot be left out; empty where it can.
    """

    name: str
    linears: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Branch:
    """The nodes of a residual block.

    Attributes:
        add: the node that adds branch and shortcut.
        nodes: what goes with the branch: all that nothing else has a use for.
        reason: see ``ResidualBlock``.
    """

    add: gs.Node
    nodes: tuple[gs.Node, ...]
    reason: str

    @property
    def name(self) -> str:
        """Name of the sum."""
        return str(self.add.outputs[0].name)


def find_shortcuts(graph: gs.Graph) -> Iterator[tuple[gs.Node, int, list[gs.Node]]]:
    """Yield the sums of all residual blocks of a canonical graph, in the order of its nodes.

    Each with its input that is the shortcut, and the nodes from what that is a function of to the
    other input.
    """
    linear = {id(view.node) for view in _linears(graph)}
    for add in graph.nodes:
        if not is_standard(add, "Add", "Sum") or not len(add.inputs) == len([*reads(add)]) == 2:
            continue
        for slot in (0, 1):
            within = _within(graph, add, slot, linear)
            if any(id(node) in linear for node in within):
                yield add, slot, within
                break


def find_branches(graph: gs.Graph) -> list[Branch]:
    """Find the branches of all residual blocks of a canonical graph, in the order of its nodes."""
    shapes = infer_shapes(graph)
    in_bodies = nodes_in_bodies(graph)
    found = []
    for add, slot, within in find_shortcuts(graph):
        gone = _useless_without(graph, add, slot)
        reason = _why_not(graph, add, within, gone, in_bodies)
        one, other = (shapes.get(t.name) for t in (add.inputs[slot], add.outputs[0]))
        if one is None or one != other:
            reason = reason or "the shape of its shortcut is not known to be that of the sum"
        found.append(Branch(add, tuple(gone), reason))
    return found


def find_residual_blocks(graph: gs.Graph) -> tuple[ResidualBlock, ...]:
    """Find the residual blocks of a canonical graph, in the order of its nodes.

    One that cannot be left out is listed with the reason.
    """
    names = {id(view.node): view.name for view in _linears(graph)}
    return tuple(
        ResidualBlock(
            branch.name,
            tuple(names[id(node)] for node in branch.nodes if id(node) in names),
            branch.reason,
        )
        for branch in find_branches(graph)
    )


def _linears(graph: gs.Graph) -> list[Linear]:
    return [view for view in find_linear(graph) if isinstance(view, Linear)]


def _within(graph: gs.Graph, add: gs.Node, slot: int, linear: set[int]) -> list[gs.Node]:
    """Return the nodes from what the shortcut at a slot is a function of to the other operand."""
    for source in _sources(add.inputs[slot], linear):
        inside = {id(node) for node in ancestors([add.inputs[1 - slot]], border={source.name})}
        within, dependent = [], {id(source)}
        for node in graph.nodes:
            if id(node) in inside and any(id(tensor) in dependent for tensor in reads(node)):
                within.append(node)
                dependent.update(id(tensor) for tensor in node.outputs)
        if id(add.inputs[1 - slot]) in dependent:
            return within
    return []


def _sources(shortcut: gs.Tensor, linear: set[int]) -> Iterator[gs.Tensor]:
    """Yield a tensor, and what it is computed from element by element, without a linear node."""
    while True:
        yield shortcut
        node = next(iter(shortcut.inputs), None)
        if node is None or id(node) in linear:
            return
        operands = list(reads(node))
        axes = operator_of(node).axes
        if axes not in (Axes.ELEMENTWISE, Axes.BROADCAST) or len(operands) != 1:
            return
        shortcut = operands[0]


def _useless_without(graph: gs.Graph, add: gs.Node, slot: int) -> list[gs.Node]:
    """Return the nodes that nothing has a use for once the sum is its shortcut, in order."""
    branch = {id(node) for node in ancestors([add.inputs[1 - slot]])}
    gone, inside = {id(add): add}, {id(add)}
    for node in reversed(graph.nodes):
        if id(node) in branch and not any(
            is_output(graph, tensor) or any(id(reader) not in inside for reader in tensor.outputs)
            for tensor in node.outputs
        ):
            gone[id(node)] = node
            inside.update(map(id, all_nodes([node])))
    # The shortcut is read by all that read the sum.
    kept = {id(node) for node in ancestors([add.inputs[slot]])}
    return [node for node in graph.nodes if id(node) in gone and id(node) not in kept]


def _why_not(
    graph: gs.Graph,
    add: gs.Node,
    within: list[gs.Node],
    gone: list[gs.Node],
    in_bodies: set[int],
) -> str:
    """Return why a branch cannot be left out as a whole, or nothing."""
    total = add.outputs[0]
    if is_output(graph, total):
        return "its sum is an output of the network"
    if any(id(reader) in in_bodies for reader in total.outputs):
        return f"a body of a node reads its sum '{total.name}'"
    inside = {id(node) for node in all_nodes((*gone, *within))}
    for node in within:
        for tensor in node.outputs:
            for reader in tensor.outputs:
                if id(reader) not in inside:
                    return f"'{node_name(reader)}' reads '{tensor.name}', which is inside of it"
            if is_output(graph, tensor):
                return f"the output '{tensor.name}' of the network is inside of it"
    return ""
