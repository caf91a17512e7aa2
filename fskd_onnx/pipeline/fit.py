"""The story on one page: load, canonicalize, match, (capture, solve, fuse) per block, verify."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging

from fskd_onnx.errors import MatchError, NoImprovementError
from fskd_onnx.options import FitOptions
from fskd_onnx.pipeline.problem import prepare
from fskd_onnx.pipeline.trials import choose, error_of, fits, try_out
from fskd_onnx.results import FitReport, FitResult, StageSeconds
from fskd_onnx.samples.sources import SampleSource
from fskd_onnx.serialization.model_files import ModelSource, count_parameters
from fskd_onnx.timing import StageTimer

logger = logging.getLogger(__name__)


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
        FskdError: a file, the samples or the machine cannot be used.
    """
    options = options or FitOptions()
    clock = StageTimer()
    task = prepare(teacher, student, samples, options)
    with clock("verify"):
        before = task.before  # first of all: what ONNX Runtime cannot run fails here, by its name
    candidates = try_out(task, options, clock)
    if not candidates:
        raise MatchError(
            f"{task.student.name}: no block is narrower than its teacher's and free to carry other "
            "channels, so there is nothing to select; choose --targets kept"
        )
    best = choose(candidates, before)
    closer = error_of(best.after) < error_of(before)
    fitted = best.last
    if closer and task.final is not task.trials[-1]:
        chosen = dataclasses.replace(options, targets=fitted.targets)
        fitted = next(fits(task, task.final, chosen, clock))
    report = FitReport(
        teacher=task.teacher.name,
        student=task.student.name,
        output=None,
        options=_jsonable(options),
        providers=task.runtime.providers,
        sample_count=task.count,
        held_out_count=max(len(trial.held_out) for trial in task.trials),
        blocks=fitted.blocks,
        before=before,
        after=best.after,
        parameters_student=count_parameters(task.student.model),
        parameters_fused=count_parameters(fitted.model),
        seconds=StageSeconds(
            total=clock.total,
            **{stage: clock.spent(stage) for stage in ("capture", "solve", "fuse", "verify")},
        ),
        versions=_versions(),
    )
    if not closer:
        raise NoImprovementError(
            f"{task.student.name}: the fit brought it no closer to the teacher on "
            f"{len(task.held_out)} held-out samples (relative error {before.relative_mse:.4g} -> "
            f"{best.after.relative_mse:.4g}), so nothing was written; give more samples",
            report,
        )
    return FitResult(fitted.model, report)


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
