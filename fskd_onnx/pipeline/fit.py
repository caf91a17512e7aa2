"""The story of ``fit``: prepare, (capture, solve, fuse) per block, verify, choose, report.

::

    load ─▶ canonicalize ─▶ split ─▶ pair ─▶ match            problem_setup.prepare
    ─▶ fit from every start, also without each fold if samples are few ─▶ verify  trials.try_out
    ─▶ choose ─▶ report
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping

import numpy as np

from fskd_onnx.errors import MatchError, NoImprovementError
from fskd_onnx.linalg.threads import threads_for
from fskd_onnx.matching.pairing import Partner
from fskd_onnx.option_checks import given as given_options
from fskd_onnx.options import FitOptions
from fskd_onnx.passes.restore_parameters import restore_parameters
from fskd_onnx.pipeline.fitted_student import FittedStudent
from fskd_onnx.pipeline.gradient_setup import check_torch, check_trainable
from fskd_onnx.pipeline.guidance import advise, is_large, why_no_gain
from fskd_onnx.pipeline.networks import Networks
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.problem_setup import load_inputs, prepare
from fskd_onnx.pipeline.refinement import Refinement, refine, refined
from fskd_onnx.pipeline.sample_need import SampleNeed, sample_need
from fskd_onnx.pipeline.trials import (
    Candidate,
    choose,
    error_of,
    judged_by_own_fits,
    try_out,
)
from fskd_onnx.pipeline.weight_growth import sizes_of, steadiest
from fskd_onnx.progress import share
from fskd_onnx.reporting.agreement import finite_rows
from fskd_onnx.results import FitReport, FitResult, RefineReport
from fskd_onnx.runtime.out_of_memory import with_enough_memory
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.sources import SampleSource
from fskd_onnx.serialization.model_check import checked
from fskd_onnx.serialization.model_files import ModelSource, check_sources, count_parameters
from fskd_onnx.timing import StageTimer
from fskd_onnx.versions import versions_used

logger = logging.getLogger(__name__)

# What gradient steps take of the work, roughly, where some are asked for.
_STEPS = 0.5
# An error that is so many times that of the untouched student is more than strictness.
_HOPELESS = 2.0
# A fit errs less on samples that it was fitted to than others do that have not seen them. Measured
# on 488 fits of small random networks to 6-60 samples: one errs more than this many times as much,
# 8.6, and is worse than the student on fresh samples, where what is given out instead has a third
# of its error. The next one errs 1.15 times as much.
_LIKE = 1.5


@threads_for()
def fit(
    teacher: ModelSource,
    student: ModelSource,
    samples: SampleSource,
    options: FitOptions | None = None,
) -> FitResult:
    """Bring a student close to its teacher, block by block, with adapters that cost nothing.

    Block coordinate descent of FSKD (Li et al. 2020, algorithm 1): blocks are fitted in topological
    order, each on the student as corrected so far.

    Args:
        teacher: the original network.
        student: the compressed network.
        samples: a few unlabelled samples, see ``fskd_onnx.samples.sources.load_samples``.
        options: see ``FitOptions``.

    Raises:
        NoImprovementError: on held-out samples the fitted student is no closer to the teacher.
        ModelError: no output of the teacher is finite, or none of the student that the fit does not
            bring back.
        FskdError: a file, the samples or the machine cannot be used.
    """
    check_sources(teacher, student)
    chosen = given_options(options, "options", FitOptions)
    if chosen.needs_torch:
        check_torch()
    inputs = load_inputs(teacher, student, samples, chosen.run)
    timer = StageTimer()
    return fit_networks(*inputs, chosen, timer)


def fit_networks(
    networks: Networks,
    samples: Samples,
    options: FitOptions,
    timer: StageTimer,
    given: Mapping[str, Partner] | None = None,
) -> FitResult:
    """Fit one network to another, see `fit`.

    Args:
        networks: teacher and student.
        samples: for both.
        options: how to fit.
        timer: counts the time of each stage.
        given: pairs that are known, by the name of the student's node.
    """
    if options.needs_torch:
        check_trainable(*networks)
    return with_enough_memory(
        lambda: _fit(networks, samples, options, timer, given), options.run.batch_size
    )


def _fit(
    networks: Networks,
    samples: Samples,
    options: FitOptions,
    timer: StageTimer,
    given: Mapping[str, Partner] | None,
) -> FitResult:
    """Fit with as many samples at once as fit into memory."""
    with TensorStore(options.run.memory_limit) as store:
        problem = prepare(networks, samples, options, store, given)
        with timer("verify"):
            _ = problem.before  # what ONNX Runtime cannot run fails here, by its name
        closed_form = 1 - _STEPS if options.refine else 1.0
        with share(0.0, closed_form):
            closed = _closed_form(problem, options, timer)
        outcome = _Outcome(closed.fitted, closed)
        with share(closed_form, 1.0):
            if options.refine:
                steps = refine(problem, closed, options, timer)
                outcome = _with_steps(problem, steps, options, timer)
            elif not _refusal(problem, closed, options):
                outcome = _Outcome(final_fit(problem, closed, timer), closed)
        refusal = _refusal(problem, outcome.judged, options)
        need = None if refusal or options.refine else _sample_need(problem, outcome, timer)
        outcome = _with_parameters_as_given(problem, outcome, timer)
    report = _report(problem, outcome, options, timer, need)
    if refusal:
        problem.check_student()
        raise NoImprovementError(refusal, report)
    return FitResult(outcome.fitted.model, report)


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What a fit comes to.

    Attributes:
        fitted: the student to give out.
        judged: the fits that stand for it before held-out samples.
        refinement: what gradient steps came to; None where none were asked for.
    """

    fitted: FittedStudent
    judged: Candidate
    refinement: RefineReport | None = None


