"""Columns of one fold in memory: what the sums of a block are taken over, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.moments import finite_columns
from fskd_onnx.passes.analysis.affine import AffineMap

Floats = NDArray[np.floating]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class ColumnChunk:
    """Columns of one fold, of one or several batches.

    Attributes:
        fold: the fold of cross-validation.
        x: (groups, m, columns) regressors, in float64: every product needs all of them.
        targets: (groups, n, columns) of the teacher's block output.
        residual: the teacher's sum and the student's shortcut, each (groups, n, columns); None
            where the error is not seen behind a sum.
    """

    fold: int
    x: Array
    targets: Floats
    residual: tuple[Floats, Floats] | None = None

    def of_output(self, rows: Rows) -> Array:
        """Return some targets: (groups, rows, columns) of the teacher's block output."""
        return _some(self.targets, rows).astype(np.float64)

    def of_sum(self, rows: Rows) -> Array:
        """Return some targets: those of the teacher's sum, the student's shortcut taken off."""
        if self.residual is None:
            return self.of_output(rows)
        sums, shortcut = (_some(part, rows) for part in self.residual)
        return np.subtract(sums, shortcut, dtype=np.float64)

    def predict(self, fitted: AffineMap, rows: Rows) -> tuple[Floats, Floats, Floats | float]:
        """Return prediction and target of some rows where the error is seen, and the shortcut.

        All in the precision of the networks: what is summed over columns is cast for that.
        """
        kind = self.targets.dtype
        prediction: Floats = fitted.matrix.astype(kind) @ self.x.astype(kind, copy=False)
        prediction += fitted.shift[..., np.newaxis].astype(kind)
        if self.residual is None:
            return prediction, _some(self.targets, rows), 0.0
        sums, shortcut = (_some(part, rows) for part in self.residual)
        prediction += shortcut
        return prediction, sums, shortcut

    def __len__(self) -> int:
        """Number of columns."""
        return int(self.x.shape[2])

    def finite(self) -> NDArray[np.bool_] | None:
        """Return which columns are finite in all values, (columns,); None where all are."""
        return finite_columns(self.x, self.targets, *(self.residual or ()))

    def part(self, columns: slice | NDArray[np.bool_]) -> ColumnChunk:
        """Return some columns, as a view where they are a slice."""
        residual = self.residual and (
            self.residual[0][..., columns],
            self.residual[1][..., columns],
        )
        return ColumnChunk(self.fold, self.x[..., columns], self.targets[..., columns], residual)


def _some(values: Floats, rows: Rows) -> Floats:
    """Return some rows; what is given, where these are all."""
    return values if len(rows) == values.shape[1] else values[:, rows]
