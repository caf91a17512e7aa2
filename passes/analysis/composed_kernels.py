"""Kernels of chains: linear nodes with nothing between them are one linear map.

::

    x ─▶ Conv k1, stride s1, dilation d1 ─▶ Conv k2, s2, d2 ─▶ y

Kernel element a of the first and b of the second see the input at the same distance, a d1 + b d2 s1
from the start of the patch, so the composed kernel is the sum over all that meet there::

    K[n, c, a d1 + b d2 s1]  +=  sum over m of  second[n, m, b] first[m, c, a]        stride s1 s2

This is the algebra of decomposed layers read backwards: k x k then 1 x 1 (Denton et al. 2014),
k x 1 then 1 x k (Jaderberg et al. 2014), 1 x 1, k x k, 1 x 1 (Kim et al. 2016), depthwise then
pointwise (Guo et al. 2018), and pairs of matrices. Biases and padding are no part of a kernel: the
composed kernel is exact wherever no padding lies between the nodes, and the bias of an inner node
only shifts the output there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.nodes import is_standard, nodes_in_bodies, sole_reader

# They hand on each element as it is.
_HANDS_ON = ("Cast", "Dropout", "Identity")
# They make rows of positions, and back; the channels stay on the last axis.
_MOVE_ROWS = ("Flatten", "Reshape")
# Along groups, channels and inputs.
_WHOLE = (slice(None),) * 3


@dataclass(frozen=True)
class Kernel:
    """The weights of a linear node, or of several in a row.

    Attributes:
        weights: (groups, n, inputs of a group, taps along each spatial axis).
        strides: step between outputs along each spatial axis, in input positions.
        dilations: step between taps.
    """

    weights: NDArray[np.floating[Any]]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]

    @staticmethod
    def of(linear: Linear) -> Kernel | None:
        """Read the kernel of a node, in the type that stores it; None for a ConvTranspose."""
        if linear.operator.transposed:
            return None
        shape, ones = linear.kernel_shape, [1] * len(linear.kernel_shape)
        groups, n, _ = linear.shape
        strides, dilations = (
            tuple(int(step) for step in linear.node.attrs.get(name) or ones)
            for name in ("strides", "dilations")
        )
        if len(strides) != len(shape) or len(dilations) != len(shape):
            strides = dilations = tuple(ones)  # of Gemm and MatMul, which have none
        return Kernel(linear.native.reshape(groups, n, -1, *shape), strides, dilations)

    @property
    def groups(self) -> int:
        """Number of groups."""
        return int(self.weights.shape[0])

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Number of taps along each spatial axis."""
        return self.weights.shape[3:]

    @property
    def rows(self) -> NDArray[np.floating[Any]]:
        """(channels, inputs of a group, taps)."""
        groups, n, inputs = self.weights.shape[:3]
        return self.weights.reshape(groups * n, inputs, math.prod(self.kernel_shape))

    def sampled(self, rows: int) -> Kernel:
        """Return the kernel of about so many of its channels, spread evenly."""
        n = self.weights.shape[1]
        wanted = max(1, min(n, -(-rows // self.groups)))
        chosen = np.unique(np.linspace(0, n - 1, wanted).astype(np.intp))
        return Kernel(self.weights[:, chosen], self.strides, self.dilations)

    def in_groups(self, groups: int) -> Kernel:
        """Return the same map in fewer groups, which divide its own: zeros fill the blocks."""
        if groups == self.groups:
            return self
        each = self.groups // groups
        _, n, inputs, *taps = self.weights.shape
        blocks = np.zeros((groups, each, n, each, inputs, *taps), self.weights.dtype)
        own = self.weights.reshape(groups, each, n, inputs, *taps)
        for block in range(each):
            blocks[:, block, :, block] = own[:, block]
        shape = groups, each * n, each * inputs, *taps
        return Kernel(blocks.reshape(shape), self.strides, self.dilations)

    def behind(self, first: Kernel) -> Kernel:
        """Return the kernel of this one behind another, whose channels it reads.

        Raises:
            ValueError: they move over another number of axes, or channels do not fit.
        """
        groups = math.gcd(self.groups, first.groups)
        mine, theirs = self.in_groups(groups), first.in_groups(groups)
        if len(mine.kernel_shape) != len(theirs.kernel_shape):
            raise ValueError("the kernels move over another number of axes")
        if mine.weights.shape[2] != theirs.weights.shape[1]:
            raise ValueError("the second kernel does not read the channels of the first")
        axes = list(
            zip(
                mine.kernel_shape,
                mine.dilations,
                theirs.kernel_shape,
                theirs.dilations,
                theirs.strides,
                strict=True,
            )
        )
        steps = tuple(
            math.gcd(d2 * s1 if k2 > 1 else 0, d1 if k1 > 1 else 0) or 1
            for k2, d2, k1, d1, s1 in axes
        )
        extents = tuple(
            ((k2 - 1) * d2 * s1 + (k1 - 1) * d1) // step + 1
            for (k2, d2, k1, d1, s1), step in zip(axes, steps, strict=True)
        )
        n, inputs = mine.weights.shape[1], theirs.weights.shape[2]
        dtype = np.result_type(mine.weights, theirs.weights)
        result = np.zeros((groups, n, inputs, *extents), dtype)
        flat = theirs.weights.reshape(groups, theirs.weights.shape[1], -1)
        kernels = mine.weights.reshape(*mine.weights.shape[:3], -1)
        for number, tap in enumerate(itertools.product(*map(range, mine.kernel_shape))):
            part = kernels[..., number] @ flat
            at = tuple(
                slice(
                    b * d2 * s1 // step, b * d2 * s1 // step + (k1 - 1) * d1 // step + 1, d1 // step
                )
                if k1 > 1
                else slice(b * d2 * s1 // step, b * d2 * s1 // step + 1)
                for b, (_, d2, k1, d1, s1), step in zip(tap, axes, steps, strict=True)
            )
            result[(*_WHOLE, *at)] += part.reshape(groups, n, inputs, *theirs.kernel_shape)
        strides = tuple(a * b for a, b in zip(mine.strides, theirs.strides, strict=True))
        return Kernel(result, strides, steps)


def compose(kernels: Sequence[Kernel]) -> Kernel:
    """Return the kernel of several in a row, at least one; the first one reads the input."""
    composed = kernels[-1]
    for kernel in reversed(kernels[:-1]):
        composed = composed.behind(kernel)
    return composed


def next_in_chain(graph: gs.Graph, views: Sequence[Linear]) -> Mapping[int, int]:
    """Return, by number, which node alone reads each one's output, with nothing between them.

    Args:
        graph: the graph.
        views: its linear nodes; pairs that cannot be composed are left out.
    """
    in_bodies = nodes_in_bodies(graph)
    number_of = {id(view.node): number for number, view in enumerate(views)}
    chained = {}
    for number, view in enumerate(views):
        tensor, reader = handed_on(graph, view, view.output, in_bodies)
        behind = number_of.get(id(reader))
        if behind is None or views[behind].input is not tensor:
            continue
        ranks = {len(v.kernel_shape) for v in (view, views[behind])}
        kinds = {v.is_convolution for v in (view, views[behind])}
        transposed = view.operator.transposed or views[behind].operator.transposed
        # Behind a Reshape the next matrix has as many columns where its rows are those of this one.
        if not view.is_convolution and views[behind].shape[2] != view.width:
            continue
        if len(ranks) == len(kinds) == 1 and not transposed:
            chained[number] = behind
    return chained


def chains(chained: Mapping[int, int]) -> dict[int, list[int]]:
    """Return the nodes of the chain that ends at each, itself the last; two at least.

    Args:
        chained: see ``next_in_chain``.
    """
    previous = {behind: number for number, behind in chained.items()}
    found = {}
    for end in previous:
        chain = [end]
        while chain[0] in previous:
            chain.insert(0, previous[chain[0]])
        found[end] = chain
    return found


def handed_on(
    graph: gs.Graph, linear: Linear, tensor: gs.Tensor, in_bodies: Collection[int]
) -> tuple[gs.Tensor, gs.Node | None]:
    """Return what a tensor is handed on as, and the node that alone reads that.

    Args:
        graph: the graph.
        linear: the node whose output it is, or is a sum of; rows of a matrix may be moved.
        tensor: the tensor.
        in_bodies: nodes in bodies of control flow, by identity.
    """
    hands_on = _HANDS_ON if linear.is_convolution else (*_HANDS_ON, *_MOVE_ROWS)
    reader = sole_reader(graph, tensor, in_bodies)
    while reader is not None and is_standard(reader, *hands_on):
        if len([output for output in reader.outputs if output.name]) != 1:
            return tensor, None
        tensor = reader.outputs[0]
        reader = sole_reader(graph, tensor, in_bodies)
    return tensor, reader
