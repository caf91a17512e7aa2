"""Fold what scales and shifts every channel by itself into a linear node beside it.

Behind a linear node, an inference BatchNormalization, and an Add, Sub, Mul or Div of one value per
channel, are affine maps that merge into it exactly (in exact arithmetic)::

    y = s (W p + b) + t                   W' = s W,  b' = s b + t
    BatchNormalization:  s = gamma / sqrt(var + eps),  t = beta - s mean

In front of one, a BatchNormalization merges where every output sees as much of its input as any
other: padding is zeros behind it, and would be -t / s in front of it. With the channels c of p::

    y = W (s p + t) + b                   W'_c = W_c s_c,  b' = b + sum_c W_c t_c

The adapter of a block has to sit behind both: one in front of them would have to pass through s,
which scales channels and does not commute with a matrix that mixes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.geometry import sees_whole_patches
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import (
    is_dense,
    is_standard,
    node_name,
    nodes_in_bodies,
    sole_reader,
)
from fskd_onnx.passes.analysis.operators import operator_of
from fskd_onnx.passes.analysis.shared_weights import find_uses
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.edit import remove
from fskd_onnx.passes.errors import PostconditionError
from fskd_onnx.passes.write_weights import write_weights

# Older ones had a mode of training as their default.
_OPSET_OF_INFERENCE = 7


class FoldAffine(Pass):
    """Fold affine maps per channel into the linear nodes that they follow, or that follow them.

    The function stays, to rounding. A node is folded where all of this holds, and stays elsewhere:

    1. Its parameters are constants, one value per channel, and no divisor is zero.
    2. It alone reads the output of the linear node, or the linear node alone reads its output: no
       other node does, no body of an If or Loop, and it is no output of the graph.
    3. No other node reads the weights of the linear node; or those that do are uses of one block
       (``analysis.shared_weights``), and the same affine map follows each of them.
    4. The types that weights and bias are stored in hold the new values: finite ones, and without
       a loss what is stored in half precision for a node that computes in more.
    5. In front of a linear node: it is a BatchNormalization, and it either does not shift or every
       output of the linear node sees a whole patch.
    6. Behind a sum of linear nodes: it alone reads the sum, and the sum each of them.
    """

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per node that went away."""
        with quiet():
            return _fold_behind(graph) + _fold_behind_sums(graph) + _fold_in_front(graph)

    def ensures(self, graph: gs.Graph) -> None:
        """Check that no foldable node is left over."""
        blocks, in_bodies = _blocks(graph), nodes_in_bodies(graph)
        for node in graph.nodes:
            block = _block_before(node, blocks)
            with quiet():
                left_over = block and _merged_behind(graph, block, in_bodies)
            if left_over:
                msg = f"{node.op} '{node_name(node)}' was left unfolded"
                raise PostconditionError(msg)


def quiet() -> np.errstate:
    """Return a context in which NumPy does not warn of what is not folded: values not finite."""
    return np.errstate(divide="ignore", over="ignore", invalid="ignore")


def _fold_behind(graph: gs.Graph) -> list[str]:
    notes = []
    blocks, in_bodies = _blocks(graph), nodes_in_bodies(graph)
    for node in list(graph.nodes):
        block = _block_before(node, blocks)
        merged = _merged_behind(graph, block, in_bodies) if block else None
        if merged is None:
            continue
        for use in block:
            folded = use.output.outputs[0]
            notes.append(f"{folded.op} '{node_name(folded)}' folded into '{use.name}'")
            # What was folded leaves its output to the linear node, so no reader changes.
            result = folded.outputs[0]
            remove(graph, folded)
            use.last_node.outputs = [result]
        write_weights(graph, block[0], merged, block[1:])
        # An Add behind a MatMul that has lost its scale is its bias from now on.
        block = tuple(use.renewed(graph, in_bodies) for use in block)
        blocks |= {id(use.output): block for use in block}
    return notes


def _fold_behind_sums(graph: gs.Graph) -> list[str]:
    """Fold what stands behind a sum of linear nodes into each of them."""
    notes = []
    blocks, in_bodies = _blocks(graph), nodes_in_bodies(graph)
    for node in list(graph.nodes):
        for tensor in node.inputs[:2]:
            terms = _terms(graph, tensor, node, blocks, in_bodies)
            merged = _merged_behind_sum(graph, node, tensor, terms) if len(terms) > 1 else []
            if not merged:
                continue
            notes.append(f"{node.op} '{node_name(node)}' folded into the terms of a sum")
            total, result = tensor.inputs[0], node.outputs[0]
            remove(graph, node)
            total.outputs = [result]
            for linear, new in zip(terms, merged, strict=True):
                write_weights(graph, linear, new)
            blocks = _blocks(graph)
            break
    return notes


