"""Receptive fields: how far a position of one tensor sees into another, along each axis.

Through windows of k elements, with stride s and dilation d (Araujo, Norris, Sim 2019)::

    from the front   size' = size + (k - 1) d step,   step' = step s   (transposed: step / s)
    from behind      size' = (size - 1) s + (k - 1) d + 1

A decomposed block sees as much as the block it stands for, however it is cut up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.operators import operator_of


@dataclass(frozen=True)
class ReceptiveField:
    """What is seen along each axis; axes that no window has been over are left out.

    Attributes:
        size: number of positions.
        step: distance between neighbours, in positions of what is seen.
    """

    size: tuple[float, ...] = ()
    step: tuple[float, ...] = ()

    def forward(self, node: gs.Node) -> ReceptiveField:
        """Return the field behind a node, seen from the input of the network."""
        axes = [
            (size + (kernel - 1) * dilation * min(step, step * scale), step * scale)
            for size, step, kernel, scale, dilation in _axes(self, node)
        ]
        return ReceptiveField(*map(tuple, zip(*axes, strict=True))) if axes else self

    def backward(self, node: gs.Node) -> ReceptiveField:
        """Return the field in front of a node, as what is behind it sees it."""
        axes = [
            ((size - 1) * scale + (kernel - 1) * dilation + 1, step)
            for size, step, kernel, scale, dilation in _axes(self, node)
        ]
        return ReceptiveField(*map(tuple, zip(*axes, strict=True))) if axes else self


def widest(fields: Iterable[ReceptiveField]) -> ReceptiveField:
    """Return the largest of several ways."""
    found = list(fields)
    if not found:
        return ReceptiveField()
    if all(field == found[0] for field in found[1:]):
        return found[0]
    parts = ((field.size for field in found), (field.step for field in found))
    return ReceptiveField(
        *(tuple(map(max, itertools.zip_longest(*part, fillvalue=1.0))) for part in parts)
    )


def _axes(field: ReceptiveField, node: gs.Node) -> Iterable[tuple[float, float, int, float, int]]:
    """Yield size, step, kernel, stride and dilation of each axis that a window moves along."""
    operator = operator_of(node)
    if not operator.has_window:
        return
    kernel = node.attrs.get("kernel_shape")
    if kernel is None and len(node.inputs) > 1:
        kernel = (node.inputs[1].shape or ())[2:]
    if not kernel:
        return
    ones = [1] * len(kernel)
    strides, dilations = (node.attrs.get(name) or ones for name in ("strides", "dilations"))
    for axis, (k, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        size, step = (part[axis] if axis < len(part) else 1.0 for part in (field.size, field.step))
        yield size, step, k, 1 / stride if operator.is_transposed else float(stride), dilation
