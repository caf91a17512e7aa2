"""Fit one block: of all families and ways to see the error, what held-out folds prefer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from fskd_onnx.moments import Affine, Moments, total
from fskd_onnx.readout import Readout
from fskd_onnx.solve import Family, Solution, cross_validate
from fskd_onnx.stream import BlockStream

_ITERATIONS = 5

# Smaller systems lose more by being handed round among threads than they gain.
_WORTH_THREADS = 1500


@dataclass(frozen=True)
class BlockFit:
    """The outcome for one block.

    Errors are relative to the energy of the teacher's block output, on folds that the tested fit
    has not seen; where that does not vary, to its square.

    Attributes:
        family: of adapters.
        adapter: map of the family's regressors.
        ridge: relative to the mean diagonal of the regressors' Gram matrix.
        error_before: of the block as it is.
        error_after: of the fitted block.
    """

    family: Family
    adapter: Affine
    ridge: float
    error_before: float
    error_after: float

    @property
    def improves(self) -> bool:
        """Whether held-out folds are closer to the teacher with the adapter."""
        return self.error_after < self.error_before


def fit_block(stream: BlockStream, families: Sequence[Family], readout: Readout) -> BlockFit:
    """Fit every family, refine the best, and say what held-out folds make of it.

    Args:
        stream: the block's columns.
        families: candidates, as maps of the captured regressors.
        readout: where the error is seen; an empty one sees it at the block's output only.
    """
    variants = stream.sums()
    few = variants[0][0].gram.shape[1] < _WORTH_THREADS
    with threadpool_limits(1 if few else None):
        return _fit(stream, variants, families, readout)


def _fit(
    stream: BlockStream,
    variants: list[list[Moments]],
    families: Sequence[Family],
    readout: Readout,
) -> BlockFit:
    plain = min(
        (cross_validate(variants[0], family) for family in families),
        key=lambda solution: solution.error_after,
    )
    if readout == Readout():
        scale = _scale(plain.energy, variants[0])
        return BlockFit(
            plain.family,
            plain.adapter,
            plain.ridge,
            plain.error_before * scale,
            plain.error_after * scale,
        )
    return _refine(stream, variants, plain, readout)


def _scale(energy: float, folds: Sequence[Moments]) -> float:
    """Return the factor that makes errors relative, also where the targets do not vary.

    One column per fold has no energy about its own mean, and a dead channel has none at all: the
    squares of the targets stand in, and where they are zero as well, errors stay absolute.
    """
    return 1.0 / (energy or sum(float(fold.square_y.sum()) for fold in folds) or 1.0)


def _refine(
    stream: BlockStream,
    variants: list[list[Moments]],
    plain: Solution,
    readout: Readout,
) -> BlockFit:
    """Repeat the fit with what the readout shows, as long as the first fold, left out, agrees.

    The candidates are the fits to each variant of the targets, and what follows from each by
    forgiving what the activation hides; the winner is fitted again to all folds.
    """
    family = plain.family

    def see(fitted: Affine) -> tuple[list[Moments], float]:
        moments, errors = stream.activated(variants[-1], fitted, readout.low, readout.high)
        return moments, errors[0]

    best_error, best_moments, best_ridge = np.inf, variants[0], plain.ridge
    for folds in variants:
        ridge = plain.ridge if folds is variants[0] else cross_validate(folds, family).ridge
        system = family.ridge(family.regress(total(folds[1:])), ridge)
        moments = folds
        for _ in range(_ITERATIONS + 1):
            fitted = system.fit(family.regress(total(moments[1:])))
            next_moments, error = see(family.lift(fitted))
            if error >= best_error:
                break
            best_error, best_moments, best_ridge = error, moments, ridge
            if not readout.clips:
                break
            moments = next_moments
    everything = family.regress(total(best_moments))
    scale = _scale(variants[0][0].target_energy, variants[0][:1])
    return BlockFit(
        family,
        family.ridge(everything, best_ridge).fit(everything),
        best_ridge,
        see(family.block)[1] * scale,
        best_error * scale,
    )
