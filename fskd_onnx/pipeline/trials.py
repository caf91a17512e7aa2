"""Fits from every start, judged on samples that they have not seen."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from fskd_onnx.fitting.adapters import families_of, need_patches
from fskd_onnx.fitting.block_plan import plan_blocks
from fskd_onnx.fitting.channel_spaces import teacher_kernels
from fskd_onnx.fitting.coordinate_descent import CoordinateDescent
from fskd_onnx.fitting.target_selection import select_targets
from fskd_onnx.fitting.teacher_pass import TeacherPass
from fskd_onnx.options import FitOptions, OptimizerName, TargetsName
from fskd_onnx.pipeline.adapter_steps import AdapterSteps
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.splits import SampleSplit
from fskd_onnx.pipeline.verdict import judge
from fskd_onnx.pipeline.weight_growth import Sizes, sizes_of, stored_tensors
from fskd_onnx.progress import share, with_prefix
from fskd_onnx.reporting.agreement import squared_errors
from fskd_onnx.results import (
    Agreement,
    BlockReport,
    BlockStatus,
    OutputErrors,
    SampleError,
    Verdict,
)
from fskd_onnx.runtime.forward import Outputs
from fskd_onnx.serialization.model_check import checked
from fskd_onnx.timing import StageTimer


@dataclass(frozen=True)
class FittedStudent:
    """A student fitted to the samples of one split.

    Attributes:
        targets: "kept" or "select", where it set out from.
        model: the fused student.
        blocks: what became of each.
        parameters: names of the constants that each of these nodes reads, by its name.
    """

    targets: str
    model: onnx.ModelProto
    blocks: tuple[BlockReport, ...]
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def with_model(self, model: onnx.ModelProto, given: onnx.ModelProto) -> FittedStudent:
        """Return the student with other weights, and blocks that say which bytes stayed.

        Args:
            model: with the other weights.
            given: the student as it came.
        """
        return replace(self, model=model, blocks=_with_true_status(self, model, given))


@dataclass(frozen=True)
class Candidate:
    """One way to fit, judged on samples that its fits have not seen.

    Attributes:
        last: of its fits.
        after: how close they came to the teacher, each on its own held-out samples.
        errors: on each independent one of these samples that gives the verdict.
        verdict: how certain it is that they came closer than the untouched student.
        sizes: of the weights of its fits, one for each trial, see ``weight_growth``.
        worst: of these samples, those on which its fits err most.
        outputs: the error of each output on these samples, where there are several.
        fits: one for each trial, where gradient steps go on from them; else none.
    """

    last: FittedStudent
    after: Agreement
    errors: NDArray[np.float64]
    verdict: Verdict
    sizes: tuple[Sizes, ...]
    worst: tuple[SampleError, ...] = ()
    outputs: tuple[OutputErrors, ...] = ()
    fits: tuple[FittedStudent, ...] = ()


# After so many trials, a start that another one is ahead of is not tried further.
_TRIALS_THAT_TELL = 2


def try_out(problem: FitProblem, options: FitOptions, timer: StageTimer) -> list[Candidate]:
    """Fit from every start, and hold what comes out against the teacher.

    In every trial, but for a start that the first trials leave behind: what is judged in the end
    has held out each sample once either way.
    """
    trials = problem.splits.trials
    last: dict[str, FittedStudent] = {}
    made: defaultdict[str, list[FittedStudent]] = defaultdict(list)
    outputs: defaultdict[str, list[Outputs]] = defaultdict(list)
    sizes: defaultdict[str, list[Sizes]] = defaultdict(list)
    for number, trial in enumerate(trials, 1):
        text = f"trial {number} of {len(trials)}, " if len(trials) > 1 else ""
        with with_prefix(text), share((number - 1) / len(trials), number / len(trials)):
            for fitted in fits(problem, trial, options, timer):
                last[fitted.targets] = fitted
                if options.refine:
                    made[fitted.targets].append(fitted)
                if len(trials) > 1:  # else the fit that is judged is the one that is given out
                    sizes[fitted.targets].append(sizes_of(fitted.model))
                with timer("verify"):
                    name = f"fused {problem.student.name}"
                    found = problem.outputs(fitted.model, name, trial.held_out)
                    outputs[fitted.targets].append(found)
        if number == _TRIALS_THAT_TELL < len(trials) and len(outputs) > 1:
            ahead = _ahead({name: _errors(problem, parts) for name, parts in outputs.items()})
            if ahead is not None:
                options = replace(options, targets=ahead)
                outputs = defaultdict(list, {ahead: outputs[ahead]})
    candidates = []
    for targets, parts in outputs.items():
        together = [np.concatenate(out)[problem.judged] for out in zip(*parts, strict=True)]
        errors = problem.by_group(squared_errors(problem.target, together))
        candidates.append(
            Candidate(
                last[targets],
                problem.agreement(together),
                errors,
                judge(problem.errors_before, errors, problem.output_size),
                tuple(sizes[targets]),
                problem.worst_samples(together),
                problem.output_errors(together),
                tuple(made[targets]),
            )
        )
    return candidates


def _errors(problem: FitProblem, parts: Sequence[Outputs]) -> NDArray[np.float64]:
    """Return the errors on the judged samples of the first trials, whose outputs are given."""
    judged = problem.judged[: sum(len(part[0]) for part in parts)]
    together = [np.concatenate(out)[judged] for out in zip(*parts, strict=True)]
    return squared_errors([out[: judged.sum()] for out in problem.target], together)


def _ahead(errors: Mapping[str, NDArray[np.float64]]) -> str | None:
    """Return the start that the others would hardly be preferred to; None where that is open.

    Args:
        errors: of each start, two or more, on the same samples, in the order of `choose`.
    """
    *others, last = errors
    for name in others:
        if _is_closer(errors[name], errors[last]):
            return name
    return last if all(errors[last].mean() <= errors[name].mean() for name in others) else None


def _is_closer(errors: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Whether errors are less than others by more than the standard error of their difference."""
    if len(errors) < 2:
        return False
    difference = others - errors
    return bool(difference.mean() > difference.std(ddof=1) / np.sqrt(len(difference)))


