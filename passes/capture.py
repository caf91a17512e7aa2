"""Append the nodes that sum a block's moments, so that only small matrices leave the device.

A column is one position of one sample. Its regressors x are the patch p of the block's input that
the position sees, or the block's output W p + b there; its targets y are the teacher's output, for
each of ``variants`` ways to see it (below). Summed over columns, group by group::

    gram    = sum x x'    (groups, m, m)              first_x  = sum x      (groups, m)
    cross   = sum y x'    (variants, groups, n, m)    first_y  = sum y      (variants, groups, n)
                                                      square_y = sum y^2    (variants, groups, n)

Nothing is read from the student's block itself: the patches are gathered from its *input* at the
sampled positions only. So a block never runs uncorrected over all positions, and what is gathered,
cast to float64 and multiplied is a sample of columns, not an activation.

Where the block output only feeds an Add with a shortcut, its error can be seen there: the variant
"residual" has the targets (teacher's sum - student's shortcut), so that a block also repairs what
arrives through the shortcut. Which positions are summed, the caller decides per run
(``index_inputs``)::

    student input   ─▶ gather patches ───────────────▶ x ┐
    teacher output  ─▶ gather channels, positions ───▶ y ├─▶ float64 ─▶ sums
    teacher sum, student shortcut ─▶ gather, subtract ─▶ y ┘
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.base import Pass, PreconditionError
from fskd_onnx.passes.geometry import Geometry
from fskd_onnx.passes.linear import Linear

# ReduceSum takes its axes as an input from 13 on, ReduceSumSquare from 18 on.
_OPSETS = (13, 17)

PATCHES, TARGETS, TOTALS, SHORTCUT = "patches", "targets", "totals", "shortcut"
REGRESSORS = "columns/regressors"
CUT = {TARGETS: "columns/targets", TOTALS: "columns/totals", SHORTCUT: "columns/shortcut"}
"""What ``CutColumns`` calls the columns of each tensor but the patches, ``REGRESSORS``."""

GRAM, FIRST_X = "moments/gram", "moments/first_x"
CROSS, FIRST_Y, SQUARE_Y = "moments/cross", "moments/first_y", "moments/square_y"
MATRIX, SHIFT, ERROR = "moments/matrix", "moments/shift", "moments/error"
_COUNT, _PATCH, _INSIDE, _POSITION = (
    "moments/count",
    "moments/patch_index",
    "moments/patch_inside",
    "moments/position_index",
)


def index_inputs(
    geometry: Geometry, count: int, chosen: NDArray[np.intp]
) -> dict[str, NDArray[np.generic]]:
    """Return the index inputs of ``Capture`` for one run.

    Args:
        geometry: of the block.
        count: only the first ``count`` samples are summed (a padded batch holds more).
        chosen: (k,) flat indices of output positions, the same for all samples of a run.
    """
    patch, inside = geometry.patches(chosen)
    return channel_inputs(count, chosen) | {
        _PATCH: patch.reshape(-1).astype(np.int64),
        _INSIDE: inside.reshape(-1),
    }


def channel_inputs(count: int, chosen: NDArray[np.intp]) -> dict[str, NDArray[np.generic]]:
    """Return the index inputs of ``CaptureChannels`` for one run; arguments as ``index_inputs``."""
    return {_COUNT: np.array([count], dtype=np.int64), _POSITION: chosen.astype(np.int64)}


@dataclass(frozen=True)
class Columns:
    """How the columns of a block are cut out of its tensors.

    The tensors are inputs of the graph, or made by its nodes: ``PATCHES`` (the block's input),
    ``TARGETS`` (the teacher's block output) and, with ``residual``, ``TOTALS`` (the teacher's sum)
    and ``SHORTCUT`` (what the student adds to the block output).

    Attributes:
        linear: the student's block; its weights are copied as they are now.
        outputs: whether regressors are the block's outputs, not its input patches.
        groups: how many groups to sum apart; the student's outputs are divided evenly among them.
        channels: teacher channel of each target, divided evenly among the groups.
        targets_width: number of channels of the teacher's tensors.
        targets_last: whether they are on the last axis (MatMul), not on axis 1.
        residual: whether the teacher's sum and the student's shortcut are there.
    """

    linear: Linear
    outputs: bool
    groups: int
    channels: NDArray[np.intp]
    targets_width: int
    targets_last: bool
    residual: bool

    @property
    def variants(self) -> int:
        """Number of ways to see the targets: the block output, and the sum behind it."""
        return 1 + self.residual

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns once they are cut."""
        return (REGRESSORS, *list(CUT.values())[: 3 if self.residual else 1])


@dataclass(frozen=True)
class CutColumns(Pass):
    """Append the nodes that cut a block's columns, so that they can be summed more than once.

    ``Capture`` and ``CaptureActivated`` do it themselves in a graph that has no ``REGRESSORS`` yet.

    Attributes:
        columns: what to cut.
    """

    columns: Columns

    def requires(self, graph: gs.Graph) -> None:
        """Check for an opset that has the operators used, in the form used."""
        _require_opset(graph)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Append in place, with the columns as outputs and the indices as inputs of the graph."""
        x, y, shortcut = _Builder(graph).columns(self.columns)
        cut = (x, *y.values()) if shortcut is None else (x, *y.values(), shortcut)
        for tensor, name in zip(cut, self.columns.names, strict=True):
            tensor.name, tensor.dtype = name, _work_type(self.columns.linear)
            graph.outputs.append(tensor)
        return [f"columns of '{self.columns.linear.name}' cut"]


@dataclass(frozen=True)
class JoinColumns(Pass):
    """Put columns that were cut apart, ``name/0`` to ``name/(parts - 1)``, side by side.

    Attributes:
        columns: how they were cut.
        parts: how many parts there are of each.
    """

    columns: Columns
    parts: int

    def requires(self, graph: gs.Graph) -> None:
        """Check for an opset that has the operators used, in the form used."""
        _require_opset(graph)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Append in place, with the parts as inputs and the whole as outputs of the graph."""
        build, work = _Builder(graph), _work_type(self.columns.linear)
        for name in self.columns.names:
            parts = [build.input(f"{name}/{i}", work, None) for i in range(self.parts)]
            joined = gs.Variable(name, work)
            graph.nodes.append(gs.Node("Concat", name, {"axis": 2}, parts, [joined]))
            graph.outputs.append(joined)
        return [f"columns of '{self.columns.linear.name}' joined"]


@dataclass(frozen=True)
class Capture(Pass):
    """Append the moments of one block to a graph that holds both networks' tensors.

    Attributes:
        columns: what to sum.
    """

    columns: Columns

    def requires(self, graph: gs.Graph) -> None:
        """Check for an opset that has the operators used, in the form used."""
        _require_opset(graph)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Append in place, with the sums as outputs and the indices as inputs of the graph."""
        build = _Builder(graph)
        x, y, shortcut = build.columns(self.columns)
        variants = [y["targets"]]
        if shortcut is not None:
            variants.append(build.node("Sub", [y["totals"], shortcut]))
        x = build.node("Cast", [x], to=np.float64)
        build.sum_regressors(x)
        build.sum_targets(x, build.stack(variants))
        return [f"moments of '{self.columns.linear.name}' appended"]


@dataclass(frozen=True)
class CaptureChannels(Pass):
    """Append the moments of one tensor's channels, ``GRAM`` and ``FIRST_X``, in one group.

    The positions are chosen by index inputs as for ``Capture``.

    Attributes:
        tensor: name of the tensor.
        width: number of its channels.
        last: whether they are on the last axis, not on axis 1.
    """

    tensor: str
    width: int
    last: bool

    def requires(self, graph: gs.Graph) -> None:
        """Check for an opset that has the operators used, in the form used."""
        _require_opset(graph)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Append in place, with the sums as outputs and the indices as inputs of the graph."""
        build = _Builder(graph)
        count, position = build.input(_COUNT, np.int64, [1]), build.input(_POSITION, np.int64, None)
        tensor = build.tensors[self.tensor]
        x = build.gather(tensor, self.width if self.last else None, position, count)
        build.sum_regressors(build.node("Cast", [build.grouped(x, 1, self.width)], to=np.float64))
        return [f"moments of '{self.tensor}' appended"]


@dataclass(frozen=True)
class CaptureActivated(Pass):
    """Append the moments of targets that forgive what the activation behind the block hides.

    Where both networks lie beyond a bound of a clipping activation (Relu: 0; Clip: 0 and 6), they
    agree, however far apart they are. So beyond a bound the target becomes the prediction itself,
    as far as that lies beyond it too, and least squares is repeated with the new targets
    (asymmetric reconstruction after Zhang et al. 2016, "Accelerating very deep convolutional
    networks")::

        u = matrix x + shift + shortcut        t = teacher
        t' = min(u, low) where t <= low,   max(u, high) where t >= high,   t elsewhere

    The prediction (``MATRIX`` (groups, n, m) and ``SHIFT`` (groups, n, 1)) are inputs of the graph,
    so one graph serves all iterations. ``ERROR`` is sum (clip(u) - clip(t))^2, what the next layer
    sees.

    Attributes:
        columns: what to sum; with ``residual``, the teacher's sum is the target.
        low: lower bound of the activation; -inf where there is none.
        high: upper bound; inf where there is none.
    """

    columns: Columns
    low: float
    high: float

    def requires(self, graph: gs.Graph) -> None:
        """Check for an opset that has the operators used, in the form used."""
        _require_opset(graph)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Append in place, with the sums as outputs, the prediction and indices as inputs."""
        build = _Builder(graph)
        x, y, shortcut = build.columns(self.columns)
        work = _work_type(self.columns.linear)
        matrix, shift = (build.input(name, work, None) for name in (MATRIX, SHIFT))
        u = build.node("Add", [build.node("MatMul", [matrix, x]), shift])
        t = y["targets"]
        if shortcut is not None:
            u, t = build.node("Add", [u, shortcut]), y["totals"]
        hidden = t
        clipped = [u, t]
        for bound, beyond, closer, farther in (
            (self.low, "LessOrEqual", "Max", "Min"),
            (self.high, "GreaterOrEqual", "Min", "Max"),
        ):
            if not np.isfinite(bound):
                continue
            limit = build.constant(np.array(bound, dtype=work))
            free = build.node(farther, [u, limit])
            hidden = build.node("Where", [build.node(beyond, [t, limit]), free, hidden])
            clipped = [build.node(closer, [tensor, limit]) for tensor in clipped]
        if shortcut is not None:
            hidden = build.node("Sub", [hidden, shortcut])
        x = build.node("Cast", [x], to=np.float64)
        build.sum_targets(x, build.stack([hidden]))
        difference = build.node("Cast", [build.node("Sub", clipped)], to=np.float64)
        build.output("ReduceSumSquare", [difference], ERROR, keepdims=0)
        return [f"activated moments of '{self.columns.linear.name}' appended"]


def _require_opset(graph: gs.Graph) -> None:
    if not _OPSETS[0] <= graph.opset <= _OPSETS[1]:
        msg = (
            f"moments are written in opset {_OPSETS[0]} to {_OPSETS[1]}; "
            f"the graph '{graph.name}' has {graph.opset}"
        )
        raise PreconditionError(msg)


def _work_type(linear: Linear) -> type[np.floating]:
    """Columns stay in the network's precision, but never below float32."""
    return np.float64 if linear.weight.dtype == np.float64 else np.float32


@dataclass
class _Builder:
    """Appends nodes and names their tensors."""

    graph: gs.Graph
    made: int = 0

    @property
    def tensors(self) -> dict[str, gs.Tensor]:
        """The tensors that nodes can be appended to, by name."""
        made = {t.name: t for node in self.graph.nodes for t in node.outputs}
        return made | {t.name: t for t in self.graph.inputs}

    def columns(
        self, columns: Columns
    ) -> tuple[gs.Variable, dict[str, gs.Variable], gs.Variable | None]:
        """Give regressors, targets by their tensor, and the shortcut: (groups, rows, columns)."""
        tensors = self.tensors
        if REGRESSORS not in tensors:
            return self.cut(columns, tensors)
        y = {name: tensors[CUT[name]] for name in (TARGETS, TOTALS)[: columns.variants]}
        return tensors[REGRESSORS], y, tensors[CUT[SHORTCUT]] if columns.residual else None

    def cut(
        self, columns: Columns, tensors: Mapping[str, gs.Tensor]
    ) -> tuple[gs.Variable, dict[str, gs.Variable], gs.Variable | None]:
        """Cut them out of the networks' tensors."""
        linear = columns.linear
        count = self.input(_COUNT, np.int64, [1])
        patch_index = self.input(_PATCH, np.int64, ["patch"])
        inside = self.input(_INSIDE, np.bool_, ["patch"])
        position = self.input(_POSITION, np.int64, ["position"])
        work = _work_type(linear)
        matrix = linear.matrix
        own_groups, n, p = matrix.shape
        channels_last = linear.op == "MatMul"

        x = self.gather(tensors[PATCHES], p if channels_last else None, patch_index, count)
        mask = self.node("Cast", [inside], to=work)
        x = self.node("Mul", [self.node("Cast", [x], to=work), mask])
        x = self.grouped(x, own_groups, p)
        if columns.outputs:
            shift = self.constant(linear.bias.reshape(own_groups, n, 1).astype(work))
            x = self.node("MatMul", [self.constant(matrix.astype(work)), x])
            x = self.node("Add", [x, shift])
            height = own_groups * n // columns.groups
            x = self.node("Reshape", [x, self.ints(columns.groups, height, -1)])

        chosen = self.constant(columns.channels.astype(np.int64))
        height = len(columns.channels) // columns.groups
        y = {}
        for name in (TARGETS, TOTALS)[: columns.variants]:
            last = columns.targets_width if columns.targets_last else None
            gathered = self.gather(tensors[name], last, position, count)
            gathered = self.node("Gather", [gathered, chosen], axis=1)
            gathered = self.node("Cast", [gathered], to=work)
            y[name] = self.grouped(gathered, columns.groups, height)
        shortcut = None
        if columns.residual:
            last = linear.width if channels_last else None
            shortcut = self.gather(tensors[SHORTCUT], last, position, count)
            shortcut = self.node("Cast", [shortcut], to=work)
            shortcut = self.grouped(shortcut, columns.groups, linear.width // columns.groups)
        return x, y, shortcut

    def gather(
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

    def stack(self, variants: list[gs.Variable]) -> gs.Variable:
        """Stack targets along a new first axis, in float64."""
        rows = [self.node("Unsqueeze", [variant, self.ints(0)]) for variant in variants]
        return self.node("Cast", [self.node("Concat", rows, axis=0)], to=np.float64)

    def sum_regressors(self, x: gs.Variable) -> None:
        """Sum what depends on the regressors x (groups, m, k) alone."""
        turned = self.node("Transpose", [x], perm=[0, 2, 1])
        self.output("MatMul", [x, turned], GRAM)
        self.output("ReduceSum", [x, self.ints(2)], FIRST_X, keepdims=0)

    def sum_targets(self, x: gs.Variable, y: gs.Variable) -> None:
        """Sum what depends on the targets, from x (groups, m, k) and y (variants, groups, n, k)."""
        turned = self.node("Transpose", [x], perm=[0, 2, 1])
        self.output("MatMul", [y, turned], CROSS)
        self.output("ReduceSum", [y, self.ints(3)], FIRST_Y, keepdims=0)
        square = self.node("Mul", [y, y])
        self.output("ReduceSum", [square, self.ints(3)], SQUARE_Y, keepdims=0)

    def input(self, name: str, dtype: type, shape: list[int | str] | None) -> gs.Variable:
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
