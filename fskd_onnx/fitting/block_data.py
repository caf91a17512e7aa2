"""The columns of one block, chunk by chunk, and their sums.

A column pairs regressors x, what the student's block reads, with targets y, what the teacher's
block gives, at one position of one sample. Nothing is read from the student's block itself: its
patches are gathered from its *input* at the drawn positions. So a block never runs uncorrected.

Where the block output only feeds an Add with a shortcut, its error can be seen there. The targets
then are (teacher's sum - student's shortcut), so that a block also repairs what arrives through the
shortcut::

    student input   ──▶ patches p ──▶ x ──────────┐
    teacher output  ─────────────────▶ y ─────────┼─▶ float64 ─▶ sums
    teacher sum, student shortcut ─▶ difference ──┘

Regressors are the patches, or coordinates of the block's outputs W p where only those are asked
for. And where the columns are fewer than their rows, as ten samples of an image of one pixel are,
they span less than the whole space, and a ridge leaves everything outside of the span alone. Then x
are the coordinates in an orthonormal basis of the span, and nothing is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from fskd_onnx.errors import MatchError
from fskd_onnx.fitting.column_chunk import ColumnChunk, Floats, Rows
from fskd_onnx.fitting.teacher_pass import BlockPlan, TeacherPass
from fskd_onnx.linalg.backend import Array, each
from fskd_onnx.linalg.clipping import clip, relu_aware_targets
from fskd_onnx.linalg.moments import Moments
from fskd_onnx.linalg.ridge import span
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.epilogue import Epilogue
from fskd_onnx.passes.analysis.geometry import Geometry
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.runtime.column_sampling import column_type
from fskd_onnx.runtime.segment_runner import SegmentRunner
from fskd_onnx.runtime.tensor_store import StoredTensor
from fskd_onnx.timing import StageTimer

# Products of larger chunks are no faster. Columns that fit the second are kept for the next time
# they are asked for; those of blocks with more are gathered anew each time.
_CHUNK_BYTES = 2**26
_KEPT_BYTES = 2**29


@dataclass(frozen=True)
class BlockRequest:
    """What is read for a block.

    Attributes:
        plan: the block.
        linear: the student's block, as it is now.
        channels: teacher channel of each target, divided evenly among the groups.
        residual: whether the error is seen behind the sum that the plan names.
        outputs: whether nobody asks for patches, so that coordinates of the outputs will do.
        merged: whether all groups are read as one, as they are while channels are not known.
    """

    plan: BlockPlan
    linear: Linear
    channels: NDArray[np.intp]
    residual: bool
    outputs: bool
    merged: bool = False


class BlockData:
    """The columns of one block at the current stage of student and teacher.

    Attributes:
        reading: what is read.
        block_map: (groups, n, m) the block as it is, as a map of the regressors; its bias comes on
            top.
        basis: (groups, p, m) orthonormal: the patches are ``basis`` times the regressors. None
            where the regressors are the patches, or coordinates of the block's outputs.
    """

    def __init__(
        self, student: SegmentRunner, lead: TeacherPass, reading: BlockRequest, clock: StageTimer
    ) -> None:
        """Look at the first batch.

        Args:
            student: at a stage whose stop holds the block's input, and the shortcut.
            lead: the teacher, advanced to the block.
            reading: what to read.
            clock: counts the time spent here as "capture".

        Raises:
            MatchError: student and teacher differ in their positions.
        """
        self._student = student
        self._lead = lead
        self.reading = reading
        self._clock = clock
        self._chunks: list[ColumnChunk] | None = None
        linear, groups = reading.linear, reading.linear.groups
        self._columns = lead.columns(reading.plan.index)
        with clock("capture"):
            first = student.tensors(0)[linear.input.name]
        self._geometry = Geometry.of(linear, first.shape())
        self._check_positions(first.shape()[0])
        taps = self._geometry.taps_inside
        inside = np.tile(taps, linear.shape[2] // len(taps))
        self.basis: Array | None = None
        if not inside.all():
            self.basis = np.tile(np.eye(len(inside))[:, inside], (groups, 1, 1))
        self.block_map = linear.matrix[..., inside]
        # What the patches are multiplied with as soon as they are gathered, in their precision.
        self._turn: Floats | None = None
        kind = column_type(first.element_type())
        if reading.merged:
            self._turn = self.block_map.astype(kind)
        elif reading.outputs:
            self.block_map, turn = span(self.block_map)
            self._turn = turn.astype(kind)
            self.basis = None
        columns = sum(part.columns for part in self._columns.values())
        n, m = self.block_map.shape[1:]
        # Groups of them, and how many in each.
        self._regressors = (1, groups * n) if reading.merged else (groups, m)
        per_column = 8 * math.prod(self._regressors)
        per_column += 4 * len(reading.channels) * (3 if reading.residual else 1)
        self._keep = per_column * columns <= _KEPT_BYTES
        self._few = columns < self.block_map.shape[2]

    def reduce(self) -> None:
        """Go over to coordinates in the span of the columns, where that has fewer of them.

        A map of the new regressors says nothing about what the columns do not span.
        """
        if not (self._few and self._keep):
            return
        with self._clock("capture"):
            chunks = list(self._read())
            x = np.concatenate([chunk.x for chunk in chunks], axis=2)
            # Householder reflections, so the basis is orthonormal even where columns are equal.
            bases, turned = zip(
                *(scipy.linalg.qr(part, mode="economic") for part in x), strict=True
            )
            basis = np.stack(bases)
            ends = np.cumsum([len(chunk) for chunk in chunks])[:-1]
            parts = np.split(np.stack(turned), ends, axis=2)
            self._chunks = [
                replace(chunk, x=part) for chunk, part in zip(chunks, parts, strict=True)
            ]
        self.block_map = self.block_map @ basis
        if self._turn is None:
            self.basis = basis if self.basis is None else self.basis @ basis

    def sums(self, rows: Rows) -> list[list[Moments]]:
        """Return the moments of each variant of some targets, and of each fold in it.

        Args:
            rows: which targets, the same ones in each group.
        """
        plain = self._sum(lambda chunk: Moments.of(chunk.x, chunk.towards(0, rows)))
        return [plain, self.towards(plain, 1, rows)] if self.reading.residual else [plain]

    def towards(self, folds: Sequence[Moments], variant: int, rows: Rows) -> list[Moments]:
        """Return the moments of the same columns with other targets.

        Args:
            folds: moments of the columns; those of the regressors are taken over.
            variant: 0 for the block output, 1 for the sum behind it without the shortcut.
            rows: which targets, the same ones in each group.
        """
        return self._with_targets(folds, lambda chunk: chunk.towards(variant, rows))

    def error(self, fitted: AffineMap, readout: Epilogue, rows: Rows) -> float:
        """Return the sum of squared errors where the readout sees them, over the first fold.

        Args:
            fitted: the map of the regressors to predict with, for some of the targets.
            readout: where the error is seen.
            rows: which targets, the same ones in each group.
        """

        def of_chunk(chunk: ColumnChunk) -> float:
            prediction, target, _ = chunk.seen(fitted, rows)
            if readout.clips:
                prediction, target = (
                    clip(values, readout.low, readout.high) for values in (prediction, target)
                )
            difference = np.subtract(prediction, target, dtype=np.float64)
            return float(np.vdot(difference, difference))

        with self._clock("capture"):
            return sum(each(of_chunk, self._read(first_fold=True)))

    def hidden(
        self, folds: Sequence[Moments], fitted: AffineMap, readout: Epilogue, rows: Rows
    ) -> list[Moments]:
        """Return the moments with targets that forgive what the activation behind hides.

        Where both networks lie beyond a bound of a clipping activation (Relu: 0; Clip: 0 and 6),
        they agree, however far apart they are. So beyond a bound the target becomes the prediction
        itself, as far as that lies beyond it too (asymmetric reconstruction after Zhang et al.
        2016, "Accelerating very deep convolutional networks")::

            u = fitted x (+ shortcut)        t = teacher
            t' = min(u, low) where t <= low,   max(u, high) where t >= high,   t elsewhere

        Args:
            folds: moments of the same columns; those of the regressors are taken over.
            fitted: the map of the regressors to predict with, for some of the targets.
            readout: the activation.
            rows: which targets, the same ones in each group.
        """

        def targets(chunk: ColumnChunk) -> Array:
            prediction, target, shortcut = chunk.seen(fitted, rows)
            y: Array = relu_aware_targets(prediction, target, readout.low, readout.high).astype(
                np.float64
            )
            y -= shortcut
            return y

        return self._with_targets(folds, targets)

    def _with_targets(
        self, folds: Sequence[Moments], targets: Callable[[ColumnChunk], Array]
    ) -> list[Moments]:
        found = self._sum(lambda chunk: Moments.of_targets_alone(chunk.x, targets(chunk)))
        return [part.with_regressors(whole) for part, whole in zip(found, folds, strict=True)]

    def _sum(self, work: Callable[[ColumnChunk], Moments]) -> list[Moments]:
        """Add up the moments of the chunks of each fold."""

        def of_chunk(chunk: ColumnChunk) -> tuple[int, Moments]:
            return chunk.fold, work(chunk)

        folds: dict[int, Moments] = {}
        with self._clock("capture"):
            for fold, part in each(of_chunk, self._read()):
                folds[fold] = folds[fold] + part if fold in folds else part
        return list(folds.values())

    def _read(self, first_fold: bool = False) -> Iterable[ColumnChunk]:
        """Give all chunks, fold after fold; only those of the first fold, if that is enough."""
        batches = self._lead.batches
        first = batches[0].fold
        if self._chunks is None and self._keep:
            self._chunks = list(self._gathered(list(self._columns)))
        if self._chunks is not None:
            return [c for c in self._chunks if not first_fold or c.fold == first]
        return self._gathered(
            [index for index in self._columns if not first_fold or batches[index].fold == first]
        )

    def _gathered(self, batches: list[int]) -> Iterable[ColumnChunk]:
        """Gather the columns of some batches, at once where all of them may be in memory."""
        shares = self._divided(batches)
        if not self._keep:
            return map(self._gather, shares)
        for index in batches:
            self._student.tensors(index)  # runs what has not run yet, one batch after another
        chunks = [self._empty(share) for share in shares]
        parts = [part for pair in zip(chunks, shares, strict=True) for part in self._parts(*pair)]
        list(each(self._fill, parts))
        return chunks

    def _divided(self, batches: list[int]) -> list[list[int]]:
        """Divide batches into those whose columns lie side by side: of a fold, few enough."""
        per_column = 8 * math.prod(self._regressors)
        shares: list[list[int]] = []
        size, fold = 0, -1
        for index in batches:
            if self._lead.batches[index].fold != fold or size > _CHUNK_BYTES:
                shares.append([])
                size, fold = 0, self._lead.batches[index].fold
            shares[-1].append(index)
            size += per_column * self._columns[index].columns
        return shares

    def _gather(self, share: list[int]) -> ColumnChunk:
        chunk = self._empty(share)
        for part in self._parts(chunk, share):
            self._fill(part)
        return chunk

    def _empty(self, share: list[int]) -> ColumnChunk:
        """Make room for the columns of some batches."""
        first, columns = self._columns[share[0]], sum(self._columns[i].columns for i in share)
        groups = self._regressors[0]
        shape = (groups, len(self.reading.channels) // groups, columns)
        targets = np.empty(shape, column_type(first.targets.element_type))
        residual = None
        if self.reading.residual and first.totals is not None:
            residual = np.empty_like(targets), np.empty_like(targets)
        return ColumnChunk(
            fold=self._lead.batches[share[0]].fold,
            x=np.empty((*self._regressors, columns)),
            targets=targets,
            residual=residual,
        )

    def _parts(self, chunk: ColumnChunk, share: list[int]) -> Iterator[tuple[int, ColumnChunk]]:
        """Yield each batch with its part of a chunk."""
        end = 0
        for index in share:
            start, end = end, end + self._columns[index].columns
            yield index, chunk.part(slice(start, end))

    def _fill(self, item: tuple[int, ColumnChunk]) -> None:
        """Gather the columns of one batch."""
        index, part = item
        tensors, tapped = self._student.tensors(index), self._columns[index]
        linear, last = self.reading.linear, self.reading.linear.op == "MatMul"
        at, inside = self._geometry.patches(tapped.chosen)
        taps = self._geometry.taps_inside
        at, inside = at[taps], inside[taps]
        mask = None if inside.all() else inside
        source = tensors[linear.input.name], last, tapped.count, at, mask
        if self._turn is None:
            self._lead.gather(*source, out=part.x.reshape(-1, len(part)))
        else:
            patches = self._lead.gather(*source)
            patches = patches.reshape(linear.groups, -1, len(part))
            part.x[...] = (self._turn @ patches).reshape(part.x.shape)

        def align(held: StoredTensor, out: Floats) -> None:
            value = held.value()  # what it gives is on loan, and has to live until it is copied
            out[...] = value.numpy()[self.reading.channels].reshape(out.shape)

        align(tapped.targets, part.targets)
        if part.residual is not None and tapped.totals is not None:
            totals, shortcut = part.residual
            align(tapped.totals, totals)
            name, position = str(self.reading.plan.readout.shortcut), tapped.chosen[np.newaxis]
            out = shortcut.reshape(-1, len(part))
            self._lead.gather(tensors[name], last, tapped.count, position, out=out)

    def _check_positions(self, rows: int) -> None:
        plan = self.reading.plan
        shape = self._columns[0].shape
        spatial = shape[1:-1] if plan.channels_last else shape[2:]
        if math.prod(spatial) != self._geometry.positions or rows != shape[0]:
            raise MatchError(
                f"its output has {self._geometry.output_shape or 1} positions, "
                f"the teacher's has {spatial or 1}"
            )
