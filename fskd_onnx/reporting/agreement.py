"""Agreement of all outputs of two models: relative error, top-1 classes, single samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.errors import ModelError
from fskd_onnx.linalg.output_scales import Scales, Weights, weights_of
from fskd_onnx.reporting.output_agreement import are_scores
from fskd_onnx.results import Agreement, SampleError
from fskd_onnx.runtime.forward import Outputs

# A fitted student may overflow; then its error is NaN or infinite, which is worse than any other.
_OVERFLOWS = np.errstate(invalid="ignore", over="ignore")

_WORST = 8


def finite_rows(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return for which samples an output, (samples, ...), is finite; text and integers are."""
    if not np.issubdtype(values.dtype, np.inexact):
        return np.ones(len(values), bool)
    finite: NDArray[np.bool_] = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    return finite


@_OVERFLOWS
def agreement(
    teacher: Outputs,
    student: Outputs,
    *,
    weights: Weights | None = None,
    names: Sequence[str] | None = None,
) -> Agreement:
    """Return how close a student's outputs are to the teacher's.

    The error is the mean of those of all outputs, each on its own scale, see
    ``fskd_onnx.linalg.output_scales``. The top-1 class is taken from the first output that is a row
    of scores per sample.

    Args:
        teacher: each of the teacher's outputs, (samples, ...).
        student: the student's, in the same order.
        weights: see `weights_of`; None: those of outputs of one part and one row each.
        names: of the outputs in the teacher; some say that they hold no scores.

    Raises:
        ModelError: the outputs differ in their shapes.
    """
    for index, (t, s) in enumerate(zip(teacher, student, strict=True)):
        if t.shape != s.shape:
            raise ModelError(
                f"output {index + 1} of the student has the shape {s.shape[1:]} per sample and "
                f"that of the teacher {t.shape[1:]}; give a student whose outputs are the teacher's"
            )
    relative = float(np.mean(sample_errors(teacher, student, weights)))
    top1, place = None, scores_at(teacher, names)
    if place is not None:
        one, other = (flat(outputs[place]) for outputs in (teacher, student))
        top1 = float(np.mean(one.argmax(1) == other.argmax(1)))
    return Agreement(relative, top1)


@_OVERFLOWS
def sample_errors(
    teacher: Outputs, student: Outputs, weights: Weights | None = None
) -> NDArray[np.float64]:
    """Return the relative error of each sample, (samples,); their mean is that of `agreement`.

    Args:
        teacher: each of the teacher's outputs, (samples, ...).
        student: the student's, of the same shapes.
        weights: as of `agreement`.
    """
    errors = np.zeros(len(teacher[0]))
    if weights is None:
        weights = weights_of([Scales.of(output) for output in teacher], len(errors))
    for t, s, weight in zip(teacher, student, weights, strict=True):
        difference = s.astype(np.float64) - t.astype(np.float64)
        errors += difference.reshape(len(t), -1) ** 2 @ weight
    return errors


def worst_samples(
    errors: NDArray[np.float64],
    name: Callable[[int], str],
    before: NDArray[np.float64] | None = None,
) -> tuple[SampleError, ...]:
    """Return the samples with the greatest errors, the worst first; none without an error.

    Args:
        errors: (samples,) see `sample_errors`; NaN is worse than all else.
        name: what to call a sample.
        before: the same before a fit.
    """
    ranked = np.where(np.isnan(errors), np.inf, errors)
    worst = np.argsort(-ranked, kind="stable")[:_WORST].tolist()
    return tuple(
        SampleError(name(at), float(errors[at]), None if before is None else float(before[at]))
        for at in worst
        if ranked[at] > 0
    )


def flat(output: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return an output, (samples, ...), as (samples, numbers)."""
    return output.reshape(len(output), -1)


def scores_at(outputs: Outputs, names: Sequence[str] | None = None) -> int | None:
    """Return the place of the first output that is a row of scores per sample; None without one.

    Args:
        outputs: of the teacher, each (samples, ...).
        names: of these.
    """
    named = zip(outputs, names or [""] * len(outputs), strict=True)
    return next((at for at, (out, name) in enumerate(named) if are_scores(out, name)), None)


def right(output: NDArray[np.generic], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for which samples the class of the label is ranked first, (samples,).

    Args:
        output: scores, (samples, ...).
        labels: (samples,) classes.
    """
    found: NDArray[np.bool_] = flat(output).argmax(1) == labels
    return found
