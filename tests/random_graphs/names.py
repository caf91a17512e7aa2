"""Other names, another order of nodes, constants as nodes: graphs that compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx


class Names(StrEnum):
    """What becomes of the names of nodes and tensors."""

    KEPT = "kept"
    NONE = "none"
    """Nodes have none, tensors are numbered."""
    RANDOM = "random"
    SWAPPED = "swapped"
    """Each bears another's."""
    TENSORS = "tensors"
    """Nodes bear the names of tensors."""


@dataclass(frozen=True)
class Scrambled:
    """A model under other names.

    Attributes:
        model: the model.
        origin: the same before.
        tensors: tensor names as they were, by what they are now.
        nodes: outputs, as they were called, of the nodes of each name.
    """

    model: onnx.ModelProto
    origin: onnx.ModelProto
    tensors: Mapping[str, str]
    nodes: Mapping[str, tuple[str, ...]]


def scrambled(
    model: onnx.ModelProto, names: Names, rng: np.random.Generator, constant_nodes: float
) -> Scrambled:
    """Rename all but the inputs and outputs; shuffle the nodes as far as may be.

    Args:
        model: what to scramble; it is not changed.
        names: how.
        rng: of the order and the names.
        constant_nodes: share of the initializers that become Constant nodes.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    if names is not Names.KEPT or rng.random() < 0.3:
        _shuffle_nodes(graph, rng)
    public = {value.name for value in (*graph.input, *graph.output)}
    inner = [name for node in graph.node for name in node.output if name not in public]
    inner += [tensor.name for tensor in graph.initializer]
    if names in (Names.KEPT, Names.TENSORS):
        new = {name: name for name in inner}
    elif names is Names.SWAPPED:
        new = dict(zip(inner, rng.permutation(inner).tolist(), strict=True))
    else:
        new = {name: f"t{rng.integers(2**60):x}" for name in inner}
    nodes: dict[str, tuple[str, ...]] = {}
    swapped = rng.permutation([node.name for node in graph.node]).tolist()
    others = rng.permutation(inner).tolist()
    for number, node in enumerate(graph.node):
        old = node.output[0]
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        node.name = {
            Names.KEPT: node.name,
            Names.NONE: "",
            Names.RANDOM: f"n{rng.integers(2**60):x}",
            Names.SWAPPED: swapped[number],
            Names.TENSORS: others[number % len(others)],
        }[names]
        nodes[node.name] = (*nodes.get(node.name, ()), old)
    for tensor in graph.initializer:
        tensor.name = new[tensor.name]
    _make_nodes(graph, rng, constant_nodes)
    tensors = {now: old for old, now in new.items()} | {name: name for name in public}
    return Scrambled(result, model, tensors, nodes)


def _make_nodes(graph: onnx.GraphProto, rng: np.random.Generator, share: float) -> None:
    """Turn some initializers into Constant nodes."""
    stay, nodes = [], []
    for tensor in graph.initializer:
        if rng.random() < share:
            nodes.append(onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            stay.append(tensor)
    nodes += [_copied(node) for node in graph.node]
    stay = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in stay]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(stay)
    graph.node.extend(nodes)


def _shuffle_nodes(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """Put nodes in another order in which each comes behind what it reads."""
    waiting = [_copied(node) for node in graph.node]
    unmade = {name for node in waiting for name in node.output}
    del graph.node[:]
    while waiting:
        ready = [i for i, node in enumerate(waiting) if not unmade & set(node.input)]
        node = waiting.pop(ready[rng.integers(len(ready))])
        unmade -= set(node.output)
        graph.node.append(node)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    return onnx.NodeProto.FromString(node.SerializeToString())
