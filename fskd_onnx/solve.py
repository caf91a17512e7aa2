"""Moments -> adapter: ridge regression towards the student as it is, chosen by cross-validation.

Both families of adapters are one problem, on different regressors x and with different priors A::

    min over B, c of  ||B X + c - Y||^2 + ridge ||B - A||^2
    B = A + (Cyx - A Gxx) (Gxx + ridge I)^-1,    c = mean(Y) - B mean(X)      (centred moments)

    pointwise   x = block output W p + b   A = I   fused: W' = B W, b' = B b + c
    kernel      x = input patch p          A = W   fused: W' = B,   b' = c

The pointwise family is the paper's (Li et al. 2020, equation 4), with a shift and a ridge.

The kernel family contains the pointwise one, and also makes up for *inputs* that the block has
lost.

The ridge pulls towards the student as it is, not towards zero: ten samples, or a singular Gxx,
leave the directions they say nothing about alone. The shift is never pulled. Strengths are relative
to the mean diagonal of Gxx, so that one grid serves all blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from fskd_onnx.moments import Affine, Array, Moments, total

logger = logging.getLogger(__name__)

RIDGES: tuple[float, ...] = tuple(10.0**exponent for exponent in range(-6, 2))

# A system of this many unknowns is factorized in milliseconds. Costlier ones are tested on fewer
# folds: the held-out error of two folds already orders the ridges.
_CHEAP = 640
_FOLDS_IF_COSTLY = 2


@dataclass(frozen=True)
class Family:
    """A family of adapters, as regressors and a prior.

    Attributes:
        name: "pointwise" or "kernel".
        block: the block as it is, as a map of the captured regressors.
        on_outputs: whether the family acts on the block's outputs while patches are captured.
    """

    name: str
    block: Affine
    on_outputs: bool

    @property
    def unchanged(self) -> Affine:
        """The map of the family's regressors that leaves the block as it is."""
        if not self.on_outputs:
            return self.block
        return Affine(self.prior, np.zeros_like(self.block.shift))

    @property
    def prior(self) -> Array:
        """What the ridge pulls towards."""
        if self.on_outputs:
            groups, n, _ = self.block.matrix.shape
            return np.broadcast_to(np.eye(n), (groups, n, n))
        return self.block.matrix

    def regress(self, moments: Moments) -> Moments:
        """Return moments of the family's regressors, from those of the captured ones."""
        return moments.of_outputs(self.block) if self.on_outputs else moments

    def lift(self, adapter: Affine) -> Affine:
        """Express a fitted adapter as a map of the captured regressors."""
        if not self.on_outputs:
            return adapter
        shift = np.einsum("gij,gj->gi", adapter.matrix, self.block.shift) + adapter.shift
        return Affine(adapter.matrix @ self.block.matrix, shift)


@dataclass(frozen=True)
class Solution:
    """An adapter and what cross-validation says of it.

    Attributes:
        family: that it belongs to.
        adapter: map of the family's regressors, fitted on all folds.
        ridge: the chosen strength, relative to the mean diagonal of Gxx.
        error_before: ||student - teacher||^2 of the block as it is.
        error_after: the same of adapters fitted without the fold that they are tested on.
        energy: ||teacher - mean||^2 over the same folds.
    """

    family: Family
    adapter: Affine
    ridge: float
    error_before: float
    error_after: float
    energy: float


def cross_validate(folds: Sequence[Moments], family: Family) -> Solution:
    """Fit an adapter; choose its ridge by the error on held-out folds.

    The error has one minimum along the ridge in all that was measured, so the search starts in the
    middle and walks downhill.

    Args:
        folds: moments of the captured regressors, at least two folds that share no sample.
        family: of adapters.
    """
    parts = [family.regress(fold) for fold in folds]
    everything = total(parts)
    tested = parts if everything.gram.shape[1] <= _CHEAP else parts[:_FOLDS_IF_COSTLY]
    errors: dict[float, float] = {}

    def held_out(ridge: float) -> float:
        if ridge not in errors:
            errors[ridge] = sum(
                part.error(Ridge(everything - part, family.prior, ridge).fit(everything - part))
                for part in tested
            )
        return errors[ridge]

    best = _walk_downhill(held_out)
    return Solution(
        family=family,
        adapter=Ridge(everything, family.prior, best).fit(everything),
        ridge=best,
        error_before=sum(part.error(family.unchanged) for part in tested),
        error_after=errors[best],
        energy=sum(part.target_energy for part in tested),
    )


class Ridge:
    """The problem of the module's docstring with its regressors and strength, factorized once."""

    def __init__(self, moments: Moments, prior: Array, ridge: float) -> None:
        """Factorize.

        Args:
            moments: whose regressors to use.
            prior: (groups, n, m), what the ridge pulls towards.
            ridge: strength relative to the mean diagonal of the Gram matrix.
        """
        self._prior = prior
        self._gram = moments.centered_gram
        groups, m, _ = self._gram.shape
        mean_diagonal = float(np.einsum("gii->", self._gram)) / (groups * m)
        # Without any variance there is nothing to fit but the shift, and any strength gives that.
        strength = ridge * mean_diagonal if mean_diagonal > 0 else 1.0
        self._factors = [_factorize(gram, strength) for gram in self._gram]

    def fit(self, moments: Moments) -> Affine:
        """Solve for the targets of some moments, over the same columns as the regressors."""
        right = moments.centered_cross - self._prior @ self._gram
        steps = [solve(part) for solve, part in zip(self._factors, right, strict=True)]
        matrix = self._prior + np.stack(steps)
        shift = moments.mean_y - np.einsum("gij,gj->gi", matrix, moments.mean_x)
        return Affine(matrix, shift)


def _walk_downhill(error: Callable[[float], float]) -> float:
    """Return the ridge of least error; among equals the strongest, which departs least."""
    at = len(RIDGES) // 2
    while True:
        near = [i for i in (at + 1, at, at - 1) if 0 <= i < len(RIDGES)]
        best = min(near, key=lambda i: error(RIDGES[i]))
        if best == at:
            return RIDGES[at]
        at = best


def _factorize(gram: Array, strength: float) -> Callable[[Array], Array]:
    """Return the map R -> R inverse(gram + strength I)."""
    regular = gram.copy()
    regular.flat[:: len(regular) + 1] += strength
    try:
        factor = scipy.linalg.cho_factor(regular, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        logger.info("a system of %d unknowns has no Cholesky factor: solved by SVD", len(regular))
        inverse = np.linalg.pinv(regular, hermitian=True)
        return lambda right: right @ inverse
    return lambda right: scipy.linalg.cho_solve(factor, right.T, check_finite=False).T
