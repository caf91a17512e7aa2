"""What stands in front of and behind each tensor of a network: kinds, ends, operands, fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple, TypeAlias, TypeVar

import onnx_graphsurgeon as gs

from fskd_onnx.matching.receptive_field import ReceptiveField, widest
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.nodes import is_standard
from fskd_onnx.passes.analysis.operators import Axes, Kind, operator_of
from fskd_onnx.passes.analysis.segments import reads

T = TypeVar("T")

COMMUTE = ("Add", "Mul", "Sum", "Mean", "Max", "Min")
"""Operators whose operands may be exchanged."""
# Operators on a path are told apart up to this number of them.
_DEPTH = 3


class Slot(NamedTuple):
    """One of several operands whose order counts.

    Attributes:
        op: the operator.
        place: number of the operand among those that are no constants.
        of: how many these are.
    """

    op: str
    place: int
    of: int


Path: TypeAlias = tuple[Slot, ...]


class Upstream:
    """What tensors come from, by the identity of the tensor.

    Attributes:
        kinds: of the nearest nodes that count.
        ends: positions of the graph's inputs.
        linears: numbers of the linear nodes, near and far.
        fields: what they see of the graph's inputs.
    """

    def __init__(self, graph: gs.Graph, views: Sequence[Linear]) -> None:
        """Walk a graph, its nodes in a topological order, from its inputs on.

        Args:
            graph: the graph.
            views: its linear nodes.
        """
        number_of = {id(view.bias_node or view.node): n for n, view in enumerate(views)}
        inner = {id(view.node) for view in views if view.bias_node is not None}
        self.kinds: dict[int, frozenset[str]] = {}
        self.ends: dict[int, frozenset[int]] = {}
        self.linears: dict[int, frozenset[int]] = {}
        self.fields: dict[int, ReceptiveField] = {}
        for position, tensor in enumerate(graph.inputs):
            self._set(
                tensor, frozenset({"input"}), frozenset({position}), frozenset(), ReceptiveField()
            )
        for node in graph.nodes:
            sources = [id(tensor) for tensor in reads(node) if id(tensor) in self.kinds]
            linears = _union(self.linears[source] for source in sources)
            ends = _union(self.ends[source] for source in sources)
            if id(node) in number_of:
                linears, kinds = linears | {number_of[id(node)]}, frozenset({"linear"})
            elif id(node) in inner or _is_looked_through(node):
                kinds = _union(self.kinds[source] for source in sources)
            else:
                kinds = frozenset({_kind(node)})
            field = widest(self.fields[source] for source in sources).forward(node)
            for tensor in node.outputs:
                self._set(tensor, kinds, ends, linears, field)

    def _set(
        self,
        tensor: gs.Tensor,
        kinds: frozenset[str],
        ends: frozenset[int],
        linears: frozenset[int],
        field: ReceptiveField,
    ) -> None:
        self.kinds[id(tensor)], self.ends[id(tensor)] = kinds, ends
        self.linears[id(tensor)], self.fields[id(tensor)] = linears, field


class Downstream:
    """What tensors go to, by the identity of the tensor.

    Attributes:
        kinds: of the nearest nodes that count.
        activations: the operators of those of them that are activations.
        ends: positions of the graph's outputs.
        paths: the ways to the nearest linear nodes and to outputs, where the order of operands
            counts.
        fields: how much of them the graph's outputs see.
    """

    def __init__(self, graph: gs.Graph, views: Sequence[Linear], refused: Set[int]) -> None:
        """Walk a graph, its nodes in a topological order, from its outputs back.

        Args:
            graph: the graph.
            views: its linear nodes.
            refused: nodes that hold weights and are no such views, by identity.
        """
        linear = {id(view.node) for view in views} | refused
        biases = {id(view.bias_node) for view in views}
        self.kinds: dict[int, frozenset[str]] = {}
        self.activations: dict[int, frozenset[str]] = {}
        self.ends: dict[int, frozenset[int]] = {}
        self.paths: dict[int, frozenset[Path]] = {}
        self.fields: dict[int, ReceptiveField] = {}
        for position, tensor in enumerate(graph.outputs):
            self._add(
                tensor,
                frozenset({"output"}),
                frozenset(),
                frozenset({position}),
                frozenset({()}),
                ReceptiveField(),
            )
        for node in reversed(graph.nodes):
            results = [id(tensor) for tensor in node.outputs]
            kinds = _union(self.kinds.get(result, frozenset()) for result in results)
            activations = _union(self.activations.get(result, frozenset()) for result in results)
            ends = _union(self.ends.get(result, frozenset()) for result in results)
            paths = _union(self.paths.get(result, frozenset()) for result in results)
            if id(node) in linear:
                kinds, activations = frozenset({"linear"}), frozenset()
                paths = frozenset({()})
            elif id(node) not in biases and not _is_looked_through(node):
                kind = _kind(node)
                kinds = frozenset({kind})
                activations = frozenset({str(node.op)} if kind == Kind.ACTIVATION else ())
            field = widest(self.fields[r] for r in results if r in self.fields).backward(node)
            operands = list(reads(node))
            ordered = len(operands) > 1 and not is_standard(node, *COMMUTE)
            # Behind the first operand of these come the numbers of a shape, stored or computed.
            ordered &= operator_of(node).axes is not Axes.MOVED or is_standard(node, "Concat")
            for place, tensor in enumerate(operands):
                slot = Slot(str(node.op), place, len(operands))
                taken = frozenset((slot, *path)[:_DEPTH] for path in paths) if ordered else paths
                self._add(tensor, kinds, activations, ends, taken, field)
            for tensor in node.outputs:
                self._add(
                    tensor, frozenset(), frozenset(), frozenset(), frozenset(), ReceptiveField()
                )

    def _add(
        self,
        tensor: gs.Tensor,
        kinds: frozenset[str],
        activations: frozenset[str],
        ends: frozenset[int],
        paths: frozenset[Path],
        field: ReceptiveField,
    ) -> None:
        key = id(tensor)
        self.kinds[key] = self.kinds.get(key, frozenset()) | kinds
        self.activations[key] = self.activations.get(key, frozenset()) | activations
        self.ends[key] = self.ends.get(key, frozenset()) | ends
        self.paths[key] = self.paths.get(key, frozenset()) | paths
        self.fields[key] = widest((self.fields.get(key, ReceptiveField()), field))


def _is_looked_through(node: gs.Node) -> bool:
    operator = operator_of(node)
    reads_constant = any(isinstance(tensor, gs.Constant) for tensor in node.inputs)
    return operator.is_looked_through or (operator.scales and reads_constant)


def _kind(node: gs.Node) -> str:
    return operator_of(node).kind or str(node.op)


def _union(sets: Iterable[frozenset[T]]) -> frozenset[T]:
    return frozenset().union(*sets)
