"""Matrices that are applied to one tensor become one, or one becomes several.

With weights one behind another along the output channels, the outputs are so too::

    [q; k; v] = [Q; K; V] x + [a; b; c]

A Split behind the one node gives what the several gave, so no reader changes. On the way back, what
gave the channels several axes is done for each part: the axis that counted parts has the extent 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.joined_layers import JoinedLayer, find_joined, source_of
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.moves import stated_numbers
from fskd_onnx.passes.analysis.nodes import index_of, is_standard, name_of_new, unused_name
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.edit import remove
from fskd_onnx.passes.errors import PreconditionError

_OPSET_OF_INPUTS = 13
"""From which the sizes of a Split and the axes of a Squeeze are inputs."""


@dataclass(frozen=True)
class JoinLayers(Pass):
    """Put one linear node and a Split in the place of several. The function stays.

    Attributes:
        groups: the names of the nodes of each, in the order of their channels; see
            ``analysis.joined_layers.find_siblings``.
    """

    groups: tuple[tuple[str, ...], ...]

    def requires(self, graph: gs.Graph) -> None:
        """Check that the nodes of each group read one tensor."""
        views = _linears(graph)
        for names in self.groups:
            lacking = [name for name in names if name not in views]
            if lacking or len({source_of(views[name]) for name in names}) != 1:
                msg = f"{', '.join(names)} are not matrices that are applied to one tensor"
                raise PreconditionError(msg)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per group."""
        notes = []
        for names in self.groups:
            views = _linears(graph)
            _join(graph, [views[name] for name in names])
            notes.append(f"{', '.join(names)} joined into one node")
        return notes


