"""Ridge regression towards a given map, from moments.

::

    min over B, c of  ||B X + c - Y||^2 + ridge ||B - A||^2
    B = A + (Cyx - A Gxx) (Gxx + ridge I)^-1,    c = mean(Y) - B mean(X)      (centred moments)

A, the prior, is (groups, n, m); X and Y are the regressors and targets of ``linalg.moments``. The
shift c is never pulled. Strengths are relative to the mean diagonal of Gxx, so that one grid serves
all systems. With a support, B differs from A only there, and each row is solved on its own support.

The ridge is chosen by cross-validation: of the grid, the strength whose fits to all folds but one
have the least error on the one left out.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.linalg.backends import Array, backend
from fskd_onnx.linalg.moments import GramMoments, Moments, sum_moments
from fskd_onnx.linalg.threads import parallel_map
from fskd_onnx.passes.analysis.affine import AffineMap

logger = logging.getLogger(__name__)

Mask = NDArray[np.bool_]

RIDGES: tuple[float, ...] = tuple(10.0**exponent for exponent in range(-6, 2))

# A system of this many unknowns is factorized in a millisecond. Costlier ones are tested on fewer
# folds: the held-out error of two folds already orders the ridges.
_CHEAP = 128
_FOLDS_IF_COSTLY = 2
# Columns per unknown from which on the error has one minimum.
_MANY_COLUMNS = 2


def is_identity(matrices: Array) -> bool:
    """Whether each of some matrices is the identity."""
    _, n, m = matrices.shape
    return n == m and bool((matrices == np.eye(n)).all())


def span(matrices: Array) -> tuple[Array, Array]:
    """Factorize maps into an orthonormal basis of their outputs and coordinates in it.

    Args:
        matrices: (groups, n, m).

    Returns:
        V and T with W = V T: the identity and W itself where n <= m, else (groups, n, m) and
        (groups, m, m).
    """
    groups, n, m = matrices.shape
    if n <= m:
        return np.broadcast_to(np.eye(n), (groups, n, n)), matrices
    basis, coordinates = np.linalg.qr(matrices)
    return basis, coordinates


class Ridge:
    """The problem of the module's docstring, with what it has in common for all strengths."""

    def __init__(self, moments: GramMoments, prior: Array, support: Mask | None = None) -> None:
        """Set up.

        Args:
            moments: of the regressors.
            prior: (groups, n, m), what the ridge pulls towards.
            support: (groups, n, m), where the solution may differ from the prior; None: everywhere.
                Rows of the same support share a factor.
        """
        self._prior, self._support = prior, support
        self._gram = moments.centered_gram
        self._pull = self._gram if is_identity(prior) else prior @ self._gram

    def solver(self, ridge: float) -> Callable[[Moments], AffineMap]:
        """Factorize; return what solves for the targets of moments over the same columns.

        Args:
            ridge: strength relative to the mean diagonal of the Gram matrix.
        """
        groups, m, _ = self._gram.shape
        strength = relative_strength(self._gram, ridge)
        together = None
        if self._support is None and groups > 1 and m <= _CHEAP:
            # Depthwise blocks have as many systems as channels, each of a few unknowns.
            together = backend().cholesky_all(self._gram + strength * np.eye(m))
        factors = [
            (group, block, regular_solver(part[_square(block[1])], strength))
            for group, part in enumerate(self._gram if together is None else ())
            for block in _supports(None if self._support is None else self._support[group])
        ]

        def solve(moments: Moments) -> AffineMap:
            right = moments.centered_cross - self._pull
            step = np.zeros_like(right) if together is None else together(right)
            for group, block, solve_one in factors:
                step[group][block] = solve_one(right[group][block])
            matrix = self._prior + step
            shift = moments.mean_y - np.einsum("gij,gj->gi", matrix, moments.of_x.mean_x)
            return AffineMap(matrix, shift)

        return solve


@dataclass(frozen=True)
class RidgeChoice:
    """A strength, and what speaks for it.

    Attributes:
        ridge: the chosen strength, relative to the mean diagonal of Gxx.
        errors: on each tested fold, of each strength that was tried.
    """

    ridge: float
    errors: Mapping[float, Sequence[float]]

    def without(self, fold: int) -> float:
        """Return the strength of least error on the other folds, so that one has no say in it."""
        sums = {
            ridge: sum(error for number, error in enumerate(errors) if number != fold)
            for ridge, errors in self.errors.items()
        }
        # The chosen one first, and where no fold is left.
        return min((self.ridge, *sorted(sums, reverse=True)), key=lambda ridge: sums[ridge])


