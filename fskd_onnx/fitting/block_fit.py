"""Fit one block: of all families and ways to see the error, what held-out folds prefer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.fitting.adapters import Families
from fskd_onnx.fitting.block_data import BlockData
from fskd_onnx.fitting.family import Family, tested_targets
from fskd_onnx.linalg.moments import CrossMoments, Moments, sum_moments
from fskd_onnx.linalg.ridge import CrossValidation, RidgeChoice, folds_to_test, numbers_of_folds
from fskd_onnx.linalg.threads import parallel_map
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.constants import epsilon
from fskd_onnx.passes.analysis.epilogue import NO_EPILOGUE, Epilogue

Targets = Callable[[], list[CrossMoments]]
"""Gives the cross part of each fold; that of the first may be summed only then."""

# A repetition that takes off less than this is the last one.
_WORTH_REPEATING = 0.998
# Errors of so many distances of the stored type to its next number are rounding, as are differences
# of sums over columns.
_ROUNDING, _OF_SUMS = 4.0, 1e-14
# Standard deviations of the difference of two counts, if each is as likely (McNemar's test).
_BEYOND_CHANCE = 2.0
# A shift that takes a node of its own has to leave less than this part of the error without it.
_WORTH_A_NODE = 0.9


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
        rounding: errors of this size are what the stored type rounds off.
        without: adapters that are fitted to all folds but one, with the same family and targets and
            the ridge that is best for the others, by the fold; empty where they were not asked for.
        ranks_worse: whether the block gives the scores of classes, and the fitted one ranks the
            teacher's class first less often, beyond chance. The least square error of a block that
            cannot be the teacher's, a classifier of low rank, may be worse in that.
    """

    family: Family
    adapter: AffineMap
    ridge: float
    error_before: float
    error_after: float
    rounding: float
    without: Mapping[int, AffineMap] = field(default_factory=dict)
    ranks_worse: bool = False

    @property
    def improves(self) -> bool:
        """Whether held-out folds are closer to the teacher by more than rounding."""
        closer = self.error_before - self.error_after > self.rounding
        return closer and not self.ranks_worse


def fit_block(
    data: BlockData, families: Families, epilogue: Epilogue, without_folds: bool = False
) -> BlockFit:
    """Fit every family, refine the best, and say what held-out folds make of it.

    A shift is part of every fit. Where it takes a node of its own, the fit without a shift is taken
    unless held-out folds are closer to the teacher beyond doubt with one.

    Args:
        data: the block's columns.
        families: candidates.
        epilogue: where the error is seen; an empty one sees it at the block's output only.
        without_folds: whether to fit without each fold as well.
    """
    shifted = _fit_families(data, families, epilogue, without_folds)
    if data.linear.bias_slot is not None or not shifted.improves:
        return shifted
    plain = _fit_families(data.without_shift(), families, epilogue, without_folds)
    # The block as it is has the same error in both; what they are relative to differs.
    same = shifted.error_before / plain.error_before if plain.error_before else 1.0
    error = plain.error_after * same
    if error - shifted.error_after > max(shifted.rounding, (1 - _WORTH_A_NODE) * error):
        return shifted
    return replace(
        plain, error_before=shifted.error_before, error_after=error, rounding=shifted.rounding
    )


def error_of(block: AffineMap, data: BlockData, epilogue: Epilogue) -> float | None:
    """Return the error of any map of the patches, over all folds; None where they are not gathered.

    Args:
        block: the map.
        data: columns of a block of its shape.
        epilogue: where the error is seen.
    """
    fitted = data.regressors.express(block)
    if fitted is None:
        return None
    rows = tested_targets(data.regressors.block_map.shape[1])
    folds, fitted = data.moments(rows), fitted.of_targets(rows)
    if epilogue != NO_EPILOGUE:
        return data.error(fitted, epilogue, rows) * _scale(folds[0].target_energy, folds[:1])
    energy = sum(fold.target_energy for fold in folds)
    return sum(fold.error(fitted) for fold in folds) * _scale(energy, folds)


