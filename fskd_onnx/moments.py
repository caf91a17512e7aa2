"""Streaming sums of a block's columns, in float64, per fold: all that the solver ever sees.

For stacked columns z = (x, y) of the student's and the teacher's channels, per group::

    count                number of columns
    first  = sum z       (groups, d)
    second = sum z z'    (groups, d, d)        d = n student channels + targets

Sums of sub-sets of channels, and of unions of folds, are slices and sums of these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnxruntime import InferenceSession, OrtValue

from fskd_onnx.engine import Batch, run, upload
from fskd_onnx.errors import MatchError
from fskd_onnx.passes.capture import FIRST, SECOND, Capture, Geometry, index_inputs
from fskd_onnx.passes.linear import Linear
from fskd_onnx.providers import Runtime

_COLUMNS_PER_UNKNOWN = 20
_LEAST_COLUMNS = 8192
_CAPTURE_OPSET, _CAPTURE_IR = 17, 8

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Sums over the columns of one fold, or of several.

    Attributes:
        count: number of columns.
        first: (groups, d) sums.
        second: (groups, d, d) sums of products.
        width: n, how many of the d rows belong to the student; the targets follow.
    """

    count: int
    first: Array
    second: Array
    width: int

    def __add__(self, other: Moments) -> Moments:
        """Sum over the columns of both."""
        return Moments(
            self.count + other.count,
            self.first + other.first,
            self.second + other.second,
            self.width,
        )

    def __sub__(self, other: Moments) -> Moments:
        """Sum over the columns of this one without those of the other, which it must contain."""
        return Moments(
            self.count - other.count,
            self.first - other.first,
            self.second - other.second,
            self.width,
        )

    @property
    def groups(self) -> int:
        """Number of groups."""
        return int(self.first.shape[0])

    @property
    def mean(self) -> Array:
        """(groups, d) mean column."""
        return self.first / max(self.count, 1)

    @property
    def centered(self) -> Array:
        """(groups, d, d) sums of products of deviations from the mean."""
        return self.second - np.einsum("gi,gj->gij", self.first, self.mean)

    @property
    def target_energy(self) -> float:
        """Sum of squared deviations of the targets from their mean: ||Y - mean||^2."""
        diagonal = np.einsum("gii->gi", self.centered)[:, self.width :]
        return float(np.maximum(diagonal, 0.0).sum())

    def error(self, matrix: Array, shift: Array) -> float:
        """Return ||matrix X + shift - Y||^2 over the columns.

        Args:
            matrix: (groups, targets, n).
            shift: (groups, targets).
        """
        targets = self.first.shape[1] - self.width
        minus = np.broadcast_to(-np.eye(targets), (self.groups, targets, targets))
        a = np.concatenate([matrix, minus], axis=2)
        quadratic = np.einsum("gij,gij->", a @ self.second, a)
        cross = np.einsum("gij,gj,gi->", a, self.first, shift)
        # Rounding can leave a tiny negative sum where the fit is exact.
        return max(0.0, float(quadratic + 2.0 * cross + self.count * np.sum(shift**2)))

    def select(self, groups: int, channels: NDArray[np.intp]) -> Moments:
        """Cut moments with all of a teacher's channels down to pairs of groups.

        Args:
            groups: number of groups of the student's node.
            channels: (n * groups,) target of each student channel, as a row among the targets.

        Returns:
            Moments of ``groups`` groups, from those of the single group of ``self``.
        """
        students = np.arange(self.width).reshape(groups, -1)
        targets = self.width + np.asarray(channels).reshape(groups, -1)
        rows = np.concatenate([students, targets], axis=1)
        second = self.second[0][rows[:, :, np.newaxis], rows[:, np.newaxis, :]]
        return Moments(self.count, self.first[0][rows], second, self.width // groups)

    def correlation(self) -> Array:
        """Return the (groups, n, targets) correlations of student and teacher channels."""
        centered = self.centered
        scale = np.sqrt(np.maximum(np.einsum("gii->gi", centered), 0.0))
        norm = scale[:, : self.width, np.newaxis] * scale[:, np.newaxis, self.width :]
        cross = centered[:, : self.width, self.width :]
        return np.divide(cross, norm, out=np.zeros_like(cross), where=norm > 0)


class MomentStream:
    """Adds up the moments of one block, batch by batch, where the tensors are.

    Columns are sampled: a fit with u unknowns per output needs a multiple of u columns, not every
    position of every sample. Each batch draws its own positions, so they spread over all samples.
    """

    def __init__(
        self,
        runtime: Runtime,
        linear: Linear,
        teacher: Linear,
        channels: NDArray[np.intp] | None,
        batches: Sequence[Batch],
        seed: Sequence[int],
    ) -> None:
        """Prepare the sums.

        Args:
            runtime: where the tensors are.
            linear: the student's block, as it is before its adapter.
            teacher: the teacher's block.
            channels: teacher channel of each student channel; None keeps all of the teacher's, in
                one group, for a choice to be made from the sums.
            batches: all that will be added.
            seed: for the positions.
        """
        self._runtime = runtime
        self._linear = linear
        self._groups = linear.groups if channels is not None else 1
        chosen = np.arange(teacher.width) if channels is None else channels
        self._width = linear.width // self._groups
        self._seed = list(seed)
        self._sums: dict[int, Moments] = {}
        unknowns = self._width + 1
        samples = sum(batch.count for batch in batches)
        self._positions = math.ceil(max(_COLUMNS_PER_UNKNOWN * unknowns, _LEAST_COLUMNS) / samples)
        capture = Capture(
            linear=linear,
            patches="patches",
            targets="targets",
            targets_width=teacher.width,
            targets_last=teacher.op == "MatMul",
            groups=self._groups,
            channels=chosen,
        )
        self._session: InferenceSession | None = None
        self._capture = capture

    def add(self, index: int, batch: Batch, patches: OrtValue, targets: OrtValue) -> None:
        """Add the columns of one batch.

        Args:
            index: of the batch, for its draw of positions.
            batch: which samples these are.
            patches: the input of the student's block.
            targets: the teacher's block output.

        Raises:
            MatchError: the blocks' outputs differ in their number of positions.
        """
        geometry = Geometry.of(self._linear, patches.shape())
        self._check_positions(geometry, targets.shape())
        if self._session is None:
            self._session = self._runtime.session(self._graph(patches, targets))
        # Some graphs fold positions into the first axis; a sample then has several rows.
        rows = batch.count * patches.shape()[0] // len(batch.samples)
        rng = np.random.default_rng([*self._seed, index])
        k = min(self._positions, geometry.positions)
        chosen = np.sort(rng.choice(geometry.positions, size=k, replace=False))
        feeds = upload(index_inputs(geometry, rows, chosen), self._runtime.device)
        feeds |= {"patches": patches, "targets": targets}
        sums = run(self._session, feeds, [FIRST, SECOND], self._runtime.device)
        new = Moments(rows * k, sums[FIRST].numpy(), sums[SECOND].numpy(), self._width)
        old = self._sums.get(batch.fold)
        self._sums[batch.fold] = new if old is None else old + new

    @property
    def folds(self) -> list[Moments]:
        """The sums of each fold, in order."""
        return [self._sums[fold] for fold in sorted(self._sums)]

    def _graph(self, patches: OrtValue, targets: OrtValue) -> onnx.ModelProto:
        inputs = [
            gs.Variable(name, onnx.helper.tensor_dtype_to_np_dtype(value.element_type()), shape)
            for name, value, shape in (
                ("patches", patches, [None, *patches.shape()[1:]]),
                ("targets", targets, [None, *targets.shape()[1:]]),
            )
        ]
        graph = gs.Graph(inputs=inputs, opset=_CAPTURE_OPSET, name="capture")
        self._capture.run(graph)
        return gs.export_onnx(graph, ir_version=_CAPTURE_IR)

    def _check_positions(self, geometry: Geometry, shape: Sequence[int]) -> None:
        spatial = shape[1:-1] if self._capture.targets_last else shape[2:]
        if math.prod(spatial) != geometry.positions:
            msg = f"its output is {geometry.output_shape} positions, the teacher's {tuple(spatial)}"
            raise MatchError(msg)
