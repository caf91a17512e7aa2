"""Agreement of the outputs of two models: relative error, top-1 classes, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.errors import ModelError
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
    teacher: Outputs, student: Outputs, *, rows: Sequence[int] | None = None
) -> Agreement:
    """Return how close a student's outputs are to the teacher's.

    The error is ||student - teacher||^2 / ||teacher - mean||^2 over all outputs, the mean being
    the teacher's mean output. Where the teacher does not vary, as over a single sample, it is
    relative to ||teacher||^2, and where that is zero as well, absolute. The top-1 class is taken
    from the first output that is a row of scores per sample.

    Args:
        teacher: each of the teacher's outputs, (samples, ...).
        student: the student's, in the same order.
        rows: of each output, how many rows belong to a sample, see
            ``fskd_onnx.runtime.sample_axis``. The mean is that of all rows then.

    Raises:
        ModelError: the outputs differ in their shapes.
    """
    error = 0.0
    for index, (t, s) in enumerate(zip(teacher, student, strict=True)):
        if t.shape != s.shape:
            raise ModelError(
                f"output {index + 1} of the student has the shape {s.shape[1:]} per sample and "
                f"that of the teacher {t.shape[1:]}; give a student whose outputs are the teacher's"
            )
        error += float(np.sum((s.astype(np.float64) - t.astype(np.float64)) ** 2))
    relative = error / _spread(teacher, rows)
    classes = [scores(outputs) for outputs in (teacher, student)]
    top1 = None
    if classes[0] is not None and classes[1] is not None:
        top1 = float(np.mean(classes[0].argmax(1) == classes[1].argmax(1)))
    return Agreement(relative, top1)


@_OVERFLOWS
def sample_errors(
    teacher: Outputs, student: Outputs, *, rows: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Return the relative error of each sample, (samples,); their mean is that of `agreement`.

    Args:
        teacher: each of the teacher's outputs, (samples, ...).
        student: the student's, of the same shapes.
        rows: as of `agreement`.
    """
    return squared_errors(teacher, student) * (len(teacher[0]) / _spread(teacher, rows))


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


def _spread(teacher: Outputs, rows: Sequence[int] | None) -> float:
    """Return what errors are relative to, over all outputs; see `agreement`."""
    energy = size = 0.0
    for output, count in zip(teacher, rows or [1] * len(teacher), strict=True):
        exact = output.astype(np.float64)
        over = (0, 1) if count > 1 else 0
        energy += float(np.sum((exact - exact.mean(axis=over)) ** 2))
        size += float(np.sum(exact**2))
    return energy or size or 1.0


@_OVERFLOWS
def squared_errors(teacher: Outputs, student: Outputs) -> NDArray[np.float64]:
    """Return ||student - teacher||^2 over all outputs, (samples,)."""
    errors = np.zeros(len(teacher[0]))
    for t, s in zip(teacher, student, strict=True):
        difference = s.astype(np.float64) - t.astype(np.float64)
        errors += np.sum(difference.reshape(len(t), -1) ** 2, axis=1)
    return errors


def scores(outputs: Sequence[NDArray[np.generic]]) -> NDArray[np.generic] | None:
    """Return the first output that is a row of scores per sample, (samples, classes), or None."""
    flat = [
        out.reshape(len(out), -1) for out in outputs if max(out.shape[1:], default=1) == out[0].size
    ]
    return next((out for out in flat if out.shape[1] > 1), None)


def accuracy(outputs: Outputs, labels: NDArray[np.int64]) -> float | None:
    """Return the fraction of samples whose label is ranked first; None without scores.

    Args:
        outputs: each output of a model, (samples, ...).
        labels: (samples,) classes.
    """
    found = scores(outputs)
    return None if found is None else float(np.mean(found.argmax(1) == labels))
