"""The linear operators of ONNX: how each of them stores and applies its weights.

All that depends on the operator of a linear node stands here and nowhere else. A node of any of
them applies one matrix per group to patches of its input::

    output[g] = matrix[g] @ patches[g] + bias[g]          matrix: (groups, n, p)

with ``n`` output channels and ``p`` unknowns (input channels of the group x kernel size) in each of
``groups`` groups. The operators differ in the order of storage, in the axis that counts channels
and in the place of the bias:

=============  =================================  =============  ======================
operator       weight as stored                   channel axis   bias
=============  =================================  =============  ======================
Conv           (groups * n, channels, kernel...)  1              input 2
ConvTranspose  (groups * channels, n, kernel...)  1              input 2
Gemm           (p, n), or (n, p) with ``transB``  1              input 2
MatMul         (p, n)                             the last axis  an Add behind the node
=============  =================================  =============  ======================

To add an operator: an entry in ``LINEAR_OPERATORS``, and a graph with it in ``FORMS`` of
``tests/passes/linear_forms.py``, by which tests know it. Were there an operator "Dense" of weights
(n, p) and with a factor ``scale`` on them::

    "Dense": LinearOperator(adapter="Dense", outputs_first=True, weight_factor="scale")

What moves over positions in another way than Conv and ConvTranspose also needs its formula in
``geometry.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis.nodes import is_standard

F = TypeVar("F", bound=np.floating)


@dataclass(frozen=True)
class LinearOperator:
    """How the nodes of one operator store and apply their weights, always input 1.

    Attributes:
        adapter: operator of a 1x1 adapter behind such a node.
        outputs_first: whether the output channels are on the first axis of the weight as stored,
            and the input channels on the second; else it is the other way round.
        swapped_by: attribute that swaps these axes where it is 1.
        input_transposed_by: attribute that transposes the input where it is 1, so that samples are
            not on its first axis.
        convolves: whether a kernel moves over positions; its extents are the weight's other axes.
        transposed: whether each input position is spread over output positions, not the reverse.
        channels_last: whether channels are on the last axis of input and output, not on axis 1.
        bias_input: number of the input that holds the bias; None where an Add behind the node does.
        weight_factor: attribute that the weight is multiplied with.
        bias_factor: attribute that the bias is multiplied with.
        multiplies_activations: whether its second input may be an activation, as in attention; such
            a node has no weights.
    """

    adapter: str
    outputs_first: bool = False
    swapped_by: str = ""
    input_transposed_by: str = ""
    convolves: bool = False
    transposed: bool = False
    channels_last: bool = False
    bias_input: int | None = 2
    weight_factor: str = ""
    bias_factor: str = ""
    multiplies_activations: bool = False

    def groups(self, node: gs.Node) -> int:
        """Return the number of a node's groups; 1 for all but grouped convolutions."""
        return int(node.attrs.get("group", 1))

    def shape(self, node: gs.Node, stored: Sequence[int]) -> tuple[int, int, int]:
        """Return the shape (groups, n, p) of a node's matrix, from that of the stored weight."""
        groups = self.groups(node)
        n = stored[0] // groups if self._has_outputs_first(node) else stored[1]
        return groups, int(n), math.prod(stored) // (groups * int(n))

    def matrix(self, node: gs.Node, stored: NDArray[F]) -> NDArray[F]:
        """Return the stored weight as (groups, n, p), without its factor; a view where it can."""
        groups, n, p = self.shape(node, stored.shape)
        if self._has_outputs_first(node):
            return stored.reshape(groups, n, p)
        by_channel = stored.reshape(groups, -1, n, math.prod(stored.shape[2:]))
        return by_channel.swapaxes(1, 2).reshape(groups, n, p)

    def stored(self, node: gs.Node, matrix: NDArray[F], kernel_shape: Sequence[int]) -> NDArray[F]:
        """Return a matrix in the order of storage: the inverse of ``matrix``; a view where it can.

        Args:
            node: whose attributes tell the order.
            matrix: (groups, n, p).
            kernel_shape: spatial extents of the kernel, () for none.
        """
        groups, n, _ = matrix.shape
        by_channel = matrix.reshape(groups, n, -1, math.prod(kernel_shape))
        if not self._has_outputs_first(node):
            by_channel = by_channel.swapaxes(1, 2)
        return by_channel.reshape(-1, by_channel.shape[2], *kernel_shape)

    def pointwise_attributes(self, groups: int, spatial_axes: int) -> dict[str, Any]:
        """Return the attributes of a node whose kernel sees one position."""
        return {"group": groups, "kernel_shape": [1] * spatial_axes} if self.convolves else {}

    def _has_outputs_first(self, node: gs.Node) -> bool:
        return self.outputs_first != bool(node.attrs.get(self.swapped_by, 0))


LINEAR_OPERATORS: Mapping[str, LinearOperator] = MappingProxyType(
    {
        "Conv": LinearOperator("Conv", outputs_first=True, convolves=True),
        "ConvTranspose": LinearOperator("Conv", convolves=True, transposed=True),
        "Gemm": LinearOperator(
            "MatMul",
            swapped_by="transB",
            input_transposed_by="transA",
            weight_factor="alpha",
            bias_factor="beta",
        ),
        "MatMul": LinearOperator(
            "MatMul", channels_last=True, bias_input=None, multiplies_activations=True
        ),
    }
)
"""The operators that a fit can refit, by name."""

CONVOLUTIONS = tuple(name for name, operator in LINEAR_OPERATORS.items() if operator.convolves)


def is_linear_op(node: gs.Node) -> bool:
    """Whether a node is of an operator that a fit can refit."""
    return is_standard(node, *LINEAR_OPERATORS)
