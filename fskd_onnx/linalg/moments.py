"""Sums over the columns of a block, in float64, per fold: all that the solver ever sees.

A column is a regressor vector x (the student's patch, or its block output) with a target vector y
(the teacher's block output) at one position of one sample. Per group, summed over columns::

    gram = sum x x'   cross = sum y x'   first_x = sum x   first_y = sum y   square_y = sum y^2

From these follow, without the columns, the least-squares solution on any union of folds and the
error of any affine map on any other. Their size depends on channels, not on samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.linalg.backend import Array, backend
from fskd_onnx.passes.analysis.affine import AffineMap


@dataclass(frozen=True)
class Moments:
    """Sums over the columns of one fold, or of several.

    Attributes:
        count: number of columns.
        gram: (groups, m, m).
        cross: (groups, n, m).
        first_x: (groups, m).
        first_y: (groups, n).
        square_y: (groups, n).
    """

    count: int
    gram: Array
    cross: Array
    first_x: Array
    first_y: Array
    square_y: Array

    @staticmethod
    def of(x: NDArray[np.floating], y: NDArray[np.floating]) -> Moments:
        """Sum over columns, in float64.

        Args:
            x: (groups, m, columns) regressors.
            y: (groups, n, columns) targets.
        """
        # Cast once: the regressors are a factor of both products.
        x = x.astype(np.float64, copy=False)
        targets = Moments.of_targets_alone(x, y)
        return replace(targets, gram=backend().multiply(x, x), first_x=x.sum(axis=2))

    @staticmethod
    def of_targets_alone(x: NDArray[np.floating], y: NDArray[np.floating]) -> Moments:
        """Sum what depends on the targets; ``with_regressors`` takes the rest from elsewhere."""
        y = y.astype(np.float64, copy=False)
        groups, _, count = x.shape
        return Moments(
            count=count,
            gram=np.empty((groups, 0, 0)),
            cross=backend().multiply(y, x),
            first_x=np.empty((groups, 0)),
            first_y=y.sum(axis=2),
            square_y=np.einsum("gnk,gnk->gn", y, y),
        )

    def with_regressors(self, other: Moments) -> Moments:
        """Return the moments with the sums of the regressors of the same columns."""
        return replace(self, gram=other.gram, first_x=other.first_x)

    def __add__(self, other: Moments) -> Moments:
        """Sum over the columns of both."""
        return Moments(
            self.count + other.count,
            self.gram + other.gram,
            self.cross + other.cross,
            self.first_x + other.first_x,
            self.first_y + other.first_y,
            self.square_y + other.square_y,
        )

    def __sub__(self, other: Moments) -> Moments:
        """Sum over the columns of this one without those of the other, which it must contain."""
        return Moments(
            self.count - other.count,
            self.gram - other.gram,
            self.cross - other.cross,
            self.first_x - other.first_x,
            self.first_y - other.first_y,
            self.square_y - other.square_y,
        )

    @property
    def mean_x(self) -> Array:
        """(groups, m) mean regressors."""
        return self.first_x / self.count

    @property
    def mean_y(self) -> Array:
        """(groups, n) mean targets."""
        return self.first_y / self.count

    @property
    def centered_gram(self) -> Array:
        """(groups, m, m) sum of (x - mean)(x - mean)'."""
        return self.gram - _outer(self.first_x, self.mean_x)

    @property
    def centered_cross(self) -> Array:
        """(groups, n, m) sum of (y - mean)(x - mean)'."""
        return self.cross - _outer(self.first_y, self.mean_x)

    @property
    def target_energy(self) -> float:
        """Sum of squared deviations of the targets from their mean: ||Y - mean||^2."""
        return float(np.maximum(self.square_y - self.first_y * self.mean_y, 0.0).sum())

    def of_targets(self, rows: NDArray[np.intp]) -> Moments:
        """Return the moments with some of the targets only, the same ones in each group."""
        return replace(
            self,
            cross=self.cross[:, rows],
            first_y=self.first_y[:, rows],
            square_y=self.square_y[:, rows],
        )

    def error(self, fitted: AffineMap) -> float:
        """Return ||matrix X + shift - Y||^2 over the columns."""
        a, c = fitted.matrix, fitted.shift
        quadratic = np.sum((a @ self.gram - 2.0 * self.cross) * a) + self.square_y.sum()
        means = np.einsum("gij,gj->gi", a, self.first_x) - self.first_y
        # Rounding can leave a tiny negative sum where the fit is exact.
        return max(0.0, float(quadratic + np.sum(c * (2.0 * means + self.count * c))))

    def of_regressors(self, reading: Array, known: Moments | None = None) -> Moments:
        """Turn moments of regressors x into those of ``reading`` (groups, r, m) times x.

        Args:
            reading: the map.
            known: moments of the new regressors over the same columns, whatever their targets.
        """
        turned = np.swapaxes(reading, 1, 2)
        cross = self.cross @ turned
        if known is not None:
            return replace(self, cross=cross, gram=known.gram, first_x=known.first_x)
        first = np.einsum("grm,gm->gr", reading, self.first_x)
        return replace(self, cross=cross, gram=reading @ self.gram @ turned, first_x=first)

    def correlation(self) -> Array:
        """Return the (groups, m, n) correlations of x and y, 0 where one is constant."""
        energy_x = np.einsum("gii->gi", self.centered_gram)
        energy_y = self.square_y - self.first_y * self.mean_y
        norm = _outer(*(np.sqrt(np.maximum(energy, 0.0)) for energy in (energy_x, energy_y)))
        cross = np.swapaxes(self.centered_cross, 1, 2)
        correlation: Array = np.zeros_like(cross)
        return np.divide(cross, norm, out=correlation, where=norm > 0)


def _outer(a: Array, b: Array) -> Array:
    """Return a b' of each group."""
    return a[:, :, np.newaxis] * b[:, np.newaxis, :]


def sum_moments(folds: Sequence[Moments]) -> Moments:
    """Sum over the columns of all folds."""
    return reduce(add, folds)