@dataclass(frozen=True)
class SplitLayers(Pass):
    """Put a linear node for each part in the place of one that is divided. The function stays.

    Attributes:
        names: of the nodes; each has a route, see ``analysis.joined_layers.JoinedLayer``.
    """

    names: tuple[str, ...]

    def requires(self, graph: gs.Graph) -> None:
        """Check that each node is divided into parts, and that they can be given one by one."""
        found = {joined.linear.name: joined for joined in find_joined(graph, _views(graph))}
        for name in self.names:
            if name not in found or not can_be_split(found[name]):
                msg = f"'{name}' is no linear node that is divided into parts"
                raise PreconditionError(msg)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per node."""
        found = {joined.linear.name: joined for joined in find_joined(graph, _views(graph))}
        for name in self.names:
            _split(graph, found[name])
        return [f"'{name}' split into a node for each of its parts" for name in self.names]


def can_be_split(joined: JoinedLayer) -> bool:
    """Whether each part of a joined layer can be given by a node of its own."""
    if joined.route is None:
        return False
    _, rest = _flat_and_rest(joined)
    if not rest:
        return not any(map(_drops_axis, joined.parts))
    reshape, *turns = rest
    target = _target(reshape)
    if target is None or len(turns) > 1 or not all(is_standard(n, "Transpose") for n in turns):
        return False
    place = _place_of_parts(joined)
    is_counted = target[place] == len(joined.parts) and len(set(joined.widths)) == 1
    return is_counted and 0 not in target[place:]


def _target(node: gs.Node) -> list[int] | None:
    """Return the shape that a Reshape states."""
    return stated_numbers(node, "shape", 1) if is_standard(node, "Reshape") else None


def _flat_and_rest(joined: JoinedLayer) -> tuple[Sequence[gs.Node], Sequence[gs.Node]]:
    """Divide the route of a joined layer: Reshapes that leave channels as they are, the rest."""
    route = joined.route or ()
    whole = joined.linear.width
    number = 0
    while number < len(route) and (_target(route[number]) or [0])[-1] == whole:
        number += 1
    return route[:number], route[number:]


def _axis_of_parts(joined: JoinedLayer) -> int:
    """Return which axis counts the parts, behind the route."""
    return int(joined.parts[0].inputs[0].attrs.get("axis", 0))


def _place_of_parts(joined: JoinedLayer) -> int:
    """Return which axis of the Reshape that gives channels several counts the parts."""
    _, (reshape, *turns) = _flat_and_rest(joined)
    rank = len(_target(reshape) or ())
    order = turns[0].attrs.get("perm", range(rank)[::-1]) if turns else range(rank)
    return int(order[_axis_of_parts(joined) % rank])


def _drops_axis(part: gs.Tensor) -> bool:
    """Whether the node that gives a part takes away the axis that counts the parts."""
    divider = part.inputs[0]
    return is_standard(divider, "Gather") and not divider.inputs[1].shape


def _join(graph: gs.Graph, linears: Sequence[Linear]) -> None:
    """Put one node and a Split where the first of several stands."""
    outputs = [linear.output for linear in linears]
    name = " + ".join(linear.name for linear in linears)
    output = gs.Variable(unused_name(graph, " + ".join(t.name for t in outputs)), linears[0].dtype)
    matrix = np.concatenate([linear.matrix[0] for linear in linears])
    bias = np.concatenate([linear.bias for linear in linears])
    weights = AffineMap(matrix[np.newaxis], bias[np.newaxis])
    # What others read, though it is the same, may be given by later nodes.
    first = min(linears, key=lambda linear: index_of(graph, linear.node))
    nodes = _matrix_nodes(graph, first, first.input, name, weights)
    nodes[-1].outputs = [output]
    split = _with_numbers(graph, "Split", output, "split", [linear.width for linear in linears])
    split.attrs["axis"] = -1
    _replace(graph, [node for v in linears for node in (v.node, v.bias_node)], [*nodes, split])
    split.outputs = outputs


def _split(graph: gs.Graph, joined: JoinedLayer) -> None:
    """Put a node for each part, and the route behind it, where a joined layer stands."""
    linear, starts = joined.linear, np.cumsum([0, *joined.widths])
    flat, rest = _flat_and_rest(joined)
    new: list[gs.Node] = []
    ends: list[gs.Node] = []
    for number, part in enumerate(joined.parts):
        rows = slice(*starts[number : number + 2])
        weights = AffineMap(linear.matrix[:, rows], linear.bias[np.newaxis, rows])
        nodes = _matrix_nodes(graph, linear, linear.input, f"{linear.name}/{number}", weights)
        name = f"{linear.output.name}/{number}"
        for step, node in enumerate((*flat, *rest)):
            given = f"{name}/{step}" if step else name
            tensor, shape = _give(graph, nodes[-1], given, linear), _target(node)
            if shape is None:
                nodes.append(gs.Node("Transpose", "", dict(node.attrs), [tensor]))
                continue
            if step == len(flat):
                shape[_place_of_parts(joined)] = 1
            else:
                shape[-1] = joined.widths[number]
            nodes.append(_with_numbers(graph, "Reshape", tensor, "shape", shape))
        if _drops_axis(part):
            tensor = _give(graph, nodes[-1], f"{name}/parts", linear)
            axis = _axis_of_parts(joined)
            nodes.append(_with_numbers(graph, "Squeeze", tensor, "axes", [axis]))
        new += nodes
        ends.append(nodes[-1])
    dividers = list({id(part.inputs[0]): part.inputs[0] for part in joined.parts}.values())
    _replace(graph, [linear.node, linear.bias_node, *flat, *rest, *dividers], new)
    for node, part in zip(ends, joined.parts, strict=True):
        node.outputs = [part]


def _give(graph: gs.Graph, node: gs.Node, name: str, linear: Linear) -> gs.Tensor:
    """Let a node write a new tensor, of the type that a linear node computes in."""
    tensor = gs.Variable(unused_name(graph, name), linear.dtype)
    node.outputs = [tensor]
    return tensor


def _matrix_nodes(
    graph: gs.Graph, like: Linear, source: gs.Tensor, name: str, weights: AffineMap
) -> list[gs.Node]:
    """Make a node like another with weights of its own, and the Add of its bias if it needs one."""
    node = gs.Node(like.op, name_of_new(graph, name), {}, [source])
    stored = like.operator.stored(node, weights.matrix, ())
    node.inputs.append(_constant(graph, f"{name}/weight", stored.astype(like.dtype)))
    bias = _constant(graph, f"{name}/bias", weights.shift[0].astype(like.dtype))
    if like.operator.bias_input is not None:
        node.inputs.append(bias)
        return [node]
    product = gs.Variable(unused_name(graph, f"{name}/product"), like.dtype)
    node.outputs = [product]
    return [node, gs.Node("Add", "", {}, [product, bias])]


def _with_numbers(
    graph: gs.Graph, op: str, tensor: gs.Tensor, name: str, numbers: Sequence[int]
) -> gs.Node:
    """Make a node that states integers as its opset has them: an attribute, or an input."""
    if op != "Reshape" and graph.opset < _OPSET_OF_INPUTS:
        return gs.Node(op, "", {name: list(numbers)}, [tensor])
    values = np.array(numbers, np.int64)
    return gs.Node(op, "", {}, [tensor, _constant(graph, f"{tensor.name}/{op}/{name}", values)])


def _constant(graph: gs.Graph, name: str, values: NDArray[np.generic]) -> gs.Constant:
    return gs.Constant(unused_name(graph, name), np.ascontiguousarray(values))


def _replace(graph: gs.Graph, old: Sequence[gs.Node | None], new: Sequence[gs.Node]) -> None:
    gone = [node for node in old if node is not None]
    at = min(index_of(graph, node) for node in gone)
    graph.nodes[at:at] = new
    remove(graph, *gone)


def _linears(graph: gs.Graph) -> dict[str, Linear]:
    return {view.name: view for view in _views(graph)}


def _views(graph: gs.Graph) -> list[Linear]:
    return [view for view in find_linear(graph) if isinstance(view, Linear)]