def _fit_families(
    data: BlockData, families: Families, epilogue: Epilogue, without_folds: bool
) -> BlockFit:
    """Fit every family, refine the best, and say what held-out folds make of it."""
    n = data.regressors.block_map.shape[1]
    # Targets share all but their own values, so some of them tell which variant is the best one;
    # but where there is only one, all of them are needed anyway, and factors are common to all.
    all_rows = np.arange(n)
    together = epilogue.sum_output is None or data.regressors.factors is not None
    rows = all_rows if together else tested_targets(n)
    folds = data.moments(rows)
    candidates = [family.of(data.regressors) for family in families]
    # All families on the same folds, or their errors are not to be compared.
    # Factors are searched for in steps, so that a second held-out fold costs as much as the fit.
    costly = data.regressors.factors is not None
    tested = 1 if costly else folds_to_test(max(c.prior.shape[2] for c in candidates))
    family, plain = min(
        ((candidate, candidate.cross_validate(folds, rows, tested)) for candidate in candidates),
        key=lambda pair: pair[1].error_after,
    )
    if plain.without_first is not None:
        family = family.from_adapter(plain.without_first)
    best = _Candidate(False, _as_given(folds), plain.choice)
    before, scale = plain.error_before, _scale(plain.energy, folds)
    if epilogue == NO_EPILOGUE:
        best = replace(best, error=plain.error_after)
    else:
        best = _refine(data, folds, family, plain, epilogue, rows, tested)
        unchanged = family.as_block_map(family.unchanged.of_targets(rows))
        before = data.error(unchanged, epilogue, rows)
        scale = _scale(folds[0].target_energy, folds[:1])
    targets = best.targets
    if len(rows) < n:
        # The tested targets stood for all, which follow the way that was best for these.
        whole = _join(folds, data.cross_moments(all_rows, best.residual))
        steps = _repeat(data, whole, family, best.choice.ridge, epilogue, all_rows)
        _, targets = next(itertools.islice(steps, best.repeats, None))
    parts = [
        Moments(part.of_x, family.cross_moments(of_y))
        for part, of_y in zip(plain.folds, targets(), strict=True)
    ]
    moments = sum_moments(parts)
    ranks_worse = False
    if data.gives_scores and epilogue == NO_EPILOGUE:
        held_out, _ = next(_repeat(data, folds, family, best.choice.ridge, epilogue, rows))
        lost, gained = data.ranked_first(family.as_block_map(held_out))
        ranks_worse = lost - gained > _BEYOND_CHANCE * math.sqrt(lost + gained)

    def fit_without(number: int) -> tuple[int, AffineMap]:
        rest = moments - parts[number]
        solve = family.solver(rest.of_x, best.choice.without(number))
        return data.fold_numbers[number], solve(rest)

    numbers = numbers_of_folds(len(parts) if without_folds else 0, family.prior.shape[2])
    return BlockFit(
        family,
        family.solver(moments.of_x, best.choice.ridge)(moments),
        best.choice.ridge,
        before * scale,
        best.error * scale,
        max((_ROUNDING * epsilon(data.linear.weight)) ** 2, _OF_SUMS) * _largeness(folds),
        dict(parallel_map(fit_without, numbers)),
        ranks_worse,
    )


def _largeness(folds: Sequence[Moments]) -> float:
    """Return the squares of the targets relative to their energy, 1 where they do not vary."""
    energy = sum(fold.target_energy for fold in folds)
    squares = sum(float(fold.of_y.square_y.sum()) for fold in folds)
    return squares / energy if energy else 1.0


def _scale(energy: float, folds: Sequence[Moments]) -> float:
    """Return the factor that makes errors relative, also where the targets do not vary.

    One column per fold has no energy about its own mean, and a dead channel has none at all: the
    squares of the targets stand in, and where they are zero as well, errors stay absolute.
    """
    return 1.0 / (energy or sum(float(fold.of_y.square_y.sum()) for fold in folds) or 1.0)


@dataclass(frozen=True)
class _Candidate:
    """One way to fit a block.

    Attributes:
        residual: whether the targets are the teacher's sum without the student's shortcut.
        targets: gives the cross part of each fold that was fitted to in the end.
        choice: of the ridge.
        repeats: how often targets were adapted to the activation behind, and fitted again.
        error: on folds that the fit has not seen.
    """

    residual: bool
    targets: Targets
    choice: RidgeChoice
    repeats: int = 0
    error: float = np.inf


def _refine(
    data: BlockData,
    folds: list[Moments],
    family: Family,
    plain: CrossValidation,
    epilogue: Epilogue,
    rows: NDArray[np.intp],
    tested: int | None,
) -> _Candidate:
    """Repeat a fit with what the epilogue shows, as long as the first fold, left out, agrees.

    The candidates are the fits to the teacher's block output and, where the error is seen behind a
    sum, to that without the student's shortcut; and what follows from each by adapting its targets
    to the activation behind.
    """
    best = _Candidate(False, _as_given(folds), plain.choice)
    starts = [(False, folds, plain.choice)]
    if data.residual:
        behind = _join(folds, data.cross_moments(rows, residual=True))
        starts.append((True, behind, family.choose_ridge(behind, rows, tested)))
    for residual, moments, choice in starts:
        steps = _repeat(data, moments, family, choice.ridge, epilogue, rows)
        for repeats, (fitted, targets) in enumerate(
            itertools.islice(steps, family.most_repeats + 1)
        ):
            error = data.error(family.as_block_map(fitted), epilogue, rows)
            enough = error > _WORTH_REPEATING * best.error
            if error < best.error:
                best = _Candidate(residual, targets, choice, repeats, error)
            if enough or not epilogue.clips:
                break
    return best


def _repeat(
    data: BlockData,
    folds: list[Moments],
    family: Family,
    ridge: float,
    epilogue: Epilogue,
    rows: NDArray[np.intp],
) -> Iterator[tuple[AffineMap, Targets]]:
    """Yield fits to all folds but the first, each with the targets that it was fitted to."""
    rest = family.moments(sum_moments(folds[1:]))
    solve = family.solver(rest.of_x, ridge, rows)
    targets = _as_given(folds)
    while True:
        fitted = solve(rest)
        yield fitted, targets
        look = partial(data.relu_aware_moments, family.as_block_map(fitted), epilogue, rows)
        others = look(first_fold=False)
        # No fit here is to the first fold: its targets are of use to what is fitted to all.
        targets = partial(_with_first, look, others)
        rest = Moments(rest.of_x, family.cross_moments(sum_moments(others)))


def _as_given(folds: Sequence[Moments]) -> Targets:
    """Return the targets that moments are of."""
    return lambda: [fold.of_y for fold in folds]


def _with_first(
    look: Callable[..., list[CrossMoments]], others: Sequence[CrossMoments]
) -> list[CrossMoments]:
    """Return targets of all folds, the first of which was not looked at yet."""
    return [*look(first_fold=True), *others]


def _join(folds: Sequence[Moments], targets: Sequence[CrossMoments]) -> list[Moments]:
    """Return the moments of the same columns with other targets."""
    return [Moments(fold.of_x, of_y) for fold, of_y in zip(folds, targets, strict=True)]