def _terms(
    graph: gs.Graph,
    tensor: gs.Tensor,
    reader: gs.Node,
    blocks: Mapping[int, _Block],
    in_bodies: set[int],
) -> list[Linear]:
    """Return the linear nodes whose sum a tensor is; none where it is anything else, or read twice.

    Args:
        graph: the graph.
        tensor: a tensor, or a term of it.
        reader: the node that reads it.
        blocks: see `_blocks`.
        in_bodies: see ``nodes.nodes_in_bodies``.
    """
    if sole_reader(graph, tensor, in_bodies) is not reader:
        return []
    block = blocks.get(id(tensor), ())
    if block:
        return list(block) if len(block) == 1 else []
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or not is_standard(node, "Add", "Sum"):
        return []
    found = [_terms(graph, term, node, blocks, in_bodies) for term in node.inputs]
    return [linear for part in found for linear in part] if all(found) else []


def _merged_behind_sum(
    graph: gs.Graph, node: gs.Node, source: gs.Tensor, terms: list[Linear]
) -> list[AffineMap]:
    """Return the weights of the terms of a sum with a node behind it folded in; none if it cannot.

    scale (p + q) + shift = (scale p + shift) + scale q
    """
    first = terms[0]
    if len({(v.width, v.channels_last, len(v.kernel_shape)) for v in terms}) != 1:
        return []
    rank = 1 if first.channels_last else len(first.kernel_shape) + 2
    affine = affine_of(graph, node, source, first.width, rank, first.channel_axis)
    if affine is None:
        return []
    shifted = next((v for v in terms if v.bias_constant is not None), first)
    scale, shift = affine.matrix.reshape(-1), affine.shift.reshape(-1)
    merged = [
        _checked(
            linear,
            linear.native * scale.reshape(linear.groups, -1, 1),
            scale * linear.bias + (shift if linear is shifted else 0.0),
        )
        for linear in terms
    ]
    return [new for new in merged if new is not None] if all(merged) else []


_Block = tuple[Linear, ...]
"""The uses of a block, in the order of nodes; most have one."""


def _blocks(graph: gs.Graph) -> dict[int, _Block]:
    """Return the blocks whose weights nothing else reads, by each of their outputs."""
    uses = find_uses([view for view in find_linear(graph) if isinstance(view, Linear)])
    return {id(use.output): block for block in uses.values() for use in block}


def _block_before(node: gs.Node, blocks: Mapping[int, _Block]) -> _Block:
    """Return the block whose output a node reads; nothing where it reads none."""
    return next((blocks[id(tensor)] for tensor in node.inputs if id(tensor) in blocks), ())


def _merged_behind(graph: gs.Graph, block: _Block, in_bodies: set[int]) -> AffineMap | None:
    """Return a block's weights with the only node that reads its output folded in.

    Of several uses, with what follows each of them, where that is the same.
    """
    first, *others = (_merged_behind_use(graph, use, in_bodies) for use in block)
    alike = all(first and other and other.equals(first) for other in others)
    return first if alike else None


def affine_behind(graph: gs.Graph, linear: Linear, in_bodies: set[int]) -> AffineMap | None:
    """Return the affine map per channel that alone reads a linear node's output, if one does.

    Args:
        graph: the graph of the node.
        linear: the node.
        in_bodies: see ``nodes.nodes_in_bodies``.
    """
    node = linear.sole_reader(graph, in_bodies)
    if node is None:
        return None
    # A tensor with its channels on the last axis may be of any rank.
    rank = 1 if linear.channels_last else len(linear.kernel_shape) + 2
    return affine_of(graph, node, linear.output, linear.width, rank, linear.channel_axis)


def _merged_behind_use(graph: gs.Graph, linear: Linear, in_bodies: set[int]) -> AffineMap | None:
    affine = affine_behind(graph, linear, in_bodies)
    return None if affine is None else scaled_and_shifted(linear, affine)


def scaled_and_shifted(linear: Linear, affine: AffineMap) -> AffineMap | None:
    """Return a node's weights with an affine map per channel behind it folded in.

    None where the types that they are stored in cannot hold them.
    """
    return _checked(
        linear,
        linear.native * affine.matrix.reshape(linear.groups, -1, 1),
        affine.matrix.reshape(-1) * linear.bias + affine.shift.reshape(-1),
    )


