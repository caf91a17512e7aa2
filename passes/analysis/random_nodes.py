"""Nodes whose outputs are not the same for the same inputs, as far as an output depends on them.

By the ONNX specification, ``RandomNormal`` and its kind draw anew in each run, and a
BatchNormalization in training mode normalises by the samples that happen to run together, unless
what it normalises is a weight. A Dropout drops values in training mode alone;
``fskd_onnx.passes.run_as_inference`` takes it out of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx
from onnx import numpy_helper

_STANDARD = ("", "ai.onnx")
_RANDOM = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
# They read shapes, not values.
_OF_SHAPES = ("Shape", "Size")
_TRAINING_MODE = 2  # the input of a Dropout

Functions = Mapping[tuple[str, str], onnx.FunctionProto]


def find_random(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Return the nodes that make an output random, those in bodies and functions included.

    Args:
        model: any model.

    Returns:
        The name of each node and why its output is not the same for the same samples, half a
        sentence about "it".
    """
    found = []
    for node, is_fixed in _live_nodes(model):
        if node.domain not in _STANDARD:
            continue
        if node.op_type in _RANDOM:
            found.append((_name(node), f"its operator {node.op_type} draws anew in each run"))
        elif node.op_type == "BatchNormalization" and _in_training(node) and not is_fixed:
            reason = "it is in training mode and depends on which samples run together"
            found.append((_name(node), reason))
    return found


def find_training_dropouts(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes of Dropout that are not known to be in inference mode."""
    constant = {tensor.name: tensor for tensor in model.graph.initializer}
    fed = {value.name for value in model.graph.input}
    live = [node for node, _ in _live_nodes(model)]
    for node in live:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            constant[node.output[0]] = node.attribute[0].t

    def trains(node: onnx.NodeProto) -> bool:
        mode = node.input[_TRAINING_MODE]
        known = mode in constant and mode not in fed
        return not known or bool(numpy_helper.to_array(constant[mode]).any())

    return [_name(node) for node in live if is_dropout_with_mode(node) and trains(node)]


def is_dropout_with_mode(node: onnx.NodeProto) -> bool:
    """Whether a node is a Dropout that reads whether it is in training mode."""
    dropout = node.op_type == "Dropout" and node.domain in _STANDARD
    return dropout and len(node.input) > _TRAINING_MODE and bool(node.input[_TRAINING_MODE])


def bodies_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the subgraphs of a control flow node (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _live_nodes(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """Yield the nodes that an output depends on, also those in bodies and called functions.

    Besides each, whether all that it reads is the same in each run, as far as its scope tells.
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    outputs = [output.name for output in model.graph.output]
    stored = {tensor.name for tensor in model.graph.initializer}
    yield from _live(model.graph.node, outputs, functions, set(), stored)


def _live(
    nodes: Sequence[onnx.NodeProto],
    outputs: Iterable[str],
    functions: Functions,
    called: set[tuple[str, str]],
    fixed: Iterable[str] = (),
) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """Yield the nodes of one scope that its outputs depend on, and those inside of them.

    Args:
        nodes: of the scope.
        outputs: of the scope.
        functions: of the model, by domain and name.
        called: functions that were looked at, and are not again.
        fixed: names of what is the same in each run, of this scope or around it.
    """
    same = _same_in_each_run(nodes, fixed)
    writer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    pending, live = list(outputs), set[int]()
    while pending:
        index = writer.get(pending.pop())
        if index is None or index in live:
            continue
        live.add(index)
        if nodes[index].op_type not in _OF_SHAPES:
            pending += _reads(nodes[index])
    for index in sorted(live):
        node = nodes[index]
        yield node, same.issuperset(filter(None, node.input))
        for body in bodies_of(node):
            inner = [output.name for output in body.output]
            yield from _live(body.node, inner, functions, called, same)
        key = node.domain, node.op_type
        if key in functions and key not in called:
            called.add(key)
            function = functions[key]
            yield from _live(function.node, function.output, functions, called)


def _same_in_each_run(nodes: Sequence[onnx.NodeProto], fixed: Iterable[str]) -> set[str]:
    """Return the names that are, and those that nodes compute from nothing else."""
    same = set(fixed)
    for node in nodes:
        if node.op_type not in _RANDOM and same.issuperset(filter(None, _reads(node))):
            same.update(node.output)
    return same


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those inside of its bodies included."""
    yield from node.input
    for body in bodies_of(node):
        yield from (output.name for output in body.output)
        for inner in body.node:
            yield from _reads(inner)


def _in_training(node: onnx.NodeProto) -> bool:
    """Whether a BatchNormalization is in training mode; in old opsets it has more outputs then."""
    stated = any(a.name == "training_mode" and a.i for a in node.attribute)
    return stated or sum(map(bool, node.output)) > 1


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or next((name for name in node.output if name), node.op_type))
