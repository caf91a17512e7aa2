"""Matrices that are applied to one tensor, each by a node of its own or all by one.

Queries, keys and values of attention, gate and value of a gated layer: an exporter writes one
linear node for each of them, or one for all, whose output is divided behind it::

    x ─┬─▶ MatMul ─▶ q        x ─▶ MatMul ─▶ Split ─┬─▶ q        siblings, and a joined layer
       ├─▶ MatMul ─▶ k                              ├─▶ k
       └─▶ MatMul ─▶ v                              └─▶ v
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.labels import Indices
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.moves import stated_numbers
from fskd_onnx.passes.analysis.nodes import is_standard, nodes_in_bodies, sole_reader
from fskd_onnx.passes.analysis.propagation import ChannelFlow, propagate
from fskd_onnx.passes.analysis.shared_weights import find_uses


@dataclass(frozen=True)
class JoinedLayer:
    """A linear node whose output is divided into parts, each of consecutive channels.

    Attributes:
        linear: the node.
        parts: tensors that carry one part each, in the order of its channels.
        widths: how many channels each of them carries.
        route: the nodes between its output and those that divide, where no other node reads what
            is between, and these only give the channels several axes (Reshape, Transpose); else
            None.
    """

    linear: Linear
    parts: tuple[gs.Tensor, ...]
    widths: tuple[int, ...]
    route: tuple[gs.Node, ...] | None


@dataclass(frozen=True)
class _Part:
    """A tensor that carries a part of a node's channels, and what gives it."""

    tensor: gs.Tensor
    divider: gs.Node
    channels: Indices


def find_joined(graph: gs.Graph, linears: Sequence[Linear]) -> list[JoinedLayer]:
    """Return the matrices of a graph whose outputs are divided into parts.

    Args:
        graph: the graph, its nodes in a topological order.
        linears: its linear nodes.
    """
    matrices = [linear for linear in linears if not linear.is_convolution]
    dividers = [node for node in graph.nodes if is_standard(node, "Split", "Gather")]
    if not matrices or not dividers:
        return []
    flow = propagate(graph, linears)
    in_bodies = nodes_in_bodies(graph)
    found = []
    for linear in matrices:
        own = flow.of_block(linear.output.name)
        parts = sorted(_parts(dividers, flow, own), key=lambda part: int(part.channels[0]))
        together = [channel for part in parts for channel in part.channels.tolist()]
        if len(parts) > 1 and together == own.tolist():
            tensors = tuple(part.tensor for part in parts)
            widths = tuple(len(part.channels) for part in parts)
            route = _route(graph, linear, [part.divider for part in parts], in_bodies)
            found.append(JoinedLayer(linear, tensors, widths, route))
    return found


def find_siblings(linears: Sequence[Linear]) -> list[tuple[Linear, ...]]:
    """Return the matrices that are applied to one tensor, of one operator and type.

    Matrices that several nodes use are none.

    Args:
        linears: the linear nodes of a graph.
    """
    uses = find_uses(list(linears))
    groups: dict[tuple[object, ...], list[Linear]] = {}
    for linear in linears:
        if not linear.is_convolution and len(uses.get(linear.name, ())) == 1:
            key = source_of(linear), linear.op, str(linear.dtype)
            groups.setdefault(key, []).append(linear)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def source_of(linear: Linear) -> tuple[object, ...]:
    """Return what a linear node reads: a tensor by its identity, and the shape that it is given.

    Two nodes that give a tensor the same shape give the same tensor.
    """
    node = linear.input.inputs[0] if linear.input.inputs else None
    target = stated_numbers(node, "shape", 1) if node and is_standard(node, "Reshape") else None
    if node is None or target is None:
        return (id(linear.input),)
    return id(node.inputs[0]), node.attrs.get("allowzero", 0), *target


def _parts(dividers: Sequence[gs.Node], flow: ChannelFlow, own: Indices) -> list[_Part]:
    """Return the tensors that carry a part of some channels, out of one that carries all."""
    found = []
    for node in dividers:
        read = flow.labels.get(node.inputs[0].name)
        if read is None or not np.array_equal(np.unique(read.channels), own):
            continue
        for tensor in node.outputs:
            given = flow.labels.get(tensor.name)
            if given is not None and given.channels.size < read.channels.size:
                found.append(_Part(tensor, node, np.unique(given.channels)))
    return found


def _route(
    graph: gs.Graph, linear: Linear, dividers: Sequence[gs.Node], in_bodies: set[int]
) -> tuple[gs.Node, ...] | None:
    tensor, route = linear.output, []
    expected = {id(node) for node in dividers}
    while not expected & {id(reader) for reader in tensor.outputs}:
        reader = sole_reader(graph, tensor, in_bodies)
        if reader is None or not is_standard(reader, "Reshape", "Transpose"):
            return None
        route.append(reader)
        tensor = reader.outputs[0]
    readers = {id(reader) for reader in tensor.outputs}
    is_divided = readers == expected and not any(tensor is output for output in graph.outputs)
    return tuple(route) if is_divided and not readers & in_bodies else None
