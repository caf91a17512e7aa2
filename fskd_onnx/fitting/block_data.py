"""Moments of a block's columns, and errors over them.

Where the block output only feeds an Add with a shortcut, its error can be seen there. The targets
then are (teacher's sum - student's shortcut), so that a block also repairs what arrives through the
shortcut::

    student input   ──▶ patches p ──▶ x ──────────┐
    teacher output  ─────────────────▶ y ─────────┼─▶ float64 ─▶ moments
    teacher sum, student shortcut ─▶ difference ──┘
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from fskd_onnx.errors import MatchError
from fskd_onnx.fitting.block_columns import BlockColumns
from fskd_onnx.fitting.column_chunk import ColumnChunk, Rows
from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.clipping import clip, relu_aware_targets
from fskd_onnx.linalg.moments import CrossMoments, GramMoments, Moments
from fskd_onnx.linalg.threads import parallel_map
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.epilogue import Epilogue
from fskd_onnx.timing import StageTimer

S = TypeVar("S", Moments, CrossMoments)

_LEAST_FOLDS = 2  # one to fit on, one to judge by


class BlockData:
    """What fits to a block need of its columns, each summed over chunks.

    Attributes:
        regressors: the block as a map of them.
        residual: whether the error is seen behind a sum.
        gives_scores: whether the block gives the network's output, a row of scores per sample.
        linear: the student's block, as it is now.
        with_shift: whether fits to the moments may shift the block.
        fold_numbers: the fold of each of the moments: those with a finite column.
    """

    def __init__(self, columns: BlockColumns, timer: StageTimer) -> None:
        """Sum nothing yet.

        Args:
            columns: of the block.
            timer: counts the time spent here as "capture".
        """
        self.regressors = columns.regressors
        self.linear = columns.request.linear
        self.with_shift = True
        self.residual = columns.request.residual
        self.gives_scores = columns.request.plan.gives_scores
        self.fold_numbers: tuple[int, ...] = ()
        self._grams: list[GramMoments] = []  # of each fold, once they are known
        self._columns = columns
        self._timer = timer

    def moments(self, rows: Rows) -> list[Moments]:
        """Return the moments of each fold, with some targets of the block output.

        The Gram part does not depend on the targets, and is summed once.

        Args:
            rows: which targets, the same ones in each group.

        Raises:
            MatchError: fewer than two folds have finite columns, or a sum overflows.
        """
        if self._grams:
            cross = self._sum(lambda chunk: CrossMoments.of(chunk.x, chunk.of_output(rows)))
            folds = [Moments(*parts) for parts in zip(self._grams, cross, strict=True)]
        else:  # in one go, for columns may have to be gathered anew for every sum
            folds = self._sum(lambda chunk: Moments.of(chunk.x, chunk.of_output(rows)))
            self._grams = [fold.of_x for fold in folds]
        if not folds:
            raise MatchError("its activations are not finite on any sample")
        if len(folds) < _LEAST_FOLDS:
            raise MatchError(
                f"its activations are not finite on {len(self.left_out)} samples, and those that "
                "are left are too few"
            )
        if not all(fold.finite for fold in folds):
            raise MatchError("its activations are so large that the sums of their squares overflow")
        return self._for_fits(folds)

    @property
    def left_out(self) -> set[int]:
        """Samples with columns that are not finite, which are no part of any sum."""
        return self._columns.left_out

    def cross_moments(self, rows: Rows, residual: bool) -> list[CrossMoments]:
        """Return the cross part of each fold.

        Args:
            rows: which targets, the same ones in each group.
            residual: whether the targets are the teacher's sum without the student's shortcut, not
                the teacher's block output.
        """
        targets = ColumnChunk.of_sum if residual else ColumnChunk.of_output
        return self._for_fits(
            self._sum(lambda chunk: CrossMoments.of(chunk.x, targets(chunk, rows)))
        )

    def relu_aware_moments(
        self,
        fitted: AffineMap,
        epilogue: Epilogue,
        rows: Rows,
        first_fold: bool | None = None,
    ) -> list[CrossMoments]:
        """Return the cross part of each fold with targets that allow for the activation behind.

        Where both networks lie beyond a bound of a clipping activation (Relu: 0; Clip: 0 and 6),
        they agree, however far apart they are. So beyond a bound the target becomes the prediction
        itself, as far as that lies beyond it too (asymmetric reconstruction after Zhang et al.
        2016, "Accelerating very deep convolutional networks")::

            u = fitted x (+ shortcut)        t = teacher
            t' = min(u, low) where t <= low,   max(u, high) where t >= high,   t elsewhere

        Args:
            fitted: the map of the regressors to predict with, for some of the targets.
            epilogue: the activation.
            rows: which targets, the same ones in each group.
            first_fold: whether to look at the first fold or at all others; None for all folds.
        """

        def targets(chunk: ColumnChunk) -> Array:
            prediction, target, shortcut = chunk.predict(fitted, rows)
            aware = relu_aware_targets(prediction, target, epilogue.low, epilogue.high)
            y: Array = aware.astype(np.float64)
            y -= shortcut
            return y

        return self._for_fits(
            self._sum(lambda chunk: CrossMoments.of(chunk.x, targets(chunk)), first_fold)
        )

    def error(self, fitted: AffineMap, epilogue: Epilogue, rows: Rows) -> float:
        """Return the sum of squared errors where the epilogue sees them, over the first fold.

        Args:
            fitted: the map of the regressors to predict with, for some of the targets.
            epilogue: where the error is seen.
            rows: which targets, the same ones in each group.

        Returns:
            Infinity where it overflows.
        """

        def of_chunk(chunk: ColumnChunk) -> float:
            with np.errstate(invalid="ignore", over="ignore"):
                prediction, target, _ = chunk.predict(fitted, rows)
                if epilogue.clips:
                    prediction, target = (
                        clip(values, epilogue.low, epilogue.high) for values in (prediction, target)
                    )
                difference = np.subtract(prediction, target, dtype=np.float64)
                return float(np.vdot(difference, difference))

        with self._timer("capture"):
            total = sum(parallel_map(of_chunk, self._columns.chunks(first_fold=True)))
        return math.inf if math.isnan(total) else total

    def ranked_first(self, fitted: AffineMap) -> tuple[int, int]:
        """Compare which target is the largest, as of the scores of classes, over the first fold.

        Args:
            fitted: the map of the regressors to predict with, for all targets of one group.

        Returns:
            On how many columns the block as it is agrees with the target and the prediction does
            not; and on how many it is the other way round.
        """
        everything = np.arange(fitted.matrix.shape[1])
        unchanged = AffineMap(self.regressors.block_map, self.regressors.bias)
        lost = gained = 0
        with self._timer("capture"):
            for chunk in self._columns.chunks(first_fold=True):
                agree = [
                    prediction[0].argmax(axis=0) == target[0].argmax(axis=0)
                    for prediction, target, _ in (
                        chunk.predict(block, everything) for block in (unchanged, fitted)
                    )
                ]
                lost += int(np.sum(agree[0] & ~agree[1]))
                gained += int(np.sum(agree[1] & ~agree[0]))
        return lost, gained

    def _sum(self, of_chunk: Callable[[ColumnChunk], S], first_fold: bool | None = None) -> list[S]:
        """Add up the moments of the chunks of each fold."""

        def work(chunk: ColumnChunk) -> tuple[int, S]:
            # What overflows is seen in the sums.
            with np.errstate(invalid="ignore", over="ignore"):
                return chunk.fold, of_chunk(chunk)

        folds: dict[int, S] = {}
        with self._timer("capture"):
            for fold, part in parallel_map(work, self._columns.chunks(first_fold)):
                folds[fold] = folds[fold] + part if fold in folds else part
        if first_fold is None:
            self.fold_numbers = tuple(folds)
        return list(folds.values())

    def _for_fits(self, folds: list[S]) -> list[S]:
        """Return sums such that fits to them shift the block only where they may."""
        return folds if self.with_shift else [fold.without_means() for fold in folds]

    def without_shift(self) -> BlockData:
        """Return the same columns for fits that do not shift the block."""
        unshifted = copy.copy(self)
        unshifted.with_shift = False
        return unshifted
