"""The body of an If that is known to run, in the place of its If, and back.

Where the condition of an If is known, its nodes are the nodes of one body, and all that reads a
graph can read them::

    x ──▶ If (c) { then: Conv, Relu │ else: Conv } ──▶ y        x ──▶ Conv ──▶ Relu ──▶ y

The function is that of the given network for inputs of this condition, and for no others. So a
network that is written gets its If back, with the nodes that stand for the body by then; the other
body is as it was. What crosses the border of a body is a tensor of the same name in both forms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from fskd_onnx.passes.analysis.random_nodes import bodies_of
from fskd_onnx.passes.base import IR_OF_FREE_INITIALIZERS
from fskd_onnx.passes.errors import PostconditionError

_FIELDS = ("node", "initializer", "sparse_initializer", "value_info")


@dataclass(frozen=True)
class Inlined:
    """An If whose place a body has taken.

    Attributes:
        node: the If as it was, its body with the names that its tensors have in the graph.
        taken: its condition.
        outputs: what the body calls each of the outputs.
    """

    node: onnx.NodeProto
    taken: bool
    outputs: tuple[str, ...]

    @property
    def body(self) -> onnx.GraphProto:
        """The body that is known to run."""
        return _body(self.node, self.taken)

    @property
    def reads(self) -> set[str]:
        """What this body reads of the graph around it."""
        return _captured(self.body)

    @property
    def borders(self) -> set[str]:
        """All that crosses the border of a body, which no pass may rename or take away."""
        return {*self.node.output, *self.reads, *_captured(_body(self.node, not self.taken))}


def conditions(model: onnx.ModelProto) -> dict[str, str]:
    """Return the names of the conditions of the Ifs that can be inlined, by the If's first output.

    An If stays whose bodies read a weight of the graph around them that is read elsewhere too: new
    values would change what is not fitted. So do those of old models, which state all initializers
    as inputs, and those with an output that is left out.
    """
    if model.ir_version < IR_OF_FREE_INITIALIZERS:
        return {}
    ifs = [node for node in model.graph.node if _is_if(node) and all(node.output)]
    weights = set(_weights(model.graph))
    reads = Counter(name for node in model.graph.node for name in _reads(node))
    return {
        node.output[0]: node.input[0]
        for node in ifs
        if all(reads[name] == 1 for body in bodies_of(node) for name in weights & _captured(body))
    }


def inline_branches(
    model: onnx.ModelProto, taken: Mapping[str, bool]
) -> tuple[onnx.ModelProto, list[Inlined]]:
    """Put a body in the place of each of some Ifs.

    Args:
        model: any model; it is not modified.
        taken: the condition of each If, by its first output.

    Returns:
        The model, and what `restore_branches` takes to give back the Ifs.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph, names = result.graph, _Names(model.graph)
    nodes, found = list(result.graph.node), []
    del graph.node[:]
    for node in nodes:
        if not (_is_if(node) and node.output[0] in taken):
            graph.node.append(node)
            continue
        inlined = _prepared(node, taken[node.output[0]], names)
        found.append(inlined)
        for field in _FIELDS:
            getattr(graph, field).extend(getattr(inlined.body, field))
    return result, found


def restore_branches(model: onnx.ModelProto, inlined: Sequence[Inlined]) -> onnx.ModelProto:
    """Give back the Ifs, each with the nodes that stand for the body that runs.

    These are all that an output of an If depends on, up to what the body reads of the graph around
    it.

    Args:
        model: what became of a model that `inline_branches` has given; it is not modified.
        inlined: what was inlined, in the order in which that was done.

    Raises:
        PostconditionError: something outside of a body reads what is inside of it.
    """
    if not inlined:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for each in reversed(inlined):
        _restore(result.graph, each)
    return result


class _Names:
    """The names of a graph and its bodies, none of which may stand for two tensors in one graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._tensors = Counter(_defined_anywhere(graph))
        self._nodes = {node.name for node in graph.node}

    def of_own(self, name: str) -> str:
        """Return the name of a tensor; another one where other bodies have this one as well."""
        if self._tensors[name] == 1:
            return name
        self._tensors[name] -= 1
        while self._tensors[name]:
            name += "_"
        self._tensors[name] = 1
        return name

    def of_node(self, name: str) -> str:
        """Return the name of a node that comes into the graph; "" where another node has it."""
        if name in self._nodes:
            return ""
        self._nodes.add(name)
        return name


def _prepared(node: onnx.NodeProto, taken: bool, names: _Names) -> Inlined:
    """Return an If whose body can take its place: outputs are the If's, no name is there twice."""
    node = _copy(node)
    body = _body(node, taken)
    made = {name for inner in body.node for name in inner.output}
    own = {name: names.of_own(name) for name in _defined(body)}
    new, inside = dict(own), []
    for output, value in zip(node.output, body.output, strict=True):
        inside.append(own.get(value.name, value.name))
        if value.name in made:
            made.remove(value.name)
            new[value.name] = output
        else:  # no node's own output: an initializer, what is read from outside, given out twice
            body.node.add(op_type="Identity", input=[value.name], output=[output])
            value.name = output
    _rename(body, new)
    for inner in body.node:
        inner.name = names.of_node(inner.name) if inner.name else ""
    return Inlined(node, taken, tuple(inside))


