"""Append the nodes that sum a block's moments, so that only small matrices leave the device.

For the columns x (outputs of the student's block) and y (outputs of the teacher's) the sums are those
of the stacked column z = (x, y), group by group::

    first = sum z        (groups, d)        d = n + targets
    second = sum z z'    (groups, d, d)

x is not read from the student's block: it is W p + b at the sampled positions only, from the patches
p of the block's *input*. So the block never runs uncorrected over all positions, and what is
gathered, cast to float64 and multiplied is a sample of columns, not an activation.

Which positions, the caller decides per run through index inputs (``index_inputs``)::

    student input ─▶ gather patches ─▶ W p + b ─▶ x ┐
                                                    ├─ concat ─▶ float64 ─▶ sums
    teacher output ─▶ gather channels, positions ─▶ y ┘
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from fskd_onnx.passes.base import Pass, PreconditionError
from fskd_onnx.passes.linear import Linear
from numpy.typing import NDArray

FIRST, SECOND = "moments/first", "moments/second"
_COUNT, _PATCH, _INSIDE, _POSITION = (
    "moments/count",
    "moments/patch_index",
    "moments/patch_inside",
    "moments/position_index",
)


@dataclass(frozen=True)
class Geometry:
    """How the positions of a block's output lie on its input.

    Attributes:
        input_shape: extent of the input along each spatial axis.
        output_shape: extent of the output along each spatial axis; () for Gemm.
        kernel: extent of the kernel; () for Gemm and MatMul.
        strides: step between outputs, in input positions.
        dilations: step between kernel elements, in input positions.
        pads: padding in front of each axis.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @staticmethod
    def of(linear: Linear, input_shape: Sequence[int]) -> Geometry:
        """Work out a block's geometry from its attributes and the full shape of its input."""
        if linear.op != "Conv":
            spatial = tuple(input_shape[1:-1])
            return Geometry(spatial, spatial, (), (), (), ())
        spatial = tuple(input_shape[2:])
        kernel = linear.kernel_shape
        rank = len(kernel)
        attrs = linear.node.attrs
        strides = tuple(attrs.get("strides", (1,) * rank))
        dilations = tuple(attrs.get("dilations", (1,) * rank))
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        auto_pad = attrs.get("auto_pad", "NOTSET")
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            outputs = [-(-size // stride) for size, stride in zip(spatial, strides, strict=True)]
            totals = [
                max(0, (out - 1) * stride + extent - size)
                for out, stride, extent, size in zip(
                    outputs, strides, extents, spatial, strict=True
                )
            ]
            pads = [(t + 1) // 2 if auto_pad == "SAME_LOWER" else t // 2 for t in totals]
        else:
            both = [0] * 2 * rank if auto_pad == "VALID" else attrs.get("pads", [0] * 2 * rank)
            pads = list(both[:rank])
            outputs = [
                (size + front + back - extent) // stride + 1
                for size, front, back, extent, stride in zip(
                    spatial, both[:rank], both[rank:], extents, strides, strict=True
                )
            ]
        return Geometry(spatial, tuple(outputs), kernel, strides, dilations, tuple(pads))

    @property
    def positions(self) -> int:
        """Number of output positions of one sample."""
        return math.prod(self.output_shape)


def index_inputs(
    geometry: Geometry, count: int, chosen: NDArray[np.intp]
) -> dict[str, NDArray[np.generic]]:
    """Return the index inputs of ``Capture`` for one run.

    Args:
        geometry: of the block.
        count: only the first ``count`` samples are summed (a padded batch holds more).
        chosen: (k,) flat indices of output positions, the same for all samples of a run.
    """
    if not geometry.kernel:
        patch = chosen
        inside = np.ones(len(chosen), dtype=bool)
    else:
        outputs = np.unravel_index(chosen, geometry.output_shape)
        offsets = np.array(list(itertools.product(*map(range, geometry.kernel)))).T
        patch = np.zeros((offsets.shape[1], len(chosen)), dtype=np.intp)
        inside = np.ones(patch.shape, dtype=bool)
        axes = zip(
            outputs,
            offsets,
            geometry.strides,
            geometry.dilations,
            geometry.pads,
            geometry.input_shape,
            strict=True,
        )
        for output, offset, stride, dilation, pad, size in axes:
            at = output[np.newaxis] * stride + offset[:, np.newaxis] * dilation - pad
            inside &= (at >= 0) & (at < size)
            patch = patch * size + np.clip(at, 0, size - 1)
    return {
        _COUNT: np.array([count], dtype=np.int64),
        _PATCH: patch.reshape(-1).astype(np.int64),
        _INSIDE: inside.reshape(-1),
        _POSITION: chosen.astype(np.int64),
    }


@dataclass(frozen=True)
class Capture(Pass):
    """Append the moments of one block to a graph that holds both networks' tensors.

    Attributes:
        linear: the student's block; its weights are copied as they are now.
        patches: name of the tensor that holds the block's input.
        targets: name of the tensor that holds the teacher's block output.
        targets_width: number of channels of that tensor.
        targets_last: whether they are on the last axis (MatMul), not on axis 1.
        groups: how many groups to sum apart; the student's outputs are divided evenly among them.
        channels: teacher channel of each target, divided evenly among the groups.
    """

    linear: Linear
    patches: str
    targets: str
    targets_width: int
    targets_last: bool
    groups: int
    channels: NDArray[np.intp]

    def requires(self, graph: gs.Graph) -> None:
        """Check for an opset that sums over axes given as a tensor."""
        if graph.opset < 13:
            msg = f"capture needs opset 13 or newer; the graph '{graph.name}' has {graph.opset}"
            raise PreconditionError(msg)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Append in place, with the sums as outputs and the indices as inputs of the graph."""
        tensors = {t.name: t for node in graph.nodes for t in node.outputs}
        tensors |= {t.name: t for t in graph.inputs}
        build = _Builder(graph)
        count = build.input(_COUNT, np.int64, [1])
        patch_index = build.input(_PATCH, np.int64, ["patch"])
        inside = build.input(_INSIDE, np.bool_, ["patch"])
        position = build.input(_POSITION, np.int64, ["position"])

        matrix = self.linear.matrix
        own_groups, n, p = matrix.shape
        work = np.float64 if self.linear.weight.dtype == np.float64 else np.float32
        last = p if self.linear.op == "MatMul" else None
        patches = build.columns(tensors[self.patches], last, patch_index, count)
        patches = build.node("Cast", [patches], to=work)
        mask = build.node("Cast", [inside], to=work)
        patches = build.grouped(build.node("Mul", [patches, mask]), own_groups, p)
        weight = build.constant(matrix.astype(work))
        shift = build.constant(self.linear.bias.reshape(own_groups, n, 1).astype(work))
        x = build.node("Add", [build.node("MatMul", [weight, patches]), shift])
        x = build.node("Reshape", [x, build.ints(self.groups, own_groups * n // self.groups, -1)])

        last = self.targets_width if self.targets_last else None
        y = build.columns(tensors[self.targets], last, position, count)
        y = build.node("Gather", [y, build.constant(self.channels.astype(np.int64))], axis=1)
        y = build.grouped(y, self.groups, len(self.channels) // self.groups)

        x, y = (build.node("Cast", [t], to=np.float64) for t in (x, y))
        z = build.node("Concat", [x, y], axis=1)
        build.output("ReduceSum", [z, build.ints(2)], FIRST, keepdims=0)
        build.output("MatMul", [z, build.node("Transpose", [z], perm=[0, 2, 1])], SECOND)
        return [f"moments of '{self.linear.name}' appended"]


@dataclass
class _Builder:
    """Appends nodes and names their tensors."""

    graph: gs.Graph
    made: int = 0

    def input(self, name: str, dtype: type, shape: list[int | str]) -> gs.Variable:
        self.graph.inputs.append(gs.Variable(name, dtype, shape))
        return self.graph.inputs[-1]

    def constant(self, values: NDArray[np.generic]) -> gs.Constant:
        self.made += 1
        return gs.Constant(f"moments/constant/{self.made}", np.ascontiguousarray(values))

    def ints(self, *values: int) -> gs.Constant:
        return self.constant(np.array(values, dtype=np.int64))

    def node(self, op: str, inputs: list[gs.Tensor], **attrs: object) -> gs.Variable:
        self.made += 1
        output = gs.Variable(f"moments/{op}/{self.made}")
        self.graph.nodes.append(gs.Node(op, output.name, attrs, inputs, [output]))
        return output

    def output(self, op: str, inputs: list[gs.Tensor], name: str, **attrs: object) -> None:
        result = gs.Variable(name, np.float64)
        self.graph.nodes.append(gs.Node(op, name, attrs, inputs, [result]))
        self.graph.outputs.append(result)

    def columns(
        self, tensor: gs.Tensor, width_if_last: int | None, index: gs.Variable, count: gs.Variable
    ) -> gs.Variable:
        """Gather positions of the first ``count`` samples: (samples, channels, positions)."""
        if width_if_last is None:
            flat = self.node("Reshape", [tensor, self.ints(0, 0, -1)])
            gathered = self.node("Gather", [flat, index], axis=2)
        else:
            flat = self.node("Reshape", [tensor, self.ints(0, -1, width_if_last)])
            gathered = self.node("Gather", [flat, index], axis=1)
            gathered = self.node("Transpose", [gathered], perm=[0, 2, 1])
        return self.node("Slice", [gathered, self.ints(0), count, self.ints(0)])

    def grouped(self, columns: gs.Variable, groups: int, height: int) -> gs.Variable:
        """Bring (samples, channels, k * positions) into (groups, height, samples * positions)."""
        split = self.node("Reshape", [columns, self.ints(0, groups, height, -1)])
        turned = self.node("Transpose", [split], perm=[1, 2, 0, 3])
        return self.node("Reshape", [turned, self.ints(0, 0, -1)])
