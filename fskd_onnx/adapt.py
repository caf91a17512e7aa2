"""Fit one block: of all families and ways to see the error, what held-out folds prefer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fskd_onnx.moments import Affine, Moments, total
from fskd_onnx.readout import PLAIN, Readout
from fskd_onnx.solve import Family, Solution, cross_validate, tested_targets
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
        families: candidates, as maps of the stream's regressors.
        readout: where the error is seen; an empty one sees it at the block's output only.
    """
    few = stream.block_map.shape[2] < _WORTH_THREADS
    with threadpool_limits(1 if few else None):
        variants = stream.sums()
        plain = min(
            (cross_validate(variants[0], family) for family in families),
            key=lambda solution: solution.error_after,
        )
        if readout != PLAIN:
            return _refine(stream, variants, plain, readout)
    scale = _scale(plain.energy, variants[0])
    return BlockFit(
        plain.family,
        plain.adapter,
        plain.ridge,
        plain.error_before * scale,
        plain.error_after * scale,
    )


def _scale(energy: float, folds: Sequence[Moments]) -> float:
    """Return the factor that makes errors relative, also where the targets do not vary.

    One column per fold has no energy about its own mean, and a dead channel has none at all: the
    squares of the targets stand in, and where they are zero as well, errors stay absolute.
    """
    return 1.0 / (energy or sum(float(fold.square_y.sum()) for fold in folds) or 1.0)


@dataclass(frozen=True)
class _Refinement:
    """One way to repeat a fit with what the readout shows.

    Attributes:
        folds: moments towards one variant of the targets.
        ridge: strength.
        repeats: how often to forgive what the activation hides, and fit again.
        error: on the first fold, which the fit has not seen, over the tested targets.
    """

    folds: list[Moments]
    ridge: float
    repeats: int = 0
    error: float = np.inf


def _refine(
    stream: BlockStream,
    variants: list[list[Moments]],
    plain: Solution,
    readout: Readout,
) -> BlockFit:
    """Repeat the fit with what the readout shows, as long as the first fold, left out, agrees.

    The candidates are the fits to each variant of the targets, and what follows from each by
    forgiving what the activation hides. Targets share all but their own values, so some of them
    tell which candidate is best; the winner is fitted again to all folds and targets.
    """
    family = plain.family
    rows = tested_targets(family)
    best = _Refinement(variants[0], plain.ridge)
    for folds in variants:
        ridge = plain.ridge if folds is variants[0] else cross_validate(folds, family).ridge
        steps = _repeat(
            stream, [fold.of_targets(rows) for fold in folds], family, ridge, readout, rows
        )
        for repeats, (fitted, _) in zip(range(_ITERATIONS + 1), steps):
            error = stream.error(family.lift(fitted), readout, rows)
            if error >= best.error:
                break
            best = _Refinement(folds, ridge, repeats, error)
            if not readout.clips:
                break
    everything = np.arange(family.prior.shape[1])
    steps = _repeat(stream, best.folds, family, best.ridge, readout, everything)
    _, moments = next(itertools.islice(steps, best.repeats, None))
    whole = family.regress(total(moments))
    tested = variants[0][0].of_targets(rows)
    scale = _scale(tested.target_energy, [tested])
    unchanged = family.lift(family.unchanged.of_targets(rows))
    return BlockFit(
        family,
        family.ridge(whole, best.ridge).fit(whole),
        best.ridge,
        stream.error(unchanged, readout, rows) * scale,
        best.error * scale,
    )


def _repeat(
    stream: BlockStream,
    folds: list[Moments],
    family: Family,
    ridge: float,
    readout: Readout,
    rows: NDArray[np.intp],
) -> Iterator[tuple[Affine, list[Moments]]]:
    """Yield fits to all folds but the first, each with the moments that it was fitted to."""
    rest = family.regress(total(folds[1:]))
    system = family.ridge(rest, ridge, rows)
    moments = folds
    while True:
        fitted = system.fit(rest)
        yield fitted, moments
        moments = stream.hidden(folds, family.lift(fitted), readout, rows)
        rest = family.regress(total(moments[1:]), known=rest)
