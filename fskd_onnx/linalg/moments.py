"""Sums over the columns of a block, in float64, per fold: the sufficient statistics of a fit.

A column is a regressor vector x (the student's patch, or its block output) with a target vector y
(the teacher's block output) at one position of one sample. Per group, summed over columns::

    Gram part    gram  = sum x x'    sum_x = sum x                         of the regressors alone
    cross part   cross = sum y x'    sum_y = sum y    square_y = sum y^2   of the targets

From these follow, without the columns, the least-squares solution on any union of folds and the
error of any affine map on any other. Their size depends on channels, not on samples. Other targets
of the same columns have a cross part of their own and share the Gram part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add, sub
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.linalg.backends import Array, backend
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.constants import all_finite


def finite_columns(*parts: NDArray[np.floating]) -> NDArray[np.bool_] | None:
    """Return the columns to form moments of: those with finite values only, (columns,).

    A network may give NaN where nobody looks, as attention does for padded tokens; one such column
    makes every sum NaN.

    Args:
        parts: (..., columns) of the same columns.

    Returns:
        None where all columns are finite.
    """
    if all(map(all_finite, parts)):
        return None
    finite = np.ones(parts[0].shape[-1], bool)
    for part in parts:
        finite &= np.isfinite(part).all(axis=tuple(range(part.ndim - 1)))
    return finite


class Sums:
    """Sums over columns. All fields are sums, so two of these add up field by field."""

    def __add__(self, other: Self) -> Self:
        """Sum over the columns of both."""
        return self._combined(add, other)

    def __sub__(self, other: Self) -> Self:
        """Sum over the columns of this one without those of the other, which it must contain."""
        return self._combined(sub, other)

    def _combined(self, operator: Callable[[Any, Any], Any], other: Self) -> Self:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return type(self)(*(operator(mine, theirs) for mine, theirs in pairs))


S = TypeVar("S", bound=Sums)


@dataclass(frozen=True)
class GramMoments(Sums):
    """Sums over columns that depend on the regressors alone.

    Attributes:
        count: number of columns.
        gram: (groups, m, m) sum of x x'.
        sum_x: (groups, m) sum of x.
    """

    count: int
    gram: Array
    sum_x: Array

    @staticmethod
    def of(x: NDArray[np.floating]) -> GramMoments:
        """Sum over (groups, m, columns) regressors, in float64."""
        x = x.astype(np.float64, copy=False)
        return GramMoments(x.shape[2], backend().multiply(x, x), x.sum(axis=2))

    def without_means(self) -> GramMoments:
        """Return what gives regressions without a shift: their means count as zero."""
        return replace(self, sum_x=np.zeros_like(self.sum_x))

    @property
    def mean_x(self) -> Array:
        """(groups, m) mean regressors."""
        return self.sum_x / self.count

    @property
    def centered_gram(self) -> Array:
        """(groups, m, m) sum of (x - mean)(x - mean)'."""
        centered = _outer(self.sum_x, self.mean_x)
        return np.subtract(self.gram, centered, out=centered)  # a matrix may be large

    def mapped(self, matrix: Array) -> GramMoments:
        """Return the moments of the regressors ``matrix`` (groups, r, m) times x."""
        first = np.einsum("grm,gm->gr", matrix, self.sum_x)
        return GramMoments(self.count, matrix @ self.gram @ np.swapaxes(matrix, 1, 2), first)


@dataclass(frozen=True)
class CrossMoments(Sums):
    """Sums over columns that depend on the targets.

    Attributes:
        cross: (groups, n, m) sum of y x'.
        sum_y: (groups, n) sum of y.
        square_y: (groups, n) sum of the squares of y.
    """

    cross: Array
    sum_y: Array
    square_y: Array

    @staticmethod
    def of(x: NDArray[np.floating], y: NDArray[np.floating]) -> CrossMoments:
        """Sum over columns, in float64.

        Args:
            x: (groups, m, columns) regressors.
            y: (groups, n, columns) targets.
        """
        y = y.astype(np.float64, copy=False)
        return CrossMoments(backend().multiply(y, x), y.sum(axis=2), np.einsum("gnk,gnk->gn", y, y))

    def mapped(self, matrix: Array) -> CrossMoments:
        """Return the moments of the regressors ``matrix`` (groups, r, m) times x."""
        return CrossMoments(self.cross @ np.swapaxes(matrix, 1, 2), self.sum_y, self.square_y)

    def without_means(self) -> CrossMoments:
        """Return what gives regressions without a shift: the targets' means count as zero."""
        return replace(self, sum_y=np.zeros_like(self.sum_y))

    def of_targets(self, rows: NDArray[np.intp]) -> CrossMoments:
        """Return the moments of some of the targets only, the same ones in each group."""
        return CrossMoments(self.cross[:, rows], self.sum_y[:, rows], self.square_y[:, rows])