def _closed_form(problem: FitProblem, options: FitOptions, timer: StageTimer) -> Candidate:
    """Return the best of the fits from each start, judged; there has to be one."""
    candidates = try_out(problem, options, timer)
    if not candidates:
        raise MatchError(
            f"{problem.student.name}: no block is narrower than its teacher's and free to carry "
            "other channels, so there is nothing to select; choose --targets kept"
        )
    best = choose(candidates, problem.before)
    # A refusal takes judges that are not strict, which take a fit each.
    open_ones = [
        candidate
        for candidate in candidates
        if candidate.is_strict and error_of(candidate.after) < _HOPELESS * error_of(problem.before)
    ]
    if not open_ones or not _refusal(problem, best, options):
        return best
    again = [judged_by_own_fits(problem, each.fitted, options, timer) for each in open_ones]
    return choose(again, problem.before)


def _refusal(problem: FitProblem, best: Candidate, options: FitOptions) -> str:
    """Return why a fit is not given out; "" where it is closer to the teacher beyond doubt."""
    verdict = best.verdict
    samples = f"{len(problem.held_out)} held-out samples"
    if verdict.independent_count < len(problem.held_out):
        samples += f" of {verdict.independent_count} independent groups"
    counts = problem.count, len(problem.groups)
    errors = f"relative error {problem.before.relative_mse:.4g} -> {best.after.relative_mse:.4g}"
    closer = error_of(best.after) < error_of(problem.before)
    if closer and verdict.stands:
        return ""
    remedy = why_no_gain(
        best.fitted.blocks, problem.before, problem.target, counts, options, closer=closer
    )
    if not closer:
        return (
            f"{problem.student.name}: the fit brought it no closer to the teacher on {samples} "
            f"({errors}), so nothing was written; {remedy}"
        )
    low, high = verdict.interval
    return (
        f"{problem.student.name}: {samples} do not tell whether the fit brought it closer to the "
        f"teacher ({errors}; the error of one is multiplied by {verdict.error_ratio:.3g}, 90% "
        f"interval {low:.3g} to {high:.3g}; {verdict.doubt}), so nothing was written; {remedy}"
    )


def final_fit(problem: FitProblem, best: Candidate, timer: StageTimer) -> FittedStudent:
    """Return the fit to give out: the best one, to all samples where these are few.

    No sample is left to judge that one, so it has to be like the judged ones; else one of these
    stays.
    """
    trials = len(problem.splits.trials)
    if trials == 1:
        return best.fitted
    instead = steadiest(sizes_of(best.fitted.model), best.sizes)
    if instead is not None:
        logger.info("the weights of a fit to all samples blow up: a trial's fit is given out")
    elif _is_like(problem, best.fitted, best, timer):
        return best.fitted
    else:
        logger.info("a fit to all samples errs more on them: a trial's fit is given out")
        errors = [_error(problem, best.fitted.of_trial(n), timer) for n in range(trials)]
        instead = int(np.argmin(errors))
    judged = best.fitted.of_trial(instead)
    with timer("verify"):
        checked(judged.model, f"fused {problem.student.name}")
    return judged


