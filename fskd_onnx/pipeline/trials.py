"""Fits from every start, judged on samples that they have not seen.

With many samples one fit per start is made, on nine tenths of them, and judged on the rest. A few
would leave too few to judge on, so there every fold is held out in turn: the verdict then hears
every sample, at the price of a fit per fold, and the student that is given out is fitted to all::

    many samples   [ fit                                   | judge ]
    few samples    [ judge | fit           ]   [ fit | judge | fit ]   ...   [ fit to all ]
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx.fitting.coordinate_descent import CoordinateDescent
from fskd_onnx.fitting.target_selection import select_targets
from fskd_onnx.fitting.teacher_pass import TeacherPass, plan_blocks
from fskd_onnx.options import FitOptions
from fskd_onnx.passes import export
from fskd_onnx.pipeline.problem import FitProblem, SampleSplit
from fskd_onnx.progress import within
from fskd_onnx.reporting.agreement import agreement, squared_errors
from fskd_onnx.results import Agreement, BlockReport
from fskd_onnx.runtime.forward import Outputs
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.serialization.model_files import load_model
from fskd_onnx.timing import StageTimer


@dataclass(frozen=True)
class FittedStudent:
    """A student fitted to the samples of one split.

    Attributes:
        targets: "kept" or "select", where it set out from.
        model: the fused student.
        blocks: what became of each.
    """

    targets: str
    model: onnx.ModelProto
    blocks: tuple[BlockReport, ...]


@dataclass(frozen=True)
class Candidate:
    """One way to fit, judged on samples that its fits have not seen.

    Attributes:
        last: of its fits.
        after: how close they came to the teacher, each on its own held-out samples.
        errors: on each of these samples.
    """

    last: FittedStudent
    after: Agreement
    errors: NDArray[np.float64]


def try_out(task: FitProblem, options: FitOptions, clock: StageTimer) -> list[Candidate]:
    """Fit from every start in every trial, and hold what comes out against the teacher."""
    last: dict[str, FittedStudent] = {}
    outputs: defaultdict[str, list[Outputs]] = defaultdict(list)
    for number, trial in enumerate(task.trials, 1):
        text = f"trial {number} of {len(task.trials)}, " if len(task.trials) > 1 else ""
        with within(text):
            for fitted in fits(task, trial, options, clock):
                last[fitted.targets] = fitted
                with clock("verify"):
                    name = f"fused {task.student.name}"
                    found = task.outputs(fitted.model, name, trial.held_out)
                    outputs[fitted.targets].append(found)
    candidates = []
    for targets, parts in outputs.items():
        together = [np.concatenate(output) for output in zip(*parts, strict=True)]
        candidates.append(
            Candidate(
                last[targets],
                agreement(task.target, together),
                squared_errors(task.target, together),
            )
        )
    return candidates


def fits(
    task: FitProblem, split: SampleSplit, options: FitOptions, clock: StageTimer
) -> Iterator[FittedStudent]:
    """Yield a student from each start, fitted to the samples of a split."""
    with teacher_pass(task, split, options) as lead:
        for targets, descent in _starts(task, split, options, clock, lead):
            descent.run()
            with clock("fuse"):
                model = export(descent.student, like=task.student.canonical)
            with clock("verify"):
                load_model(model)
            yield FittedStudent(targets, model, descent.reports)


@contextmanager
def teacher_pass(
    task: FitProblem, split: SampleSplit, options: FitOptions
) -> Iterator[TeacherPass]:
    """Set the teacher out; what it left behind goes with the ``with`` block."""
    student, teacher = task.student.graph(), task.teacher.graph()
    outputs = options.adapter == "pointwise"
    plans = plan_blocks(task.matching, student, teacher, outputs, task.options.seed)
    with TensorStore(task.options.memory_limit) as store:
        yield TeacherPass(task.runtime, teacher, plans, task.samples, split.batches, store)


def _starts(
    task: FitProblem, split: SampleSplit, options: FitOptions, clock: StageTimer, lead: TeacherPass
) -> Iterator[tuple[str, CoordinateDescent]]:
    """Yield the descents to try: towards the channels that were kept, towards channels chosen."""
    if options.targets != "select":
        yield "kept", CoordinateDescent(task, options, clock, task.matching, lead)
    # Pointwise adapters cannot make up for channels that a block's own weights never read.
    if options.targets == "kept" or (options.targets == "auto" and options.adapter == "pointwise"):
        return
    with clock("select"):
        selection = select_targets(
            task.student.graph(),
            task.teacher.graph(),
            task.matching,
            task.runtime,
            task.samples,
            split.batches,
        )
    if selection is not None:
        yield (
            "select",
            CoordinateDescent(task, options, clock, selection.matching, lead, selection.weights),
        )


def choose(candidates: Sequence[Candidate], before: Agreement) -> Candidate:
    """Take channels chosen anew, unless the kept ones are closer to the teacher beyond chance.

    Chosen channels were the better start in all that was measured, and a handful of held-out
    samples can say otherwise by accident: so the kept ones have to be closer by more than the
    standard error of the mean difference over held-out samples. What does not bring the student
    closer at all is out either way.
    """
    closer = [candidate for candidate in candidates if error_of(candidate.after) < error_of(before)]
    best = (closer or candidates)[-1]
    for other in closer[:-1]:
        difference = best.errors - other.errors
        chance = (
            difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
        )
        if difference.mean() > chance:
            best = other
    return best


def error_of(agreement: Agreement) -> float:
    """Return the error to compare by; what overflows (NaN) is worse than all else."""
    return math.inf if math.isnan(agreement.relative_mse) else agreement.relative_mse
