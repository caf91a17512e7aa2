"""Gradient steps from the fits that were judged, judged by the same samples.

In each trial the steps see what the fit has seen, and the student is looked at on the way. Which
state is taken is decided by held-out samples, and a state is not judged by samples that it was
chosen by: those are divided into parts, and each part judges the state that the others choose::

    errors of all states      part 1   part 2   part 3
    chosen by                   2, 3     1, 3     1, 2
    judged by                      1        2        3

The closed form stays unless its error is greater by more than chance.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx.options import FitOptions
from fskd_onnx.pipeline.fitted_student import FittedStudent
from fskd_onnx.pipeline.gradient_setup import block_targets, output_targets, steps_towards
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.splits import SampleSplit
from fskd_onnx.pipeline.trials import Candidate
from fskd_onnx.pipeline.verdict import judge
from fskd_onnx.progress import with_prefix
from fskd_onnx.results import RefineReport
from fskd_onnx.runtime.forward import Outputs
from fskd_onnx.serialization.model_check import checked
from fskd_onnx.timing import StageTimer

if TYPE_CHECKING:
    from fskd_onnx.gradient.gradient_steps import GradientSteps

logger = logging.getLogger(__name__)

_PARTS = 5  # of the held-out samples
# Of a step, as a part of the size of a tensor. Twice and half of it are about as good.
_LENGTH = 0.02


@dataclass(frozen=True)
class Refinement:
    """What gradient steps came to.

    Attributes:
        closed: the fits that they start from.
        judged: the same with the steps, judged; None where these are not kept.
        fitted: of the last trial, with the steps; None where they are not kept.
        report: what is told of them.
    """

    closed: Candidate
    judged: Candidate | None
    fitted: FittedStudent | None
    report: RefineReport


def refine(
    problem: FitProblem, best: Candidate, options: FitOptions, timer: StageTimer
) -> Refinement:
    """Make gradient steps from the fit of each trial, and judge them.

    Args:
        problem: what the fits started from.
        best: the candidate to go on from.
        options: how many steps.
        timer: counts the time of each stage.

    Raises:
        FskdError: a network cannot be run, or the machine has not enough memory.
    """
    trials = problem.splits.trials
    outputs: dict[int, list[Outputs]] = {}
    models: dict[int, onnx.ModelProto] = {}
    for number, trial in enumerate(trials, 1):
        fitted = best.fitted.of_trial(number - 1)
        text = f"trial {number} of {len(trials)}, " if len(trials) > 1 else ""
        with with_prefix(text), timer("refine"):
            for point in gradient_steps(problem, trial, fitted, options).points(options.refine):
                with timer("verify"):
                    name = f"refined {problem.student.name}"
                    found = problem.outputs(checked(point.model, name), name, trial.held_out)
                outputs.setdefault(point.steps, []).append(found)
                models[point.steps] = point.model
    whole = {
        steps: [np.concatenate(part)[problem.judged] for part in zip(*parts, strict=True)]
        for steps, parts in outputs.items()
        if len(parts) == len(trials)
    }
    before = best.after.relative_mse
    if not whole:
        reason = "no step led from finite values to finite weights"
        report = RefineReport(options.refine, 0, before, None, False, reason)
        return Refinement(best, None, None, report)
    errors = {
        steps: problem.by_group(problem.sample_errors(values)) for steps, values in whole.items()
    }
    chosen, judged_by = _choose(errors)
    crossed = np.array([errors[steps][group] for group, steps in enumerate(judged_by)])
    states = np.array(judged_by)[problem.group_numbers]
    together = [
        np.stack([whole[steps][output][row] for row, steps in enumerate(states.tolist())])
        for output in range(len(problem.target))
    ]
    after = problem.agreement(together)
    judged = replace(
        best,
        after=after,
        errors=crossed,
        verdict=judge(problem.errors_before, crossed, problem.output_size),
        worst=problem.worst_samples(together),
        outputs=problem.output_errors(together),
    )
    reason = _why_not(best, judged)
    logger.info("gradient steps: %.4g -> %.4g", before, after.relative_mse)
    taken = 0 if reason else chosen
    report = RefineReport(options.refine, taken, before, after.relative_mse, not reason, reason)
    if reason:
        return Refinement(best, None, None, report)
    last = best.fitted.with_model(models[chosen], problem.student.given)
    return Refinement(best, judged, last, report)


def refined(
    problem: FitProblem, fitted: FittedStudent, options: FitOptions, steps: int, timer: StageTimer
) -> FittedStudent | None:
    """Return a fit to all samples with as many gradient steps as were best in the trials.

    Returns:
        The student; None where its weights leave the range of the numbers that store them.
    """
    with timer("refine"):
        made = gradient_steps(problem, problem.splits.final, fitted, options)
        for point in made.points(options.refine, steps):
            if point.steps == steps:
                name = f"refined {problem.student.name}"
                return fitted.with_model(checked(point.model, name), problem.student.given)
    return None


def gradient_steps(
    problem: FitProblem, split: SampleSplit, fitted: FittedStudent, options: FitOptions
) -> GradientSteps:
    """Return the steps that start from a fit to the samples of a split."""
    from fskd_onnx.gradient.trainable import TrainableWeights

    student = problem.student
    made = {name for node in fitted.model.graph.node for name in node.output}
    aims = {block.student: (block.teacher, block.channels) for block in fitted.blocks}
    targets = [
        *output_targets(problem),
        *(target for target in block_targets(problem, aims) if target.student in made),
    ]
    usable = {pair.student for pair in problem.matching.usable}
    usable |= {name for name, into in student.parts.items() if into in usable}
    trained = TrainableWeights(fitted.model, usable, student.parts)
    return steps_towards(problem, split, fitted.model, trained, targets, _LENGTH)


def _choose(errors: dict[int, NDArray[np.float64]]) -> tuple[int, list[int]]:
    """Choose the state to take, and those that judge it.

    Args:
        errors: (groups,) of each state, by its steps.

    Returns:
        The steps of the best state, and for each group those of the best one by the other parts.
    """

    def best(groups: NDArray[np.bool_]) -> int:
        sums = {steps: float(found[groups].sum()) for steps, found in errors.items()}
        return min(sums, key=lambda steps: sums[steps] if np.isfinite(sums[steps]) else np.inf)

    count = len(next(iter(errors.values())))
    part = np.arange(count) % _PARTS
    everything = np.ones(count, bool)
    by_part = [best(part != number) if count > 1 else best(everything) for number in range(_PARTS)]
    return best(everything), [by_part[number] for number in part.tolist()]


def _why_not(before: Candidate, after: Candidate) -> str:
    """Return why gradient steps are not kept; "" where they are."""
    gains = before.errors - after.errors
    mean, count = float(gains.mean()), len(gains)
    chance = float(gains.std(ddof=1)) / np.sqrt(count) if count > 1 else 0.0
    if not mean > 0:
        return "the error on held-out samples is no less than that of the closed form"
    if not mean > chance:
        return "the error on held-out samples is less by no more than chance"
    if before.verdict.stands and not after.verdict.stands:
        return "held-out samples are not certain of the gain over the student as it was given"
    return ""