def _is_like(
    problem: FitProblem, fitted: FittedStudent, judged: Candidate, timer: StageTimer
) -> bool:
    """Whether a fit errs on samples that it has seen as little as those that have not seen them."""
    return _error(problem, fitted, timer) <= _LIKE * error_of(judged.after)


def _error(problem: FitProblem, fitted: FittedStudent, timer: StageTimer) -> float:
    """Return the error of a student on the samples of the verdict; infinite where it overflows."""
    with timer("verify"):
        name = f"fused {problem.student.name}"
        outputs = problem.outputs(fitted.model, name, problem.held_out[problem.judged])
    if not all(finite_rows(values).all() for values in outputs):
        return math.inf
    return error_of(problem.agreement(outputs))


def _with_parameters_as_given(
    problem: FitProblem, outcome: _Outcome, timer: StageTimer
) -> _Outcome:
    """Let the student compute the parameters that no fit has changed, as it came."""
    with timer("fuse"):
        model = restore_parameters(outcome.fitted.model, problem.student.given)
    if model is outcome.fitted.model:
        return outcome
    with timer("verify"):
        checked(model, f"fused {problem.student.name}")
    return dataclasses.replace(outcome, fitted=dataclasses.replace(outcome.fitted, model=model))


def _sample_need(problem: FitProblem, outcome: _Outcome, timer: StageTimer) -> SampleNeed | None:
    """Return what more samples would do to a fit whose error is large, where its errors tell."""
    judged = outcome.judged
    if not is_large(judged.after):
        return None
    with timer("verify"):
        return sample_need(problem, outcome.fitted.model, judged.errors, judged.after.relative_mse)


def _with_steps(
    problem: FitProblem, steps: Refinement, options: FitOptions, timer: StageTimer
) -> _Outcome:
    """Return what a fit comes to with gradient steps, where these are kept, else without."""
    report, closed = steps.report, steps.closed
    judged = steps.judged or closed
    if _refusal(problem, judged, options):
        return _Outcome(closed.fitted, judged, report)
    if steps.fitted is not None and problem.splits.final is problem.splits.trials[-1]:
        return _Outcome(steps.fitted, judged, report)
    fitted = final_fit(problem, closed, timer)
    if steps.judged is None:
        return _Outcome(fitted, closed, report)
    last = refined(problem, fitted, options, report.steps_taken, timer)
    if last is not None and _is_like(problem, last, judged, timer):
        return _Outcome(last, judged, report)
    reason = "a fit to all samples with them errs more on these than fits to some of them"
    report = dataclasses.replace(report, kept=False, steps_taken=0, reason=reason)
    return _Outcome(fitted, closed, report)


def _report(
    problem: FitProblem,
    outcome: _Outcome,
    options: FitOptions,
    timer: StageTimer,
    need: SampleNeed | None,
) -> FitReport:
    """Return all that is told of a fit."""
    fitted, best = outcome.fitted, outcome.judged
    counts = problem.count, len(problem.groups)
    return FitReport(
        teacher=problem.teacher.name,
        student=problem.student.name,
        output=None,
        options=dataclasses.asdict(options),
        providers=problem.runtime.providers,
        sample_count=problem.count,
        independent_count=len(problem.groups),
        held_out_count=max(len(trial.held_out) for trial in problem.splits.trials),
        blocks=fitted.blocks,
        before=problem.before,
        after=best.after,
        verdict=best.verdict,
        parameters_student=count_parameters(problem.student.model),
        parameters_fused=count_parameters(fitted.model),
        seconds=timer.report(),
        versions=versions_used(),
        samples_left_out=problem.samples_left_out,
        outputs_left_out=problem.outputs_left_out,
        worst_samples=best.worst,
        outputs=best.outputs,
        advice=advise(fitted.blocks, best.after, counts, options, need),
        refine=outcome.refinement,
    )