def _restore(graph: onnx.GraphProto, inlined: Inlined) -> None:
    """Put an If in the place of what its outputs depend on."""
    outside, outputs = inlined.reads, list(inlined.node.output)
    maker = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    inside: set[int] = set()
    pending = list(outputs)
    while pending:
        name = pending.pop()
        if name in maker and name not in outside and maker[name] not in inside:
            inside.add(maker[name])
            pending += _reads(graph.node[maker[name]])
    made = {name for at in inside for name in graph.node[at].output}
    for at, node in enumerate(graph.node):  # what nothing reads may be in a body too
        if at not in inside and (made - set(outputs)).intersection(_reads(node)):
            inside.add(at)
            made.update(node.output)
    nodes = [graph.node[at] for at in sorted(inside)]
    others = {at: node for at, node in enumerate(graph.node) if at not in inside}
    read = {name for node in others.values() for name in _reads(node)}
    if leaked := {value.name for value in graph.output} & made - set(outputs):
        raise PostconditionError(f"'{min(leaked)}' of a body of an If is an output of the graph")
    node = _copy(inlined.node)
    body = _body(node, inlined.taken)
    for field in _FIELDS:
        del getattr(body, field)[:]
    own = {name for each in nodes for name in _reads(each)} - outside - read
    body.node.extend(nodes)
    _move(graph.initializer, body.initializer, lambda tensor: tensor.name in own)
    _move(graph.sparse_initializer, body.sparse_initializer, lambda t: t.values.name in own)
    inner = made - set(outputs)
    _move(graph.value_info, body.value_info, lambda value: value.name in inner)
    _rename(body, dict(zip(outputs, inlined.outputs, strict=True)))
    renaming = [each for each in body.node if list(each.input) == list(each.output)]
    for each in renaming:  # put there for what is no node's own output
        body.node.remove(each)
    # All that it reads stands before its last node, and all that reads it behind.
    kept = {**others, max(inside): node}
    ordered = [kept[at] for at in sorted(kept)]
    del graph.node[:]
    graph.node.extend(ordered)


def _move(source: Any, target: Any, goes: Callable[[Any], bool]) -> None:
    """Move the entries of a repeated field for which that holds."""
    entries = list(source)
    target.extend(entry for entry in entries if goes(entry))
    del source[:]
    source.extend(entry for entry in entries if not goes(entry))


def _is_if(node: onnx.NodeProto) -> bool:
    return node.op_type == "If" and node.domain in ("", "ai.onnx")


def _body(node: onnx.NodeProto, taken: bool) -> onnx.GraphProto:
    name = "then_branch" if taken else "else_branch"
    body: onnx.GraphProto = next(a.g for a in node.attribute if a.name == name)
    return body


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _weights(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of matrices and kernels that a graph stores."""
    constants = [node for node in graph.node if node.op_type == "Constant"]
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored |= {n.output[0]: a.t for n in constants for a in n.attribute if a.HasField("t")}
    for name, tensor in stored.items():
        if len(tensor.dims) > 1:
            yield name


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads of its graph."""
    yield from node.input
    for body in bodies_of(node):
        yield from _captured(body)


def _captured(body: onnx.GraphProto) -> set[str]:
    """Return what a body reads of the graphs around it."""
    read = {name for node in body.node for name in _reads(node)}
    read |= {value.name for value in body.output}
    return read - set(_defined(body)) - {""}


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that a graph defines, those of its bodies apart."""
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    yield from (name for node in graph.node for name in node.output if name)


def _defined_anywhere(graph: onnx.GraphProto) -> Iterator[str]:
    yield from _defined(graph)
    for node in graph.node:
        for body in bodies_of(node):
            yield from _defined_anywhere(body)


def _rename(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    """Rename tensors of a body, in place, also where bodies inside of it read them."""
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        for body in bodies_of(node):
            _rename(body, new)
    for entry in (*graph.initializer, *graph.value_info, *graph.output):
        entry.name = new.get(entry.name, entry.name)
    for tensor in graph.sparse_initializer:
        tensor.values.name = new.get(tensor.values.name, tensor.values.name)
