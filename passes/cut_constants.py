"""Take entries out of constants that nodes read, with regard to who else reads them.

Each read of a constant is cut on its own. Where all reads of one are cut in the same way, the
constant is cut in its place, under its name; else each way of cutting makes a constant of its own,
and reads that are not cut keep the old one. A constant in half precision behind a Cast keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.nodes import index_of, is_output, name_of_new, unused_name

Array = NDArray[Any]
Slot = tuple[int, int]
"""A node, by identity, and which of its inputs."""


@dataclass(frozen=True)
class Cut:
    """What becomes of the values of a constant.

    Attributes:
        key: equal for cuts that do the same.
        of: gives the new values from the old ones, which it does not write.
    """

    key: Hashable
    of: Callable[[Array], Array]


def take(indices: Mapping[int, NDArray[np.intp]]) -> Cut:
    """Return the cut that leaves some entries along some axes."""

    def of(values: Array) -> Array:
        for axis, kept in indices.items():
            values = values.take(kept, axis)
        return values

    return Cut(("take", *((axis, kept.tobytes()) for axis, kept in indices.items())), of)


def put(numbers: Mapping[int, int]) -> Cut:
    """Return the cut that replaces some elements, by their place in the flat order."""

    def of(values: Array) -> Array:
        new = values.copy()
        new.reshape(-1)[[*numbers]] = [*numbers.values()]
        return new

    return Cut(("put", *sorted(numbers.items())), of)


def weight_cut(linear: Linear, rows: Array, columns: Array) -> Cut:
    """Return the cut that leaves some rows and columns of the weight of a linear node.

    Args:
        linear: the node, as it is before.
        rows: (groups, n) which stay; a group of which none does goes as a whole.
        columns: (groups, input channels of each) which stay.
    """
    groups, n, _ = linear.shape
    operator, kernel = linear.operator, linear.kernel_shape
    stored = gs.Node(linear.op, attrs=dict(linear.node.attrs))  # the node's group may change

    def of(values: Array) -> Array:
        matrix = operator.matrix(stored, values).reshape(groups, n, columns.shape[1], -1)
        parts = [
            matrix[g][rows[g]][:, columns[g]].reshape(int(rows[g].sum()), -1)
            for g in range(groups)
            if rows[g].any()
        ]
        return operator.stored(stored, np.stack(parts), kernel)

    return Cut(("weight", rows.tobytes(), columns.tobytes()), of)


def stored_constant(tensor: gs.Tensor) -> gs.Constant:
    """Return the constant that stores what a node reads, be it behind a Cast.

    Args:
        tensor: see ``held_channels.is_stored``.
    """
    if isinstance(tensor, gs.Constant):
        return tensor
    constant = constants.parameter(tensor)
    assert constant is not None
    return constant


@dataclass
class ConstantCuts:
    """The cuts of a graph, to be carried out together.

    Attributes:
        graph: the graph.
    """

    graph: gs.Graph
    _cuts: dict[Slot, Cut] = field(default_factory=dict)
    _constants: dict[int, gs.Constant] = field(default_factory=dict)

    def add(self, node: gs.Node, slot: int, cut: Cut) -> None:
        """Cut what a node reads at a slot: a constant, or one behind a Cast."""
        self._cuts[id(node), slot] = cut
        constant = stored_constant(node.inputs[slot])
        self._constants[id(constant)] = constant

    def carry_out(self) -> None:
        """Write all of it to the graph."""
        for constant in self._constants.values():
            reads = list(_reads(constant))
            cuts = {id(n): self._cuts.get((id(n), slot)) for n, slot in reads}
            ways = {self._key(node, slot) for node, slot in reads}
            is_kept = any(is_output(self.graph, t) for t in (constant, *_cast(constant)))
            if len(ways) == 1 and not is_kept:
                [cut] = {cut.key: cut for cut in cuts.values() if cut is not None}.values()
                _store(constant, cut)
                for tensor in _cast(constant):
                    tensor.shape = constant.shape
            else:
                self._divide(constant, reads)

    def _key(self, node: gs.Node, slot: int) -> Hashable:
        cut = self._cuts.get((id(node), slot))
        return None if cut is None else cut.key

    def _divide(self, constant: gs.Constant, reads: list[tuple[gs.Node, int]]) -> None:
        """Make a constant of its own for each way of cutting, with a Cast where there was one."""
        made: dict[Hashable, gs.Tensor] = {}
        for node, slot in reads:
            cut = self._cuts.get((id(node), slot))
            if cut is None:
                continue
            cast = constants.cast_of(node.inputs[slot])
            key = cut.key, id(cast)
            if key not in made:
                made[key] = self._copy(constant, cut, cast)
            node.inputs[slot] = made[key]

    def _copy(self, constant: gs.Constant, cut: Cut, cast: gs.Node | None) -> gs.Tensor:
        own = gs.Constant(unused_name(self.graph, f"{constant.name}/cut"), constant.values)
        own._values = constant._values
        _store(own, cut)
        if cast is None:
            return own
        name = unused_name(self.graph, f"{cast.outputs[0].name}/cut")
        output = gs.Variable(name, cast.outputs[0].dtype)
        called = name_of_new(self.graph, name)
        new = gs.Node("Cast", called, dict(cast.attrs), [own], [output])
        self.graph.nodes.insert(index_of(self.graph, cast), new)
        return output


def _reads(constant: gs.Constant) -> list[tuple[gs.Node, int]]:
    """Return all reads of a constant, those behind its Casts in the place of these."""
    found = []
    for tensor in (constant, *_cast(constant)):
        readers = {id(node): node for node in tensor.outputs}
        found += [
            (node, slot)
            for node in readers.values()
            for slot, read in enumerate(node.inputs)
            if read is tensor and not (tensor is constant and _is_cast_to_read(node))
        ]
    return found


def _is_cast_to_read(node: gs.Node) -> bool:
    return node.op == "Cast" and bool(node.outputs) and bool(node.outputs[0].outputs)


def _cast(constant: gs.Constant) -> list[gs.Tensor]:
    """Return what Casts make of a constant."""
    return [node.outputs[0] for node in constant.outputs if _is_cast_to_read(node)]


def _store(constant: gs.Constant, cut: Cut) -> None:
    kind = constants.element_type(constant)
    if kind in constants.FLOATS:
        made = constants.make(constant.name, cut.of(constants.native(constant)), kind)
    else:
        made = gs.Constant(constant.name, np.ascontiguousarray(cut.of(constant.values)))
    constant.values = made._values