def _checked(
    linear: Linear, matrix: NDArray[np.float64], bias: NDArray[np.float64]
) -> AffineMap | None:
    """Return new weights, unless the types that they are stored in cannot hold them.

    What is stored in half precision for a node that computes in more would be rounded.
    """
    computed = onnx.helper.np_dtype_to_tensor_dtype(linear.dtype)
    for values, constant in ((matrix, linear.weight), (bias, linear.bias_constant)):
        kind = computed if constant is None else constants.element_type(constant)
        holds = constants.fits if kind == computed else constants.survives
        if not holds(values, kind):
            return None
    return AffineMap(matrix, bias.reshape(matrix.shape[:2]))


def affine_of(
    graph: gs.Graph, node: gs.Node, source: gs.Tensor, width: int, rank: int, axis: int
) -> AffineMap | None:
    """Read a node as an affine map of the channels of one of its inputs, if it is one."""
    if is_standard(node, "BatchNormalization"):
        return _normalization(graph, node, width) if axis == 1 else None
    if not operator_of(node).scales or node.inputs[0] is node.inputs[1]:
        return None
    first = node.inputs[0] is source
    other = node.inputs[1 if first else 0]
    values = _per_channel(other, width, rank, axis)
    if values is None or (node.op == "Div" and not (first and values.all())):
        return None
    one, zero = np.ones(width), np.zeros(width)
    if node.op == "Mul":
        return AffineMap.per_channel(values, zero)
    if node.op == "Div":
        return AffineMap.per_channel(one / values, zero)
    if node.op == "Add":
        return AffineMap.per_channel(one, values)
    return AffineMap.per_channel(one, -values) if first else AffineMap.per_channel(-one, values)


def _normalization(graph: gs.Graph, node: gs.Node, width: int) -> AffineMap | None:
    if graph.opset < _OPSET_OF_INFERENCE or node.attrs.get("training_mode", 0):
        return None
    if any(not tensor.is_empty() for tensor in node.outputs[1:]):
        return None
    parameters = [constants.parameter(tensor) for tensor in node.inputs[1:5]]
    # Before opset 9 (``spatial`` = 0) there could be one value per position.
    if any(constant is None or tuple(constant.shape) != (width,) for constant in parameters):
        return None
    gamma, beta, mean, variance = map(constants.read, parameters)
    scale = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    return AffineMap.per_channel(scale, beta - scale * mean)


def _per_channel(tensor: gs.Tensor, width: int, rank: int, axis: int) -> NDArray[np.float64] | None:
    """Return a constant as one value per channel of what it is broadcast to, or None.

    A constant of higher rank than the other operand would give its rank to the result.
    """
    constant = constants.parameter(tensor)
    if constant is None or len(constant.shape) > rank:
        return None
    shape = (1,) * (rank - len(constant.shape)) + tuple(constant.shape)
    on_axis = shape[axis]
    if math.prod(shape) != on_axis or on_axis not in (1, width):
        return None
    return np.broadcast_to(constants.read(constant).reshape(-1), (width,))


def _fold_in_front(graph: gs.Graph) -> list[str]:
    """Fold a BatchNormalization whose only reader is a linear node into that node."""
    notes = []
    readers = {id(use.node): use for use, *others in _blocks(graph).values() if not others}
    in_bodies = nodes_in_bodies(graph)
    for node in list(graph.nodes):
        if not is_standard(node, "BatchNormalization"):
            continue
        linear = readers.get(id(sole_reader(graph, node.outputs[0], in_bodies)))
        if linear is None or linear.input is not node.outputs[0] or is_dense(node.inputs[0]):
            continue
        merged = _merged_in_front(graph, node, linear)
        if merged is None:
            continue
        notes.append(f"BatchNormalization '{node_name(node)}' folded into '{linear.name}'")
        linear.node.inputs[0] = node.inputs[0]
        remove(graph, node)
        write_weights(graph, linear, merged)
    return notes


def _merged_in_front(graph: gs.Graph, node: gs.Node, linear: Linear) -> AffineMap | None:
    """Return a linear node's weights with the BatchNormalization in front of it folded in."""
    if linear.channels_last or linear.operator.transposed:
        return None
    taps = math.prod(linear.kernel_shape)
    groups, n, p = linear.shape
    width = groups * p // taps
    affine = affine_of(graph, node, node.inputs[0], width, len(linear.kernel_shape) + 2, 1)
    if affine is None or (affine.shift.any() and not sees_whole_patches(linear)):
        return None
    by_channel = linear.matrix.reshape(groups, n, -1, taps)
    scale, shift = (v.reshape(groups, 1, -1, 1) for v in (affine.matrix, affine.shift))
    moved = (by_channel * shift).sum(axis=(2, 3)).reshape(-1)
    return _checked(linear, (by_channel * scale).reshape(groups, n, p), linear.bias + moved)