def fits(
    problem: FitProblem, split: SampleSplit, options: FitOptions, timer: StageTimer
) -> Iterator[FittedStudent]:
    """Yield a student from each start, fitted to the samples of a split."""
    starts = 2 if options.targets == TargetsName.AUTO else 1  # at most
    for number, (targets, descent) in enumerate(_starts(problem, split, options, timer)):
        with share(number / starts, (number + 1) / starts):
            fitted = descent.run()
        with timer("fuse"):
            model = problem.student.export(fitted.student, fitted.factors)
        with timer("verify"):
            checked(model, f"fused {problem.student.name}")
        student = FittedStudent(targets, model, fitted.blocks, fitted.parameters)
        yield student.with_model(model, problem.student.model)


def _with_true_status(
    fitted: FittedStudent, model: onnx.ModelProto, student: onnx.ModelProto
) -> tuple[BlockReport, ...]:
    """Say of blocks that are not fitted whether their bytes are those of the student's file."""
    new, old = stored_tensors(model), stored_tensors(student)

    def same(name: str) -> bool:
        one, other = new.get(name), old.get(name)
        if one is None or other is None or one == other:
            return one is other or one == other
        if uses_external_data(one) or uses_external_data(other) or one.data_type != other.data_type:
            return False
        arrays = numpy_helper.to_array(one), numpy_helper.to_array(other)
        return arrays[0].tobytes() == arrays[1].tobytes()

    return tuple(
        replace(block, status=BlockStatus.REPLACED)
        if block.status == BlockStatus.KEPT
        and not all(map(same, fitted.parameters.get(block.student, ())))
        else block
        for block in fitted.blocks
    )


def teacher_pass(problem: FitProblem, split: SampleSplit, options: FitOptions) -> TeacherPass:
    """Return the teacher's columns for all blocks that can be fitted."""
    student, teacher = problem.student.graph(), problem.teacher.graph()
    patches = need_patches(families_of(options.adapter))
    plans = plan_blocks(problem.matching, student, teacher, patches, problem.options.seed)
    return TeacherPass(problem.runtime, teacher, plans, problem.samples, split.batches)


def _starts(
    problem: FitProblem,
    split: SampleSplit,
    options: FitOptions,
    timer: StageTimer,
) -> Iterator[tuple[str, CoordinateDescent | AdapterSteps]]:
    """Yield the fits to try: to the channels that were kept, and to channels chosen anew."""
    if options.optimizer == OptimizerName.SGD:
        yield TargetsName.KEPT.value, AdapterSteps(problem, split, timer)
        return
    teacher = teacher_pass(problem, split, options)
    decomposed = problem.student.factored_blocks()
    if options.targets != TargetsName.SELECT:
        student = problem.student.graph()
        descent = CoordinateDescent(
            student,
            problem.matching,
            teacher,
            options,
            timer,
            problem.match_again,
            decomposed=decomposed,
            kernels=teacher_kernels(student, problem.teacher.graph(), problem.matching, decomposed),
        )
        yield TargetsName.KEPT.value, descent
    able = any(family.can_change_targets for family in families_of(options.adapter))
    if options.targets == TargetsName.KEPT or (options.targets == TargetsName.AUTO and not able):
        return
    selection = select_targets(
        problem.student.graph(),
        problem.teacher.graph(),
        problem.matching,
        problem.runtime,
        problem.samples,
        split.batches,
        timer,
    )
    if selection is not None:
        descent = CoordinateDescent(
            problem.student.graph(),
            selection.matching,
            teacher,
            options,
            timer,
            problem.match_again,
            selection.weights,
            decomposed,
        )
        yield TargetsName.SELECT.value, descent


def choose(candidates: Sequence[Candidate], before: Agreement) -> Candidate:
    """Take channels chosen anew, unless the kept ones are closer to the teacher beyond chance.

    Chosen channels were the better start in all that was measured, and a handful of held-out
    samples can say otherwise by accident: so the kept ones have to be closer by more than the
    standard error of the mean difference over independent samples. What does not bring the student
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