@dataclass(frozen=True)
class CrossValidation:
    """What held-out folds say of ridge regression towards a prior.

    Attributes:
        folds: moments of each fold.
        choice: the chosen strength.
        error_before: ||prior X + shift - Y||^2 over the tested folds.
        error_after: the same of maps that are fitted without the fold that they are tested on.
        energy: ||Y - mean||^2 over the same folds.
        without_first: a map that is fitted without the first fold, to all targets; None where no
            such map is at hand.
    """

    folds: Sequence[Moments]
    choice: RidgeChoice
    error_before: float
    error_after: float
    energy: float
    without_first: AffineMap | None = None

    @property
    def ridge(self) -> float:
        """The chosen strength, relative to the mean diagonal of Gxx."""
        return self.choice.ridge


def folds_to_test(unknowns: int) -> int | None:
    """Return on how many folds systems of so many unknowns are tested at most; None: on all."""
    return None if unknowns <= _CHEAP else _FOLDS_IF_COSTLY


def numbers_of_folds(count: int, unknowns: int) -> Sequence[int]:
    """Return what `parallel_map` goes through: in threads where systems are worth one each."""
    return range(count) if unknowns <= _CHEAP else list(range(count))


def cross_validate(
    folds: Sequence[Moments],
    prior: AffineMap,
    tested: int | None = None,
    support: Mask | None = None,
) -> CrossValidation:
    """Choose the ridge by the error on held-out folds.

    The error has one minimum along the ridge where columns are many, so the search starts in the
    middle and walks downhill. Where they are hardly more than the unknowns there may be another
    one, of weights that blow up (Belkin et al. 2019, "Reconciling modern machine-learning practice
    and the classical bias-variance trade-off"): there the search starts at the strongest ridge.

    Args:
        folds: moments of at least two folds that share no sample.
        prior: what the ridge pulls towards, and a shift for the error before.
        tested: how many folds, the first ones, are left out in turn; None: all.
        support: as of ``Ridge``.
    """
    everything = sum_moments(folds)
    held_out_folds = folds[:tested]
    others = [everything - fold for fold in held_out_folds]
    problems = [Ridge(rest.of_x, prior.matrix, support) for rest in others]
    numbers = numbers_of_folds(len(others), prior.matrix.shape[2])
    errors: dict[float, list[float]] = {}

    def held_out(ridge: float) -> float:
        def of_fold(number: int) -> float:
            fitted = problems[number].solver(ridge)(others[number])
            return held_out_folds[number].error(fitted)

        errors[ridge] = list(parallel_map(of_fold, numbers))
        return sum(errors[ridge])

    few = min(rest.count for rest in others) < _MANY_COLUMNS * prior.matrix.shape[2]
    best, error = _walk_downhill(held_out, len(RIDGES) - 1 if few else len(RIDGES) // 2)
    return CrossValidation(
        folds=folds,
        choice=RidgeChoice(best, errors),
        error_before=sum(fold.error(prior) for fold in held_out_folds),
        error_after=error,
        energy=sum(fold.target_energy for fold in held_out_folds),
    )


_Index = Any  # slices, or arrays of indices; NumPy's own type for them is private


def _supports(support: Mask | None) -> Iterator[tuple[_Index, _Index]]:
    """Yield an index of the rows that share a support and its columns; rows without any are out."""
    if support is None:
        yield slice(None), slice(None)
        return
    patterns, members = np.unique(support, axis=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        if pattern.any():
            yield np.ix_(members.reshape(-1) == index, pattern)


def _square(columns: _Index) -> tuple[_Index, _Index]:
    """Return an index of the rows and columns of a matrix that some columns name."""
    if isinstance(columns, slice):
        return columns, columns
    flat = columns.reshape(-1)
    return np.ix_(flat, flat)


def _walk_downhill(error: Callable[[float], float], at: int) -> tuple[float, float]:
    """Return the ridge of least error, and that; among equals the strongest, departing least.

    Args:
        error: of a ridge.
        at: number of the ridge to start from.
    """
    cached = functools.cache(error)
    while True:
        near = [i for i in (at + 1, at, at - 1) if 0 <= i < len(RIDGES)]
        best = min(near, key=lambda i: cached(RIDGES[i]))
        if best == at:
            return RIDGES[at], cached(RIDGES[at])
        at = best


def relative_strength(gram: Array, ridge: float) -> float:
    """Return a strength in the units of (groups, m, m) Gram matrices.

    Args:
        gram: the matrices.
        ridge: relative to their mean diagonal.
    """
    groups, m, _ = gram.shape
    mean_diagonal = float(np.einsum("gii->", gram)) / (groups * m)
    # Without any variance there is nothing to fit but the shift, and any strength gives that.
    return ridge * mean_diagonal if mean_diagonal > 0 else 1.0


def regular_solver(gram: Array, strength: float) -> Callable[[Array], Array]:
    """Return the map R -> R inverse(gram + strength I)."""
    solve = backend().cholesky(gram, strength)
    if solve is not None:
        return solve
    logger.info("a system of %d unknowns has no Cholesky factor: solved by SVD", len(gram))
    inverse = backend().pseudo_inverse(gram + strength * np.eye(len(gram)))
    return lambda right: right @ inverse
