"""Which linear nodes can become a chain of smaller ones, and what the nodes of each chain are.

A dense kernel, (n, c, taps), is factorized in one of four forms. Each node of a chain moves along
some axes as the original does and sees one position along the others::

    form         rank   nodes: outputs x inputs, axes              known from
    spatial-svd  r      r x c, first axes;  n x r, the other axes  Jaderberg et al. 2014
    channel-svd  r      r x c, all axes;    n x r                  Denton et al. 2014
    tucker       i, o   i x c;  o x i, all axes;  n x o            Kim et al. 2016
    decouple     t      t per input channel, all axes;  n x c t    Guo et al. 2018

The first axes are those up to the first along which the kernel has several taps. The rank of a form
is below the one that any kernel of the shape has, else nothing is gained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import numpy as np

from fskd_onnx.passes.analysis.linear import Linear


class Form(StrEnum):
    """What a kernel becomes, see the module's docstring."""

    SPATIAL_SVD = "spatial-svd"
    CHANNEL_SVD = "channel-svd"
    TUCKER = "tucker"
    DECOUPLE = "decouple"


Rank = tuple[int, ...]
"""One number, of tucker two: inner channels in front of the kernel, and behind it."""


@dataclass(frozen=True)
class LinearShape:
    """The shape of a dense kernel.

    Attributes:
        outputs: channels that it writes.
        inputs: channels that it reads.
        kernel: taps along each axis, () for a matrix.
    """

    outputs: int
    inputs: int
    kernel: tuple[int, ...] = ()

    @staticmethod
    def of(linear: Linear) -> LinearShape:
        """Return the shape of a node without groups."""
        kernel = linear.kernel_shape
        return LinearShape(linear.width, linear.shape[2] // math.prod(kernel), kernel)

    @property
    def taps(self) -> int:
        """Number of taps."""
        return math.prod(self.kernel)

    @property
    def first_axes(self) -> int:
        """How many axes the first node of ``spatial-svd`` moves along."""
        several = (axis for axis, taps in enumerate(self.kernel) if taps > 1)
        return next(several, 0) + 1


@dataclass(frozen=True)
class Link:
    """The shape of a node of a chain.

    Attributes:
        outputs: channels that it writes.
        inputs: channels that it reads.
        kernel: taps along each axis.
        axes: along which it moves as the original node does.
        groups: that its channels are divided into.
    """

    outputs: int
    inputs: int
    kernel: tuple[int, ...]
    axes: tuple[int, ...]
    groups: int = 1

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """Shape of its matrix, (groups, n, p)."""
        each = self.inputs // self.groups * math.prod(self.kernel)
        return self.groups, self.outputs // self.groups, each

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return math.prod(self.matrix_shape)


def links(form: Form, shape: LinearShape, rank: Rank) -> tuple[Link, ...]:
    """Return the nodes that a kernel becomes, in the order of data.

    Args:
        form: the form.
        shape: of the kernel.
        rank: see ``Rank``.
    """
    return _LINKS[form](shape, *rank)


def full_rank(form: Form, shape: LinearShape) -> Rank:
    """Return the rank of any kernel of a shape; each number of a useful one is below."""
    n, c, taps = shape.outputs, shape.inputs, shape.taps
    if form == Form.SPATIAL_SVD:
        first = math.prod(shape.kernel[: shape.first_axes])
        return (min(c * first, n * (taps // first)),)
    if form == Form.DECOUPLE:
        return (min(n, taps),)
    outputs = min(n, c * taps)
    return (outputs,) if form == Form.CHANNEL_SVD else (min(c, n * taps), outputs)


def why_not(linear: Linear, form: Form) -> str:
    """Return why a node cannot be factorized in a form, as a clause about it; nothing if it can."""
    if linear.operator.transposed:
        return "it is a transposed convolution"
    if linear.groups > 1:
        return "it has groups"
    if linear.shared_with is not None:
        return f"its weights are also those of '{linear.shared_with}'"
    several = sum(taps > 1 for taps in linear.kernel_shape)
    if form == Form.SPATIAL_SVD and several < 2:
        return "its kernel does not have several taps along two axes"
    if form in (Form.TUCKER, Form.DECOUPLE) and not several:
        return "its kernel has one tap"
    if min(full_rank(form, LinearShape.of(linear))) < 2:
        return "its kernel has a rank of one already"
    if not np.isfinite(linear.native).all():
        return "its weights are not all finite"
    return ""


def _spatial(shape: LinearShape, rank: int) -> tuple[Link, ...]:
    axes = range(len(shape.kernel))
    first, others = axes[: shape.first_axes], axes[shape.first_axes :]
    return (
        _link(shape, rank, shape.inputs, first),
        _link(shape, shape.outputs, rank, others),
    )


def _channel(shape: LinearShape, rank: int) -> tuple[Link, ...]:
    return (
        _link(shape, rank, shape.inputs, range(len(shape.kernel))),
        _link(shape, shape.outputs, rank),
    )


def _tucker(shape: LinearShape, inner: int, outer: int) -> tuple[Link, ...]:
    return (
        _link(shape, inner, shape.inputs),
        _link(shape, outer, inner, range(len(shape.kernel))),
        _link(shape, shape.outputs, outer),
    )


def _decouple(shape: LinearShape, terms: int) -> tuple[Link, ...]:
    c = shape.inputs
    return (
        _link(shape, c * terms, c, range(len(shape.kernel)), groups=c),
        _link(shape, shape.outputs, c * terms),
    )


def _link(
    shape: LinearShape, outputs: int, inputs: int, axes: Sequence[int] = (), groups: int = 1
) -> Link:
    kernel = tuple(taps if axis in axes else 1 for axis, taps in enumerate(shape.kernel))
    return Link(outputs, inputs, kernel, tuple(axes), groups)


_LINKS: Mapping[Form, Callable[..., tuple[Link, ...]]] = MappingProxyType(
    {
        Form.SPATIAL_SVD: _spatial,
        Form.CHANNEL_SVD: _channel,
        Form.TUCKER: _tucker,
        Form.DECOUPLE: _decouple,
    }
)
