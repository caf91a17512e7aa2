"""Fits from every start, judged on samples that they have not seen.

Where several trials hold out the folds in turn, one descent gives the student of each trial beside
the one that is fitted to all (``fitting.coordinate_descent``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import scipy.special
from numpy.typing import NDArray

from fskd_onnx.fitting.adapters import families_of, need_patches
from fskd_onnx.fitting.block_plan import plan_blocks
from fskd_onnx.fitting.channel_spaces import teacher_kernels
from fskd_onnx.fitting.coordinate_descent import CoordinateDescent, Descent
from fskd_onnx.fitting.corrected_student import CorrectedStudent
from fskd_onnx.fitting.input_grams import InputGrams
from fskd_onnx.fitting.target_selection import TargetSelection
from fskd_onnx.fitting.teacher_pass import TeacherPass
from fskd_onnx.options import FitOptions, OptimizerName, TargetsName
from fskd_onnx.pipeline.adapter_steps import AdapterSteps
from fskd_onnx.pipeline.fitted_student import FittedStudent
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.splits import SampleSplit
from fskd_onnx.pipeline.starts import Start, starts_of
from fskd_onnx.pipeline.verdict import judge
from fskd_onnx.pipeline.weight_growth import Sizes, sizes_of
from fskd_onnx.progress import share, with_prefix
from fskd_onnx.results import (
    Agreement,
    OutputErrors,
    SampleError,
    Verdict,
)
from fskd_onnx.runtime.forward import Outputs
from fskd_onnx.serialization.model_check import checked
from fskd_onnx.serialization.model_files import count_parameters
from fskd_onnx.timing import StageTimer


@dataclass(frozen=True)
class Candidate:
    """One way to fit, judged on samples that its fits have not seen.

    Attributes:
        fitted: to all samples that may be fitted to; ``FittedStudent.of_trial`` gives what is
            judged.
        after: how close these came to the teacher, each on its own held-out samples.
        errors: on each independent one of these samples that gives the verdict.
        verdict: how certain it is that they came closer than the untouched student.
        sizes: of the weights of the fits of several trials, see ``weight_growth``.
        worst: of these samples, those on which its fits err most.
        outputs: the error of each output on these samples, where there are several.
        is_strict: whether what is judged comes from the descent of the fit that is given out, and
            errs more than fits of their own.
    """

    fitted: FittedStudent
    after: Agreement
    errors: NDArray[np.float64]
    verdict: Verdict
    sizes: tuple[Sizes, ...]
    worst: tuple[SampleError, ...] = ()
    outputs: tuple[OutputErrors, ...] = ()
    is_strict: bool = False


# That a start is better than the likeliest one.
_CONFIDENCE = 0.95
# Weights of the students of all folds that may lie in memory beside each other, in bytes.
_MOST_BYTES = 2**31


def try_out(problem: FitProblem, options: FitOptions, timer: StageTimer) -> list[Candidate]:
    """Fit from every start, and hold what comes out against the teacher."""
    trials = len(problem.splits.trials)
    fit_in_memory = 4 * count_parameters(problem.student.model) * trials <= _MOST_BYTES
    by_descent = trials > 1 and fit_in_memory
    found = fits(problem, problem.splits.final, options, timer, without_folds=by_descent)
    if trials > 1 and not by_descent:
        return [judged_by_own_fits(problem, fitted, options, timer) for fitted in found]
    is_strict = by_descent and options.optimizer == OptimizerName.BCD
    return [replace(_judged(problem, fitted, timer), is_strict=is_strict) for fitted in found]


def judged_by_own_fits(
    problem: FitProblem, fitted: FittedStudent, options: FitOptions, timer: StageTimer
) -> Candidate:
    """Judge a fit by a fit of its own to the samples of each trial, one after another.

    That takes a fit per trial. The students that one descent gives beside the one that is given out
    err more than that, the more blocks follow each other; and all of them are in memory.
    """
    trials = problem.splits.trials

    def own(number: int) -> FittedStudent:
        text = f"trial {number + 1} of {len(trials)}, "
        with with_prefix(text), share(number / len(trials), (number + 1) / len(trials)):
            return next(fits(problem, trials[number], options, timer, starts=[fitted.start]))

    without = tuple(partial(own, number) for number in range(len(trials)))
    return _judged(problem, replace(fitted, without=without), timer)


def _judged(problem: FitProblem, fitted: FittedStudent, timer: StageTimer) -> Candidate:
    """Hold the students of a fit that have not seen some samples against the teacher there."""
    trials = problem.splits.trials
    outputs: list[Outputs] = []
    sizes: list[Sizes] = []
    for number, trial in enumerate(trials):
        with timer("verify"):
            model, name = fitted.of_trial(number).model, f"fused {problem.student.name}"
            outputs.append(problem.outputs(model, name, trial.held_out))
        if len(trials) > 1:  # else the fit that is judged is the one that is given out
            sizes.append(sizes_of(model))
    together = [np.concatenate(out)[problem.judged] for out in zip(*outputs, strict=True)]
    errors = problem.by_group(problem.sample_errors(together))
    return Candidate(
        fitted,
        problem.agreement(together),
        errors,
        judge(problem.errors_before, errors, problem.output_size),
        tuple(sizes),
        problem.worst_samples(together),
        problem.output_errors(together),
    )


def _is_closer(errors: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Whether errors are less than others beyond chance, by a t test of their differences.

    Both in their sum, which a few samples may rule, and in their logarithms, in which all count the
    same.
    """
    n = len(errors)
    if n < 2:
        return False
    least = np.finfo(np.float64).tiny
    logarithms = (np.log(np.maximum(values, least)) for values in (others, errors))
    quantile = float(scipy.special.stdtrit(n - 1, _CONFIDENCE))
    differences = (np.subtract(others, errors), np.subtract(*logarithms))
    return all(d.mean() > quantile * d.std(ddof=1) / np.sqrt(n) for d in differences)


