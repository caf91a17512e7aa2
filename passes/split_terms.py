"""Depthwise convolutions of several outputs per channel, with the 1 x 1 behind them, as branches.

::

                                             ┌─▶ depthwise 1 ─▶ 1 x 1 ─┐
    x ─▶ depthwise of t ─▶ 1 x 1 ─▶ y   x ───┤           ...           + ─▶ y
                                             └─▶ depthwise t ─▶ 1 x 1 ─┘

    P D = sum over k of P_k D_k        D_k: rows k, k + t, ... of D;  P_k: these columns of P

Both take the same multiply-adds. But runtimes are fast at depthwise convolutions of one output per
channel, and treat others as groups, each a small product of its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import (
    index_of,
    name_of_new,
    nodes_in_bodies,
    sole_reader,
    unused_name,
)
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.edit import remove

# ONNX Runtime's kernels for blocks of channels take as many, and numbers that the second divides.
_LEAST, _BLOCK = 16, 4


def are_faster_apart(terms: int, channels: int, kernel: Collection[int], dtype: str) -> bool:
    """Whether branches take less time than one depthwise node of several outputs per channel.

    Measured by ``python -m tests.benchmarks.terms``: elsewhere they are slow as well, and more.

    Args:
        terms: outputs per input channel.
        channels: input channels.
        kernel: taps along each axis.
        dtype: name of the type that stores the weights.
    """
    in_blocks = channels >= _LEAST and channels % _BLOCK == 0
    return terms > 1 and in_blocks and len(kernel) == 2 and dtype == "float32"


@dataclass(frozen=True)
class SplitTerms(Pass):
    """Write the terms of decoupled nodes as branches. The function stays, to rounding.

    A chain stays as it is where that is no faster, or where anything else reads what is inside.

    Attributes:
        names: of the last node of each chain; the last branch has it in the end.
    """

    names: Collection[str]

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per chain."""
        notes = []
        in_bodies = nodes_in_bodies(graph)
        views = [view for view in find_linear(graph) if isinstance(view, Linear)]
        depthwise = {id(view.output): view for view in views if _has_terms(view)}
        for last in views:
            first = depthwise.get(id(last.input))
            if first is None or last.name not in self.names:
                continue
            is_end = last.op == "Conv" and last.groups == math.prod(last.kernel_shape) == 1
            is_alike = last.native.dtype == first.native.dtype
            if is_end and is_alike and sole_reader(graph, last.input, in_bodies) is last.node:
                notes.append(f"the {first.shape[1]} terms of '{last.name}' made branches")
                _put_branches(graph, first, last)
        return notes


def _has_terms(view: Linear) -> bool:
    """Whether a node is depthwise, and its terms would be faster as branches."""
    groups, terms, taps = view.shape
    is_depthwise = view.op == "Conv" and taps == math.prod(view.kernel_shape)
    return is_depthwise and are_faster_apart(
        terms, groups, view.kernel_shape, view.native.dtype.name
    )


def _put_branches(graph: gs.Graph, first: Linear, last: Linear) -> None:
    """Put branches in the place of a depthwise node and the 1 x 1 node behind it."""
    count = first.shape[1]
    source, output, dtype = first.input, last.output, last.native.dtype
    kernels = np.moveaxis(first.native.reshape(-1, count, 1, *first.kernel_shape), 1, 0)
    mixing = np.moveaxis(last.native.reshape(last.width, -1, count, *last.kernel_shape), 2, 0)
    shifts = first.bias.reshape(-1, count).T
    bias = np.zeros((count, last.width))
    bias[-1] = last.bias
    pair = [
        (first.name, "depthwise", first.node.attrs, kernels, shifts),
        (last.name, "pointwise", last.node.attrs, mixing, bias),
    ]
    at = index_of(graph, last.node) - 1
    remove(graph, first.node, last.node)

    def put(op: str, name: str, attrs: Mapping[str, Any], inputs: list[gs.Tensor]) -> gs.Node:
        nonlocal at
        node = gs.Node(op, name_of_new(graph, name), dict(attrs), inputs)
        graph.nodes.insert(at, node)
        at += 1
        return node

    ends = []
    for term in range(count):
        tensor = source
        # The last branch has the names of the chain.
        ending = "" if term == count - 1 else f"/term{term + 1}"
        for name, kind, attrs, weights, biases in pair:
            place = f"{output.name}/{kind}{term + 1}"
            inputs = [tensor, _constant(graph, f"{place}/weight", weights[term], dtype)]
            if biases[term].any():
                inputs.append(_constant(graph, f"{place}/bias", biases[term], dtype))
            node = put("Conv", name + ending, attrs, inputs)
            tensor = gs.Variable(unused_name(graph, place), dtype)
            node.outputs.append(tensor)
        ends.append(tensor)
    total = ends[0]
    for number, tensor in enumerate(ends[1:], start=1):
        node = put("Add", f"{pair[1][0]}/sum{number}", {}, [total, tensor])
        is_last = number == count - 1
        total = (
            output
            if is_last
            else gs.Variable(unused_name(graph, f"{output.name}/sum{number}"), dtype)
        )
        node.outputs.append(total)


def _constant(
    graph: gs.Graph, name: str, values: NDArray[np.floating[Any]], dtype: np.dtype[Any]
) -> gs.Constant:
    return gs.Constant(unused_name(graph, name), np.ascontiguousarray(values, dtype))
