"""All that the time of a linear node depends on, as a key of what has been measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.shapes import infer_shapes

# Attributes that the number of channels and the kernel say as well.
_RESERVED = ("group", "kernel_shape")


@dataclass(frozen=True)
class LinearCase:
    """All of a linear node and its input that its time depends on.

    Attributes:
        op: its operator.
        inputs: number of input channels.
        outputs: number of output channels.
        groups: number of groups.
        kernel: spatial extents of the kernel; () for none.
        others: extents of the input but for its channels, the samples first.
        dtype: name of the element type.
        has_bias: whether it has a bias of its own.
        attributes: what else the node states, by name.
    """

    op: str
    inputs: int
    outputs: int
    groups: int
    kernel: tuple[int, ...]
    others: tuple[int, ...]
    dtype: str
    has_bias: bool
    attributes: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def find(
        graph: gs.Graph, inputs: Mapping[str, Sequence[int]] | None = None
    ) -> dict[str, LinearCase]:
        """Return the case of each linear node of a graph, by name.

        Nodes whose input has extents that depend on the data are left out.

        Args:
            graph: any graph.
            inputs: shapes of its inputs in a run; None for those that it states.
        """
        shapes = infer_shapes(graph, inputs)
        found = {}
        for view in find_linear(graph):
            shape = shapes.get(view.input.name) if isinstance(view, Linear) else None
            if isinstance(view, Linear) and shape is not None and None not in shape:
                known = [extent for extent in shape if extent is not None]
                found[view.name] = LinearCase.of(view, known)
        return found

    @staticmethod
    def of(view: Linear, shape: Sequence[int]) -> LinearCase:
        """Return the case of a node.

        Args:
            view: the node.
            shape: of its input in a run.
        """
        groups, n, p = view.shape
        axis = view.channel_axis % len(shape)
        stated = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in view.node.attrs.items()
            if name not in _RESERVED
        }
        return LinearCase(
            view.op,
            groups * p // math.prod(view.kernel_shape),
            groups * n,
            groups,
            view.kernel_shape,
            (*shape[:axis], *shape[axis + 1 :]),
            view.dtype.name,
            has_bias=view.bias_constant is not None and view.bias_node is None,
            attributes=tuple(sorted(stated.items())),
        )

    def with_widths(self, inputs: int | None = None, outputs: int | None = None) -> LinearCase:
        """Return the case of the node with other numbers of channels.

        A depthwise node keeps one channel in each group.
        """
        read, made = inputs or self.inputs, outputs or self.outputs
        groups = read if self.groups == self.inputs > 1 else self.groups
        return replace(self, inputs=read, outputs=made, groups=groups)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        axis = len(self.others) if self.op == "MatMul" else 1
        return (*self.others[:axis], self.inputs, *self.others[axis:])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight as the operator stores it."""
        if self.op == "Conv":
            return (self.outputs, self.inputs // self.groups, *self.kernel)
        if self.op == "ConvTranspose":
            return (self.inputs, self.outputs // self.groups, *self.kernel)
        outputs_first = self.op == "Gemm" and dict(self.attributes).get("transB", 0)
        sizes = (self.outputs, self.inputs) if outputs_first else (self.inputs, self.outputs)
        return sizes

    @property
    def elements(self) -> int:
        """Number of elements that the node reads."""
        return math.prod(self.input_shape) + math.prod(self.weight_shape)