@dataclass(frozen=True)
class Moments(Sums):
    """Sums over the columns of one fold, or of several.

    Attributes:
        of_x: the Gram part; moments of other targets may share it.
        of_y: the cross part.
    """

    of_x: GramMoments
    of_y: CrossMoments

    @staticmethod
    def of(x: NDArray[np.floating], y: NDArray[np.floating]) -> Moments:
        """Sum over columns, in float64.

        Args:
            x: (groups, m, columns) regressors.
            y: (groups, n, columns) targets.
        """
        # Cast once: the regressors are a factor of both products.
        x = x.astype(np.float64, copy=False)
        return Moments(GramMoments.of(x), CrossMoments.of(x, y))

    @property
    def count(self) -> int:
        """Number of columns."""
        return self.of_x.count

    @property
    def mean_y(self) -> Array:
        """(groups, n) mean targets."""
        return self.of_y.sum_y / self.count

    @property
    def centered_gram(self) -> Array:
        """(groups, m, m) sum of (x - mean)(x - mean)'."""
        return self.of_x.centered_gram

    @property
    def centered_cross(self) -> Array:
        """(groups, n, m) sum of (y - mean)(x - mean)'."""
        return self.of_y.cross - _outer(self.of_y.sum_y, self.of_x.mean_x)

    @property
    def target_energy(self) -> float:
        """Sum of squared deviations of the targets from their mean: ||Y - mean||^2."""
        return float(np.maximum(self._energy_y, 0.0).sum())

    @property
    def _energy_y(self) -> Array:
        return self.of_y.square_y - self.of_y.sum_y * self.mean_y

    @property
    def finite(self) -> bool:
        """Whether no sum has overflowed."""
        gram, cross = self.of_x, self.of_y
        return all(map(all_finite, (gram.gram, gram.sum_x, cross.cross, cross.square_y)))

    def without_means(self) -> Moments:
        """Return what gives regressions without a shift: all means count as zero."""
        return Moments(self.of_x.without_means(), self.of_y.without_means())

    def of_targets(self, rows: NDArray[np.intp]) -> Moments:
        """Return the moments with some of the targets only, the same ones in each group."""
        return Moments(self.of_x, self.of_y.of_targets(rows))

    def mapped(self, matrix: Array) -> Moments:
        """Return the moments of the regressors ``matrix`` (groups, r, m) times x."""
        return Moments(self.of_x.mapped(matrix), self.of_y.mapped(matrix))

    def error(self, fitted: AffineMap) -> float:
        """Return ||matrix X + shift - Y||^2 over the columns; infinity where it overflows."""
        a, c = fitted.matrix, fitted.shift
        quadratic = np.sum((a @ self.of_x.gram - 2.0 * self.of_y.cross) * a)
        quadratic += self.of_y.square_y.sum()
        means = np.einsum("gij,gj->gi", a, self.of_x.sum_x) - self.of_y.sum_y
        error = float(quadratic + np.sum(c * (2.0 * means + self.count * c)))
        # Rounding can leave a tiny negative sum where the fit is exact.
        return math.inf if math.isnan(error) else max(0.0, error)

    def correlation(self) -> Array:
        """Return the (groups, m, n) correlations of x and y, 0 where one is constant."""
        energy_x = np.einsum("gii->gi", self.centered_gram)
        norm = _outer(*(np.sqrt(np.maximum(part, 0.0)) for part in (energy_x, self._energy_y)))
        cross = np.swapaxes(self.centered_cross, 1, 2)
        correlation: Array = np.zeros_like(cross)
        return np.divide(cross, norm, out=correlation, where=norm > 0)


def _outer(a: Array, b: Array) -> Array:
    """Return a b' of each group."""
    return a[:, :, np.newaxis] * b[:, np.newaxis, :]


def sum_moments(folds: Sequence[S]) -> S:
    """Sum over the columns of all folds: moments, or one part of them."""
    fields = zip(*(vars(fold).values() for fold in folds), strict=True)
    return type(folds[0])(*map(_sum_field, fields))


def _sum_field(parts: Sequence[Any]) -> Any:
    """Sum a field of several sums; arrays, which may be large, in the place of the first sum."""
    if isinstance(parts[0], Sums):
        return sum_moments(parts)
    if not isinstance(parts[0], np.ndarray) or len(parts) == 1:
        return reduce(add, parts)
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return total
