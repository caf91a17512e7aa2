"""Moments -> adapter: ridge regression towards the identity, its strength by cross-validation.

With centred moments Gxx and Cyx, the pointwise adapter of the paper (Li et al. 2020, equation 4) with
a ridge and a shift solves, group by group::

    min over Q, c of  ||Q X + c - Y||^2 + ridge ||Q - I||^2
    Q = I + (Cyx - Gxx) (Gxx + ridge I)^-1,    c = mean(Y) - Q mean(X)

The ridge pulls towards the student as it is, not towards zero: ten samples, or a singular Gxx, leave
the directions they say nothing about alone. The shift is never pulled. ``ridge`` is given relative
to the mean diagonal of Gxx, so one grid serves all blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fskd_onnx.moments import Array, Moments

logger = logging.getLogger(__name__)

RIDGES: tuple[float, ...] = tuple(10.0**exponent for exponent in range(-6, 2))


@dataclass(frozen=True)
class Solution:
    """An adapter and what cross-validation says of it.

    Attributes:
        matrix: Q as (groups, n, n).
        shift: c as (groups, n).
        ridge: the chosen strength, relative to the mean diagonal of Gxx.
        error_before: relative error of the block as it is.
        error_after: relative error of adapters that were fitted without the fold they are tested on.
    """

    matrix: Array
    shift: Array
    ridge: float
    error_before: float
    error_after: float

    @property
    def improves(self) -> bool:
        """Whether the adapter brings held-out columns closer to the teacher."""
        return self.error_after < self.error_before


def solve_pointwise(folds: Sequence[Moments], ridges: Sequence[float] = RIDGES) -> Solution:
    """Fit a pointwise adapter; choose its ridge by the error on held-out folds.

    Args:
        folds: moments of each fold, at least two; folds must not share samples.
        ridges: candidates, relative to the mean diagonal of Gxx.
    """
    total = sum(folds[1:], start=folds[0])
    energy = total.target_energy
    scale = 1.0 / energy if energy > 0 else 0.0
    held_out = [
        sum(fold.error(*_ridge_adapter(total - fold, ridge)) for fold in folds) for ridge in ridges
    ]
    # Among equals the strongest ridge: it departs least from the student.
    best = min(range(len(ridges)), key=lambda i: (held_out[i], -ridges[i]))
    n = total.width
    identity = np.broadcast_to(np.eye(n), (total.groups, n, n))
    before = total.error(identity, np.zeros((total.groups, n)))
    matrix, shift = _ridge_adapter(total, ridges[best])
    return Solution(matrix, shift, ridges[best], before * scale, held_out[best] * scale)


def _ridge_adapter(moments: Moments, ridge: float) -> tuple[Array, Array]:
    n = moments.width
    centered = moments.centered
    gram, cross = centered[:, :n, :n], centered[:, n:, :n]
    mean_diagonal = float(np.einsum("gii->", gram)) / (moments.groups * n)
    # Without any variance there is nothing to fit but the shift, and any strength gives that.
    strength = ridge * mean_diagonal if mean_diagonal > 0 else 1.0
    regular = gram + strength * np.eye(n)
    matrix = np.eye(n) + _solve_symmetric(regular, cross - gram)
    shift = moments.mean[:, n:] - np.einsum("gij,gj->gi", matrix, moments.mean[:, :n])
    return matrix, shift


def _solve_symmetric(regular: Array, right: Array) -> Array:
    """Return right @ inverse(regular), for each group."""
    transposed = np.swapaxes(right, 1, 2)
    try:
        solved = np.linalg.solve(regular, transposed)
    except np.linalg.LinAlgError:
        logger.info(
            "a system of %d unknowns was singular: solved by least squares", len(regular[0])
        )
        solved = np.linalg.pinv(regular, hermitian=True) @ transposed
    return np.swapaxes(solved, 1, 2)
