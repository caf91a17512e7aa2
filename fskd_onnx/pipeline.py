"""The story on one page: load, canonicalize, match, (capture, solve, fuse) per block, verify."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx.clock import Clock
from fskd_onnx.compare import agreement, squared_errors
from fskd_onnx.descent import Descent
from fskd_onnx.errors import MatchError, NoImprovementError
from fskd_onnx.lead import Lead, plan_blocks
from fskd_onnx.match import Matching, match_models
from fskd_onnx.model_io import ModelSource, count_parameters, load_model
from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.passes import export
from fskd_onnx.report import Agreement, FitReport, Seconds
from fskd_onnx.samples import SampleSource
from fskd_onnx.select import select_targets
from fskd_onnx.store import Store
from fskd_onnx.task import NetworkFile, Task, prepare

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """A fitted student and how it came about."""

    model: onnx.ModelProto
    report: FitReport


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
        samples: a few unlabelled samples, see ``fskd_onnx.samples.load_samples``.
        options: see ``FitOptions``.

    Raises:
        NoImprovementError: on held-out samples the fitted student is no closer to the teacher.
        FskdError: a file, the samples or the machine cannot be used.
    """
    options = options or FitOptions()
    clock = Clock()
    task = prepare(teacher, student, samples, options)
    with clock("verify"):
        before = task.before  # first of all: what ONNX Runtime cannot run fails here, by its name
    with _lead(task, options) as lead:
        starts = _starts(task, options, clock, lead)
        outcomes = [_finish(descent, task, clock) for descent in starts]
    if not outcomes:
        raise MatchError(
            f"{task.student.name}: no block is narrower than its teacher's and free to carry other "
            "channels, so there is nothing to select; choose --targets kept"
        )
    best = _choose(outcomes, before)
    report = FitReport(
        teacher=task.teacher.name,
        student=task.student.name,
        output=None,
        options=_jsonable(options),
        providers=task.runtime.providers,
        sample_count=task.count,
        held_out_count=len(task.held_out),
        blocks=best.descent.reports,
        before=before,
        after=best.after,
        parameters_student=count_parameters(task.student.model),
        parameters_fused=count_parameters(best.model),
        seconds=Seconds(
            total=clock.total,
            **{stage: clock.spent(stage) for stage in ("capture", "solve", "fuse", "verify")},
        ),
        versions=_versions(),
    )
    if not _error(best.after) < _error(before):
        raise NoImprovementError(
            f"{task.student.name}: the fit brought it no closer to the teacher on "
            f"{len(task.held_out)} held-out samples (relative error {before.relative_mse:.4g} -> "
            f"{best.after.relative_mse:.4g}), so nothing was written; give more samples",
            report,
        )
    return FitResult(best.model, report)


def match(
    teacher: ModelSource,
    student: ModelSource,
    samples: SampleSource | None = None,
    options: RunOptions | None = None,
) -> Matching:
    """Pair the blocks and channels of a student with its teacher's.

    Args:
        teacher: the original network.
        student: the compressed network.
        samples: with samples, channels that weights leave open are found from activations, which
            means fitting block by block, since an unfitted student's deep activations say nothing.
        options: how to read and run.
    """
    if samples is None:
        return match_models(*(NetworkFile.load(source).graph() for source in (teacher, student)))
    settings = FitOptions(options or RunOptions(), adapter="pointwise")
    task = prepare(teacher, student, samples, settings)
    if all(pair.channels is not None for pair in task.matching.usable):
        return task.matching
    # Whole networks first: what ONNX Runtime cannot run fails here, by its name.
    logger.info("untouched student: relative error %.4g", task.before.relative_mse)
    with _lead(task, settings) as lead:
        descent = Descent(task, settings, Clock(), task.matching, lead)
        descent.run()
    return descent.matching


@dataclass(frozen=True)
class _Outcome:
    """A fitted student, how close it came on held-out samples, and on each of them."""

    descent: Descent
    model: onnx.ModelProto
    after: Agreement
    errors: NDArray[np.float64]


@contextmanager
def _lead(task: Task, options: FitOptions) -> Iterator[Lead]:
    """Set the teacher out; what it left behind goes with the ``with`` block."""
    student, teacher = task.student.graph(), task.teacher.graph()
    outputs = options.adapter == "pointwise"
    plans = plan_blocks(task.matching, student, teacher, outputs, task.options.seed)
    with Store(task.options.memory_limit) as store:
        yield Lead(task.runtime, teacher, plans, task.samples, task.batches, store)


def _starts(task: Task, options: FitOptions, clock: Clock, lead: Lead) -> Iterator[Descent]:
    """Yield the descents to try: towards the channels that were kept, towards channels chosen."""
    if options.targets != "select":
        yield Descent(task, options, clock, task.matching, lead)
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
            task.batches,
        )
    if selection is not None:
        yield Descent(task, options, clock, selection.matching, lead, selection.weights)


def _finish(descent: Descent, task: Task, clock: Clock) -> _Outcome:
    """Fit all blocks; check the fused model, and hold it against the teacher."""
    descent.run()
    with clock("fuse"):
        model = export(descent.student, like=task.student.canonical)
    with clock("verify"):
        load_model(model)
        fused = task.outputs(model, f"fused {task.student.name}")
        errors = squared_errors(task.target, fused)
        return _Outcome(descent, model, agreement(task.target, fused), errors)


def _choose(outcomes: Sequence[_Outcome], before: Agreement) -> _Outcome:
    """Take channels chosen anew, unless the kept ones are closer to the teacher beyond chance.

    Chosen channels were the better start in all that was measured, and a handful of held-out
    samples can say otherwise by accident: so the kept ones have to be closer by more than the
    standard error of the mean difference over held-out samples. What does not bring the student
    closer at all is out either way.
    """
    closer = [outcome for outcome in outcomes if _error(outcome.after) < _error(before)]
    best = (closer or outcomes)[-1]
    for other in closer[:-1]:
        difference = best.errors - other.errors
        chance = (
            difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
        )
        if difference.mean() > chance:
            best = other
    return best


def _error(agreement: Agreement) -> float:
    """Return the error to compare by; what overflows (NaN) is worse than all else."""
    return math.inf if math.isnan(agreement.relative_mse) else agreement.relative_mse


def _jsonable(options: FitOptions) -> dict[str, object]:
    return dataclasses.asdict(options)


def _versions() -> dict[str, str]:
    versions = {"fskd-onnx": importlib.metadata.version("fskd-onnx")}
    for package in ("onnx", "onnxruntime-gpu", "onnxruntime", "onnx-graphsurgeon", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
