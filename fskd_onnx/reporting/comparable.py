"""What two networks can be compared by: common outputs, of samples for which these are finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.errors import ModelError
from fskd_onnx.reporting.agreement import agreement, finite_rows, sample_errors
from fskd_onnx.reporting.output_agreement import spread_of
from fskd_onnx.results import Agreement
from fskd_onnx.runtime.forward import ForwardResult, Outputs, common_outputs


@dataclass(frozen=True)
class Comparable:
    """Outputs of teacher and student that are compared.

    Attributes:
        teacher: of the teacher, for the samples that are judged, each (samples, ...).
        student: of the student, in the same order.
        names: of these outputs, in both networks.
        rows: of each of them, how many rows belong to a sample.
        judged: (samples,) whether a sample is judged: its outputs are finite in both networks.
        outputs_left_out: the teacher's name of each other output, and why it is left out.
    """

    teacher: Outputs
    student: Outputs
    names: list[tuple[str, str]]
    rows: list[int]
    judged: NDArray[np.bool_]
    outputs_left_out: tuple[tuple[str, str], ...]

    def agreement(self, outputs: Outputs) -> Agreement:
        """Return how close outputs for the samples that are judged are to the teacher's."""
        names = [name for name, _ in self.names]
        return agreement(self.teacher, outputs, rows=self.rows, names=names)

    def output_errors(self, outputs: Outputs) -> list[float]:
        """Return the error of each output, for the samples that are judged, on its own scale."""
        with np.errstate(invalid="ignore", over="ignore"):
            return [
                float(np.sum((own.astype(np.float64) - exact) ** 2)) / spread_of(exact, rows)
                for exact, own, rows in zip(
                    (values.astype(np.float64) for values in self.teacher),
                    outputs,
                    self.rows,
                    strict=True,
                )
            ]

    def sample_errors(self, outputs: Outputs) -> NDArray[np.float64]:
        """Return the relative error of each sample that is judged, (samples,)."""
        return sample_errors(self.teacher, outputs, rows=self.rows)


def comparable(
    results: tuple[ForwardResult, ForwardResult],
    names: Sequence[tuple[str, str]],
    models: tuple[str, str],
    *,
    fitted_later: bool = False,
) -> Comparable:
    """Find what the outputs of two networks can be compared by.

    Args:
        results: of teacher and student, for the same samples.
        names: the names of each output in both.
        models: what to call both in an error.
        fitted_later: whether the student may be finite for no sample, which a fit may mend; then
            the teacher alone decides which samples are judged.

    Raises:
        ModelError: there is no such output, one has other shapes, or is finite for no sample.
    """
    compared, left_out = common_outputs(results, names, models[0])
    of_teacher, of_student = zip(*compared, strict=True)
    teacher = [results[0].values[name] for name in of_teacher]
    student = [results[1].values[name] for name in of_student]
    for one, other, output in zip(teacher, student, of_student, strict=True):
        if one.shape[1:] != other.shape[1:]:
            raise ModelError(
                f"{models[1]}: its output '{output}' has the shape {other.shape[1:]} per sample "
                f"and that of {models[0]} {one.shape[1:]}; give a student of that teacher"
            )
    judged = check_finite(teacher, of_teacher, models[0])
    both = judged & np.logical_and.reduce([finite_rows(values) for values in student])
    if both.any():
        judged = both
    elif not fitted_later:
        check_finite(student, of_student, models[1], judged)
    return Comparable(
        [values[judged] for values in teacher],
        [values[judged] for values in student],
        compared,
        [results[0].axes[name].rows for name in of_teacher],
        judged,
        left_out,
    )


def check_finite(
    outputs: Outputs, names: Sequence[str], model: str, among: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Return for which samples all outputs of a network are finite, (samples,).

    Args:
        outputs: each (samples, ...).
        names: of the outputs.
        model: what to call the network in an error.
        among: (samples,) which samples count; None: all.

    Raises:
        ModelError: an output, or all of them together, are finite for no sample.
    """
    finite = np.ones(len(outputs[0]), bool) if among is None else among.copy()
    for values, name in zip(outputs, names, strict=True):
        own = finite_rows(values)
        finite &= own
        if not finite.any():
            which = "each that is finite elsewhere" if own.any() else "each"
            raise ModelError(
                f"{model}: its output '{name}' is NaN or infinite for {which} of {len(own)} "
                "samples; look for what overflows in the model, or give other samples"
            )
    return finite
