"""Parameters that a model computes from constants, computed again where nothing came of folding.

``FoldConstants`` makes initializers of them, so that they can be read and rewritten::

    indices, values ──▶ ScatterElements ──▶ MatMul            w ──▶ MatMul

One that is as it was in the end goes back to how the model came, with the bytes that it takes
there: a computed matrix may be much larger than what it is computed from.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx.external_data_helper import uses_external_data

from fskd_onnx.passes.base import same_values
from fskd_onnx.passes.fold_constants import FoldConstants


def restore_parameters(model: onnx.ModelProto, origin: onnx.ModelProto) -> onnx.ModelProto:
    """Let a model compute the parameters that are still those that its origin computes.

    One stays stored if what it is computed from is not what it was, or has become part of other
    computations.

    Args:
        model: what became of the origin; it is not modified.
        origin: the model before its constants were folded.

    Returns:
        The model itself where there is no such parameter.
    """
    computed = _Computed(model, origin)
    nodes, gone = computed.nodes()
    if not nodes:
        return model
    restored = onnx.ModelProto()
    restored.CopyFrom(model)
    graph = restored.graph
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.node.extend(model.graph.node)
    graph.initializer.extend(t for t in model.graph.initializer if t.name not in gone)
    read = {name for node in nodes for name in node.input} - computed.stored.keys()
    graph.initializer.extend(t for t in origin.graph.initializer if t.name in read)
    # Old files list every initializer among the inputs.
    for value in [value for value in graph.input if value.name in gone]:
        graph.input.remove(value)
    graph.input.extend(value for value in origin.graph.input if value.name in read)
    return restored


class _Computed:
    """The parameters of a model that its origin computes.

    Attributes:
        stored: the initializers of the model, by name.
    """

    def __init__(self, model: onnx.ModelProto, origin: onnx.ModelProto) -> None:
        self.stored = _initializers(model)
        self._origin = origin
        self._made = {name: node for node in origin.graph.node for name in node.output}
        self._names = [
            name
            for name in self.stored
            if name in self._made and self._made[name].op_type != "Constant"
        ]
        if not self._names:
            return
        known = _initializers(origin) | _initializers(FoldConstants()(origin).model)
        self._kept = {name for name, t in self.stored.items() if _same(t, known.get(name))}
        self._sources = _initializers(origin).keys()
        values = {value.name for value in model.graph.input} - self.stored.keys()
        self._others = values | {name for node in model.graph.node for name in node.output}

    def nodes(self) -> tuple[list[onnx.NodeProto], set[str]]:
        """Return the nodes that compute what stayed, in order, and what they make superfluous."""
        found: dict[int, onnx.NodeProto] = {}
        for name in self._names:
            if name in self._kept:
                needed = list(self._needed(name))
                if all(node is not None for node in needed):
                    found |= {id(node): node for node in needed if node is not None}
        nodes = [node for node in self._origin.graph.node if id(node) in found]
        return nodes, {name for node in nodes for name in node.output} & self.stored.keys()

    def _needed(self, name: str) -> Iterator[onnx.NodeProto | None]:
        """Yield the nodes that compute a tensor; None where it cannot be computed again."""
        node = self._made[name]
        yield None if any(map(self._is_other, node.output)) else node
        for source in filter(None, node.input):
            if source in self.stored or source in self._others:
                if self._is_other(source):
                    yield None
            elif source in self._made:
                yield from self._needed(source)
            elif source not in self._sources:
                yield None

    def _is_other(self, name: str) -> bool:
        """Whether a name stands for something else in the model, or for what others compute."""
        return name in self._others or name in self.stored.keys() - self._kept


def _initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _same(one: onnx.TensorProto, other: onnx.TensorProto | None) -> bool:
    if other is None or one == other:
        return other is not None
    return not (uses_external_data(one) or uses_external_data(other)) and same_values(one, other)
