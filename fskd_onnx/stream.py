"""Sum a block's moments where its tensors are, batch by batch, over a sample of columns."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnxruntime import InferenceSession, OrtValue

from fskd_onnx.clock import Clock
from fskd_onnx.engine import Batch, Lockstep, Tensors, download, run, upload
from fskd_onnx.errors import MatchError
from fskd_onnx.moments import Affine, Moments
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.capture import (
    CROSS,
    ERROR,
    FIRST_X,
    FIRST_Y,
    GRAM,
    MATRIX,
    PATCHES,
    SHIFT,
    SHORTCUT,
    SQUARE_Y,
    TARGETS,
    TOTALS,
    Capture,
    CaptureActivated,
    Columns,
    CutColumns,
    JoinColumns,
    index_inputs,
)
from fskd_onnx.passes.geometry import Geometry
from fskd_onnx.providers import Runtime

# A regression on u unknowns needs a multiple of u columns, not every position of every sample.
# Accuracy with kernel adapters on two draws of 500 samples, which differ by 0.6 among themselves,
# at 5, 20, 100 columns per unknown and at all columns (``tests/benchmarks/columns.py``):
# VGG-16 D 92.1 92.1 92.4 92.3 and 92.5 92.7 93.0 93.0; ResNet-20 with half of its inner channels
# 93.4 93.6 93.6 93.6 and 93.8 94.1 94.2 94.4.
_COLUMNS_PER_UNKNOWN = 50
_LEAST_COLUMNS = 4096
_OPSET, _IR = 17, 8

# Runs on a few columns cost more to start than to do, so columns of several batches are summed at
# once, and kept for the next time they are asked for. Blocks with more are cut anew each time.
_CHUNK_BYTES = 2**26
_KEPT_BYTES = 2**28


@dataclass(frozen=True)
class BlockTensors:
    """Names of the tensors that a block's columns are cut from; the last two only for a residual.

    Attributes:
        patches: the student's: the block's input.
        targets: the teacher's: its block output.
        shortcut: the student's: what is added to the block output.
        totals: the teacher's: the sum behind its block output.
    """

    patches: str
    targets: str
    shortcut: str | None = None
    totals: str | None = None

    @property
    def of_student(self) -> dict[str, str]:
        """The student's tensors, by their name in the capture graph."""
        return _present({PATCHES: self.patches, SHORTCUT: self.shortcut})

    @property
    def of_teacher(self) -> dict[str, str]:
        """The teacher's tensors, by their name in the capture graph."""
        return _present({TARGETS: self.targets, TOTALS: self.totals})

    @property
    def stop(self) -> tuple[list[str], list[str]]:
        """The student's and the teacher's tensors that have to exist for the block."""
        return list(self.of_student.values()), list(self.of_teacher.values())


def _present(names: Mapping[str, str | None]) -> dict[str, str]:
    return {key: name for key, name in names.items() if name is not None}


