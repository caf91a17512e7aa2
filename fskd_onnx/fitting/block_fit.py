"""Fit one block: of all families and ways to see the error, what held-out folds prefer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.fitting.block_data import BlockData
from fskd_onnx.linalg.moments import Moments, sum_moments
from fskd_onnx.linalg.ridge import Family, Solution, cross_validate, tested_targets
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.epilogue import NO_EPILOGUE, Epilogue

_ITERATIONS = 5
# A repetition that takes off less than this is the last one.
_WORTH_REPEATING = 0.998


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
    adapter: AffineMap
    ridge: float
    error_before: float
    error_after: float

    @property
    def improves(self) -> bool:
        """Whether held-out folds are closer to the teacher with the adapter."""
        return self.error_after < self.error_before


def fit_block(stream: BlockData, families: Sequence[Family], readout: Epilogue) -> BlockFit:
    """Fit every family, refine the best, and say what held-out folds make of it.

    Args:
        stream: the block's columns.
        families: candidates, as maps of the stream's regressors.
        readout: where the error is seen; an empty one sees it at the block's output only.
    """
    n = stream.block_map.shape[1]
    # Targets share all but their own values, so some of them tell which variant is the best one;
    # but where there is only one, all of them are needed anyway.
    all_rows = np.arange(n)
    rows = tested_targets(n) if readout.sum_output is not None else all_rows
    variants = stream.sums(rows)
    plain = min(
        (cross_validate(variants[0], family, rows) for family in families),
        key=lambda solution: solution.error_after,
    )
    family = plain.family
    best = _Candidate(0, variants[0], plain.ridge)
    before, scale = plain.error_before, _scale(plain.energy, variants[0])
    if readout == NO_EPILOGUE:
        best = replace(best, error=plain.error_after)
    else:
        best = _refine(stream, variants, plain, readout, rows)
        unchanged = family.lift(family.unchanged.of_targets(rows))
        before = stream.error(unchanged, readout, rows)
        scale = _scale(variants[0][0].target_energy, variants[0][:1])
    moments = best.moments
    if len(rows) < n:
        folds = stream.towards(best.moments, best.variant, all_rows)
        steps = _repeat(stream, folds, family, best.ridge, readout, all_rows)
        _, moments = next(itertools.islice(steps, best.repeats, None))
    whole = family.regress(sum_moments(moments), known=plain.moments)
    return BlockFit(
        family,
        family.problem(whole).solver(best.ridge)(whole),
        best.ridge,
        before * scale,
        best.error * scale,
    )


def _scale(energy: float, folds: Sequence[Moments]) -> float:
    """Return the factor that makes errors relative, also where the targets do not vary.

    One column per fold has no energy about its own mean, and a dead channel has none at all: the
    squares of the targets stand in, and where they are zero as well, errors stay absolute.
    """
    return 1.0 / (energy or sum(float(fold.square_y.sum()) for fold in folds) or 1.0)


@dataclass(frozen=True)
class _Candidate:
    """One way to fit a block.

    Attributes:
        variant: of the targets.
        moments: that were fitted to in the end.
        ridge: strength.
        repeats: how often to forgive what the activation hides, and fit again.
        error: on folds that the fit has not seen.
    """

    variant: int
    moments: list[Moments]
    ridge: float
    repeats: int = 0
    error: float = np.inf


def _refine(
    stream: BlockData,
    variants: list[list[Moments]],
    plain: Solution,
    readout: Epilogue,
    rows: NDArray[np.intp],
) -> _Candidate:
    """Repeat a fit with what the readout shows, as long as the first fold, left out, agrees.

    The candidates are the fits to each variant of the targets, and what follows from each by
    forgiving what the activation hides.
    """
    family = plain.family
    best = _Candidate(0, variants[0], plain.ridge)
    for variant, folds in enumerate(variants):
        ridge = plain.ridge if variant == 0 else cross_validate(folds, family, rows).ridge
        steps = _repeat(stream, folds, family, ridge, readout, rows)
        for repeats, (fitted, moments) in enumerate(itertools.islice(steps, _ITERATIONS + 1)):
            error = stream.error(family.lift(fitted), readout, rows)
            enough = error > _WORTH_REPEATING * best.error
            if error < best.error:
                best = _Candidate(variant, moments, ridge, repeats, error)
            if enough or not readout.clips:
                break
    return best


def _repeat(
    stream: BlockData,
    folds: list[Moments],
    family: Family,
    ridge: float,
    readout: Epilogue,
    rows: NDArray[np.intp],
) -> Iterator[tuple[AffineMap, list[Moments]]]:
    """Yield fits to all folds but the first, each with the moments that it was fitted to."""
    rest = family.regress(sum_moments(folds[1:]))
    solve = family.problem(rest, rows).solver(ridge)
    moments = folds
    while True:
        fitted = solve(rest)
        yield fitted, moments
        moments = stream.hidden(folds, family.lift(fitted), readout, rows)
        rest = family.regress(sum_moments(moments[1:]), known=rest)