def fits(
    problem: FitProblem,
    split: SampleSplit,
    options: FitOptions,
    timer: StageTimer,
    without_folds: bool = False,
    starts: Sequence[Start] | None = None,
) -> Iterator[FittedStudent]:
    """Yield a student from each start that there is, fitted to the samples of a split.

    Args:
        problem: what the fits start from.
        split: the samples.
        options: how to fit.
        timer: counts the time of each stage.
        without_folds: whether to fit without each fold as well.
        starts: those to fit from; None: all that the options leave open.
    """
    folds = sorted({batch.fold for batch in split.batches}) if without_folds else []
    starts = starts_of(problem, options) if starts is None else starts
    descents = _descents(problem, split, options, timer, starts, folds)
    for number, (start, descent) in enumerate(descents):
        with share(number / len(starts), (number + 1) / len(starts)):
            found = descent.run()
        student = partial(_exported, problem, start, found, timer)
        without = tuple(partial(student, found.without[fold]) for fold in folds)
        fitted = student(found.student)
        with timer("verify"):  # those without a fold have the same nodes
            checked(fitted.model, f"fused {problem.student.name}")
        yield replace(fitted, without=without)


def _exported(
    problem: FitProblem,
    start: Start,
    found: Descent,
    timer: StageTimer,
    corrected: CorrectedStudent,
) -> FittedStudent:
    """Return one of the students of a descent as a model."""
    with timer("fuse"):
        model = problem.student.export(corrected.graph, corrected.decomposed.factors)
        student = FittedStudent(start, model, found.blocks, found.parameters)
        return student.with_model(model, problem.student.given)


def teacher_pass(
    problem: FitProblem,
    split: SampleSplit,
    options: FitOptions,
    grams: InputGrams | None = None,
) -> TeacherPass:
    """Return the teacher's columns for all blocks that can be fitted.

    Args:
        problem: what the fit starts from.
        split: the samples.
        options: how to fit.
        grams: what to sum on the way of tensors that blocks read.
    """
    student, teacher = problem.student.graph(), problem.teacher.graph()
    patches = need_patches(families_of(options.adapter))
    plans = plan_blocks(problem.matching, student, teacher, patches, problem.options.seed)
    return TeacherPass(problem.runtime, teacher, plans, problem.samples, split.batches, grams)


def _selection(problem: FitProblem) -> TargetSelection:
    """Return what chooses channels; it refers to all weights, so it is not to be kept for long."""
    return TargetSelection(problem.student.graph(), problem.teacher.graph(), problem.matching)


def _descents(
    problem: FitProblem,
    split: SampleSplit,
    options: FitOptions,
    timer: StageTimer,
    starts: Sequence[Start],
    folds: Collection[int],
) -> Iterator[tuple[Start, CoordinateDescent | AdapterSteps]]:
    """Yield what fits from each start; none towards chosen channels where there is no choice."""
    if options.optimizer == OptimizerName.SGD:
        yield from ((start, AdapterSteps(problem, split, timer, folds)) for start in starts)
        return
    kept = [start for start in starts if start.targets == TargetsName.KEPT]
    selecting = [start for start in starts if start.targets == TargetsName.SELECT]
    grams: InputGrams | None = None
    if selecting:
        with timer("solve"):
            grams = InputGrams(_selection(problem).readers, split.batches)
    teacher = teacher_pass(problem, split, options, grams)
    decomposed = problem.student.factored_blocks()
    descent = partial(
        CoordinateDescent,
        problem.student.graph,
        teacher=teacher,
        solver=options.solver,
        timer=timer,
        match_again=problem.match_again,
        decomposed=decomposed,
        folds=folds,
    )
    if kept:
        kernels = teacher_kernels(
            problem.student.graph(), problem.teacher.graph(), problem.matching, decomposed
        )
        for start in kept:
            yield start, descent(problem.matching, families=start.families, kernels=kernels)
    if grams is None or not grams.requests:
        return
    with timer("capture"):
        teacher.sum_grams()
    with timer("solve"):
        chosen = _selection(problem).choose(grams.centered())
    if chosen is not None:
        for start in selecting:
            yield start, descent(chosen.matching, families=start.families, weights=chosen.weights)


def choose(candidates: Sequence[Candidate], before: Agreement) -> Candidate:
    """Take the fit from the last start, unless another is closer to the teacher beyond chance.

    That of chosen channels and of all factors was the better one in nearly all that was measured,
    and a handful of held-out samples can say otherwise by accident. What does not bring the student
    closer beyond doubt is out either way.
    """
    closer = [
        candidate
        for candidate in candidates
        if error_of(candidate.after) < error_of(before) and candidate.verdict.stands
    ]
    best = (closer or candidates)[-1]
    for other in closer[:-1]:
        if _is_closer(other.errors, best.errors):
            best = other
    return best


def error_of(agreement: Agreement) -> float:
    """Return the error to compare by; what overflows (NaN) is worse than all else."""
    return math.inf if math.isnan(agreement.relative_mse) else agreement.relative_mse