class BlockStream:
    """The columns of one block at the current stage of a lockstep."""

    def __init__(
        self,
        runtime: Runtime,
        lockstep: Lockstep,
        tensors: BlockTensors,
        columns: Columns,
        seed: Sequence[int],
        clock: Clock,
    ) -> None:
        """Prepare the sums.

        Args:
            runtime: where the tensors are.
            lockstep: at the stage whose stop holds the tensors.
            tensors: their names.
            columns: how to cut columns out of them.
            seed: for the choice of positions; each batch draws its own, so they spread over all.
            clock: counts the time spent here as "capture".
        """
        self._runtime = runtime
        self._lockstep = lockstep
        self._tensors = tensors
        self.columns = columns
        self._seed = list(seed)
        self._clock = clock
        linear = columns.linear
        unknowns = linear.width // columns.groups if columns.outputs else linear.matrix.shape[2]
        samples = sum(batch.count for batch in lockstep.batches)
        wanted = max(_COLUMNS_PER_UNKNOWN * (unknowns + 1), _LEAST_COLUMNS)
        self._positions = math.ceil(wanted / samples)
        rows = unknowns + 3 * len(columns.channels) // columns.groups
        self._bytes_per_column = 4 * columns.groups * rows
        self._kept: dict[range, tuple[dict[str, OrtValue], int]] = {}
        self._sessions: dict[tuple[type[Pass], bool, int], InferenceSession] = {}

    def sums(self) -> list[list[Moments]]:
        """Return the moments of each variant of the targets, and of each fold in it."""
        outputs = [GRAM, FIRST_X, CROSS, FIRST_Y, SQUARE_Y]
        with self._clock("capture"):
            per_fold = self._run(Capture(self.columns), outputs, {})
        return [
            [
                Moments(
                    fold.count,
                    gram=fold.sums[GRAM],
                    cross=fold.sums[CROSS][variant],
                    first_x=fold.sums[FIRST_X],
                    first_y=fold.sums[FIRST_Y][variant],
                    square_y=fold.sums[SQUARE_Y][variant],
                )
                for fold in per_fold
            ]
            for variant in range(self.columns.variants)
        ]

    def activated(
        self, folds: Sequence[Moments], fitted: Affine, low: float, high: float
    ) -> tuple[list[Moments], list[float]]:
        """See the block through what is behind it, as a fit would leave it.

        Args:
            folds: moments of the same columns; their gram is taken over.
            fitted: the map to predict with.
            low: lower bound of the activation.
            high: its upper bound.

        Returns:
            For each fold, the moments with targets that forgive what the activation hides, and the
            sum of squared errors behind the activation.
        """
        kind = np.float64 if self.columns.linear.weight.dtype == np.float64 else np.float32
        prediction = {
            MATRIX: fitted.matrix.astype(kind),
            SHIFT: fitted.shift[..., np.newaxis].astype(kind),
        }
        capture = CaptureActivated(self.columns, low, high)
        with self._clock("capture"):
            per_fold = self._run(capture, [CROSS, FIRST_Y, SQUARE_Y, ERROR], prediction)
        moments = [
            Moments(
                fold.count,
                gram=old.gram,
                cross=fold.sums[CROSS][0],
                first_x=old.first_x,
                first_y=fold.sums[FIRST_Y][0],
                square_y=fold.sums[SQUARE_Y][0],
            )
            for fold, old in zip(per_fold, folds, strict=True)
        ]
        return moments, [float(fold.sums[ERROR]) for fold in per_fold]

    def _run(
        self,
        capture: Capture | CaptureActivated,
        outputs: Sequence[str],
        prediction: Tensors,
    ) -> list[_FoldSums]:
        constant = upload(prediction, self._runtime.device)
        folds: defaultdict[int, _FoldSums] = defaultdict(_FoldSums)
        for chunk in self._chunks:
            cut, count = self._cut(chunk)
            feeds = {name: cut[name] for name in capture.columns.names}
            session = self._session(capture, feeds)
            sums = run(session, feeds | constant, outputs, self._runtime.device)
            fold = self._lockstep.batches[chunk[0]].fold
            folds[fold].add(count, {name: download(value) for name, value in sums.items()})
        return [folds[fold] for fold in sorted(folds)]

    @cached_property
    def _sizes(self) -> list[int]:
        """How many bytes the columns of each batch are."""
        student, _ = self._lockstep.tensors(0)
        geometry = Geometry.of(self.columns.linear, student[self._tensors.patches].shape())
        per_sample = self._bytes_per_column * min(self._positions, geometry.positions)
        return [per_sample * len(batch.samples) for batch in self._lockstep.batches]

    @cached_property
    def _chunks(self) -> list[range]:
        """Runs of batches of the same fold whose columns can be summed at once."""
        batches = self._lockstep.batches
        chunks: list[range] = []
        held = 0
        for index, (batch, more) in enumerate(zip(batches, self._sizes, strict=True)):
            held += more
            if not chunks or batches[index - 1].fold != batch.fold or held > _CHUNK_BYTES:
                chunks.append(range(index, index))
                held = more
            chunks[-1] = range(chunks[-1].start, index + 1)
        return chunks

    def _cut(self, chunk: range) -> tuple[dict[str, OrtValue], int]:
        """Return the columns of some batches and their number; kept, where all columns fit."""
        if chunk in self._kept:
            return self._kept[chunk]
        parts, count = [], 0
        for index in chunk:
            student, teacher = self._lockstep.tensors(index)
            values = {name: student[tensor] for name, tensor in self._tensors.of_student.items()}
            values |= {name: teacher[tensor] for name, tensor in self._tensors.of_teacher.items()}
            indices, columns = self._choose(index, self._lockstep.batches[index], values)
            session = self._session(CutColumns(self.columns), values)
            feeds = values | upload(indices, self._runtime.device)
            parts.append(run(session, feeds, self.columns.names, self._runtime.device))
            count += columns
        if len(parts) > 1:
            session = self._session(JoinColumns(self.columns, len(parts)), {})
            feeds = {f"{k}/{i}": value for i, part in enumerate(parts) for k, value in part.items()}
            parts = [run(session, feeds, self.columns.names, self._runtime.device)]
        if sum(self._sizes) <= _KEPT_BYTES:
            self._kept[chunk] = parts[0], count
        return parts[0], count

    def _choose(
        self, index: int, batch: Batch, values: Mapping[str, OrtValue]
    ) -> tuple[Tensors, int]:
        """Return the index inputs of one batch, and how many columns they choose."""
        shape = values[PATCHES].shape()
        geometry = Geometry.of(self.columns.linear, shape)
        self._check_positions(geometry, values[TARGETS].shape())
        # Some graphs fold positions into the first axis; a sample then has several rows.
        rows = batch.count * shape[0] // len(batch.samples)
        k = min(self._positions, geometry.positions)
        rng = np.random.default_rng([*self._seed, index])
        chosen = np.sort(rng.choice(geometry.positions, size=k, replace=False))
        return index_inputs(geometry, rows, chosen), rows * k

    def _session(
        self,
        step: CutColumns | JoinColumns | Capture | CaptureActivated,
        values: Mapping[str, OrtValue],
    ) -> InferenceSession:
        key = (
            type(step),
            step.columns.residual,
            step.parts if isinstance(step, JoinColumns) else 1,
        )
        if key not in self._sessions:
            inputs = [
                gs.Variable(
                    name,
                    onnx.helper.tensor_dtype_to_np_dtype(value.element_type()),
                    [None] * len(value.shape()),
                )
                for name, value in values.items()
            ]
            graph = gs.Graph(inputs=inputs, opset=_OPSET, name="capture")
            step.run(graph)
            self._sessions[key] = self._runtime.session(gs.export_onnx(graph, ir_version=_IR))
        return self._sessions[key]

    def _check_positions(self, geometry: Geometry, shape: Sequence[int]) -> None:
        spatial = tuple(shape[1:-1] if self.columns.targets_last else shape[2:])
        if math.prod(spatial) != geometry.positions:
            msg = (
                f"its output has {geometry.output_shape or 1} positions, "
                f"the teacher's has {spatial or 1}"
            )
            raise MatchError(msg)


class _FoldSums:
    """What has been summed for one fold."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, NDArray[np.float64]] = {}

    def add(self, count: int, sums: Mapping[str, NDArray[np.float64]]) -> None:
        self.count += count
        for name, value in sums.items():
            old = self.sums.get(name)
            self.sums[name] = value if old is None else old + value
